"""ImageSet: decoded images of one data set, and the Batch that methods see."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight.data.decode import Stretch
from selfsight.errors import SelfsightError

SAMPLED = 64
"""Images whose pixels tell whether a set is the same."""


@dataclass(frozen=True)
class Batch:
    """Images on the device, as a method gets them."""

    images: Tensor
    """(B, C, S, S) uint8: whole images squeezed to squares."""
    aspect: Tensor
    """(B,) float32, width / height of the original, so that crops keep true shapes; on the CPU, which draws views."""
    index: Tensor
    """(B,) int64, row in the data set, for methods that keep a memory of each image."""
    labels: Tensor | None = None
    """(B,) int64, class or -1, None for data without labels. Of all methods only SupCon looks at them."""


class Pixels(Protocol):
    """What an ImageSet reads its images from: a memory map, an array, or files decoded on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, S, S)."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the (len(rows), C, S, S) uint8 images of these rows."""


def rows_of(split: NDArray[np.str_] | None, part: str, count: int) -> NDArray[np.int64]:
    """Return the rows of the 'train' or 'test' part of `count` images; all are train if there is no split."""
    if split is None:
        return np.arange(count if part == "train" else 0)
    return np.flatnonzero(split == part)


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The readable images of a data set, squared, with what else is known of each."""

    source: str
    """What the user passed, for messages."""
    images: Pixels
    """(N, C, S, S) uint8."""
    aspect: NDArray[np.float32]
    """(N,) width / height of the originals."""
    names: Sequence[str]
    """(N,) path relative to the data set's folder, or 'train/17' for array data."""
    files: Sequence[str] | None = None
    """(N,) absolute paths, or None for array data."""
    labels: NDArray[np.int64] | None = None
    """(N,) index into `classes`, -1 where unknown; None if the set has no labels at all."""
    classes: Sequence[str] = ()
    split: NDArray[np.str_] | None = None
    """(N,) 'train' or 'test' where the data comes with a split, else None."""
    skipped: Sequence[Skipped] = ()
    stretch: Stretch | None = None
    """Which values became 0 and 255 where images have more than 8 bits; None if none has."""
    groups: NDArray[np.int64] | None = None
    """(N,) numbers of what images have in common that must not stand on both sides of a split, as a patient or a place;
    None where that isn't known."""

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a process that isn't forked is sent: of a mapped file its path, not its gigabytes."""
        images: Any = self.images
        mapped = isinstance(images, np.memmap) and isinstance(images.base, mmap)  # not a part of a file
        return vars(self) | ({"images": Path(images.filename)} if mapped else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["images"], Path):
            state = state | {"images": np.load(state["images"], mmap_mode="r")}
        vars(self).update(state)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour, more for satellite bands."""
        return self.images.shape[1]

    @property
    def side(self) -> int:
        """Height and width of the squares in pixels."""
        return self.images.shape[2]

    def digest(self) -> str:
        """Return a hash that changes with the names of the images, their number, and the pixels of some of them."""
        digest = hashlib.sha256(f"{self.images.shape}\n".encode() + "\n".join(self.names).encode())
        some = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        digest.update(self.images[some].tobytes())
        return digest.hexdigest()

    def parts_digest(self) -> str | None:
        """Return a hash of which images are held out for the test; None without a split."""
        return None if self.split is None else hashlib.sha256((self.split == "test").tobytes()).hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of the 'train' or 'test' part; all rows are train if there is no split."""
        return rows_of(self.split, split, len(self))

    def in_shape(self, row: int) -> Tensor:
        """Return one image in its original's shape, (C, H, W) uint8, its longer side as long as the squares'."""
        square = torch.from_numpy(np.array(self.images[np.array([row])]))  # (1, C, S, S)
        aspect = float(self.aspect[row])
        shape = [max(1, round(self.side * share)) for share in (min(1.0, 1 / aspect), min(1.0, aspect))]
        return F.interpolate(square, shape, mode="bilinear", antialias=True)[0]

    def require_labels(self) -> NDArray[np.int64]:
        """Return the labels, or raise SelfsightError that says how to give some."""
        if self.labels is None or not len(self.classes):
            raise SelfsightError(
                f"{self.source}: no labels; put images in one subfolder per class, or pass a CSV with path,label"
            )
        return self.labels
