"""Views: boxes and masks move with the image, and predictions find their way back."""

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from selfsight.tasks.augment import DenseView, whole

GREY = (0.5, 0.5, 0.5)


def painted(height: int, width: int, boxes: list[list[int]], channels: int = 3) -> Tensor:
    """A black image (channels, height, width) uint8 with white boxes."""
    image = torch.zeros(channels, height, width, dtype=torch.uint8)
    for left, top, right, bottom in boxes:
        image[:, top:bottom, left:right] = 255
    return image


def as_boxes(boxes: list[list[int]], height: int, width: int) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), format="XYXY", canvas_size=(height, width)
    )


def bounds(inside: Tensor) -> list[float]:
    """The box around the true pixels of (H, W)."""
    y, x = inside.nonzero().T
    return [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (300, 200), (20, 30)])
def test_boxes_and_masks_move_with_the_training_view(height: int, width: int) -> None:
    torch.manual_seed(0)
    box = [width // 4, height // 3, width // 4 + width // 3, height // 3 + height // 3]
    image = painted(height, width, [box])
    mask = tv_tensors.Mask((image[0] > 0).long())
    view = DenseView(64, (0.0, 0.0, 0.0), (0.5, 2.0), jitter=0.0)
    seen = 0
    for _ in range(30):
        state = torch.get_rng_state()
        out, target = view(image, {"boxes": as_boxes([box], height, width), "labels": torch.tensor([7])})
        torch.set_rng_state(state)
        same, masks = view(image, {"mask": mask})
        assert out.shape == (3, 64, 64)
        assert out.dtype == torch.float32
        assert torch.equal(out, same)
        assert masks["mask"].shape == (64, 64)
        assert type(target["boxes"]) is type(masks["mask"]) is type(out) is Tensor
        if len(target["boxes"]):
            seen += 1
            assert target["labels"].tolist() == [7]
            assert bounds(out[0] > 0.5) == pytest.approx(target["boxes"][0].tolist(), abs=1)
            assert bounds(masks["mask"] == 1) == pytest.approx(target["boxes"][0].tolist(), abs=1)
    assert seen > 15


@pytest.mark.parametrize(("height", "width"), [(1, 600), (600, 1)])
def test_a_line_is_an_image_of_one_pixel_in_width(height: int, width: int) -> None:
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    target = {"boxes": as_boxes([[0, 0, width, height]], height, width), "labels": torch.tensor([1])}
    view, _, placement = whole(image, target, 64, (0.0, 0.0, 0.0))
    assert sorted(placement.shown) == [1, 64]
    assert float(view.sum()) == 3 * 64
    assert DenseView(64, GREY, (0.5, 2.0))(image, target)[0].shape == (3, 64, 64)


def test_flips_half_of_the_views_or_none() -> None:
    torch.manual_seed(0)
    image, target = painted(64, 64, [[0, 0, 32, 64]]), {"boxes": as_boxes([[0, 0, 32, 64]], 64, 64)}
    sides = [float(DenseView(64, GREY, (1, 1), jitter=0)(image, target)[1]["boxes"][0, 0]) for _ in range(40)]
    assert 10 < sides.count(32) < 30
    sides = [float(DenseView(64, GREY, (1, 1), False, 0)(image, target)[1]["boxes"][0, 0]) for _ in range(40)]
    assert sides == [0] * 40


def test_objects_that_are_mostly_out_of_view_are_no_target() -> None:
    torch.manual_seed(0)
    boxes = [[x, y, x + 20, y + 20] for x in range(0, 100, 20) for y in range(0, 100, 20)]
    labels = torch.arange(len(boxes))
    shares = []
    for _ in range(20):
        view = DenseView(50, GREY, (2, 2), hflip=False)
        known = {"boxes": as_boxes(boxes, 100, 100), "labels": labels}
        _, target = view(torch.zeros(3, 100, 100, dtype=torch.uint8), known)
        corners = target["boxes"]
        assert len(corners) == len(target["labels"])
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        shares += (areas / 20**2).tolist()
    assert min(shares) >= 0.3
    assert min(shares) < 0.5
    assert max(shares) == 1


def test_an_object_as_large_as_its_image_stays() -> None:
    torch.manual_seed(0)
    for height in range(41, 61):
        target = {"boxes": as_boxes([[0, 0, 61, height]], height, 61)}
        _, seen = DenseView(64, GREY, (1, 1))(torch.zeros(3, height, 61, dtype=torch.uint8), target)
        assert len(seen["boxes"]) == 1


def test_what_lies_outside_is_of_the_mean_colour_and_ignored() -> None:
    torch.manual_seed(0)
    image = painted(40, 40, [[0, 0, 40, 40]])
    out, target = DenseView(80, (0.2, 0.4, 0.6), (0.5, 0.5), jitter=0)(
        image, {"mask": tv_tensors.Mask(torch.ones(40, 40, dtype=torch.int64))}
    )
    outside = target["mask"] == 255
    assert outside.sum() == 80 * 80 - 40 * 40
    assert out[:, outside].mean(1).tolist() == pytest.approx([0.2, 0.4, 0.6], abs=0.003)
    assert (out[:, ~outside] == 1).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels_and_images_without_objects(channels: int) -> None:
    torch.manual_seed(0)
    nothing = {"boxes": as_boxes([], 30, 40), "labels": torch.zeros(0, dtype=torch.int64)}
    image = torch.randint(256, (channels, 30, 40), dtype=torch.uint8)
    out, target = DenseView(32, (0.5,) * channels, (0.5, 2.0))(image, nothing)
    assert out.shape == (channels, 32, 32)
    assert target["boxes"].shape == (0, 4)
    out, target, _ = whole(image, nothing, 32, (0.5,) * channels)
    assert out.shape == (channels, 32, 32)
    assert target["boxes"].shape == (0, 4)


def test_jitter_changes_colours_only_of_colour_images() -> None:
    torch.manual_seed(0)
    for channels in (1, 3):
        image = torch.full((channels, 32, 32), 100, dtype=torch.uint8)
        outs = [DenseView(32, (0.5,) * channels, (1, 1))(image, {})[0] for _ in range(5)]
        assert all(torch.equal(outs[0], out) for out in outs) == (channels == 1)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (301, 200), (20, 33), (64, 64)])
def test_the_evaluation_view_shows_all_and_leads_back(height: int, width: int) -> None:
    box = [width // 4, height // 3, width // 4 + width // 3, height // 3 + height // 3]
    image = painted(height, width, [box])
    mask = tv_tensors.Mask((image[0] > 0).long())
    out, target, place = whole(image, {"boxes": as_boxes([box], height, width)}, 64, GREY)
    _, masks, _ = whole(image, {"mask": mask}, 64, GREY)
    assert out.shape == (3, 64, 64)
    assert max(place.shown) == 64
    assert bounds(out[0] > 0.75) == pytest.approx(target["boxes"][0].tolist(), abs=1)
    assert bounds(masks["mask"] == 1) == pytest.approx(target["boxes"][0].tolist(), abs=1)
    assert (masks["mask"] == 255).sum() == 64 * 64 - place.shown[0] * place.shown[1]
    assert place.boxes_back(target["boxes"])[0].tolist() == pytest.approx(box, abs=1e-3)
    assert place.boxes_back(torch.tensor([[-3.0, -4, 90, 90]])).tolist() == [[0, 0, width, height]]
    back = place.maps_back(out)
    assert back.shape == (3, height, width)
    assert bounds(back[0] > 0.5) == pytest.approx(box, abs=max(height, width) / 64 + 1)
    logits = torch.randn(5, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(place.classes_back(logits), place.maps_back(logits).argmax(0))
