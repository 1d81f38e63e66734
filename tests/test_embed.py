import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from selfsight import backbones
from selfsight.data import ImageSet
from selfsight.embed import Embedding, embed
from selfsight.errors import SelfsightError

CPU = torch.device("cpu")


def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32)).astype(np.uint8)
    return ImageSet(
        "memory",
        pixels,
        np.ones(7, np.float32),
        [f"ü, {i}.png" for i in range(7)],
        labels=np.array([0, 1, -1, 0, 1, 0, 1]),
        classes=["a,b", 'quote"'],
    )


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    torch.manual_seed(0)
    spec = backbones.plan("resnet10t", 32, 3, (0.5,) * 3, (0.2,) * 3)
    return embed(backbones.create(spec), images(), CPU)


def test_an_image_has_one_vector_and_its_class_name(embedding: Embedding) -> None:
    assert embedding.features.shape == (7, 512)
    assert embedding.features.dtype == np.float32
    assert list(embedding.labels) == ["a,b", 'quote"', "", "a,b", 'quote"', "a,b", 'quote"']
    assert len({row.tobytes() for row in embedding.features}) == 7


def test_npz_holds_what_was_saved_without_pickle(embedding: Embedding, tmp_path: Path) -> None:
    with np.load(embedding.save(tmp_path / "new" / "e.npz"), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["features"], embedding.features)
        assert list(file["names"]) == list(embedding.names)
        assert list(file["labels"]) == list(embedding.labels)


def test_csv_reads_back_to_the_last_bit(embedding: Embedding, tmp_path: Path) -> None:
    with embedding.save(tmp_path / "e.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["path", "label", "f0"]
    assert header[-1] == "f511"
    assert [row[:2] for row in rows] == [[n, c] for n, c in zip(embedding.names, embedding.labels, strict=True)]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], np.float32), embedding.features)


def test_parquet_reads_back_and_has_full_paths_where_there_are_files(embedding: Embedding, tmp_path: Path) -> None:
    files = [f"/photos/{name}" for name in embedding.names]
    table = pq.read_table(replace(embedding, files=files).save(tmp_path / "e.parquet")).to_pydict()
    assert table["path"] == files
    assert table["label"] == list(embedding.labels)
    np.testing.assert_array_equal(np.array(table["features"], np.float32), embedding.features)


def test_an_unknown_suffix_is_named(embedding: Embedding, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match=r"\.xlsx.*use one of \.npz, \.csv, \.parquet"):
        embedding.save(tmp_path / "e.xlsx")
