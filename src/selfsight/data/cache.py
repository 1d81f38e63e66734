"""Decode once: one memory-mapped uint8 array of squares on disk, built in parallel and resumable.

While it is built, a cache is a folder <key>.part with `images.npy`, to which decoded blocks are appended in order,
and `journal.jsonl`, to which one line a block is appended after it. Whatever is interrupted continues after the
last whole line. A finished cache is the same folder renamed to <key>. Files that have not changed since an earlier one
was built are copied from there, and that one is removed.
"""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from selfsight.data.decode import (
    BadImageError,
    Pictures,
    Recipe,
    Square,
    UnreachableError,
    decode,
    fetch,
    nothing_readable,
    quiet_decoders,
    read_aspect,
    thread_count,
    to_uint8,
)
from selfsight.data.earlier import Earlier
from selfsight.data.images import ImageSet, Skipped
from selfsight.data.listing import Listing
from selfsight.errors import SelfsightError
from selfsight.locks import locked
from selfsight.progress import say, track

VERSION = 1
"""Raise it when the same file would become other pixels."""
BUSY = "another process is building this image cache"
REMEDY = "; pass another --cache-dir, or --no-cache"
BLOCK = 32
"""Images decoded by one thread between two lines of the journal."""


def default_cache_dir() -> Path:
    """Return the folder of all caches: $SELFSIGHT_CACHE or ~/.cache/selfsight."""
    return Path(os.environ.get("SELFSIGHT_CACHE") or Path.home() / ".cache" / "selfsight")


def cached(listing: Listing, recipe: Recipe, cache_dir: Path) -> ImageSet:
    """Return the images from their cache, which is built or finished first if need be.

    A cache that lacks images because a drive failed is built anew once one of them can be read.
    SelfsightError if the folder cannot be written or is too small, if no image can be decoded, or if the data goes
    away meanwhile.
    """
    key = hashlib.sha256(repr((listing.identity, recipe, VERSION)).encode()).hexdigest()[:24]
    folder = cache_dir / key
    try:
        if not folder.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)  # here, for a message that names the flags
            with locked(cache_dir / f"{key}.lock", BUSY, remedy=REMEDY):
                if not folder.exists():  # another process may have built it meanwhile
                    _build(listing, recipe, folder)
        done, _ = _read_journal(folder / "journal.jsonl")
        if any(not isinstance(_attempt(listing.pictures, row, recipe), UnreachableError) for row in done.unreachable):
            say("Images that could not be reached before are there now: decoding anew.")
            with locked(cache_dir / f"{key}.lock", BUSY, remedy=REMEDY):
                # Another process may have built it anew while this one waited.
                if folder.exists() and _read_journal(folder / "journal.jsonl")[0].unreachable == done.unreachable:
                    shutil.rmtree(folder, ignore_errors=True)
            return cached(listing, recipe, cache_dir)
        images = np.load(folder / "images.npy", mmap_mode="r")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SelfsightError(f"{cache_dir}: cannot hold the image cache: {reason}{REMEDY}") from error
    return listing.image_set(images, *_found(listing, done))


def in_memory(listing: Listing, recipe: Recipe, *, may_be_empty: bool = False) -> ImageSet:
    """Return the images decoded into memory, for data that has no files to tell whether a cache is still true.

    Raises SelfsightError if none can be decoded, unless that may be.
    """
    ready = _squares_already(listing.pictures, recipe)
    if ready is not None:
        return listing.image_set(ready, np.ones(len(ready), np.float32), range(len(ready)), listing.skipped)
    count = len(listing.pictures)
    images = np.empty((count, recipe.channels, recipe.side, recipe.side), np.uint8)
    done = _Done()

    def fill() -> Generator[object, None, None]:
        for squares in _decode_blocks(listing.pictures, recipe, 0):
            block = _Done.of(done.next, squares)
            pixels = [square.pixels for square in squares if isinstance(square, Square)]
            images[len(done.kept) : len(done.kept) + len(pixels)] = pixels or 0
            done.extend(block)
            yield from squares

    with closing(fill()) as filled:
        for _ in track(filled, "Decoding", "images", total=count):
            pass
    if not may_be_empty:
        _require_some(listing, done)
    return listing.image_set(images[: len(done.kept)], *_found(listing, done))


