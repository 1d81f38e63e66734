"""What a trainer must know of a task, and of detection and segmentation: models, examples, losses and scores."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from selfsight.backbones import Backbone
from selfsight.data import BoxSet, ImageSet, MaskSet, few_images
from selfsight.data.annotations import Problem
from selfsight.data.labels import shown_in
from selfsight.data.mask_files import IGNORE
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import evaluating
from selfsight.pictures import in_colour, save_pictures, spread
from selfsight.progress import track
from selfsight.tasks.augment import DenseView, Placement, Target, whole
from selfsight.tasks.detection import COCO_MOST, Boxes, Detector, Kind, mean_average_precision, one_class, surest
from selfsight.tasks.labelled import Labelled, scaled, spare
from selfsight.tasks.model import TaskModel
from selfsight.tasks.overlay import painted, palette
from selfsight.tasks.segmentation import Decoder, Segmenter, segmentation_loss, segmentation_scores

T = TypeVar("T", BoxSet, MaskSet)
Scores = dict[str, float]
WIDTH, GPU_WIDTH = 96, 256
"""Channels where the settings leave them open: those that suit a CPU, and the papers'."""
SHOWN = 6
"""So many test images are drawn."""
DRAWN = 0.3
"""Boxes of a lower score are not drawn."""


class LabelSet(Protocol):
    """Images with labels of any kind."""

    @property
    def images(self) -> ImageSet:
        """The images."""

    @property
    def digest(self) -> str:
        """A hash that changes with any image's name or label."""


class Job(Protocol):
    """One task on one pair of data sets. `part` is 'train' or 'test'; training rows and test rows are of either."""

    task: ClassVar[str]

    @property
    def train(self) -> LabelSet:
        """What is learned from, its part 'train'."""

    @property
    def test(self) -> LabelSet:
        """What is tested on, its part 'test'; the same set if that has both."""

    @property
    def metric(self) -> str:
        """The score that chooses the best weights and is drawn as a curve."""

    @property
    def protocol(self) -> str:
        """How the backbone is used, as results call it."""

    @property
    def learns(self) -> bool:
        """Whether weights are trained by gradient steps; a kNN classifier needs none."""

    @property
    def image_size(self) -> int:
        """Height and width of the views in pixels."""

    @property
    def source(self) -> str:
        """What the user passed as labelled images."""

    @property
    def classes(self) -> Sequence[str]:
        """Names."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Labels or images that were wrong."""

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the labelled rows of a part."""

    def few(self, amount: float | int, seed: int) -> NDArray[np.int64]:
        """Return the training rows whose labels may be used: a fraction of them, or so many a class."""

    def spare(self, rows: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows to train on, and about this share of `rows` to validate on, or none if these are few."""

    def model(self, backbone: Backbone, rows: NDArray[np.int64] | None = None) -> TaskModel:
        """Return a head on this backbone, fresh or fitted to the labels of these training rows."""

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a training image as `loss` takes it, and what it shows."""

    def loss(self, model: TaskModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return the loss of a batch of examples."""

    def scores(self, model: TaskModel, part: str, rows: NDArray[np.int64]) -> Scores:
        """Return how good the model is on these images, each number 0 to 1."""

    def calibrate(self, model: TaskModel, rows: NDArray[np.int64]) -> None:
        """Make the model's confidences honest on training rows that it has not learned from."""

    def illustrate(self, model: TaskModel, folder: Path) -> None:
        """Write pictures of how the model does on the test images to this folder, as `save_pictures` does."""


@dataclass(frozen=True)
class DenseConfig:
    """What the settings of detectors and of segmenters have in common."""

    width: int | None = None
    """Channels of a detector's feature pyramid, or of a segmenter's fpn or dpt, a multiple of 32; by default 96 on a
    CPU, 256 on a GPU."""
    scale: tuple[float, float] = (0.75, 1.25)
    """How large training views show the images, 1 with the longer side as long as the view."""

    def fit_to(self, device: torch.device) -> Self:
        """Return the settings with the width that suits the device."""
        return replace(self, width=self.width or (GPU_WIDTH if device.type == "cuda" else WIDTH))


@dataclass(frozen=True)
class DetectionConfig(DenseConfig):
    """The detector."""

    kind: Kind = "fcos"
    """torchvision's fcos, retinanet or fasterrcnn."""
    finest: int = 8
    """About the stride of the finest level in pixels: a few times smaller than the smallest object of interest."""
    most: int = COCO_MOST
    """Objects found in an image at most; more where images show more, as cells or a crowd's heads."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise SelfsightError(f"--most {self.most}: must be 1 or more")


@dataclass(frozen=True)
class SegmentationConfig(DenseConfig):
    """The segmenter."""

    decoder: Decoder | None = None
    """unet, fpn, dpt or linear, which is a frozen backbone's cheap probe; by default dpt for ViTs, else unet."""


