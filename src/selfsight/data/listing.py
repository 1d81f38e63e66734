"""Listing: what a data set consists of, before anything is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfsight.data.decode import Picture, Pictures
from selfsight.data.images import ImageSet, Pixels, Skipped
from selfsight.errors import SelfsightError

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
UNLABELLED_WORDS = {"unlabeled", "unlabelled"}
VALIDATION_WORDS = {"val", "valid", "validation"}


@dataclass(frozen=True)
class Listing:
    """The pictures of a data set and what is known of each."""

    source: str
    pictures: Pictures
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    split: NDArray[np.str_] | None = None
    skipped: Sequence[Skipped] = ()
    identity: str | None = None
    """Changes when any picture may have changed; None if that cannot be known, so nothing is cached on disk."""
    groups: NDArray[np.int64] | None = None
    """(N,) as in ImageSet."""

    @property
    def files(self) -> Sequence[str] | None:
        """Absolute paths, or None for array data."""
        return self.pictures if isinstance(self.pictures, list) else None

    def part(self, rows: Sequence[int]) -> "Listing":
        """Return the listing of these rows alone."""
        pictures: Pictures
        if isinstance(self.pictures, list):
            pictures = [self.pictures[row] for row in rows]
        elif isinstance(self.pictures, np.ndarray):
            pictures = self.pictures[np.asarray(rows, np.int64)]
        else:
            pictures = _Rows(self.pictures, rows)
        return Listing(
            source=self.source,
            pictures=pictures,
            names=[self.names[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            split=None if self.split is None else self.split[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def image_set(
        self, images: Pixels, aspect: NDArray[np.float32], kept: Sequence[int], skipped: Sequence[Skipped]
    ) -> ImageSet:
        """Return the image set of the rows that could be read."""
        files = self.files
        return ImageSet(
            source=self.source,
            images=images,
            aspect=aspect,
            names=[self.names[row] for row in kept],
            files=None if files is None else [files[row] for row in kept],
            labels=None if self.labels is None else self.labels[kept],
            classes=self.classes,
            split=None if self.split is None else self.split[kept],
            skipped=skipped,
            groups=None if self.groups is None else self.groups[kept],
        )


@dataclass(frozen=True)
class _Rows:
    """Some of the pictures of a data set that has no files."""

    pictures: Pictures
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int, /) -> Picture:
        return self.pictures[self.rows[row]]


def index_labels(values: Sequence[str]) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return (labels, classes) for label texts; '' is -1, unknown. Number-like classes sort as numbers."""

    def place(value: str) -> tuple[bool, float, str]:
        number = value.replace(".", "", 1).isdecimal()
        return not number, float(value) if number else 0.0, value

    classes = sorted({value for value in values if value}, key=place)
    if not classes:
        return None, []
    number = {name: index for index, name in enumerate(classes)} | {"": -1}
    return np.array([number[value] for value in values], np.int64), classes


def two_way_split(words: Sequence[str], source: str) -> NDArray[np.str_]:
    """Return 'train' or 'test' for each word (train, val, test or the like).

    A validation part is the test part where there is no other, else it joins the train part.
    SelfsightError for a word that names no part.
    """
    lower = [part_word(word) for word in words]
    has_test = any(SPLIT_WORDS.get(word) == "test" for word in lower)
    known = SPLIT_WORDS | dict.fromkeys(VALIDATION_WORDS, "train" if has_test else "test")
    for word, original in zip(lower, words, strict=True):
        if word not in known:
            raise SelfsightError(f"{source}: split must be train, val or test, not {original!r}")
    return np.array([known[word] for word in lower], dtype="<U5")


def is_split_word(word: str) -> bool:
    """Return whether a folder of this name holds a part of a data set rather than a class."""
    return part_word(word) in SPLIT_WORDS.keys() | VALIDATION_WORDS


def part_word(name: str) -> str:
    """Return a part's name as a word of these: train2017 is the train part."""
    return name.strip().lower().rstrip("0123456789")
