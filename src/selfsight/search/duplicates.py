"""Duplicates: the same file twice, the same picture in two files, and bursts of one moment. Nothing is ever deleted."""

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
CHUNK = 512
"""Images that are compared with all others at once."""


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
    """Images that are one, the one to keep first: of the most pixels, then of the most bytes."""

    kind: Kind
    """Exact if all are the same bytes; near if they are copies, some of other bytes; burst if they are no copies."""
    entries: Sequence[Entry]
    similarity: float
    """The lowest of its pairs."""

    @property
    def spare(self) -> Sequence[Entry]:
        """Those that need not be kept: of copies all but the first, of a burst none."""
        return () if self.kind == "burst" else self.entries[1:]


def duplicates(index: Index, config: DuplicateConfig) -> list[Group]:
    """Return the groups of copies in the index and then those of bursts, each the largest first.

    An image can be in a group of copies and, with other photos, in a burst.
    """
    entries = index.entries()
    if not entries:
        return []
    pairs = list(find_pairs(entries, index.vectors([entry.name for entry in entries]), config))
    copies = [pair for pair in pairs if pair.kind != "burst"]
    return group(entries, copies) + group(entries, [pair for pair in pairs if pair.kind == "burst"])


def find_pairs(entries: Sequence[Entry], vectors: NDArray[np.float32], config: DuplicateConfig) -> Iterator[Pair]:
    """Yield pairs that together connect all duplicates among images and their vectors (N, D)."""
    first: dict[str, int] = {}
    for row, entry in enumerate(entries):
        if entry.content and (same := first.setdefault(entry.content, row)) != row:
            yield Pair(same, row, "exact", 1.0, 0)
    matrix, looks = unit(vectors), bits([entry.look for entry in entries])
    times = np.array([np.datetime64(entry.taken or "NaT", "us") for entry in entries])
    pause = np.timedelta64(timedelta(seconds=config.burst_seconds))
    for start in range(0, len(entries), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(entries)))
        similarities = matrix[rows] @ matrix.T  # (n, N)
        others = nearest(similarities, config.neighbours + 1)  # itself among them
        found = np.take_along_axis(similarities, others, 1)
        distance = (looks[rows][:, None] != looks[others]).sum(2)  # (n, k)
        with np.errstate(invalid="ignore"):
            close = np.abs(times[rows][:, None] - times[others]) <= pause  # never where a time is unknown
        near = (found >= config.similarity) & (distance <= config.distance)
        burst = (found >= config.burst_similarity) & close & (config.burst_seconds > 0)
        for i, j in np.argwhere((near | burst) & (others != rows[:, None])):
            kind: Kind = "near" if near[i, j] else "burst"
            yield Pair(int(rows[i]), int(others[i, j]), kind, float(found[i, j]), int(distance[i, j]))


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
        rows = np.flatnonzero(member == number).tolist()
        best = sorted((entries[row] for row in rows), key=lambda e: (-e.width * e.height, -e.size, e.name))
        exact = bool(best[0].content) and len({entry.content for entry in best}) == 1
        groups.append(Group("exact" if exact else held[-1].kind, best, min(pair.similarity for pair in held)))
    return sorted(groups, key=lambda g: (-len(g.entries), g.entries[0].name))


def write_groups(folder: Path, groups: Sequence[Group], entries: Sequence[Entry]) -> dict[str, Path]:
    """Write duplicates.csv, a line an image of a group, and keep.txt, all images but the copies: bursts stay."""
    table, keep = folder / "duplicates.csv", folder / "keep.txt"
    columns = ["group", "kind", "keep", "path", "width", "height", "bytes", "taken", "similarity"]
    rows = []
    for number, found in enumerate(groups, 1):
        for e in found.entries:
            facts = [e.file or e.name, e.width, e.height, e.size, e.taken or "", f"{found.similarity:.4f}"]
            rows.append([number, found.kind, "no" if e in found.spare else "yes", *facts])
    spare = {entry.name for found in groups for entry in found.spare}
    kept = [entry.file or entry.name for entry in entries if entry.name not in spare]
    write_table(table, columns, rows)
    replace_file(keep, lambda path: path.write_text("".join(f"{name}\n" for name in kept), encoding="utf-8"))
    return {"duplicates": table, "keep": keep}