@dataclass(frozen=True)
class Dense(ABC, Generic[T]):
    """What detection and segmentation have in common: labels drawn in the images."""

    train: Labelled[T]
    test: Labelled[T]
    image_size: int
    view: DenseView
    protocol: str
    learns: ClassVar[bool] = True
    task: ClassVar[str]
    key: ClassVar[str]
    """What the pictures' colours or boxes mean."""

    @property
    def source(self) -> str:
        """What the user passed as labelled images."""
        return self.train.data.source

    @property
    def classes(self) -> Sequence[str]:
        """Names."""
        return self.train.data.classes

    @property
    def problems(self) -> list[Problem]:
        """Labels or images that were wrong."""
        return [*self.train.data.problems, *(self.test.data.problems if self.test is not self.train else ())]

    @abstractmethod
    def truth(self, row: int) -> tuple[Tensor, Any]:
        """Return a test image, whole in a square (C, S, S), and its labels there."""

    @abstractmethod
    def shown(self, answer: Any) -> Any:
        """Return what is drawn of the model's answer for a square."""

    def part(self, name: str) -> Labelled[T]:
        """Return the 'train' or the 'test' images."""
        return self.train if name == "train" else self.test

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the rows of a part whose images could be decoded."""
        return self.part(part).rows(part)

    def few(self, amount: float | int, seed: int) -> NDArray[np.int64]:
        """Return the training rows whose labels may be used; SelfsightError for a count a class."""
        if isinstance(amount, int):
            raise SelfsightError("--per-class: for classification only; use --labels with fractions of the images")
        return few_images(self.train.data, self.train.rows("train"), amount, seed)

    def spare(self, rows: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows to train on, and about this share of `rows` to validate on, or none if these are few."""
        return spare(rows, share, seed, shown_in(self.train.data, rows))

    def calibrate(self, model: TaskModel, rows: NDArray[np.int64]) -> None:
        """Leave the scores of boxes and pixels as they are."""

    def illustrate(self, model: TaskModel, folder: Path) -> None:
        """Draw some test images with their labels, and with what the model finds."""
        rows = spread(self.rows("test"), SHOWN)
        colours = palette(len(self.classes), first_is_background=self.task == "segmentation")
        views: list[Tensor] = []
        answers: list[Any] = []
        for row in rows:
            view, labels = self.truth(int(row))
            views.append(view)
            answers.append(labels)
        with evaluating(model, self.image_size):
            found = model(torch.stack(views).to(next(model.parameters()).device))
        answers += [self.shown(answer) for answer in found]
        size = (self.image_size, self.image_size)
        tiles = [
            painted((in_colour(view) * 255).round().to(torch.uint8), answer, size, self.classes, colours)
            for answer, view in zip(answers, 2 * views, strict=True)
        ]
        sheet = torch.stack(tiles).view(2, len(rows), 3, *size).float() / 255
        save_pictures(folder, {f"Test images: the labels above, what the model found below ({self.key})": sheet})


