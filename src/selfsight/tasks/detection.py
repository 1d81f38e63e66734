"""Object detection: torchvision's FCOS, RetinaNet and Faster R-CNN on the feature maps of any backbone.

Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection"; Lin et al. 2017, "Focal Loss for Dense Object
Detection"; Ren et al. 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks".
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from selfsight.backbones import Backbone
from selfsight.errors import SelfsightError
from selfsight.tasks.model import DECODER_GROUPS, TaskModel

Kind = Literal["fcos", "retinanet", "fasterrcnn"]
Boxes = dict[str, Tensor]
"""The objects of one image: 'boxes' (n, 4) float, left, top, right, bottom in pixels; 'labels' (n,) int64, from 0.

Of a prediction 'scores' (n,), 0 to 1, highest first, as well."""

LEAST_SCORE = 0.05
"""Predictions of a lower score are dropped; average precision needs those of low scores."""
ONE_OBJECT = 0.6
"""Predictions whose IoU is higher are of one object: what torchvision's FCOS holds of those of one class."""
ONE_PLACE = 0.4
"""The same for who looks at them: of trees from the air a third fewer boxes are drawn, of the same precision."""
COCO_MOST = 100
"""COCO counts so many predictions an image."""
ROIS = 128
"""Regions of an image that train Faster R-CNN's second stage: a quarter of the paper's, whose images are larger."""
FCOS_START = 4.0
"""Strides to the sides of an untrained FCOS's boxes: objects of a level reach 4 to 8 from a point. At torchvision's 0
boxes have no size, and half of their sides no gradient."""
ASPECTS = (0.5, 1.0, 2.0)
"""Height / width of anchors."""


class Detector(TaskModel):
    """Boxes, classes and scores of the objects in images of one size, (B, C, S, S) in [0, 1].

    The backbone's maps feed a feature pyramid (Lin et al. 2017), which goes on with coarser levels until the coarsest
    stride is an eighth to a quarter of the image: beyond it no object would be assigned to them. The one map of a ViT
    is made a pyramid by deconvolution and pooling. Anchors of the coarsest level are half as large as the image, those
    of each finer level half as large as the next's: with S = 512 these are the sizes of the papers.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        image_size: int,
        kind: Kind = "fcos",
        *,
        width: int = 96,
        finest: int = 8,
        most: int = COCO_MOST,
    ) -> None:
        """Build a detector of `classes` classes for images of `image_size` pixels a side.

        `width` is the pyramid's and heads' channels, a multiple of 32: 96 suits a CPU, 256 (the papers') a GPU.
        `finest` is about the stride of the finest level: a few times smaller than the smallest object of interest. 8 is
        FCOS's and RetinaNet's; 4 finds smaller ones at four times the work. A backbone pretrained on small images has
        a small stem or patch and finer maps than these: they are left out, its others take the levels that they suit.
        `most` objects are found in an image at most.

        Raises SelfsightError where sizes don't fit the backbone.
        """
        if width % DECODER_GROUPS:
            raise SelfsightError(f"width {width}: a detector's must be a multiple of {DECODER_GROUPS}")
        if image_size % backbone.reduction:
            raise SelfsightError(
                f"image size {image_size}: {backbone.spec.name} needs a multiple of {backbone.reduction} for detection"
            )
        levels = (_fpn if backbone.hierarchical else _simple_pyramid)(backbone, image_size, width, finest)
        if kind == "fasterrcnn" and any(stride & (stride - 1) for stride in levels.strides):
            raise SelfsightError(
                f"fasterrcnn: it needs strides that are powers of two, those of {backbone.spec.name} are "
                f"{levels.strides}; use fcos"
            )
        count = len(levels.strides)
        head = HEADS[kind](levels, classes, [image_size / 2 ** (count - i) for i in range(count)], most)
        head.transform = AsTheyAre()
        super().__init__(backbone, head)
        self.first_label = 1 if kind == "fasterrcnn" else 0  # its class 0 is the background

    def forward(self, images: Tensor, targets: list[Boxes] | None = None) -> dict[str, Tensor] | list[Boxes]:
        """Return the losses by name, to be summed, in training; in evaluation what is found in each image.

        `images` (B, C, S, S) are in [0, 1]; `targets`, which only training needs, are the B images' objects, boxes of
        positive width and height. An image may have none. What is found has a score of at least 0.05.
        """
        if self.training and targets is not None:
            shifted = [{"boxes": t["boxes"], "labels": t["labels"] + self.first_label} for t in targets]
            losses: dict[str, Tensor] = self.head(images, shifted)
            return losses
        found: list[Boxes] = self.head(images)
        return [{**boxes, "labels": boxes["labels"] - self.first_label} for boxes in found]


class Levels(nn.Module):
    """Images (B, C, S, S) to maps of `out_channels` channels by name, finest first: torchvision's idea of a backbone.

    It takes the maps from a function, so that the backbone's parameters aren't the head's as well.
    """

    def __init__(
        self, pyramid: Callable[[Tensor], list[Tensor]], first: int, neck: nn.Module, strides: list[int], width: int
    ) -> None:
        """Take the pyramid's maps from the `first` on; the neck makes of them one a stride, of `width` channels."""
        super().__init__()
        self.pyramid = pyramid
        self.first = first
        self.neck = neck
        self.strides = strides
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps in float32, of which torchvision makes anchors of the same type."""
        maps = self.pyramid(images)[self.first :]
        levels = self.neck(OrderedDict((str(i), level) for i, level in enumerate(maps)))
        return OrderedDict((str(i), level.float()) for i, level in enumerate(levels.values()))


class SimplePyramid(nn.Module):
    """A pyramid of the last map alone, by deconvolution, pooling and convolutions of each level's own.

    Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet).
    """

    def __init__(self, dim: int, stride: int, strides: list[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict()
        for i, wanted in enumerate(strides):
            level = nn.Sequential()
            channels = dim
            if wanted > stride:
                level.append(nn.MaxPool2d(wanted // stride))
            for doubling in range(round(math.log2(stride / wanted))):
                if doubling:
                    level.extend([LayerNorm2d(channels), nn.GELU()])
                level.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
                channels //= 2
            level.extend([nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)])
            level.extend([nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)])
            self.levels[str(i)] = level

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return maps of one width from the last of these: (B, dim, h, w) → (B, width, h · ratio, w · ratio) each."""
        last = next(reversed(maps.values()))
        return OrderedDict((name, level(last)) for name, level in self.levels.items())


