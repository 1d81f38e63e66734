"""Muon: its steps are those of the plain iteration and of timm's, and its state survives being saved."""

import copy

import pytest
import torch
from timm.optim.muon import Muon as TimmMuon
from torch import Tensor, nn

from selfsight.muon import COEFFICIENTS, Muon, orthogonal


def plain(x: Tensor) -> Tensor:
    """Return the Newton-Schulz iteration on the matrix itself, in float64."""
    x = x.double() / x.double().norm()
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
@pytest.mark.parametrize("condition", [1e0, 1e3, 1e6])
def test_the_gram_matrix_gives_what_the_plain_iteration_gives(shape: tuple[int, int], condition: float) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    x = (u * torch.logspace(0, -float(torch.tensor(condition).log10()), min(shape))) @ v
    expected = plain(x)
    assert float((orthogonal(x[None])[0] - expected).norm() / expected.norm()) < 1e-3


def test_matrices_step_as_timms_and_vectors_as_adamws() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    start, timms, adamws = (copy.deepcopy(module) for _ in range(3))
    groups = [{"params": list(module.parameters()), "weight_decay": 0.1}]
    optimizers = {
        module: Muon(groups, 0.01, 0.95, (0.9, 0.999)),
        timms: TimmMuon(timms.parameters(), 0.01, 0.1, 0.95, nesterov=True),
        adamws: torch.optim.AdamW(adamws.parameters(), 0.01, (0.9, 0.999), weight_decay=0.1),
    }
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        grads = [torch.randn(p.shape, generator=generator) for p in module.parameters()]
        for network, optimizer in optimizers.items():
            for parameter, grad in zip(network.parameters(), grads, strict=True):
                parameter.grad = grad.clone()
            optimizer.step()
    networks = (module, start, timms, adamws)
    for mine, before, timm, adamw in zip(*(network.parameters() for network in networks), strict=True):
        if mine.ndim > 1:  # timm iterates in bfloat16, which has two to three digits
            assert float((mine - timm).detach().norm() / (mine - before).detach().norm()) < 0.03
        else:
            torch.testing.assert_close(mine, adamw)


def test_a_saved_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    def steps(layer: nn.Linear, optimizer: Muon, seeds: range) -> None:
        for seed in seeds:
            for parameter in layer.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    torch.manual_seed(0)
    straight = nn.Linear(6, 4)
    resumed = copy.deepcopy(straight)
    first, second = (Muon([{"params": list(m.parameters())}], 0.01, 0.95) for m in (straight, resumed))
    steps(straight, first, range(6))
    steps(resumed, second, range(3))
    third = Muon([{"params": list(resumed.parameters())}], 0.01, 0.95)
    third.load_state_dict(second.state_dict())
    steps(resumed, third, range(3, 6))
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


def test_matrices_of_one_shape_step_together_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(6, 9) for _ in range(5)), nn.Conv2d(3, 4, 3))
    alone, in_twos = copy.deepcopy(layers), copy.deepcopy(layers)
    for network, limits in ((layers, {}), (alone, {"LARGE": 0}), (in_twos, {"MOST": 2 * 6 * 9})):
        with monkeypatch.context() as patch:
            for name, limit in limits.items():
                patch.setattr(f"selfsight.muon.{name}", limit)
            optimizer = Muon([{"params": list(network.parameters())}], 0.01, 0.95)
            for seed in range(2):
                torch.manual_seed(seed)
                for parameter in network.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()
    for other in (alone, in_twos):
        torch.testing.assert_close(list(other.parameters()), list(layers.parameters()))
