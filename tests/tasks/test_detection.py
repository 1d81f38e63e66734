"""Detectors on small and plain backbones: they learn boxes, and their average precision is COCO's own."""

import contextlib
import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from selfsight.errors import SelfsightError
from selfsight.tasks.detection import Boxes, Detector, Kind, mean_average_precision, one_class, surest
from tests.tasks.scenes import backbone, learn, rectangles

KINDS: tuple[Kind, ...] = ("fcos", "retinanet", "fasterrcnn")


def scene(n: int, channels: int = 3) -> tuple[Tensor, list[Boxes]]:
    """Images of a rectangle of class 0 and one of class 1."""
    images, boxes, _ = rectangles(n, channels)
    return images, [{"boxes": each, "labels": torch.tensor([0, 1])} for each in boxes]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


NONE: Boxes = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_losses_are_finite_and_reach_all_weights_though_an_image_has_no_object(name: str, kind: Kind) -> None:
    detector = Detector(backbone(name, channels=4), 2, 64, kind, width=32)
    images, targets = scene(3, channels=4)
    losses = detector(images, [*targets[:2], NONE])
    assert all(loss.isfinite() for loss in losses.values())
    total(losses).backward()
    unreached = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []
    first = {n: p for n, p in detector.backbone.named_parameters() if "conv1.0" in n or "patch_embed" in n}
    assert first
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first.values())
    alone = detector(images, [NONE] * 3)
    assert all(loss.isfinite() for loss in alone.values())


def test_all_sides_of_an_untrained_fcoss_boxes_have_a_gradient() -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, width=32)
    sides: list[Tensor] = []
    head = detector.head.get_submodule("head.regression_head")
    head.register_forward_hook(lambda _, x, y: sides.append(y[0].detach()))
    detector(*scene(4))
    assert float(sides[0].min()) > 2, "strides; zero where the ReLU has none"
    assert float(sides[0].max()) < 6


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])  # Faster R-CNN's regions take a minute on a CPU
def test_learns_a_few_images(kind: Kind) -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, kind, width=32)
    images, targets = scene(4)
    learn(detector, lambda: total(detector(images, targets)), steps=80)
    with torch.no_grad():
        found = detector.eval()(images)
    scores = mean_average_precision(found, targets, ["red", "blue"])
    assert scores["map_50"] > 0.8
    assert set(scores["per_class"]) == {"red", "blue"}


@pytest.mark.parametrize(
    ("name", "pretrained_at", "size", "finest", "strides"),
    [
        ("test_resnet", 96, 96, 8, [8, 16, 32]),
        ("test_resnet", 96, 512, 8, [8, 16, 32, 64]),
        ("test_resnet", 96, 640, 8, [8, 16, 32, 64, 128]),
        ("test_resnet", 96, 96, 4, [4, 8, 16, 32]),
        ("test_resnet", 32, 96, 8, [8, 16]),  # no pool
        ("test_resnet", 32, 256, 4, [4, 8, 16, 32]),
        ("test_vit", 224, 96, 8, [8, 16]),
        ("test_vit", 224, 512, 4, [4, 8, 16, 32, 64]),
        ("test_vit", 28, 64, 8, [8]),
        ("test_vit", 28, 128, 4, [4, 8, 16]),
    ],
)
def test_levels_suit_images_and_backbone(
    name: str, pretrained_at: int, size: int, finest: int, strides: list[int]
) -> None:
    levels: Any = Detector(backbone(name, pretrained_at), 2, size, width=32, finest=finest).head.backbone
    assert levels.strides == strides
    with torch.no_grad():
        maps = levels(torch.rand(1, 3, size, size))
    assert [tuple(level.shape) for level in maps.values()] == [(1, 32, size // s, size // s) for s in strides]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_boxes_of_known_classes_in_order(kind: Kind) -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, kind, width=32).eval()
    head: Any = detector.head
    for part in (head, getattr(head, "roi_heads", head)):
        part.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = detector(torch.rand(1, 3, 64, 64))
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert 0 < len(boxes) == len(scores) == len(labels) <= 100
    assert boxes.dtype == scores.dtype == torch.float32
    assert set(labels.tolist()) <= {0, 1}
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (scores.diff() <= 0).all()
    # bfloat16 knows no more than 8 places between 32 and 64 pixels: quarters.
    assert ((boxes[boxes > 32] * 4) % 1 > 0).any()


def test_images_are_not_normalized_twice() -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, width=32).eval()
    images = torch.rand(2, 3, 64, 64)
    seen: list[Tensor] = []
    levels: Any = detector.head.backbone
    levels.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    detector(images)
    assert torch.equal(seen[0], images)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, width=32)
    detector.freeze_backbone()
    detector.train()
    before = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    images, targets = scene(2)
    total(detector(images, targets)).backward()
    assert all(torch.equal(value, before[name]) for name, value in detector.backbone.state_dict().items())
    assert all(p.grad is None for p in detector.backbone.parameters())
    assert detector.head.training


