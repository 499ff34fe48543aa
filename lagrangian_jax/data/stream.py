"""Batches of a source that is too large for memory: decoded, cropped and prefetched by Grain, ahead of the device.

The content of a training batch depends only on the seed and the step: not on the number of workers, nor on how many
processes share the work, nor on where an interrupted run resumed.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Generator
from typing import Any

import numpy as np
from absl import flags

from lagrangian_jax.data.dataset import Source, Split
from lagrangian_jax.data.images import centre_crop, random_crop


def stream(
    source: Source,
    *,
    batch_size: int,
    train: bool,
    image_size: int = 224,
    seed: int = 0,
    start_step: int = 0,
    steps_per_epoch: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Generator[dict[str, np.ndarray], None, None]:
    """Iterates over batches of a source.

    Training batches never end: every epoch is a new permutation, whose last partial batch is dropped, and every image
    is cropped at random (`images.random_crop`). Test batches go through the source once, in order, with central crops
    (`images.centre_crop`); the last one holds what remains.

    Args:
      source: the images.
      batch_size: images in a batch, over all processes.
      train: whether to make training or test batches.
      image_size: side of the square crop, in pixels.
      seed: for permutations, crops and flips; each example's draws come from (seed, epoch, row).
      start_step: the first batch to yield, counted from the beginning of training (or of the test set).
      steps_per_epoch: batches after which a new permutation begins; 0: all whole batches.
      workers: processes that decode; 0 decodes in threads of this one, which is enough for a few cores.
      shard: (this process, number of processes). Each gets a consecutive part of every batch, so all of them get the
        same number of batches; its part of the last test batch may be empty.

    Returns:
      a generator of {"images": (B, S, S, 3) uint8, "labels": (B,) int32, "index": (B,) int32, rows of the source}. Its
      ``close`` method ends the workers.

    Raises:
      DataError: from the generator, for an image that cannot be read; it names the file or record.
      ValueError: for sizes that do not fit each other.
    """
    import grain

    process, processes = shard
    if batch_size < 1 or batch_size % processes:
        raise ValueError(f"batch_size: expected a multiple of the {processes} processes, got {batch_size}")
    if train and batch_size > len(source):
        raise ValueError(f"batch_size: expected at most the {len(source)} training images, got {batch_size}")
    if not 0 <= process < processes:
        raise ValueError(f"shard: expected a process in [0, {processes}), got {process}")
    whole = len(source) // batch_size if train else -(-len(source) // batch_size)
    if not 0 <= steps_per_epoch <= whole:
        raise ValueError(
            f"steps_per_epoch: expected 0 to {whole} batches of {batch_size} images, got {steps_per_epoch}"
        )
    share = batch_size // processes
    batches = _Batches(
        source=source,
        batch_size=batch_size,
        share=slice(process * share, (process + 1) * share),
        train=train,
        image_size=image_size,
        seed=seed,
        start_step=start_step,
        steps_per_epoch=steps_per_epoch or whole,
    )
    # Where several processes share a host, the scheduler gives each its own part of the cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = 2 if workers else cores
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, threads + 1))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, and fails in a program that has not parsed them
            flags.FLAGS.mark_as_parsed()
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_follow_parent)
    return _arrays(iter(dataset))


def _arrays(batches: Any) -> Generator[dict[str, np.ndarray], None, None]:
    """Copies the batches out of the workers' shared memory, so that none of it is held when they end."""
    try:
        for batch in batches:
            yield {name: np.array(values) for name, values in batch.items()}
    finally:
        batches.close()


def resident(source: Split | Source, *, image_size: int = 224, workers: int = 0, batch_size: int = 64) -> Split:
    """Reads a source into memory as test batches have it: for validation and test sets, which are used many times."""
    if isinstance(source, Split):
        return source
    images = np.empty((len(source), image_size, image_size, 3), np.uint8)
    for batch in stream(source, batch_size=batch_size, train=False, image_size=image_size, workers=workers):
        images[batch["index"]] = batch["images"]
    return Split(images, source.labels, source.indices)


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The permutation of an epoch, (examples,) int32."""
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


_epoch_order = functools.lru_cache(maxsize=2)(epoch_order)  # batches of two epochs are in flight at a boundary


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Random access to a run's batches from ``start_step`` on; Grain divides them among its workers."""

    source: Source
    batch_size: int
    share: slice  # this process's part of a batch
    train: bool
    image_size: int
    seed: int
    start_step: int
    steps_per_epoch: int

    def __len__(self) -> int:
        return sys.maxsize // 2 if self.train else max(0, self.steps_per_epoch - self.start_step)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        epoch, step = divmod(self.start_step + int(position), self.steps_per_epoch)
        count = len(self.source)
        order = _epoch_order(self.seed, epoch, count) if self.train else np.arange(count, dtype=np.int32)
        rows = order[step * self.batch_size : (step + 1) * self.batch_size][self.share]
        images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            image, _ = self.source[row]
            if self.train:
                # The last number keeps these draws apart from the permutation's.
                rng = np.random.default_rng((self.seed, epoch, row, 1))
                images[place] = np.asarray(random_crop(image, self.image_size, rng))
            else:
                images[place] = np.asarray(centre_crop(image, self.image_size))
        return {"images": images, "labels": self.source.labels[rows].astype(np.int32), "index": rows}


def _follow_parent(worker: int, workers: int) -> None:
    """Makes a worker end when the process that reads from it ends, in whatever way, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the reader decides what it means
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
