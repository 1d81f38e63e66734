import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from selfsight.errors import SelfsightError
from selfsight.search import DuplicateConfig, Entry, Index, duplicates, write_groups

NEW_YEAR = datetime(2026, 1, 1)


def entry(
    name: str,
    look: int = 0,
    content: str = "",
    seconds: float | None = None,
    pixels: int = 1,
    dated: bool = True,
    file: Path | None = None,
) -> Entry:
    taken = None if seconds is None else NEW_YEAR + timedelta(seconds=seconds)
    content = content or f"only {name}"
    path = f"/x/{name}" if file is None else str(file)
    return Entry(name, path, "", taken, 10, 0, pixels, pixels, content, f"{look:016x}", dated)


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


def kept(folder: Path, index: Index) -> list[str]:
    """What keep.txt holds, by names."""
    written = write_groups(folder / "out", duplicates(index, DuplicateConfig()), index.entries())
    return [Path(line).name for line in written["keep"].read_text().splitlines()]


def test_photos_of_different_moments_are_no_copies_however_alike(tmp_path: Path) -> None:
    entries = [
        entry("a", seconds=0, pixels=2),
        entry("b", seconds=1),  # of the same burst
        entry("c", seconds=60),  # of another moment
        entry("d", seconds=90, dated=False),  # when the file was changed says nothing
        entry("e", seconds=0),  # a copy of the first
        entry("f"),  # like three photos: of which it is a copy nobody knows, but each of them is kept
    ]
    index = index_of(tmp_path, entries, [0, 1, 2, 3, 4, 5])
    assert kept(tmp_path, index) == ["a", "b", "c"]
    assert ("burst", ["a", "b", "e"]) in names(duplicates(index, DuplicateConfig()))


def test_moments_within_a_second_are_told_apart_where_both_cameras_tell(tmp_path: Path) -> None:
    entries = [entry("a", seconds=0.25), entry("b", seconds=0.5), entry("c", seconds=0)]
    assert kept(tmp_path, index_of(tmp_path, entries, [0, 1, 2])) == ["a", "b"]


def test_of_two_photos_that_a_larger_copy_resembles_both_stay(tmp_path: Path) -> None:
    entries = [entry("a", seconds=0), entry("b", seconds=1), entry("c", pixels=3)]
    assert kept(tmp_path, index_of(tmp_path, entries, [0, 1, 2])) == ["a", "b", "c"]


def test_what_is_like_a_copy_only_stays(tmp_path: Path) -> None:
    entries = [entry("a", pixels=3), entry("b", pixels=2), entry("c"), entry("d", content="only c")]
    index = index_of(tmp_path, entries, [0, 20, 40, 40])  # a chain: its ends are not alike
    assert names(duplicates(index, DuplicateConfig())) == [("near", ["a", "b", "c", "d"])]
    assert kept(tmp_path, index) == ["a", "c"]


def test_a_link_is_no_copy_of_its_file(tmp_path: Path) -> None:
    file, link, copy = tmp_path / "b", tmp_path / "a", tmp_path / "c"
    file.touch()
    copy.touch()
    link.symlink_to(file)
    two = [entry(path.name, content="same", file=path) for path in (link, file)]
    index = index_of(tmp_path, two, [0, 0])
    assert duplicates(index, DuplicateConfig()) == []
    assert kept(tmp_path, index) == ["a", "b"]
    index = index_of(tmp_path, [*two, entry("c", content="same", file=copy)], [0, 0, 0])
    assert names(duplicates(index, DuplicateConfig())) == [("exact", ["b", "c"])], "the file, not the link"
    assert kept(tmp_path, index) == ["a", "b"]
    larger = [*two, entry("c", content="same", pixels=2, file=copy)]
    assert kept(tmp_path, index_of(tmp_path, larger, [0, 0, 0])) == ["c"], "no link to what is spare"


def test_an_empty_index_has_none_and_settings_are_checked(tmp_path: Path) -> None:
    assert duplicates(Index(tmp_path / "index"), DuplicateConfig()) == []
    with pytest.raises(SelfsightError, match="--similarity 2"):
        DuplicateConfig(similarity=2)
    with pytest.raises(SelfsightError, match="--neighbours 0"):
        DuplicateConfig(neighbours=0)
