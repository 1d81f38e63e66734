import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

from selfsight.errors import SelfsightError
from selfsight.search import Entry, Index, Where


def some(n: int, dim: int = 16, seed: int = 0) -> tuple[list[Entry], np.ndarray]:
    features = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    entries = [
        Entry(f"{'ab'[i % 2]}/{i}.jpg", f"/x/{i}.jpg", "cat" if i % 3 else "", datetime(2020, 1, 1 + i % 28), i)
        for i in range(n)
    ]
    return entries, features


def cosines(queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm
    return np.array([[q @ f / (norm(q) * norm(f)) for f in features] for q in queries])


@pytest.mark.parametrize("exact_bytes", [1 << 30, 0], ids=["exact", "graph"])
def test_finds_the_nearest_in_order(tmp_path: Path, exact_bytes: int) -> None:
    entries, features = some(300)
    index = Index(tmp_path / "index", exact_bytes=exact_bytes)
    index.put(entries, 3 * features)
    index.settle()
    queries = (features[:5] + 0.1).astype(np.float32)
    expected = cosines(queries, features)
    for query, hits in zip(expected, index.search(queries, 7), strict=True):
        best = np.argsort(-query)[:7]
        assert [hit.entry for hit in hits] == [entries[i] for i in best]
        assert [hit.similarity for hit in hits] == pytest.approx(
            query[best].tolist(), abs=1e-5 if exact_bytes else 0.01
        )


@pytest.mark.parametrize("exact_bytes", [1 << 30, 0], ids=["exact", "graph"])
@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (Where(labels=("cat",)), lambda e: e.label == "cat"),
        (Where(labels=("", "dog")), lambda e: e.label == ""),
        (Where(folder="a"), lambda e: e.name.startswith("a/")),
        (Where(after=datetime(2020, 1, 10), before=datetime(2020, 1, 12)), lambda e: e.taken.day in (10, 11)),
        (Where(labels=("cat",), folder="b/"), lambda e: e.label == "cat" and e.name.startswith("b/")),
    ],
)
def test_a_condition_leaves_out_what_it_says(
    tmp_path: Path, exact_bytes: int, where: Where, holds: Callable[[Any], bool]
) -> None:
    entries, features = some(90)
    index = Index(tmp_path / "index", exact_bytes=exact_bytes)
    index.put(entries, features)
    wanted = {e.name for e in entries if holds(e)}
    assert {e.name for e in index.entries(where)} == wanted
    assert {hit.entry.name for hit in index.search(features[:1], 90, where)[0]} == wanted
    best = max(wanted, key=lambda name: cosines(features[:1], features)[0][[e.name for e in entries].index(name)])
    assert index.search(features[:1], 1, where)[0][0].entry.name == best


def test_a_change_is_seen_however_long_the_index_lay_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, features = some(20)
    index, other = Index(tmp_path / "index"), Index(tmp_path / "index")
    index.put(entries[:19], features[:19])
    os.utime(tmp_path / "index" / "images.lance" / "_versions", (1000, 1000))  # as if it had lain for years
    assert index.search(features[19:], 1)[0][0].similarity < 0.99
    with monkeypatch.context() as patched:
        patched.setattr(type(index._table), "version", property(lambda self: pytest.fail("LanceDB was asked")))
        assert len(index.search(features[:1])[0]) == 10
    other.put(entries[19:], features[19:])
    assert index.search(features[19:], 1)[0][0].entry == entries[19]


