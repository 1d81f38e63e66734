"""Masks from index PNGs and from COCO give the class of every pixel, and what is wrong with one is listed."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selfsight.data import MaskSet, few_images, open_boxes, open_masks
from selfsight.errors import SelfsightError

RANDOM = np.random.default_rng(0)


def write_image(file: Path, width: int, height: int) -> None:
    """Write an image of this size; a .jpg is stored lying on its side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if file.suffix == ".jpg":
        exif[0x0112] = 8
        width, height = height, width
    Image.new("RGB", (width, height)).save(file, exif=exif)


def write_mask(file: Path, numbers: NDArray[Any], mode: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette(RANDOM.integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(file)


def png_of_few_bits(numbers: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of 2 or 4 bits a pixel, as the format's specification has it."""
    height, width = numbers.shape
    each = np.unpackbits(numbers[..., None], axis=2)[:, :, 8 - bits :].reshape(height, -1)
    lines = np.packbits(each, axis=1)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def check_listed(masks: MaskSet, expected: list[tuple[str, str]]) -> None:
    """The problems are exactly these; of the reason a part is given."""
    found = [(problem.file, problem.reason) for problem in masks.problems]
    assert [file for file, _ in found] == [file for file, _ in expected]
    for (_, reason), (_, part) in zip(found, expected, strict=True):
        assert part in reason


def test_index_masks_keep_their_numbers_whatever_the_kind_of_png(tmp_path: Path) -> None:
    numbers = RANDOM.integers(0, 5, (30, 20), dtype=np.uint8)
    numbers[:4] = 255
    kinds: dict[str, tuple[NDArray[Any], str | None]] = {
        "bits": (numbers == 1, None),
        "deep": (numbers.astype(np.uint16), None),
        "grey": (numbers, None),
        "inner/palette": (numbers, "P"),
    }
    for name, (mask, mode) in kinds.items():
        write_image(tmp_path / "images" / f"{name}.jpg", 20, 30)
        write_mask(tmp_path / "masks" / f"{name}.png", mask, mode)
    for bits in (2, 4):  # Pillow writes none
        write_image(tmp_path / "images" / f"{bits}.jpg", 20, 30)
        (tmp_path / "masks" / f"{bits}.png").write_bytes(png_of_few_bits(numbers % 4, bits))
    masks = open_masks(tmp_path, strict=True)
    assert list(masks.names) == [f"images/{name}.jpg" for name in ("2", "4", *kinds)]
    assert masks.sizes.tolist() == [[20, 30]] * 6
    assert list(masks.classes) == [f"class {number}" for number in range(5)]
    assert [present.tolist() for present in masks.present] == [*[[0, 1, 2, 3]] * 2, [0, 1], *[[0, 1, 2, 3, 4]] * 3]
    for row, expected in enumerate([numbers % 4, numbers % 4, numbers == 1, numbers, numbers, numbers]):
        mask = masks.load_mask(row)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)
    Path(str(masks.masks[4])).unlink()
    with pytest.raises(SelfsightError, match=r"masks/grey\.png: no such file"):
        masks.load_mask(4)


SQUARE = [2, 2, 6, 2, 6, 5, 2, 5]
RUNS = {"size": [8, 10], "counts": [0, 8, 72]}
PACKED = {"size": [8, 10], "counts": "08X2"}
"""The same, the whole first column, as pycocotools writes it."""


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    categories = [{"id": 4, "name": "road"}, {"id": 9, "name": "sky"}]
    numbered = [{"id": number} | entry for number, entry in enumerate(annotations)]
    return json.dumps({"images": images, "annotations": numbered, "categories": categories})


@pytest.mark.parametrize("runs", [RUNS, PACKED], ids=["numbers", "packed"])
def test_coco_draws_polygons_and_run_lengths_in_turn_on_a_background(tmp_path: Path, runs: dict[str, Any]) -> None:
    write_image(tmp_path / "images" / "a.png", 10, 8)
    images = [{"id": 1, "file_name": "a.png", "width": 10, "height": 8}]
    annotations: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 9, "segmentation": [SQUARE, [8, 0, 10, 0, 10, 2, 8, 2]]},
        {"image_id": 1, "category_id": 4, "segmentation": [[4, 2, 6, 2, 6, 8, 4, 8]]},
        {"image_id": 1, "category_id": 4, "segmentation": runs, "iscrowd": 1},
    ]
    (tmp_path / "annotations.json").write_text(coco(images, annotations))
    masks = open_masks(tmp_path, strict=True)
    assert list(masks.classes) == ["background", "road", "sky"]
    expected = np.zeros((8, 10), np.uint8)
    expected[2:5, 2:6] = expected[:2, 8:] = 2
    expected[2:8, 4:6] = expected[:, 0] = 1
    np.testing.assert_array_equal(masks.load_mask(0), expected)
    assert masks.present[0].tolist() == [0, 1, 2]
    assert len(masks) == 1


