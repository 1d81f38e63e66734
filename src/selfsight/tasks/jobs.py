"""What a trainer must know of detection and of segmentation: models, examples, losses and scores, one class each."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from selfsight.backbones import Backbone
from selfsight.data import BoxSet, MaskSet
from selfsight.data.mask_files import IGNORE
from selfsight.evaluate.features import evaluating
from selfsight.progress import track
from selfsight.tasks.augment import DenseView, Placement, Target, whole
from selfsight.tasks.dense import DenseModel
from selfsight.tasks.detection import Boxes, Detector, Kind, mean_average_precision
from selfsight.tasks.labelled import Labelled, scaled
from selfsight.tasks.segmentation import Decoder, Segmenter, segmentation_loss, segmentation_scores

Scores = dict[str, float]
WIDTH = 96
"""Channels where the settings leave them open: those that suit a CPU."""


class Job(Protocol):
    """One task on one pair of data sets."""

    task: ClassVar[str]
    metric: ClassVar[str]
    """Of the scores, the one that chooses the best weights and is drawn as a curve."""

    @property
    def image_size(self) -> int:
        """Height and width of the views in pixels."""

    @property
    def train(self) -> Labelled[Any]:
        """What to learn from: its part 'train'."""

    @property
    def test(self) -> Labelled[Any]:
        """What to test on: its part 'test'."""

    def model(self, backbone: Backbone) -> DenseModel:
        """Return a fresh head on this backbone."""

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a random view (C, S, S) in [0, 1] of a training image, and what it shows."""

    def loss(self, model: DenseModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return the loss of a batch (B, C, S, S)."""

    def scores(self, model: DenseModel, labelled: Labelled[Any], rows: NDArray[np.int64]) -> Scores:
        """Return how good the model is on these images, each number 0 to 1."""


@dataclass(frozen=True)
class DetectionConfig:
    """The detector."""

    kind: Kind = "fcos"
    """torchvision's fcos, retinanet or fasterrcnn."""
    width: int | None = None
    """Channels of the feature pyramid, a multiple of 32; by default 96 on a CPU and 256, the papers', on a GPU."""
    finest: int = 8
    """About the stride of the finest level in pixels: a few times smaller than the smallest object of interest."""


@dataclass(frozen=True)
class SegmentationConfig:
    """The segmenter."""

    decoder: Decoder | None = None
    """unet, fpn, dpt or linear, which is a frozen backbone's cheap probe; by default dpt for ViTs, else unet."""
    width: int | None = None
    """Channels of fpn and dpt, a multiple of 32; by default 96 on a CPU and 256 on a GPU."""


@dataclass(frozen=True)
class Detection:
    """Boxes: FCOS or a sibling, COCO's average precision in pixels of the original images."""

    train: Labelled[BoxSet]
    test: Labelled[BoxSet]
    config: DetectionConfig
    image_size: int
    view: DenseView
    task: ClassVar[str] = "detection"
    metric: ClassVar[str] = "map_50"

    def model(self, backbone: Backbone) -> Detector:
        """Return a fresh detector on this backbone."""
        c, classes = self.config, len(self.train.data.classes)
        return Detector(backbone, classes, self.image_size, c.kind, width=c.width or WIDTH, finest=c.finest)

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a random view of a training image, the boxes in it and their classes."""
        image = self.train.pixels(row)
        height, width = image.shape[1:]
        boxes = torch.from_numpy(self.train.data.boxes[row]) * scaled(self.train.data, row, (height, width))
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self.train.data.labels[row]),
        }
        return self.view(image, target)

    def loss(self, model: DenseModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return the sum of the detector's losses."""
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    def found(self, model: DenseModel, labelled: Labelled[BoxSet], rows: NDArray[np.int64]) -> Iterator[Boxes]:
        """Yield what is found in each image, in its original pixels, on the CPU."""
        for answers, placements in answered(model, labelled, rows, self.image_size):
            for answer, placement in zip(answers, placements, strict=True):
                on_cpu = {name: values.float().cpu() for name, values in answer.items()}
                yield {
                    "boxes": placement.boxes_back(on_cpu["boxes"]),
                    "scores": on_cpu["scores"],
                    "labels": answer["labels"].cpu(),
                }

    def scores(self, model: DenseModel, labelled: Labelled[BoxSet], rows: NDArray[np.int64]) -> Scores:
        """Return map, map_50 and mar_100."""
        data = labelled.data
        truth = [
            {
                "boxes": torch.from_numpy(data.boxes[row]),
                "labels": torch.from_numpy(labelled.classes[data.labels[row]]),
            }
            for row in rows
        ]
        measured = mean_average_precision(list(self.found(model, labelled, rows)), truth, self.train.data.classes)
        return {"map_50": measured["map_50"], "map": measured["map"], "mar_100": measured["mar_100"]}


@dataclass(frozen=True)
class Segmentation:
    """Classes of pixels: U-Net or a sibling, mean Dice and intersection over union at the original size."""

    train: Labelled[MaskSet]
    test: Labelled[MaskSet]
    config: SegmentationConfig
    image_size: int
    view: DenseView
    task: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"

    def model(self, backbone: Backbone) -> Segmenter:
        """Return a fresh segmenter on this backbone."""
        return Segmenter(backbone, len(self.train.data.classes), self.config.decoder, width=self.config.width or WIDTH)

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a random view of a training image and its mask."""
        image = self.train.pixels(row)
        mask = torch.from_numpy(self.train.data.load_mask(row))[None, None]
        mask = torch.nn.functional.interpolate(mask, image.shape[1:], mode="nearest-exact")[0, 0]
        return self.view(image, {"mask": tv_tensors.Mask(mask)})

    def loss(self, model: DenseModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return cross entropy plus Dice loss."""
        return segmentation_loss(model(images), torch.stack([target["mask"] for target in targets]))

    def found(self, model: DenseModel, labelled: Labelled[MaskSet], rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the class of each pixel of each image, (H, W) int64 at its original size, on the CPU."""
        for answers, placements in answered(model, labelled, rows, self.image_size):
            for answer, placement in zip(answers, placements, strict=True):
                yield placement.maps_back(answer.float()).argmax(0).cpu()

    def scores(self, model: DenseModel, labelled: Labelled[MaskSet], rows: NDArray[np.int64]) -> Scores:
        """Return miou, dice and pixel accuracy, and Dice of each class as dice:NAME."""
        number = np.full(256, IGNORE)
        number[: len(labelled.classes)] = labelled.classes
        truth = (torch.from_numpy(number[labelled.data.load_mask(row)]) for row in rows)
        names = self.train.data.classes
        measured = segmentation_scores(self.found(model, labelled, rows), truth, names)
        each = {f"dice:{name}": value for name, value in measured["dice_per_class"].items()}
        return {"miou": measured["miou"], "dice": measured["dice"], "accuracy": measured["accuracy"], **each}


def answered(
    model: DenseModel, labelled: Labelled[Any], rows: NDArray[np.int64], size: int, batch_size: int = 16
) -> Iterator[tuple[Sequence[Any], list[Placement]]]:
    """Yield the model's answers for each batch of images, whole in squares of `size` pixels, and the ways back.

    The ways lead to the original images' pixels.
    """
    device, mean = next(model.parameters()).device, model.backbone.spec.mean
    with evaluating(model):
        for start in track(range(0, len(rows), batch_size), "test", "batches", math.ceil(len(rows) / batch_size)):
            views, placements = [], []
            for row in rows[start : start + batch_size]:
                width, height = labelled.data.sizes[row].tolist()
                view, _, placement = whole(labelled.pixels(int(row)), {}, size, mean)
                views.append(view)
                placements.append(replace(placement, height=height, width=width))
            yield model(torch.stack(views).to(device)), placements
