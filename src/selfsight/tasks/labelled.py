"""Labelled images for training and test: boxes or masks beside decoded pixels, of one folder or of two."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data import BoxSet, ImageSet, MaskSet, open_images
from selfsight.data.annotations import Annotated, Problem
from selfsight.data.copies import warn_of_overlap
from selfsight.data.labels import whole_groups
from selfsight.errors import SelfsightError
from selfsight.progress import say

ENOUGH = 200
"""With fewer labelled images none is spared for validation: the last weights are kept."""
T = TypeVar("T", BoxSet, MaskSet)
Open = Callable[..., T]


@dataclass(frozen=True)
class Labelled(Generic[T]):
    """A set of labels, and the images that could be decoded."""

    data: T
    images: ImageSet
    place: NDArray[np.int64]
    """(N,) where each image of `data` is in `images`, or -1 if it could not be decoded."""
    classes: NDArray[np.int64]
    """(K,) the training set's number of each class of `data`."""

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the rows of a part whose images could be decoded."""
        rows = self.data.rows(part)
        return rows[self.place[rows] >= 0]

    @cached_property
    def digest(self) -> str:
        """A hash that changes with any image's name or label."""
        found = hashlib.sha256()
        for row, name in enumerate(self.data.names):
            found.update(f"{name}\0".encode() + self.data.label_bytes(row))
        return found.hexdigest()

    def pixels(self, row: int) -> Tensor:
        """Return an image in its own shape, (C, H, W) uint8, its longer side as long as the cache's squares."""
        return self.images.in_shape(int(self.place[row]))


def open_labelled(
    path: str | Path,
    test: str | Path | None,
    opener: Open[T],
    *,
    image_size: int,
    channels: int,
    strict: bool,
    test_share: float,
    seed: int,
    **cache: Any,
) -> tuple[Labelled[T], Labelled[T]]:
    """Return what to learn from, its part 'train', and what to test on, its part 'test'; the same set if it has both.

    Without `test` the set's own split counts, or else a seeded `test_share` of its images is held out. With it, only
    the train part of a set that has parts is learned from.

    A class that only test images show is said. Raises SelfsightError where either part has no labelled image left, or
    where the classes of `test` are not those of training.
    """
    data = opener(path, strict=strict)
    if test is not None:
        data = replace(data, split=np.full(len(data), "train") if data.split is None else data.split)
    elif data.split is None:
        split = np.full(len(data), "train", dtype="<U5")
        order = np.random.default_rng(seed).permutation(len(data))
        split[order[: round(test_share * len(data))]] = "test"
        data = replace(data, split=split)
    train = _decoded(data, data.classes, image_size, channels, strict, cache)
    if test is None:
        other = train
    else:
        tested = opener(test, strict=strict)
        tested = replace(tested, split=np.full(len(tested), "test"))
        alike = cache | {"stretch": train.images.stretch}
        other = _decoded(tested, data.classes, image_size, channels, strict, alike)
    parts = ("train", train), ("test", other)
    shown = []
    for part, found in parts:
        present = found.data.present
        here = [present[row] for row in found.rows(part)]
        if not any(map(len, here)):
            raise SelfsightError(f"{found.data.source}: no labelled image in the {part} part")
        shown.append(found.classes[np.concatenate(here)])
    learned, held = (found.place[found.rows(part)] for part, found in parts)
    warn_of_overlap(train.images, learned, other.images, held)
    warn_of_unseen([data.classes[k] for k in np.setdiff1d(shown[1], shown[0])])
    return train, other


def warn_of_unseen(names: Sequence[str]) -> None:
    """Say which classes are tested though no training image shows them."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"no training image shows the class {names[0]!r}{more}, which test images show: it will not be found")


def _decoded(data: T, classes: Any, image_size: int, channels: int, strict: bool, cache: dict[str, Any]) -> Labelled[T]:
    """Decode the images, and number the classes as training does; those that can't be decoded are problems."""
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        raise SelfsightError(f"{data.source}: has the class {unknown[0]!r}, which the training images don't have")
    images = open_images(data, image_size=image_size, channels=channels, verify=True, **cache)
    mine = set(data.names)
    lost: list[Problem] = [Problem(skip.name, None, skip.reason) for skip in images.skipped if skip.name in mine]
    if strict and lost:
        raise SelfsightError(f"{lost[0].file}: {lost[0].reason}")
    data = replace(data, problems=[*data.problems, *lost])
    where = {file: row for row, file in enumerate(images.files or ())}  # of two files the printed names may be one
    place = np.array([where.get(file, -1) for file in data.files], np.int64)
    return Labelled(data, images, place, np.array([list(classes).index(name) for name in data.classes], np.int64))


def scaled(data: Annotated, row: int, shape: tuple[int, int]) -> Tensor:
    """Return (4,) factors from pixels of an original image to those of it at (height, width): for x, y, x, y."""
    width, height = data.sizes[row].tolist()
    x, y = shape[1] / width, shape[0] / height
    return torch.tensor([x, y, x, y], dtype=torch.float32)


def spare(
    rows: NDArray[np.int64], share: float, seed: int, shows: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows but a seeded share of them, and that share; none is spared where there are fewer than ENOUGH.

    Nor is an image spared that alone shows one of the classes (rows, K) that `shows` knows of.
    """
    if not share or len(rows) < ENOUGH:
        return rows, rows[:0]
    apart = whole_groups(np.arange(len(rows)), share, seed, shows)
    return rows[~apart], rows[apart]
