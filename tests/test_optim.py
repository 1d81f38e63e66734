"""The schedule's shape, weight decay where it belongs, and LARS's rates."""

import math

import pytest
import torch
from torch import nn

from selfsight.optim import Optim, build, cosine, decay, rate, schedule


def test_rate_warms_up_then_follows_a_cosine_and_grows_with_the_batch() -> None:
    optim = Optim(lr=1.0, warmup=0.2, final=0.1)
    assert rate(optim, 0.0, 256) == 0
    assert rate(optim, 0.1, 256) == pytest.approx(0.5)
    assert rate(optim, 0.2, 256) == pytest.approx(1.0)
    assert rate(optim, 0.6, 256) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert rate(optim, 1.0, 256) == pytest.approx(0.1)
    assert rate(optim, 0.2, 512) == pytest.approx(2.0)
    muon = Optim("muon", lr=1.0, warmup=0.2)
    assert [rate(muon, 0.2, size) for size in (64, 256, 4096)] == pytest.approx([0.25, 1, 4])


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lars"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = build(module, Optim(name, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    before = {k: v.detach().clone() for k, v in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(module.named_parameters())
    assert not torch.equal(after["0.weight"], before["0.weight"])
    for k in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[k], before[k])


def test_weight_decay_follows_a_cosine_if_it_has_an_end() -> None:
    assert [decay(Optim(weight_decay=0.1), p) for p in (0.0, 0.5, 1.0)] == [0.1] * 3
    scheduled = Optim(weight_decay=0.04, final_weight_decay=0.4)
    assert [decay(scheduled, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])
    assert [cosine(0.99, 1.0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.99, 0.995, 1.0])


@pytest.mark.parametrize("start", [0.0, 0.04])
def test_scheduled_weight_decay_spares_biases_and_norms(start: float) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    recipe = Optim(weight_decay=start, final_weight_decay=0.3)
    optimizer = build(module, recipe)
    schedule(optimizer.param_groups, recipe, 1.0, 256)
    assert {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == {
        2: 0.3,
        1: 0,
    }


def test_the_rate_of_steady_parts_warms_up_too_and_then_stays_at_its_own_peak() -> None:
    module = nn.ModuleDict({"head": nn.Linear(4, 4), "header": nn.Linear(4, 4), "predictor": nn.Linear(4, 4)})
    recipe = Optim(lr=1.0, warmup=0.2, weight_decay=0.5, steady=("head",), steady_factor=4.0)
    optimizer = build(module, recipe)
    names = {id(p): name for name, p in module.named_parameters()}

    def rates(progress: float) -> dict[str, float]:
        assert schedule(optimizer.param_groups, recipe, progress, 512) == rate(recipe, progress, 512)
        return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    early = rates(0.1)
    assert early.pop("head.weight") == early.pop("head.bias") == 4.0
    assert set(early.values()) == {1.0}
    late = rates(0.9)
    assert len(late) == 6, "each parameter is in one group"
    assert late.pop("head.weight") == late.pop("head.bias") == 8.0
    assert set(late.values()) == {rate(recipe, 0.9, 512)}
    assert rate(recipe, 0.9, 512) < 0.2


def test_lars_steps_are_in_proportion_to_the_weights_not_the_gradient() -> None:
    sizes = []
    for scale in (1.0, 1000.0):
        layer = nn.Linear(8, 8, bias=False)
        nn.init.ones_(layer.weight)
        optimizer = build(layer, Optim("lars", lr=1.0, weight_decay=1e-6, momentum=0.0))
        layer.weight.grad = torch.full_like(layer.weight, scale)
        optimizer.step()
        sizes.append(float((layer.weight.detach() - 1).norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    assert sizes[0] == pytest.approx(0.02 * 8, rel=1e-2)


def test_muon_steps_are_orthogonal_and_as_large_as_adamws() -> None:
    layer = nn.Conv2d(16, 32, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build(layer, Optim("muon", lr=0.01, weight_decay=0.0, momentum=0.95))
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = (layer.weight.detach() - before).flatten(1)  # (32, 144)
    singular = torch.linalg.svdvals(step)
    assert float(singular.min() / singular.max()) > 0.6, "all directions are of like size"
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25), "0.2 · lr, as adamw's usual step"