def test_a_folder_with_boxes_and_masks_gives_both(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", 10, 8)
    write_mask(tmp_path / "masks" / "a.png", np.eye(8, 10, dtype=np.uint8) * np.uint8(2))
    box = {"image_id": 1, "category_id": 9, "bbox": [1, 1, 4, 4], "segmentation": [SQUARE]}
    (tmp_path / "annotations.json").write_text(coco([{"id": 1, "file_name": "a.png"}], [box]))
    assert list(open_boxes(tmp_path).classes) == ["road", "sky"]
    assert list(open_masks(tmp_path).classes) == ["class 0", "class 1", "class 2"]


def parts_outside(folder: Path) -> None:
    for number, word in enumerate(("train", "val", "test")):
        write_image(folder / word / "images" / f"{number}.png", 10, 8)
        write_mask(folder / word / "masks" / f"{number}.png", np.full((8, 10), number, np.uint8))


def parts_inside(folder: Path) -> None:
    for number, word in enumerate(("train", "val", "test")):
        write_image(folder / "images" / word / f"{number}.png", 10, 8)
        write_mask(folder / "masks" / word / f"{number}.png", np.full((8, 10), number, np.uint8))


@pytest.mark.parametrize("write", [parts_outside, parts_inside])
def test_parts_are_a_split_and_share_their_classes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    masks = open_masks(tmp_path, strict=True)
    assert masks.split is not None
    assert masks.split.tolist() == ["train", "train", "test"]
    assert [int(masks.load_mask(row).max()) for row in range(3)] == [0, 1, 2]
    assert list(masks.classes) == ["class 0", "class 1", "class 2"]
    (tmp_path / "classes.txt").write_text("ground\nroad\nsky\ncar\n")
    alone = open_masks(tmp_path, part="test")
    assert list(alone.classes) == ["ground", "road", "sky", "car"]
    assert [present.tolist() for present in alone.present] == [[2]]
    assert alone.split is None


def test_bad_masks_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("beyond", "colour", "cut", "deep", "fine", "lying", "missing", "other", "text"):
        write_image(images / f"{name}.{'jpg' if name == 'lying' else 'png'}", 10, 8)
    (images / "broken.png").write_text("not an image")
    fine = np.array([[0, 1, 2, 255] * 2] * 8, np.uint8)
    fine = np.concatenate([fine, fine[:, :2]], axis=1)
    beyond = fine.copy()
    beyond[0, :2] = 3, 200
    for name in ("broken", "cut", "fine", "orphan"):
        write_mask(masks / f"{name}.png", fine)
    (masks / "cut.png").write_bytes((masks / "fine.png").read_bytes()[:-30])
    write_mask(masks / "beyond.png", beyond)
    write_mask(masks / "deep.png", beyond.astype(np.uint16) * np.uint16(300))
    write_mask(masks / "colour.png", np.zeros((8, 10, 3), np.uint8))
    write_mask(masks / "lying.png", fine.T)
    write_mask(masks / "other.png", fine[:4])
    (masks / "text.png").write_text("not an image")
    (tmp_path / "classes.txt").write_text("ground\nroad\nsky\n")
    found = open_masks(tmp_path)
    check_listed(
        found,
        [
            ("images/broken.png", "not an image of a known format"),
            ("images/missing.png", "masks/missing.png is missing"),
            ("masks/beyond.png", "no class has the number 3, the last is 2; ignored"),
            ("masks/colour.png", "holds colours, not class numbers"),
            ("masks/cut.png", "so its image is left out"),
            ("masks/deep.png", "no class has the number 300, the last is 2; ignored"),
            ("masks/lying.png", "has 8 x 10 pixels, but its image has 10 x 8 upright"),
            ("masks/orphan.png", "no image of this name in images/"),
            ("masks/other.png", "has 10 x 4 pixels, but its image has 10 x 8 upright"),
            ("masks/text.png", "not an image of a known format"),
        ],
    )
    assert [Path(name).stem for name in found.names] == ["beyond", "deep", "fine"]
    mask = found.load_mask(0)
    assert mask[0].tolist() == [255, 255, 2, 255, 0, 1, 2, 255, 0, 1]
    np.testing.assert_array_equal(mask[1:], fine[1:])
    assert set(np.unique(found.load_mask(1)).tolist()) == {0, 255}
    assert [present.tolist() for present in found.present] == [[0, 1, 2], [0], [0, 1, 2]]
    with pytest.raises(SelfsightError, match=r"images/broken\.png: not an image.*\(10 problem"):
        open_masks(tmp_path, strict=True)


def test_bad_coco_regions_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 10, 8)
    write_image(tmp_path / "bare.png", 10, 8)
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "bare.png"}]
    wrong: list[Any] = [
        [], None, "box", [[1, 1, 5, 5]], [[1, 1, 5, 5, 3]], [[1, 1, 5, 5, 3, "x"]], [[1, 1, 5, float("nan"), 3, 3, 2]],
        [[20, 1, 30, 1, 30, 5]], [[1, 1, 1, 1, 1, 1]], {"size": [10, 8], "counts": [0, 8, 72]}, RUNS | {"counts": [9]},
        RUNS | {"counts": "garbage"}, RUNS | {"counts": [-8, 88]}, {"counts": [0, 80]}, {"size": [8, 10]},
        [5, 5, 6, 6, 7, 7], [[8, 6, 1e12, 6, 1e12, 8, 8, 8]],
    ]  # fmt: skip
    annotations = [{"image_id": 1, "category_id": 4, "segmentation": segmentation} for segmentation in [*wrong, RUNS]]
    (tmp_path / "annotations.json").write_text(coco(images, annotations))
    masks = open_masks(tmp_path)
    reasons = [
        "neither polygons nor run lengths", "neither polygons nor run lengths", "neither polygons nor run lengths",
        "x and y of three points", "x and y of three points", "finite numbers", "finite numbers",
        "outside the image", "less than a pixel", "run lengths of size [10, 8], not [8, 10]", "malformed run lengths",
        "malformed run lengths", "malformed run lengths", "run lengths of size None", "malformed run lengths",
        "finite numbers", "partly outside the image; clipped",
    ]  # fmt: skip
    listed = [("annotations.json", reason) for reason in reasons]
    check_listed(masks, [*listed, ("bare.png", "no annotation")])
    expected = np.zeros((8, 10), np.uint8)
    expected[:, 0] = expected[6:, 8:] = 1
    np.testing.assert_array_equal(masks.load_mask(0), expected)
    np.testing.assert_array_equal(masks.load_mask(1), np.zeros((8, 10)))


