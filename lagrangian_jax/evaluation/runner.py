"""Runs a suite: every attack of it on every example, over all devices, resumable, with exact counts.

What happens to an example depends only on the key, the row's name and the example's index: not on the batch, the
devices, the processes or the other attacks. So a killed evaluation resumes where it was, on whatever devices there are.
"""

import importlib.metadata
import logging
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import lagrangian_jax
from lagrangian_jax import attacks, parallel
from lagrangian_jax import distances as distances_module
from lagrangian_jax.attacks import Attack
from lagrangian_jax.attacks.arrays import threefry
from lagrangian_jax.evaluation import files, suites
from lagrangian_jax.evaluation.examples import Examples
from lagrangian_jax.evaluation.programs import Programs
from lagrangian_jax.evaluation.result import Result
from lagrangian_jax.evaluation.suites import Row
from lagrangian_jax.evaluation.work import Progress, Work
from lagrangian_jax.names import unknown
from lagrangian_jax.parallel import AXIS

log = logging.getLogger(__name__)


def run(
    logits_fn: Callable[..., Array],
    images: Any,
    labels: Any,
    *,
    suite: str | Sequence[Row] = "quick",
    key: Array | int = 0,
    batch_size: int | None = None,
    index: Any = None,
    variables: Any = None,
    distances: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    keep_pictures: int = 8,
) -> Result:
    """Attacks a network with every attack of a suite.

    All images are attacked, including misclassified ones. Only attacks in stages (AutoAttack, PGD0, restarts) skip
    images that are misclassified already, which changes no accuracy. The network must be in evaluation mode.

    Args:
      logits_fn: ``logits_fn(images) -> (B, K)``, or with ``variables`` ``logits_fn(variables, images)``. The latter
        keeps the weights out of the compiled programs: they compile faster, and once for all weights.
      images: (N, H, W, C), float32 in [0, 1], or uint8, which is divided by 255.
      labels: (N,) integers.
      suite: a name of `lagrangian_jax.evaluation.suites.names`, or rows. A named suite leaves out a row whose distance
        has no weights here, and the result's failures say so.
      key: a PRNG key, or a seed.
      batch_size: examples per batch, over all devices; by default chosen by the images' size. Evened out, rounded up
        to a multiple of the number of devices, and halved if it does not fit into the devices' memory.
      index: (N,) the examples' indices in their data set, by default 0 .. N - 1; they seed the random numbers.
      variables: a pytree of weights, see ``logits_fn``.
      distances: for rows whose parameter ``distance`` is a name: by that name, a distance or the path of its weights.
        Names that are not here go to `lagrangian_jax.distances.create`.
      workdir: where ``evaluation/<row>.npz`` is kept; rows found there, from the same network, data, key and
        parameters, are not computed again. A network is recognised by its arrays and, up to rounding, by its logits on
        the first images: one that differs only in its gradient or its precision needs a directory of its own. None:
        nothing is written.
      mesh: one axis, "data"; by default all devices.
      progress: called as ``progress(name of the row, examples done, examples in all)``.
      stop: called after every batch of examples; once it returns True, in any process, what is done is kept and
        `lagrangian_jax.signals.Interrupted` is raised. `lagrangian_jax.signals.Signals.received` is such a function.
      keep_pictures: how many adversarial images to keep for each attack, those of the first examples; a row that is
        already in the work directory has no more than were kept then.

    Returns:
      a `Result`; printing it shows a table.

    In a job of several processes, each calls this with the same arguments, attacks its contiguous share of the examples
    on its own devices, and returns the whole result; only the first process writes.

    Raises:
      ValueError: the input is not what is described here, or the work directory holds another evaluation's rows.
      Interrupted: ``stop`` returned True.

    >>> import jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.mean((1, 2, 3)) - 0.5, 0.5 - images.mean((1, 2, 3))], axis=-1)
    >>> rows = [lj.evaluation.Row("none"), lj.evaluation.Row("fgsm", parameters={"bound": 0.25})]
    >>> result = lj.evaluation.run(logits_fn, np.full((4, 2, 2, 3), 0.7, np.float32), np.zeros(4, int), suite=rows)
    >>> [attack.accuracy for attack in result.attacks]
    [1.0, 0.0]
    """
    if keep_pictures < 0:
        raise ValueError(f"keep_pictures: expected 0 or larger, got {keep_pictures}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or larger, got {batch_size}")
    weights = () if variables is None else (jax.tree.map(_on_host, variables),)

    def network(images):
        return logits_fn(*weights, images)

    key, mesh = _key(key), _local(mesh)
    examples = Examples(network, images, labels, index)
    attacks_of_rows, left_out = ready(suite, distances or {}, examples.images.shape[1:], examples.classes)
    folder = None if workdir is None else Path(workdir) / "evaluation"
    if jax.process_index() == 0:
        for note in left_out:
            log.warning("%s", note)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    image = jax.ShapeDtypeStruct((1, *examples.images.shape[1:]), jnp.float32)
    computed = files.programs(logits_fn, *weights, image)
    identity = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "examples": examples.count,
        "data": examples.digest(),
        **_network_digests(computed, weights),
    }
    logits = parallel.gather({"logits": examples.logits})[0]["logits"]  # all processes must judge by the same ones
    sample = files.Sample(logits, files.coarse(computed))
    programs = Programs(logits_fn, weights, mesh, examples.classes)
    batch = _batch(batch_size, examples, mesh)
    works, sitting = [], {"versions": versions(), "device": device(mesh)}
    for row, attack in attacks_of_rows:
        known_by = identity | _distance_digest(attack, examples)
        work = Work(row, attack, examples, known_by, sample, sitting, folder, keep_pictures)
        if not work.finished:
            if attack.name == "autoattack" and not work.begun:
                work.note(_self_checks(attack, key, network, examples))
            keys = np.asarray(jax.random.key_data(example_keys(key, row.name, examples.index)))
            work.run(programs, keys, batch, progress, stop or _never)
            programs.forget()
        works.append(work)
    return Result(
        suite=suite if isinstance(suite, str) else "custom",
        seed=_seed(key),
        attacks=tuple(work.outcome() for work in works),
        failures=(*left_out, *(f"{work.row.name}: {note}" for work in works for note in work.notes)),
        **sitting,
        data={
            "examples": examples.count,
            "shape": list(examples.images.shape[1:]),
            "classes": examples.classes,
            "digest": identity["data"],
        },
        network={"digest": identity["network"], "parameters": _size(weights)},
        examples={work.row.name: work.rows() for work in works},
    )


