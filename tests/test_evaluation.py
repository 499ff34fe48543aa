"""The evaluation harness: counts, keys, resuming, sharding, costs, and what it says about wrong input."""

import os
import pathlib
import subprocess
import sys
import textwrap
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.evaluation import Row, files, programs, runner, work
from lagrangian_jax.evaluation import run as evaluate
from lagrangian_jax.signals import Interrupted

ROWS = [
    Row("none"),
    Row("pgd_linf", parameters={"bound": 0.02, "steps": 4, "random_start": True}),
    Row("gaussian_noise"),
]
FIELDS = ("index", "label", "prediction", "correct", "l0", "l2", "linf", "pictures")


def network(weights, images):
    return jnp.tanh(images.reshape(images.shape[0], -1)) @ weights


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Most tests run the same few programs; each is compiled once."""
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def examples():
    """(weights, images, labels): 23 images, three of which are misclassified."""
    rng = np.random.default_rng(0)
    weights = 0.3 * rng.normal(size=(48, 5)).astype(np.float32)
    images = rng.uniform(size=(23, 4, 4, 3)).astype(np.float32)
    labels = np.array(jnp.argmax(network(weights, images), -1))
    labels[[0, 7, 22]] = (labels[[0, 7, 22]] + 1) % 5
    return weights, images, labels


def run(examples, suite=ROWS, **options):
    weights, images, labels = examples
    return evaluate(
        network, images, labels, **{"variables": weights, "suite": suite, "key": 3, "batch_size": 8, **options}
    )


@pytest.fixture(scope="module")
def reference(examples):
    return run(examples)


def assert_same(result, other, rows=None, exact=True):
    for name in rows or result.examples:
        for field in FIELDS:
            here, there = result.examples[name][field], other.examples[name][field]
            if exact or here.dtype.kind != "f":
                np.testing.assert_array_equal(here, there, err_msg=f"{name} {field}")
            else:
                np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6, err_msg=f"{name} {field}")


# Counts and norms


def test_fgsm_on_a_linear_network_is_counted_exactly():
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(48,)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, size=(50, 4, 4, 3)).astype(np.float32)
    offset = np.median(images.reshape(50, -1) @ direction)

    def logits(x):
        return jnp.stack([x.reshape(x.shape[0], -1) @ direction - offset, jnp.zeros(x.shape[0])], -1)

    margin = images.reshape(50, -1) @ direction - offset
    labels = np.where(margin > 0, 0, 1)
    bound = 0.01
    expected = np.abs(margin) > bound * np.abs(direction).sum()
    result = evaluate(logits, images, labels, suite=[Row("fgsm", parameters={"bound": bound})], batch_size=16)
    rows = result.examples["fgsm"]
    np.testing.assert_array_equal(rows["correct"], expected)
    assert 0 < expected.sum() < 50
    assert (result["fgsm"].correct, result["fgsm"].total) == (expected.sum(), 50)
    assert result["fgsm"].accuracy == expected.sum() / 50
    np.testing.assert_allclose(rows["linf"], bound, rtol=1e-5)
    np.testing.assert_allclose(rows["l2"], bound * 48**0.5, rtol=1e-5)
    assert (rows["l0"] == 16).all()


def test_rows_are_those_of_the_attack_called_with_the_documented_keys(examples, reference):
    weights, images, labels = examples
    keys = jax.random.fold_in(jax.random.key(3), np.uint32(zlib.crc32(b"pgd_linf")))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(23))
    attack = lj.attacks.create("pgd_linf", **ROWS[1].parameters)
    adversarial = np.asarray(attack(keys, lambda x: network(weights, x), images, labels))
    rows = reference.examples["pgd_linf"]
    np.testing.assert_allclose(rows["pictures"], adversarial[:8], atol=1e-6)
    np.testing.assert_array_equal(rows["picture_index"], np.arange(8))
    np.testing.assert_array_equal(rows["prediction"], np.argmax(network(weights, adversarial), -1))
    difference = (adversarial - images).reshape(23, -1)
    np.testing.assert_allclose(rows["l2"], np.linalg.norm(difference, axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows["linf"], np.abs(difference).max(1), rtol=1e-5)
    changed = (np.abs(adversarial - images) > 1e-6).any(-1).sum((1, 2))
    np.testing.assert_array_equal(rows["l0"], changed)
    assert reference["pgd_linf"].mean_l2 == pytest.approx(rows["l2"].mean())


def test_the_clean_row(reference):
    clean = reference["none"]
    assert (clean.correct, clean.total) == (20, 23)
    assert (clean.mean_l0, clean.mean_l2, clean.mean_linf) == (0, 0, 0)
    assert clean.mean_ssim is None  # these images are smaller than its window
    assert reference.summary["clean"] == 20 / 23


def test_everything_misclassified(examples):
    weights, images, _labels = examples
    wrong = (np.argmax(network(weights, images), -1) + 1) % 5
    staged = Row("again", "pgd_linf", {"bound": 0.1, "steps": 1, "random_start": True, "restarts": 2})
    result = run((weights, images, wrong), [Row("none"), staged])
    assert result["none"].correct == result["again"].correct == 0
    assert (result["again"].attacked, result["again"].gradient_evaluations) == (0, 0)
    assert result["again"].mean_l2 == 0


def test_one_example(examples, reference):
    weights, images, labels = examples
    result = run((weights, images[:1], labels[:1]))
    for name, rows in result.examples.items():
        assert len(rows["index"]) == 1
        np.testing.assert_allclose(rows["l2"], reference.examples[name]["l2"][:1], rtol=1e-5)


def test_uint8_images_are_divided_by_255(examples):
    weights, images, labels = examples
    whole = np.round(255 * images).astype(np.uint8)
    floats = whole.astype(np.float32) / 255
    assert_same(run((weights, whole, labels)), run((weights, floats, labels)))


def test_weights_as_variables_or_closed_over(examples, reference):
    weights, images, labels = examples
    closed = evaluate(lambda x: network(weights, x), images, labels, suite=ROWS, key=jax.random.key(3), batch_size=8)
    assert_same(closed, reference, exact=False)
    other = evaluate(lambda x: network(-weights, x), images, labels, suite=ROWS[:1])
    assert closed.network["digest"] != other.network["digest"]


def test_logits_that_are_not_numbers_count_as_misclassified(examples):
    weights, images, labels = examples

    def logits(x):
        return jnp.where(x[:, 0, 0, :1] > 0.5, jnp.nan, network(weights, x))

    result = evaluate(logits, images, labels, suite=[Row("none")])
    lost = images[:, 0, 0, 0] > 0.5
    assert 0 < lost.sum() < 23
    assert (result.examples["none"]["prediction"][lost] == -1).all()
    assert not result.examples["none"]["correct"][lost].any()
    assert result.failures == (
        f"none: {lost.sum()} examples have logits that are not numbers; they count as misclassified",
    )


# What results do not depend on


@pytest.mark.parametrize("batch_size", [1, 5, 23, 1000])
def test_independent_of_the_batch_size(examples, reference, batch_size):
    assert_same(run(examples, batch_size=batch_size), reference, exact=False)


def test_independent_of_the_other_attacks(examples, reference):
    assert_same(run(examples, [ROWS[2], ROWS[1]]), reference, ["pgd_linf", "gaussian_noise"])


def test_an_example_is_known_by_its_index(examples, reference):
    weights, images, labels = examples
    order = np.random.default_rng(5).permutation(23)[:11]
    result = run((weights, images[order], labels[order]), index=order, keep_pictures=0)
    for name, rows in result.examples.items():
        assert len(rows["pictures"]) == 0
        for field in ("index", "prediction", "l0"):
            np.testing.assert_array_equal(rows[field], reference.examples[name][field][order])
        np.testing.assert_allclose(rows["l2"], reference.examples[name]["l2"][order], rtol=1e-5)


def test_another_key_gives_other_noise(examples, reference):
    assert (run(examples, key=4).examples["gaussian_noise"]["l2"] != reference.examples["gaussian_noise"]["l2"]).all()


SHARDED = """
    import sys, jax, numpy as np
    sys.path.insert(0, {tests!r})
    import test_evaluation as t
    assert jax.device_count() == 8
    given = np.load({given!r})
    examples = given["weights"], given["images"], given["labels"]
    rows = [*t.ROWS, t.RESTARTS]
    result = t.run(examples, rows, batch_size=13, workdir={out!r})
    assert result.device["count"] == 8, result.device
