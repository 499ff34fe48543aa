"""One attack of a suite on all examples: what is done, in memory and on disk, and how the rest gets done."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from lagrangian_jax import attacks, parallel
from lagrangian_jax.attacks import Attack, Execution
from lagrangian_jax.attacks.attack import map_batches
from lagrangian_jax.distances import SSIMDistance
from lagrangian_jax.evaluation import files, processes
from lagrangian_jax.evaluation.examples import Examples
from lagrangian_jax.evaluation.programs import Programs
from lagrangian_jax.evaluation.result import AttackResult, plain
from lagrangian_jax.evaluation.suites import Row
from lagrangian_jax.signals import Interrupted

SAVE_SECONDS = 10.0  # least time between two saves of an unfinished attack, which wait for the end of a batch
CHUNK_BATCHES = 8  # batches in a chunk of an attack in stages, so that the survivors of a chunk still fill batches
Progress = Callable[[str, int, int], None]


class Work:
    """One attack on all examples; picks up what the work directory holds of it.

    Examples are done one chunk at a time. An unfinished attack is saved in a file of its own, at most every
    `SAVE_SECONDS`: after a chunk, or after a batch inside a chunk that takes long. Batches are the same with a restart
    as without, and so, bit for bit, are the rows.
    """

    def __init__(
        self,
        row: Row,
        attack: Attack,
        examples: Examples,
        identity: Mapping[str, Any],
        sample: files.Sample,
        sitting: Mapping[str, Any],
        folder: Path | None,
        pictures: int,
    ) -> None:
        self.row, self.attack, self.examples = row, attack, examples
        self.fingerprint = plain({"name": row.name, "attack": row.attack, "parameters": attack.parameters, **identity})
        self._path = None if folder is None else folder / f"{row.name}.npz"
        self._unfinished = None if folder is None else folder / f".{row.name}.unfinished"
        self._notes: list[str] = []
        self._coarse = sample.coarse
        self._sitting = plain(sitting)  # versions and device: results depend on them only up to rounding
        self._sittings: list[Any] = []  # those that did a part of the work
        self._first = 0 if attack.survivors else 1  # what `attacks.Standing.passed` begins with
        count, pictures = examples.count, min(pictures, examples.count)
        self._state = {
            "passed": np.full(count, self._first, np.int32),
            "prediction": np.full(count, -1, np.int32),
            "l0": np.zeros(count, np.int32),
            "l2": np.zeros(count, np.float32),
            "linf": np.zeros(count, np.float32),
            "ssim": np.full(count, np.nan, np.float32),
            "pictures": np.zeros((pictures, *examples.images.shape[1:]), np.float32),
            "logits": sample.logits,  # of the first sitting, so that later ones cannot drift away from it
            # Sums over examples: forward passes, gradients, whether these are bounds, and examples that each stage saw.
            "costs": np.zeros(3 + len(attack.stages)),
            "seconds": np.zeros(2),  # running, compiling
            "fitted": np.array(2**31),  # the largest batch that fitted into memory
        }
        if self._load(self._path):
            self._drop_unfinished()
        else:
            self._load(self._unfinished)

    @property
    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        others = (files.differences(other, self._sitting) for other in self._sittings if other != self._sitting)
        return [*self._notes, *(f"computed in another sitting: {'; '.join(different)}" for different in others)]

    def note(self, notes: Sequence[str]) -> None:
        """Adds to `notes`, which are saved with the rows."""
        self._notes += notes

    @property
    def begun(self) -> bool:
        return bool(np.any(self._state["passed"] > self._first))

    @property
    def finished(self) -> bool:
        return bool(self._done.all())

    @property
    def _done(self) -> np.ndarray:
        return self._state["passed"] > len(self.attack.stages)

    def run(
        self,
        programs: Programs,
        keys: np.ndarray,
        batch: int,
        progress: Progress | None,
        stop: Callable[[], bool],
    ) -> None:
        """Attacks the examples that are left.

        Args:
          programs: compiles and runs the stages.
          keys: (N, ...) key data, one per example.
          batch: examples per batch.
          progress: called with the row's name, the number of examples done, and the number of all.
          stop: called after every batch.

        Raises:
          Interrupted: ``stop`` returned True in some process; what is done is saved.
        """
        parts = (1, 4, 16) if self.attack.survivors else (1,)
        sizes = sorted({programs.rounded(-(-batch // part)) for part in parts})
        size = sizes[-1] * (CHUNK_BATCHES if self.attack.survivors else 1)
        saved, stopped = time.perf_counter(), False
        if self._sitting not in self._sittings:
            self._sittings.append(self._sitting)
        while not self.finished:
            if progress is not None:
                progress(self.row.name, int(self._done.sum()), self.examples.count)
            chunk = processes.next_chunk(self._done, size)
            stopped = self._merge(self._attack(programs, keys, chunk, sizes, stop))
            if (stopped or time.perf_counter() - saved > SAVE_SECONDS) and not self.finished:
                self._save(self._unfinished)
                saved = time.perf_counter()
                if stopped:
                    raise self._interrupted()
        self._warn(sizes[-1])
        self._save(self._path)
        self._drop_unfinished()
        if progress is not None:
            progress(self.row.name, self.examples.count, self.examples.count)
        if stopped:  # in the last chunk: the attack is complete, but the request to stop must not be lost
            raise self._interrupted()

    def _interrupted(self) -> Exception:
        done = int(self._done.sum())
        reached = f"stopped at {self.row.name}, {done} of {self.examples.count} images done"
        return parallel.known(Interrupted(f"{reached}; the same command goes on from there"))

    def rows(self) -> dict[str, np.ndarray]:
        """One row per example, and the pictures: what readers find in a finished attack's file."""
        index, labels, state = self.examples.index, self.examples.labels, self._state
        return {
            "index": index,
            "label": labels,
            "prediction": state["prediction"],
            "correct": state["prediction"] == labels,
            **{name: state[name] for name in ("l0", "l2", "linf", "ssim")},
            "picture_index": index[: len(state["pictures"])],
            "pictures": state["pictures"],
        }

    def outcome(self) -> AttackResult:
        """The sums and means of the rows."""
        rows, total = self.rows(), self.examples.count
        correct = int(rows["correct"].sum())
        forward, gradients, bounds, *stages = self._state["costs"]
        return AttackResult(
            name=self.row.name,
            label=self.row.label,
            attack=self.row.attack,
            parameters=self.fingerprint["parameters"],
            column=self.row.column,
            correct=correct,
            total=total,
            accuracy=correct / total,
            mean_l0=_mean(rows["l0"]),
            mean_l2=_mean(rows["l2"]),
            mean_linf=_mean(rows["linf"]),
            mean_ssim=_mean(rows["ssim"]),
            seconds=float(self._state["seconds"][0]),
            compile_seconds=float(self._state["seconds"][1]),
            gradient_evaluations=None if np.isnan(gradients) else float(gradients) / total,
            forward_passes=None if np.isnan(forward) else float(forward) / total,
            cost_exact=not bounds,
            attacked=int(stages[0]),
            stages=tuple(int(stage) for stage in stages),
        )

    def _attack(
        self, programs: Programs, keys: np.ndarray, chunk: np.ndarray, sizes: Sequence[int], stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Attacks a chunk until it is done or time is up; returns its part of the state, empty for an empty chunk."""
        start, compiled = time.perf_counter(), programs.compile_seconds
        images, labels = self.examples.floats(chunk), self.examples.labels[chunk]
        standing = attacks.Standing.start(self.attack, images, labels)._replace(passed=self._state["passed"][chunk])
        run: Any = programs.run  # a function of host arrays; `in_batches` also takes functions of device arrays
        predict: Any = programs.predict
        ran = np.zeros(1 + len(self.attack.stages), int)
        stopped = not len(chunk) and stop()
        for stage, count in attacks.in_batches(self.attack, run, predict, keys[chunk], images, labels, sizes, standing):
            ran[stage] += count
            stopped = stop()
            if stopped or time.perf_counter() - start > SAVE_SECONDS:
                break
        pictures = chunk < len(self._state["pictures"])
        compiling = programs.compile_seconds - compiled
        seconds = np.array([time.perf_counter() - start - compiling, compiling])
        return {
            "rows": chunk,
            "passed": standing.passed,
            "prediction": standing.predictions,
            **_norms(standing.adversarial - images),
            "ssim": _ssim(standing.adversarial, images, programs.largest or sizes[-1]),
            "picture_rows": chunk[pictures],
            "pictures": standing.adversarial[pictures],
            "costs": self._costs(programs, ran),
            "seconds": seconds,
            "fitted": np.array(programs.largest or sizes[-1]),
            "stop": np.array(stopped),
        }

    def _merge(self, found: Mapping[str, np.ndarray]) -> bool:
        """Merges what every process did; returns whether one of them is to stop."""
        state = self._state
        everyone = parallel.gather(found)
        for part in everyone:
            for name in ("passed", "prediction", "l0", "l2", "linf", "ssim"):
                state[name][part["rows"]] = part[name]
            state["pictures"][part["picture_rows"]] = part["pictures"]
            state["costs"] += part["costs"]
            state["fitted"] = np.minimum(state["fitted"], part["fitted"])
        state["seconds"] += np.max([part["seconds"] for part in everyone], axis=0)
        return any(part["stop"] for part in everyone)

    def _costs(self, programs: Programs, ran: np.ndarray) -> np.ndarray:
        clean, *attacked = ran
        forward, gradients, bounds = float(clean), 0.0, 0
        spent = programs.spent()
        for stage, count in zip(self.attack.stages, attacked, strict=True):
            if count:
                cost = spent[stage.function]
                forward += count * (np.nan if cost.forward_passes is None else cost.forward_passes)
                gradients += count * (np.nan if cost.gradient_evaluations is None else cost.gradient_evaluations)
                bounds += not cost.exact
        return np.array([forward, gradients, bounds, *attacked])

    def _warn(self, batch: int) -> None:
        """Adds the notes that a reader of the finished rows needs."""
        rows = self.rows()
        if self._state["fitted"] < batch:
            self._notes.append(
                f"a batch of {batch} did not fit into the device's memory; it went on with {self._state['fitted']}"
            )
        lost = int(np.sum(rows["prediction"] < 0))
        if lost:
            self._notes.append(f"{lost} examples have logits that are not numbers; they count as misclassified")
        odd = int(np.sum(~np.isfinite(rows["l2"])))
        if odd:
            self._notes.append(f"{odd} adversarial images are not finite")
        if self.attack.name == "autoattack":
            stages = tuple(int(stage) for stage in self._state["costs"][3:])
            execution = Execution(rows["pictures"], rows["prediction"], stages)
            self._notes += attacks.autoattack.square_check(execution, self.examples.labels)

    def _save(self, path: Path | None) -> None:
        if path is not None and jax.process_index() == 0:
            about = {"fingerprint": self.fingerprint, "notes": self._notes, "sittings": self._sittings}
            files.write(path, self._state | self.rows(), about)

    def _drop_unfinished(self) -> None:
        if self._unfinished is not None and jax.process_index() == 0:
            self._unfinished.unlink(missing_ok=True)

    def _load(self, path: Path | None) -> bool:
        if path is None:
            return False
        here = jax.process_index() == 0 and path.exists()
        content = parallel.broadcast(path.read_bytes() if here else b"")
        if not content and not here:
            return False
        try:
            arrays, about = files.read(content)
            arrays = self._checked(arrays, path, about)
        except (files.Damaged, KeyError) as error:
            self._notes.append(f"{path.name} was damaged and was computed again ({error})")
            warnings.warn(f"{path} is damaged and is computed again ({error})", stacklevel=5)
            return False
        pictures = self._state["pictures"]
        self._state |= {name: arrays[name] for name in self._state}
        self._state["pictures"] = self._state["pictures"][: len(pictures)]
        self._notes += about["notes"]
        self._sittings = about.get("sittings", [])  # older files lack them
        return True

    def _checked(self, arrays: dict[str, np.ndarray], path: Path, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
        saved = about["fingerprint"]
        defaults = plain(attacks.parameters(self.row.attack))  # parameters added since then had their default values
        differ = files.differences({**saved, "parameters": defaults | saved["parameters"]}, self.fingerprint)
        differ += files.differences(about["version"], files.VERSION, "version of the file")
        differ += self._other_logits(arrays, about) if not differ else []
        if differ:
            raise ValueError(
                f"{path} belongs to another evaluation: {'; '.join(differ)}. Nothing was overwritten; choose another "
                "work directory, or delete this file to have it computed again"
            )
        for name in ("ssim", "logits"):  # older files have none
            arrays.setdefault(name, self._state[name])
        for name, value in self._state.items():
            if name != "pictures" and arrays[name].shape != value.shape:
                raise files.Damaged(f"{name} has shape {arrays[name].shape}, expected {value.shape}")
        return arrays

    def _other_logits(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> list[str]:
        """A note if the network computes something else with the same arrays."""
        alike = about.get("sittings", [])[:1] == [self._sitting] and not self._coarse
        apart = files.apart(arrays.get("logits", self._state["logits"]), self._state["logits"])
        known = apart <= (files.ROUNDING if alike else files.COARSE_ROUNDING)
        return [] if known else [f"the network's logits of the first images differ by {100 * apart:.2g} %"]


def _norms(perturbations: np.ndarray) -> dict[str, np.ndarray]:
    flat = perturbations.reshape(len(perturbations), math.prod(perturbations.shape[1:]))
    return {
        "l0": np.any(np.abs(perturbations) > 1e-6, axis=-1).sum((1, 2)).astype(np.int32),
        "l2": np.sqrt(np.einsum("ni,ni->n", flat, flat, dtype=np.float64)).astype(np.float32),
        "linf": np.abs(flat).max(axis=1),
    }


@jax.jit
def _similarity(ones: Array, others: Array) -> Array:
    return 1 - SSIMDistance()(ones, others)


def _ssim(adversarial: np.ndarray, images: np.ndarray, batch: int) -> np.ndarray:
    """The structural similarity of each example, (N,); NaN for images smaller than its window."""
    found = np.full(len(images), np.nan, np.float32)
    if min(images.shape[1:3]) >= SSIMDistance.window:
        compared = map_batches(
            lambda rows: (_similarity(adversarial[rows], images[rows]),), np.arange(len(images)), [batch]
        )
        for rows, values in compared:
            found[rows] = values
    return found


def _mean(values: np.ndarray) -> float | None:
    mean = float(np.mean(values, dtype=np.float64))
    return mean if np.isfinite(mean) else None
