"""One folder with everything that goes wrong in real folders: exactly the broken files are listed."""

import csv
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pillow_heif import from_pillow

import selfsight
from selfsight.data import ImageSet, open_images
from selfsight.errors import SelfsightError

ORDINARY = 300 - 25


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def make_broken(folder: Path) -> dict[str, str]:
    """Write the files that cannot be read; return a part of the reason for each."""
    jpeg, png = folder / "whole.jpg", folder / "whole.png"
    photo(1, (200, 150)).save(jpeg)
    photo(1, (200, 150)).save(png)
    (folder / "cut.jpg").write_bytes(jpeg.read_bytes()[:-500])
    (folder / "cut.png").write_bytes(png.read_bytes()[:-500])
    jpeg.unlink()
    png.unlink()
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "page.png").write_text("<html>404 not found</html>")
    (folder / "bomb.png").write_bytes(png_claiming(60_000, 60_000))
    (folder / "large.png").write_bytes(png_claiming(10_000, 10_000))  # Pillow warns of it, and may not here
    (folder / "header_only.png").write_bytes(png_claiming(50, 50)[:33])
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "noise.npy").write_bytes(b"\x93NUMPY but no more")
    os.mkfifo(folder / "pipe.jpg")
    broken = {
        "cut.jpg": "truncated", "cut.png": "truncated", "empty.jpg": "empty", "text.jpg": "not an image",
        "page.png": "not an image", "bomb.png": "179 million", "large.png": "truncated", "header_only.png": "",
        "dangling.jpg": "no such file", "folder.jpg": "a folder", "noise.npy": "", "pipe.jpg": "not a regular",
    }  # fmt: skip
    if os.geteuid() != 0:
        photo(1).save(folder / "secret.png")
        (folder / "secret.png").chmod(0)
        broken["secret.png"] = "permission denied"
    return broken


