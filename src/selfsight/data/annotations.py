"""What sets of boxes and of masks have in common, and how their readers list what is wrong with a label."""

import csv
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsight.data.cache import whole_file
from selfsight.data.decode import BadImageError, quiet_decoders, read_size, thread_count
from selfsight.data.folder import list_folder, printable
from selfsight.data.images import rows_of

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels: the left edge of the first pixel is at 0, the right edge of the last at the width."""
Size = tuple[int, int]
"""Width, height of the upright image."""
SHOWS_NOTHING = "taken as showing nothing"
CLASS_FILES = ("data.yaml", "data.yml", "classes.txt", "obj.names")

# Formats round, and some tools count VOC's pixels from 0, so what sticks out by a pixel is clipped without a word.
TOLERANCE = 1.0
SMALLEST = 0.99  # pixels; YOLO's six digits may make a whole pixel a little less


@dataclass(frozen=True)
class Problem:
    """A label, or a labelled image, that could not be used as it stands."""

    file: str
    """Path relative to the data set's folder."""
    line: int | None
    """Line of a text file or of broken XML, else None."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """The images of a data set whose labels are drawn in them; no pixel is decoded yet."""

    source: str
    """What the user passed, for messages."""
    files: Sequence[str]
    """(N,) absolute paths."""
    names: Sequence[str]
    """(N,) paths relative to the data set's folder."""
    sizes: NDArray[np.int64]
    """(N, 2) width and height in pixels, upright: after the orientation that EXIF tells."""
    classes: Sequence[str]
    split: NDArray[np.str_] | None = None
    """(N,) 'train' or 'test' where the data comes with a split, else None."""
    problems: Sequence[Problem] = ()
    """What had to be changed or left out, sorted by file and line."""

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of the 'train' or 'test' part; all rows are train if there is no split."""
        return rows_of(self.split, split, len(self))


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write the problems as a CSV (file, line, reason), whole or not at all; the line is empty where there is none."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "reason"])
        writer.writerows((problem.file, problem.line, problem.reason) for problem in problems)


class BadLabelError(Exception):
    """One label cannot be used as it stands; the message is the reason that the user reads."""


class Findings:
    """The problems met while a data set is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: list[Problem] = []

    @property
    def problems(self) -> list[Problem]:
        """All so far, sorted by file and line."""
        return sorted(self.found, key=lambda problem: (problem.file, problem.line or 0))

    def name(self, file: Path) -> str:
        """Return the path relative to the data set's folder if it lies there."""
        return printable((file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix())

    def add(self, file: Path, reason: str, line: int | None = None) -> None:
        """List a problem."""
        self.found.append(Problem(self.name(file), line, reason))

    @contextmanager
    def listing(self, file: Path, line: int | None = None, where: str = "") -> Iterator[None]:
        """List the BadLabelError that may be raised inside."""
        try:
            yield
        except BadLabelError as error:
            self.add(file, f"{where}: {error}" if where else str(error), line)

    def first(self) -> str:
        """Return the first problem and how many there are, for a message."""
        problem = self.problems[0]
        line = "" if problem.line is None else f":{problem.line}"
        return f"{problem.file}{line}: {problem.reason} ({len(self.found)} problem(s) in all)"

    def fits(self, file: Path, size: Size, stated: Sequence[Any]) -> bool:
        """Return whether the image has the size that its labels were made for, and list it if not.

        Labels that state none, or 0, are taken to fit.
        """
        try:
            width, height = finite(stated, 2)
        except BadLabelError:
            return True
        if not width or not height or (width, height) == size:
            return True
        # Mostly drawn before the image was resized, or on a photo that the tool did not turn upright.
        self.add(file, f"has {size[0]} x {size[1]} pixels upright, but its labels are for {width:g} x {height:g}")
        return False

    def measure(self, files: Sequence[Path]) -> dict[Path, Size]:
        """Return the upright size of each image; those whose header cannot be read are listed and left out."""

        def size(file: Path) -> Size | str:
            try:
                return read_size(str(file))
            except BadImageError as error:
                return str(error)

        sizes = {}
        with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
            for file, found in zip(files, pool.map(size, files), strict=True):
                if isinstance(found, str):
                    self.add(file, found)
                else:
                    sizes[file] = found
        return sizes

    def pairs(self, images: Path, labels: Path, suffix: str, bare: str) -> list[tuple[Path, Size, Path | None]]:
        """Return (image, size, file of its label or None) for each image under a folder.

        The label has the image's path in the folder `labels`, with this suffix. Images without one are listed, with
        what becomes of these `bare` ones, and so are labels without an image. SelfsightError if there is no image.
        """
        listing = list_folder(images)
        for skip in listing.skipped:
            self.add(images / skip.name, skip.reason)
        files = [Path(file) for file in listing.files or ()]
        wanted = {file: (labels / file.relative_to(images)).with_suffix(suffix) for file in files}
        known = {*wanted.values(), *((labels / skip.name).with_suffix(suffix) for skip in listing.skipped)}
        for label in sorted(labels.rglob(f"*{suffix}")):
            if label not in known and label.name not in CLASS_FILES and not label.name.startswith("."):
                self.add(label, f"no image of this name in {self.name(images)}/")
        pairs: list[tuple[Path, Size, Path | None]] = []
        for file, size in self.measure(files).items():
            there = wanted[file].is_file()
            if not there:
                self.add(file, f"no annotation, as {self.name(wanted[file])} is missing: {bare}")
            pairs.append((file, size, wanted[file] if there else None))
        return pairs


def finite(values: Any, count: int | None = None) -> list[float]:
    """Return a list of (`count`) numbers or texts as floats; BadLabelError if they are not finite numbers."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or (count is not None and len(numbers) != count):
        raise BadLabelError(f"needs {f'{count} ' if count else ''}finite numbers, not {str(values)[:80]}")
    return numbers


def clip(box: Box, size: Size) -> tuple[Box, bool]:
    """Return the part of the box inside the image, and whether more than a pixel of it was outside.

    BadLabelError if what is left is less than a pixel wide or high.
    """
    (x0, y0, x1, y1), (width, height) = box, size
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if min(inside[2] - inside[0], inside[3] - inside[1]) < SMALLEST:
        outside = min(x1 - x0, y1 - y0) >= SMALLEST
        raise BadLabelError("outside the image" if outside else "less than a pixel wide or high")
    return inside, max(abs(a - b) for a, b in zip(box, inside, strict=True)) > TOLERANCE
