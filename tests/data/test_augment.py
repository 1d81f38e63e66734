"""Batched views equal torchvision's transforms on the same parameters, and are distributed like them."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from PIL import ImageOps
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torch import Tensor

from selfsight.data import augment
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError


@pytest.fixture(scope="module")
def photos() -> Batch:
    """Sixteen 80 x 80 crops of two real photos."""
    crops = []
    for photo in load_sample_images().images:
        for i in range(8):
            crops.append(photo[40 * i : 40 * i + 80, 60 * i : 60 * i + 80])
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return Batch(images, torch.ones(len(images)), torch.arange(len(images)))


def mean_difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference in grey levels."""
    return float((a - b).abs().mean() * 255)


@pytest.mark.parametrize("size", [32, 64, 80, 120])
def test_crop_equals_torchvisions_antialiased_resized_crop(photos: Batch, size: int) -> None:
    boxes = [(0, 0, 80, 80), (10, 20, 60, 30), (5, 0, 17, 70), (60, 60, 20, 20), (30, 7, 11, 13)]
    rows = list(itertools.islice(itertools.cycle(boxes), len(photos.images)))
    top, left, height, width = torch.tensor(rows).float().T / 80
    mine = augment.crop(photos.images, torch.stack([left, top, width, height], 1), size)
    theirs = torch.stack(
        [
            TF.resized_crop(image.float() / 255, *box, [size, size], antialias=True)
            for image, box in zip(photos.images, rows, strict=True)
        ]
    )
    assert mean_difference(mine, theirs) < 0.5


def test_crop_shows_the_true_shape_of_a_squeezed_original(photos: Batch) -> None:
    """A crop of a 2:1 original, squeezed to a square, equals the crop of the original itself."""
    wide = torch.nn.functional.interpolate(photos.images.float(), (80, 160), mode="bilinear") / 255
    squeezed = torch.nn.functional.interpolate(wide, (160, 160), mode="bilinear").mul(255).round().to(torch.uint8)
    aspect = torch.full((len(wide),), 2.0)
    torch.manual_seed(0)
    boxes = augment.random_boxes(aspect, (0.2, 0.4), (1.0, 1.0))
    assert torch.allclose(boxes[:, 2] * 2, boxes[:, 3])
    mine = augment.crop(squeezed, boxes, 40)
    theirs = torch.stack(
        [
            TF.resized_crop(
                torch.nn.functional.interpolate(image[None], (320, 640), mode="bilinear")[0],
                round(float(top) * 320),
                round(float(left) * 640),
                round(float(height) * 320),
                round(float(width) * 640),
                [40, 40],
                antialias=True,
            )
            for image, (left, top, width, height) in zip(wide, boxes, strict=True)
        ]
    )
    assert mean_difference(mine, theirs) < 2


def test_flips_and_rotations_are_exact(photos: Batch) -> None:
    images = photos.images
    full = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(images), 4)
    yes, no = torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images), dtype=torch.bool)
    plain = augment.crop(images, full, 80)
    assert torch.equal(plain, images.float() / 255)
    assert torch.equal(augment.crop(images, full, 80, hflip=yes, vflip=no), TF.hflip(plain))
    assert torch.equal(augment.crop(images, full, 80, hflip=no, vflip=yes), TF.vflip(plain))
    turns = torch.arange(len(images)) % 4
    turned = augment.rotate90(plain, turns)
    for k in range(len(images)):
        assert torch.equal(turned[k], TF.rotate(plain[k], 90.0 * int(turns[k])))


@pytest.mark.parametrize(
    ("mine", "theirs", "factors"),
    [
        (augment.brightness, TF.adjust_brightness, (0.2, 0.7, 1.0, 1.8)),
        (augment.contrast, TF.adjust_contrast, (0.2, 0.7, 1.0, 1.8)),
        (augment.saturation, TF.adjust_saturation, (0.0, 0.7, 1.0, 1.8)),
        (augment.hue, TF.adjust_hue, (-0.5, -0.2, 0.0, 0.1, 0.37, 0.5)),
    ],
)
def test_colour_equals_torchvision(
    photos: Batch,
    mine: Callable[[Tensor, Tensor], None],
    theirs: Callable[[Tensor, float], Tensor],
    factors: tuple[float, ...],
) -> None:
    x = photos.images.float() / 255
    rows = torch.tensor(list(itertools.islice(itertools.cycle(factors), len(x))))
    changed = x.clone()
    mine(changed, rows.view(-1, 1, 1, 1))
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(x, rows, strict=True)])
    assert mean_difference(changed, expected) < 0.05


