"""Semantic segmentation: the decoders of segmentation_models_pytorch on the feature maps of any backbone.

Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation"; Kirillov et al. 2019,
"Panoptic Feature Pyramid Networks"; Ranftl et al. 2021, "Vision Transformers for Dense Prediction" (DPT).
"""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Literal, TypedDict

import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from selfsight.backbones import Backbone
from selfsight.data.mask_files import IGNORE
from selfsight.errors import SelfsightError
from selfsight.tasks.model import DECODER_GROUPS, TaskModel

Decoder = Literal["unet", "fpn", "dpt", "linear"]

UNET_WIDTHS = (256, 128, 64, 32, 16)
"""Channels of a U-Net's last blocks, of the one at the image's size last."""


class Segmenter(TaskModel):
    """The class of each pixel of images (B, C, H, W) in [0, 1], of any height and width.

    `unet` and `fpn` stand on maps of several strides, `dpt` on those of a ViT. `linear` is a 1 x 1 convolution of the
    standardized last map of a frozen backbone: a cheap measure of what the features know already.
    """

    def __init__(self, backbone: Backbone, classes: int, decoder: Decoder | None = None, *, width: int = 96) -> None:
        """Build a segmenter of `classes` classes; without a `decoder` dpt for ViTs, unet for all others.

        `width` is the channels of fpn and dpt, a multiple of 32: 96 suits a CPU, 256 (the papers') a GPU.

        Raises SelfsightError for a decoder that doesn't suit the backbone.
        """
        name = backbone.spec.name
        decoder = decoder or ("unet" if backbone.hierarchical else "dpt")
        if decoder in ("unet", "fpn") and not backbone.hierarchical:
            raise SelfsightError(f"decoder {decoder}: all maps of {name} have one stride; use dpt or linear")
        if decoder == "dpt" and backbone.hierarchical:
            raise SelfsightError(f"decoder dpt: it is made for ViTs, {name} is none; use unet, fpn or linear")
        if width % DECODER_GROUPS:
            raise SelfsightError(f"width {width}: a segmenter's must be a multiple of {DECODER_GROUPS}")
        super().__init__(backbone, HEADS[decoder](backbone, classes, width))
        self.multiple = backbone.reduction * (2 if decoder == "dpt" else 1)  # DPT halves maps and doubles them again
        if decoder == "linear":
            self.freeze_backbone()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for images (B, C, H, W) in [0, 1]."""
        height, width = images.shape[2:]
        margin = (0, -width % self.multiple, 0, -height % self.multiple)  # at the right, at the bottom
        padded = F.pad(images, margin, mode="replicate")
        logits: Tensor = self.head([padded, *self.backbone.pyramid(padded)])
        logits = F.interpolate(logits.float(), padded.shape[2:], mode="bilinear", align_corners=False)
        return logits[:, :, :height, :width]


class Unet(nn.Module):
    """smp's U-Net decoder, from an image and its pyramid to logits (B, K, H, W)."""

    def __init__(self, backbone: Backbone, classes: int, _: int) -> None:
        super().__init__()
        self.bare = backbone.pyramid_strides[0] > 2  # ConvNeXts and Swins begin with 4: nothing to join at 2
        channels = [backbone.spec.channels, *([0] if self.bare else []), *backbone.pyramid_channels]
        widths = UNET_WIDTHS[-len(channels) + 1 :]
        self.decoder = UnetDecoder(channels, widths, n_blocks=len(widths))
        self.last = SegmentationHead(widths[-1], classes)
        initialize_decoder(self.decoder)
        initialize_head(self.last)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, H, W); of the image only the size is used."""
        image, *maps = features
        if self.bare:
            maps.insert(0, image.new_empty(len(image), 0, image.shape[2] // 2, image.shape[3] // 2))
        logits: Tensor = self.last(self.decoder([image, *maps]))
        return logits


class Fpn(nn.Module):
    """smp's feature pyramid decoder, from the four last maps to logits of the finest one's size."""

    def __init__(self, backbone: Backbone, classes: int, width: int) -> None:
        super().__init__()
        self.decoder = FPNDecoder(backbone.pyramid_channels[-4:], pyramid_channels=width, segmentation_channels=width)
        self.last = SegmentationHead(width, classes, kernel_size=1)
        initialize_decoder(self.decoder)
        initialize_head(self.last)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, h, w)."""
        logits: Tensor = self.last(self.decoder(features))
        return logits