def make_odd(folder: Path) -> None:
    """Write files that look suspicious and are fine."""
    deep = (np.arange(30 * 40, dtype=np.uint16) * 50).reshape(30, 40)
    Image.fromarray(deep).save(folder / "deep.png")
    photo(2).convert("CMYK").save(folder / "cmyk.jpg")
    palette = photo(3).convert("P")
    palette.info["transparency"] = bytes([0, 128] + [255] * 254)
    palette.save(folder / "palette.png", transparency=palette.info["transparency"])
    frames = [photo(4), photo(5)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    photo(6, (1, 1)).save(folder / "dot.png")
    photo(7, (1, 3000)).save(folder / "line.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(8).save(folder / "turned.png", exif=exif)
    photo(8).save(folder / "turned.jpg", exif=exif)
    from_pillow(photo(9)).save(folder / "phone.heic")
    photo(10).save(folder / "grüße 写真.webp")
    photo(11).convert("RGBA").save(folder / "alpha.tiff")
    photo(12).convert("1").save(folder / "bits.bmp")
    rotten_exif = photo(13)
    rotten_exif.save(folder / "rotten_exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    # Orientation 6, and an ImageWidth in words, which Pillow reads, but cannot write.
    entries = struct.pack("<HHHIHH", 2, 0x100, 2, 4, 0x6261, 0x0063) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    photo(15).save(folder / "odd_exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + b"\0\0\0\0")


def make_ignored(folder: Path) -> None:
    """Write what is no image and is not mentioned."""
    (folder / "notes.txt").write_text("notes")
    (folder / "labels.csv").write_text("a,b")
    (folder / ".hidden.jpg").write_text("hidden")
    (folder / ".git").mkdir()
    photo(14).save(folder / ".git" / "inside.png")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "loop").symlink_to(folder)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("messy")
    broken = make_broken(folder)
    make_odd(folder)
    make_ignored(folder)
    for number in range(ORDINARY):
        photo(100 + number).save(folder / "deep" / "er" / f"{number:03}.jpg")
    return folder, broken


def test_exactly_the_broken_files_are_skipped_each_with_its_reason(
    messy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, broken = messy
    images = open_images(folder, image_size=16, cache_dir=tmp_path)
    assert {skip.name for skip in images.skipped} == broken.keys()
    assert len(images) == ORDINARY + 14 == len(set(images.names))
    for skip in images.skipped:
        assert broken[skip.name] in skip.reason
        assert "\n" not in skip.reason
        assert skip.reason
        assert str(folder) not in skip.reason


def test_streaming_skips_the_same_files_and_shows_the_same_pixels(
    messy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, broken = messy
    kept = open_images(folder, image_size=16, cache_dir=tmp_path)
    images = open_images(folder, image_size=16, cache=False)
    pixels = dict(zip(images.names, images.images[np.arange(len(images))], strict=True))
    images.images[np.arange(len(images))]
    assert sorted(skip.name for skip in images.skipped) == sorted(broken)  # once each, though read twice
    for row, name in enumerate(kept.names):
        np.testing.assert_array_equal(pixels[name], kept.images[np.array([row])][0])
    aspects = dict(zip(images.names, images.aspect, strict=True))
    assert [aspects[name] for name in kept.names] == pytest.approx(kept.aspect.tolist())


def test_streaming_for_labels_leaves_damaged_images_out_from_the_start(
    messy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, broken = messy
    kept = open_images(folder, image_size=16, cache_dir=tmp_path)
    images = open_images(folder, image_size=16, cache=False, verify=True)
    assert (images.names, images.skipped) == (kept.names, kept.skipped)
    assert len(images.skipped) == len(broken)


def test_a_whole_run_ends_well_and_lists_exactly_the_broken_files(
    messy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, broken = messy
    config = selfsight.Pretrain(backbone="test_resnet", batch_size=64, image_size=16)
    run = selfsight.pretrain(folder, out=tmp_path / "run", epochs=1, config=config)
    with (run.path / "skipped.csv").open(newline="", encoding="utf-8") as file:
        assert {row["file"] for row in csv.DictReader(file)} == broken.keys()
    assert len(run.embed(folder).names) == ORDINARY + 14
    assert "bomb.png" in run.report(folder).read_text(encoding="utf-8")


def by_name(images: ImageSet, name: str) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = images.images[np.array([list(images.names).index(name)])][0]
    return pixels


@pytest.mark.parametrize("name", ["turned.png", "turned.jpg"])
def test_exif_rotation_gives_the_pixels_of_the_upright_image(
    messy: tuple[Path, dict[str, str]], tmp_path: Path, name: str
) -> None:
    folder, _ = messy
    (tmp_path / "a").mkdir()
    with Image.open(folder / name) as image:
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "a" / "upright.png")
    upright = open_images(tmp_path / "a", image_size=16, side=32, cache_dir=tmp_path)
    images = open_images(folder, image_size=16, side=32, cache_dir=tmp_path)
    np.testing.assert_array_equal(by_name(images, name), by_name(upright, "upright.png"))
    assert images.aspect[list(images.names).index(name)] == pytest.approx(30 / 40)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (20, 20), (9, 0)).save(tmp_path / "clear_grey.png")
    images = open_images(tmp_path, image_size=16, cache=False)
    assert (images.images[np.arange(2)] == 255).all()


def test_nothing_readable_names_the_folder_and_the_commonest_reason(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("text")
    (tmp_path / "x.png").touch()
    with pytest.raises(SelfsightError, match=r"none of 4 images.*not an image") as caught:
        open_images(tmp_path, image_size=16, cache_dir=tmp_path / "c")
    assert str(tmp_path) in str(caught.value)


BUILD = """
import sys, time
from pathlib import Path
from selfsight.data import cache, open_images
slow = len(sys.argv) > 3
decode = cache.decode
def counted(*args):
    with open(sys.argv[2] + "/decoded.txt", "a") as log:
        log.write(str(args[0]) + "\\n")
    time.sleep(0.01 if slow else 0)
    return decode(*args)
cache.decode = counted
open_images(sys.argv[1], image_size=16, cache_dir=Path(sys.argv[2]))
"""


def test_a_killed_build_resumes_with_the_rest_and_gives_the_same_array(
    messy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = messy
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", BUILD, str(folder), str(tmp_path / "killed")]
    log = tmp_path / "killed" / "decoded.txt"
    process = subprocess.Popen([*command, "slow"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not log.exists() or len(log.read_text().splitlines()) < 200) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    [part] = (tmp_path / "killed").glob("*.part")
    done = (part / "journal.jsonl").read_bytes().count(b"\n") * 32
    assert done >= 32
    with (part / "images.npy").open("ab") as images:
        images.write(b"half an image that no line of the journal knows")
    with (part / "journal.jsonl").open("ab") as journal:
        journal.write(b"[320, [288")
    log.unlink()

    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    listed = ORDINARY + 14 + 10 - 1  # the dangling link, the folder and the pipe never reach the decoder
    assert abs(len(log.read_text().splitlines()) - (listed - done)) <= 1
    resumed = open_images(folder, image_size=16, cache_dir=tmp_path / "killed")
    fresh = open_images(folder, image_size=16, cache_dir=tmp_path / "fresh")
    assert not list((tmp_path / "killed").glob("*.part"))
    assert resumed.names == fresh.names
    assert resumed.skipped == fresh.skipped
    everything = np.arange(len(fresh))
    np.testing.assert_array_equal(resumed.images[everything], fresh.images[everything])
    np.testing.assert_array_equal(resumed.aspect, fresh.aspect)
