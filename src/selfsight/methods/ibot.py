"""iBOT: DINO, and besides, of large views with hidden patches, say what the teacher says of those patches.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong: iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import uniform
from selfsight.data.images import Batch
from selfsight.distillation import Targets
from selfsight.masking import blocks, encode, grid_of, the_vit, without
from selfsight.methods.dino import DINO
from selfsight.methods.method import Facts
from selfsight.nn import Teacher


class IBOT(DINO):
    """Self-distillation: DINO, and hidden patches must be answered as the teacher, which sees them, does."""

    paper = "Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, 2022"
    batch_size = 32  # a ViT from scratch gains more from many steps
    vit = True

    @dataclass(frozen=True)
    class Config(DINO.Config):
        """DINO's hyperparameters, and those of the hidden patches."""

        doublings: ClassVar[int] = 3
        local_views: int | None = None
        """Small crops an image; by default 6, and none up to 64 pixels: more images in the time are worth more."""
        masked: float = 0.5
        """Share of the large views that have hidden patches, above 0 to 1; at least one view has."""
        mask: tuple[float, float] = (0.1, 0.5)
        """Least and largest share of such a view's patches that is hidden."""
        patch_weight: float | None = None
        """Weight of the loss over hidden patches; by default 0.1 up to 100,000 images, the paper's 1 for ImageNet."""
        shared: bool = True
        """Whether patches and whole views are answered by the same head."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            fitted = super().fit_to(facts)
            return replace(
                fitted,
                local_views=0 if self.local_views is None and facts.image_size <= 64 else fitted.local_views,
                patch_weight=0.1 + 0.9 * facts.grown if self.patch_weight is None else self.patch_weight,
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        assert isinstance(self.config, IBOT.Config)  # the one given, fitted by DINO
        self.masks, self.grid = self.config, grid_of(backbone)
        self.token = nn.Parameter(torch.zeros(backbone.dim))
        self.patch_head = self.head if config.shared else copy.deepcopy(self.head)
        self.teacher = Teacher(nn.ModuleList([backbone, self.head, self.patch_head]))
        self.patch_targets = Targets(
            len(self.head.prototypes), self.targets.spread, self.targets.temperatures, self.targets.warmup
        )

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return DINO's loss and that over hidden patches (equations 1 and 2)."""
        config, large = self.masks, self.draw(batch)  # (2B, C, S, S)
        hidden, frozen = self.hide(len(large), large.device), progress < self.config.freeze
        prefix = the_vit(self.backbone).num_prefix_tokens
        tokens = encode(self.backbone, large, hidden=hidden, token=self.token)
        features = self.with_small(batch, self.backbone.pool(tokens))
        assert isinstance(self.teacher.model, nn.ModuleList)
        with torch.no_grad():
            theirs, head, patch_head = self.teacher.model
            assert isinstance(theirs, Backbone)
            seen = encode(theirs, large)
            teacher = head(theirs.pool(seen)).unflatten(0, (2, -1))
            patches = patch_head(seen[:, prefix:][hidden])  # (H, K)
            target = self.patch_targets(patches, progress)
        out = self.compare(features, self.head(features, frozen), teacher, progress)
        answers = self.patch_head(tokens[:, prefix:][hidden], frozen) / self.config.student_temperature
        loss = patch_loss(answers, target, hidden.sum(1))
        self.patch_targets.follow(patches, self.teacher.brisk(self.config.centre_momentum, progress))
        assert config.patch_weight is not None
        chance = config.patch_weight * math.log(target.shape[1])
        total = out["loss"] + config.patch_weight * loss
        return out | {"loss": total, "patches": loss.detach(), "chance": out["chance"] + chance}

    def hide(self, count: int, device: torch.device) -> Tensor:
        """Return which patches (count, N) of large views are hidden: in some views none, in others various shares.

        The shares are evenly spaced and dealt at random, so that each process hides as many patches.
        """
        some = max(1, round(self.masks.masked * count))
        shares = torch.cat([torch.zeros(count - some), torch.linspace(*self.masks.mask, some)])
        return blocks(shares[uniform(count, 0, 1).argsort()], self.grid, device)

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less."""
        assert self.config.momentum is not None
        student = nn.ModuleList([self.backbone, self.head, self.patch_head])
        self.teacher.follow(student, self.config.momentum, progress)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show large views, and what is left of them."""
        large = self.views[0](batch)[:10]
        shares = torch.linspace(*self.masks.mask, len(large))
        rows = torch.stack([large, without(large, blocks(shares, self.grid, large.device))])
        low, high = self.masks.mask
        caption = (
            f"Large views, which the teacher sees, and what the student sees of them, {low:.0%} hidden on the left to "
            f"{high:.0%} on the right; in training {1 - self.masks.masked:.0%} of them stay whole"
        )
        if self.local_views:
            caption += ", and the student sees small views too, as in DINO"
        return {caption: rows}


def patch_loss(student: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Return the cross entropy of the student's logits to the target probabilities, both (H, K), of hidden patches.

    The patches stand in the order of their views, of which each misses `count` (V,), some none: the mean is over a
    view's patches first, then over the views that miss any.
    """
    each = -(target * F.log_softmax(student, 1)).sum(1)
    return (each / count.clamp(1).repeat_interleave(count)).sum() / (count > 0).sum().clamp(1)
