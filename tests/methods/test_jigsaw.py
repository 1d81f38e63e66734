"""Permutations by the paper's rule, tiles from where they should be, a loss like a plain loop's, puzzles re-solved."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight import backbones
from selfsight.data.augment import whole
from selfsight.data.images import Batch
from selfsight.data.permutations import permutation_set
from selfsight.errors import SelfsightError
from selfsight.methods.jigsaw import Jigsaw, cut, normalize
from selfsight.nn import autocast


def jigsaw(
    size: int = 64, channels: int = 3, backbone: str = "test_resnet", config: Jigsaw.Config | None = None
) -> Jigsaw:
    torch.manual_seed(0)
    spec = backbones.plan(backbone, size, channels, (0.5,) * channels, (0.25,) * channels)
    return Jigsaw(backbones.create(spec), config or Jigsaw.Config())


def photo_crops(photo: NDArray[np.uint8], n: int = 4, side: int = 96) -> Batch:
    crops = [photo[20 * i : 20 * i + side, 60 * i : 60 * i + side] for i in range(n)]
    return Batch(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), torch.ones(n), torch.arange(n))


def coordinates(n: int, side: int) -> Tensor:
    """Images (n, 2, side, side) that hold each pixel's row and column."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([row, column]).expand(n, 2, side, side)


def distances(permutations: Tensor) -> Tensor:
    """Hamming distances of all pairs, each pair once."""
    far = (permutations[:, None] != permutations).sum(2)
    first, second = torch.triu_indices(len(permutations), len(permutations), 1)
    return far[first, second].double()


# ------------------------------------------------------------------------------------------------ the permutations


def test_each_permutation_is_the_farthest_on_average_from_those_before() -> None:
    """Algorithm 1, each step anew: no other of the 9! orders has a larger mean distance to the chosen ones."""
    every = np.array(list(itertools.permutations(range(9))), np.uint8)
    chosen = permutation_set(12).numpy()
    for i in range(1, len(chosen)):
        mean = np.mean([(every != other).sum(1) for other in chosen[:i]], axis=0)
        taken = (every[:, None] == chosen[None, :i]).all(2).any(1)
        mine = np.mean([(chosen[i] != other).sum() for other in chosen[:i]])
        assert mine == pytest.approx(mean[~taken].max())


