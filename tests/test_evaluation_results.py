"""What an evaluation reports: costs counted in the program, the paper's means, JSON and text; and the named suites."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.evaluation import Row, cost, suites
from lagrangian_jax.evaluation.result import plain

RESTARTS = Row("again", "pgd_linf", {"bound": 0.01, "steps": 2, "random_start": True, "restarts": 3})


def network(weights, images):
    return jnp.tanh(images.reshape(images.shape[0], -1)) @ weights


@pytest.fixture(scope="module")
def examples():
    """(weights, images, labels): 23 images, three of which are misclassified."""
    rng = np.random.default_rng(0)
    weights = 0.3 * rng.normal(size=(48, 5)).astype(np.float32)
    images = rng.uniform(size=(23, 4, 4, 3)).astype(np.float32)
    labels = np.array(jnp.argmax(network(weights, images), -1))
    labels[[0, 7, 22]] = (labels[[0, 7, 22]] + 1) % 5
    return weights, images, labels


def run(examples, suite, **options):
    weights, images, labels = examples
    return lj.evaluation.run(network, images, labels, variables=weights, suite=suite, key=3, batch_size=23, **options)


# Costs


@pytest.mark.parametrize(
    ("row", "gradients", "forward"),
    [
        (Row("none"), 0, 1),
        (Row("fgsm"), 1, 2),
        (Row("lagrangian"), 5, 6),
        (Row("pgd_linf", parameters={"steps": 40}), 40, 41),
        (Row("pgd_l2", parameters={"steps": 7, "keep": "best"}), 7, 9),
        (Row("gaussian_blur"), 0, 1),
    ],
)
def test_costs_are_counted_in_the_program(examples, row, gradients, forward):
    found = run(examples, [row])[row.name]
    assert (found.gradient_evaluations, found.forward_passes, found.cost_exact) == (gradients, forward, True)
    assert found.attacked == 23
    assert found.compile_seconds > 0


def test_stages_cost_what_their_survivors_cost(examples):
    found = run(examples, [RESTARTS])["again"]
    assert found.stages[0] == found.attacked == 20
    assert 20 >= found.stages[1] >= found.stages[2] > found.correct - 1
    assert found.gradient_evaluations == pytest.approx(2 * sum(found.stages) / 23)
    assert found.forward_passes == pytest.approx(1 + 3 * sum(found.stages) / 23)


def iter_search(x, gradient):
    while x.sum() < 64:
        x = x + gradient(x) / 216
        yield x


def test_loops_branches_and_copies():
    weights = jnp.ones((27, 5))
    marked = cost.marked(lambda x: x.reshape(x.shape[0], -1) ** 3 @ weights)
    images = jnp.full((4, 3, 3, 3), 0.5)
    gradient = jax.grad(lambda x: marked(x).sum())

    def metered(function):
        meter = cost.Meter(function)
        output, trips = jax.jit(meter)(images)
        np.testing.assert_allclose(output, jax.jit(function)(images), rtol=1e-6)
        return meter.cost(trips, logits=20, pixels=108)

    def search(x, limit):
        def more(c):
            return (c[0] < limit) & (c[1].sum() < 64) if limit else c[1].sum() < 64

        return jax.lax.while_loop(more, lambda c: (c[0] + 1, c[1] + gradient(c[1]) / 216), (2, x))[1]

    def twice(search):
        return lambda x: jax.lax.fori_loop(0, 2, lambda i, x: search(x), x)

    def until(limit):  # the network in the condition, which is asked once more than the body runs
        def more(c):
            return (c[0] < limit) & (marked(c[1]).sum() < 1e9)

        return lambda x: jax.lax.while_loop(more, lambda c: (c[0] + 1, c[1] + 0.1), (limit * 0, x))[1]

    assert metered(until(3)) == (4, 0, True)
    assert metered(twice(until(3))) == (8, 0, False)
    assert metered(twice(until(2.5))) == (8, 0, False)
    trips = sum(1 for _ in iter_search(images, gradient))
    assert 3 < trips < 9
    assert metered(lambda x: search(x, 0)) == (trips, trips, True)
    assert metered(lambda x: search(x, 99)) == (trips, trips, True)
    assert metered(twice(lambda x: search(x, 12))) == (20, 20, False)
    assert metered(twice(lambda x: search(x, 0))) == (None, None, False)
    assert metered(twice(lambda x: jax.lax.while_loop(lambda x: x.sum() < 60, lambda x: x + 1, x))) == (0, 0, True)
    assert metered(lambda x: jax.lax.cond(x.sum() > 0, gradient, lambda x: x, x)) == (1, 1, False)
    # Each count of a branch by itself: neither branch costs 3 passes and a gradient.
    passes = lambda x: x + marked(marked(marked(x).sum() + x).sum() + x).sum()  # noqa: E731
    assert metered(lambda x: jax.lax.cond(x.sum() > 0, gradient, passes, x)) == (3, 1, False)
    assert metered(lambda x: jax.vmap(lambda s: gradient(x * s))(jnp.arange(6.0))) == (6, 6, True)
    assert metered(lambda x: jax.vmap(jax.jacrev(lambda z: marked(z[None])[0]))(x)) == (1, 5, True)
    assert metered(lambda x: jax.jvp(marked, (x,), (x,))[1]) == (1, 0, True)
    plain = jax.grad(lambda x: (x.reshape(4, -1) ** 3 @ weights).sum())
    np.testing.assert_array_equal(gradient(images), plain(images))


# Results


def outcome(column, accuracy, name=None):
    return lj.evaluation.AttackResult(
        **dict(name=name or column, label=column, attack=column, parameters={}, column=column, correct=0, total=4),
        **dict(accuracy=accuracy, mean_l0=0.0, mean_l2=None, mean_linf=0.0, mean_ssim=None),
        **dict(seconds=1.0, compile_seconds=1.0, gradient_evaluations=None, forward_passes=None, cost_exact=False),
        **dict(attacked=4, stages=(4,)),
    )


def summary(accuracies):
    attacks = tuple(outcome(column, accuracy) for column, accuracy in accuracies.items())
    correct = {a.name: {"correct": np.arange(4) > 0} for a in attacks}
    return lj.evaluation.Result("custom", 0, attacks, (), {}, {}, {}, {}, correct)


def test_the_papers_means():
    # The paper's own row of Table 1: unseen mean 55.37 over seven columns, union mean over these and three more.
    unseen = dict(recolor=0.1, stadv=0.2, elastic=0.3, jpeg=0.4, noise=0.5, blur=0.6, pgd0=0.7)
    found = summary({"clean": 0.9, **unseen, "lpa": 0.0, "linf": 0.1, "l2": 0.2}).summary
    assert found["unseen_mean"] == pytest.approx(0.4)
    assert found["union_mean"] == pytest.approx((2.8 + 0.3) / 10)
    assert found["clean"] == 0.9
    assert summary({"clean": 0.9, **unseen}).summary["union_mean"] is None
    imagenet = dict(recolor=0.1, stadv=0.2, elastic=0.3, fog=0.4, gabor=0.5, snow=0.6, noise=0.7, blur=0.8)
    found = summary({"clean": 0.9, **imagenet, "lpa": 0.0, "linf": 0.1, "l2": 0.2, "jpeg": 0.3}).summary
    assert found["unseen_mean"] == pytest.approx(0.45)
    assert found["union_mean"] == pytest.approx(4.2 / 12)


def test_the_worst_case_is_an_intersection_over_the_tables_columns():
    result = summary({"clean": 0.75, "linf": 0.5})
    result.examples["linf"]["correct"] = np.array([True, True, False, False])
    assert result.summary["worst_case"] == {"correct": 1, "total": 4}
    beside = outcome(None, 0.0, "beside")
    rows = {**result.examples, "beside": {"correct": np.zeros(4, bool)}}
    wider = lj.evaluation.Result("custom", 0, (*result.attacks, beside), (), {}, {}, {}, {}, rows)
    assert wider.summary["worst_case"] == {"correct": 1, "total": 4}


def test_without_an_attack_in_a_column_the_worst_case_is_over_all_rows():
    """As AutoAttack's suites, and rows of one's own beside the clean one."""
    attacks = (outcome("clean", 0.75, "none"), outcome(None, 0.25, "autoattack_linf"))
    rows = {"none": {"correct": np.arange(4) > 0}, "autoattack_linf": {"correct": np.arange(4) > 2}}
    result = lj.evaluation.Result("autoattack_linf", 0, attacks, (), {}, {}, {}, {}, rows)
    assert result.summary["worst_case"] == {"correct": 1, "total": 4}


def test_json_and_text(examples):
    reference = run(examples, [Row("none"), Row("fgsm"), Row("gaussian_blur")])
    found = json.loads(json.dumps(reference.to_json(), allow_nan=False))
    assert list(found) == [
        *("schema", "suite", "seed", "versions", "device", "data", "network", "training"),
        *("attacks", "summary", "failures"),
    ]
    assert (found["schema"], found["suite"], found["seed"], found["training"]) == (1, "custom", 3, None)
    assert {"name", "label", "attack", "parameters", "column", "correct", "total", "accuracy"} <= set(
        found["attacks"][0]
    )
    assert found["attacks"][1]["parameters"] == {"bound": 8 / 255, "random_start": False}
    worst = np.all([rows["correct"] for rows in reference.examples.values()], axis=0).sum()
    assert found["summary"]["worst_case"] == {"correct": worst, "total": 23}
    lines = str(reference).splitlines()
    assert lines[0].split() == ["attack", "correct", "accuracy", "mean", "l2", "mean", "linf", "gradients", "seconds"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "20/23" in lines[2]
    assert lines[-1] == f"worst case {worst}/23, {100 * worst / 23:.2f} %"
    with pytest.raises(KeyError, match=r"the rows are .none., .fgsm., .gaussian_blur."):
        reference["stadv"]


def test_the_printed_means_are_those_of_the_columns(examples):
    unseen, union = suites.MEANS[0]
    rows = [Row(column, "fgsm", {"bound": 0.004 * i}, column=column) for i, column in enumerate(union)]
    result = run(examples, rows)
    correct = {name: float(rows["correct"].mean()) for name, rows in result.examples.items()}
    assert len(set(correct.values())) > 3
    means = [100 * np.mean([correct[column] for column in columns]) for columns in (unseen, union)]
    worst = np.all([rows["correct"] for rows in result.examples.values()], axis=0).sum()
    last = f"unseen mean {means[0]:.2f} %; union mean {means[1]:.2f} %; worst case {worst}/23, {100 * worst / 23:.2f} %"
    assert str(result).splitlines()[-1] == last


def test_equal_values_have_one_spelling():
    """Parameters are the same in whatever order they were given."""
    assert plain({"steps": 3, "bound": np.float32(0.5)}) == plain({"bound": 0.5, "steps": np.int64(3)})
    assert plain({"norm": float("inf")}) != plain({"norm": None})


# Suites


def test_the_papers_suites_have_their_columns():
    for name, (_, union) in zip(("cifar10_table1", "imagenet100_table2"), suites.MEANS, strict=True):
        assert {row.column for row in suites.get(name)} - {None} == {"clean", *union}
    assert [len(columns) for pair in suites.MEANS for columns in pair] == [7, 10, 8, 12]


@pytest.mark.parametrize("name", suites.names())
def test_suites_use_parameters_that_their_attacks_take(name):
    for row in suites.get(name):
        if row.attack not in lj.attacks.names():
            pytest.skip(f"attack {row.attack} is not registered")
        parameters = {**row.parameters}
        if "distance" in parameters:
            assert parameters["distance"] in lj.distances.names()
            parameters["distance"] = lj.distances.create("l2")
        lj.attacks.create(row.attack, **parameters)


def test_a_distance_is_resolved_by_name(examples, monkeypatch):
    def by_distance(key, logits_fn, images, labels, *, distance):
        return images + 0.01 * distance(images, jnp.zeros_like(images))[:, None, None, None]

    monkeypatch.setitem(lj.attacks.ATTACKS, "by_distance", by_distance)
    rows = [Row("by_distance", parameters={"distance": "l2"})]
    norm = np.linalg.norm(examples[1].reshape(23, -1), axis=1)
    np.testing.assert_allclose(run(examples, rows).examples["by_distance"]["linf"], 0.01 * norm, rtol=1e-4)
    doubled = run(examples, rows, distances={"l2": lambda a, b: 2 * jnp.sqrt(jnp.sum((a - b) ** 2, (1, 2, 3)))})
    np.testing.assert_allclose(doubled.examples["by_distance"]["linf"], 0.02 * norm, rtol=1e-4)


@pytest.mark.slow
def test_autoattack_is_checked_first(examples):
    weights, images, labels = examples
    rows = [Row("autoattack", parameters={"bound": 0.01, "steps": 2, "targets": 1, "queries": 3})]
    saturated = run((1e4 * weights, images[:6], labels[:6]), rows)
    assert any("saturated" in failure for failure in saturated.failures)
    assert len(saturated["autoattack"].stages) == len(lj.attacks.create("autoattack", **rows[0].parameters).stages)


def test_a_suite_goes_on_without_a_row_that_has_no_weights(monkeypatch, caplog):
    def no_weights(name, **parameters):
        raise FileNotFoundError(f"no weights for {name}")

    monkeypatch.setattr(lj.distances, "create", no_weights)
    rows = (lj.evaluation.Row("none", column="clean"), lj.evaluation.Row("lpa", parameters={"distance": "lpips"}))
    monkeypatch.setitem(lj.evaluation.suites.SUITES, "with_lpa", rows)
    images, labels = np.full((2, 4, 4, 3), 0.5, np.float32), np.zeros(2, int)

    def logits_fn(images):
        return images.mean((1, 2))

    told = []
    result = lj.evaluation.run(
        logits_fn, images, labels, suite="with_lpa", progress=lambda *_: told.append(caplog.messages.copy())
    )
    assert told[0] == ["lpa: left out, no weights for lpips"]  # before the first attack takes time
    assert [attack.name for attack in result.attacks] == ["none"]
    assert result.failures == ("lpa: left out, no weights for lpips",)
    with pytest.raises(FileNotFoundError, match="no weights for lpips"):
        lj.evaluation.run(logits_fn, images, labels, suite=list(rows))