def ready(
    suite: str | Sequence[Row], distances: Mapping[str, Any], image_shape: tuple[int, ...], classes: int
) -> tuple[list[tuple[Row, Attack]], list[str]]:
    """Every row of a suite with its attack, checked before the first one runs, and notes on rows that are left out.

    Raises:
      ValueError: a row that cannot be run on images of this shape (H, W, C).
    """
    found, left_out = [], []
    for row in suites.rows(suite):
        try:
            attack = configured(row, distances)
        except FileNotFoundError as missing:  # a distance's weights: the rest of a suite is worth having
            if not isinstance(suite, str):
                raise
            left_out.append(f"{row.name}: left out, {missing}")
            continue
        attack.check(image_shape, classes)
        found.append((row, attack))
    return found, left_out


def _never() -> bool:
    return False


def _on_host(leaf: Any) -> Any:
    """Weights may be split over a training mesh, or over processes; the evaluation has its own mesh."""
    return leaf if not isinstance(leaf, jax.Array) or _is_key(leaf) else np.asarray(leaf)


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _size(weights: tuple[Any, ...]) -> int:
    leaves = jax.tree.leaves(weights)
    return sum(np.size(leaf) for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _key(key: Array | int) -> Array:
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return threefry(jax.random.key(int(key)))
    if isinstance(key, jax.Array):
        old_style = key.dtype == jnp.uint32 and key.shape in ((2,), (4,))  # jax.random.PRNGKey
        if old_style or (_is_key(key) and key.ndim == 0):
            return threefry(key)
    raise ValueError(f"key: expected a seed or one key of jax.random.key, got {key!r}")


def _seed(key: Array) -> int:
    """The key's words as one number: the seed, if `jax.random.key` made the key from one."""
    return int.from_bytes(np.asarray(jax.random.key_data(key)).astype(">u4").tobytes(), "big")


def example_keys(key: Array, name: str, index: np.ndarray) -> Array:
    """One key per example: the key folded with the name of what is done and with the example's index."""
    named = jax.random.fold_in(threefry(key), np.uint32(zlib.crc32(name.encode())))
    return jax.vmap(jax.random.fold_in, (None, 0))(named, jnp.asarray(index.astype(np.uint32)))


def _local(mesh: Mesh | None) -> Mesh:
    """A mesh of this process's devices: processes share no program, only results."""
    if mesh is not None and mesh.axis_names != (AXIS,):
        raise ValueError(f"mesh: expected one axis, {AXIS!r}; got {mesh.axis_names}")
    devices = jax.local_devices() if mesh is None else list(mesh.local_devices)
    return Mesh(np.array(devices), (AXIS,))


def _batch(asked: int | None, examples: Examples, mesh: Mesh) -> int:
    """Examples per batch: as asked, or chosen by the images' size; evened out, so that no batch is nearly empty."""
    if asked is None:
        pixels = int(np.prod(examples.images.shape[1:3]))
        each = 64 if mesh.devices.flat[0].platform == "cpu" else int(np.clip(512 * 1024 / pixels, 64, 1024))
        asked = each * mesh.size
    share = -(-examples.count // jax.process_count())
    return -(-share // -(-share // asked))


def configured(row: Row, given: Mapping[str, Any]) -> Attack:
    """The attack of a row; ``given`` has, by name, a distance or the path of its weights."""
    if row.attack not in attacks.names():
        raise unknown(f"attack of row {row.name!r} in the suite:", row.attack, attacks.names())
    parameters = dict(row.parameters)
    distance = parameters.get("distance")
    if isinstance(distance, str):
        found = given.get(distance)
        weights = {"weights": found} if isinstance(found, (str, Path)) else {}
        parameters["distance"] = found if callable(found) else distances_module.create(distance, **weights)
    return attacks.create(row.attack, **parameters)


def _network_digests(computed: list[Any], weights: tuple[Any, ...]) -> dict[str, str]:
    """Hashes of what the network computes with: its variables, and what it closes over besides or instead of them."""
    leaves, closed_over = jax.tree.leaves(weights), files.closure(computed)
    constants = {"constants": files.digest(*closed_over)} if leaves and closed_over else {}
    return {"network": files.digest(*(leaves or closed_over)), **constants}


def _distance_digest(attack: Attack, examples: Examples) -> dict[str, str]:
    distance = attack.parameters.get("distance")
    if distance is None:
        return {}
    image = jax.ShapeDtypeStruct((1, *examples.images.shape[1:]), jnp.float32)
    return {"distance": files.digest(*files.closure(files.programs(distance, image, image)))}


def _self_checks(attack: Attack, key: Array, network: Callable[[Array], Array], examples: Examples) -> list[str]:
    few = slice(0, min(examples.count, 64))
    labels = examples.labels[few]
    options = {name: attack.parameters[name] for name in ("norm", "bound")}
    return attacks.autoattack.checks(key, network, jnp.asarray(examples.floats(few)), jnp.asarray(labels), **options)


def versions() -> dict[str, str]:
    """The versions of the software that the numbers depend on."""
    found = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax", "numpy")}
    return {"python": platform.python_version(), "lagrangian_jax": lagrangian_jax.__version__, **found}


def device(mesh: Mesh) -> dict[str, Any]:
    """How results describe the machine."""
    first = mesh.devices.flat[0]
    processes = jax.process_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": mesh.size * processes,
        "processes": processes,
    }
