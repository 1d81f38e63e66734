"""Images are decoded once: the second time they are mapped, until a file changes."""

import csv
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from selfsight.data import ImageSet, Skipped, open_images, write_skipped
from selfsight.data.decode import BadImageError, Picture, Recipe, Square, UnreachableError, decode, reasons
from selfsight.errors import SelfsightError
from selfsight.locks import locked
from tests.processes import together


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(70):
        Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "05.png").write_text("broken")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that the cache hands to the decoder."""
    seen: list[object] = []

    def watched(picture: Picture, recipe: Recipe) -> Square:
        seen.append(picture)
        return decode(picture, recipe)

    monkeypatch.setattr("selfsight.data.cache.decode", watched)
    return seen


def open_cached(folder: Path, cache_dir: Path, image_size: int = 8) -> ImageSet:
    return open_images(folder, image_size=image_size, cache_dir=cache_dir)


def test_the_second_time_nothing_is_decoded(folder: Path, tmp_path: Path, decoded: list[object]) -> None:
    first = open_cached(folder, tmp_path / "cache")
    assert len(decoded) == 70
    second = open_cached(folder, tmp_path / "cache")
    assert len(decoded) == 70
    assert isinstance(second.images, np.memmap)
    assert second.images.shape == (69, 3, 12, 12)
    np.testing.assert_array_equal(first.images[np.arange(69)], second.images[np.arange(69)])
    assert second.names == first.names
    assert "05.png" not in second.names
    assert second.skipped == first.skipped
    assert second.aspect.tolist() == first.aspect.tolist() == pytest.approx([32 / 24] * 69)


def test_another_process_is_sent_the_path_of_the_squares_and_not_them(folder: Path, tmp_path: Path) -> None:
    images = open_cached(folder, tmp_path / "cache")
    assert images.images.shape == (69, 3, 12, 12)
    sent = pickle.dumps(images)
    assert len(sent) < 69 * 3 * 12 * 12 / 3
    there = pickle.loads(sent)
    rows = np.arange(69)
    np.testing.assert_array_equal(there.images[rows], images.images[rows])
    assert there.names == images.names
    some = replace(images, images=images.images[rows[5:9]], names=images.names[5:9])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(some)).images, images.images[rows[5:9]])


def test_what_has_not_changed_is_copied_from_the_cache_before_which_is_removed(
    folder: Path, tmp_path: Path, decoded: list[object]
) -> None:
    open_cached(folder, tmp_path / "cache")
    open_cached(folder, tmp_path / "cache", image_size=12)
    assert len(decoded) == 2 * 70
    decoded.clear()
    Image.new("RGB", (32, 24)).save(folder / "05.png")
    Image.new("RGB", (32, 24), "red").save(folder / "00a.png")
    os.utime(folder / "07.png", ns=(1, 1))
    (folder / "20.png").unlink()
    (folder / "30.png").rename(folder / "31a.png")
    images = open_cached(folder, tmp_path / "cache")
    assert sorted(Path(str(file)).name for file in decoded) == ["00a.png", "05.png", "07.png", "31a.png"]
    assert len(list((tmp_path / "cache").glob("*/images.npy"))) == 2, "this one, and that of another size"
    fresh = open_cached(folder, tmp_path / "fresh")
    rows = np.arange(70)
    assert (images.names, images.aspect.tolist()) == (fresh.names, fresh.aspect.tolist())
    np.testing.assert_array_equal(images.images[rows], fresh.images[rows])


def test_the_cache_of_another_part_of_the_same_data_stays(folder: Path, tmp_path: Path, decoded: list[object]) -> None:
    table = tmp_path / "table.csv"
    for rows in (range(10, 30), range(20, 40), range(10, 30)):
        table.write_text("path\n" + "".join(f"photos/{number}.png\n" for number in rows))
        open_cached(table, tmp_path / "cache")
    assert len(decoded) == 30, "what both hold is decoded once, and the first is still there"


def test_the_environment_names_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "elsewhere"))
    open_images(folder, image_size=8)
    assert len(list((tmp_path / "elsewhere").glob("*/images.npy"))) == 1


def test_too_small_a_disk_is_told_before_anything_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[object]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SelfsightError, match=r"cache: the image cache needs .* GB .* --cache-dir, or --no-cache"):
        open_cached(folder, tmp_path / "cache")
    assert not decoded


def test_a_cache_folder_that_cannot_be_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SelfsightError, match=r"file: cannot hold the image cache: .*--no-cache"):
        open_cached(folder, tmp_path / "file")


def build(number: int, folder: Path, cache_dir: Path) -> None:
    open_cached(folder, cache_dir)


def test_two_processes_build_one_cache(folder: Path, tmp_path: Path) -> None:
    together(build, folder, tmp_path / "cache")
    assert [path.parent.name for path in (tmp_path / "cache").glob("*/images.npy")] != []
    built = open_cached(folder, tmp_path / "cache")
    alone = open_cached(folder, tmp_path / "alone")
    np.testing.assert_array_equal(built.images[np.arange(69)], alone.images[np.arange(69)])


def test_a_large_photo_is_shrunk_without_aliasing(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))  # one pixel black, one white: grey from afar
    for suffix in ("png", "jpg"):
        Image.fromarray(stripes).save(tmp_path / f"stripes.{suffix}", quality=100)
    images = open_cached(tmp_path, tmp_path / "cache")
    assert np.abs(images.images[np.arange(2)].astype(int) - 128).max() <= 3


def test_skipped_files_are_written_as_a_table(tmp_path: Path) -> None:
    skipped = [Skipped("a, b.jpg", "empty file"), Skipped("ü.png", "truncated")]
    write_skipped(tmp_path / "skipped.csv", skipped)
    with (tmp_path / "skipped.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["file", "reason"], ["a, b.jpg", "empty file"], ["ü.png", "truncated"]]
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.csv"]


@pytest.mark.parametrize("table", [False, True])
def test_a_drive_that_goes_away_stops_the_build_which_goes_on_when_it_is_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bool
) -> None:
    away, first_block, seen = tmp_path / "away", threading.Event(), list[str]()

    def pulled(picture: Picture, recipe: Recipe) -> Square:
        name = Path(str(picture)).name
        seen.append(name)
        if name == "60.png" and folder.exists() and len(seen) <= 70:
            assert first_block.wait(60)
            folder.rename(away)
        square = decode(picture, recipe)
        if name == "31.png":
            first_block.set()
        return square

    monkeypatch.setattr("selfsight.data.cache.decode", pulled)
    data = folder
    if table:  # on another drive than its images
        data = tmp_path / "table.csv"
        data.write_text("path\n" + "".join(f"photos/{file.name}\n" for file in sorted(folder.iterdir())))
    with pytest.raises(SelfsightError, match=r"photos: went away after 32 of 70 images; these are kept"):
        open_cached(data, tmp_path / "cache")
    away.rename(folder)
    before = len(seen)
    seen += ["" for _ in range(70)]  # from here on the drive stays
    assert len(open_cached(data, tmp_path / "cache")) == 69
    assert sorted(seen[before + 70 :]) == [f"{number}.png" for number in range(32, 70)], "the rest is decoded"


def test_images_out_of_reach_come_back_and_damaged_ones_are_not_decoded_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def failing(picture: Picture, recipe: Recipe) -> Square:
        calls.append(picture)
        if str(picture).endswith("07.png"):
            raise UnreachableError("input/output error")
        return decode(picture, recipe)

    with monkeypatch.context() as patched:
        patched.setattr("selfsight.data.cache.decode", failing)
        first = open_cached(folder, tmp_path / "cache")
        assert [skip.name for skip in first.skipped] == ["05.png", "07.png"]
        calls.clear()
        assert open_cached(folder, tmp_path / "cache").names == first.names
        assert [Path(str(call)).name for call in calls] == ["07.png"], "looked at once more, still out of reach"

    @contextmanager
    def late(*_: object, **__: object) -> Iterator[None]:  # another process was here first
        monkeypatch.setattr("selfsight.data.cache.locked", locked)
        assert len(open_cached(folder, tmp_path / "cache")) == 69
        (built,) = (tmp_path / "cache").glob("*/images.npy")
        made.append(built.stat().st_ino)
        yield

    made: list[int] = []
    monkeypatch.setattr("selfsight.data.cache.locked", late)
    images = open_cached(folder, tmp_path / "cache")
    assert [skip.name for skip in images.skipped] == ["05.png"]
    assert [path.stat().st_ino for path in (tmp_path / "cache").glob("*/images.npy")] == made, "and is not built twice"
    expected = open_images(folder, image_size=8, cache=False)
    rows = np.arange(69)
    np.testing.assert_array_equal(images.images[rows], expected.images[rows])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory"), UnreachableError),
        (OSError(5, "Input/output error"), UnreachableError),
        (OSError("image file is truncated"), BadImageError),
        (ValueError("not a picture"), BadImageError),
    ],
)
def test_what_the_file_system_fails_at_is_told_from_what_the_content_is(
    error: Exception, expected: type[BadImageError]
) -> None:
    with pytest.raises(BadImageError) as caught, reasons():
        raise error
    assert type(caught.value) is expected
