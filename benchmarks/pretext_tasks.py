"""Is the pretext task learned, on images that the training never saw? And does the backbone find objects?

    python benchmarks/pretext_tasks.py RUN DATA [--objects]

Prints the means of what the method says of itself (accuracy, errors, PSNR, loss beside chance) over the test part of
DATA, or, where it has none, over its last tenth: then train on a folder without these. For inpainting it also fills
the same holes by OpenCV's two methods (pip install opencv-python-headless). With --objects the first principal
component of the feature map, and for a ViT the mean attention, are thresholded at the object's own share of the image
and compared with the object: what is not white, as in the emoji. Beside them a centre square of that share, and the
untrained network.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor

from selfsight import api
from selfsight.backbones import Backbone
from selfsight.data import ImageSet, in_order
from selfsight.data.augment import whole
from selfsight.evaluate.features import evaluating
from selfsight.evaluate.health import rankme
from selfsight.methods import Method
from selfsight.methods.inpainting import Inpainting, psnr
from selfsight.report.looks import attention, fine_map

WHITE = 0.95
"""A pixel whose channels are all above this is background."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """A finished run."""
    data: tyro.conf.Positional[str]
    """Images kept out of its training."""
    objects: bool = False
    """Also how well the backbone tells objects from a white ground."""
    most: int = 2000
    """Images looked at, at most."""
    batch_size: int = 64
    """Images at a time."""


def scalars(
    method: Method, images: ImageSet, rows: NDArray[np.int64], batch_size: int, rivals: bool = True
) -> dict[str, float]:
    """Return the mean of each scalar that the method's forward returns, in eval mode, over these rows."""
    sums: dict[str, float] = defaultdict(float)
    seen = 0
    with evaluating(method):
        torch.manual_seed(0)
        for batch in in_order(images, rows, batch_size, torch.device("cpu")):
            out = method(batch, 1.0)
            if rivals and isinstance(method, Inpainting):
                out |= opencv(method, method.view(batch))
            for name, value in out.items():
                sums[name] += float(value) * len(batch.index)
            seen += len(batch.index)
    return {name: value / seen for name, value in sums.items()}


def opencv(method: Inpainting, x: Tensor) -> dict[str, Tensor]:
    """Return the PSNR of the method and of OpenCV's two fillings, of the same holes in x (B, C, S, S)."""
    import cv2

    hidden = method.draw_masks(x)  # (B, 1, S, S)
    out = {"same_holes_psnr": psnr(method.fill(x, hidden), x, hidden)}
    byte = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()  # (B, S, S, C)
    for name, flag in (("telea", cv2.INPAINT_TELEA), ("navier_stokes", cv2.INPAINT_NS)):
        filled = [
            cv2.inpaint(np.ascontiguousarray(image), mask[0].byte().numpy(), 3, flag).reshape(image.shape)
            for image, mask in zip(byte, hidden, strict=True)
        ]
        answer = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2) / 255
        out[f"same_holes_{name}"] = psnr(answer, x, hidden)
    return out


def objects(backbone: Backbone, images: ImageSet, rows: NDArray[np.int64], batch_size: int) -> dict[str, float]:
    """Return the mean IoU with what is not white, of the map's first component, of attention, of a centre square."""
    size = backbone.spec.image_size
    found: dict[str, list[float]] = defaultdict(list)
    with evaluating(backbone):
        for batch in in_order(images, rows, batch_size, torch.device("cpu")):
            x = whole(batch, size)
            truth = (x < WHITE).any(1)  # (B, S, S)
            kept = (truth.float().mean((1, 2)) > 0.02) & (truth.float().mean((1, 2)) < 0.98)
            x, truth = x[kept], truth[kept]
            guesses = {"first_component_iou": first_component(fine_map(backbone, x).float())}
            weights = attention(backbone, x)
            if weights is not None:
                guesses["attention_iou"] = weights.mean(1)
            axis = (torch.arange(size) - (size - 1) / 2).abs()
            guesses["centre_square_iou"] = -torch.maximum(axis[:, None], axis).expand(len(x), size, size)
            for name, guess in guesses.items():
                maps = F.interpolate(guess[:, None].float(), (size, size), mode="bilinear")[:, 0].flatten(1)
                for values, mask in zip(maps, truth.flatten(1), strict=True):
                    chosen = torch.zeros_like(mask)
                    chosen[values.topk(int(mask.sum())).indices] = True
                    found[name].append(float((chosen & mask).sum() / (chosen | mask).sum()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def first_component(maps: Tensor) -> Tensor:
    """Return (B, h, w): the first principal component over all positions, its sign such that borders are low."""
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B·h·w, D)
    centred = flat - flat.mean(0)
    component = (centred @ torch.pca_lowrank(centred, 1)[2][:, 0]).view(len(maps), *maps.shape[2:])
    border = torch.ones(maps.shape[2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return component if component[:, border].mean() < component[:, ~border].mean() else -component


def main(arguments: Arguments) -> None:
    """Print the figures."""
    run = api.load(arguments.run)
    images = run.images(arguments.data)
    rows = images.rows("test")
    if not len(rows):
        rows = np.arange(len(images))[-max(1, len(images) // 10) :]
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), arguments.most)).astype(np.int64)]
    print(f"{run.method}, {run.path}, on {len(rows):,} images of {images.source}")
    for name, value in scalars(run.trained_method(), images, rows, arguments.batch_size).items():
        print(f"  {name:24} {value:8.3f}")
    for title, backbone in (("trained", run.backbone()), ("untrained", run.folder.random_backbone().eval())):
        with evaluating(backbone):
            batches = in_order(images, rows[:512], 256, torch.device("cpu"))
            features = torch.cat([backbone(whole(b, backbone.spec.image_size)) for b in batches])
        print(f"  {title + ' rankme':24} {rankme(features):8.1f}")
        if arguments.objects:
            for name, value in objects(backbone, images, rows, arguments.batch_size).items():
                print(f"  {title + ' ' + name:32} {value:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