def test_hue_of_pure_colours() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1, 0], [0.5, 0.5, 0.5], [0, 0, 0]])
    x = colours[:, :, None, None].clone()
    augment.hue(x, torch.full((6, 1, 1, 1), 1 / 3))
    expected = torch.tensor([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 1], [0.5, 0.5, 0.5], [0, 0, 0]])
    assert torch.allclose(x[:, :, 0, 0], expected, atol=1e-5)


def test_grey_solarize_and_blur_equal_torchvision(photos: Batch) -> None:
    x = photos.images.float() / 255
    grey = torch.stack([TF.rgb_to_grayscale(image) for image in x])
    assert mean_difference(augment.to_grey(x), grey) < 0.05
    assert torch.equal(augment.solarize(x), TF.solarize(x, 0.5))
    sigma = torch.linspace(0.1, 2.0, len(x))
    blurred = torch.stack([TF.gaussian_blur(i, [9, 9], [float(s)]) for i, s in zip(x, sigma, strict=True)])
    assert mean_difference(augment.blur(x, sigma, 9), blurred) < 0.5


def test_equalize_equals_pillows_and_leaves_what_else_is_drawn(photos: Batch) -> None:
    mine = augment.equalize(photos.images.float() / 255)
    for image, own in zip(photos.images, mine, strict=True):
        theirs = ImageOps.equalize(TF.to_pil_image(image))
        assert torch.equal((255 * own).round().to(torch.uint8), TF.pil_to_tensor(theirs))
    views = []
    for share in (0.0, 0.5):
        torch.manual_seed(1)
        views.append(View(40, brightness=0.4, equalize=share)(photos))
    equalized = [not torch.equal(a, b) for a, b in zip(*views, strict=True)]
    assert any(equalized)
    assert not all(equalized)
    for plain, other, differs in zip(*views, equalized, strict=True):
        if differs:
            assert torch.equal(other, augment.equalize(plain[None])[0])


def test_a_whole_view_equals_torchvisions_in_each_images_own_order(
    photos: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "fast_bf16", lambda device: False)
    view = View(40, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.3, blur=0.5, solarize=0.3)
    torch.manual_seed(3)
    drawn = view.draw(photos) | {"order": torch.randint(0, 24, (len(photos.images),))}
    assert len(set(drawn["order"].tolist())) > 4
    mine = view.apply(photos, drawn)
    assert torch.allclose(view.apply(photos, drawn, at_once=True), mine, atol=1e-6)
    monkeypatch.setattr(augment, "AT_ONCE", 3 * photos.images[0].numel())
    assert torch.allclose(view.apply(photos, drawn, at_once=True), mine, atol=1e-6), "in pieces"
    for i in range(len(photos.images)):
        x = augment.crop(photos.images[i : i + 1], drawn["boxes"][i : i + 1], 40)
        if drawn["hflip"][i]:
            x = TF.hflip(x)
        if drawn["jitter"][i]:
            for name in augment.ORDERS[int(drawn["order"][i])]:
                x = getattr(TF, f"adjust_{name}")(x, float(drawn[name][i]))
        if drawn["grey"][i]:
            x = TF.rgb_to_grayscale(x, 3)
        if drawn["blur"][i]:
            x = TF.gaussian_blur(x, [5, 5], [float(drawn["sigma"][i])])
        if drawn["solarize"][i]:
            # Values within rounding of the threshold may fall on either side: leave them out.
            sure = (x - 0.5).abs() > 0.01
            assert mean_difference(mine[i : i + 1][sure], TF.solarize(x, 0.5)[sure]) < 2
        else:
            assert mean_difference(mine[i : i + 1], x) < 2