class AsTheyAre(nn.Module):
    """In the place of torchvision's transform, which would resize images and normalize them once more."""

    def forward(self, images: Tensor, targets: list[Boxes] | None) -> tuple[ImageList, list[Boxes] | None]:
        """Return the batch and its targets unchanged."""
        return ImageList(images, [(images.shape[2], images.shape[3])] * len(images)), targets

    def postprocess(self, found: list[Boxes], *_: Any) -> list[Boxes]:
        """Return the boxes unchanged."""
        return found


def _fpn(backbone: Backbone, image_size: int, width: int, finest: int) -> Levels:
    """Return the levels of a feature pyramid network: those of the backbone, for large images one or two more."""
    strides = backbone.pyramid_strides
    first = next((i for i, stride in enumerate(strides) if stride > finest / math.sqrt(2)), len(strides) - 1)
    coarser = _coarser(strides[-1], image_size)[:2]
    extra = [None, LastLevelMaxPool(), LastLevelP6P7(width, width)][len(coarser)]
    fpn = FeaturePyramidNetwork(backbone.pyramid_channels[first:], width, extra)
    return Levels(backbone.pyramid, first, fpn, strides[first:] + coarser, width)


def _simple_pyramid(backbone: Backbone, image_size: int, width: int, finest: int) -> Levels:
    """Return a ViT's levels: from a quarter of its patch, where that isn't too fine, to multiples of it."""
    patch = backbone.reduction
    strides = [patch // part for part in (4, 2, 1) if patch % part == 0] + _coarser(patch, image_size)
    strides = [stride for stride in strides if stride > finest / math.sqrt(2)] or strides[-1:]
    return Levels(backbone.pyramid, -1, SimplePyramid(backbone.map_dim, patch, strides, width), strides, width)


def _coarser(stride: int, image_size: int) -> list[int]:
    """Return the multiples by 2, 4, ... of a stride that are of use: below a quarter of the image, which they divide.

    FCOS assigns objects of more than 4 strides to a level; anchors stand a whole number of pixels apart.
    """
    strides = []
    while (stride := 2 * stride) < image_size / 4 and image_size % stride == 0:
        strides.append(stride)
    return strides


def _fcos(levels: Levels, classes: int, anchors: list[float], most: int) -> Any:
    """Return torchvision's FCOS, whose anchors are points: their size is the level's stride."""
    points = AnchorGenerator(tuple((stride,) for stride in levels.strides), ((1.0,),) * len(anchors))
    model = FCOS(levels, classes, anchor_generator=points, score_thresh=LEAST_SCORE, detections_per_img=most)
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, FCOS_START)
    model.head.register_forward_hook(_in_float32)
    return model


