"""Muon: momentum whose step has the same size in every direction of a weight matrix; AdamW for what is no matrix.

Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; step sizes as in Liu et al., Muon is
Scalable for LLM Training, 2025. timm's and torch's iterate in bfloat16, which a processor without it emulates: on one
with AVX2 alone a step took 33 s instead of 1.9. Here it is float32, on the small Gram matrix instead of the gradient.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""a, b, c of the odd polynomials a·x + b·x³ + c·x⁵ that in turn carry singular values from (0, 1] to about 1: those of
Jordan's modded-nanogpt, fitted step by step by Cesista."""

LARGE = 2**18
"""Matrices of one shape are stepped together: a ViT has each once a block. On a CPU only those of up to so many
entries, for which to begin is most of the work; on a GPU that is so for most."""
MOST = 2**25
"""Entries of the matrices that are stepped together: it takes some 20 bytes for each."""


class Muon(torch.optim.AdamW):
    """Muon with Nesterov momentum for parameters of two or more dimensions, AdamW for the others, at the same rate."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__([{"weight_decay": 0.0, "momentum": momentum} | group for group in groups], lr, betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the weights."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[torch.Size | Tensor, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.ndim > 1 and weight.grad is not None:
                    alone = weight.device.type == "cpu" and weight.numel() > LARGE
                    alike.setdefault(weight if alone else weight.shape, []).append(weight)
            for weights in alike.values():
                some = max(1, MOST // weights[0].numel())
                for start in range(0, len(weights), some):
                    self._matrix_step(weights[start : start + some], group)
        super().step()
        return loss

    def _matrix_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape."""
        steps = []
        for weight in weights:
            state, grad = self.state[weight], weight.grad
            assert grad is not None
            if not state:
                # AdamW looks for a step in every state that it loads.
                state |= {"momentum": torch.zeros_like(weight), "step": torch.zeros(())}
            momentum: Tensor = state["momentum"].lerp_(grad, 1 - group["momentum"])
            steps.append(grad.lerp(momentum, group["momentum"]).flatten(1))
            weight.grad = None  # so that AdamW passes it over
        stacked = orthogonal(torch.stack(steps))  # (k, m, n)
        # An orthogonal m x n matrix has entries of size 1 / sqrt(max(m, n)); AdamW's steps are about 0.2 · lr.
        size = 0.2 * max(stacked.shape[1:]) ** 0.5
        for weight, step in zip(weights, stacked, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(step.view(weight.shape), alpha=-group["lr"] * size)


def orthogonal(x: Tensor) -> Tensor:
    """Return U·Vᵀ of the singular value decomposition U·S·Vᵀ of matrices (k, m, n), roughly.

    Their singular values are 0.7 to 1.2.

    The Newton-Schulz iteration X ← (a + b·A + c·A²)·X with A = X·Xᵀ only ever multiplies X from the left: the product Q
    of these polynomials is collected, and A moved along with it, at m x m instead of m x n.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x.float() / x.float().norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    first, *others = COEFFICIENTS
    product = polynomial = _polynomial(gram, *first)
    for coefficients in others:
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram, *coefficients)
        product = polynomial @ product
    return product @ x


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return a + b·A + c·A² of each A of `gram` (k, m, m)."""
    value = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    value.diagonal(dim1=1, dim2=2).add_(a)
    return value