def test_backbone_and_head_share_no_parameter() -> None:
    detector = Detector(backbone("test_vit"), 2, 64, width=32)
    parts = [{id(p) for p in part.parameters()} for part in (detector.backbone, detector.head)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in detector.parameters()}


def test_a_copy_sees_with_its_own_backbone() -> None:
    detector = Detector(backbone("test_resnet"), 2, 64, width=32).eval()
    copied: Any = copy.deepcopy(detector).head
    original: Any = detector.head
    images = torch.rand(1, 3, 64, 64)
    before = copied.backbone(images)["0"]
    for parameter in detector.backbone.parameters():
        parameter.data.zero_()
    assert torch.equal(copied.backbone(images)["0"], before)
    assert not torch.equal(original.backbone(images)["0"], before)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(SelfsightError, match="image size 80: test_resnet needs a multiple of 32"):
        Detector(backbone("test_resnet"), 2, 80)
    with pytest.raises(SelfsightError, match=r"width 40: .* multiple of 32"):
        Detector(backbone("test_resnet"), 2, 64, width=40)
    with pytest.raises(SelfsightError, match=r"fasterrcnn: .* powers of two, those of test_vit are \[7, 14\]"):
        Detector(backbone("test_vit", 98), 2, 98, "fasterrcnn")


# ------------------------------------------------------------------------------------------- average precision


