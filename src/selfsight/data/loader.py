"""Which images make up which batch: in a new random order every epoch, or each once in a given order."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.data.feed import Feed, read_ahead
from selfsight.data.images import Batch, ImageSet
from selfsight.errors import SelfsightError


class Loader:
    """Whole batches on the device, drawn in a new order every epoch.

    Which images make up step k is a pure function of (seed, k), so that a resumed run continues exactly.
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
        """Batches of `batch_size` per process out of `rows`; SelfsightError if these do not fill one for all.

        How `resident_share` decides where the images wait for their turn is told in `Feed`.
        """
        self.steps_per_epoch = len(rows) // (batch_size * world)
        if not self.steps_per_epoch:
            raise SelfsightError(
                f"{images.source}: {len(rows)} images do not fill one batch of {batch_size * world}; "
                "pass a smaller --batch-size"
            )
        self._feed = Feed(images, rows, device, resident_share)
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._epoch, self._order = -1, np.arange(len(rows))

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of this step, counted from the start of training."""
        return self._feed.batch(self._places(step))

    def stream(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from step `start` on, without end."""
        return self._feed.batches(self._places(step) for step in itertools.count(start))

    def _places(self, step: int) -> NDArray[np.int64]:
        """Return the positions in `rows` of this process's part of the batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._order))
        first = (step_in_epoch * self._world + self._rank) * self._batch_size
        return self._order[first : first + self._batch_size]


def in_order(images: ImageSet, rows: NDArray[np.int64], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Yield every row once, in the order given, read ahead by a thread; the last batch may be smaller."""
    starts = range(0, len(rows), batch_size)
    return read_ahead(images, (rows[start : start + batch_size] for start in starts), device)