def streamed(listing: Listing, recipe: Recipe, *, verify: bool = False) -> ImageSet:
    """Return images that are decoded from their files whenever they are asked for.

    Only headers are read now, unless to `verify` all of them; files that turn out to be damaged later are replaced by a
    neighbour and appear in the image set's `skipped` from then on.
    """

    def aspect(row: int) -> float | str:
        try:
            picture = fetch(listing.pictures, row)
            return decode(picture, recipe).aspect if verify else read_aspect(picture)
        except BadImageError as error:
            return str(error)

    rows, words = range(len(listing.pictures)), "Checking" if verify else "Reading headers"
    with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
        found = list(track(pool.map(aspect, rows), words, "images", total=len(rows)))
    kept = [row for row, value in enumerate(found) if not isinstance(value, str)]
    bad = [(row, value) for row, value in enumerate(found) if isinstance(value, str)]
    done = _Done(len(found), kept, [value for value in found if not isinstance(value, str)], bad)
    _require_some(listing, done)
    aspects, _, skipped = _found(listing, done)
    names = [listing.names[row] for row in kept]
    return listing.image_set(_Streamed(listing.pictures, recipe, kept, names, skipped), aspects, kept, skipped)


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write the skipped files as a CSV (file, reason), whole or not at all."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reason"])
        writer.writerows((skip.name, skip.reason) for skip in skipped)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Open a text file that is there only once it is written to the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class _Done:
    """What became of the first `next` pictures."""

    next: int = 0
    kept: list[int] = field(default_factory=list)
    aspects: list[float] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(row, reason)."""
    unreachable: list[int] = field(default_factory=list)
    """Of the bad rows, those whose reason may pass."""

    @classmethod
    def of(cls, first: int, squares: Sequence[Square | BadImageError]) -> "_Done":
        rows = list(enumerate(squares, first))
        good = [(row, square) for row, square in rows if isinstance(square, Square)]
        bad = [(row, str(error)) for row, error in rows if isinstance(error, BadImageError)]
        unreachable = [row for row, error in rows if isinstance(error, UnreachableError)]
        return cls(first + len(rows), [row for row, _ in good], [square.aspect for _, square in good], bad, unreachable)

    def extend(self, block: "_Done") -> None:
        self.next = block.next
        self.kept += block.kept
        self.aspects += block.aspects
        self.bad += block.bad
        self.unreachable += block.unreachable


class _Streamed:
    """Pixels that are decoded on demand by a few threads."""

    def __init__(
        self, pictures: Pictures, recipe: Recipe, kept: list[int], names: list[str], skipped: list[Skipped]
    ) -> None:
        self._pictures, self._recipe, self._kept, self._names, self._skipped = pictures, recipe, kept, names, skipped
        self._failed: set[int] = set()

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._kept), self._recipe.channels, self._recipe.side, self._recipe.side)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
            return np.stack(list(pool.map(self._one, rows.tolist())))

    def _one(self, row: int) -> NDArray[np.uint8]:
        for offset in range(len(self._kept)):
            at = (row + offset) % len(self._kept)
            if at in self._failed:
                continue
            try:
                return decode(fetch(self._pictures, self._kept[at]), self._recipe).pixels
            except BadImageError as error:
                if at not in self._failed:  # two threads may meet the same file
                    self._failed.add(at)
                    self._skipped.append(Skipped(self._names[at], str(error)))
        raise SelfsightError(f"{self._names[row]}: neither this image nor any other can be read any more")


def _found(listing: Listing, done: _Done) -> tuple[NDArray[np.float32], list[int], list[Skipped]]:
    """Return what `Listing.image_set` wants to know beside the pixels."""
    skipped = [*listing.skipped, *(Skipped(listing.names[row], reason) for row, reason in done.bad)]
    return np.array(done.aspects, np.float32), done.kept, skipped


def _require_some(listing: Listing, done: _Done) -> None:
    if not done.kept:
        raise nothing_readable(listing.source, [reason for _, reason in done.bad], done.next)


def _build(listing: Listing, recipe: Recipe, folder: Path) -> None:
    """Decode what is neither in <folder>.part nor in an earlier cache, then rename that to <folder>."""
    part, earlier = folder.with_name(f"{folder.name}.part"), Earlier(listing, recipe, VERSION, folder.parent)
    part.mkdir(exist_ok=True)
    shape = (recipe.channels, recipe.side, recipe.side)
    count, image_bytes = len(listing.pictures), int(np.prod(shape))
    header = len(_npy_header(0, shape))
    done, journal_bytes = _read_journal(part / "journal.jsonl")
    has_place = listing.files is not None or _there(listing.source)
    with (part / "images.npy").open("ab") as images, (part / "journal.jsonl").open("ab") as journal:
        journal.truncate(journal_bytes)
        if images.tell() < header + len(done.kept) * image_bytes:
            done = _Done()
            journal.truncate(0)
        images.truncate(header + len(done.kept) * image_bytes)
        _check_space(folder.parent, (count - done.next) * image_bytes)

        def append() -> Generator[object, None, None]:
            for squares in _decode_blocks(listing.pictures, recipe, done.next, earlier):
                block = _Done.of(done.next, squares)
                place = _place(listing, block.unreachable[0]) if block.unreachable else ""
                if block.unreachable and has_place and not _there(place):
                    raise SelfsightError(
                        f"{place}: went away after {done.next:,} of {count:,} images; these are kept, "
                        "go on with the same command once it is back"
                    )
                images.writelines(square.pixels.data for square in squares if isinstance(square, Square))
                images.flush()
                journal.write(json.dumps(dataclasses.astuple(block)).encode() + b"\n")
                journal.flush()
                done.extend(block)
                yield from squares

        with closing(append()) as appended:
            for _ in track(appended, "Decoding", "images", total=count - done.next):
                pass
    if not done.kept:
        shutil.rmtree(part)
    _require_some(listing, done)
    with (part / "images.npy").open("r+b") as finished:
        finished.write(_npy_header(len(done.kept), shape))
    earlier.write(part, done.kept, done.aspects)
    part.rename(folder)
    earlier.forget()


def _decode_blocks(
    pictures: Pictures, recipe: Recipe, start: int, earlier: Earlier | None = None
) -> Iterator[list[Square | BadImageError]]:
    """Yield the rest of the pictures in order, a block at a time: squares, or the reasons why there is none."""

    def one(row: int) -> Square | BadImageError:
        known = None if earlier is None else earlier.square(row)
        return _attempt(pictures, row, recipe) if known is None else known

    def block(first: int) -> list[Square | BadImageError]:
        return [one(row) for row in range(first, min(first + BLOCK, len(pictures)))]

    threads = thread_count()
    with quiet_decoders(), ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[list[Square | BadImageError]]] = deque()
        try:
            for first in range(start, len(pictures), BLOCK):
                waiting.append(pool.submit(block, first))
                if len(waiting) > 2 * threads:  # enough to keep all busy, few enough for memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _attempt(pictures: Pictures, row: int, recipe: Recipe) -> Square | BadImageError:
    try:
        return decode(fetch(pictures, row), recipe)
    except BadImageError as error:
        return error


def _place(listing: Listing, row: int) -> str:
    """Return where a picture comes from: its file's folder, for a table may lie on another drive; or the source."""
    return listing.source if listing.files is None else str(Path(listing.files[row]).parent)