"""
RESTARTS = Row("again", "pgd_linf", {"bound": 0.01, "steps": 2, "random_start": True, "restarts": 3})


def python(script, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process, seconds=300):
    output = process.communicate(timeout=seconds)[0].decode()
    assert process.returncode == 0, output


def save_examples(examples, folder):
    weights, images, labels = examples
    np.savez(folder / "given.npz", weights=weights, images=images, labels=labels)
    return dict(tests=str(pathlib.Path(__file__).parent), given=str(folder / "given.npz"), out=str(folder / "out"))


def test_eight_devices_give_the_rows_of_one(examples, tmp_path):
    script = SHARDED.format(**save_examples(examples, tmp_path))
    process = python(script, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    alone = run(examples, [*ROWS, RESTARTS])
    finish(process)
    for name in alone.examples:
        rows = np.load(tmp_path / "out" / "evaluation" / f"{name}.npz")
        for field in FIELDS:
            np.testing.assert_allclose(rows[field], alone.examples[name][field], rtol=1e-5, atol=1e-6)


TWO_PROCESSES = """
    import sys, jax, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize("127.0.0.1:{port}", 2, {process})
    sys.path.insert(0, {tests!r})
    import test_evaluation as t
    from lagrangian_jax.evaluation import work
    assert jax.process_count() == 2
    given = np.load({given!r})
    examples = given["weights"], given["images"], given["labels"]
    rows = [*t.ROWS, t.RESTARTS]
    work.SAVE_SECONDS = 0
    def stop(name, done, total):
        if name == "again" and done > 0:
            raise KeyboardInterrupt
    work.CHUNK_BATCHES = 1
    try:
        t.run(examples, rows, batch_size=4, workdir={out!r}, progress=stop)
        raise SystemExit("was not stopped")
    except KeyboardInterrupt:
        pass
    result = t.run(examples, rows, batch_size=4, workdir={out!r})
    rows = {{f"{{n}}-{{k}}": v for n, rows in result.examples.items() for k, v in rows.items()}}
    np.savez({out!r} + "{process}.npz", **rows)
    assert result["none"].correct == 20, result
    assert result["again"].attacked == 20, result
    assert result.device["processes"] == 2
