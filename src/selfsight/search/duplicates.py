"""Duplicates: the same file twice, the same picture in two files, and bursts of one moment. Nothing is ever deleted."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from selfsight.errors import SelfsightError
from selfsight.run import replace_file, write_table
from selfsight.search.facts import bits
from selfsight.search.index import Entry, Index, nearest, unit

Kind = Literal["exact", "near", "burst"]
CHUNK, MOST = 512, 2**26
"""Images that are compared with all others at once, and the largest number of comparisons: 12 bytes each."""


A_DAY = 86_400
"""Seconds: photos further apart are no burst."""


@dataclass(frozen=True)
class DuplicateConfig:
    """What counts as a duplicate."""

    similarity: float = 0.9
    """Least cosine similarity of two embeddings for one picture in two files."""
    distance: int = 10
    """Most bits of 63 in which their perceptual hashes may differ."""
    burst_seconds: float = 3.0
    """Photos taken at most so long after one another, and alike, are a burst; 0 looks for none."""
    burst_similarity: float = 0.8
    """Least cosine similarity of two embeddings for a burst."""
    neighbours: int = 50
    """With how many of its most similar images each is compared."""

    def __post_init__(self) -> None:
        for flag in ("similarity", "burst_similarity"):
            if not -1 <= getattr(self, flag) <= 1:
                raise SelfsightError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: must be in [-1, 1]")
        if not 0 <= self.burst_seconds <= A_DAY:
            raise SelfsightError(f"--burst-seconds {self.burst_seconds}: must be 0 to {A_DAY:,}, a day")
        if self.neighbours < 1:
            raise SelfsightError(f"--neighbours {self.neighbours}: must be 1 or more")


@dataclass(frozen=True)
class Pair:
    """Two images, by their places in a list, that are one."""

    first: int
    second: int
    kind: Kind
    similarity: float
    """Cosine of their embeddings."""
    distance: int
    """Bits in which their perceptual hashes differ."""


@dataclass(frozen=True)
class Group:
    """Images that are one, the best first: of the most pixels, then of the most bytes."""

    kind: Kind
    """Exact if all are the same bytes; near if they are copies, some of other bytes; burst if they are no copies."""
    entries: Sequence[Entry]
    similarity: float
    """The lowest of its pairs."""
    spare: Sequence[Entry]
    """Those that need not be kept, as each is a copy of one that stays; of a burst none."""


def duplicates(index: Index, config: DuplicateConfig) -> list[Group]:
    """Return the groups of copies in the index and then those of bursts, each the largest first.

    An image can be in a group of copies and, with other photos, in a burst. A file and the links to it are one image.
    """
    real: dict[str, Entry] = {}
    for entry in index.entries():
        if (path := real_path(entry)) not in real or not Path(entry.file or "").is_symlink():
            real[path] = entry
    entries = list(real.values())
    if not entries:
        return []
    pairs = list(find_pairs(entries, index.vectors([entry.name for entry in entries]), config))
    copies = [pair for pair in pairs if pair.kind != "burst"]
    return group(entries, copies) + group(entries, [pair for pair in pairs if pair.kind == "burst"])


def real_path(entry: Entry) -> str:
    """Return where an image's file lies, the same for all links to it; the name of one without a file."""
    return os.path.realpath(entry.file) if entry.file else entry.name


def apart(first: Entry, second: Entry) -> bool:
    """Return whether two photos are of different moments by their cameras' word; parts of a second if both tell."""
    a, b = first.taken, second.taken
    if a is None or b is None or not (first.dated and second.dated):
        return False
    return a.replace(microsecond=0) != b.replace(microsecond=0) or (a != b and 0 not in (a.microsecond, b.microsecond))


