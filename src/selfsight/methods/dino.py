"""DINO: from any crop of an image a student must say what a teacher, its own moving average, says of large crops.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import whole
from selfsight.data.images import Batch
from selfsight.distillation import PrototypeHead, Targets, dino_loss, koleo
from selfsight.methods.method import Facts
from selfsight.methods.two_views import MultiCrop
from selfsight.nn import Teacher
from selfsight.optim import Optim
from selfsight.pictures import bars


class DINO(MultiCrop):
    """Self-distillation: from small crops, answer what an averaged teacher answers for large ones."""

    paper = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021"
    # The paper's decay at AdamW's rate of 1e-3 is 0.04 to 0.4: its product with the rate is the same.
    optim = Optim("muon", lr=1.6e-2, weight_decay=0.01, final_weight_decay=0.1, momentum=0.95, warmup=0.1, clip=3.0)
    batch_size = 64  # in eight views each

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """DINO's hyperparameters; six of them change with the logarithm of the number of images."""

        doublings: ClassVar[int] = 6  # of the default of `prototypes`, from 100,000 images to ImageNet's
        prototypes: int | None = None
        """Directions that views are assigned to; default 1,024 up to 100,000 images, ImageNet 65,536 (iBOT 8,192)."""
        hidden: int | None = None
        """Width of the head's two hidden layers; by default 512 up to 100,000 images, 2,048 for ImageNet."""
        bottleneck: int = 256
        """Length of the unit vectors that are compared with the prototypes."""
        student_temperature: float = 0.1
        """Divides the student's cosines."""
        teacher_temperature: float | None = None
        """Divides the teacher's cosines: lower is sharper; by default 0.02 up to 100,000 images, 0.07 for ImageNet."""
        teacher_temperature_start: float = 0.04
        """The teacher's temperature at the start, where the later one isn't lower."""
        teacher_warmup: float = 0.1
        """Share of the training over which the teacher's temperature rises."""
        momentum: float | None = None
        """Share of its weights that the teacher keeps at each step, rising to 1, the rest being the student's; less in
        trainings of under 2,000 steps. By default 0.99 up to 100,000 images, 0.996 for ImageNet."""
        centring: Literal["mean", "sinkhorn"] | None = None
        """What keeps the teacher from one answer for all: its mean answer is taken away, or a batch's answers spread
        over all prototypes (SwAV, DINOv2); by default mean for ImageNet, where there is no KoLeo, else sinkhorn."""
        centre_momentum: float = 0.9
        """Momentum of the mean that is taken from the teacher's answers; less in trainings of under 200 steps."""
        freeze: float = 0.02
        """Share of the training over which the prototypes stay as they are."""
        koleo: float | None = None
        """Weight of KoLeo, which keeps embeddings apart; by default 0.1 up to 100,000 images, 0 for ImageNet."""
        strength: float | None = None
        """Strength of the colour jitter, 0 to 5; by default 2 up to 100,000 images, the paper's 1 for ImageNet."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            grown = facts.grown
            return replace(
                super().fit_to(facts),
                prototypes=self.prototypes or 2 ** round(10 + self.doublings * grown),
                hidden=self.hidden or 2 ** round(9 + 2 * grown),
                teacher_temperature=self.teacher_temperature or 0.02 + 0.05 * grown,
                momentum=0.99 + 0.006 * grown if self.momentum is None else self.momentum,
                centring=self.centring or ("sinkhorn" if grown < 1 else "mean"),
                koleo=0.1 * (1 - grown) if self.koleo is None else self.koleo,
                strength=2 - grown if self.strength is None else self.strength,
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        spec = backbone.spec
        self.config = config = config.fit_to(Facts(0, spec.image_size, spec.channels))
        assert config.prototypes
        assert config.hidden
        assert config.teacher_temperature
        self.head: PrototypeHead = PrototypeHead(backbone.dim, config.hidden, config.bottleneck, config.prototypes)
        self.teacher = Teacher(nn.Sequential(backbone, self.head))
        temperatures = min(config.teacher_temperature_start, config.teacher_temperature), config.teacher_temperature
        self.targets = Targets(config.prototypes, config.centring == "sinkhorn", temperatures, config.teacher_warmup)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss over all views, and what `compare` tells."""
        large = self.draw(batch)  # (2B, C, S, S)
        features = self.features(batch, large)  # (2 + L, B, dim)
        student = self.head(features, progress < self.config.freeze)  # (2 + L, B, K)
        return self.compare(features, student, self.teacher(large).unflatten(0, (2, -1)), progress)

    def compare(self, features: Tensor, student: Tensor, teacher: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the loss of the student's cosines (2 + L, B, K) against the teacher's (2, B, K), and of KoLeo.

        With it the teacher's entropy and the divergence of the student from it: of two ways to collapse one shows as a
        divergence of 0 at an entropy of ln(prototypes), the other at one of 0. `features` (2 + L, B, dim) are kept
        apart from each other by KoLeo.
        """
        target = self.targets(teacher, progress)
        answers = dino_loss(student, target, self.config.student_temperature)
        self.targets.follow(teacher, self.teacher.brisk(self.config.centre_momentum, progress))
        entropy = torch.special.entr(target).sum(2).mean()
        apart = torch.stack([koleo(one) for one in features[:2]]).mean()
        spread = (self.config.koleo or 0.0) * apart
        return {
            "loss": answers + spread,
            "teacher_entropy": entropy,
            "divergence": answers.detach() - entropy,
            "koleo": apart.detach(),
            "chance": math.log(target.shape[2]) + spread.detach(),
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less. Its BatchNorm statistics are its own, of global views only."""
        assert self.config.momentum is not None
        self.teacher.follow(nn.Sequential(self.backbone, self.head), self.config.momentum, progress)

    def encoder(self) -> Backbone:
        """Return the teacher's backbone: all through training it is better than the student's (section 5.1)."""
        kept = self.teacher.model.get_submodule("0")
        assert isinstance(kept, Backbone)
        return kept

    def projections(self, features: Tensor) -> Tensor:
        """Return the teacher's cosines with the prototypes, of its own features."""
        cosines: Tensor = self.teacher.model.get_submodule("1")(features)
        return cosines

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show views of each image, and what the teacher answers for one and the student for others."""
        one, two, local = (view(batch)[:10] for view in (*self.views, self.local))
        target = self.targets.by_mean(self.teacher(one), 1.0)  # (B, K)
        temperature, likely = self.config.student_temperature, target.topk(min(16, target.shape[1])).indices
        answers = [F.softmax(self.head(self.backbone(x)) / temperature, dim=1) for x in (two, local)]
        drawn = [bars(p.gather(1, likely) / p.amax(1, keepdim=True), one.shape[-1]) for p in (target, *answers)]
        views = [whole(batch, one.shape[-1])[:10], one, two, F.interpolate(local, one.shape[-2:])]
        return {
            "The image, two global views, and a local view, which only the student sees": torch.stack(views),
            "A global view; the teacher's 16 likeliest prototypes for it; how likely the student finds these from the "
            "other; or from a local one (bars: of the highest)": torch.stack([one, *(x.expand_as(one) for x in drawn)]),
        }
