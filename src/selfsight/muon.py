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
            for weight in group["params"]:
                if weight.ndim > 1 and weight.grad is not None:
                    self._matrix_step(weight, weight.grad, group)
                    weight.grad = None  # so that AdamW passes it over
        super().step()
        return loss

    def _matrix_step(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            # AdamW looks for a step in every state that it loads.
            state |= {"momentum": torch.zeros_like(weight), "step": torch.zeros(())}
        momentum: Tensor = state["momentum"].lerp_(grad, 1 - group["momentum"])
        step = orthogonal(grad.lerp(momentum, group["momentum"]).flatten(1))  # (m, n)
        # An orthogonal m x n matrix has entries of size 1 / sqrt(max(m, n)); AdamW's steps are about 0.2 · lr.
        size = 0.2 * max(step.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(step.view(weight.shape), alpha=-group["lr"] * size)


def orthogonal(x: Tensor) -> Tensor:
    """Return U·Vᵀ of the singular value decomposition U·S·Vᵀ of `x` (m, n), roughly: singular values of 0.7 to 1.2.

    The Newton-Schulz iteration X ← (a + b·A + c·A²)·X with A = X·Xᵀ only ever multiplies X from the left: the product Q
    of these polynomials is collected, and A moved along with it, at m x m instead of m x n.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x.float() / x.float().norm().clamp(min=1e-7)
    gram = x @ x.T
    first, *others = COEFFICIENTS
    product = polynomial = _polynomial(gram, *first)
    for coefficients in others:
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram, *coefficients)
        product = polynomial @ product
    return product @ x


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return a + b·A + c·A² of A = `gram` (m, m)."""
    value = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    value.diagonal().add_(a)
    return value