def find_pairs(entries: Sequence[Entry], vectors: NDArray[np.float32], config: DuplicateConfig) -> Iterator[Pair]:
    """Yield pairs that together connect all duplicates among images and their vectors (N, D)."""
    first: dict[str, int] = {}
    for row, entry in enumerate(entries):
        if entry.content and (same := first.setdefault(entry.content, row)) != row:
            yield Pair(same, row, "exact", 1.0, 0)
    matrix, looks = unit(vectors), bits([entry.look for entry in entries])
    times = np.array([np.datetime64(entry.taken or "NaT", "us") for entry in entries])
    pause = np.timedelta64(timedelta(seconds=config.burst_seconds))
    chunk = max(1, min(CHUNK, MOST // max(len(entries), 1)))
    for start in range(0, len(entries), chunk):
        rows = np.arange(start, min(start + chunk, len(entries)))
        similarities = matrix[rows] @ matrix.T  # (n, N)
        others = nearest(similarities, config.neighbours + 1)  # itself among them
        found = np.take_along_axis(similarities, others, 1)
        distance = (looks[rows][:, None] != looks[others]).sum(2)  # (n, k)
        with np.errstate(invalid="ignore"):
            close = np.abs(times[rows][:, None] - times[others]) <= pause  # never where a time is unknown
        near = (found >= config.similarity) & (distance <= config.distance)
        burst = (found >= config.burst_similarity) & close & (config.burst_seconds > 0)
        for i, j in np.argwhere((near | burst) & (others != rows[:, None])):
            row, other = int(rows[i]), int(others[i, j])
            copy = bool(near[i, j]) and not apart(entries[row], entries[other])
            if copy or burst[i, j]:
                kind: Kind = "near" if copy else "burst"
                yield Pair(row, other, kind, float(found[i, j]), int(distance[i, j]))


def group(entries: Sequence[Entry], pairs: Sequence[Pair]) -> list[Group]:
    """Return the groups that these pairs of entries make, all copies or all of bursts, the largest first."""
    if not pairs:
        return []
    ends = np.array([(pair.first, pair.second) for pair in pairs])
    graph = coo_matrix((np.ones(len(pairs)), ends.T), (len(entries),) * 2)
    _, member = connected_components(graph, directed=False)
    together: dict[int, list[Pair]] = {}
    for pair in pairs:
        together.setdefault(int(member[pair.first]), []).append(pair)
    groups = []
    for number, held in together.items():
        rows = sorted(
            np.flatnonzero(member == number).tolist(),
            key=lambda row: (-entries[row].width * entries[row].height, -entries[row].size, entries[row].name),
        )
        best = [entries[row] for row in rows]
        exact = bool(best[0].content) and len({entry.content for entry in best}) == 1
        kind: Kind = "exact" if exact else held[-1].kind
        spare = [] if kind == "burst" else _spare(entries, rows, held)
        groups.append(Group(kind, best, min(pair.similarity for pair in held), spare))
    return sorted(groups, key=lambda g: (-len(g.entries), g.entries[0].name))


def _spare(entries: Sequence[Entry], rows: Sequence[int], pairs: Sequence[Pair]) -> list[Entry]:
    """Return those of these rows, the best first, that are copies of one that stays: what is like a copy may not be."""
    alike: dict[int, set[int]] = {row: set() for row in rows}
    for pair in pairs:
        alike[pair.first].add(pair.second)
        alike[pair.second].add(pair.first)

    def shown_by(one: int, row: int) -> bool:
        """Whether `one` is a copy of this row, not of a photo of another moment that it resembles, too."""
        return not any(apart(entries[row], entries[other]) for other in alike[one])

    spare: list[Entry] = []
    kept: set[int] = set()
    seen: set[str] = set()
    for row in rows:
        content = entries[row].content
        if (content and content in seen) or any(shown_by(one, row) for one in alike[row] & kept):
            spare.append(entries[row])
        else:
            kept.add(row)
        seen.add(content)
    return spare


def write_groups(folder: Path, groups: Sequence[Group], entries: Sequence[Entry]) -> dict[str, Path]:
    """Write duplicates.csv, a line an image of a group, and keep.txt, all images but the copies: bursts stay."""
    table, keep = folder / "duplicates.csv", folder / "keep.txt"
    columns = ["group", "kind", "keep", "path", "width", "height", "bytes", "taken", "similarity"]
    rows = []
    for number, found in enumerate(groups, 1):
        for e in found.entries:
            facts = [e.file or e.name, e.width, e.height, e.size, e.taken or "", f"{found.similarity:.4f}"]
            rows.append([number, found.kind, "no" if e in found.spare else "yes", *facts])
    spare = {real_path(entry) for found in groups for entry in found.spare}
    kept = [entry.file or entry.name for entry in entries if real_path(entry) not in spare]
    write_table(table, columns, rows)
    replace_file(keep, lambda path: path.write_text("".join(f"{name}\n" for name in kept), encoding="utf-8"))
    return {"duplicates": table, "keep": keep}
