"""Barlow's loss equals a plain loop and lightly's; it is zero for decorrelated features that agree."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from selfsight.methods.barlow_twins import barlow_loss


def plain_loss(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Equations 1 and 2, one entry at a time."""
    total = torch.zeros((), dtype=a.dtype)
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())
            total = total + ((1 - c).square() if i == j else weight * c.square())
    return total


def test_loss_and_gradient_equal_a_plain_loop_and_lightlys() -> None:
    torch.manual_seed(0)
    raw = 10 * torch.randn(2, 16, 5, dtype=torch.float64)  # large, so that the epsilon beside the variance is nothing
    results = []
    for loss in (lambda a, b: barlow_loss(a, b, 0.1), lambda a, b: plain_loss(a, b, 0.1), BarlowTwinsLoss(0.1)):
        x = raw.clone().requires_grad_()
        value = loss(x[0], x[1])
        value.backward()
        assert x.grad is not None
        results.append((float(value.detach()), x.grad))
    for value, grad in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-5)
        assert torch.allclose(grad, results[0][1], atol=1e-5)


def test_decorrelated_features_that_agree_have_no_loss() -> None:
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(barlow_loss(signs, signs, 1.0)) < 1e-6
    assert float(barlow_loss(signs, -signs, 1.0)) == pytest.approx(8, rel=1e-3)
