"""What methods share in which a student answers what a teacher, its moving average, answers: DINO, iBOT, DINOv2.

The head, the teacher's answers made targets, the loss, and what keeps embeddings apart. The teacher is in nn.py.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.nn import gather, process, unit


class PrototypeHead(nn.Module):
    """Features (..., dim) to cosines (..., K) of unit vectors with unit prototypes (DINO, appendix C; iBOT, DINOv2)."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        inner = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        self.layers = nn.Sequential(*inner, nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, bottleneck)))

    def forward(self, features: Tensor, frozen: bool = False) -> Tensor:
        """Return the cosines in float32; the prototypes get no gradient if `frozen`."""
        z = self.layers(features)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 is too coarse to be divided by 0.04
            prototypes = F.normalize(self.prototypes)
            if frozen:  # a gradient of zero, not none: DistributedDataParallel waits for each parameter's
                prototypes = prototypes.detach() + 0 * prototypes
            return unit(z) @ prototypes.T


class Targets(nn.Module):
    """A teacher's cosines made probabilities that are not the same for all images: centred and sharpened.

    Centred by the mean of its answers over many steps and all processes (DINO, equation 4), or with `spread` by
    `sinkhorn`; sharpened by a temperature that goes from the first to the second one over the share `warmup` of the
    training.
    """

    mean: Tensor

    def __init__(self, prototypes: int, spread: bool, temperatures: tuple[float, float], warmup: float) -> None:
        super().__init__()
        self.spread, self.temperatures, self.warmup = spread, temperatures, warmup
        self.register_buffer("mean", torch.zeros(prototypes))

    def forward(self, cosines: Tensor, progress: float) -> Tensor:
        """Return the probabilities (..., K) of a batch's cosines (..., K)."""
        if self.spread:
            return sinkhorn(cosines.flatten(0, -2) / self.temperature(progress)).view_as(cosines)
        return self.by_mean(cosines, progress)

    def by_mean(self, cosines: Tensor, progress: float) -> Tensor:
        """Return each answer's probabilities, whatever the others are; the first ones are centred by their own mean.

        With `spread` as well, for pictures: a few images alone would be spread evenly over all prototypes.
        """
        if not self.mean.any():  # of zero on, it would be caught up with while the student learns one answer for all
            self.follow(cosines, 0.0)
        return F.softmax((cosines - self.mean) / self.temperature(progress), dim=-1)

    def temperature(self, progress: float) -> float:
        """Return the temperature at this progress, 0 to 1."""
        start, end = self.temperatures
        return start + (end - start) * (min(progress / self.warmup, 1) if self.warmup else 1)

    @torch.no_grad()
    def follow(self, cosines: Tensor, momentum: float) -> None:
        """Move towards the mean of the answers (..., K): mean ← momentum · mean + (1 - momentum) · theirs."""
        self.mean.lerp_(gather(cosines.flatten(0, -2).mean(0)[None]).mean(0), 1 - momentum)


def sinkhorn(logits: Tensor, rounds: int = 3) -> Tensor:
    """Return this process's rows (N, K) of the assignment of all processes' samples to prototypes, a sum of 1 a row.

    The assignment is near to the softmax of the `logits` (N, K), and each prototype gets near to as much as any other:
    rows and columns are scaled in turn (Cuturi 2013, "Sinkhorn Distances"; Caron et al. 2020, SwAV, section 3.1).
    """
    logs = logits
    for _ in range(rounds):
        logs = (logs - log_totals(logs)).log_softmax(1)
    return logs.exp()


def log_totals(logs: Tensor) -> Tensor:
    """Return the logarithm of the sum over the rows (N, K) of all processes of exp(logs): (K,), without gradients.

    No process has to hold the others' rows: with 65,536 prototypes these are gigabytes.
    """
    if process()[1] == 1:
        return logs.logsumexp(0)
    highest = logs.amax(0)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    shares = (logs - highest).exp().sum(0)
    dist.all_reduce(shares)
    return highest + shares.log()


def dino_loss(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of the student's answers to the teacher's, over pairs of different views (equation 3).

    `student` (V, B, K): logits of all views; `target` (G, B, K): the teacher's probabilities for the first G of them.
    The mean is over images and over the G · (V - 1) pairs.
    """
    logs = F.log_softmax(student / temperature, dim=2)
    others = logs.sum(0) - logs[: len(target)]  # (G, B, K): of all views but the teacher's own
    return -(target * others).sum() / (len(target) * (len(student) - 1) * student.shape[1])


def koleo(features: Tensor) -> Tensor:
    """Return minus the mean log distance of each of the features (N, D), as unit vectors, to the nearest other one.

    The less, the more evenly they spread over the sphere; two of the same are taken as 1e-8 apart. The Kozachenko-
    Leonenko estimate of entropy (Sablayrolles et al. 2019, "Spreading Vectors for Similarity Search", equation 2).
    """
    directions = unit(features)
    # By products of matrices distances of near neighbours would be too coarse.
    distances = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.eye(len(directions), dtype=torch.bool, device=directions.device)
    return -(distances.where(others, 2.0).amin(1) + 1e-8).log().mean()
