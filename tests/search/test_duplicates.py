import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from selfsight.errors import SelfsightError
from selfsight.search import DuplicateConfig, Entry, Index, duplicates, write_groups

NEW_YEAR = datetime(2026, 1, 1)


def entry(name: str, look: int = 0, content: str = "", seconds: float | None = None, pixels: int = 1) -> Entry:
    taken = None if seconds is None else NEW_YEAR + timedelta(seconds=seconds)
    content = content or f"only {name}"
    return Entry(name, f"/x/{name}", "", taken, 10, 0, pixels, pixels, content, f"{look:016x}")


def index_of(folder: Path, entries: list[Entry], angles: list[float]) -> Index:
    """Vectors at these angles, in degrees, in a plane."""
    index = Index(folder / "index")
    radians = np.deg2rad(angles)
    index.put(entries, np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32))
    return index


def names(groups: object) -> list[tuple[str, list[str]]]:
    return [(group.kind, [e.name for e in group.entries]) for group in groups]  # type: ignore[attr-defined]


def test_copies_are_found_by_bytes_or_by_both_looks(tmp_path: Path) -> None:
    entries = [
        entry("a", content="same"),
        entry("b", look=0b1111, pixels=3),  # four bits away
        entry("c", content="same", look=0, pixels=1),
        entry("d", look=(1 << 20) - 1),  # alike to the network, twenty bits away
        entry("e", look=0),  # the same hash, alike to nothing
        entry("f", content="twice", look=1 << 40),
        entry("g", content="twice", look=1 << 40),
    ]
    index = index_of(tmp_path, entries, [0, 5, 0, 3, 90, 180, 180])
    groups = duplicates(index, DuplicateConfig(similarity=0.95, distance=6))
    assert names(groups) == [("near", ["b", "a", "c"]), ("exact", ["f", "g"])], "the largest is kept first"
    assert groups[0].similarity == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-5)


def test_bursts_are_photos_of_one_moment_that_are_alike(tmp_path: Path) -> None:
    far = [(1 << (13 * i)) - 1 for i in range(5)]
    entries = [
        entry("a", far[0], seconds=0),
        entry("b", far[1], seconds=2),
        entry("c", far[2], seconds=4),  # within 3 s of b, not of a
        entry("d", far[3], seconds=60),
        entry("e", far[4]),  # nobody knows when
        entry("f", far[1], seconds=2.5),  # of that moment, but of something else
    ]
    index = index_of(tmp_path, entries, [0, 10, 20, 12, 11, 120])
    assert names(duplicates(index, DuplicateConfig())) == [("burst", ["a", "b", "c"])]
    assert duplicates(index, DuplicateConfig(burst_seconds=0)) == []


def test_what_is_written_keeps_one_of_each_and_all_of_a_burst(tmp_path: Path) -> None:
    entries = [
        entry("a", content="same"),
        entry("b", content="same"),
        entry("c", (1 << 30) - 1, seconds=0),
        entry("d", (1 << 60) - 1, seconds=1),
        entry('it\'s, "é"', 1 << 50),
    ]
    index = index_of(tmp_path, entries, [0, 0, 90, 90, 180])
    groups = duplicates(index, DuplicateConfig())
    written = write_groups(tmp_path / "out", groups, index.entries())
    assert written["keep"].read_text().splitlines() == ["/x/a", "/x/c", "/x/d", '/x/it\'s, "é"']
    with written["duplicates"].open(newline="") as file:
        rows = [(row["group"], row["kind"], row["keep"], row["path"]) for row in csv.DictReader(file)]
    assert rows == [
        ("1", "exact", "yes", "/x/a"),
        ("1", "exact", "no", "/x/b"),
        ("2", "burst", "yes", "/x/c"),
        ("2", "burst", "yes", "/x/d"),
    ]


def test_an_empty_index_has_none_and_settings_are_checked(tmp_path: Path) -> None:
    assert duplicates(Index(tmp_path / "index"), DuplicateConfig()) == []
    with pytest.raises(SelfsightError, match="--similarity 2"):
        DuplicateConfig(similarity=2)
    with pytest.raises(SelfsightError, match="--neighbours 0"):
        DuplicateConfig(neighbours=0)
