"""Did it work? Numbers on the embeddings that need no labels, and what they say in words."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View
from selfsight.data.images import ImageSet
from selfsight.data.loader import in_order
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import evaluating
from selfsight.methods import Method
from selfsight.nn import autocast

COLLAPSED_STD = 0.02
"""Below this spread all embeddings point the same way to within about a degree (sin 1° = 0.017)."""
COLLAPSED_RANK = 2.0
"""RankMe counts the common mean of all embeddings as one direction: below 2 there is hardly another."""
COLLAPSED_PROJECTIONS = 5.0
"""Around their mean: heads on a resnet10t differ in 16 to 132 directions untrained, in 14 and more after 300 steps."""
LOST = 0.25
"""A quarter of what the untrained network had, of spread or rank and of view retrieval: a collapse under way."""
MOVED = 0.98
"""A loss above this share of the chance loss has not left chance: losses of single batches scatter by 1 %."""
BETTER = 1.1
"""10 % above the untrained network; repeated draws of 1,024 images and views differ by a few per cent."""
RESTART = (
    "Start again with a lower learning rate (--lr; this one's is in config.json under optim) or a larger batch, or "
    "take another method, as simclr."
)
FEW_EPOCHS = 10.0
"""Small data sets need tens of epochs before embeddings beat an untrained network's."""


@dataclass(frozen=True)
class Health:
    """What two random views each of `images` images say about a backbone."""

    images: int
    """How many images were looked at."""
    dim: int
    """Length of an embedding."""
    rankme: float
    """Effective number of dimensions in use, 1 to min(images, dim)."""
    rankme_share: float
    """rankme / min(images, dim), 0 to 1."""
    std: float
    """Spread of the L2-normalized embeddings: 0 collapsed, 1 evenly around the sphere."""
    alignment: float
    """Mean squared distance of two views of an image on the unit sphere: 0 equal, 2 unrelated, at most 4."""
    uniformity: float
    """Log of the mean Gaussian potential over pairs of images: 0 collapsed, towards -4 evenly spread."""
    view_retrieval: float
    """Share of views whose nearest view, of all others, is the other view of their image: 0 to 1."""
    projected: float | None = None
    """In how many directions what the loss compares differs: RankMe around its mean; None where it was not seen."""
    projected_std: float | None = None
    """Spread of what the loss compares, as `std` where directions are compared; else its standard deviation."""

    @property
    def chance(self) -> float:
        """The view retrieval of embeddings that know nothing: 1 / (2 · images - 1)."""
        return 1 / (2 * self.images - 1)


@dataclass(frozen=True)
class Verdict:
    """What the numbers mean."""

    state: Literal["learning", "collapsed", "too short"]
    words: str
    """One or two sentences: what was seen, and the remedy."""


def rankme(x: Tensor) -> float:
    """Return the effective rank of embeddings (N, D), 1 to min(N, D).

    exp(-Σ p log p) with p = σ / Σσ + 1e-7 over the singular values σ of `x`, not centred: Garrido et al. 2023,
    "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations", eq. 1.
    """
    sigma = torch.linalg.svdvals(x.double())
    p = sigma / sigma.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()).clamp(1, min(x.shape)))


def spread(x: Tensor) -> float:
    """Return the mean standard deviation over the dimensions of L2-normalized (N, D), times √D."""
    return float(F.normalize(x.double(), dim=1).std(0, correction=0).mean()) * math.sqrt(x.shape[1])


