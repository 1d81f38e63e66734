from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsight.pictures import GAP, MOST_TILE, data_uri, read_pictures, rgb, save_pictures


def test_a_grid_has_every_image_at_its_place_enlarged_without_blur(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 3, 28, 28)
    save_pictures(tmp_path / "pictures", {"caption é": images})
    (picture,) = read_pictures(tmp_path / "pictures")
    assert picture.caption == "caption é"
    with Image.open(picture.file) as image:
        drawn = np.asarray(image)
    side = 3 * 28
    assert drawn.shape == (2 * side + GAP, 3 * side + 2 * GAP, 4)
    tile = drawn[side + GAP :, side + GAP : 2 * side + GAP, :3]
    np.testing.assert_array_equal(tile[1::3, 1::3], (images[1, 1] * 255).round().byte().permute(1, 2, 0))
    assert len(np.unique(tile)) <= len(torch.unique((images[1, 1] * 255).round()))
    assert (drawn[side : side + GAP, :, 3] == 0).all(), "gaps are transparent"


def test_each_picture_has_a_file_and_large_images_are_reduced(tmp_path: Path) -> None:
    save_pictures(tmp_path, {"a": torch.rand(1, 1, 1, 8, 8), "b": torch.rand(1, 2, 3, 224, 224)})
    a, b = read_pictures(tmp_path)
    with Image.open(a.file) as small, Image.open(b.file) as large:
        assert small.size == (64, 64)
        assert large.size == (2 * MOST_TILE + GAP, MOST_TILE)
    assert read_pictures(tmp_path / "none") == []


def test_one_band_is_grey_three_are_kept_and_more_are_stretched() -> None:
    grey = rgb(np.full((1, 4, 4), 0.5, np.float32))
    assert (grey == 128).all()
    assert grey.shape == (4, 4, 3)
    colour = np.random.default_rng(0).random((2, 3, 4, 4), np.float32) / np.float32(4)
    assert rgb(colour).max() <= 64
    dim = np.linspace(0.1, 0.2, 5 * 64, dtype=np.float32).reshape(5, 8, 8)
    assert rgb(dim).min() == 0
    assert rgb(dim).max() == 255
    assert rgb(np.zeros((2, 4, 4), np.float32)).shape == (4, 4, 3)


def test_a_large_image_becomes_small_enough_for_a_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 4)).astype(np.uint8)
    assert data_uri(Image.fromarray(noise)).startswith("data:image/webp;base64,")
    assert data_uri(Image.new("RGB", (600, 600))).startswith("data:image/png;base64,")