"""


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(examples, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = save_examples(examples, tmp_path)
    both = [python(TWO_PROCESSES.format(port=port, process=process, **given)) for process in (0, 1)]
    alone = run(examples, [*ROWS, RESTARTS])
    for process in both:
        finish(process)
    for process in (0, 1):
        rows = np.load(tmp_path / f"out{process}.npz")
        for name, expected in alone.examples.items():
            for field in FIELDS:
                np.testing.assert_allclose(rows[f"{name}-{field}"], expected[field], rtol=1e-5, atol=1e-6)
    assert sorted(path.stem for path in (tmp_path / "out" / "evaluation").iterdir()) == sorted(alone.examples)


# Resuming


@pytest.fixture
def no_attack(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an attack ran")

    monkeypatch.setattr(programs.Programs, "run", refuse)


def test_finished_attacks_are_loaded(examples, reference, tmp_path, request):
    first = run(examples, workdir=tmp_path)
    assert_same(first, reference)
    request.getfixturevalue("no_attack")
    again = run(examples, workdir=tmp_path, batch_size=5)  # the batch size is free
    assert_same(again, reference)
    assert again.attacks == first.attacks
    with np.load(tmp_path / "evaluation" / "pgd_linf.npz") as rows:
        assert set(FIELDS) | {"picture_index"} <= set(rows.files)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(key=4), "key is"),
        (dict(variables=np.zeros((48, 5), np.float32)), "network is"),
        (
            dict(suite=[Row("gaussian_noise", parameters={"variance": 0.1})]),
            "parameters.variance is 0.05 there, 0.1 here",
        ),
        (dict(suite=[Row("gaussian_noise", "gaussian_blur")]), "attack is gaussian_noise there, gaussian_blur here"),
        (dict(labels=np.zeros(23, int)), "data is"),
    ],
)
def test_another_evaluation_is_not_overwritten(examples, tmp_path, change, words):
    weights, images, labels = examples
    given = dict(variables=weights, labels=labels, suite=[ROWS[2]], key=3)
    evaluate(network, images, workdir=tmp_path, **given)
    path = tmp_path / "evaluation" / "gaussian_noise.npz"
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another evaluation") as error:
        evaluate(network, images, workdir=tmp_path, **(given | change))
    assert words in str(error.value)
    assert "choose another work directory" in str(error.value)
    assert path.read_bytes() == before


def test_an_array_closed_over_beside_the_variables_is_part_of_the_network(examples, tmp_path):
    weights, images, labels = examples
    one, two = np.ones((1, 5), np.float32), np.full((1, 5), 2, np.float32)
    given = dict(variables=weights, suite=[ROWS[0]], key=3, workdir=tmp_path)
    evaluate(lambda v, x: network(v, x) * one, images, labels, **given)
    with pytest.raises(ValueError, match=r"belongs to another evaluation: constants is .* there"):
        evaluate(lambda v, x: network(v, x) * two, images, labels, **given)


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_constant_of_the_function_is_part_of_the_network(examples, tmp_path, unfinished):
    """The variables do not reveal such a constant; the logits of the first images do."""
    weights, images, labels = examples

    def once(scale, stop=lambda: False):
        def logits_fn(images):
            return network(weights, (images - 0.5) / scale)

        return evaluate(logits_fn, images, labels, suite=[ROWS[1]], batch_size=8, workdir=tmp_path, stop=stop)

    whole = evaluate(lambda x: network(weights, (x - 0.5) / 0.25), images, labels, suite=[ROWS[1]], batch_size=8)
    if unfinished:
        with pytest.raises(Interrupted):
            once(0.25, stop=lambda: True)
    else:
        once(0.25)
    (path,) = (tmp_path / "evaluation").iterdir()
    before = path.read_bytes()
    for scale in (1.0, 0.26):
        with pytest.raises(ValueError, match=r"belongs to another evaluation: .*logits .* differ by .* %.*directory"):
            once(scale)
        assert path.read_bytes() == before
    arrays, about = files.read(before)
    del arrays["logits"]  # as older versions wrote it
    files.write(path, arrays, about)
    assert_same(once(0.25), whole)


@pytest.mark.parametrize(
    ("factor", "same_device", "dtype", "fits"),
    [
        (1.0001, True, np.float32, True),
        (1.02, True, np.float32, False),
        (1.02, False, np.float32, True),  # a TPU rounds what is multiplied to 8 bits
        (1.02, True, jnp.bfloat16, True),
        (1.2, False, np.float32, False),
        (1.2, True, jnp.bfloat16, False),
    ],
)
def test_rounding_makes_no_other_network(examples, tmp_path, monkeypatch, factor, same_device, dtype, fits):
    weights, images, labels = examples

    def once(factor):
        def logits_fn(variables, images):
            return factor * network(variables.astype(dtype), images.astype(dtype)).astype(np.float32)

        return evaluate(logits_fn, images, labels, variables=weights, suite=[ROWS[0]], workdir=tmp_path)

    with monkeypatch.context() as there:
        if not same_device:
            there.setattr(runner, "device", lambda mesh: {"platform": "tpu"})
        once(1.0)
    if fits:
        once(factor)
    else:
        with pytest.raises(ValueError, match="belongs to another evaluation"):
            once(factor)


def test_logits_are_compared_beside_masked_classes_and_what_is_no_number():
    there = np.array([[1.0, -2.0, -1e9, -np.inf], [3.0, 0.5, -1e9, -np.inf]], np.float32)
    assert files.apart(there, there) == 0
    assert files.apart(there, there * 2) > 0.05
    here = there.copy()
    here[:, :2] *= 1.1
    assert files.apart(there, here) == pytest.approx(0.1, rel=1e-3)
    assert files.apart(there, np.where(there < -1e6, 0, there)) == np.inf
    assert files.apart(there[:, :2], np.full((2, 2), np.nan)) == np.inf
    assert files.apart(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert files.apart(np.zeros((2, 2)), np.ones((2, 2))) == np.inf


def test_similarity_is_that_of_the_images_and_of_older_rows_not_known(tmp_path):
    images = np.random.default_rng(0).uniform(size=(11, 12, 13, 3)).astype(np.float32)
    labels = np.zeros(11, int)

    def logits(x):
        return jnp.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], -1)

    row = Row("fgsm", parameters={"bound": 0.1})
    options = dict(suite=[Row("none"), row], batch_size=4, keep_pictures=11, workdir=tmp_path)
    result = evaluate(logits, images, labels, **options)
    rows = result.examples["fgsm"]
    expected = np.asarray(1 - lj.distances.create("ssim")(jnp.asarray(rows["pictures"]), jnp.asarray(images)))
    assert expected.max() < 0.99
    np.testing.assert_allclose(rows["ssim"], expected, rtol=1e-5)
    assert result["fgsm"].mean_ssim == pytest.approx(expected.mean(), rel=1e-5)
    assert result["none"].mean_ssim == 1.0

    path = tmp_path / "evaluation" / "fgsm.npz"
    arrays, about = files.read(path.read_bytes())
    del arrays["ssim"], about["fingerprint"]["parameters"]["random_start"]  # nor of a parameter that has come since
    files.write(path, arrays, about)
    again = evaluate(logits, images, labels, **options)
    assert again["fgsm"].mean_ssim is None
    np.testing.assert_array_equal(again.examples["fgsm"]["l2"], rows["l2"])


def test_rows_of_another_sitting_are_told(examples, reference, tmp_path, monkeypatch):
    older = {**runner.versions(), "jax": "0.1"}
    with monkeypatch.context() as then:
        then.setattr(runner, "versions", lambda: older)
        assert not run(examples, ROWS[:1], workdir=tmp_path).failures
        halfway = iter([False, True])
        with pytest.raises(Interrupted, match="16 of 23"):
            run(examples, ROWS[:2], workdir=tmp_path, stop=lambda: next(halfway))
    result = run(examples, ROWS, workdir=tmp_path)
    here = runner.versions()
    assert result.versions == here
    note = f"computed in another sitting: versions.jax is 0.1 there, {here['jax']} here"
    assert result.failures == (f"none: {note}", f"pgd_linf: {note}")  # the third is of this sitting alone
    assert_same(result, reference)
    monkeypatch.setattr(runner, "versions", lambda: older)
    (told,) = run(examples, ROWS[:2], workdir=tmp_path).failures  # half of the second row is of these versions
    assert told == f"pgd_linf: computed in another sitting: versions.jax is {here['jax']} there, 0.1 here"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_told_and_done_again(examples, reference, tmp_path, damage):
    run(examples, [ROWS[2]], workdir=tmp_path)
    path = tmp_path / "evaluation" / "gaussian_noise.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(reference.examples["gaussian_noise"]["l2"].tobytes())] ^= 4
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.warns(UserWarning, match="is damaged and is computed again"):
        result = run(examples, [ROWS[2]], workdir=tmp_path)
    assert "gaussian_noise.npz was damaged" in result.failures[0]
    assert_same(result, reference, ["gaussian_noise"])
    run(examples, [ROWS[2]], workdir=tmp_path)  # whole again


@pytest.mark.parametrize("row", [ROWS[1], RESTARTS])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_attack_goes_on_where_it_was_left(examples, tmp_path, monkeypatch, row, how):
    """Interrupted after each of its batches in turn, also in the middle of a chunk. Nothing is run twice."""
    monkeypatch.setattr(work, "CHUNK_BATCHES", 2)
    batches = []
    program = programs.Programs.run

    def observed(self, function, keys, images, *rest):
        if function is not programs._unchanged:
            batches.append(images)
        return program(self, function, keys, images, *rest)

    monkeypatch.setattr(programs.Programs, "run", observed)
    whole = run(examples, [row])
    expected = batches.copy()
    assert len(expected) == (3 if row is ROWS[1] else 9)

    def stop():
        if not batches:
            return False
        if how == "killed" and len(batches) == 2:  # the first one was saved
            raise KeyboardInterrupt
        return how == "stopped"

    monkeypatch.setattr(work, "SAVE_SECONDS", 0)
    folder, ran = tmp_path / "evaluation", []
    for _ in expected[1:]:
        batches.clear()
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run(examples, [row], workdir=tmp_path, stop=stop)
        assert [path.name for path in folder.iterdir()] == [f".{row.name}.unfinished"]
        ran += batches[:1]
    batches.clear()
    result = run(examples, [row], workdir=tmp_path)
    ran += batches
    assert [path.name for path in folder.iterdir()] == [f"{row.name}.npz"]
    for batch, there in zip(ran, expected, strict=True):
        np.testing.assert_array_equal(batch, there)
    assert_same(result, whole)
    assert result[row.name].stages == whole[row.name].stages
    assert result[row.name].forward_passes == pytest.approx(whole[row.name].forward_passes)
    assert result[row.name].gradient_evaluations == pytest.approx(whole[row.name].gradient_evaluations)


def test_files_of_another_version_are_not_overwritten(examples, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(files, "VERSION", 1)
        run(examples, [ROWS[2]], workdir=tmp_path)
    with pytest.raises(ValueError, match="version of the file is 1 there, 2 here"):
        run(examples, [ROWS[2]], workdir=tmp_path)


def test_asked_to_stop_in_the_last_chunk_it_stops_and_keeps_the_attack(examples, reference, tmp_path):
    with pytest.raises(Interrupted, match="stopped at none, 23 of 23 images done"):
        run(examples, workdir=tmp_path, batch_size=23, stop=lambda: True)
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["none.npz"]
    assert_same(run(examples, workdir=tmp_path, batch_size=23), reference, exact=False)


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.npz"
    files.write(path, {"x": np.arange(3)}, {"n": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write(path, {"x": np.zeros(3)}, {"n": 2})
    arrays, about = files.read(path.read_bytes())
    assert (arrays["x"].tolist(), about["n"]) == ([0, 1, 2], 1)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]


# Memory


@pytest.mark.parametrize("row", [ROWS[1], RESTARTS])
def test_the_batch_is_halved_when_memory_runs_out(examples, tmp_path, monkeypatch, row):
    whole = run(examples, [row])
    compile_ = programs.Programs._program

    def small(self, function, keys, images, labels, arguments):
        if len(images) > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        return compile_(self, function, keys, images, labels, arguments)

    monkeypatch.setattr(programs.Programs, "_program", small)
    result = run(examples, [row])
    assert_same(result, whole, exact=False)
    assert result.failures == (f"{row.name}: a batch of 8 did not fit into the device's memory; it went on with 2",)
    with pytest.raises(Interrupted):
        run(examples, [row], workdir=tmp_path, stop=lambda: True)
    monkeypatch.setattr(programs.Programs, "_program", compile_)  # goes on where there is more of it
    assert run(examples, [row], workdir=tmp_path).failures == result.failures


def test_similarities_are_computed_in_the_halved_batch(monkeypatch):
    compile_, sizes = programs.Programs._program, []

    def small(self, function, keys, images, labels, arguments):
        if len(images) > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        return compile_(self, function, keys, images, labels, arguments)

    def similarity(ones, others):
        sizes.append(len(ones))
        return np.ones(len(ones))

    monkeypatch.setattr(programs.Programs, "_program", small)
    monkeypatch.setattr(work, "_similarity", similarity)
    images = np.full((8, 11, 11, 3), 0.7, np.float32)
    lj.evaluation.run(
        lambda x: x.mean((1, 2))[:, :2], images, np.zeros(8, int), suite=[Row("fgsm")], key=0, batch_size=8
    )
    assert sizes == [2, 2, 2, 2]


def test_the_next_attack_gets_the_whole_batch_again(examples, monkeypatch):
    staged = Row("other", RESTARTS.attack, RESTARTS.parameters)
    whole = run(examples, [RESTARTS, staged, ROWS[2]])
    compile_ = programs.Programs._program
    first = []  # the stages of the first row, whose programs are large

    def small(self, function, keys, images, labels, arguments):
        if function is not programs._unchanged and function in [*first, function][:1]:
            first[:] = [function]
            if len(images) > 3:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        return compile_(self, function, keys, images, labels, arguments)

    monkeypatch.setattr(programs.Programs, "_program", small)
    result = run(examples, [RESTARTS, staged, ROWS[2]])
    assert_same(result, whole, exact=False)
    assert result.failures == ("again: a batch of 8 did not fit into the device's memory; it went on with 2",)


def test_other_errors_of_the_runtime_are_raised(examples, monkeypatch):
    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(programs.Programs, "_program", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(examples)


def test_progress(examples):
    seen = []
    run(examples, [ROWS[0]], progress=lambda *event: seen.append(event))
    assert seen == [("none", 0, 23), ("none", 8, 23), ("none", 16, 23), ("none", 23, 23)]


def test_keys_may_be_seeds_or_of_any_kind(examples, reference):
    rbg = jax.random.key(3, impl="rbg")
    for key in (jax.random.key(3), jax.random.PRNGKey(3), rbg, jax.random.key_data(rbg)):
        assert_same(run(examples, key=key), reference)
    assert run(examples, [ROWS[0]], key=jax.random.key(2**31 + 5)).seed == 2**31 + 5


# Wrong input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(images=np.zeros((0, 4, 4, 3), np.float32), labels=np.zeros(0, int)), "images: expected at least one"),
        (dict(images=np.zeros((23, 4, 4), np.float32)), r"images: expected shape \(N, H, W, C\), got \(23, 4, 4\)"),
        (dict(images=np.zeros((23, 1, 8, 8), np.uint8)), r"images: shape .* looks like \(B, C, H, W\); transpose"),
        (dict(images=np.zeros((23, 4, 4, 3))), r"float32 in .* or uint8, got float64; images.astype\('float32'\)$"),
        (dict(images=np.zeros((23, 4, 4, 3), int)), r"uint8, got int64; images.astype\('float32'\) / 255$"),
        (dict(images=np.full((23, 4, 4, 3), 1.5, np.float32)), r"images: expected values in \[0, 1\], got 1.5"),
        (dict(images=np.full((23, 4, 4, 3), np.nan, np.float32)), r"images: expected values in \[0, 1\], got nan"),
        (dict(labels=np.full(23, 5)), r"labels: expected values in \[0, 5\), got 5 to 5"),
        (dict(labels=np.full(23, -1)), r"labels: expected values in \[0, 5\), got -1"),
        (dict(labels=np.zeros(23)), "labels: expected integers, got float64"),
        (dict(labels=np.zeros(22, int)), r"labels: expected shape \(23,\)"),
        (dict(index=np.zeros(23, int)), "index: expected distinct values"),
        (dict(index=np.arange(3)), r"index: expected shape \(23,\)"),
        (dict(key=0.5), "key: expected a seed"),
        (dict(key=jax.random.split(jax.random.key(0))), "key: expected a seed or one key"),
        (dict(batch_size=0), "batch_size: expected 1 or larger, got 0"),
        (dict(keep_pictures=-1), "keep_pictures: expected 0 or larger"),
        (dict(suite="cifar10_table"), "unknown suite 'cifar10_table'; did you mean 'cifar10_table1'"),
        (dict(suite=[]), "suite: expected a name"),
        (dict(suite=["none"]), "suite: expected a name"),
        (dict(suite=Row("none")), r"suite: expected a name .* or a list of evaluation.Row, got Row\(name='none'"),
        (dict(suite=None), r"suite: expected a name .* got None"),
        (dict(suite=[Row("none"), Row("none")]), "a name of its own; repeated: none"),
        (dict(suite=[Row("none", column="x"), Row("fgsm", column="x")]), "only one row can stand .* repeated: x"),
        (dict(suite=[Row("x", "no_such_attack")]), "unknown attack of row 'x' in the suite: 'no_such_attack'"),
        (dict(suite=[Row("none"), Row("fgsm", parameters={"bond": 1})]), "'bond'; did you mean 'bound'"),
        (dict(mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))), "mesh: expected one axis, 'data'"),
        (dict(variables=np.zeros((5, 48, 1), np.float32)), "logits_fn: expected logits of shape"),
    ],
)
def test_wrong_input(examples, change, words, no_attack):
    weights, images, labels = examples
    given = dict(images=images, labels=labels, variables=weights, suite=ROWS, key=3) | change
    function = (lambda v, x: jnp.zeros((len(x), 5, 1))) if np.ndim(given["variables"]) == 3 else network
    with pytest.raises(ValueError, match=words):
        evaluate(function, **given)


def test_what_an_attack_cannot_take_is_told_before_another_takes_time(examples, no_attack, tmp_path):
    weights, images, labels = examples
    rows = [*ROWS, Row("jpeg", parameters={"steps": 2})]
    with pytest.raises(ValueError, match="jpeg: images must be RGB"):
        evaluate(network, images, labels, suite=rows, variables=weights, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_row_names_a_file():
    with pytest.raises(ValueError, match="it names a file"):
        Row("../escape", "none")