def alignment(a: Tensor, b: Tensor) -> float:
    """Return the mean squared distance of normalized pairs (N, D): Wang & Isola 2020, section 4.1, alpha = 2."""
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    return float((a - b).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """Return log E exp(-2 |x - y|²) over pairs of different rows (N, D), normalized, N >= 2.

    Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", section 4.1, t = 2.
    """
    return float(torch.pdist(F.normalize(x.double(), dim=1)).square().mul(-2).exp().mean().log())


def view_retrieval(a: Tensor, b: Tensor) -> float:
    """Return the share of the 2N views (N, D) each whose nearest other view, by cosine, is its partner.

    The partner must be strictly nearer than all 2N - 2 views of other images: embeddings that are all equal score 0.
    """
    n = len(a)
    x = F.normalize(torch.cat([a, b]).double(), dim=1)  # (2N, D)
    similarity = x @ x.T
    row = torch.arange(2 * n, device=x.device)
    partner = (row + n) % (2 * n)
    found = similarity[row, partner]
    similarity[row, row] = similarity[row, partner] = -torch.inf
    # Equal embeddings differ by rounding in the matrix product.
    return float((found > similarity.max(1).values + 1e-9).double().mean())


def measure(
    backbone: Backbone,
    view: View,
    images: ImageSet,
    rows: NDArray[np.int64],
    device: torch.device,
    n: int = 1024,
    batch_size: int = 256,
    method: Method | None = None,
) -> Health:
    """Embed two random views each of up to `n` of these rows and measure them.

    With the `method` that trains this backbone, what its loss compares is measured too.

    The images and views are the same at each call, whatever torch's global generator, which is left as it was.
    Raises ValueError for fewer than 2 rows, and SelfsightError for embeddings that are not finite.
    """
    if len(rows) < 2:
        raise ValueError("health needs at least 2 images")
    rows = np.random.default_rng(0).permutation(rows)[:n]
    first, second, projected = [], [], []
    with torch.random.fork_rng(devices=[]), evaluating(backbone), evaluating(method or backbone), autocast(device):
        torch.manual_seed(0)
        for batch in in_order(images, np.sort(rows), batch_size, device):
            features = backbone(view(batch))
            first.append(features.float().cpu())
            if method is not None and (z := method.projections(features)) is not None:
                projected.append(z.float().cpu())
            second.append(backbone(view(batch)).float().cpu())
    a, b = torch.cat(first), torch.cat(second)
    if not torch.isfinite(a).all():
        raise SelfsightError("the embeddings are not finite: the weights are broken; try a lower --lr or --clip 1")
    compared: dict[str, float] = {}
    if method is not None and projected:
        z = torch.cat(projected)
        std = spread(z) if method.directions else float(z.std(0).mean())
        compared = {"projected": rankme(z - z.mean(0)), "projected_std": std}
    rank = rankme(a)
    return Health(
        images=len(a),
        dim=a.shape[1],
        rankme=rank,
        rankme_share=rank / min(a.shape),
        std=spread(a),
        alignment=alignment(a, b),
        uniformity=uniformity(a),
        view_retrieval=view_retrieval(a, b),
        **compared,
    )


def verdict(health: Health, random: Health | None, loss: float | None, chance: float | None, epochs: float) -> Verdict:
    """Say in words whether pretraining works, and what to do if not.

    `random` is the untrained network's health on the same images; `loss` the training loss, averaged over the last
    steps, and `chance` its value for a network that guesses (ln K); `epochs` how many were trained. In this order:

    1. collapsed, if all embeddings are one point (COLLAPSED_STD), one direction (COLLAPSED_RANK), or have lost most of
       what the untrained network had (LOST), or if what the loss compares differs in hardly a direction
       (COLLAPSED_PROJECTIONS) or is one point. A pretext task without views, such as rotation, may lower view
       retrieval, but not spread or rank with it.
    2. too short, if the loss has not left chance (MOVED), or, where no chance loss tells or the method compares views,
       after FEW_EPOCHS or less the embeddings are in nothing better than the untrained network's (BETTER).
    3. learning.
    """
    h = health
    found = f"{h.view_retrieval:.0%} of views find their partner"
    used = f"{h.rankme:.0f} of {min(h.images, h.dim)} dimensions in use"
    lost = (
        random is not None
        and (h.std < LOST * random.std or h.rankme < LOST * random.rankme)
        and h.view_retrieval < LOST * max(random.view_retrieval, random.chance)
    )
    if h.std < COLLAPSED_STD or h.rankme < COLLAPSED_RANK or lost:
        return Verdict(
            "collapsed",
            f"The embeddings of different images are nearly the same (spread {h.std:.2f}, {used}). {RESTART}",
        )
    if h.projected is not None and h.projected < COLLAPSED_PROJECTIONS:
        return _flat(f"it differs in {h.projected:.1f} directions")
    if h.projected_std is not None and h.projected_std < COLLAPSED_STD:
        return _flat(f"spread {h.projected_std:.3f}")
    if loss is not None and chance is not None and loss > MOVED * chance:
        remedy = (
            "train longer"
            if epochs <= FEW_EPOCHS
            else "the task is too hard or the learning rate wrong: try a third of the rate (--lr; this one's is in "
            "config.json under optim), or weaker augmentation"
        )
        return Verdict(
            "too short",
            f"After {epochs:.0f} epochs the loss {loss:.2f} is still that of guessing ({chance:.2f}): {remedy}.",
        )
    told = chance is not None and h.projected is None  # two views are easily told to agree: such a loss tells little
    if random is not None and epochs <= FEW_EPOCHS and not told and not _better(h, random):
        return Verdict(
            "too short",
            f"After {epochs:.0f} epochs the embeddings are no better than an untrained network's ({found}, {used}): "
            "train longer.",
        )
    words = f"{found[0].upper()}{found[1:]} among {2 * h.images - 1:,}, {used}."
    if random is not None:
        words = f"{words[:-1]}; the untrained network: {random.view_retrieval:.0%} and {random.rankme:.0f}."
    return Verdict("learning", words)


def _flat(found: str) -> Verdict:
    words = f"What the loss compares is nearly the same for all images ({found}): nothing is learned from it any more."
    return Verdict("collapsed", f"{words} {RESTART}")


def _better(h: Health, random: Health) -> bool:
    return h.view_retrieval > BETTER * random.view_retrieval or h.rankme > BETTER * random.rankme


def light_view(size: int) -> View:
    """Return the view that health is measured with, the same for all methods: a large crop, a little brightness."""
    return View(size, scale=(0.5, 1.0), hflip=0.0, brightness=0.2, contrast=0.2)