@dataclass(frozen=True)
class Detection(Dense[BoxSet]):
    """Boxes: FCOS or a sibling, COCO's average precision in pixels of the original images."""

    config: DetectionConfig
    task: ClassVar[str] = "detection"
    metric: ClassVar[str] = "map_50"
    key: ClassVar[str] = "boxes of a score of 0.3 or more"

    def model(self, backbone: Backbone, rows: NDArray[np.int64] | None = None) -> Detector:
        """Return a fresh detector on this backbone."""
        c, classes = self.config, len(self.classes)
        return Detector(
            backbone, classes, self.image_size, c.kind, width=c.width or WIDTH, finest=c.finest, most=c.most
        )

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a random view of a training image, the boxes in it and their classes."""
        return self.view(*self.labelled(self.train, row))

    def truth(self, row: int) -> tuple[Tensor, Target]:
        """Return a test image, whole in a square (C, S, S), its boxes there and their classes."""
        view, seen, _ = whole(*self.labelled(self.test, row), self.image_size, self.view.mean)
        return view, seen

    def labelled(self, part: Labelled[BoxSet], row: int) -> tuple[Tensor, Target]:
        """Return an image (C, H, W) uint8, the boxes in its pixels, and their classes as training numbers them."""
        image = part.pixels(row)
        shape = (image.shape[1], image.shape[2])
        boxes = torch.from_numpy(part.data.boxes[row]) * scaled(part.data, row, shape)
        return image, {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=shape),
            "labels": torch.from_numpy(part.classes[part.data.labels[row]]),
        }

    def shown(self, answer: Boxes) -> Boxes:
        """Return what is drawn of the model's answer."""
        return {name: values.cpu() for name, values in surest(answer, DRAWN).items()}

    def loss(self, model: TaskModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return the sum of the detector's losses."""
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    def found(self, model: TaskModel, labelled: Labelled[BoxSet], rows: NDArray[np.int64]) -> Iterator[Boxes]:
        """Yield what is found in each image, in its original pixels, on the CPU."""
        for answers, placements in answered(model, labelled, rows, self.view):
            for answer, placement in zip(answers, placements, strict=True):
                on_cpu = {name: values.float().cpu() for name, values in answer.items()}
                yield {
                    "boxes": placement.boxes_back(on_cpu["boxes"]),
                    "scores": on_cpu["scores"],
                    "labels": answer["labels"].cpu(),
                }

    def scores(self, model: TaskModel, part: str, rows: NDArray[np.int64]) -> Scores:
        """Return map, map_50, mar_100, and agnostic_50: map_50 with all classes taken as one.

        Where that is much higher, objects are found and their classes are mistaken. Where a detector finds more than
        COCO's 100 in an image they count, and recall is named by their number.
        """
        labelled = self.part(part)
        data = labelled.data
        truth = [
            {
                "boxes": torch.from_numpy(data.boxes[row]),
                "labels": torch.from_numpy(labelled.classes[data.labels[row]]),
            }
            for row in rows
        ]
        found = list(self.found(model, labelled, rows))
        most = max(self.config.most, COCO_MOST)
        measured = mean_average_precision(found, truth, self.classes, most)
        places = mean_average_precision(list(map(one_class, found)), list(map(one_class, truth)), ["object"], most)
        return {
            "map_50": measured["map_50"],
            "map": measured["map"],
            f"mar_{most}": measured["mar"],
            "agnostic_50": places["map_50"],
            **{f"ap:{name}": precision for name, precision in measured["per_class"].items()},
        }


@dataclass(frozen=True)
class Segmentation(Dense[MaskSet]):
    """Classes of pixels: U-Net or a sibling, mean Dice and intersection over union at the original size."""

    config: SegmentationConfig
    task: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"
    key: ClassVar[str] = "one colour a class"

    def model(self, backbone: Backbone, rows: NDArray[np.int64] | None = None) -> Segmenter:
        """Return a fresh segmenter on this backbone."""
        return Segmenter(backbone, len(self.classes), self.config.decoder, width=self.config.width or WIDTH)

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a random view of a training image and its mask."""
        return self.view(*self.labelled(self.train, row))

    def truth(self, row: int) -> tuple[Tensor, Tensor]:
        """Return a test image, whole in a square (C, S, S), and the classes (S, S) of its pixels."""
        view, seen, _ = whole(*self.labelled(self.test, row), self.image_size, self.view.mean)
        return view, seen["mask"]

    def labelled(self, part: Labelled[MaskSet], row: int) -> tuple[Tensor, Target]:
        """Return an image (C, H, W) uint8, and the class (H, W) uint8 of each pixel as training numbers them."""
        image, mask = part.pixels(row), self.number(part)[part.data.load_mask(row)].astype(np.uint8)
        small = torch.nn.functional.interpolate(
            torch.from_numpy(mask)[None, None], image.shape[1:], mode="nearest-exact"
        )
        return image, {"mask": tv_tensors.Mask(small[0, 0])}

    def shown(self, answer: Tensor) -> Tensor:
        """Return what is drawn of the model's answer: the classes (S, S)."""
        return answer.argmax(0).cpu()

    def number(self, labelled: Labelled[MaskSet]) -> NDArray[np.int64]:
        """Return (256,) the training set's class of each value in the masks of a set, 255 for what doesn't count."""
        number = np.full(256, IGNORE)
        number[: len(labelled.classes)] = labelled.classes
        return number

    def loss(self, model: TaskModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return cross entropy plus Dice loss."""
        return segmentation_loss(model(images), torch.stack([target["mask"] for target in targets]))

    def found(self, model: TaskModel, labelled: Labelled[MaskSet], rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the class of each pixel of each image, (H, W) int64 at its original size, on the CPU."""
        for answers, placements in answered(model, labelled, rows, self.view):
            for answer, placement in zip(answers, placements, strict=True):
                yield placement.classes_back(answer).cpu()

    def scores(self, model: TaskModel, part: str, rows: NDArray[np.int64]) -> Scores:
        """Return miou, dice and pixel accuracy, and of each class iou:NAME and dice:NAME."""
        labelled = self.part(part)
        number = self.number(labelled)
        truth = (torch.from_numpy(number[labelled.data.load_mask(row)]) for row in rows)
        measured = segmentation_scores(self.found(model, labelled, rows), truth, self.classes)
        each = {f"iou:{name}": value for name, value in measured["iou_per_class"].items()}
        each |= {f"dice:{name}": value for name, value in measured["dice_per_class"].items()}
        return {"miou": measured["miou"], "dice": measured["dice"], "accuracy": measured["accuracy"], **each}


def answered(
    model: TaskModel, labelled: Labelled[Any], rows: NDArray[np.int64], view: DenseView, batch_size: int = 16
) -> Iterator[tuple[Sequence[Any], list[Placement]]]:
    """Yield the model's answers for each batch of images, whole in squares as the view's, and the ways back.

    The ways lead to the original images' pixels.
    """
    device = next(model.parameters()).device
    with evaluating(model, view.size):
        for start in track(range(0, len(rows), batch_size), "test", "batches", math.ceil(len(rows) / batch_size)):
            views, placements = [], []
            for row in rows[start : start + batch_size]:
                width, height = labelled.data.sizes[row].tolist()
                square, _, placement = whole(labelled.pixels(int(row)), {}, view.size, view.mean)
                views.append(square)
                placements.append(replace(placement, height=height, width=width))
            yield model(torch.stack(views).to(device)), placements
