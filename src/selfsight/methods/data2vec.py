"""data2vec 2: from a part of an image's patches, predict what a teacher makes of the hidden ones in its upper layers.

Baevski, Babu, Hsu, Auli: Efficient Self-supervised Learning with Contextualized Target Representations for Vision,
Speech and Language, ICML 2023.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.masking import (
    MaskedDecoder,
    blocks,
    embed,
    encode,
    grid_of,
    require_share,
    take,
    the_vit,
    where,
    without,
)
from selfsight.methods.method import Facts, Method
from selfsight.nn import Teacher, exact
from selfsight.optim import Optim


class Data2Vec(Method):
    """Latent regression: from visible patches, predict the averaged upper layers of a teacher that sees all."""

    paper = "Baevski et al., Efficient Self-supervised Learning with Contextualized Target Representations, 2023"
    optim = Optim("muon", lr=8e-3, weight_decay=0.05, momentum=0.95, warmup=0.1, clip=4.0)
    batch_size = 64  # each with several masks
    vit = mean_tokens = True

    @dataclass(frozen=True)
    class Config(Method.Config):
        """data2vec's hyperparameters."""

        mask: float = 0.8
        """Share of the patches that are hidden, 0 to 1."""
        masks: int | None = None
        """Masks an image, for all of which the teacher looks once; by default the paper's 16 for 100,000 images or
        more, else 2."""
        layers: int | None = None
        """Upper layers of the teacher that are averaged; by default the upper five sixths, the paper's 10 of 12."""
        width: int | None = None
        """Width of the decoder; by default 384, and 192 below 160 pixels. The paper's is of convolutions."""
        depth: int = 2
        """Blocks of the decoder."""
        whole: float = 0.01
        """Weight of predicting the mean of the targets by the class token too, where the ViT has one."""
        momentum: float = 0.999
        """The teacher's at the start, 1 at the end; less in short trainings."""
        crop_min: float = 0.2
        """Smallest crop as a share of the image."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            masks = self.masks or (16 if facts.images >= 100_000 else 2)
            return replace(self, masks=masks, width=self.width or (192 if facts.image_size < 160 else 384))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config, self.grid = config, grid_of(backbone)
        require_share(config.mask, self.grid**2)
        self.view = View(backbone.spec.image_size, (config.crop_min, 1.0), hflip=config.hflip)
        self.decoder = MaskedDecoder(backbone.dim, config.width or 192, config.depth, self.grid, backbone.dim)
        self.teacher = Teacher(backbone)
        self.prefix = the_vit(backbone).num_prefix_tokens
        self.summary = nn.Linear(backbone.dim, backbone.dim) if self.prefix else None

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean squared error of the hidden patches' targets, and the part of the class token."""
        x = self.view(batch)
        target = self.targets(x)  # (B, N, D)
        losses, wholes = [], []
        for _ in range(self.config.masks or 2):
            hidden = self.hide(len(x), x.device)
            kept, asked = where(~hidden), where(hidden)
            tokens = encode(self.backbone, x, kept=kept)
            answers = exact(self.decoder(tokens[:, self.prefix :], kept, asked))
            losses.append(F.mse_loss(answers, take(target, asked)))
            if self.summary is not None:
                wholes.append(F.mse_loss(exact(self.summary(tokens[:, 0])), target.mean(1)))
        loss = torch.stack(losses).mean()
        chance = (target - target.mean(0)).square().mean()  # of what is usual at each place, whatever the image
        if not wholes:
            return {"loss": loss, "chance": chance}
        summary = torch.stack(wholes).mean()
        return {"loss": loss + self.config.whole * summary, "summary": summary.detach(), "chance": chance}

    def hide(self, count: int, device: torch.device) -> Tensor:
        """Return which patches (count, N) are hidden: all but those of a few blocks (section 3.3)."""
        return ~blocks(torch.full((count,), 1 - self.config.mask), self.grid, device)

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """Return what is to be predicted (B, N, D): the teacher's upper layers, each normalized over an image's
        patches, their mean, and that normalized over its features (sections 3.1 and A.1)."""
        assert isinstance(self.teacher.model, Backbone)
        vit = the_vit(self.teacher.model)
        y, found = vit.norm_pre(embed(self.teacher.model, x)), []
        for block in vit.blocks:
            y = block(y)
            found.append(F.instance_norm(exact(y[:, self.prefix :]).transpose(1, 2)).transpose(1, 2))
        upper = self.config.layers or max(1, len(found) * 5 // 6)
        mean = torch.stack(found[-upper:]).mean(0)
        return F.layer_norm(mean, mean.shape[-1:])

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less."""
        self.teacher.follow(self.backbone, self.config.momentum, progress)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show images, and what the ViT sees of them."""
        x = whole(batch, self.view.size)[:10]
        hidden = self.hide(len(x), x.device)
        caption = (
            "Top to bottom: the image, and what the ViT sees of it when it predicts a teacher's features of the rest"
        )
        return {caption: torch.stack([x, without(x, hidden)])}
