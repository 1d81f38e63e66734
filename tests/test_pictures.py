from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsight.data import ImageSet
from selfsight.pictures import (
    CELL,
    GAP,
    GREY,
    MARK,
    MOST_ALONE,
    MOST_TILE,
    bars,
    data_uri,
    examples,
    heat,
    matrix,
    read_pictures,
    rgb,
    save_pictures,
    shrunk,
)


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


def test_bars_are_as_high_as_their_values() -> None:
    drawn = bars(torch.tensor([[1.0, 0.5], [0.0, 0.25]]), 8)
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.sum(2)[:, 0].tolist() == [[8.0] * 4 + [4.0] * 4, [0.0] * 4 + [2.0] * 4]
    assert drawn[0, 0, :, 7].tolist() == [0.0] * 4 + [1.0] * 4, "they stand on the floor"


def test_a_large_image_becomes_small_enough_for_a_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 4)).astype(np.uint8)
    assert data_uri(Image.fromarray(noise)).startswith("data:image/webp;base64,")
    assert data_uri(Image.new("RGB", (600, 600))).startswith("data:image/png;base64,")


def test_a_picture_by_itself_is_not_reduced_like_a_tile(tmp_path: Path) -> None:
    save_pictures(tmp_path, {"alone": torch.rand(1, 1, 3, 800, 800), "too large": torch.rand(1, 1, 3, 2000, 2000)})
    sizes = []
    for picture in read_pictures(tmp_path):
        with Image.open(picture.file) as image:
            sizes.append(image.width)
    assert sizes == [800, MOST_ALONE]


def test_a_matrix_has_each_value_between_its_two_images() -> None:
    values = torch.tensor([[1.0, 0.5, -0.3], [0.5, 1.0, 0.9], [-0.3, 0.9, 1.0]])
    images = torch.stack([torch.full((1, 8, 8), level) for level in (0.0, 0.5, 1.0)])
    framed = torch.zeros(3, 3, dtype=torch.bool)
    framed[0, 1] = True
    tile = matrix(values, images, framed)
    assert tile.shape == (1, 1, 3, 4 * CELL, 4 * CELL)
    cells = tile[0, 0].unflatten(2, (4, CELL)).unflatten(1, (4, CELL)).permute(1, 3, 0, 2, 4)  # (4, 4, 3, CELL, CELL)
    middle = cells[:, :, :, CELL // 2, CELL // 2]
    assert torch.allclose(middle[0, 1:].mean(1), torch.tensor([0.0, 0.5, 1.0]), atol=0.01), "images above the columns"
    assert torch.allclose(middle[1:, 0].mean(1), torch.tensor([0.0, 0.5, 1.0]), atol=0.01), "and before the rows"
    assert torch.allclose(middle[1, 2], heat(torch.tensor([[0.5]]))[:, 0, 0])
    assert torch.allclose(middle[3, 1], heat(torch.tensor([[0.0]]))[:, 0, 0]), "0 or less is dark"
    assert torch.allclose(middle[2, 2], torch.full((3,), GREY)), "not compared with itself"
    marked = (cells == torch.tensor(MARK)[:, None, None]).all(2).flatten(2).any(2)
    assert marked.nonzero().tolist() == [[1, 2]]


def test_heat_is_matplotlibs_map() -> None:
    drawn = heat(torch.tensor([[0.0, 1.0]]))
    assert drawn.shape == (3, 1, 2)
    assert torch.allclose(drawn[:, 0, 0], torch.tensor([0.267004, 0.004874, 0.329415]), atol=1e-4)
    assert torch.allclose(drawn[:, 0, 1], torch.tensor([0.993248, 0.906157, 0.143936]), atol=1e-4)


def test_examples_are_spread_over_the_test_part_where_there_is_one() -> None:
    split = np.array(["train"] * 50 + ["test"] * 50)
    images = ImageSet("a", np.zeros((100, 1, 8, 8), np.uint8), np.ones(100, np.float32), ["x"] * 100)
    assert examples(images, 3).tolist() == [0, 49, 99]
    assert examples(replace(images, split=split), 3).tolist() == [50, 74, 99]
    assert examples(replace(images, split=split), 10).tolist()[:2] == [50, 55]


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    clear.save(tmp_path / "icon.png")
    shown = np.asarray(shrunk(str(tmp_path / "icon.png"), 8))
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert (shown[1:] == 255).all()