class Dpt(nn.Module):
    """smp's DPT, from a ViT's four maps (B, D, h, w) to logits (B, K, 8h, 8w); h and w are even."""

    def __init__(self, backbone: Backbone, classes: int, width: int) -> None:
        super().__init__()
        self.decoder = DPTDecoder(
            backbone.pyramid_channels,
            # The paper's patch, whatever this one is: maps 4, 2, 1 and 1/2 times as fine as the patches.
            encoder_output_strides=(16,) * 4,
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=(width, 2 * width, 4 * width, 4 * width),
            fusion_channels=width,
        )
        self.last = DPTSegmentationHead(width, classes, upsampling=1)
        initialize_decoder(self.decoder)
        initialize_head(self.last)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, 8h, 8w)."""
        maps = features[1:]
        logits: Tensor = self.last(self.decoder(maps, [None] * len(maps)))
        return logits


class Linear(nn.Module):
    """A 1 x 1 convolution of the last map, standardized: (B, D, h, w) → (B, K, h, w), as in DINOv2's evaluation."""

    def __init__(self, backbone: Backbone, classes: int, _: int) -> None:
        super().__init__()
        dim = backbone.pyramid_channels[-1]
        self.layers = nn.Sequential(nn.BatchNorm2d(dim, affine=False), nn.Conv2d(dim, classes, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, h, w)."""
        logits: Tensor = self.layers(features[-1])
        return logits


HEADS = {"unet": Unet, "fpn": Fpn, "dpt": Dpt, "linear": Linear}


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return cross entropy plus Dice loss (Milletari et al. 2016, "V-Net") of logits (B, K, H, W).

    `masks` (B, H, W) are classes from 0, or 255 for pixels that don't count. Cross entropy is a mean over pixels, Dice
    over classes: small objects weigh in it as much as large ones.
    """
    logits, masks = logits.float(), masks.long()
    # A mean of no pixel would not be a number.
    pixels = (masks != IGNORE).sum().clamp(min=1)
    entropy = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum") / pixels
    dice: Tensor = DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks)
    return entropy + dice


class SegmentationScores(TypedDict):
    """Measures of pixels' classes, 0 to 1, over the classes that occur in masks or predictions."""

    miou: float
    """Mean over classes of the intersection over union."""
    dice: float
    """Mean over classes of Dice's coefficient, which is F1."""
    accuracy: float
    """Share of the pixels that are right."""
    iou_per_class: dict[str, float]
    """Intersection over union by class."""
    dice_per_class: dict[str, float]
    """Dice's coefficient by class."""


def segmentation_scores(
    predictions: Iterable[Tensor], targets: Iterable[Tensor], classes: Sequence[str]
) -> SegmentationScores:
    """Return the scores of predicted classes (H, W) int64, one tensor an image or batch, against masks of this shape.

    All images' pixels are counted together; those of class 255 in the masks don't count. Raises SelfsightError if that
    leaves none.
    """
    metric = MulticlassConfusionMatrix(len(classes), ignore_index=IGNORE)
    for predicted, target in zip(predictions, targets, strict=True):
        metric.to(predicted.device).update(predicted, target.long())
    confusion: Tensor = metric.compute().double().cpu()  # (K, K): true classes by predicted ones
    pixels = float(confusion.sum())
    if not pixels:
        raise SelfsightError("no pixel of the masks has a class: nothing to score")
    right, sizes = confusion.diag(), confusion.sum(0) + confusion.sum(1)
    occurring = [k for k in range(len(classes)) if sizes[k] > 0]
    iou = {classes[k]: float(right[k] / (sizes[k] - right[k])) for k in occurring}
    dice = {classes[k]: float(2 * right[k] / sizes[k]) for k in occurring}
    shown = [classes[k] for k in occurring if confusion[k].sum() > 0]
    return {
        "miou": fmean(iou[name] for name in shown),
        "dice": fmean(dice[name] for name in shown),
        "accuracy": float(right.sum()) / pixels,
        "iou_per_class": iou,
        "dice_per_class": dice,
    }
