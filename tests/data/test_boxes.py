"""The same boxes in any format are the same set, and what is wrong with a label is listed, no more and no less."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfsight.data import BoxSet, few_images, open_boxes, write_coco, write_problems
from selfsight.errors import SelfsightError

CLASSES = ("ant", "bee", "cow")
SCENE: dict[str, tuple[tuple[int, int], list[tuple[int, tuple[int, int, int, int]]]]] = {
    "a.png": ((40, 30), [(0, (0, 0, 10, 5)), (2, (30, 20, 40, 30))]),
    "b.jpg": ((32, 64), [(1, (8, 16, 24, 48))]),  # stored lying, turned upright by EXIF
    "c.png": ((50, 50), [(1, (1, 2, 3, 4)), (1, (10, 10, 11, 11)), (0, (0, 0, 50, 50))]),
}
"""Of each file the upright size, and (class, x0, y0, x1, y1) of each box."""


def write_images(folder: Path, names: tuple[str, ...] = tuple(SCENE)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (width, height), _ = SCENE[name]
        exif = Image.Exif()
        if name.endswith("jpg"):
            exif[0x0112] = 6
            width, height = height, width
        Image.new("RGB", (width, height)).save(folder / name, exif=exif)


def coco(names: tuple[str, ...] = tuple(SCENE)) -> dict[str, list[Any]]:
    """COCO's content; ids have gaps, and the categories stand in another order than their ids."""
    ids = {name: 10 * number for number, name in enumerate(names, 1)}
    sizes = {name: SCENE[name][0] for name in names}
    return {
        "images": [{"id": ids[n], "file_name": n, "width": sizes[n][0], "height": sizes[n][1]} for n in names],
        "categories": [{"id": 3 * number + 2, "name": name} for number, name in enumerate(CLASSES)][::-1],
        "annotations": [
            {"id": 100 * ids[n] + k, "image_id": ids[n], "category_id": 3 * c + 2, "bbox": [x, y, x1 - x, y1 - y]}
            for n in names
            for k, (c, (x, y, x1, y1)) in enumerate(SCENE[n][1])
        ],
    }


def write_coco_file(file: Path, names: tuple[str, ...] = tuple(SCENE)) -> None:
    content = coco(names)
    crowd = {"id": 9, "image_id": 10, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    content["annotations"].append(crowd)
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(content))


def write_yolo(labels: Path, names: tuple[str, ...] = tuple(SCENE)) -> None:
    labels.mkdir(parents=True, exist_ok=True)
    for name in names:
        (w, h), boxes = SCENE[name]
        lines = [
            f"{c} {(x0 + x1) / 2 / w:.6f} {(y0 + y1) / 2 / h:.6f} {(x1 - x0) / w:.6f} {(y1 - y0) / h:.6f}\n"
            for c, (x0, y0, x1, y1) in boxes
        ]
        (labels / name).with_suffix(".txt").write_text("".join(lines))


def voc(name: str, size: tuple[int, int], boxes: list[tuple[int, tuple[int, int, int, int]]]) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[c]}</name><difficult>1</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for c, (x0, y0, x1, y1) in boxes
    )
    width, height = size
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def write_voc(folder: Path, names: tuple[str, ...] = tuple(SCENE)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).with_suffix(".xml").write_text(voc(name, *SCENE[name]))


def coco_beside(folder: Path) -> Path:
    write_images(folder)
    write_coco_file(folder / "_annotations.coco.json")
    return folder


def coco_apart(folder: Path) -> Path:
    write_images(folder / "images")
    write_coco_file(folder / "annotations" / "instances_default.json")
    return folder


def coco_file(folder: Path) -> Path:
    write_images(folder / "images")
    write_coco_file(folder / "my.json")
    return folder / "my.json"


def yolo(folder: Path) -> Path:
    write_images(folder / "images")
    write_yolo(folder / "labels")
    (folder / "data.yaml").write_text("names: [ant, bee, cow]\nnc: 3\n")
    return folder


def yolo_mapping(folder: Path) -> Path:
    yolo(folder)
    (folder / "data.yaml").rename(folder / "data.yml").write_text("names: {0: ant, 2: cow, 1: bee}\n")
    return folder


def yolo_text(folder: Path) -> Path:
    yolo(folder)
    (folder / "data.yaml").unlink()
    (folder / "labels" / "classes.txt").write_text("ant\nbee\ncow\n")
    return folder


