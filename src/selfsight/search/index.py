"""The index: embeddings of images with what else is known of each, on disk in LanceDB, searched by cosine similarity.

LanceDB keeps the rows, whole at any time, and answers filters. As long as the vectors fit into EXACT_BYTES of memory
they are also held as one matrix and all of them are compared; above, LanceDB's graph of neighbours (HNSW: Malkov &
Yashunin 2018, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs") finds most of the nearest.
"""

import functools
import json
import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.expr import Expr, col
from lancedb.index import HnswSq
from numpy.typing import NDArray

from selfsight.data.decode import Stretch
from selfsight.errors import SelfsightError

EXACT_BYTES = 2 << 30
"""Vectors of up to this size in memory, 1.4 million of 384 numbers, are compared one and all."""
TABLE = "images"
BACKBONE, STRETCH = b"backbone", b"stretch"
AFTER_SLASH = chr(ord("/") + 1)
NEIGHBOURS, BUILD_EFFORT = 24, 150
"""Of the graph: links a vector, and candidates looked at for each vector while it is built."""
EFFORT, REFINE = 400, 2
"""Of a search in the graph: candidates looked at, and how many times k of them are compared anew in full precision."""
QUERIES = 64
"""Queries that are compared at once."""
CONDITION = 1000
"""Names in one condition."""


@dataclass(frozen=True)
class Entry:
    """What is known of an image beside its vector."""

    name: str
    """Unique: the path relative to the data set's folder, or 'train/17' for array data."""
    file: str | None = None
    """Absolute path, None for array data."""
    label: str = ""
    """Class name, '' where unknown."""
    taken: datetime | None = None
    """When the photo was taken, without a time zone, as cameras write it."""
    size: int = 0
    """Bytes of the file."""
    modified: int = 0
    """Nanoseconds since 1970: when the file was last written."""
    width: int = 0
    """Pixels, upright."""
    height: int = 0
    content: str = ""
    """SHA-256 of the file, or of array data's pixels, in hexadecimal."""
    look: str = ""
    """Perceptual hash, 16 hexadecimal digits."""
    dated: bool = False
    """Whether `taken` is the camera's word on the photo, not only when its file was last changed."""


KINDS = {
    "name": pa.string(),
    "file": pa.string(),
    "label": pa.string(),
    "taken": pa.timestamp("us"),
    "size": pa.int64(),
    "modified": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
    "content": pa.string(),
    "look": pa.string(),
    "dated": pa.bool_(),
}
"""Arrow's type of each of an entry's fields."""


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    entry: Entry
    similarity: float
    """Cosine of the angle between its vector and the query's, -1 to 1."""


TICK = 100_000_000
"""Nanoseconds within which a file system may give two changes the same time."""


@dataclass(frozen=True)
class Where:
    """Which images a search looks at: those for which all holds that is given."""

    labels: tuple[str, ...] = ()
    """Of one of these classes; '' is unlabelled."""
    folder: str | None = None
    """In this folder or below it: its path within the data set's, or to it."""
    after: datetime | None = None
    """Taken then or later."""
    before: datetime | None = None
    """Taken earlier."""

    def expression(self) -> Expr | None:
        """Return the condition as LanceDB takes it, None if there is none."""
        parts = []
        if self.labels:
            parts.append(col("label").isin(list(self.labels)))
        if self.folder is not None:
            name = Path(self.folder.strip("/")).as_posix()  # ./2024 is 2024
            file = str(Path(self.folder).expanduser().absolute())  # as a listing writes it
            inside = (col("name") > f"{name}/") & (col("name") < name + AFTER_SLASH)
            parts.append(inside | ((col("file") > f"{file}/") & (col("file") < file + AFTER_SLASH)))
        if self.after is not None:
            parts.append(col("taken") >= self.after)
        if self.before is not None:
            parts.append(col("taken") < self.before)
        return functools.reduce(operator.and_, parts) if parts else None


@dataclass(frozen=True)
class _Memory:
    """The table as it was at one version."""

    version: int
    facts: pa.Table
    """All columns but the vectors."""
    matrix: NDArray[np.float32] | None
    """(N, D) of length 1; None if there are too many."""
    changed: int | None
    """When the table's folder changed last, in nanoseconds; None where that can't tell whether it has changed since."""


