"""The transforms are those drawn, their bins too; they stay inside the image; the loss is that of a plain loop."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfsight import backbones, optim
from selfsight.data.augment import warp, whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.affine import Affine, binned, matrices, reach

WIDE = Affine.Config(turn=180.0, zoom=1.3, shear=0.3)


def a_method(size: int = 16, **settings: object) -> Affine:
    torch.manual_seed(0)
    spec = backbones.plan("test_resnet", size, 3, (0.5,) * 3, (0.25,) * 3)
    return Affine(backbones.create(spec), Affine.Config(**settings))  # type: ignore[arg-type]


def photo_crops(photo: NDArray[np.uint8], n: int = 12, side: int = 64) -> Batch:
    crops = [torch.from_numpy(photo[20 * i : 20 * i + side, 30 * i : 30 * i + side].copy()) for i in range(n)]
    return Batch(torch.stack(crops).permute(0, 3, 1, 2), torch.ones(n), torch.arange(n))


def coordinates(side: int) -> Tensor:
    """An image (1, 2, side, side) of each pixel's x and y, in pixels from its centre."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return torch.stack([x, y])[None] - side / 2


def test_each_pixel_comes_from_where_the_map_says() -> None:
    """An image of its own coordinates, in which bilinear samples are exact, shows where each pixel was taken from."""
    torch.manual_seed(0)
    maps = matrices(torch.rand(1, 5, 3) * 2 - 1, WIDE)
    views = warp(coordinates(40), maps, 16)
    assert views.shape == (1, 5, 2, 16, 16)
    for view, (first, second) in zip(views[0], maps[0].tolist(), strict=True):
        for row in range(16):
            for column in range(16):
                x, y = column + 0.5 - 8, row + 0.5 - 8
                expected = [first[0] * x + first[1] * y, second[0] * x + second[1] * y]
                assert view[:, row, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_bins_are_those_of_the_transforms_that_the_backbone_sees() -> None:
    """Turn, zoom and shear measured on the view of an image of coordinates, by the Gram-Schmidt of its two axes."""
    config, bins = Affine.Config(), (15, 5, 5)
    torch.manual_seed(1)
    drawn = torch.rand(1, 60, 3) * 2 - 1
    seen = warp(coordinates(60), matrices(drawn, config), 8)[0]
    across, down = seen[:, :, 4, 5] - seen[:, :, 4, 4], seen[:, :, 5, 4] - seen[:, :, 4, 4]  # (60, 2): a pixel's way
    labels = binned(drawn, bins)[0]
    for right, below, label in zip(across.tolist(), down.tolist(), labels.tolist(), strict=True):
        zoom = math.hypot(*right)
        angle = math.degrees(math.atan2(right[1], right[0]))
        shear = (right[0] * below[0] + right[1] * below[1]) / zoom**2
        shares = [angle / 180, math.log(zoom) / math.log(1.2), shear / 0.2]
        for share, count, found in zip(shares, bins, label, strict=True):
            assert -1 + 2 * found / count - 1e-3 <= share <= -1 + 2 * (found + 1) / count + 1e-3
    assert labels.amin(0).tolist() == [0, 0, 0]
    assert labels.amax(0).tolist() == [14, 4, 4]


def test_the_ends_fall_into_the_outermost_bins_and_no_change_into_the_middle() -> None:
    assert binned(torch.tensor([[-1.0] * 3, [0.0] * 3, [1.0] * 3]), (15, 5, 3)).tolist() == [
        [0, 0, 0],
        [7, 2, 1],
        [14, 4, 2],
    ]


@pytest.mark.parametrize("config", [Affine.Config(), WIDE, Affine.Config(turn=20.0)])
def test_no_transform_looks_outside_the_crop(config: Affine.Config) -> None:
    drawn = torch.cat(
        [torch.rand(1, 2000, 3) * 2 - 1, torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[None]], 1
    )
    corners = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    farthest = float((matrices(drawn, config) @ corners).abs().max())
    assert farthest <= reach(config) + 1e-5
    assert farthest > 0.97 * reach(config), "and the crop is no larger than it must be"


def test_a_blank_image_looks_the_same_in_all_transforms() -> None:
    """No border, no corner gives a transform away, not even the largest."""
    method, size = a_method(), 16
    drawn = torch.cat([torch.rand(2, 200, 3) * 2 - 1, torch.ones(2, 1, 3)], 1)
    area = torch.full((2, 3, method.view.size, method.view.size), 0.3)
    area[1] = torch.rand(3, 1, 1)
    views = method.transformed(area, drawn)
    assert views.shape == (2, 202, 3, size, size)
    assert float((views - area[:, None, :, :1, :1]).abs().max()) < 1e-6


def test_all_views_are_sampled_alike() -> None:
    """Noise is smoothed about as much in each turn, in none too: sharpness does not tell it."""
    torch.manual_seed(0)
    method = a_method(32, turn=90.0)
    area = torch.rand(8, 3, method.view.size, method.view.size)
    drawn = torch.zeros(8, 9, 3)
    drawn[:, :, 0] = torch.linspace(-1, 1, 9)
    views = method.transformed(area, drawn)  # (8, 10, 3, 32, 32)
    deviation = views.std((0, 2, 3, 4))
    assert float(deviation.max() / deviation.min()) < 1.35


def test_forward_is_the_sum_of_three_cross_entropies(photo: NDArray[np.uint8]) -> None:
    """One pair of views and one answer at a time."""
    method = a_method(transforms=2).eval()
    batch = photo_crops(photo, 3)
    torch.manual_seed(5)
    out = method(batch, 0.0)
    torch.manual_seed(5)
    drawn = torch.empty(18).uniform_(-1, 1).view(3, 2, 3)
    area = method.view(batch)
    total, right = 0.0, [0, 0, 0]
    with torch.no_grad():
        for i in range(3):
            for t in range(2):
                views = method.transformed(area[i : i + 1], drawn[i : i + 1, t : t + 1])[0]
                z = torch.cat([method.backbone(views[:1]), method.backbone(views[1:])], 1)
                answers = method.head(z)[0].split([15, 5, 5])
                for k, (answer, count) in enumerate(zip(answers, (15, 5, 5), strict=True)):
                    label = math.floor((float(drawn[i, t, k]) + 1) / 2 * count)
                    total -= math.log(float(answer.softmax(0)[label])) / 6
                    right[k] += int(answer.argmax()) == label
    assert float(out["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(out["chance"]) == pytest.approx(math.log(15) + 2 * math.log(5))
    assert [float(out[f"{k}_accuracy"]) for k in ("turn", "zoom", "shear")] == pytest.approx([r / 6 for r in right])
    assert float(out["accuracy"]) == pytest.approx(sum(right) / 18)


def test_two_processes_see_what_one_would(photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = a_method().eval(), photo_crops(photo, 4)
    torch.manual_seed(5)
    alone, halves = float(method(batch, 0.0)["loss"].detach()), []
    for rank in range(2):
        monkeypatch.setattr("selfsight.data.augment.process", lambda rank=rank: (rank, 2))
        mine = slice(2 * rank, 2 * rank + 2)
        torch.manual_seed(5)
        half = method(Batch(batch.images[mine], batch.aspect[mine], batch.index[mine]), 0.0)
        halves.append(float(half["loss"].detach()))
    assert sum(halves) / 2 == pytest.approx(alone, rel=1e-4)


class Answers(torch.nn.Module):
    """A head that gives these answers (B, 3)."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        hot = [torch.nn.functional.one_hot(a, n) for a, n in zip(answers.T, (15, 5, 5), strict=True)]
        self.logits = torch.cat(hot, 1).float()

    def forward(self, pairs: Tensor) -> Tensor:
        return self.logits


def test_the_picture_puts_images_back_by_what_was_answered(photo: NDArray[np.uint8]) -> None:
    """Answers that are right leave less than a bin of error, wrong ones much more."""
    method, batch = a_method(32).eval(), photo_crops(photo)
    place = torch.arange(10)[:, None] * torch.tensor([0.8191725, 0.6710436, 0.5497005])
    labels = binned((place + 0.5) % 1 * 2 - 1, (15, 5, 5))
    error = []
    for answers, told in ((labels, "turn 10, zoom 10, shear 10"), ((labels + 2) % 5, "zoom 0, shear 0")):
        method.head = Answers(answers)  # type: ignore[assignment]
        ((caption, (image, seen, straight)),) = method.picture(batch).items()
        assert f"{told})" in caption
        error.append(float((straight - image).square().mean()))
    area = whole(batch, method.view.size)[:10]
    assert torch.allclose(image, warp(area, torch.eye(2).expand(10, 1, 2, 2), 32)[:, 0])
    assert error[0] < 0.5 * float((seen - image).square().mean())
    assert error[0] < 0.5 * error[1]


def test_it_learns_to_tell_turns_in_a_few_steps(photo: NDArray[np.uint8]) -> None:
    method, batch = a_method(turn=90.0, bins=(3, 3, 3)), photo_crops(photo, 16, 48)
    optimizer = optim.build(method, Affine.optim)
    optim.set_rate(optimizer.param_groups, 3e-3)
    accuracies = []
    for step in range(30):
        out = method(batch, step / 30)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        accuracies.append(float(out["turn_accuracy"]))
    assert sum(accuracies[-5:]) / 5 > 0.5


@pytest.mark.parametrize(
    "settings", [{"turn": 0.0}, {"turn": 181.0}, {"zoom": 1.0}, {"shear": 0.0}, {"bins": (1, 5, 5)}]
)
def test_transforms_that_cannot_be_told_are_refused(settings: dict[str, object]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SelfsightError) as error:
        Affine.Config(**settings)  # type: ignore[arg-type]
    assert (
        f"{name} {value:g}" in str(error.value) if isinstance(value, float) else f"{name} {value}" in str(error.value)
    )
