"""Losses and their gradients equal lightly's, for the methods that it has and that no other test compares."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import (
    IBOTPatchLoss,
    KoLeoLoss,
    LeJEPALoss,
    MMCRLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
    WMSELoss,
)
from torch import Tensor

from selfsight.distillation import dino_loss, koleo, sinkhorn
from selfsight.methods.ibot import patch_loss
from selfsight.methods.lejepa import terms
from selfsight.methods.mmcr import capacity_loss
from selfsight.methods.moco_v2 import info_nce
from selfsight.methods.vicreg import vicreg_terms
from selfsight.methods.wmse import whiten
from selfsight.nn import apart

N, D = 24, 6


def same(raw: Tensor, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], atol: float = 1e-5) -> None:
    """Assert that two losses of `raw` have the same value and gradient."""
    results = []
    for loss in (ours, theirs):
        torch.manual_seed(1)
        x = raw.clone().requires_grad_()
        value = loss(x).sum()
        value.backward()
        assert x.grad is not None
        results.append((value.detach(), x.grad))
    (ours_value, ours_grad), (value, grad) = results
    assert float(value.abs()) > 1e-3
    assert torch.allclose(ours_value, value, atol=atol)
    assert torch.allclose(ours_grad, grad, atol=atol)


def pairs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, N, D, dtype=torch.float64)


def test_byol_and_simsiam() -> None:
    theirs = NegativeCosineSimilarity()
    same(pairs(), lambda x: apart(x[0], x[1]).mean(), lambda x: 2 + 2 * theirs(x[0], x[1]))


def test_moco() -> None:
    theirs = NTXentLoss(0.2, memory_bank_size=(40, D))
    rows = F.normalize(torch.randn(40, D, dtype=torch.float64), dim=1)

    def ours(x: Tensor) -> Tensor:
        query, key = F.normalize(x, dim=2)
        return info_nce(query, key.detach(), rows, 0.2)

    def lightlys(x: Tensor) -> Tensor:
        theirs.memory_bank.bank = rows.clone()
        loss: Tensor = theirs(x[0], x[1].detach())
        return loss

    same(pairs(), ours, lightlys)


def test_vicreg() -> None:
    theirs = VICRegLoss()

    def ours(x: Tensor) -> Tensor:
        invariance, variance, covariance = vicreg_terms(x[0], x[1])
        return 25 * invariance + 25 * variance + covariance

    same(pairs() / 2, ours, lambda x: theirs(x[0], x[1]))


def test_koleo() -> None:
    same(pairs()[0], koleo, KoLeoLoss())


def test_wmse() -> None:
    theirs = WMSELoss(D, eps=0.001, w_size=N, track_running_stats=False).double()

    def ours(x: Tensor) -> Tensor:
        return apart(whiten(x[0]), whiten(x[1])).mean()

    same(pairs(), ours, lambda x: theirs(x.flatten(0, 1)), atol=1e-4)  # lightly's identity is of float32


def test_mmcr() -> None:
    theirs = MMCRLoss(lmda=0)
    largest = (N * min(N, D)) ** 0.5
    raw = F.normalize(torch.randn(N, 4, D, dtype=torch.float64), dim=2)
    same(raw, capacity_loss, lambda x: theirs(x[:, :2], x[:, 2:]) / largest)


def test_lejepa() -> None:
    theirs = LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=32)
    raw = torch.randn(5, N, D, dtype=torch.float64)

    def ours(z: Tensor) -> Tensor:
        agreement, gaussian = terms(z, F.normalize(torch.randn(D, 32, dtype=z.dtype), dim=0))
        return 0.95 * agreement + 0.05 * gaussian

    same(raw, ours, lambda z: theirs(local_proj=z[2:], global_proj=z[:2]))


@pytest.mark.parametrize("queue", [0, 16])
def test_swav(queue: int) -> None:
    theirs = SwaVLoss()
    raw = torch.rand(4, N, 10, dtype=torch.float64) * 2 - 1
    rest = torch.rand(2, queue, 10, dtype=torch.float64) * 2 - 1

    def ours(x: Tensor) -> Tensor:
        both = [torch.cat([view, own]).detach() / 0.05 for view, own in zip(x, rest, strict=False)]
        return dino_loss(x, torch.stack([sinkhorn(scores)[:N] for scores in both]), 0.1)

    def lightlys(x: Tensor) -> Tensor:
        loss: Tensor = theirs(list(x[:2]), list(x[2:]), list(rest) if queue else None)
        return loss

    same(raw, ours, lightlys, atol=1e-4)


def test_patches_of_ibot() -> None:
    theirs = IBOTPatchLoss(output_dim=10, teacher_temp=0.04)
    hidden = torch.rand(4, 3, 3) < 0.4
    hidden[:, 0, 0] = True  # each image misses one at least
    count = hidden.flatten(1).sum(1)
    teacher = torch.rand(int(count.sum()), 10, dtype=torch.float64)

    target = F.softmax(teacher / 0.04, 1)

    def ours(student: Tensor) -> Tensor:
        return patch_loss(student / 0.1, target, count)

    same(torch.rand(len(teacher), 10, dtype=torch.float64), ours, lambda x: theirs(teacher, x, hidden))
