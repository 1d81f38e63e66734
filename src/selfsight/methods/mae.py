"""MAE: of an image three quarters of whose patches are hidden, a small decoder must paint the hidden ones.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.masking import (
    MaskedDecoder,
    encode,
    grid_of,
    patchify,
    require_share,
    scattered,
    the_vit,
    unpatchify,
    where,
    without,
)
from selfsight.methods.method import Facts, Method
from selfsight.nn import exact
from selfsight.optim import Optim


class MAE(Method):
    """Masked autoencoder: a ViT sees a quarter of the patches, a small decoder paints the others."""

    paper = "He et al., Masked Autoencoders Are Scalable Vision Learners, 2022"
    optim = Optim("muon", lr=8e-3, weight_decay=0.05, momentum=0.95, warmup=0.1)
    batch_size = 128
    vit = mean_tokens = True

    @dataclass(frozen=True)
    class Config(Method.Config):
        """MAE's hyperparameters."""

        mask: float = 0.75
        """Share of the patches that are hidden, 0 to 1."""
        width: int | None = None
        """Width of the decoder; by default the paper's 512, and 192 below 160 pixels."""
        depth: int | None = None
        """Blocks of the decoder; by default the paper's 8, and 2 below 160 pixels."""
        crop_min: float = 0.2
        """Smallest crop as a share of the image."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            small = facts.image_size < 160
            return replace(self, width=self.width or (192 if small else 512), depth=self.depth or (2 if small else 8))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.grid, self.mask = grid_of(backbone), config.mask
        require_share(self.mask, self.grid**2)
        size, channels = backbone.spec.image_size, backbone.spec.channels
        self.view = View(size, (config.crop_min, 1.0), hflip=config.hflip)
        pixels = channels * (size // self.grid) ** 2
        self.decoder = MaskedDecoder(backbone.dim, config.width or 192, config.depth or 2, self.grid, pixels)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean squared error of the hidden patches' pixels, each patch with mean 0 and variance 1."""
        x = self.view(batch)
        hidden = scattered(len(x), self.grid**2, self.mask, x.device)
        answers = exact(self.answer(x, hidden))
        target, _, _ = normalized(patchify(x, self.grid)[hidden].view_as(answers))
        return {"loss": (answers - target).square().mean(), "chance": target.square().mean()}

    def answer(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the decoder's pixels (B, H, C · P · P) of the hidden patches of x, of which H an image are hidden."""
        kept = where(~hidden)
        tokens = encode(self.backbone, x, kept=kept)[:, the_vit(self.backbone).num_prefix_tokens :]
        answers: Tensor = self.decoder(tokens, kept, where(hidden))
        return answers

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show images, what the ViT sees of them, and the decoder's painting, with each patch's own mean and scale."""
        x = whole(batch, self.view.size)[:10]
        hidden = scattered(len(x), self.grid**2, self.mask, x.device)
        patches = patchify(x, self.grid)
        answers = exact(self.answer(x, hidden))
        _, mean, std = normalized(patches[hidden].view_as(answers))
        patches[hidden] = (answers * std + mean).flatten(0, 1)
        painted = unpatchify(patches, x.shape[-1]).clamp(0, 1)
        caption = (
            "Top to bottom: the image; what the ViT sees; the hidden patches as the decoder paints them (it is taught "
            "each patch's pattern only: its brightness and contrast are taken from the image)"
        )
        return {caption: torch.stack([x, without(x, hidden), painted])}


def normalized(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches (..., P) with mean 0 and variance 1, and their means and deviations (..., 1) (section 4.1)."""
    mean = patches.mean(-1, keepdim=True)
    std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / std, mean, std