class Index:
    """Images' vectors and entries, at a folder or at an object store's address."""

    def __init__(self, path: str | Path, *, backbone: str | None = None, exact_bytes: int = EXACT_BYTES) -> None:
        """Open the index at `path`, or begin an empty one there.

        `backbone` names the weights that the vectors to put come from: an index of others is emptied, as its vectors
        mean nothing beside these, and so is one of an earlier version, which knew less of each. Several processes may
        have it open: each sees what another has finished writing.
        """
        self.path, self.exact_bytes = path, exact_bytes
        self._database = lancedb.connect(path, read_consistency_interval=timedelta(0))
        self._opened: Any = None
        self._memory: _Memory | None = None
        if backbone is not None and self._table is not None:
            older = not KINDS.keys() <= set(self._table.schema.names)
            if older or self.backbone != backbone:
                self.clear()
        self._backbone = self.backbone if backbone is None else backbone
        self._stretch: Stretch | None = None

    def __len__(self) -> int:
        return 0 if self._table is None else int(self._table.count_rows())

    @property
    def backbone(self) -> str:
        """Which weights the vectors come from; '' if that was never said."""
        return self._metadata().get(BACKBONE, b"").decode()

    @property
    def stretch(self) -> Stretch | None:
        """Which values became 0 and 255 in its images of more than 8 bits; None of others. What is first said stays."""
        low, high = json.loads(self._metadata().get(STRETCH, b"null")) or self._stretch or ((), ())
        return (tuple(low), tuple(high)) if low else None

    @stretch.setter
    def stretch(self, value: Stretch | None) -> None:
        self._stretch = value

    def _metadata(self) -> dict[bytes, bytes]:
        return {} if self._table is None else self._table.schema.metadata or {}

    @property
    def dim(self) -> int | None:
        """Length of a vector; None as long as the index is empty."""
        return None if self._table is None else int(self._table.schema.field("vector").type.list_size)

    def entries(self, where: Where | None = None) -> list[Entry]:
        """Return all entries, or those for which this holds, by name."""
        if self._table is None:
            return []
        return sorted(_entries(self._rows((where or Where()).expression(), list(KINDS))), key=lambda e: e.name)

    def vectors(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors (len(names), D) of these images, as they were put; KeyError for one that isn't there."""
        if not len(self):
            raise KeyError(next(iter(names)))
        # For many names one look at all rows is faster than many at some.
        wanted = next(_among(names), None) if len(names) <= CONDITION else None
        rows = self._rows(wanted, ["name", "vector"])
        place = {name: row for row, name in enumerate(rows["name"].to_pylist())}
        found: NDArray[np.float32] = _matrix(rows)[[place[name] for name in names]]
        return found

    def put(self, entries: Sequence[Entry], vectors: NDArray[np.float32]) -> None:
        """Add images with their vectors (N, D), or replace those of the same names; all of them, or none.

        Raises SelfsightError where D is not that of the index, or vectors are not finite.
        """
        if not len(entries):
            return
        if self.dim not in (None, vectors.shape[1]):
            raise SelfsightError(f"{self.path}: holds vectors of {self.dim} numbers, not of {vectors.shape[1]}")
        if not np.isfinite(vectors).all():
            raise SelfsightError(f"{self.path}: a vector has a number that is not finite")
        columns: dict[str, Any] = {
            name: pa.array([getattr(entry, name) for entry in entries], kind) for name, kind in KINDS.items()
        }
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        metadata = {BACKBONE: self._backbone.encode(), STRETCH: json.dumps(self._stretch).encode()}
        rows = pa.table(columns).replace_schema_metadata(metadata)
        if self._table is None:
            self._opened = self._database.create_table(TABLE, rows.slice(0, 0), exist_ok=True)
        merge = self._table.merge_insert("name").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows)

    def relabel(self, labels: Mapping[str, str]) -> None:
        """Give images, by name, these class names; those that aren't there are ignored."""
        for label in sorted(set(labels.values())):
            for some in _among(name for name in labels if labels[name] == label):
                self._require().update(some, {"label": label})

    def delete(self, names: Iterable[str]) -> None:
        """Forget these images; those that aren't there are ignored."""
        for some in _among(names):
            self._require().delete(some)

    def clear(self) -> None:
        """Forget everything."""
        if self._table is not None:
            self._database.drop_table(TABLE)
        self._opened = self._memory = None

    def search(self, queries: NDArray[np.float32], k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """Return for each query (Q, D) the up to `k` images of the highest cosine similarity, the highest first.

        Raises SelfsightError where D is not that of the index, or where no image lies in the folder asked for.
        """
        if self._table is None:
            return [[] for _ in queries]
        folder = None if where is None else where.folder
        if folder is not None and not len(self._rows(Where(folder=folder).expression(), ["name"])):
            raise SelfsightError(f"--folder {folder}: no image lies in it; give its path within the data")
        memory = self._current()
        dim = self.dim if memory.matrix is None else memory.matrix.shape[1]
        if queries.shape[1] != dim:
            raise SelfsightError(f"{self.path}: holds vectors of {dim} numbers, not of {queries.shape[1]}")
        if memory.matrix is None:
            return [self._approximately(query, k, where or Where()) for query in unit(queries)]
        matrix, facts = memory.matrix, memory.facts
        if where is not None and (expression := where.expression()) is not None:
            wanted = self._rows(expression, ["name"])["_rowid"].to_numpy()
            rows = np.flatnonzero(np.isin(facts["_rowid"].to_numpy(), wanted))
            matrix, facts = matrix[rows], facts.take(rows)
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), QUERIES):
            similarities = unit(queries[start : start + QUERIES]) @ matrix.T
            for row, top in zip(similarities, nearest(similarities, k), strict=True):
                found = _entries(facts.take(top))
                hits.append([Hit(e, float(s)) for e, s in zip(found, row[top], strict=True)])
        return hits

    def settle(self) -> None:
        """Join the files of many small changes and, where vectors are too many to compare all, build their graph."""
        if self._table is None:
            return
        self._table.optimize(cleanup_older_than=timedelta(hours=1))
        if not self._too_many():
            return
        built = [index for index in self._table.list_indices() if index.columns == ["vector"]]
        if not built:
            graph = HnswSq(distance_type="cosine", num_partitions=1, m=NEIGHBOURS, ef_construction=BUILD_EFFORT)
            self._table.create_index("vector", config=graph)

    @property
    def _table(self) -> Any:
        """LanceDB's table; None as long as no process has put anything there."""
        if self._opened is None and TABLE in self._database.list_tables().tables:
            self._opened = self._database.open_table(TABLE)
        return self._opened

    def _too_many(self) -> bool:
        return len(self) * (self.dim or 0) * 4 > self.exact_bytes

    def _current(self) -> _Memory:
        """Return the table's rows, read anew if any process has changed it since."""
        changed = self._changed()
        if self._memory is not None and changed is not None and changed == self._memory.changed:
            return self._memory  # LanceDB's own look takes longer than to compare 10,000 vectors
        version = int(self._table.version)
        if self._memory is None or self._memory.version != version:
            found = self._rows(None, [*KINDS] if self._too_many() else [*KINDS, "vector"])
            matrix = None if self._too_many() else unit(_matrix(found))
            facts = found.select([*KINDS, "_rowid"]).combine_chunks()
            self._memory = _Memory(version, facts, matrix, changed)
        self._memory = replace(self._memory, changed=changed)
        return self._memory

    def _changed(self) -> int | None:
        """Return when a version of the table was last written, in nanoseconds of the file system's clock.

        None at an object store, and just after a change: a second one within the same tick would not show.
        """
        try:
            changed = (Path(self.path) / f"{TABLE}.lance" / "_versions").stat().st_mtime_ns
        except OSError:
            return None
        return changed if abs(time.time_ns() - changed) > TICK else None

    def _rows(self, condition: Expr | None, columns: list[str]) -> pa.Table:
        """Return these columns, and row ids, of the images for which the condition holds."""
        query = self._require().search()
        query = query if condition is None else query.where(condition)
        return query.select(columns).with_row_id(True).limit(None).to_arrow()

    def _require(self) -> Any:
        if self._table is None:
            raise SelfsightError(f"{self.path}: the index is empty")
        return self._table

    def _approximately(self, query: NDArray[np.float32], k: int, where: Where) -> list[Hit]:
        asked = self._table.search(query).distance_type("cosine").limit(k).ef(max(EFFORT, 2 * k)).refine_factor(REFINE)
        expression = where.expression()
        found = (asked if expression is None else asked.where(expression)).to_arrow()
        similarities = 1 - found["_distance"].to_numpy()
        return [Hit(e, float(s)) for e, s in zip(_entries(found), similarities, strict=True)]


def nearest(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return (Q, min(k, N)) the columns of the highest of each row (Q, N), the highest first."""
    k = min(k, similarities.shape[1])
    if k == similarities.shape[1]:
        return np.argsort(-similarities, axis=1, kind="stable")
    some = np.argpartition(similarities, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(similarities, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (N, D) of length 1; those of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
    return scaled


def _among(names: Iterable[str]) -> Iterator[Expr]:
    """Yield conditions that hold for images of these names, of so many that each can be looked at."""
    waiting = iter(names)
    while some := list(islice(waiting, CONDITION)):
        yield col("name").isin(some)


def _entries(rows: pa.Table) -> list[Entry]:
    return [Entry(**row) for row in rows.select(list(KINDS)).to_pylist()]


def _matrix(rows: pa.Table) -> NDArray[np.float32]:
    """Return the vectors (N, D) of a table."""
    column = rows["vector"].combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(rows), column.type.list_size)
