import io
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from selfsight.data.decode import BadImageError, read_aspect
from selfsight.search.facts import EXIF, PART, TAKEN, WRITTEN, Looks, array_facts, bits, hashes, read_facts, taken


def looks_of(*pictures: Image.Image, side: int = 64) -> list[str]:
    images = [np.asarray(p.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
    return hashes(Looks()(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255).numpy())


def apart(first: str, second: str) -> int:
    return int((bits([first]) != bits([second])).sum())


def test_the_lowest_frequencies_are_scipys() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = dctn(images.mean(1).numpy(), axes=(1, 2))[:, :8, :8].reshape(2, 64) / 4
    assert np.allclose(Looks()(images).numpy(), expected, atol=1e-3)


def test_copies_look_alike_and_others_do_not(photo: NDArray[np.uint8]) -> None:
    whole = Image.fromarray(photo).crop((0, 0, 420, 420))
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=40)
    copies = [whole.resize((200, 200)), Image.open(file), whole.convert("L")]
    other = Image.fromarray(photo).crop((200, 0, 620, 420))
    own, *found = looks_of(whole, *copies, other)
    assert [apart(own, copy) <= 4 for copy in found[:3]] == [True] * 3
    assert apart(own, found[3]) > 16


def test_a_file_says_what_it_is(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    exif[WRITTEN] = "2020:01:01 00:00:00"
    exif.get_ifd(EXIF)[TAKEN] = "2019:08:07 06:05:04"
    image.save(tmp_path / "a.jpg", exif=exif)
    facts = read_facts("a.jpg", str(tmp_path / "a.jpg"), "cat")
    assert (facts.width, facts.height) == (photo.shape[0], photo.shape[1])
    assert (facts.taken, facts.dated) == (datetime(2019, 8, 7, 6, 5, 4), True)
    assert facts.size == (tmp_path / "a.jpg").stat().st_size
    assert (facts.label, len(facts.content)) == ("cat", 64)
    assert read_facts("b", str(tmp_path / "a.jpg"), "").content == facts.content
    image.save(tmp_path / "a.tiff", exif=exif)
    tiff = read_facts("a.tiff", str(tmp_path / "a.tiff"), "")
    assert (tiff.width, tiff.height) == (photo.shape[0], photo.shape[1]), "Pillow turns a TIFF's size by itself"
    assert read_aspect(str(tmp_path / "a.tiff")) == pytest.approx(photo.shape[0] / photo.shape[1])
    with pytest.raises(BadImageError, match="no such file"):
        read_facts("c", str(tmp_path / "c.jpg"), "")


@pytest.mark.parametrize("words", ["yesterday", "0000:00:00 00:00:00", "2020-01-01 00:00:00", "", "\0\0"])
def test_a_date_that_is_none_is_unknown(words: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(EXIF)[TAKEN] = words
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif)
    assert taken(file.getvalue()) == (None, False)
    assert taken(b"no image") == (None, False)


@pytest.mark.parametrize(("part", "microsecond"), [("25", 250_000), ("1234567", 123_456), ("odd", 0), ("", 0)])
def test_a_camera_tells_parts_of_a_second(part: str, microsecond: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(EXIF)[TAKEN], exif.get_ifd(EXIF)[PART] = "2019:08:07 06:05:04", part
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif)
    assert taken(file.getvalue()) == (datetime(2019, 8, 7, 6, 5, 4, microsecond), True)


def test_when_a_file_was_changed_is_not_the_cameras_word() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[WRITTEN] = "2020:01:01 00:00:00"
    Image.new("RGB", (4, 4)).save(file, "JPEG", exif=exif)
    assert taken(file.getvalue()) == (datetime(2020, 1, 1), False)


def test_images_in_memory_are_told_apart_by_their_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    facts = array_facts("train/0", image, "")
    assert (facts.width, facts.height, facts.file) == (4, 3, None)
    assert array_facts("x", image.copy(), "").content == facts.content
    assert array_facts("x", image.T, "").content != facts.content
    assert array_facts("x", np.asfortranarray(image), "").content == facts.content
    assert array_facts("x", Image.fromarray(image), "").content == facts.content
