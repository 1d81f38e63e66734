"""Batches on the device: from memory where the set fits, else read ahead of the training."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.images import Batch, ImageSet
from selfsight.errors import SelfsightError

BATCHES_AHEAD = 3


class Loader:
    """Whole batches on the device, drawn in a new order every epoch.

    Which images make up step k is a pure function of (seed, k), so that a resumed run continues exactly.
    The images stay on the device if they fit into `resident_share` of its free memory; else they are read
    from the map (or the files) by a thread that works ahead.
    """

    steps_per_epoch: int
    """Batches an epoch; what is left of the shuffled rows after these is not used in that epoch."""

    def __init__(
        self,
        images: ImageSet,
        rows: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        resident_share: float = 0.5,
    ) -> None:
        """Batches of `batch_size` per process out of `rows`; SelfsightError if these do not fill one for all."""
        self.steps_per_epoch = len(rows) // (batch_size * world)
        if not self.steps_per_epoch:
            raise SelfsightError(
                f"{images.source}: {len(rows)} images do not fill one batch of {batch_size * world}; "
                "pass a smaller --batch-size"
            )
        self._images, self._rows, self._device = images, rows, device
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._order: tuple[int, NDArray[np.int64]] = (-1, rows[:0])
        fits = len(rows) * _image_bytes(images) <= resident_share * _free_bytes(device)
        in_memory = isinstance(images.images, np.ndarray)  # files decoded on demand never are
        # On the CPU the operating system keeps a map that fits in memory, so there is nothing to copy.
        self._work_ahead = not (fits and in_memory)
        self._resident = _upload(images, rows, device) if fits and in_memory and device.type == "cuda" else None

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of this step, counted from the start of training."""
        places = self._places(step)
        if self._resident is None:
            return _to_device(_read(self._images, self._rows[places]), self._device)
        index = torch.from_numpy(self._rows[places])
        aspect = torch.from_numpy(self._images.aspect[index.numpy()])
        pixels = self._resident.index_select(0, torch.from_numpy(places).to(self._device))
        return Batch(pixels, aspect.to(self._device), index.to(self._device))

    def stream(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from step `start` on, without end."""
        steps = itertools.count(start)
        if not self._work_ahead:
            return (self.batch(step) for step in steps)
        loads = (lambda step=step: _read(self._images, self._rows[self._places(step)]) for step in steps)
        return _ahead(loads, self._device)

    def _places(self, step: int) -> NDArray[np.int64]:
        """Return the positions in `rows` of this process's part of the batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
            self._order = (epoch, order)
        first = (step_in_epoch * self._world + self._rank) * self._batch_size
        return order[first : first + self._batch_size]


def in_order(images: ImageSet, rows: NDArray[np.int64], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Yield every row once, in the order given, read ahead by a thread; the last batch may be smaller."""
    starts = range(0, len(rows), batch_size)
    loads = (lambda start=start: _read(images, rows[start : start + batch_size]) for start in starts)
    return _ahead(loads, device)


def _ahead(loads: Iterable[Callable[[], Batch]], device: torch.device) -> Iterator[Batch]:
    """Yield what the loads return, in order, on the device, while one thread works some batches ahead."""
    remaining = iter(loads)
    with ThreadPoolExecutor(1, thread_name_prefix="selfsight-loader") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            waiting.extend(pool.submit(load) for load in itertools.islice(remaining, BATCHES_AHEAD))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(load) for load in itertools.islice(remaining, 1))
                yield _to_device(batch, device)
        finally:  # also when the reader stops early: the pool waits for what is not cancelled
            for future in waiting:
                future.cancel()


def _read(images: ImageSet, rows: NDArray[np.int64]) -> Batch:
    """Return these rows on the CPU, in pinned memory if there is a GPU to copy to."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.images[rows]))
    return Batch(pixels, torch.from_numpy(images.aspect[rows]), torch.from_numpy(rows.copy()))


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    pixels = batch.images.pin_memory() if device.type == "cuda" else batch.images
    return Batch(pixels.to(device, non_blocking=True), batch.aspect.to(device), batch.index.to(device))


def _upload(images: ImageSet, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return (len(rows), C, S, S) uint8 on the device, copied in pieces to need no second copy in memory."""
    resident = torch.empty((len(rows), *images.images.shape[1:]), dtype=torch.uint8, device=device)
    piece = max(1, 2**28 // _image_bytes(images))
    for start in range(0, len(rows), piece):
        resident[start : start + piece] = torch.from_numpy(
            np.ascontiguousarray(images.images[rows[start : start + piece]])
        ).to(device)
    return resident


def _image_bytes(images: ImageSet) -> int:
    return int(np.prod(images.images.shape[1:]))


def _free_bytes(device: torch.device) -> int:
    """Return how much memory a set may take on this device without anything being swapped out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return 0  # not known; reading ahead serves any device
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    # macOS does not tell what is available, only what there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
