"""Export a trained classifier, detector or segmenter as ONNX, checked against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.data import in_order, open_boxes, open_images, open_masks
from selfsight.data.annotations import Annotated
from selfsight.data.augment import whole
from selfsight.errors import SelfsightError
from selfsight.onnx_file import Answer, write_onnx
from selfsight.progress import say
from selfsight.run import RunFolder
from selfsight.tasks.predict import Model, load_model

OUTPUTS = {
    "classification": ("confidences",),
    "detection": ("boxes", "scores", "labels"),
    "segmentation": ("logits",),
}
TOLERANCE = 1e-3
"""Largest difference from torch, as a share of the largest answer (at least 1)."""
CHECKED = 4
"""So many images are answered by both."""


class Deployed(nn.Module):
    """A model as it is used.

    It gives confidences (N, K), logits (N, K, S, S), or of one image boxes (n, 4), scores (n,) and labels (n,).
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.task, self.model, self.several = model.task, model.model, model.separator is not None

    def forward(self, images: Tensor) -> Any:
        """Answer images (N, C, S, S) in [0, 1]."""
        answer = self.model(images)
        if self.task == "classification":
            return answer.sigmoid() if self.several else answer.softmax(1)
        if self.task == "detection":
            return tuple(answer[0][name] for name in OUTPUTS["detection"])
        return answer


def export_task(path: str | Path, out: Path | None = None) -> Path:
    """Write the model that `selfsight train` left in the folder `path` as ONNX, and return the file.

    By default model.onnx in that folder. It takes 'images' (N, C, S, S) float32 in [0, 1], N being 1 for detectors, and
    returns what `Deployed` does under the names of OUTPUTS; boxes in pixels of the S x S input. Before the file gets
    its name it is compared with torch on the first images of the training data, or on noise if these are gone.

    Raises SelfsightError for an unfinished model, another suffix than .onnx, a missing package, or different answers.
    """
    folder = RunFolder(Path(path))
    out = out or folder.path / "model.onnx"
    if out.suffix != ".onnx":
        raise SelfsightError(f"--out {out}: the onnx format is an .onnx file")
    model = load_model(path)
    module = Deployed(model).cpu().eval()
    images = _examples(folder.config()["data"], model)
    one, compared = model.task == "detection", False

    def check(answer: Answer) -> float:
        parts = list(images[:, None]) if one else [images, images[:1]]
        with torch.inference_mode():
            pairs = [(answer(part), module(part)) for part in parts]
        difference = 0.0
        nonlocal compared
        for found, expected in pairs:
            for a, b in zip(found, expected if one else (expected,), strict=True):
                if a.shape != b.shape:
                    raise SelfsightError(f"{out}: not written: it answers {tuple(a.shape)}, torch {tuple(b.shape)}")
                if b.numel():
                    compared = True
                    difference = max(difference, float((a - b).abs().max() / b.abs().max().clamp(min=1)))
        if not difference <= TOLERANCE:  # NaN too
            raise SelfsightError(f"{out}: not written: its answers differ from torch's by {difference:.1e}")
        return difference

    difference = write_onnx(module, images[:1] if one else images[:2], out, OUTPUTS[model.task], check, one_image=one)
    say(
        f"{out}: answers equal torch's to {difference:.1e}"
        if compared
        else f"{out}: it finds nothing in the images that it was to be checked on, as torch does: no box was compared"
    )
    return out


def _examples(data: str, model: Model) -> Tensor:
    """Return some images (CHECKED, C, S, S): the first of the training data, or noise."""
    spec, size = model.model.backbone.spec, model.image_size
    try:
        openers: dict[str, Callable[[str], Annotated]] = {"detection": open_boxes, "segmentation": open_masks}
        source = openers[model.task](data) if model.task in openers else data
        images = open_images(source, image_size=size, channels=spec.channels, stretch=model.stretch, cache=False)
        (batch,) = in_order(images, np.arange(CHECKED), CHECKED, torch.device("cpu"))
        return whole(batch, size)
    except (SelfsightError, IndexError, OSError):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(CHECKED, spec.channels, size, size, generator=generator)
