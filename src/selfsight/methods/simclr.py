"""SimCLR: two views of an image must find each other among all views of the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.methods.method import Facts, Method
from selfsight.nn import cosines, gather, mlp, process, unit
from selfsight.optim import Optim
from selfsight.pictures import matrix


class SimCLR(Method):
    """Contrastive: views of one image attract, all other images repel."""

    paper = "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020"
    optim = Optim("muon", lr=8e-3, weight_decay=0.01, momentum=0.95, warmup=0.05)

    @dataclass(frozen=True)
    class Config(Method.Config):
        """SimCLR's hyperparameters."""

        temperature: float = 0.2
        """Divides the similarities; lower looks at the hardest negatives only."""
        hidden: int = 2048
        """Width of the projector's hidden layer."""
        projection: int = 128
        """Length of the projected vectors that the loss compares."""
        crop_min: float | None = None
        """Smallest crop as a share of the image; by default 0.08, 0.3 for images of 64 pixels, 0.2 below."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""
        vflip: float = 0.0
        """Probability of a top-bottom flip; 0.5 for images without an up, as satellite or microscope images."""
        strength: float | None = None
        """Strength of the colour jitter; by default the paper's 1, and its CIFAR setting of 0.5 up to 64 pixels."""
        grey: float = 0.2
        """Probability that a colour view becomes grey; 0 where colour is what tells, as in stained tissue."""
        blur: float | None = None
        """Probability of Gaussian blur; by default 0.5, none below 64 pixels, as in the paper's CIFAR setting."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            small, icon = facts.image_size < 64, facts.image_size == 64
            return replace(
                self,
                crop_min=self.crop_min or (0.2 if small else 0.3 if icon else 0.08),
                strength=(0.5 if small or icon else 1.0) if self.strength is None else self.strength,
                blur=(0.0 if small else 0.5) if self.blur is None else self.blur,
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        spec = backbone.spec
        config = config.fit_to(Facts(0, spec.image_size, spec.channels))
        assert config.crop_min
        assert config.strength is not None
        assert config.blur is not None
        self.temperature = config.temperature
        self.head = mlp(backbone.dim, config.hidden, config.projection)
        view = View(spec.image_size, (config.crop_min, 1.0), hflip=config.hflip, vflip=config.vflip, blur=config.blur)
        s = config.strength
        self.view = replace(view, brightness=0.8 * s, contrast=0.8 * s)
        if spec.channels == 3:
            self.view = replace(self.view, saturation=0.8 * s, hue=0.2 * s, grey=config.grey)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return NT-Xent over two views of each image."""
        x = torch.cat([self.view(batch), self.view(batch)])  # (2B, C, S, S)
        z = unit(self.head(self.backbone(x)))  # (2B, D)
        loss, accuracy = nt_xent(z, self.temperature)
        others = len(z) * process()[1] - 1
        return {"loss": loss, "accuracy": accuracy, "chance": torch.tensor(math.log(others))}

    def projections(self, features: Tensor) -> Tensor:
        """Return the head's output."""
        projected: Tensor = self.head(features)
        return projected

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show the images and two views of each, and how alike the network finds all these views."""
        rows = torch.stack([whole(batch, self.view.size), self.view(batch), self.view(batch)])[:, :10]
        pictures = {"Top to bottom: the image, and two random views that must find each other": rows}
        views = rows[1:].flatten(0, 1)  # (2B, C, S, S)
        z = unit(self.head(self.backbone(views)))
        alike, itself = cosines(z, z), torch.eye(len(z), dtype=torch.bool, device=z.device)
        partner = itself.roll(len(z) // 2, 1)
        if len(z) > 2:
            positive, negative = alike[partner].mean(), alike[~(partner | itself)].mean()
            caption = (
                f"How alike the network finds these views: framed the pairs of one image (positives, on average "
                f"{positive:.2f}), all others are negatives ({negative:.2f}); cosine, dark 0 or less, bright 1"
            )
            pictures[caption] = matrix(alike, views, partner)
        return pictures


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return NT-Xent, the paper's equation 1, and the share of views that find their partner.

    `z` (2B, D): unit vectors; row i and row i + B (mod 2B) are views of one image. Each view must pick its partner
    among the 2·B·world - 1 other views of all processes. The loss is the mean over this process's views.
    """
    itself = process()[0] * len(z) + torch.arange(len(z), device=z.device)  # (2B,) its place among all views
    partner = itself.roll(len(z) // 2)
    logits = cosines(z, gather(z)) / temperature  # (2B, world · 2B)
    logits = logits.scatter(1, itself[:, None], -math.inf)
    accuracy = (logits.detach().argmax(1) == partner).float().mean()
    return F.cross_entropy(logits, partner), accuracy