def test_changes_are_kept_and_seen_by_all_who_have_it_open(tmp_path: Path) -> None:
    entries, features = some(20)
    index, other = Index(tmp_path / "index"), Index(tmp_path / "index")
    assert len(index) == 0
    assert index.search(features[:1])[0] == []
    index.put(entries, features)
    assert len(other) == 20
    assert other.search(features[:1], 1)[0][0].entry == entries[0]
    index.put([Entry(entries[0].name, label="new")], -features[:1])
    assert len(other) == 20
    assert other.search(-features[:1], 1)[0][0].entry.label == "new"
    other.delete([entries[1].name, "not there"])
    other.relabel({entries[2].name: "dog", entries[3].name: "bird"})
    again = {e.name: e for e in Index(tmp_path / "index").entries()}
    assert len(again) == 19
    assert entries[1].name not in again
    assert again[entries[2].name].label == "dog"
    assert again[entries[3].name].label == "bird"
    assert all(hit.entry.name != entries[1].name for hit in index.search(features[1:2], 20)[0])
    assert np.array_equal(index.vectors([entries[5].name, entries[4].name]), features[[5, 4]])
    with pytest.raises(KeyError):
        index.vectors([entries[1].name])


def test_vectors_of_other_weights_are_forgotten(tmp_path: Path) -> None:
    entries, features = some(5)
    index = Index(tmp_path / "index", backbone="first")
    index.put(entries, features)
    assert len(Index(tmp_path / "index")) == 5, "who names no weights only reads"
    assert len(Index(tmp_path / "index", backbone="first")) == 5
    other = Index(tmp_path / "index", backbone="second")
    assert len(other) == 0
    other.put(entries[:2], features[:2, :8])
    assert (Index(tmp_path / "index").backbone, len(index), index.dim) == ("second", 2, 8)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    entries, features = some(4)
    index = Index(tmp_path / "index")
    index.put(entries, features)
    with pytest.raises(SelfsightError, match="vectors of 16 numbers, not of 3"):
        index.put(entries, features[:, :3])
    with pytest.raises(SelfsightError, match="vectors of 16 numbers, not of 3"):
        index.search(features[:, :3])
    with pytest.raises(SelfsightError, match="not finite"):
        index.put(entries, np.full_like(features, np.nan))
    assert len(index) == 4


def test_names_are_never_taken_for_conditions(tmp_path: Path) -> None:
    names = ["it's.jpg", "'; DROP TABLE images; --", 'a "b" \\ c.jpg', "ünï/雪.png", "' OR '1'='1"]
    _, features = some(5)
    index = Index(tmp_path / "index")
    index.put([Entry(name) for name in names], features)
    index.relabel({names[4]: "x'y"})
    assert [e.name for e in index.entries(Where(labels=("x'y",)))] == [names[4]]
    index.delete([names[1]])
    assert {e.name for e in index.entries()} == set(names) - {names[1]}
    assert [e.name for e in index.entries(Where(folder="ünï"))] == [names[3]]


@pytest.mark.parametrize("exact_bytes", [1 << 30, 0], ids=["exact", "graph"])
def test_a_folder_may_be_given_as_one_sees_it(
    tmp_path: Path, exact_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, features = some(5)
    names = ["2024/a.jpg", "2024/italy/b.jpg", "2024b/c.jpg", "2025/d.jpg", "e.jpg"]
    monkeypatch.chdir(tmp_path)
    index = Index(tmp_path / "index", exact_bytes=exact_bytes)
    index.put([Entry(name, str(tmp_path / "photos" / name)) for name in names], features)
    for folder in ("2024", "./2024/", "photos/2024", "./photos/2024", str(tmp_path / "photos" / "2024")):
        (hits,) = index.search(features[:1], 6, Where(folder=folder))
        assert {hit.entry.name for hit in hits} == set(names[:2]), folder
    with pytest.raises(SelfsightError, match=r"--folder photos/2023: no image lies in it"):
        index.search(features[:1], 6, Where(folder="photos/2023"))
    assert index.search(features[:1], 6, Where(labels=("cat",), folder="2024")) == [[]]


def test_an_index_of_an_earlier_version_is_begun_afresh(tmp_path: Path) -> None:
    entries, features = some(5)
    Index(tmp_path / "index", backbone="first").put(entries, features)
    lancedb.connect(tmp_path / "index").open_table("images").drop_columns(["dated"])
    index = Index(tmp_path / "index", backbone="first")
    assert len(index) == 0
    index.put(entries, features)
    assert index.entries() == sorted(entries, key=lambda entry: entry.name)
