"""Distillation: a small network relates views to earlier images as a large one, trained before, relates them.

Fang, Wang, Wang, Zhang, Yang, Liu: SEED: Self-supervised Distillation for Visual Representation, ICLR 2021.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import backbones
from selfsight.backbones import Backbone
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts
from selfsight.methods.two_views import TwoViews
from selfsight.nn import Queue, cosines, exact, gather, mlp, unit
from selfsight.optim import Optim
from selfsight.run import RunFolder


class Distill(TwoViews):
    """Distillation from any timm model or run: relate each view to earlier images as the teacher does."""

    paper = "Fang et al., SEED: Self-supervised Distillation for Visual Representation, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)
    seen = "two views; the student must relate each to earlier images as the teacher does"

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """What is taught, and by whom."""

        teacher: str | None = None
        """A run's folder, or the name of a timm model, whose pretrained weights are fetched (of a ViT DINOv2's, for
        example: vit_small_patch14_dinov2.lvd142m)."""
        student_temperature: float = 0.2
        """Divides the student's similarities."""
        teacher_temperature: float = 0.04
        """Divides the teacher's: lower, so that near images count most. The paper's is 0.01, for MoCo's vectors."""
        hidden: int = 2048
        """Width of the student's projector."""
        queue: int | None = None
        """Earlier views that are related to; by default half of the images, from 256 to the paper's 65,536."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), queue=self.queue or min(65_536, max(256, facts.images // 2)))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config = config
        self.teacher = known(config.teacher, backbone).requires_grad_(False).eval()
        self.head = mlp(backbone.dim, config.hidden, self.teacher.dim)
        self.queue = Queue(config.queue or 65_536, self.teacher.dim)
        self.register_buffer("mean", torch.zeros(self.teacher.dim))
        self.mean: Tensor

    def train(self, mode: bool = True) -> Self:
        """Set the student to training; the teacher stays as it was evaluated."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the cross entropy of the student's relations to the teacher's (equation 3)."""
        config, x = self.config, self.draw(batch)  # (2B, C, S, S)
        with torch.no_grad():
            side = self.teacher.spec.image_size  # other than the student's where its patches ask for it
            seen = x if side == x.shape[-1] else F.interpolate(x, (side, side), mode="bilinear", antialias=True)
            raw = exact(self.teacher(seen))
            if not self.mean.any():  # a network's features have much in common, beside which relations are small
                self.mean.copy_(gather(raw).mean(0))
            theirs = F.normalize(raw - self.mean, dim=1)  # (2B, D)
        self.queue.push(theirs[: len(batch.images)])  # first, for what is to be answered is among it (section 3.2)
        rows = self.queue.rows
        relations = F.softmax(cosines(theirs, rows) / config.teacher_temperature, dim=1)  # (2B, Q)
        z = unit(self.head(self.backbone(x)))
        loss = F.cross_entropy(cosines(z, rows) / config.student_temperature, relations)
        entropy = torch.special.entr(relations).sum(1).mean()
        return {"loss": loss, "teacher_entropy": entropy, "chance": torch.tensor(math.log(len(rows)))}


def known(teacher: str | None, student: Backbone) -> Backbone:
    """Return the teacher for the student's images: the backbone of a run's folder, or timm's by its name.

    Raises SelfsightError where there is neither, or the run is of images with other channels.
    """
    if teacher is None:
        raise SelfsightError("--teacher: name a timm model or the folder of a run")
    if Path(teacher).is_file():
        raise SelfsightError(f"--teacher {teacher}: is a file; make a run of it: selfsight convert {teacher}")
    spec = student.spec
    if not Path(teacher).is_dir():
        mean, std = backbones.colours_of(teacher) if spec.channels == 3 else (spec.mean, spec.std)
        patch = backbones.own_patch(teacher) if backbones.is_vit(teacher) else 1
        planned = backbones.plan(
            teacher, in_whole(patch, spec.image_size), spec.channels, mean, std, pretrained=True, flag="--teacher"
        )
        return backbones.load_pretrained(planned, "timm", "--teacher")
    trained = RunFolder(Path(teacher)).load_backbone()
    if trained.spec.channels != spec.channels:
        raise SelfsightError(f"--teacher {teacher}: of {trained.spec.channels} channels, the images of {spec.channels}")
    resized = replace(trained.spec, image_size=in_whole(trained.spec.patch_size or 1, spec.image_size))
    return backbones.with_weights(resized, trained.model.state_dict(), f"--teacher {teacher}")


def in_whole(patch: int, size: int) -> int:
    """Return the side of the smallest square of whole patches that is no smaller than `size` pixels."""
    return math.ceil(size / patch) * patch
