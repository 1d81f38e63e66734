"""ReSSL: how similar a view is to earlier images must be what a teacher finds for another, gentler view.

Zheng et al.: ReSSL: Relational Self-Supervised Learning with Weak Augmentation, NeurIPS 2021.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.methods.method import Facts
from selfsight.methods.two_views import Taught
from selfsight.nn import Queue, cosines, mlp, unit
from selfsight.optim import Optim


class ReSSL(Taught):
    """Relational: similarities of a strongly changed view to earlier images are those of a gently changed one."""

    paper = "Zheng et al., ReSSL: Relational Self-Supervised Learning with Weak Augmentation, 2021"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.1)

    @dataclass(frozen=True)
    class Config(Taught.Config):
        """ReSSL's hyperparameters."""

        imagenet: ClassVar[float] = 0.999
        blur: float | None = None
        """Probability that the student's view is blurred, the only one it sees. By default 0.5, and 0 for images below
        64 pixels."""
        student_temperature: float = 0.1
        """Divides the student's similarities."""
        teacher_temperature: float = 0.04
        """Divides the teacher's similarities: lower is sharper."""
        hidden: int = 4096
        """Width of the projector's hidden layer."""
        projection: int = 512
        """Length of the projected vectors."""
        queue: int | None = None
        """Earlier images to be compared with; by default a quarter of the images, from 256 to the paper's 131,072."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(
                super().fit_to(facts),
                blur=0.5 * (facts.image_size >= 64) if self.blur is None else self.blur,
                queue=self.queue or min(131_072, max(256, facts.images // 4)),
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config, mlp(backbone.dim, config.hidden, config.projection))
        self.config = config
        self.queue = Queue(config.queue or 4096, config.projection)
        self.gentle = View(self.views[0].size, (0.2, 1.0), hflip=config.hflip, vflip=config.vflip)  # no colours

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the cross entropy of the student's relations to the teacher's (equation 6), and their entropy."""
        z = unit(self.head(self.backbone(self.views[0](batch))))  # (B, D)
        target = unit(self.teacher(self.gentle(batch)))
        rows = self.queue.rows
        relations = F.softmax(cosines(target, rows) / self.config.teacher_temperature, dim=1)  # (B, Q)
        loss = F.cross_entropy(cosines(z, rows) / self.config.student_temperature, relations)
        self.queue.push(target)
        return {"loss": loss, "entropy": torch.special.entr(relations).sum(1).mean()}

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show the images, the gentle view that the teacher sees and the strong one that the student sees."""
        rows = torch.stack([whole(batch, self.gentle.size), self.gentle(batch), self.views[0](batch)])
        caption = "Top to bottom: the image, the teacher's gentle view, the student's strong one"
        return {caption: rows[:, :10]}
