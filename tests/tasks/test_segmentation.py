"""Segmenters on small and plain backbones: every decoder learns, at any size; the scores are counts of pixels."""

import pytest
import torch

from selfsight.errors import SelfsightError
from selfsight.tasks.segmentation import Decoder, Segmenter, segmentation_loss, segmentation_scores
from tests.tasks.scenes import backbone, learn, rectangles

CASES: list[tuple[str, Decoder]] = [
    ("test_resnet", "unet"),
    ("test_resnet", "fpn"),
    ("test_resnet", "linear"),
    ("test_convnext", "unet"),
    ("test_vit", "dpt"),
    ("test_vit", "linear"),
]


@pytest.mark.parametrize(("name", "decoder"), CASES)
@pytest.mark.parametrize("pretrained_at", [32, 98])  # of a small stem or patch, and of a patch of 14
def test_logits_are_of_the_images_size(name: str, decoder: Decoder, pretrained_at: int) -> None:
    segmenter = Segmenter(backbone(name, pretrained_at, channels=2), 5, decoder, width=32).eval()
    with torch.no_grad():
        for height, width in ((64, 64), (64, 96), (48, 50)):
            assert segmenter(torch.rand(2, 2, height, width)).shape == (2, 5, height, width)


@pytest.mark.parametrize(("name", "decoder"), CASES)
def test_gradients_reach_all_weights_but_those_of_a_frozen_backbone(name: str, decoder: Decoder) -> None:
    segmenter = Segmenter(backbone(name), 3, decoder, width=32).train()
    images, _, masks = rectangles(2)
    segmentation_loss(segmenter(images), masks).backward()
    reached = {n for n, p in segmenter.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    heads = {n for n, _ in segmenter.named_parameters() if n.startswith("head.")}
    assert heads <= reached
    backbones_ = {n for n in reached if n.startswith("backbone.")}
    assert bool(backbones_) == (decoder != "linear")
    assert segmenter.backbone.training == (decoder != "linear")


@pytest.mark.parametrize(("name", "decoder"), [("test_resnet", "unet"), ("test_resnet", "fpn"), ("test_vit", "dpt")])
def test_learns_a_few_images(name: str, decoder: Decoder) -> None:
    segmenter = Segmenter(backbone(name), 3, decoder, width=32)
    images, _, masks = rectangles(4)
    learn(segmenter, lambda: segmentation_loss(segmenter(images), masks), steps=40)
    with torch.no_grad():
        predicted = segmenter.eval()(images).argmax(1)
    scores = segmentation_scores([predicted], [masks], ["ground", "red", "blue"])
    assert scores["miou"] > 0.8


def test_the_decoder_suits_the_backbone() -> None:
    assert type(Segmenter(backbone("test_resnet"), 3).head).__name__ == "Unet"
    assert type(Segmenter(backbone("test_vit"), 3).head).__name__ == "Dpt"
    with pytest.raises(SelfsightError, match=r"decoder unet: .*test_vit.* use dpt or linear"):
        Segmenter(backbone("test_vit"), 3, "unet")
    with pytest.raises(SelfsightError, match=r"decoder dpt: .*test_resnet.* use unet"):
        Segmenter(backbone("test_resnet"), 3, "dpt")
    with pytest.raises(SelfsightError, match=r"width 40: .* multiple of 32"):
        Segmenter(backbone("test_vit"), 3, width=40)


def test_ignored_pixels_neither_train_nor_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    masks = torch.randint(3, (2, 8, 8))
    masks[:, :, 4:] = 255
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, masks), logits)
    assert (gradient[..., 4:] == 0).all()
    assert (gradient[..., :4] != 0).any()
    assert segmentation_loss(logits, masks).item() == pytest.approx(
        segmentation_loss(logits[..., :4], masks[..., :4]).item(), abs=1e-6
    )
    predicted = logits.argmax(1)
    names = ["a", "b", "c"]
    left = segmentation_scores([predicted[..., :4]], [masks[..., :4]], names)
    assert segmentation_scores([predicted], [masks], names) == left
    nothing = torch.full_like(masks, 255)
    assert segmentation_loss(logits, nothing) == 0
    with pytest.raises(SelfsightError, match="no pixel"):
        segmentation_scores([predicted], [nothing], names)


def test_scores_are_those_of_plain_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(9, 7), (12, 30), (5, 5)]
    masks = [torch.randint(4, size, generator=generator) for size in sizes]  # the last of five classes never occurs
    predictions = [
        torch.where(torch.rand(m.shape, generator=generator) < 0.6, m, torch.randint(4, m.shape, generator=generator))
        for m in masks
    ]
    scores = segmentation_scores(predictions, masks, "abcde")
    true, guess = (torch.cat([part.flatten() for part in parts]) for parts in (masks, predictions))
    for k, name in enumerate("abcd"):
        both = int(((true == k) & (guess == k)).sum())
        either = int(((true == k) | (guess == k)).sum())
        assert scores["iou_per_class"][name] == pytest.approx(both / either, abs=1e-9)
        assert scores["dice_per_class"][name] == pytest.approx(2 * both / (both + either), abs=1e-9)
    assert set(scores["dice_per_class"]) == set("abcd")
    assert scores["dice"] == pytest.approx(sum(scores["dice_per_class"].values()) / 4)
    assert scores["miou"] == pytest.approx(sum(scores["iou_per_class"].values()) / 4)
    assert scores["accuracy"] == pytest.approx(float((true == guess).double().mean()))
    predictions[0][0, 0] = 4  # what the masks never show costs the class that it was taken for, not a fifth of the mean
    other = segmentation_scores(predictions, masks, "abcde")
    assert other["iou_per_class"]["e"] == 0
    assert other["miou"] == pytest.approx(scores["miou"], abs=0.01)
