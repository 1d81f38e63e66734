"""SimMIM: mask tokens stand for large hidden patches, and one linear layer says their pixels.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu: SimMIM: A Simple Framework for Masked Image Modeling, CVPR 2022.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.masking import encode, grid_of, patchify, require_share, scattered, the_vit, unpatchify, without
from selfsight.methods.method import Method
from selfsight.nn import exact
from selfsight.optim import Optim


class SimMIM(Method):
    """Masked image modelling: mask tokens in the ViT, pixels out of one linear layer."""

    paper = "Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, 2022"
    optim = Optim("muon", lr=8e-3, weight_decay=0.05, momentum=0.95, warmup=0.1, clip=5.0)
    batch_size = 128
    vit = mean_tokens = True

    @dataclass(frozen=True)
    class Config(Method.Config):
        """SimMIM's hyperparameters."""

        mask: float = 0.6
        """Share of the image that is hidden, 0 to 1."""
        block: int | None = None
        """Patches that are hidden together, side by side and one below the other: by default the paper's 2 where an
        even number of 12 or more stands in a row, else 1."""
        crop_min: float = 0.67
        """Smallest crop as a share of the image."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config, self.grid = config, grid_of(backbone)
        self.block = config.block or (2 if self.grid >= 12 and self.grid % 2 == 0 else 1)
        if self.grid % self.block:
            raise SelfsightError(f"--block {self.block}: {self.grid} patches in a row are no whole number of blocks")
        require_share(config.mask, (self.grid // self.block) ** 2)
        size, channels = backbone.spec.image_size, backbone.spec.channels
        self.view = View(size, (config.crop_min, 1.0), hflip=config.hflip)
        self.token = nn.Parameter(torch.randn(backbone.dim) * 0.02)
        self.head = nn.Linear(backbone.dim, channels * (size // self.grid) ** 2)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean absolute error of the hidden patches' normalized pixels (section 3.4)."""
        x = self.view(batch)
        hidden = self.hide(len(x), x.device)
        target = patchify(self.backbone.normalize(x), self.grid)[hidden]  # (B · H, C · P · P)
        answers = exact(self.answer(x, hidden)[hidden])
        return {"loss": F.l1_loss(answers, target), "chance": target.abs().mean()}  # of the mean colour everywhere

    def hide(self, count: int, device: torch.device) -> Tensor:
        """Return which patches (count, N) are hidden, in blocks."""
        coarse = self.grid // self.block
        hidden = scattered(count, coarse**2, self.config.mask, device).view(count, coarse, coarse)
        return hidden.repeat_interleave(self.block, 1).repeat_interleave(self.block, 2).flatten(1)

    def answer(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the normalized pixels (B, N, C · P · P) that the network sees and guesses."""
        tokens = encode(self.backbone, x, hidden=hidden, token=self.token)
        answers: Tensor = self.head(tokens[:, the_vit(self.backbone).num_prefix_tokens :])
        return answers

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show images, what is left of them, and what the network puts there."""
        x = whole(batch, self.view.size)[:10]
        hidden = self.hide(len(x), x.device)
        patches = patchify(self.backbone.normalize(x), self.grid)
        patches[hidden] = exact(self.answer(x, hidden)[hidden])
        guessed = unpatchify(patches, x.shape[-1]) * self.backbone.std + self.backbone.mean
        return {
            "Top to bottom: the image, what is left of it, the hidden patches as the network guesses them": torch.stack(
                [x, without(x, hidden), guessed.clamp(0, 1)]
            )
        }
