"""Squares that an earlier cache of the same data has: one photo more must not have all others decoded again."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfsight.data.decode import Recipe, Square
from selfsight.data.listing import Listing

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


class Earlier:
    """What caches of the same place and recipe know of its files, of which one is about to be built anew."""

    def __init__(self, listing: Listing, recipe: Recipe, version: int, cache_dir: Path) -> None:
        files = listing.files if Path(listing.source).exists() else None  # "200 files in …" is no place
        kind = repr((str(Path(listing.source).resolve()), recipe, version))
        self._name = f"files-{hashlib.sha256(kind.encode()).hexdigest()[:16]}.json"
        self._files = [] if files is None else [*files]
        self._stamps = [_stamp(file) for file in self._files]  # before any is decoded: later changes are seen next time
        self._images: NDArray[np.uint8] | None = None
        self._places: dict[int, tuple[int, float]] = {}  # by row: place and aspect
        self._superseded: list[Path] = []
        for lists in cache_dir.glob(f"*/{self._name}") if self._files else ():
            if not lists.parent.suffix:  # neither half built nor half removed
                self._look_into(lists)

    def square(self, row: int) -> Square | None:
        """Return the square of this row's file if it is known and the file has not changed since."""
        if self._images is None or row not in self._places:
            return None
        place, aspect = self._places[row]
        return Square(np.array(self._images[place]), aspect)

    def write(self, folder: Path, kept: Sequence[int], aspects: Sequence[float]) -> None:
        """Write to the new cache's folder what the next one may know: of each row that was kept its file and place."""
        if self._files:
            rows = zip(kept, aspects, strict=True)
            known = {self._files[row]: (*self._stamps[row], place, a) for place, (row, a) in enumerate(rows)}
            (folder / self._name).write_text(json.dumps(known), encoding="utf-8")

    def forget(self) -> None:
        """Remove the caches that the new one stands for; of one in use, on Windows, the next one may."""
        self._images = None
        for folder in self._superseded:
            with suppress(OSError):  # whole or not at all: half a cache would be taken for a small one
                shutil.rmtree(folder.rename(folder.with_suffix(".gone")), ignore_errors=True)

    def _look_into(self, lists: Path) -> None:
        try:
            known: dict[str, tuple[int, int, int, float]] = json.loads(lists.read_text(encoding="utf-8"))
            images: NDArray[np.uint8] = np.load(lists.with_name("images.npy"), mmap_mode="r")
        except (OSError, ValueError):  # another process has just removed it
            return
        rows = {file: row for row, file in enumerate(self._files)}
        places = {
            rows[file]: (place, aspect)
            for file, (size, modified, place, aspect) in known.items()
            if file in rows and self._stamps[rows[file]] == (size, modified)
        }
        if len(places) > len(self._places):
            self._images, self._places = images, places
        # Not of another part of the same data: its files are as they were, and none of ours.
        if not any(file not in rows and _stamp(file) == (size, time) for file, (size, time, _, _) in known.items()):
            self._superseded.append(lists.parent)


def _stamp(file: str) -> Stamp:
    try:
        status = Path(file).stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
