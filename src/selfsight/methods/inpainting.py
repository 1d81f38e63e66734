"""Inpainting: fill in a hidden part of an image.

Pathak, Krähenbühl, Donahue, Darrell, Efros: Context Encoders: Feature Learning by Inpainting, CVPR 2016.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.adversarial import adversarial_losses, discriminator
from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.data.masks import Blend, centre_block, error_weight, random_regions, smooth_fill
from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts, Method
from selfsight.nn import map_decoder
from selfsight.optim import Optim


class Inpainting(Method):
    """Generative: fill in a hidden part of the image from what is around it."""

    paper = "Pathak et al., Context Encoders: Feature Learning by Inpainting, 2016"
    optim = Optim("adamw", lr=4e-3, weight_decay=0.05, warmup=0.05)
    batch_size = 64  # as in the authors' code: small batches, many steps

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Inpainting's hyperparameters."""

        mask: Literal["regions", "centre"] = "regions"
        """What is hidden: random regions, the paper's choice for features, or the centre block, its for pictures."""
        share: float = 0.25
        """Share of the image that is hidden, between 0 and 1."""
        grain: int | None = None
        """Width in pixels of a small region; by default a quarter of the view, the authors' 16 at 64 pixels."""
        overlap: int | None = None
        """Visible pixels around the hidden part, answered too; by default 1/32 of the side for centre, else 0."""
        adversarial: float = 0.0
        """Weight of the adversarial loss, below 1: the paper's 0.001 for sharp pictures, its 0 for features."""
        crop_min: float = 0.5
        """Smallest crop as a share of the image."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""

        def __post_init__(self) -> None:
            if not (0 < self.share < 1 and 0 <= self.adversarial < 1):
                raise SelfsightError(f"share {self.share}, adversarial {self.adversarial}: must lie between 0 and 1")

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            around = facts.image_size // 32 if self.mask == "centre" else 0
            overlap = around if self.overlap is None else self.overlap
            return replace(self, grain=self.grain or max(1, facts.image_size // 4), overlap=overlap)

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        backbone.train_maps_only()
        size, channels = backbone.spec.image_size, backbone.spec.channels
        self.config = config.fit_to(Facts(0, size, channels))
        self.view = View(size, scale=(config.crop_min, 1.0), hflip=config.hflip)
        # Up to at least half the view: the last doubling would cost more than the others together, for smooth answers.
        doublings = max(0, math.ceil(math.log2(backbone.reduction)) - 1)
        self.decoder = map_decoder(backbone.map_dim, channels, doublings)
        # Not in the paper: the last map is too coarse to tell the colours right beside what is seen, where a smooth
        # fill is hard to beat. No gradient of it reaches the backbone: that must still tell all of the hidden part.
        self.blend = Blend()
        self.critic = discriminator(channels, size) if config.adversarial else None

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the paper's joint loss (equation 4) on normalized pixels, and the PSNR of the hidden ones in dB.

        Both also for the one colour that fits the hidden pixels of the batch best: chance, psnr_chance. `psnr` is of
        the network's own answer, psnr_smooth of the smooth fill, psnr_blend of what pictures show.
        """
        x = self.view(batch)  # (B, C, S, S)
        hidden = self.draw_masks(x)  # (B, 1, S, S)
        answer, truth = self.answer(x, hidden), self.backbone.normalize(x)
        weight = error_weight(hidden, self.config.overlap or 0)
        colour = (weight * truth).sum((0, 2, 3), keepdim=True) / weight.sum()  # (1, C, 1, 1)
        loss, chance = (reconstruction_loss(y, truth, weight) for y in (answer, colour))
        smooth = self.backbone.normalize(smooth_fill(x, hidden))
        if self.training:
            self.blend.learn(answer, smooth, truth, hidden)
        told = {"": answer, "_blend": self.blend(answer, smooth, hidden), "_smooth": smooth, "_chance": colour}
        out = {f"psnr{name}": psnr(self.pixels(y), x, hidden) for name, y in told.items()}
        if self.critic is not None:
            share = self.config.adversarial
            fooling, judging = adversarial_losses(self.critic, truth, torch.where(weight > 0, answer, truth))
            # The discriminator's own loss adds its gradient but not its value, which tells nothing of the answers.
            loss = (1 - share) * loss + share * fooling + (judging - judging.detach())
            chance = (1 - share) * chance
            out |= {"adversarial": fooling, "discriminator": judging}
        return {"loss": loss, "chance": chance, **out}

    def draw_masks(self, x: Tensor) -> Tensor:
        """Return what to hide of each image of `x` (B, C, S, S): (B, 1, S, S) bool, the same share of each."""
        n, size, share = len(x), x.shape[-1], self.config.share
        if self.config.mask == "centre":
            return centre_block(size, share).to(x.device).expand(n, 1, size, size)
        return random_regions(n, size, share, self.config.grain or 1, x.device)

    def answer(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the network's answer for all of `x` (B, C, S, S), normalized, float32; `hidden` it doesn't see.

        There it sees the mean colour, which is normalized to zero.
        """
        y = self.decoder(self.backbone.maps(torch.where(hidden, self.backbone.mean, x)))  # (B, C, about S/2, S/2)
        return F.interpolate(y.float(), size=x.shape[-2:], mode="bilinear")

    def pixels(self, normalized: Tensor) -> Tensor:
        """Return normalized images as images in [0, 1], without gradients."""
        return (normalized.detach() * self.backbone.std + self.backbone.mean).clamp(0, 1)

    def fill(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [0, 1] with the part `hidden` (B, 1, S, S) filled in."""
        smooth = self.backbone.normalize(smooth_fill(x, hidden))
        return torch.where(hidden, self.pixels(self.blend(self.answer(x, hidden), smooth, hidden)), x)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images: with a part hidden, filled in, and whole."""
        x = whole(batch, self.view.size)[:10]
        hidden = self.draw_masks(x)
        seen, filled = torch.where(hidden, self.backbone.mean, x), self.fill(x, hidden)
        mine, theirs = (float(psnr(y, x, hidden)) for y in (filled, smooth_fill(x, hidden)))
        caption = (
            "Top to bottom: what it saw; the hidden part filled in by its answer, mixed with a smooth fill where that "
            f"has proved closer ({mine:.1f} dB, the smooth fill alone {theirs:.1f}; more is better); the truth"
        )
        return {caption: torch.stack([seen, filled, x])}


def reconstruction_loss(answer: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean squared error of each image (B, C, S, S), averaged; `weight` is (B, 1, S, S).

    Equation 1, |M · (x - F((1 - M) · x))|², of the weight M, per unit of weight.
    """
    errors = weight * (answer - truth).square()
    return (errors.sum((1, 2, 3)) / (truth.shape[1] * weight.sum((1, 2, 3)))).mean()


def psnr(answer: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio over all hidden pixels of images in [0, 1], in dB, at most 100."""
    return -10 * reconstruction_loss(answer, truth, hidden.float()).clamp(min=1e-10).log10()
