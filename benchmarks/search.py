"""Search: selfsight's index beside faiss-cpu, exact and with a graph of neighbours, in one run.

    python benchmarks/search.py --counts 10000 100000 1000000

Vectors of 384 numbers, as a backbone's are: heaps around some thousand centres within a space of few dimensions. Each
query is a vector near one of them. Times are of one query at a time, end to end: selfsight's also look whether
another process has changed the index, and return what is known of each image. Contestants take turns, in rounds.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from selfsight.search import Entry, Index
from selfsight.search.index import BUILD_EFFORT, EFFORT, NEIGHBOURS

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    counts: tuple[int, ...] = (10_000, 100_000)
    """Images in the index."""
    dim: int = 384
    """Numbers a vector."""
    queries: int = 200
    """Queries of each contestant."""
    k: int = 10
    """Images found for each."""
    graph: bool = True
    """Measure LanceDB's graph too, beside faiss's HNSW of as many links, built and searched with as much effort."""
    heaps: bool = True
    """Vectors lie in heaps; without, in one cloud, where a graph finds neighbours less easily."""
    seed: int = 0


def vectors(n: int, dim: int, queries: int, seed: int, heaps: bool = True) -> tuple[Matrix, Matrix]:
    """Return (n, dim) vectors and (queries, dim) of the same kind, all of length 1."""
    random = np.random.default_rng(seed)
    inner = 48  # what a pretrained backbone's embeddings have of dimensions that matter
    spread = random.normal(size=(inner, dim)).astype(np.float32)
    centres = random.normal(size=(max(20, n // 200), inner)).astype(np.float32)
    found = []
    for count in (n, queries):
        place = centres[random.integers(0, len(centres), count)] if heaps else np.zeros((count, inner), np.float32)
        x = (place + 0.7 * random.normal(size=place.shape).astype(np.float32)) @ spread
        x += 0.5 * random.normal(size=x.shape).astype(np.float32)
        found.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    return found[0], found[1]


def fill(folder: Path, x: Matrix, exact_bytes: int) -> Index:
    index = Index(folder, exact_bytes=exact_bytes)
    for start in range(0, len(x), 50_000):
        part = x[start : start + 50_000]
        names = range(start, start + len(part))
        index.put([Entry(f"images/{i:08}.jpg", f"/photos/images/{i:08}.jpg") for i in names], part)
    index.settle()
    return index


def numbers(index: Index, query: Matrix, k: int) -> list[int]:
    return [int(hit.entry.name[7:15]) for hit in index.search(query[None], k)[0]]


def timed(search: Callable[[Matrix], object], queries: Matrix) -> list[float]:
    """Return the milliseconds of each query."""
    found = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        found.append(1000 * (time.perf_counter() - start))
    return found


def memory() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(count: int, asked: Arguments, table: Table) -> None:
    x, queries = vectors(count, asked.dim, asked.queries, asked.seed, asked.heaps)
    flat = faiss.IndexFlatIP(asked.dim)
    flat.add(x)
    truth = [set(row) for row in flat.search(queries, asked.k)[1].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = fill(Path(folder) / "exact", x, 1 << 40)
        built = {"selfsight, exact": time.perf_counter() - start, "faiss flat": 0.0}
        contestants: dict[str, Callable[[Matrix], list[int]]] = {
            "selfsight, exact": lambda query: numbers(index, query, asked.k),
            "faiss flat": lambda query: flat.search(query[None], asked.k)[1][0].tolist(),
        }
        if asked.graph:
            start = time.perf_counter()
            graph = fill(Path(folder) / "graph", x, 0)
            built["selfsight, graph"] = time.perf_counter() - start
            start = time.perf_counter()
            hnsw = faiss.IndexHNSWFlat(asked.dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            hnsw.hnsw.efConstruction = BUILD_EFFORT
            hnsw.add(x)
            hnsw.hnsw.efSearch = EFFORT
            built["faiss HNSW"] = time.perf_counter() - start
            contestants["selfsight, graph"] = lambda query: numbers(graph, query, asked.k)
            contestants["faiss HNSW"] = lambda query: hnsw.search(query[None], asked.k)[1][0].tolist()
        times: dict[str, list[float]] = {name: [] for name in contestants}
        right = dict.fromkeys(contestants, 0)
        for name, search in contestants.items():
            search(queries[0])  # read into memory
            right[name] = sum(len(truth[i] & set(search(query))) for i, query in enumerate(queries))
        rounds = np.array_split(queries, 4)
        for part in rounds:
            for name, search in contestants.items():
                times[name] += timed(search, part)
        base = np.median(times["faiss flat"])
        for name in contestants:
            p50, p95 = np.percentile(times[name], [50, 95])
            table.add_row(
                f"{count:,}",
                name,
                f"{p50:.2f}",
                f"{p95:.2f}",
                f"{p50 / base:.2f}",
                f"{right[name] / len(queries) / asked.k:.4f}",
                f"{built[name]:.1f}",
                f"{memory():.1f}",
            )


def main(asked: Arguments) -> None:
    table = Table("images", "who", "p50 ms", "p95 ms", "ratio", f"recall@{asked.k}", "build s", "GB at most")
    for count in asked.counts:
        measure(count, asked, table)
        Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
