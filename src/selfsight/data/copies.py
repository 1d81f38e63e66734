"""Exact copies of images to learn from among those to test on: what is known by heart says nothing of the rest.

Files are copies if their bytes are, whatever size they are decoded at; images without files if their pixels are.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfsight.data.images import ImageSet
from selfsight.progress import say

TAIL = 4096
"""Bytes at the end of a file that are read before all of it: compressed images hardly ever share them."""
Key = Callable[[int], Hashable]
"""Of a row; copies have the same."""


def learn_copies(images: ImageSet, split: NDArray[np.str_], labels: NDArray[np.int64]) -> None:
    """Move to the train part, of a `split` (N,) drawn at random, test images of which that has a copy with their label.

    Images without a label (-1) are neither learned from nor tested. Nothing moves where a class would miss in the test,
    nor where images are in groups, which stay whole.
    """
    if images.groups is not None:
        return
    known = labels >= 0
    rows, held = (np.flatnonzero((split == part) & known) for part in ("train", "test"))
    moved = held[copied(images, rows, images, held, labels)]
    missing = np.setdiff1d(labels[moved], labels[np.setdiff1d(held, moved)])
    moved = moved[~np.isin(labels[moved], missing)]
    if len(moved):
        split[moved] = "train"
        say(f"{len(moved)} of {len(held)} images drawn for the test are exact copies of others: these are learned")


def warn_of_overlap(learned: ImageSet, rows: NDArray[np.int64], tested: ImageSet, held: NDArray[np.int64]) -> None:
    """Say it where images to be tested on, or exact copies of them, are learned from: the scores flatter then.

    `rows` (N,) of `learned` against `held` (M,) of `tested`.
    """
    both = copied(learned, rows, tested, held)
    if learned.files is not None and tested.files is not None:
        real = functools.partial(_real, functools.cache(os.path.realpath))
        files = {real(learned.files[row]) for row in rows.tolist()}
        both |= np.array([real(tested.files[row]) in files for row in held.tolist()], bool)
    if both.any():
        first = tested.names[held[both.argmax()]]
        say(f"{both.sum()} of the {len(held)} test images are learned from too, as {first}: the scores flatter")


def copied(
    learned: ImageSet,
    rows: NDArray[np.int64],
    tested: ImageSet,
    held: NDArray[np.int64],
    labels: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Return which of `held` (M,), rows of `tested`, have a copy among `rows` (N,) of `learned`.

    With `labels`, of one set of images, only copies of the same label count. What is quick to read is compared first,
    the whole only of images that agree in it.
    """

    def full(key: Key, row: int) -> Hashable:
        return key(row), None if labels is None else int(labels[row])

    left, places = rows.tolist(), dict(enumerate(held.tolist()))  # rows that may still be copies
    for one, other in zip(_keys(learned), _keys(tested), strict=True):
        known, asked = {row: full(one, row) for row in left}, {at: full(other, row) for at, row in places.items()}
        there, wanted = set(known.values()), set(asked.values())
        left = [row for row, key in known.items() if key in wanted]
        places = {at: places[at] for at, key in asked.items() if key in there}
    return np.isin(np.arange(len(held)), list(places))


def _keys(images: ImageSet) -> tuple[Key, Key, Key]:
    """Return what tells two images apart, from quick and rough to slow and sure."""
    files, pixels = images.files, images.images
    if files is None:  # an array, so that no file is decoded for it
        middle = images.side // 2

        def array(row: int) -> NDArray[np.uint8]:
            return pixels[np.array([row])]

        return (
            lambda row: float(images.aspect[row]),
            lambda row: hash(array(row)[:, :, middle].tobytes()),
            lambda row: hashlib.sha256(array(row).tobytes()).digest(),
        )
    return (
        lambda row: _size(files[row]),
        lambda row: (_size(files[row]), _digest(files[row], TAIL)),
        lambda row: _digest(files[row]),
    )


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:  # gone meanwhile
        return 0


def _digest(file: str, last: int | None = None) -> Hashable:
    """Return a hash of a file's `last` bytes, or of all; its name if it can't be read: it is a copy of none."""
    try:
        with Path(file).open("rb") as f:
            f.seek(0 if last is None else max(0, _size(file) - last))
            return hashlib.file_digest(f, "sha256").digest()
    except OSError:
        return file


def _real(folder: Callable[[str], str], file: str) -> str:
    path = Path(file)
    return os.path.realpath(file) if path.is_symlink() else str(Path(folder(str(path.parent))) / path.name)