def yolo_yaml(folder: Path) -> Path:
    write_images(folder / "set" / "images" / "train")
    write_yolo(folder / "set" / "labels" / "train")
    (folder / "my.yaml").write_text("path: set\ntrain: images/train\nnames: [ant, bee, cow]\n")
    return folder / "my.yaml"


def voc_beside(folder: Path) -> Path:
    write_images(folder)
    write_voc(folder)
    return folder


def voc_apart(folder: Path) -> Path:
    write_images(folder / "JPEGImages")
    write_voc(folder / "Annotations")
    return folder


LAYOUTS = [
    coco_beside, coco_apart, coco_file, yolo, yolo_mapping, yolo_text, yolo_yaml, voc_beside, voc_apart,
]  # fmt: skip


def check_scene(boxes: BoxSet, names: tuple[str, ...] = tuple(SCENE)) -> None:
    assert [Path(name).name for name in boxes.names] == list(names)
    assert all(Path(file).is_absolute() and Path(file).is_file() for file in boxes.files)
    assert boxes.sizes.tolist() == [list(SCENE[name][0]) for name in names]
    for row, name in enumerate(names):
        _, expected = SCENE[name]
        assert [boxes.classes[label] for label in boxes.labels[row]] == [CLASSES[c] for c, _ in expected]
        assert (boxes.boxes[row].dtype.name, boxes.labels[row].dtype.name) == ("float32", "int64")
        np.testing.assert_allclose(boxes.boxes[row], [box for _, box in expected], atol=1e-4)


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_same_boxes_in_any_format_are_the_same_set(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    boxes = open_boxes(write(tmp_path), strict=True)
    check_scene(boxes)
    assert boxes.classes == list(CLASSES)
    assert boxes.split is None
    assert list(boxes.problems) == []
    assert [present.tolist() for present in boxes.present] == [[0, 2], [1], [0, 1]]


def test_yolo_polygons_give_their_bounding_box_and_classes_without_names_are_numbered(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a.png",))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("3 0.5 0.2 0.75 0.6 0.25 0.4\n\n1 .5 .5 .5 .5\n")
    boxes = open_boxes(tmp_path, strict=True)
    np.testing.assert_allclose(boxes.boxes[0], [[10.0, 6.0, 30.0, 18.0], [10.0, 7.5, 30.0, 22.5]], rtol=1e-6)
    assert boxes.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert boxes.labels[0].tolist() == [3, 1]
    (tmp_path / "labels" / "a.txt").write_text("1234567890 .5 .5 .5 .5\n1 .5 .5 .5 .5\n")
    assert listed(open_boxes(tmp_path)) == [("labels/a.txt", 1, "unknown class 1234567890")]


def test_yolo_poses_give_their_boxes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a.png",))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5 .1 .1 .9 .9\n")  # two points, each of two numbers
    text = "train: images\nnames: [ant]\n"
    found = []
    for kind in ("", "kpt_shape: [2, 2]\n"):
        (tmp_path / "pose.yaml").write_text(text + kind)
        found.append(open_boxes(tmp_path / "pose.yaml", strict=True).boxes[0].tolist())
    assert found == [[[4, 3, 36, 27]], [[10, 7.5, 30, 22.5]]], "without a word they are a polygon's"
    (tmp_path / "pose.yaml").rename(tmp_path / "data.yaml")
    assert open_boxes(tmp_path, strict=True).boxes[0].tolist() == found[1]


PARTS = {"train": ("a.png",), "valid": ("b.jpg",), "test": ("c.png",)}


def split_coco(folder: Path) -> Path:
    for word, names in PARTS.items():
        write_images(folder / word, names)
        write_coco_file(folder / word / "annotations.json", names)
    return folder


def split_coco_as_published(folder: Path) -> Path:
    for word, names in PARTS.items():
        write_images(folder / f"{word}2017", names)
        write_coco_file(folder / "annotations" / f"instances_{word}2017.json", names)
    (folder / "annotations" / "captions_train2017.json").write_text("{}")
    return folder


def split_yolo_outside(folder: Path) -> Path:
    for word, names in PARTS.items():
        write_images(folder / word / "images", names)
        write_yolo(folder / word / "labels", names)
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\ntest: [../test/images]\n")
    with (folder / "data.yaml").open("a") as file:
        file.write("names: [ant, bee, cow]\n")
    return folder


def split_yolo_yaml(folder: Path) -> Path:
    return split_yolo_outside(folder) / "data.yaml"


def split_yolo_inside(folder: Path) -> Path:
    for word, names in PARTS.items():
        write_images(folder / "images" / word, names)
        write_yolo(folder / "labels" / word, names)
    (folder / "obj.names").write_text("ant\nbee\ncow")
    (folder / "images" / "Thumbs.db").touch()
    return folder


def split_voc(folder: Path) -> Path:
    for word, names in PARTS.items():
        write_images(folder / word, names)
        write_voc(folder / word, names)
    return folder


SPLITS = [split_coco, split_coco_as_published, split_yolo_outside, split_yolo_yaml, split_yolo_inside, split_voc]


@pytest.mark.parametrize("write", SPLITS)
def test_parts_are_a_split_and_can_be_read_alone(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    boxes = open_boxes(path, strict=True)
    check_scene(boxes)
    assert boxes.split is not None
    assert boxes.split.tolist() == ["train", "train", "test"]  # a validation part trains where there is a test part
    assert boxes.rows("test").tolist() == [2]
    alone = open_boxes(path, part="val")
    check_scene(alone, ("b.jpg",))
    assert alone.split is None
    with pytest.raises(SelfsightError, match="has no part 'holdout'; it has train, val"):
        open_boxes(path, part="holdout")


def listed(boxes: BoxSet) -> list[tuple[str, int | None, str]]:
    return [(problem.file, problem.line, problem.reason) for problem in boxes.problems]


def check_listed(boxes: BoxSet, expected: list[tuple[str, int | None, str]]) -> None:
    """The problems are exactly these; of the reason a part is given."""
    found = listed(boxes)
    assert [problem[:2] for problem in found] == [problem[:2] for problem in expected]
    for (_, _, reason), (_, _, part) in zip(found, expected, strict=True):
        assert part in reason


def test_bad_yolo_labels_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    yolo(tmp_path)
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("bare", "blank", "header", "bytes"):
        Image.new("L", (20, 20)).save(images / f"{name}.png")
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (labels / "bare.txt").unlink()
    (labels / "blank.txt").write_text("\n")
    (labels / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (images / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (images / "link.png").symlink_to(images / "nowhere.png")
    (labels / "link.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (labels / "orphan.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    lines = [
        "0 0.9 0.5 0.4 0.5", "0 1.9 0.5 0.4 0.5", "0 0.5 0.5 0.01 0.5", "3 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5",
        "0.5 0.5 0.5 0.5 0.5", "0 nan 0.5 0.5 0.5", "0 0.5 0.5 inf 0.5", "0 0.5 0.5 0.5", "0 a b c d",
        "0 0.5 0.5 0.5 0.5 0.9", "ant 0.5 0.5 0.5 0.5", "0 0.5 0.5 -0.5 0.5", "0 0.50001 0.5 1.0 1.0",
    ]  # fmt: skip
    (labels / "a.txt").write_text("\n".join(lines))
    boxes = open_boxes(tmp_path)
    check_listed(
        boxes,
        [
            ("images/bare.png", None, "no annotation, as labels/bare.txt is missing"),
            ("images/header.png", None, ""),
            ("images/link.png", None, "no such file"),
            ("labels/a.txt", 1, "partly outside the image; clipped"),
            ("labels/a.txt", 2, "outside the image"),
            ("labels/a.txt", 3, "less than a pixel"),
            ("labels/a.txt", 4, "unknown class 3"),
            ("labels/a.txt", 5, "unknown class -1"),
            ("labels/a.txt", 6, "unknown class 0.5"),
            ("labels/a.txt", 7, "finite numbers"),
            ("labels/a.txt", 8, "finite numbers"),
            ("labels/a.txt", 9, "4 numbers; a box has 5"),
            ("labels/a.txt", 10, "finite numbers, not ['0', 'a', 'b', 'c', 'd']"),
            ("labels/a.txt", 11, "6 numbers; a box has 5"),
            ("labels/a.txt", 12, "finite numbers"),
            ("labels/a.txt", 13, "less than a pixel"),
            ("labels/bytes.txt", None, "cannot be read, so its image is left out"),
            ("labels/orphan.txt", None, "no image of this name in images/"),
        ],
    )
    assert [Path(name).stem for name in boxes.names] == ["a", "b", "bare", "blank", "c"]
    np.testing.assert_allclose(boxes.boxes[0], [[28.0, 7.5, 40.0, 22.5], [0.0, 0.0, 40.0, 30.0]], atol=1e-3)
    assert [len(found) for found in boxes.boxes] == [2, 1, 0, 0, 3]
    assert boxes.boxes[2].shape == (0, 4)
    with pytest.raises(SelfsightError, match=r"images/bare\.png: no annotation.*\(18 problem\(s\) in all\)"):
        open_boxes(tmp_path, strict=True)
    write_problems(tmp_path / "problems.csv", boxes.problems)
    with (tmp_path / "problems.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "line", "reason"]
    assert rows[4] == ["labels/a.txt", "1", "partly outside the image; clipped"]
    assert [row[1] for row in rows[1:]] == [str(line or "") for _, line, _ in listed(boxes)]


def test_bad_coco_labels_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path)
    Image.new("L", (20, 20)).save(tmp_path / "bare.png")
    Image.new("L", (20, 20)).save(tmp_path / "resized.png")
    (tmp_path / "text.png").write_text("not an image")
    content = coco()
    content["images"] += [
        {"id": 1, "file_name": "bare.png"},
        {"id": 2, "file_name": "gone.png"},
        {"id": 3, "file_name": "text.png"},
        {"id": 4, "file_name": "resized.png", "width": 40, "height": 40},
        {"file_name": "a.png"},
        "b.jpg",
        {"id": 10, "file_name": "a.png", "width": 40, "height": 30},
    ]
    wrong: list[Any] = [
        {"bbox": [-5, 0, 10, 10]}, {"bbox": [50, 0, 10, 10]}, {"bbox": [5, 5, 0, 10]}, {"category_id": 99},
        {"bbox": [float("nan"), 0, 5, 5]}, {"bbox": [0, 0, 5]}, {"bbox": "0 0 5 5"}, {"image_id": 77},
        {"bbox": None}, {"image_id": [10]}, {"image_id": 2}, {"bbox": [0, 0, float("inf"), 5]}, {"bbox": [0, 0, -5, 5]},
    ]  # fmt: skip
    usual = {"image_id": 10, "category_id": 2, "bbox": [0, 0, 5, 5]}
    content["annotations"] += [{"id": f"w{number}"} | usual | entry for number, entry in enumerate(wrong)]
    content["annotations"] += [{"image_id": 4, "category_id": 2, "bbox": [0, 0, 5, 5]}, {"image_id": 10}, None]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    boxes = open_boxes(tmp_path)
    json_lines = [
        "image number 7: needs 'id' and 'file_name'",
        "image number 8: needs 'id' and 'file_name'",
        "image id 10 is given twice",
        "annotation w3: unknown class, category_id 99",
        "annotation w7: unknown image id 77",
        "annotation w9: needs 'image_id' and 'category_id'",
        "annotation number 20: needs 'image_id' and 'category_id'",
        "annotation number 21: needs",
        "annotation w0: partly outside the image; clipped",
        "annotation w1: outside the image",
        "annotation w2: less than a pixel",
        "annotation w4: needs 4 finite numbers",
        "annotation w5: needs 4 finite numbers, not [0, 0, 5]",
        "annotation w6: needs 4 finite numbers",
        "annotation w8: needs 4 finite numbers, not None",
        "annotation w11: needs 4 finite numbers",
        "annotation w12: less than a pixel",
    ]
    check_listed(
        boxes,
        [
            *[("annotations.json", None, reason) for reason in json_lines],
            ("bare.png", None, "no annotation"),
            ("gone.png", None, "no such file"),
            ("resized.png", None, "has 20 x 20 pixels upright, but its labels are for 40 x 40"),
            ("text.png", None, "not an image of a known format"),
        ],
    )
    assert list(boxes.names) == [*SCENE, "bare.png"]
    assert boxes.boxes[0].tolist() == [[0, 0, 10, 5], [30, 20, 40, 30], [0, 0, 5, 10]]


def test_bad_voc_labels_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path / "JPEGImages")
    write_voc(tmp_path / "Annotations")
    for name in ("bare", "broken", "renamed", "counted_from_0"):
        Image.new("L", (20, 20)).save(tmp_path / "JPEGImages" / f"{name}.png")
    annotations = tmp_path / "Annotations"
    (annotations / "broken.xml").write_text("<annotation>\n<object>\n</annotation>")
    (annotations / "gone.xml").write_text(voc("gone.jpg", (20, 20), [(0, (0, 0, 5, 5))]))
    (annotations / "copy.xml").write_text(voc("a.png", (40, 30), [(0, (0, 0, 5, 5))]))
    (annotations / "other_stem.xml").write_text(voc("renamed.png", (20, 20), []))
    (annotations / "counted_from_0.xml").write_text(voc("old_name.png", (20, 20), [(0, (-1, -1, 19, 19))]))
    drawn = [(0, (5, 5, 60, 20)), (0, (60, 5, 70, 20)), (0, (9, 9, 5, 5)), (1, (1, 1, 2, 2)), (0, (11, 11, 22, 22))]
    text = voc("c.png", (50, 50), drawn)
    text = text.replace("bee", " ").replace("<xmin>12</xmin>", "<xmin>twelve</xmin>")
    (annotations / "c.xml").write_text(text.replace("</annotation>", "<object><name>ant</name></object></annotation>"))
    boxes = open_boxes(tmp_path)
    check_listed(
        boxes,
        [
            ("Annotations/broken.xml", 3, "cannot be read as XML, so its image is left out"),
            ("Annotations/c.xml", None, "object 1: partly outside the image; clipped"),
            ("Annotations/c.xml", None, "object 2: outside the image"),
            ("Annotations/c.xml", None, "object 3: less than a pixel"),
            ("Annotations/c.xml", None, "object 4: unknown class ''"),
            ("Annotations/c.xml", None, "object 5: needs 4 finite numbers, not ['twelve', '12', '22', '22']"),
            ("Annotations/c.xml", None, "object 6: needs 4 finite numbers"),
            ("Annotations/copy.xml", None, "its image a.png is missing"),
            ("Annotations/gone.xml", None, "its image gone.jpg is missing"),
            ("JPEGImages/bare.png", None, "no annotation"),
        ],
    )
    rows = {Path(name).stem: row for row, name in enumerate(boxes.names)}
    assert list(rows) == ["a", "b", "bare", "c", "counted_from_0", "renamed"]
    assert boxes.boxes[rows["c"]].tolist() == [[5, 5, 50, 20]]
    assert boxes.boxes[rows["counted_from_0"]].tolist() == [[0, 0, 19, 19]]
    (tmp_path / "classes.txt").write_text("cow\nbee\n")
    named = open_boxes(tmp_path)
    assert named.classes == ["cow", "bee"]
    assert ("Annotations/a.xml", None, "object 1: unknown class 'ant'") in listed(named)


def test_a_part_that_cannot_be_used_is_listed_unless_it_is_the_train_part(tmp_path: Path) -> None:
    split_coco(tmp_path)
    (tmp_path / "test" / "annotations.json").write_text("{")
    (tmp_path / "valid" / "annotations.json").unlink()
    boxes = open_boxes(tmp_path)
    check_scene(boxes, ("a.png",))
    assert boxes.rows("test").tolist() == []
    check_listed(boxes, [("test", None, "cannot be read as JSON"), ("valid", None, "no annotations of a known format")])
    (tmp_path / "test" / "annotations.json").unlink()
    split_coco(tmp_path)
    (tmp_path / "train" / "annotations.json").write_text("[]")
    with pytest.raises(SelfsightError, match=r"no image is left in the train part; train: .*not COCO"):
        open_boxes(tmp_path)


def empty(folder: Path) -> None:
    (folder / "readme.txt").touch()


def no_image(folder: Path) -> None:
    write_yolo(folder / "labels")
    (folder / "images").mkdir()


def no_box(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "labels").mkdir()


def all_gone(folder: Path) -> None:
    write_coco_file(folder / "annotations.json")


def no_coco(folder: Path) -> None:
    (folder / "annotations.json").write_text('{"images": []}')


def cut_json(folder: Path) -> None:
    (folder / "annotations.json").write_text('{"images": [')


def no_yaml(folder: Path) -> None:
    (folder / "data.yaml").write_text("names: [a")


def yaml_without_parts(folder: Path) -> None:
    (folder / "data.yaml").write_text("names: [a]")


def yaml_to_nowhere(folder: Path) -> None:
    (folder / "data.yaml").write_text("train: images/train")


def odd_names(folder: Path) -> None:
    yolo(folder)
    (folder / "data.yaml").write_text("names: {ant: 0}")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (empty, "no boxes found; give COCO"),
        (no_image, "images: no images in this folder; it is empty"),
        (no_box, r"none of 3 images has a box; images/a\.png: no annotation, as labels/a\.txt is missing"),
        (all_gone, r"no image is left; a\.png: no such file \(3 problem"),
        (no_coco, r"annotations\.json: not COCO: needs lists"),
        (cut_json, r"annotations\.json: cannot be read as JSON"),
        (no_yaml, r"data\.yaml: cannot be read as YAML"),
        (yaml_without_parts, r"data\.yaml: names no folder under 'train'"),
        (yaml_to_nowhere, r"no image is left in the train part; .*data\.yaml: train: no such folder images/train"),
        (odd_names, r"data\.yaml: 'names' must be a list"),
        (lambda folder: folder.rmdir(), "no such file or folder"),
    ],
)
def test_a_set_of_which_nothing_is_left_says_why(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    with pytest.raises(SelfsightError, match=message) as error:
        open_boxes(tmp_path / "set")
    assert "\n" not in str(error.value)


def test_written_coco_reads_back_the_same(tmp_path: Path) -> None:
    boxes = open_boxes(yolo(tmp_path / "set"))
    for path in (tmp_path / "set" / "my.json", tmp_path / "elsewhere.json"):
        write_coco(boxes, path)
        again = open_boxes(path, strict=True)
        check_scene(again)
        assert (again.classes, again.files) == (boxes.classes, boxes.files)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere.json", "set"]


def many(labels: list[list[int]], test: int = 0) -> BoxSet:
    """A set of images that show these classes, the last `test` of them for testing."""
    names = [f"{row}.png" for row in range(len(labels))]
    return BoxSet(
        source="made up",
        files=[f"/{name}" for name in names],
        names=names,
        sizes=np.full((len(names), 2), 10),
        classes=[str(number) for number in range(1 + max(max(row, default=0) for row in labels))],
        split=np.array(["train"] * (len(names) - test) + ["test"] * test),
        boxes=[np.zeros((len(row), 4), np.float32) for row in labels],
        labels=[np.array(row, np.int64) for row in labels],
    )


def test_few_images_are_seeded_and_nested_and_show_every_class_as_far_as_they_go() -> None:
    random = np.random.default_rng(0)
    common = [random.integers(0, 3, 2).tolist() for _ in range(90)]
    data = many([*common, [], [3, 4], [5], [6, 6], [4, 7], *common], test=90)
    rows = data.rows("train")
    assert len(rows) == 95
    draws = []
    for seed in range(5):
        chosen: set[int] = set()
        for amount in (1, 0.02, 3, 5, 0.1, 20, 0.5, 95, 1.0):
            drawn = few_images(data, rows, amount, seed)
            assert drawn.dtype == np.int64
            assert len(drawn) == (amount if isinstance(amount, int) else round(amount * 95))
            assert drawn.tolist() == sorted(set(drawn.tolist()))
            assert chosen <= set(drawn.tolist()) <= set(range(95))
            chosen = set(drawn.tolist())
            shown = {label for row in drawn for label in data.labels[row].tolist()}
            assert len(drawn) < 6 or shown == set(range(8))
            assert len(drawn) < 3 or len(shown) >= 5
        assert few_images(data, rows, 20, seed).tolist() == few_images(data, rows, 20, seed).tolist()
        draws.append(tuple(few_images(data, rows, 20, seed).tolist()))
    assert len(set(draws)) == 5
    assert len(few_images(data, rows, 1e-6, 0)) == 1
    assert len(few_images(many([[0], [0]]), np.arange(2), 0.01, 0)) == 1


@pytest.mark.parametrize(
    ("amount", "message"),
    [(0, "neither a fraction"), (1.5, "neither a fraction"), (-3, "a count of images"), (4, "there are 3 images to")],
)
def test_few_images_asks_for_a_sensible_amount(amount: float | int, message: str) -> None:
    with pytest.raises(SelfsightError, match=message):
        few_images(many([[0], [1], [0], [1]]), np.arange(3), amount, 0)
