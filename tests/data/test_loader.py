"""Which images make up a batch depends on seed and step alone, wherever they are read from."""

import dataclasses
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data import Batch, ImageSet, Loader, in_order, open_images
from selfsight.errors import SelfsightError

CPU = torch.device("cpu")


@pytest.fixture
def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    return open_images(pixels, image_size=8)


def agree(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "aspect", "index"))


def check_rows(batch: Batch, images: ImageSet) -> None:
    np.testing.assert_array_equal(batch.images.numpy(), images.images[batch.index.numpy()])
    np.testing.assert_array_equal(batch.aspect.numpy(), images.aspect[batch.index.numpy()])
    assert (batch.labels is None) == (images.labels is None)
    if batch.labels is not None and images.labels is not None:
        np.testing.assert_array_equal(batch.labels.numpy(), images.labels[batch.index.numpy()])


@pytest.mark.parametrize("resident_share", [0.5, 0.0])
def test_an_epoch_shows_each_row_once_in_an_order_of_its_own(images: ImageSet, resident_share: float) -> None:
    rows = np.arange(1, 49)
    loader = Loader(images, rows, 16, CPU, resident_share=resident_share)
    assert loader.steps_per_epoch == 3
    batches = list(itertools.islice(loader.stream(), 6))
    for batch in batches:
        check_rows(batch, images)
    first, second = (torch.cat([b.index for b in batches[start : start + 3]]) for start in (0, 3))
    assert first.sort().values.tolist() == second.sort().values.tolist() == rows.tolist()
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("resident_share", [0.5, 0.0])
def test_a_stream_continues_exactly_from_any_step(images: ImageSet, resident_share: float) -> None:
    loader = Loader(images, np.arange(50), 8, CPU, seed=5, resident_share=resident_share)
    whole = list(itertools.islice(loader.stream(), 15))
    resumed = itertools.islice(Loader(images, np.arange(50), 8, CPU, seed=5).stream(9), 6)
    assert all(agree(one, other) for one, other in zip(whole[9:], resumed, strict=True))
    assert agree(loader.batch(2), whole[2])
    assert not agree(Loader(images, np.arange(50), 8, CPU, seed=6).batch(2), whole[2])


def test_processes_share_the_batch_that_one_would_see(images: ImageSet) -> None:
    alone = Loader(images, np.arange(50), 12, CPU).batch(5)
    parts = [Loader(images, np.arange(50), 4, CPU, rank=rank, world=3).batch(5) for rank in range(3)]
    assert torch.cat([part.index for part in parts]).tolist() == alone.index.tolist()


@pytest.mark.parametrize("resident_share", [0.5, 0.0])
def test_labels_come_with_their_images(images: ImageSet, resident_share: float) -> None:
    labels = np.arange(50) % 7 - 1
    labelled = dataclasses.replace(images, labels=labels, classes=tuple("abcdef"))
    check_rows(Loader(labelled, np.arange(50), 8, CPU, resident_share=resident_share).batch(3), labelled)


def test_in_order_yields_every_row_once(images: ImageSet) -> None:
    rows = np.array([7, 3, 30, 4, 9])
    batches = list(in_order(images, rows, 2, CPU))
    assert [len(batch.index) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == rows.tolist()
    for batch in batches:
        check_rows(batch, images)
    assert list(in_order(images, rows[:0], 2, CPU)) == []


def test_closing_a_stream_early_leaves_no_thread(images: ImageSet) -> None:
    before = set(threading.enumerate())
    stream = Loader(images, np.arange(50), 4, CPU, resident_share=0.0).stream()
    next(stream)
    assert set(threading.enumerate()) > before
    stream.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_too_few_images_for_a_batch_names_the_flag(images: ImageSet) -> None:
    with pytest.raises(SelfsightError, match=r"50 images do not fill one batch of 64.*--batch-size"):
        Loader(images, np.arange(50), 32, CPU, world=2)


def test_files_that_break_while_streaming_are_replaced_and_listed_once(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    images = open_images(tmp_path, image_size=8, cache=False)
    (tmp_path / "2.png").write_bytes(b"overwritten")
    (tmp_path / "3.png").unlink()
    loader = Loader(images, np.arange(6), 6, CPU)
    for batch in itertools.islice(loader.stream(), 2):
        red = batch.images[:, 0, 0, 0][batch.index.argsort()]
        assert red.tolist() == [0, 1, 4, 4, 4, 5]
    assert sorted(skip.name for skip in images.skipped) == ["2.png", "3.png"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident_share", [0.5, 0.0])
def test_batches_on_the_gpu_are_those_of_the_cpu(images: ImageSet, resident_share: float) -> None:
    gpu = Loader(images, np.arange(50), 8, torch.device("cuda"), resident_share=resident_share)
    cpu = Loader(images, np.arange(50), 8, CPU)
    for step, batch in enumerate(itertools.islice(gpu.stream(), 14)):
        assert batch.images.is_cuda
        assert agree(Batch(batch.images.cpu(), batch.aspect.cpu(), batch.index.cpu()), cpu.batch(step))
