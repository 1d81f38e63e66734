"""Data that is no folder of images gives the same image set as a folder would."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from selfsight.data import ImageSet, formats, open_images
from selfsight.errors import SelfsightError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (10, 8, 8), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def everything(images: ImageSet) -> NDArray[np.uint8]:
    return images.images[np.arange(len(images))]


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(folder: Path, compress: Callable[[bytes], bytes] = bytes, suffix: str = "") -> None:
    for part, rows in (("train", slice(0, 7)), ("t10k", slice(7, 10))):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(compress(idx(GREY[rows])))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(compress(idx(np.arange(10, dtype=np.uint8)[rows])))


@pytest.mark.parametrize(("compress", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_idx_pairs_keep_pixels_labels_and_split(
    tmp_path: Path, compress: Callable[[bytes], bytes], suffix: str
) -> None:
    write_idx(tmp_path, compress, suffix)
    images = open_images(tmp_path, image_size=8)
    np.testing.assert_array_equal(everything(images)[:, 0], GREY)
    assert images.require_labels().tolist() == list(range(10))
    assert list(images.classes) == [str(digit) for digit in range(10)]
    assert images.rows("test").tolist() == [7, 8, 9]
    assert images.names[8] == "test/1"
    alone = open_images(tmp_path / f"train-images-idx3-ubyte{suffix}", image_size=8)
    assert len(alone) == len(alone.rows("train")) == 7


def test_folders_of_the_idx_files_names_are_no_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for kind in ("images-idx3", "labels-idx1"):  # some archives hold each file again, in a folder of its name
        inner = tmp_path / f"train-{kind}-ubyte.gz"
        inner.mkdir()
        (inner / "train").write_bytes(b"x")
    images = open_images(tmp_path, image_size=8)
    assert (len(images), images.require_labels().tolist()) == (10, list(range(10)))


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(SelfsightError, match="t10k-labels-idx1-ubyte: truncated"):
        open_images(tmp_path, image_size=8)
    labels.write_bytes(b"hello")
    with pytest.raises(SelfsightError, match="t10k-labels-idx1-ubyte: not an IDX file"):
        open_images(tmp_path, image_size=8)
    labels.write_bytes(gzip.compress(b"hello")[:-3])
    with pytest.raises(SelfsightError, match="t10k-labels-idx1-ubyte: cannot be read"):
        open_images(tmp_path, image_size=8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.astype(np.float32) / 255, COLOUR.transpose(0, 3, 1, 2)),
        (GREY > 100, (GREY > 100)[:, None] * np.uint8(255)),
    ],
    ids=["grey", "bands last", "bands first", "fractions", "bits"],
)
def test_npz_takes_the_usual_shapes_and_number_types(
    tmp_path: Path, array: NDArray[Any], expected: NDArray[np.uint8]
) -> None:
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(10) % 3 - 1)
    images = open_images(tmp_path / "a.npz", image_size=8)
    np.testing.assert_array_equal(everything(images), expected)
    assert images.require_labels().tolist() == [-1, 0, 1] * 3 + [-1]
    np.testing.assert_array_equal(everything(open_images(array, image_size=8)), expected)


def test_npz_with_parts_as_in_medmnist_and_with_a_split_array(tmp_path: Path) -> None:
    parts = {"train": slice(0, 6), "val": slice(6, 8), "test": slice(8, 10)}
    arrays: dict[str, Any] = {f"{word}_images": GREY[rows] for word, rows in parts.items()}
    arrays |= {f"{word}_labels": np.arange(10)[rows, None] % 2 for word, rows in parts.items()}
    np.savez(tmp_path / "medical.npz", **arrays)
    images = open_images(tmp_path / "medical.npz", image_size=8)
    assert images.rows("test").tolist() == [8, 9]
    assert images.require_labels().tolist() == [0, 1] * 5
    np.savez(tmp_path / "split.npz", images=GREY, split=["train", "test"] * 5)
    assert open_images(tmp_path / "split.npz", image_size=8).rows("test").tolist() == [1, 3, 5, 7, 9]


def test_satellite_bands_in_an_npz_are_kept_and_shrunk(tmp_path: Path) -> None:
    bands = RANDOM.integers(0, 10_000, (4, 13, 40, 60), dtype=np.uint16)
    np.savez(tmp_path / "tiles.npz", images=bands)
    images = open_images(tmp_path / "tiles.npz", image_size=8)
    assert images.images.shape == (4, 13, 12, 12)
    assert images.aspect.tolist() == [1.5] * 4


def test_unusable_npz_files_say_why(tmp_path: Path) -> None:
    def check(message: str, **arrays: Any) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(SelfsightError, match=rf"x\.npz: {message}"):
            open_images(tmp_path / "x.npz", image_size=8)

    check("needs an array 'images'.*it holds pixels", pixels=GREY)
    check("10 images but 3 labels", images=GREY, labels=np.arange(3))
    check("images must be numbers", images=GREY[0])
    check("images must be numbers", images=GREY.astype(str))
    check(r"cannot be read as \.npz", images=np.array([object()]))
    (tmp_path / "x.npz").write_bytes(b"PK but not a zip")
    with pytest.raises(SelfsightError, match=r"cannot be read as \.npz"):
        open_images(tmp_path / "x.npz", image_size=8)


ROWS = [("a.png", "cat", "train"), ("sub/b.png", "dog", "test"), ("gone.png", "cat", "train"), ("c.png", "", "val")]


def write_images(folder: Path) -> None:
    (folder / "sub").mkdir()
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        Image.new("RGB", (12, 12), (number, 0, 0)).save(folder / name)


def check_table(images: ImageSet) -> None:
    assert list(images.names) == ["a.png", "sub/b.png", "c.png"]
    assert images.require_labels().tolist() == [0, 1, -1]
    assert list(images.classes) == ["cat", "dog"]
    assert images.rows("test").tolist() == [1]
    assert [(skip.name, skip.reason) for skip in images.skipped] == [("gone.png", "no such file")]
    assert everything(images)[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_csv_gives_paths_labels_and_split(tmp_path: Path, name: str) -> None:
    write_images(tmp_path)
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("path", "label", "split"), *ROWS])
    check_table(open_images(tmp_path / name, image_size=8, cache_dir=tmp_path / "cache"))


def test_a_parquet_file_gives_the_same(tmp_path: Path) -> None:
    write_images(tmp_path)
    columns = list(zip(*ROWS, strict=True))
    table = pa.table({"path": columns[0], "label": columns[1], "split": columns[2]})
    pq.write_table(table, tmp_path / "t.parquet")
    check_table(open_images(tmp_path / "t.parquet", image_size=8, cache_dir=tmp_path / "cache"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.png,1\n", "needs a column 'path'.*file, label"),
        ("path,label\na.png\n", "row 2 has 1 columns"),
        ("path,split\na.png,holdout\n", "split must be train, val or test, not 'holdout'"),
        ("path\nx.png\n", r"no image of this table is there; for example x\.png: no such file"),
        ("path\n", "it has no rows"),
        ("", "empty file"),
    ],
)
def test_unusable_tables_say_why(tmp_path: Path, content: str, message: str) -> None:
    write_images(tmp_path)
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SelfsightError, match=rf"t\.csv: {message}|t\.csv.*{message}"):
        open_images(tmp_path / "t.csv", image_size=8)


class TorchvisionStyle:
    classes = ("cat", "dog")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(COLOUR)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        if self.kind == "broken" and row == 3:
            raise OSError("disk on fire")
        if self.kind == "tensor":
            return torch.from_numpy(COLOUR[row]).permute(2, 0, 1).float() / 255, row % 2
        return (COLOUR[row] if self.kind == "array" else Image.fromarray(COLOUR[row])), row % 2


def test_broken_items_are_skipped_even_if_only_the_items_know_the_labels() -> None:
    images = open_images(TorchvisionStyle("broken"), image_size=8)
    assert [(skip.name, skip.reason) for skip in images.skipped] == [("3", "disk on fire")]
    assert images.require_labels().tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
def test_a_torchvision_style_data_set_of_any_image_type(kind: str) -> None:
    images = open_images(TorchvisionStyle(kind), image_size=8)
    np.testing.assert_array_equal(everything(images), COLOUR.transpose(0, 3, 1, 2))
    assert images.require_labels().tolist() == [0, 1] * 5
    assert list(images.classes) == ["cat", "dog"]


def test_torchvision_style_parts_in_a_dict(tmp_path: Path) -> None:
    parts = {"train": TorchvisionStyle("pil"), "test": TorchvisionStyle("array")}
    images = open_images(parts, image_size=8)
    np.testing.assert_array_equal(everything(images), np.concatenate([COLOUR, COLOUR]).transpose(0, 3, 1, 2))
    assert images.rows("test").tolist() == list(range(10, 20))
    assert images.require_labels().tolist() == [0, 1] * 10


def test_a_hugging_face_data_set_and_a_dict_of_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(pixels) for pixels in COLOUR], "label": [0, 1] * 5}
    whole = datasets.Dataset.from_dict(rows, features=features)
    for cache in (True, False):
        images = open_images(whole, image_size=8, cache=cache, cache_dir=tmp_path)
        np.testing.assert_array_equal(everything(images), COLOUR.transpose(0, 3, 1, 2))
        assert list(images.classes) == ["cat", "dog"]
    parts = datasets.DatasetDict({"train": whole.select(range(7)), "test": whole.select(range(7, 10))})
    images = open_images(parts, image_size=8, cache_dir=tmp_path)
    np.testing.assert_array_equal(everything(images), COLOUR.transpose(0, 3, 1, 2))
    assert images.rows("test").tolist() == [7, 8, 9]
    assert images.require_labels().tolist() == [0, 1] * 5


def test_the_one_column_of_classes_is_the_label_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    said: list[str] = []
    monkeypatch.setattr(formats, "say", said.append)
    kind, rows = datasets.ClassLabel(names=["cat", "dog"]), {"image": [Image.fromarray(p) for p in COLOUR]}
    for names in (["fine"], ["fine", "coarse"]):
        features = datasets.Features({"image": datasets.Image()} | dict.fromkeys(names, kind))
        whole = datasets.Dataset.from_dict(rows | {name: [0, 1] * 5 for name in names}, features=features)
        images = open_images(whole, image_size=8, cache=False)
        assert (images.labels is None) == bool(said) == (len(names) > 1)
    assert "call one of fine, coarse 'label'" in said[0]


def test_a_set_says_its_part_and_that_its_transform_is_applied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(formats, "say", said.append)
    for train in (True, False):
        own = TorchvisionStyle("pil")
        vars(own).update(train=train, transform=None if train else np.asarray)
        assert open_images(own, image_size=8).source == f"TorchvisionStyle {'train' if train else 'test'}"
    assert [text.split(":")[0] for text in said] == ["TorchvisionStyle test"]
    said.clear()
    open_images({"train": TorchvisionStyle("pil"), "test": own}, image_size=8)
    assert [text.split(":")[0] for text in said] == ["dict"], "of a part, too"
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in COLOUR]})
    whole.info.dataset_name = "beans"
    whole.set_transform(lambda batch: batch)
    assert open_images(whole, image_size=8, cache=False).source == "beans"
    assert "beans: its transform is applied once" in said[1]


def test_parts_that_lack_a_class_or_all_labels_keep_those_there_are(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(pixels) for pixels in COLOUR[:4]]
    train = datasets.Dataset.from_dict({"image": pictures[:3], "label": ["dog", "cat", "owl"]})
    for last, expected in (({"label": ["owl"]}, 2), ({}, -1)):
        test = datasets.Dataset.from_dict({"image": pictures[3:]} | last)
        images = open_images(datasets.DatasetDict({"train": train, "test": test}), image_size=8, cache_dir=tmp_path)
        assert list(images.classes) == ["cat", "dog", "owl"]
        assert images.require_labels().tolist() == [1, 0, 2, expected]
    hidden = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0, -1, 1]})
    decimal = datasets.Dataset.from_dict({"image": pictures, "label": [1.0, 0.0, float("nan"), 1.0]})
    for some in (hidden, decimal):
        images = open_images(some, image_size=8, cache_dir=tmp_path)
        assert list(images.classes) == ["0", "1"]
        assert images.require_labels().tolist() == [1, 0, -1, 1]
    with pytest.raises(SelfsightError, match="is a stream"):
        open_images(hidden.to_iterable_dataset(), image_size=8)


class OfAnotherTask:
    def __init__(self, target: object) -> None:
        self.target = target

    def __len__(self) -> int:
        return len(COLOUR)

    def __getitem__(self, row: int) -> tuple[Image.Image, object]:
        return Image.fromarray(COLOUR[row]), self.target


@pytest.mark.parametrize(
    "target", [[{"bbox": [0, 0, 1, 1]}], {"annotation": {}}, "Annotations/1.xml", torch.zeros(3, 4)], ids=type
)
def test_targets_of_other_tasks_are_no_classes(target: object) -> None:
    images = open_images(OfAnotherTask(target), image_size=8)
    assert len(images) == len(COLOUR)
    assert images.labels is None


def test_numbers_between_classes_are_classes_of_their_own() -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(pixels) for pixels in COLOUR[:3]]
    rated = datasets.Dataset.from_dict({"image": pictures, "label": [1.0, 1.5, 2.0]})
    assert list(open_images(rated, image_size=8, cache=False).classes) == ["1", "1.5", "2"]
    with pytest.raises(SelfsightError, match="not a data set"):
        open_images({"train": "photos"}, image_size=8)


@pytest.mark.parametrize("target", [np.array([3]), torch.tensor([3]), np.int64(3)], ids=type)
def test_a_number_in_an_array_of_one_is_a_class(target: object) -> None:
    images = open_images(OfAnotherTask(target), image_size=8)  # medmnist's are
    assert list(images.classes) == ["3"]


def test_idx_files_of_emnists_names_have_a_train_part(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        file.rename(tmp_path / f"emnist-letters-{file.name.replace('t10k', 'test')}")
    images = open_images(tmp_path, image_size=8)
    assert images.rows("train").tolist() == list(range(7))
    assert images.names[8] == "test/1"


def test_an_image_set_is_returned_as_it_is_and_other_things_are_refused() -> None:
    images = open_images(GREY, image_size=8)
    assert open_images(images, image_size=99) is images
    with pytest.raises(SelfsightError, match="int: not a data set"):
        open_images(3, image_size=8)


def test_labels_that_are_no_numbers_are_unknown(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=GREY[:4], labels=np.array([1.0, np.nan, 0.0, -1.0]))
    assert open_images(tmp_path / "x.npz", image_size=8).require_labels().tolist() == [1, -1, 0, -1]


def test_an_image_of_16_bits_is_stretched_as_its_set_or_as_told(tmp_path: Path) -> None:
    deep = (RANDOM.random((6, 8, 8)) * np.linspace(500, 4000, 6)[:, None, None]).astype(np.uint16)
    for i, image in enumerate(deep):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    images = open_images(tmp_path, image_size=8)
    assert images.stretch is not None
    alone = open_images(tmp_path / "0.png", image_size=8, stretch=images.stretch)
    np.testing.assert_array_equal(everything(alone)[0], everything(images)[0])
    assert everything(open_images(tmp_path / "0.png", image_size=8)).max() > 3 * everything(alone).max()
    assert open_images(GREY, image_size=8).stretch is None
