"""Exact copies: found whatever they are called and however they are decoded, and never taken for more than that."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selfsight.data import open_images
from selfsight.data.copies import copied, learn_copies, warn_of_overlap


@pytest.fixture
def folder(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    """Uncompressed crops of a photo, all of the same size in bytes, with black borders below."""
    for i in range(12):
        pixels = np.zeros((64, 40, 3), np.uint8)
        pixels[:20] = photo[10 * i : 10 * i + 20, 20 * i : 20 * i + 40]
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.bmp")
    return tmp_path


@pytest.mark.parametrize("cache", [True, False])
def test_files_are_copies_if_their_bytes_are(folder: Path, cache: bool) -> None:
    images = open_images(folder, image_size=16, cache=cache)
    first, second = np.arange(6), np.arange(6, 12)
    assert not copied(images, first, images, second).any()
    shutil.copy(folder / "03.bmp", folder / "08.bmp")
    for size in (8, 32):
        images = open_images(folder, image_size=size, cache=cache)
        assert copied(images, first, images, second).tolist() == [False, False, True, False, False, False]
        labels = np.arange(12)
        assert not copied(images, first, images, second, labels).any(), "copies of another label"
        labels[8] = labels[3]
        assert copied(images, first, images, second, labels).nonzero()[0].tolist() == [2]
    (folder / "08.bmp").unlink()  # since it was read
    assert not copied(images, first, images, second).any()


def test_arrays_are_copies_if_their_pixels_are(digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    pixels = digits[0][:12].copy()
    pixels[8] = pixels[3]
    pixels[9] = pixels[4]
    pixels[9, 0, 0] ^= 1  # but for one
    images = open_images(pixels, image_size=16)
    first, second = np.arange(6), np.arange(6, 12)
    assert copied(images, first, images, second).nonzero()[0].tolist() == [2]
    assert not copied(images, first[:0], images, second).any()
    assert copied(images, first, images, second[:0]).shape == (0,)


def test_copies_are_learned_but_for_a_class_that_shows_nothing_else(
    digits: tuple[NDArray[np.uint8], NDArray[np.int64]], capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, labels = digits[0][:12].copy(), np.array([0, 1, 2, 0, 1, -1] * 2)
    pixels[6:] = pixels[:6]
    pixels[7], pixels[10] = 255 - pixels[7], 255 - pixels[10]  # class 1 has no copies
    pixels[9] = 255 - pixels[9]  # of class 0, 6 has one and 9 has not; 8 is all of class 2; 11 has no label
    images = open_images(pixels, image_size=16)
    split = np.array(["train"] * 6 + ["test"] * 6)
    learn_copies(images, split, labels)
    assert np.flatnonzero(split == "test").tolist() == [7, 8, 9, 10, 11]
    assert "1 of 5 images drawn for the test are exact copies of others" in " ".join(capsys.readouterr().err.split())
    warn_of_overlap(images, np.arange(6), images, np.array([7, 8]))
    assert "1 of the 2 test images are learned from too, as" in " ".join(capsys.readouterr().err.split())
    split[:] = ["train"] * 6 + ["test"] * 6
    learn_copies(replace(images, groups=np.arange(12)), split, labels)
    assert (split[6:] == "test").all(), "groups stay whole"