@pytest.mark.parametrize(("count", "least"), [(9, 9), (100, 4), (1000, 2)])
def test_no_set_is_farther_apart_on_average(count: int, least: int) -> None:
    """By pigeonhole: in each place, `count` permutations show nine tiles, so that many pairs show the same one."""
    permutations = permutation_set(count)
    assert torch.equal(permutations.sort(1).values, torch.arange(9).expand(count, 9))
    far = distances(permutations)
    shows = [count // 9 + (tile < count % 9) for tile in range(9)]
    same = 9 * sum(math.comb(n, 2) for n in shows)
    assert float(far.mean()) == pytest.approx(9 - same / math.comb(count, 2), abs=1e-5)
    assert int(far.min()) == least


def test_the_set_is_the_same_each_time_and_kept_in_checkpoints() -> None:
    assert torch.equal(permutation_set.__wrapped__(20), permutation_set(20))
    assert not torch.equal(permutation_set(20, seed=1), permutation_set(20))
    assert torch.equal(jigsaw().state_dict()["permutations"], permutation_set(100))


def test_counts_that_nine_tiles_do_not_have_are_refused() -> None:
    with pytest.raises(SelfsightError, match="permutations 1: nine tiles have 2 to 362,880"):
        permutation_set(1)


# ------------------------------------------------------------------------------------------------------- the tiles


def test_tiles_come_from_their_cells_at_their_offsets() -> None:
    x = coordinates(5, 30)
    top, left = torch.randint(0, 4, (2, 5, 9))
    tiles = cut(x, top, left, 7)
    assert tiles.shape == (5, 9, 2, 7, 7)
    for image, slot in itertools.product(range(5), range(9)):
        y = slot // 3 * 10 + int(top[image, slot])
        x0 = slot % 3 * 10 + int(left[image, slot])
        assert torch.equal(tiles[image, slot], x[image, :, y : y + 7, x0 : x0 + 7])


@pytest.mark.parametrize("size", [28, 64, 96])
def test_drawn_tiles_stay_in_their_cells_and_use_all_the_room(size: int) -> None:
    """A ramp from left to right and one from top to bottom, so that the tiles' own values say where they are from."""
    ramp = (coordinates(64, 256)[:, [0, 1, 1]]).to(torch.uint8)
    method = jigsaw(size, config=Jigsaw.Config(crop_min=1.0, hflip=0.0, grey=0.0))
    tiles, labels = method.draw(Batch(ramp, torch.ones(64), torch.arange(64)))  # (64, 9, 3, t, t)
    assert tiles.shape == (64, 9, 3, method.tile, method.tile)
    assert labels.shape == (64, method.puzzles)
    pixel = tiles[:, :, :2].mean((3, 4)) * 255 / 256 * 3 * method.cell  # the middle, in pixels of the view
    slot = torch.arange(9)
    corner = torch.stack([slot // 3, slot % 3], 1) * method.cell
    begins = pixel + 0.5 * 3 * method.cell / 256 - method.tile / 2 - corner  # in its cell
    room = method.cell - method.tile
    assert room >= 2, "there is a gap"
    assert float(begins.min()) == pytest.approx(0, abs=0.3)
    assert float(begins.max()) == pytest.approx(room, abs=0.3)
    assert float(begins.mean()) == pytest.approx(room / 2, abs=0.2)


def test_flips_turn_the_image_and_not_its_tiles() -> None:
    ramp = coordinates(8, 256)[:, [1, 1, 1]].to(torch.uint8)
    method = jigsaw(config=Jigsaw.Config(crop_min=1.0, hflip=1.0, grey=0.0))
    means = method.draw(Batch(ramp, torch.ones(8), torch.arange(8)))[0].mean((2, 3, 4)).view(8, 3, 3)
    assert (means[:, :, :-1] > means[:, :, 1:]).all()


@pytest.mark.parametrize(
    ("backbone", "size", "tile"),
    [
        ("resnet10t", 28, 16),
        ("resnet10t", 64, 32),
        ("resnet10t", 96, 32),
        ("resnet18", 224, 64),
        ("vit_tiny_patch16_224", 64, 16),
        ("vit_tiny_patch16_224", 96, 32),
    ],
)
def test_tiles_fit_the_backbone(backbone: str, size: int, tile: int) -> None:
    """Near the size they have in a view, but a whole number of the backbone's steps, and the loss is finite."""
    method = jigsaw(size, 3, backbone, Jigsaw.Config(permutations=10))
    assert method.tile == tile
    with autocast(torch.device("cpu")):
        out = method(Batch(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.ones(2), torch.arange(2)), 0)
    assert math.isfinite(float(out["loss"].detach()))


def test_a_backbone_of_one_size_is_named() -> None:
    with pytest.raises(SelfsightError, match=r"--backbone convit_tiny: takes no small views of 64 .*another method"):
        jigsaw(224, 3, "convit_tiny")


def test_a_tile_smaller_than_the_backbones_step_leaves_no_gradient_unwritten(photo: NDArray[np.uint8]) -> None:
    """The tiles of 28-pixel images in bfloat16, where a map of 1 x 1 before a strided convolution would."""
    method = jigsaw(28, config=Jigsaw.Config(permutations=10))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(photo_crops(photo), 0)["loss"]
    loss.backward()
    for name, weight in method.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert float(weight.grad.abs().max()) < 1e4, name


def test_normalized_tiles_do_not_show_brightness_or_contrast() -> None:
    tiles = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    n = normalize(tiles)
    assert float(n.mean((2, 3)).abs().max()) < 1e-9
    assert torch.allclose(n.std((2, 3), unbiased=False), torch.ones(6, 3, dtype=torch.float64), atol=0.01)
    assert torch.allclose(normalize(0.4 + 0.5 * tiles), n, atol=0.02)


def test_blank_tiles_are_zero_and_faint_noise_stays_faint() -> None:
    assert torch.equal(normalize(torch.ones(2, 3, 8, 8)), torch.zeros(2, 3, 8, 8))
    noise = (254 + torch.randint(0, 2, (2, 3, 8, 8))) / 255
    assert float(normalize(noise).abs().max()) < 0.3


def test_white_images_have_finite_loss_and_gradients() -> None:
    method = jigsaw()
    loss = method(Batch(torch.full((4, 3, 64, 64), 255, dtype=torch.uint8), torch.ones(4), torch.arange(4)), 0)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in method.parameters() if weight.grad is not None)


@pytest.mark.parametrize("channels", [1, 5])
def test_takes_images_of_any_number_of_bands(channels: int) -> None:
    method = jigsaw(channels=channels)
    batch = Batch(torch.randint(0, 256, (4, channels, 64, 64), dtype=torch.uint8), torch.ones(4), torch.arange(4))
    assert math.isfinite(float(method(batch, 0)["loss"].detach()))
    method.eval()
    (images,) = method.picture(batch).values()
    assert images.shape[:3] == (2, 4, channels)


def test_a_share_of_the_puzzles_is_grey(photo: NDArray[np.uint8]) -> None:
    one = photo_crops(photo, 1)
    batch = Batch(one.images.expand(200, 3, 96, 96), torch.ones(200), torch.arange(200))
    tiles = jigsaw(config=Jigsaw.Config(grey=0.3)).draw(batch)[0]
    grey = (tiles.amax(2) - tiles.amin(2)).amax((2, 3)) < 1e-6  # (200, 9)
    assert torch.equal(grey.all(1), grey.any(1)), "all tiles of a puzzle or none"
    assert 0.2 < float(grey.float().mean()) < 0.4


# -------------------------------------------------------------------------------------------- the loss, the picture


def plain_loss(method: Jigsaw, tiles: Tensor, labels: Tensor) -> Tensor:
    """The context-free network, a puzzle and a tile at a time."""
    losses = []
    for image, drawn in zip(tiles, labels, strict=True):
        for label in drawn:
            features = []
            for slot in range(9):
                tile = image[method.permutations[label][slot]]
                channels = []
                for channel in tile:
                    centred = channel - channel.mean()
                    channels.append(centred / (centred.square().mean() + 0.02**2).sqrt())
                y = method.backbone.model(torch.stack(channels)[None])  # past the backbone's own normalization
                features.append(method.head(y)[0])
            p = torch.softmax(method.classifier(torch.cat(features)[None])[0], 0)
            losses.append(-torch.log(p[label]))
    return torch.stack(losses).mean()


def test_loss_equals_a_plain_loop(photo: NDArray[np.uint8]) -> None:
    method = jigsaw(config=Jigsaw.Config(permutations=10, puzzles=3)).eval()
    batch = photo_crops(photo)
    torch.manual_seed(1)
    out = method(batch, 0)
    torch.manual_seed(1)
    tiles, labels = method.draw(batch)
    expected = plain_loss(method, tiles, labels)
    assert float(out["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(out["chance"]) == pytest.approx(math.log(10))
    weight = next(method.backbone.parameters())
    (fast,) = torch.autograd.grad(out["loss"], weight)
    (slow,) = torch.autograd.grad(expected, weight)
    assert torch.allclose(fast, slow, atol=1e-3 * float(slow.abs().max()))


def test_two_processes_draw_what_one_would(photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch, halves = jigsaw(), photo_crops(photo), []
    torch.manual_seed(5)
    tiles, labels = method.draw(batch)
    for rank in range(2):
        monkeypatch.setattr("selfsight.data.augment.process", lambda rank=rank: (rank, 2))
        mine = slice(2 * rank, 2 * rank + 2)
        torch.manual_seed(5)
        halves.append(method.draw(Batch(batch.images[mine], batch.aspect[mine], batch.index[mine])))
    assert torch.equal(torch.cat([half[1] for half in halves]), labels)
    assert torch.allclose(torch.cat([half[0] for half in halves]), tiles, atol=1e-6)


def test_permutations_are_drawn_evenly(photo: NDArray[np.uint8]) -> None:
    method = jigsaw(config=Jigsaw.Config(permutations=10, puzzles=500))
    labels = method.draw(photo_crops(photo))[1]
    counts = torch.bincount(labels.flatten(), minlength=10)
    assert len(counts) == 10
    assert int(counts.min()) > 140
    assert int(counts.max()) < 260


class Knows(torch.nn.Module):
    """Answers each puzzle of the picture with its label, plus `off`."""

    def __init__(self, labels: Tensor, classes: int, off: int) -> None:
        super().__init__()
        self.logits = torch.nn.functional.one_hot((labels + off) % classes, classes).float()

    def forward(self, z: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("off", [0, 1])
def test_the_picture_shows_the_image_again_where_the_answer_is_right(photo: NDArray[np.uint8], off: int) -> None:
    method = jigsaw().eval()
    method.classifier = Knows(torch.arange(4) * 25, 100, off)  # type: ignore[assignment]
    batch = photo_crops(photo)
    ((caption, rows),) = method.picture(batch).items()
    assert caption.endswith(f"({0 if off else 4} of 4 right)")
    image, cell, tile = whole(batch, 3 * method.cell), method.cell, method.tile
    begin = (cell - tile) // 2
    there = []
    for slot in range(9):
        y, x = slot // 3 * cell + begin, slot % 3 * cell + begin
        part = (..., slice(y, y + tile), slice(x, x + tile))
        there.append(torch.tensor([torch.equal(a, b) for a, b in zip(rows[1][part], image[part], strict=True)]))
    assert bool(torch.stack(there).all()) == (not off)
    assert not torch.equal(rows[0], rows[1])
    # The shuffled puzzle has the same pixels.
    assert torch.equal(rows[0].flatten(2).sort(2).values, rows[1].flatten(2).sort(2).values)


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_a_gap_of_nothing_or_all_is_refused(gap: float) -> None:
    with pytest.raises(SelfsightError, match=f"gap {gap}: must lie between 0 and 1"):
        Jigsaw.Config(gap=gap)