@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.4])
def test_boxes_are_distributed_like_torchvisions(aspect: float) -> None:
    n, height = 3000, 300
    width = round(height * aspect)
    torch.manual_seed(0)
    mine = augment.random_boxes(torch.full((n,), aspect), (0.08, 1.0), (3 / 4, 4 / 3))
    transform = T.RandomResizedCrop(32, (0.08, 1.0), (3 / 4, 4 / 3))
    image = torch.zeros(1, height, width)
    theirs = [transform.make_params([image]) for _ in range(n)]
    for column, (name, scale) in enumerate([("left", width), ("top", height), ("width", width), ("height", height)]):
        values = mine[:, column].numpy() * scale
        reference = np.array([p[name] for p in theirs])
        # torchvision rounds to pixels; the largest gap between the two distributions is that of the same one.
        assert ks_2samp(values.round(), reference).statistic < 0.04, name


def test_colour_parameters_are_distributed_like_torchvisions() -> None:
    n = 2000
    batch = Batch(torch.zeros(n, 3, 2, 2, dtype=torch.uint8), torch.ones(n), torch.arange(n))
    torch.manual_seed(0)
    drawn = View(2, brightness=0.8, contrast=0.4, saturation=1.5, hue=0.2, jitter=0.8, grey=0.2).draw(batch)
    transform = T.ColorJitter(0.8, 0.4, 1.5, 0.2)
    theirs = [transform.make_params([batch.images[0]]) for _ in range(n)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        reference = np.array([float(p[f"{name}_factor"]) for p in theirs])
        assert ks_2samp(drawn[name][drawn["jitter"]].numpy(), reference).statistic < 0.05, name
    orders = torch.cat([View(2).draw(batch)["order"] for _ in range(20)]).bincount(minlength=24).double() / (20 * n)
    assert orders.min() > 1 / 24 - 0.015
    assert orders.max() < 1 / 24 + 0.015
    assert abs(float(drawn["jitter"].double().mean()) - 0.8) < 0.04
    assert abs(float(drawn["grey"].double().mean()) - 0.2) < 0.04


def test_a_seed_fixes_everything_and_images_differ(photos: Batch) -> None:
    view = View(32, brightness=0.4, hue=0.1, blur=0.5, vflip=0.5, rotate90=0.5)
    torch.manual_seed(5)
    first = view(photos)
    torch.manual_seed(5)
    assert torch.equal(first, view(photos))
    assert not torch.equal(first, view(photos))
    same = replace(photos, images=photos.images[:1].expand(8, -1, -1, -1), aspect=torch.ones(8))
    views = view(same)
    assert len({float(v.sum()) for v in views}) == 8


def test_many_bands_work_where_colour_transforms_are_off() -> None:
    batch = Batch(torch.randint(0, 256, (4, 13, 20, 20), dtype=torch.uint8), torch.ones(4), torch.arange(4))
    views = View(16, brightness=0.4, contrast=0.4, blur=1.0, rotate90=1.0)(batch)
    assert views.shape == (4, 13, 16, 16)
    with pytest.raises(SelfsightError, match="13 bands"):
        View(16, hue=0.1)(batch)


def test_grey_images_take_brightness_and_contrast_only(photos: Batch) -> None:
    grey = replace(photos, images=photos.images[:, :1].contiguous())
    views = View(24, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2)(grey)
    assert views.shape == (16, 1, 24, 24)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1


def test_whole_is_the_largest_centred_square(photos: Batch) -> None:
    tall = replace(photos, aspect=torch.full((16,), 0.5))  # the square cache of a 40 x 80 original
    seen = whole(tall, 40)
    expected = torch.stack(
        [TF.resized_crop(i.float() / 255, 20, 0, 40, 80, [40, 40], antialias=True) for i in photos.images]
    )
    assert mean_difference(seen, expected) < 0.5


def test_wrong_ranges_are_named() -> None:
    with pytest.raises(SelfsightError, match=r"hue 0\.7"):
        View(8, hue=0.7)
    with pytest.raises(SelfsightError, match=r"crops of 0\.5 to 1\.5 of the image: --crop-min"):
        View(8, scale=(0.5, 1.5))


def test_luma_weights_add_up() -> None:
    assert math.isclose(float(augment.to_grey(torch.ones(1, 3, 1, 1))), 1.0, rel_tol=1e-6)
