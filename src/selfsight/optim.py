"""The optimizer and its schedule, as functions of training progress from 0 to 1."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import nn

from selfsight.muon import Muon

OptimName = Literal["adamw", "muon", "sgd", "lars"]


@dataclass(frozen=True)
class Optim:
    """How the weights are trained. A method names the one that it is known to train with."""

    name: OptimName = "adamw"
    """adamw; muon, which makes each step of a weight matrix orthogonal: a tenth to a sixth more work a step, far
    fewer steps; sgd with momentum; or lars, sgd with a rate per layer for large batches."""
    lr: float = 1e-3
    """Peak learning rate for a batch of 256 images; it grows in proportion to the batch, muon's above 256 with its
    square root."""
    weight_decay: float = 0.05
    """Decay of weights, not of biases and norms."""
    final_weight_decay: float | None = None
    """Weight decay at the end of a cosine from `weight_decay`; None keeps it constant."""
    momentum: float = 0.9
    """Momentum of sgd, lars and muon; adamw's first beta."""
    beta2: float = 0.999
    """adamw's second beta."""
    warmup: float = 0.05
    """Share of the training over which the rate rises from zero."""
    final: float = 0.0
    """Rate at the end of the cosine, as a share of the peak."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 is no limit."""
    steady: tuple[str, ...] = ()
    """Parts of the method, by name, whose rate stays at the peak behind the warm-up, as SimSiam's predictor's."""
    steady_factor: float = 1.0
    """The peak of the `steady` parts as a multiple of `lr`."""


def build(module: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Return the optimizer of the module's trainable parameters, in groups with and without weight decay.

    Of the `steady` parts these are groups of their own, which `schedule` knows by their 'steady'.
    """
    groups = []
    for steady in (False, True):
        named = (p for name, p in module.named_parameters() if (name.split(".")[0] in optim.steady) == steady)
        groups += [group | {"steady": steady} for group in parameter_groups(named, optim.weight_decay)]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.momentum, optim.beta2), fused=True)
    if optim.name == "muon":
        return Muon(groups, lr=optim.lr, momentum=optim.momentum, betas=(0.9, optim.beta2))
    if optim.name == "sgd":
        nesterov = optim.momentum > 0
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=nesterov, fused=True)
    # timm's LARS leaves the rate of parameters without decay as it is: biases and norms are excluded.
    lars: torch.optim.Optimizer = Lars(groups, lr=optim.lr, momentum=optim.momentum, trust_coeff=0.02, trust_clip=True)
    return lars


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable ones of the parameters in at most two groups: with decay, and biases and norms without."""
    trainable = [p for p in parameters if p.requires_grad]
    matrices: dict[str, Any] = {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay}
    vectors: dict[str, Any] = {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def rate(optim: Optim, progress: float, batch_size: int, steady: bool = False) -> float:
    """Return the learning rate at this progress, for this global batch size: linear warm-up, then cosine.

    With `steady` the rate of those parts that then stay at a peak of their own. A muon step has entries of 0.2 · rate
    whatever the gradient: in proportion they would be as large as a ViT's weights from some 4,096 images on. The
    square root is the rule for such steps (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms").
    """
    times = batch_size / 256
    peak = optim.lr * (times**0.5 if optim.name == "muon" and times > 1 else times)
    peak *= optim.steady_factor if steady else 1
    if progress < optim.warmup:
        return peak * progress / optim.warmup
    if steady:
        return peak
    t = (progress - optim.warmup) / max(1 - optim.warmup, 1e-9)
    return peak * cosine(1.0, optim.final, min(t, 1.0))


def decay(optim: Optim, progress: float) -> float:
    """Return the weight decay at this progress."""
    if optim.final_weight_decay is None:
        return optim.weight_decay
    return cosine(optim.weight_decay, optim.final_weight_decay, progress)


def cosine(start: float, end: float, progress: float) -> float:
    """Return `start` at progress 0, `end` at 1, between them half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_rate(groups: Iterable[dict[str, Any]], value: float) -> None:
    """Set the learning rate of an optimizer's parameter groups."""
    for group in groups:
        group["lr"] = value


def schedule(groups: Iterable[dict[str, Any]], optim: Optim, progress: float, batch_size: int) -> float:
    """Set rate and weight decay of `build`'s groups for this progress and batch; return the rate of most."""
    for group in groups:
        group["lr"] = rate(optim, progress, batch_size, group["steady"])
        if group["params"][0].ndim > 1:
            group["weight_decay"] = decay(optim, progress)
    return rate(optim, progress, batch_size)
