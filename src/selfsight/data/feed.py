"""How images get to the device: from its memory where the set fits, else read ahead of who uses them."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.images import Batch, ImageSet

BATCHES_AHEAD = 3


class Feed:
    """Batches on the device of any of the images.

    They stay on the device if they fit into `resident_share` of its free memory; else they are read from the map (or
    the files) by a thread that works ahead.
    """

    def __init__(
        self, images: ImageSet, rows: NDArray[np.int64], device: torch.device, resident_share: float = 0.5
    ) -> None:
        """Batches out of `rows` (N,) of the data set."""
        self._images, self._rows, self._device = images, rows, device
        fits = len(rows) * _image_bytes(images) <= resident_share * _free_bytes(device)
        in_memory = isinstance(images.images, np.ndarray)  # files decoded on demand never are
        # On the CPU the operating system keeps a map that fits in memory, so there is nothing to copy.
        self._work_ahead = not (fits and in_memory)
        self._resident = _upload(images, rows, device) if fits and in_memory and device.type == "cuda" else None

    def batch(self, places: NDArray[np.int64]) -> Batch:
        """Return the images at these positions (B,) in `rows`."""
        if self._resident is None:
            return _to_device(_read(self._images, self._rows[places], self._device), self._device)
        index = torch.from_numpy(self._rows[places])
        aspect = torch.from_numpy(self._images.aspect[index.numpy()])
        pixels = self._resident.index_select(0, torch.from_numpy(places).to(self._device, non_blocking=True))
        labels = _labels(self._images, index.numpy())
        return _to_device(Batch(pixels, aspect, index, labels), self._device)

    def batches(self, places: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch for each of these arrays of positions in `rows`."""
        if self._work_ahead:
            return read_ahead(self._images, (self._rows[some] for some in places), self._device)
        return map(self.batch, places)


def read_ahead(images: ImageSet, rows: Iterable[NDArray[np.int64]], device: torch.device) -> Iterator[Batch]:
    """Yield a batch on the device for each of these arrays of rows, while one thread reads some batches ahead."""
    remaining = iter(rows)
    with ThreadPoolExecutor(1, thread_name_prefix="selfsight-feed") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            first = itertools.islice(remaining, BATCHES_AHEAD)
            waiting.extend(pool.submit(_read, images, some, device) for some in first)
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(_read, images, some, device) for some in itertools.islice(remaining, 1))
                yield _to_device(batch, device)
        finally:  # also when the reader stops early: the pool waits for what is not cancelled
            for future in waiting:
                future.cancel()


def _read(images: ImageSet, rows: NDArray[np.int64], device: torch.device) -> Batch:
    """Return these rows on the CPU, in pinned memory if they go to a GPU, which then copies them by itself."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.images[rows]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return Batch(pixels, torch.from_numpy(images.aspect[rows]), torch.from_numpy(rows.copy()), _labels(images, rows))


def _labels(images: ImageSet, rows: NDArray[np.int64]) -> Tensor | None:
    return None if images.labels is None else torch.from_numpy(images.labels[rows])


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    pixels, index = (x.to(device, non_blocking=True) for x in (batch.images, batch.index))
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return Batch(pixels, batch.aspect, index, labels)


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
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type != "cpu":
        return 0  # not known; reading ahead serves any device
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    # macOS does not tell what is available, only what there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