def only_black_and_white(folder: Path) -> None:
    write_image(folder / "images" / "a.png", 10, 8)
    write_mask(folder / "masks" / "a.png", np.eye(8, 10, dtype=np.uint8) * np.uint8(255))


def only_boxes(folder: Path) -> None:
    write_image(folder / "a.png", 10, 8)
    box = {"image_id": 1, "category_id": 9, "bbox": [1, 1, 4, 4]}
    (folder / "annotations.json").write_text(coco([{"id": 1, "file_name": "a.png"}], [box]))


def no_masks(folder: Path) -> None:
    write_image(folder / "images" / "a.png", 10, 8)
    (folder / "masks").mkdir()


def nothing_known(folder: Path) -> None:
    write_image(folder / "a.png", 10, 8)


def classes_by_part(folder: Path) -> None:
    parts_outside(folder)
    (folder / "train" / "classes.txt").write_text("ground\nroad\n")
    (folder / "test" / "classes.txt").write_text("ground\nsky\nroad\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (only_black_and_white, "nothing but class 0 and 255, which is ignored; number a second class 1"),
        (only_boxes, "nothing but class 0.*annotation 0: neither polygons nor run lengths"),
        (no_masks, r"no image is left; images/a\.png: no annotation, as masks/a\.png is missing"),
        (nothing_known, "no masks found; give images/ and masks/"),
        (classes_by_part, "its parts name the classes differently"),
    ],
)
def test_a_set_of_which_nothing_is_left_says_why(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path)
    with pytest.raises(SelfsightError, match=message):
        open_masks(tmp_path)


def test_few_images_show_every_class_of_the_masks(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "images" / f"{number:02}.png", 10, 8)
        mask = np.zeros((8, 10), np.uint8)
        mask[0] = 1 if number < 10 else 255
        mask[1] = 2 if number == 7 else 0
        write_mask(tmp_path / "masks" / f"{number:02}.png", mask)
    masks = open_masks(tmp_path)
    assert all(few_images(masks, masks.rows("train"), 1, seed).tolist() == [7] for seed in range(5))
    assert few_images(masks, masks.rows("train"), 0.5, 3).size == 6


@pytest.mark.parametrize("names", [("train", "test"), ("train2017", "val2017")])
def test_parts_within_images_and_masks_are_the_split_whatever_is_unlabeled(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        for sub, value in (("images", 90), ("masks", 1)):
            (tmp_path / sub / name).mkdir(parents=True)
            Image.new("L", (8, 8), value).save(tmp_path / sub / name / "a.png")
    years = names[0].removeprefix("train")
    for part in ("unlabeled", *(["test"] if years else [])):  # COCO's test part has no labels
        (tmp_path / "images" / f"{part}{years}").mkdir()
        Image.new("L", (8, 8), 90).save(tmp_path / "images" / f"{part}{years}" / "b.png")
    masks = open_masks(tmp_path)
    assert [len(masks.rows(part)) for part in ("train", "test")] == [1, 1]
    (tmp_path / "images" / "more").mkdir()
    with pytest.raises(SelfsightError, match=r"images/more: lies beside train.* and .*; move it elsewhere"):
        open_masks(tmp_path)
