"""What a folder says: which images it holds, their classes and split, and which bands they have."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from selfsight.data import open_images, write_skipped
from selfsight.data.decode import as_array, of_another_kind, read_size
from selfsight.errors import SelfsightError
from selfsight.pictures import shrunk


def save(file: Path, colour: str | int = "red", mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


def test_first_level_subfolders_are_the_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/deep/2.png", "giraffe/3.png"):
        save(tmp_path / name)
    images = open_images(tmp_path, image_size=8, cache=False)
    assert list(images.names) == ["cat/deep/2.png", "dog/1.png", "giraffe/3.png"]
    assert list(images.classes) == ["cat", "dog", "giraffe"]
    assert images.require_labels().tolist() == [0, 1, 2]
    assert images.split is None
    assert images.files is not None
    assert images.files[1] == str(tmp_path / "dog" / "1.png")


def test_names_that_are_not_utf8_can_be_read_and_written(tmp_path: Path) -> None:
    for name in (b"caf\xe9/1.png", b"tea/2\xff.png", b"tea/3\xfe.png"):
        save(tmp_path / os.fsdecode(name))
    (tmp_path / os.fsdecode(b"tea/3\xfe.png")).write_text("broken")
    images = open_images(tmp_path, image_size=8, cache_dir=tmp_path / "cache")
    assert list(images.names) == ["caf\ufffd/1.png", "tea/2\ufffd.png"]
    assert list(images.classes) == ["caf\ufffd", "tea"]
    write_skipped(tmp_path / "skipped.csv", images.skipped)
    assert "tea/3\ufffd.png" in (tmp_path / "skipped.csv").read_text(encoding="utf-8")


def test_what_selfsight_wrote_is_no_image_of_ones_own(tmp_path: Path) -> None:
    for name in (
        "cat/1.png",
        "dog/2.png",
        "runs/x-simclr/pictures/01.png",
        "found/overlays/1.png",
        "mine/config/3.png",
    ):
        save(tmp_path / name)
    for name in ("runs/x-simclr/config.json", "runs/x-simclr/training.lock", "found/overlays/.predicted"):
        (tmp_path / name).touch()
    (tmp_path / "mine" / "config.json").touch()
    images = open_images(tmp_path, image_size=8, cache=False)
    assert list(images.names) == ["cat/1.png", "dog/2.png", "mine/config/3.png"]
    assert [skip.name for skip in images.skipped] == ["found/overlays", "runs/x-simclr"]
    assert len(open_images(tmp_path / "runs" / "x-simclr", image_size=8, cache=False)) == 1, "if asked for by name"


def test_folders_of_the_same_names_sizes_and_times_share_no_cache(tmp_path: Path) -> None:
    """As archives that were packed without times unpack."""
    for fold, value in (("one", 10), ("two", 200)):
        file = tmp_path / fold / "a.npy"
        file.parent.mkdir()
        np.save(file, np.full((12, 12, 3), value, np.uint8))
        os.utime(file, (0, 0))
    for fold, value in (("one", 10), ("two", 200)):
        images = open_images(tmp_path / fold, image_size=8, cache_dir=tmp_path / "cache")
        assert images.images[np.array([0])].mean() == value


def test_numbered_classes_sort_as_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        save(tmp_path / str(number) / "a.png")
    assert list(open_images(tmp_path, image_size=8, cache=False).classes) == ["1", "9", "10"]


@pytest.mark.parametrize("names", [("a.png", "cat/b.png", "dog/c.png"), ("only/a.png", "only/deep/b.png")])
def test_no_labels_if_an_image_lies_beside_the_subfolders_or_there_is_one(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        save(tmp_path / name)
    images = open_images(tmp_path, image_size=8, cache=False)
    assert images.labels is None
    with pytest.raises(SelfsightError, match="no labels"):
        images.require_labels()


@pytest.mark.parametrize("second", ["test", "val", "Validation"])
def test_train_and_test_folders_give_the_split(tmp_path: Path, second: str) -> None:
    for part in ("train", second):
        for kind in ("cat", "dog"):
            save(tmp_path / part / kind / "1.png")
    images = open_images(tmp_path, image_size=8, cache=False)
    assert list(images.classes) == ["cat", "dog"]
    assert len(images.rows("train")) == len(images.rows("test")) == 2
    assert images.require_labels()[images.rows("test")].tolist() == [0, 1]


def test_a_validation_folder_beside_a_test_folder_joins_the_training(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        save(tmp_path / part / "1.png")
    images = open_images(tmp_path, image_size=8, cache=False)
    assert images.split is not None
    assert dict(zip(images.names, images.split.tolist(), strict=True)) == {
        "test/1.png": "test", "train/1.png": "train", "val/1.png": "train",
    }  # fmt: skip
    assert images.labels is None


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png")
    save(tmp_path / "data" / "real" / "b.png")
    (tmp_path / "data" / "afar").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "real")
    (tmp_path / "data" / "real" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "real" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    images = open_images(tmp_path / "data", image_size=8, cache=False)
    assert list(images.names) == ["afar/a.png", "real/b.png", "real/c.png"]


@pytest.mark.parametrize(
    ("modes", "channels"), [(["L", "1", "LA"], 1), (["L", "RGB"], 3), (["CMYK"], 3), (["RGBA"], 3)]
)
def test_channels_are_one_if_all_are_grey_else_three(tmp_path: Path, modes: list[str], channels: int) -> None:
    for number, mode in enumerate(modes):
        suffix = "tiff" if mode == "CMYK" else "png"
        Image.new(mode, (12, 12)).save(tmp_path / f"{number}.{suffix}")
    assert open_images(tmp_path, image_size=8, cache=False).channels == channels


def test_a_grey_palette_is_grey_and_channels_may_be_asked_for(tmp_path: Path) -> None:
    Image.new("L", (12, 12), 77).convert("P").save(tmp_path / "grey.gif")
    assert open_images(tmp_path, image_size=8, cache=False).channels == 1
    images = open_images(tmp_path, image_size=8, channels=3, cache=False)
    assert images.images[np.array([0])][0, :, 0, 0].tolist() == [77, 77, 77]


def test_16_bit_grey_is_stretched_over_the_range_of_the_whole_set(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(32, dtype=np.uint16) * 30, (32, 1))  # 10 bits in 16, as cameras and scanners write
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(np.full((32, 32), 465, np.uint16)).save(tmp_path / "middle.tiff")
    images = open_images(tmp_path, image_size=16, side=32, cache=False)
    middle, wide = images.images[np.array([0, 1])][:, 0]
    assert wide.min() == 0
    assert wide.max() == 255
    assert abs(int(middle[5, 5]) - 128) <= 1


def test_npy_tiles_keep_their_bands_and_each_is_stretched_by_itself(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint16), (16, 1))
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.stack([ramp * (band + 1) * 100 for band in range(5)], axis=-1))
    images = open_images(tmp_path, image_size=8, side=16, cache=False)
    assert images.channels == 5
    tile = images.images[np.array([0])][0]
    assert tile.max(axis=(1, 2)).tolist() == [255] * 5
    with pytest.raises(SelfsightError, match="5 bands, not 3"):
        open_images(tmp_path, image_size=8, channels=3, cache=False)
    save(tmp_path / "photo.png")
    with pytest.raises(SelfsightError, match="3 and of 5 bands"):
        open_images(tmp_path, image_size=8, cache=False)


def test_four_bands_of_a_tiff_are_kept_on_request(tmp_path: Path) -> None:
    pixels = np.zeros((12, 12, 4), np.uint8) + np.array([10, 20, 30, 0], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.tif")
    images = open_images(tmp_path, image_size=8, channels=4, cache=False)
    assert images.images[np.array([0])][0, :, 3, 3].tolist() == [10, 20, 30, 0]


def test_images_of_kinds_that_are_not_read_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "deep.dng").mkdir()
    save(tmp_path / "deep.dng" / "b.png")
    for name in ("c.DNG", "notes.txt"):
        (tmp_path / name).write_text("something")
    images = open_images(tmp_path, image_size=8, cache=False)
    assert list(images.names) == ["a.png", "deep.dng/b.png"]
    assert [(skip.name, skip.reason) for skip in images.skipped] == [
        ("c.DNG", ".dng is not read; save it as PNG or TIFF")
    ]
    assert of_another_kind("c.DNG")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("bands", "kind"), [(4, "uint16"), (4, "uint8"), (6, "uint8"), (3, "uint16"), (2, "float32")])
def test_a_tiff_keeps_all_bands_and_bits(tmp_path: Path, planar: str, bands: int, kind: str) -> None:
    random = np.random.default_rng(0)
    levels = np.arange(bands) + 1
    pixels = (random.integers(0, 40, (12, 10, bands)) * levels).astype(kind)
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    photometric = "rgb" if bands == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "tile.tif", stored, photometric=photometric, planarconfig=planar)
    np.save(tmp_path / "tile.npy", pixels)
    tile, same = (open_images(tmp_path / f"tile.{suffix}", image_size=16, cache=False) for suffix in ("tif", "npy"))
    assert tile.channels == bands
    assert tile.aspect.tolist() == [pytest.approx(10 / 12)]
    np.testing.assert_array_equal(tile.images[np.array([0])], same.images[np.array([0])])
    assert shrunk(str(tmp_path / "tile.tif"), 6).size == (5, 6)


def test_tiffs_of_16_bits_stand_upright_without_transparency_and_beside_grey_ones(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    colours = random.integers(0, 900, (6, 8, 3)).astype(np.uint16)
    alpha = np.concatenate([colours, np.full((6, 8, 1), 7, np.uint16)], 2)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "c.tif", np.rot90(colours).copy(), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    tifffile.imwrite(tmp_path / "d.tif", colours[..., 0])
    tifffile.imwrite(tmp_path / "e.tif", colours[..., 0].astype(np.float64))  # which Pillow doesn't know
    images = open_images(tmp_path, image_size=8, cache=False)
    assert not images.skipped
    assert images.channels == 3
    assert images.aspect.tolist() == [pytest.approx(8 / 6)] * 5
    found = images.images[np.arange(5)]
    for row in (1, 2):
        np.testing.assert_array_equal(found[row], found[0])
    np.testing.assert_array_equal(found[3], found[4])
    assert read_size(str(tmp_path / "c.tif")) == (8, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for name, kind, factor in (("few", np.uint8, 1), ("many", np.uint16, 256)):
        stored, tag = (pixels * factor if factor == 1 else pixels.astype(kind) * factor), (274, 3, 1, orientation, True)
        tifffile.imwrite(tmp_path / f"{name}.tif", stored, photometric="rgb", extratags=[tag])
    with Image.open(tmp_path / "few.tif") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(as_array(str(tmp_path / "many.tif")) // 256, upright)


def test_a_tiff_of_too_many_pixels_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((30, 30, 3), np.uint16), photometric="rgb")
    save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    images = open_images(tmp_path, image_size=8, cache=False)
    assert [(skip.name, skip.reason) for skip in images.skipped] == [("a.tif", "more than 0 million pixels")]


def test_a_fourth_band_that_a_tiff_calls_nothing_is_no_transparency(tmp_path: Path) -> None:
    pixels = np.full((12, 12, 4), 200, np.uint8)
    pixels[..., 3] = 0
    for name, extra in (("tile", "unspecified"), ("picture", "unassalpha")):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", extrasamples=[extra])
    tile, picture = (open_images(tmp_path / f"{name}.tif", image_size=8, cache=False) for name in ("tile", "picture"))
    assert tile.images[np.array([0])][0, :, 3, 3].tolist() == [200, 200, 200, 0]
    assert picture.channels == 3
    assert picture.images[np.array([0])].min() == 255, "white, where all is transparent"


@pytest.mark.parametrize("side", [None, 20, 500])
def test_the_side_is_one_and_a_half_times_the_view_but_not_above_the_images_own(
    tmp_path: Path, side: int | None
) -> None:
    save(tmp_path / "a.png", size=(30, 10))
    images = open_images(tmp_path, image_size=64, side=side, cache=False)
    assert images.side == (side if side == 20 else 30)
    assert images.aspect.tolist() == [3.0]
    assert open_images(tmp_path, image_size=8, cache=False).side == 12


def test_errors_name_the_path_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match=r"nowhere: no such file"):
        open_images(tmp_path / "nowhere", image_size=8)
    with pytest.raises(SelfsightError, match="it is empty"):
        open_images(tmp_path, image_size=8)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SelfsightError, match=r"no images in this folder, only \.txt"):
        open_images(str(tmp_path), image_size=8)
    with pytest.raises(SelfsightError, match=r"a\.txt: not a data set"):
        open_images(tmp_path / "a.txt", image_size=8)


def test_unlabeled_images_beside_the_parts_are_trained_on_without_a_label(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "unlabeled/4.png", "unlabeled/deep/5.png"):
        save(tmp_path / name)
    images = open_images(tmp_path, image_size=8, cache=False)
    assert list(images.names) == [
        "test/cat/3.png",
        "train/cat/1.png",
        "train/dog/2.png",
        "unlabeled/4.png",
        "unlabeled/deep/5.png",
    ]
    assert images.rows("test").tolist() == [0]
    assert list(images.classes) == ["cat", "dog"]
    assert images.require_labels().tolist() == [0, 0, 1, -1, -1]


@pytest.mark.parametrize("odd", ["extra/cat/4.png", "preview.png"])
def test_something_else_beside_train_and_test_is_named_and_not_taken_for_a_class(tmp_path: Path, odd: str) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", odd):
        save(tmp_path / name)
    with pytest.raises(SelfsightError, match=f"{odd} lies beside test and train; move it elsewhere"):
        open_images(tmp_path, image_size=8, cache=False)
    (tmp_path / "test" / "cat" / "3.png").unlink()
    if odd != "preview.png":  # a folder of that name alone is one of the user's own
        assert list(open_images(tmp_path, image_size=8, cache=False).classes) == ["extra", "train"]