def _retinanet(levels: Levels, classes: int, anchors: list[float], most: int) -> Any:
    """Return torchvision's RetinaNet of the second version: group norms in its heads, GIoU as the boxes' loss."""
    thirds = tuple(tuple(size * 2 ** (third / 3) for third in range(3)) for size in anchors)
    generator = AnchorGenerator(thirds, (ASPECTS,) * len(anchors))
    norm = partial(nn.GroupNorm, DECODER_GROUPS)
    head = RetinaNetHead(levels.out_channels, 3 * len(ASPECTS), classes, norm)
    head.regression_head._loss_type = "giou"
    head.register_forward_hook(_in_float32)
    return RetinaNet(
        levels, classes, anchor_generator=generator, head=head, score_thresh=LEAST_SCORE, detections_per_img=most
    )


def _faster_rcnn(levels: Levels, classes: int, anchors: list[float], most: int) -> Any:
    """Return torchvision's Faster R-CNN, which takes its regions from every level; all its layers follow the width."""
    hidden = 4 * levels.out_channels
    model = FasterRCNN(
        levels,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in anchors), (ASPECTS,) * len(anchors)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(anchors))], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(levels.out_channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        box_score_thresh=LEAST_SCORE,
        box_detections_per_img=most,
        box_batch_size_per_image=ROIS,
    )
    for part in (model.rpn.head, model.roi_heads.box_predictor):
        part.register_forward_hook(_in_float32)
    return model


HEADS = {"fcos": _fcos, "retinanet": _retinanet, "fasterrcnn": _faster_rcnn}


def _in_float32(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """Return a head's outputs in float32: under autocast boxes would be rounded to bfloat16, by pixels."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _in_float32(module, inputs, value) for name, value in outputs.items()}
    return type(outputs)(_in_float32(module, inputs, value) for value in outputs)


def surest(found: Boxes, score: float = 0.0, overlap: float = ONE_PLACE) -> Boxes:
    """Return the predictions of at least this score, one a place: of those that share one, whatever their classes.

    Predictions share a place if their IoU is more than `overlap`; the surest of them stays.
    """
    rows = (found["scores"] >= score).nonzero()[:, 0]
    kept = rows[nms(found["boxes"][rows], found["scores"][rows], overlap)]
    return {name: values[kept] for name, values in found.items()}


def one_class(boxes: Boxes) -> Boxes:
    """Return objects, or the surest predictions of each place, as if all were of one class."""
    boxes = surest(boxes, overlap=ONE_OBJECT) if "scores" in boxes else boxes
    return {**boxes, "labels": torch.zeros_like(boxes["labels"])}


class DetectionScores(TypedDict):
    """COCO's measures of detections, 0 to 1; nan where no image has an object."""

    map: float
    """Mean average precision: over the classes that occur and over IoU thresholds from 0.5 to 0.95."""
    map_50: float
    """The same at IoU 0.5."""
    mar: float
    """Mean recall of the detections of an image, over the same classes and thresholds as `map`."""
    per_class: dict[str, float]
    """Average precision by class, as in `map`, of the classes that occur."""


def mean_average_precision(
    predictions: Sequence[Boxes], targets: Sequence[Boxes], classes: Sequence[str], most: int = COCO_MOST
) -> DetectionScores:
    """Return COCO's average precision and recall of the predictions for as many images, by faster-coco-eval.

    Of each image the surest `most` predictions count.
    """
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        class_metrics=True,
        # torchmetrics' own are rounded to float32: boxes of whole pixels with an IoU of just 0.55 would miss theirs.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        max_detection_thresholds=[1, 10, most],
    )
    metric.warn_on_many_detections = False
    metric.update(list(predictions), list(targets))
    scores = metric.compute()
    occurring, precisions = (scores[name].reshape(-1).tolist() for name in ("classes", "map_per_class"))
    per_class = {classes[k]: precision for k, precision in zip(occurring, precisions, strict=True) if precision >= 0}
    ap, ap_50, recall = (float(scores[name]) if per_class else math.nan for name in ("map", "map_50", f"mar_{most}"))
    return {"map": ap, "map_50": ap_50, "mar": recall, "per_class": per_class}
