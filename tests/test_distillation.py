"""Sinkhorn's assignment equals a plain loop, over two processes too; KoLeo is what its definition says."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from selfsight.distillation import koleo, sinkhorn
from tests.processes import together


def plain_sinkhorn(logits: Tensor, rounds: int) -> Tensor:
    """SwAV's appendix A.1: of the exponentials the columns, then the rows, are divided by their sums in turn."""
    q = logits.double().exp()
    for _ in range(rounds):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for n in range(len(q)):
            q[n] /= q[n].sum() * len(q)
    return q * len(q)


def test_sinkhorn_equals_a_plain_loop_and_gives_each_prototype_as_much() -> None:
    logits = torch.randn(12, 5) * 3 + torch.arange(5)
    assert torch.allclose(sinkhorn(logits).double(), plain_sinkhorn(logits, 3), atol=1e-6)
    assert torch.allclose(sinkhorn(logits, 100).sum(0), torch.full((5,), 12 / 5), atol=1e-4)
    far = torch.tensor([[400.0, 0.0], [0.0, -400.0]])
    assert torch.allclose(sinkhorn(far, 100), torch.full((2, 2), 0.5), atol=1e-4), "neither 0 / 0 nor infinite"


def assign_half(rank: int, folder: str, logits: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(sinkhorn(logits[6 * rank : 6 * rank + 6]), f"{folder}/rows{rank}")
    dist.destroy_process_group()


def test_two_processes_assign_like_one(tmp_path: Path) -> None:
    logits = torch.randn(12, 5) * 3
    together(assign_half, str(tmp_path), logits)
    rows = [torch.load(tmp_path / f"rows{rank}", weights_only=True) for rank in (0, 1)]
    assert torch.allclose(torch.cat(rows), sinkhorn(logits), atol=1e-6)


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_other() -> None:
    x = torch.randn(40, 6, dtype=torch.float64)
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = [min(float((unit[i] - unit[j]).norm()) for j in range(40) if j != i) for i in range(40)]
    assert float(koleo(x)) == pytest.approx(-sum(math.log(d) for d in nearest) / 40, abs=1e-5)
    close = torch.tensor([[1.0, 0], [1, 1e-4], [0, 1]])
    assert float(koleo(close)) == pytest.approx(-(2 * math.log(1e-4) + math.log(2) / 2) / 3, abs=1e-3)


def test_koleo_of_two_of_the_same_has_finite_gradients() -> None:
    x = torch.randn(4, 6)[[0, 1, 2, 2]].requires_grad_()
    koleo(x).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0].any()
