"""Keep an index true to a data set: only images that are new or changed are decoded and embedded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data import ImageSet, Skipped
from selfsight.data.decode import BadImageError, Stretch, fetch, quiet_decoders, thread_count
from selfsight.data.folder import printable
from selfsight.data.listing import Listing
from selfsight.data.sources import list_images, open_images, open_rows
from selfsight.evaluate.features import answers_by_batch
from selfsight.search.facts import Looks, array_facts, hashes, read_facts
from selfsight.search.index import Entry, Index

BATCH, PUT = 256, 8
"""Images a batch, and batches between two additions to the index: what an interruption loses at most."""

NOT_UTF8 = "its name is not UTF-8; rename it to have it found"


@dataclass(frozen=True)
class Updated:
    """What became of the index."""

    added: int
    changed: int
    removed: int
    kept: int
    skipped: Sequence[Skipped]
    """Files that cannot be read; they are not in the index."""


def update(
    index: Index, backbone: Backbone, data: Any, device: torch.device, cache: bool = True, cache_dir: Path | None = None
) -> Updated:
    """Embed what is new or changed in a data set, forget what is no longer in it, and take over its labels.

    A file counts as changed if its size or the time of its last writing is another; an image in memory, if its pixels
    are. Interrupted, it has kept what it has done: the next call goes on there.

    Raises SelfsightError for data that cannot be used, see open_images.
    """
    listing = list_images(data)
    entries = index.entries()
    twice = {a.name for a, b in pairwise(entries) if a.name == b.name}  # two processes put it at once
    index.delete(twice)
    known = {entry.name: entry for entry in entries if entry.name not in twice}
    labels = [
        "" if listing.labels is None or listing.labels[row] < 0 else listing.classes[listing.labels[row]]
        for row in range(len(listing.names))
    ]
    place: dict[str, int] = {}
    for row, name in enumerate(listing.names):
        place.setdefault(name, row)  # a table may name an image several times
    changed = [row for row in _changed(listing, known) if place[listing.names[row]] == row]
    rows = [row for row in changed if _written_as_text(listing, row)]
    unnamed = [Skipped(listing.names[row], NOT_UTF8) for row in changed if not _written_as_text(listing, row)]
    gone = sorted(known.keys() - set(listing.names))
    index.delete(gone)
    wanted = dict(zip(listing.names, labels, strict=True))
    others = (wanted.keys() & known.keys()) - {listing.names[row] for row in rows}
    index.relabel({name: wanted[name] for name in others if known[name].label != wanted[name]})
    bad = dict.fromkeys([*listing.skipped, *unnamed])
    put: set[str] = set()
    stretch = index.stretch if others else None  # where no vector stays, the range of 16 bits is found anew
    for first, images in enumerate(_open(data, listing, rows, backbone, stretch, cache, cache_dir)):
        if first == 0 and not others:
            index.clear()
        index.stretch = images.stretch
        for part, vectors, looks in _embed(backbone.to(device), images, device):
            found = _entries(listing, [place.get(images.names[row]) for row in part], labels, looks)
            good = [i for i, entry in enumerate(found) if entry is not None]
            there = [entry for entry in found if entry is not None]
            index.put(there, vectors[good])
            put |= {entry.name for entry in there}
        bad.update(dict.fromkeys(images.skipped))
    lost = {skip.name for skip in bad}
    index.delete(lost & (known.keys() | put))
    index.settle()
    done = put - lost
    added = len(done - known.keys())
    return Updated(added, len(done) - added, len(gone), len(index) - len(done), list(bad))


def _written_as_text(listing: Listing, row: int) -> bool:
    """Whether the index can keep the file's path, as text."""
    return listing.files is None or printable(listing.files[row]) == listing.files[row]


def _open(
    data: Any,
    listing: Listing,
    rows: list[int],
    backbone: Backbone,
    stretch: Stretch | None,
    cache: bool,
    cache_dir: Path | None,
) -> Iterator[ImageSet]:
    """Yield these rows' images: all of the data from its cache, which others will use too, or some in memory.

    Images of more than 8 bits are stretched as those were that are in the index, or their vectors would not compare.
    """
    size, channels = backbone.spec.image_size, backbone.spec.channels
    if rows and len(rows) == len(listing.names):
        alike: dict[str, Any] = {"image_size": size, "channels": channels, "stretch": stretch}
        yield open_images(data, cache=cache, cache_dir=cache_dir, verify=True, **alike)
        return
    for start in range(0, len(rows), BATCH * PUT):
        some = rows[start : start + BATCH * PUT]
        images = open_rows(listing, some, image_size=size, channels=channels, stretch=stretch)
        stretch = stretch or images.stretch
        yield images


class _Both(nn.Module):
    """A backbone's features and the lowest frequencies, in one pass over the images."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.looks = backbone, Looks()

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.backbone(images).float(), self.looks(images)], 1)  # (B, D + 64)


def _embed(
    backbone: Backbone, images: ImageSet, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], list[str]]]:
    """Yield (rows, vectors (n, D), perceptual hashes) of the images, some batches together."""
    module, rows = _Both(backbone).to(device), np.arange(len(images))
    if not len(rows):
        return
    waiting: list[NDArray[np.float32]] = []
    start = 0
    for batch in answers_by_batch(module, backbone.spec.image_size, images, rows, device=device, batch_size=BATCH):
        waiting.append(batch)
        end = start + sum(map(len, waiting))
        if len(waiting) == PUT or end == len(rows):
            found = np.concatenate(waiting)
            yield rows[start:end], found[:, : backbone.dim], hashes(found[:, backbone.dim :])
            start, waiting = end, []


def _changed(listing: Listing, known: dict[str, Entry]) -> Iterator[int]:
    """Yield the rows of images that the index knows as others, or not at all."""
    files = listing.files
    for row, name in enumerate(listing.names):
        before = known.get(name)
        if before is None:
            yield row
        elif files is None:
            now = _of_array(listing, row, "")
            if now is None or now.content != before.content:
                yield row
        elif (before.file, before.size, before.modified) != (files[row], *_written(files[row])):
            yield row


def _written(file: str) -> tuple[int, int]:
    """Return a file's bytes and when it was last written; (-1, -1) if it has gone meanwhile."""
    try:
        status = Path(file).stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _entries(listing: Listing, rows: list[int | None], labels: list[str], looks: list[str]) -> list[Entry | None]:
    """Return what is known of these rows of the listing; None for one that cannot be read any more, or is new to it."""
    files = listing.files

    def entry(place: int) -> Entry | None:
        row = rows[place]
        if row is None:  # a file that came while the others were embedded: the next update takes it
            return None
        if files is None:
            found = _of_array(listing, row, labels[row])
        else:
            try:
                found = read_facts(listing.names[row], files[row], labels[row])
            except BadImageError:
                return None
        return None if found is None else replace(found, look=looks[place])

    with quiet_decoders(), ThreadPoolExecutor(thread_count()) as pool:
        return list(pool.map(entry, range(len(rows))))


def _of_array(listing: Listing, row: int, label: str) -> Entry | None:
    try:
        return array_facts(listing.names[row], fetch(listing.pictures, row), label)
    except BadImageError:
        return None
