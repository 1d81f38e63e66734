"""Colorization: see the image in grey, and tell each pixel's colour as one of 313.

Zhang, Isola, Efros: Colorful Image Colorization, ECCV 2016. Section and equation numbers are of its arXiv version.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, whole
from selfsight.data.images import Batch
from selfsight.data.lab import AbBins, lab_to_rgb, rgb_to_lab, shrunk_ab, to_lightness
from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts, Method
from selfsight.nn import map_decoder, process
from selfsight.optim import Optim

GREY = 5.0
"""An image without a pixel of |a| or |b| above this has no colour to learn from (the authors' training code)."""
SLOWEST, PATIENCE = 1e-3, 20
"""A batch's share of the colour prior once a thousand have been seen; batches without any colour before it gives up."""


class Colorization(Method):
    """Colour: see the image in grey, and tell each pixel's colour as one of 313.

    The backbone sees ordinary three-channel images, but only grey ones in training: a grey image is what it knows, a
    coloured one is new to it.
    """

    paper = "Zhang et al., Colorful Image Colorization, 2016"
    optim = Optim("adamw", lr=2e-3, weight_decay=0.05, warmup=0.05)
    batch_size = 128
    prior: Tensor
    batches: Tensor

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Colorization's hyperparameters."""

        balance: float = 0.5
        """The paper's lambda: 1 weighs all colours alike, 0 by how rare they are."""
        sigma: float = 5.0
        """Spread of a colour over its nearest bins, in units of a and b."""
        temperature: float = 0.38
        """Only of pictures' colours: 0 takes each pixel's likeliest colour, vivid but patchy; 1 the mean, dull."""
        crop_min: float | None = None
        """Smallest crop as a share of the image; by default 0.35, and 0.6 below 64 pixels."""
        hflip: float = 0.5
        """Probability of a left-right flip."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images; SelfsightError for images that are not in colour."""
            if facts.channels != 3:
                what = "these are grey" if facts.channels == 1 else f"these have {facts.channels} bands"
                raise SelfsightError(f"colorization learns by telling the colours of red-green-blue images; {what}")
            return replace(self, crop_min=self.crop_min or (0.6 if facts.image_size < 64 else 0.35))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        backbone.train_maps_only()
        size = backbone.spec.image_size
        self.config = config = config.fit_to(Facts(0, size, backbone.spec.channels))
        assert config.crop_min is not None
        self.view = View(size, scale=(config.crop_min, 1.0), hflip=config.hflip)  # colour jitter would change the task
        self.bins = AbBins()
        colours = len(self.bins.centres)
        # The paper's output has a quarter of the image's side; the nearest that doubling the map comes to.
        self.decoder = map_decoder(backbone.map_dim, colours, max(0, round(math.log2(backbone.reduction / 4))))
        self.register_buffer("prior", torch.full((colours,), 1 / colours))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return equation 2's loss, the mean over pixels, its value for one answer to all, and errors of colours.

        `chance` knows how common each colour is, but not the image. The errors are root mean square distances from the
        true (a, b): of what the network expects, of grey, and of the mean colour.
        """
        x = self.view(batch)  # (B, 3, S, S)
        answers = self.answer(x)  # (B, h, w, Q)
        truth = shrunk_ab(x, answers.shape[1])  # (B, h, w, 2)
        coloured = (truth.abs() > GREY).any(-1).flatten(1).any(1)[:, None, None].expand(truth.shape[:3])
        logp, ab, coloured = answers.flatten(0, 2), truth.flatten(0, 2), coloured.flatten()  # N = B·h·w pixels
        near, share = self.bins.spread(ab, self.config.sigma)  # (N, 5) each
        if self.training:
            self.learn_prior(near, share * coloured[:, None])
        balance = rebalancing(self.prior, self.config.balance)  # (Q,)
        weight = balance[near[:, 0]] * coloured
        # Of all constant answers p · balance has about the least weighted loss; that it sums to 1 is equation 4.
        guess = (self.prior * balance).clamp(min=1e-12).log()
        # So balanced the network overstates rare colours; divided by the balance its answer is what it expects.
        some = slice(len(ab) // 4 if self.training else None)  # enough for a curve
        expected = self.bins.decode(logp.detach()[some] - balance.log(), 1.0)
        guesses = {"ab_error": expected, "grey_error": ab.new_zeros(2), "mean_error": self.prior @ self.bins.centres}
        return {
            "loss": weighted_cross_entropy(logp, near, share, weight),
            "chance": weighted_cross_entropy(guess.expand_as(logp), near, share, weight),
            **{name: (colour - ab[some]).square().sum(1).mean().sqrt() for name, colour in guesses.items()},
        }

    def answer(self, x: Tensor) -> Tensor:
        """Return log probabilities (B, h, w, Q) of the colours of (B, 3, S, S), of which only the lightness is seen."""
        logits: Tensor = self.decoder(self.backbone.maps(to_lightness(x).expand(-1, 3, -1, -1)))  # (B, Q, h, w)
        return logits.permute(0, 2, 3, 1).float().log_softmax(-1)

    @torch.no_grad()
    def learn_prior(self, near: Tensor, share: Tensor) -> None:
        """Move the prior towards the colours (N, 5) of this batch, of all processes."""
        mass = torch.zeros_like(self.prior).index_add_(0, near.flatten(), share.flatten())
        if process()[1] > 1:
            dist.all_reduce(mass)
        if self.batches <= 0 and not mass.any():
            self.batches -= 1  # below zero those that came before the first colour are counted
            if self.batches > -PATIENCE:
                return
            words = "these images have none, although they are stored as red-green-blue: try another method"
            raise SelfsightError(f"colorization learns by telling colours, but {words}, for example rotation")
        mass += 1e-6 * self.prior  # a batch without colours changes nothing
        self.batches.clamp_(min=0).add_(1)
        self.prior.lerp_(mass / mass.sum(), (1 / self.batches).clamp(min=SLOWEST))

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show ten images in grey, in the colours that it gave them, and as they are."""
        x = whole(batch, self.view.size)[:10]
        ab = self.bins.decode(self.answer(x), self.config.temperature).permute(0, 3, 1, 2)  # (B, 2, h, w)
        ab = F.interpolate(ab, x.shape[-2:], mode="bilinear")
        answered = lab_to_rgb(torch.cat([rgb_to_lab(x)[:, :1], ab], 1))
        rows = torch.stack([to_lightness(x).expand_as(x), answered, x])
        return {"Top to bottom: the grey image that it sees, the colours that it answers, the true colours": rows}


def rebalancing(prior: Tensor, balance: float) -> Tensor:
    """Return equation 4's weight of each colour (Q,): 1 / ((1 - λ) p + λ / Q), times what makes its mean under p 1.

    The paper smooths p by a Gaussian; here it is a mean of soft encodings, which are smooth as they come.
    """
    weight = 1 / ((1 - balance) * prior + balance / len(prior))
    return weight / (prior * weight).sum()


def weighted_cross_entropy(logp: Tensor, near: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """Return equation 2: the cross entropy of log probabilities (N, Q) and soft encodings (N, 5), weighted by pixel."""
    return -(weight * (share * logp.gather(1, near)).sum(1)).mean()