def random_scene(seed: int, images: int, classes: int) -> tuple[list[Boxes], list[Boxes]]:
    """Objects of `classes` classes but the last, and predictions: shifted copies of some, and others."""
    rng = np.random.default_rng(seed)
    targets, predictions = [], []
    for _ in range(images):
        n = int(rng.integers(0, 12))
        corner, size = rng.uniform(0, 60, (n, 2)), rng.uniform(4, 60, (n, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(0, classes - 1, n)
        copied = rng.random(n) < 0.8
        moved = boxes[copied] + rng.normal(0, 2, (int(copied.sum()), 4))
        corner, size = rng.uniform(0, 60, (5, 2)), rng.uniform(4, 60, (5, 2))
        others = np.concatenate([corner, corner + size], 1)
        guessed = np.concatenate([moved, others])
        guesses = np.concatenate([labels[copied], rng.integers(0, classes, 5)])
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
        predictions.append(
            {
                "boxes": torch.tensor(guessed, dtype=torch.float32),
                "labels": torch.tensor(guesses),
                "scores": torch.tensor(rng.random(len(guesses)), dtype=torch.float32),
            }
        )
    return predictions, targets


def coco_scores(predictions: list[Boxes], targets: list[Boxes], classes: int) -> tuple[list[float], dict[int, float]]:
    """Average precision, that at 0.5 and recall by pycocotools, and precision of each class that occurs."""

    def rows(objects: list[Boxes]) -> list[dict[str, Any]]:
        return [
            {
                "image_id": image,
                "category_id": int(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": score,
            }
            for image, each in enumerate(objects)
            for (x0, y0, x1, y1), label, score in zip(
                each["boxes"].tolist(),
                each["labels"],
                each.get("scores", torch.ones(len(each["labels"]))).tolist(),
                strict=True,
            )
        ]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(targets))],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [{**row, "id": i + 1} for i, row in enumerate(rows(targets))],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
    each = {k: float(p.mean()) for k, p in enumerate(precision.transpose(2, 0, 1)) if p.max() > -1}
    return [evaluation.stats[i] for i in (0, 1, 8)], each


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    predictions, targets = random_scene(seed, images=12, classes=4)
    scores = mean_average_precision(predictions, targets, ["a", "b", "c", "d"])
    expected, each = coco_scores(predictions, targets, 4)
    assert [scores["map"], scores["map_50"], scores["mar"]] == pytest.approx(expected, abs=1e-6)
    assert scores["per_class"] == pytest.approx({"abcd"[k]: precision for k, precision in each.items()}, abs=1e-6)
    assert set(scores["per_class"]) == {"a", "b", "c"}  # no image has the last


def test_a_detector_finds_as_many_objects_as_asked_and_all_count() -> None:
    places = [[x, y, x + 8.0, y + 8] for x in range(0, 640, 40) for y in range(0, 320, 40)]
    truth: Boxes = {"boxes": torch.tensor(places), "labels": torch.zeros(len(places), dtype=torch.int64)}
    found: Boxes = {**truth, "scores": torch.linspace(0.9, 0.5, len(places))}
    assert mean_average_precision([found], [truth], ["a"])["mar"] == pytest.approx(100 / 128)
    assert mean_average_precision([found], [truth], ["a"], 200)["mar"] == 1
    assert mean_average_precision([found], [truth], ["a"], 200)["map"] == 1
    for kind in KINDS:
        torch.manual_seed(0)
        detector = Detector(backbone("test_resnet"), 2, 64, kind, width=32, most=3).eval()
        with torch.no_grad():
            counts = [len(boxes["boxes"]) for boxes in detector(torch.rand(2, 3, 64, 64))]
        assert max(counts) <= 3, kind


def test_average_precision_is_exact_where_an_overlap_meets_a_threshold() -> None:
    for width in range(11, 20):  # IoU 0.55, 0.6, ...
        truth: Boxes = {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([0])}
        guess: Boxes = {**truth, "boxes": torch.tensor([[0.0, 0, width, 20]]), "scores": torch.tensor([0.9])}
        (expected, *_), _ = coco_scores([guess], [truth], 1)
        assert mean_average_precision([guess], [truth], ["a"])["map"] == pytest.approx(expected, abs=1e-6)


def test_without_classes_a_place_counts_once_whatever_it_is_taken_for() -> None:
    place, other = [0.0, 0, 20, 20], [40.0, 40, 60, 60]
    truth: Boxes = {"boxes": torch.tensor([place, other]), "labels": torch.tensor([0, 1])}
    found: Boxes = {
        "boxes": torch.tensor([place, other, place]),
        "labels": torch.tensor([1, 0, 0]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    alike = one_class(found)
    assert alike["scores"].tolist() == pytest.approx([0.9, 0.8]), "the surest of a place stays"
    assert mean_average_precision([found], [truth], ["a", "b"])["map_50"] < 0.5
    assert mean_average_precision([alike], [one_class(truth)], ["object"])["map_50"] == 1
    assert len(one_class({**NONE, "scores": torch.zeros(0)})["boxes"]) == 0
    assert surest(found, 0.75)["labels"].tolist() == [1, 0], "its class is the surest's"
    assert surest(found, 0.85)["labels"].tolist() == [1]
    half = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5.5]])  # an IoU of 0.55: one to who looks, two to the metrics
    overlapping = {"boxes": half, "labels": torch.zeros(2, dtype=torch.long), "scores": torch.tensor([0.9, 0.8])}
    assert (len(surest(overlapping)["boxes"]), len(one_class(overlapping)["boxes"])) == (1, 2)


def test_average_precision_without_predictions_is_zero_and_without_objects_unknown() -> None:
    targets: list[Boxes] = [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1])}]
    nothing: list[Boxes] = [{**NONE, "scores": torch.zeros(0)}]
    scores = mean_average_precision(nothing, targets, ["a", "b"])
    assert scores == {"map": 0.0, "map_50": 0.0, "mar": 0.0, "per_class": {"b": 0.0}}
    scores = mean_average_precision(nothing, [NONE], ["a", "b"])
    assert math.isnan(scores["map"])
    assert scores["per_class"] == {}