def _there(source: str) -> bool:
    """Return whether this is a file or folder that the operating system can see; a failing drive's is not."""
    try:
        Path(source).stat()
    except (OSError, ValueError):
        return False
    return True


def _squares_already(pictures: Pictures, recipe: Recipe) -> NDArray[np.uint8] | None:
    """Return the (N, C, S, S) of an array that needs no resizing, else None."""
    if not isinstance(pictures, np.ndarray):
        return None
    bands = pictures if pictures.ndim == 4 else pictures[..., None]  # (N, H, W, C)
    if bands.shape[1:] != (recipe.side, recipe.side, recipe.channels):
        return None
    return np.ascontiguousarray(to_uint8(bands, recipe).transpose(0, 3, 1, 2))


def _read_journal(path: Path) -> tuple[_Done, int]:
    """Return what is done, and how many bytes of the journal are whole lines."""
    done, size = _Done(), 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):  # cut off by a kill
            break
        following, kept, aspects, bad, *unreachable = json.loads(line)  # older journals don't have the last
        done.extend(_Done(following, kept, aspects, [(row, reason) for row, reason in bad], *unreachable))
        size += len(line)
    return done, size


def _npy_header(count: int, shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy; NumPy pads it so that its length does not depend on the count."""
    buffer = BytesIO()
    description: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise SelfsightError(
            f"{folder}: the image cache needs {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "pass another --cache-dir, or --no-cache"
        )
