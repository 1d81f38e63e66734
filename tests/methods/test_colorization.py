"""The loss equals a slow reference; the prior is the data's; grey data is refused; colours are learnt."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from selfsight import backbones, optim
from selfsight.data.images import Batch
from selfsight.data.lab import AbBins, ab_bins, lab_to_rgb, shrunk_ab
from selfsight.errors import SelfsightError
from selfsight.methods import Facts
from selfsight.methods.colorization import (
    PATIENCE,
    Colorization,
    rebalancing,
    weighted_cross_entropy,
)
from tests.processes import together

SIZE = 32


def a_batch(images: Tensor) -> Batch:
    return Batch(images, torch.ones(len(images)), torch.arange(len(images)))


def painted(n: int, side: int = 48) -> Batch:
    """Blots of light on dark: light is yellow, dark is blue, so that lightness tells colour."""
    light = torch.nn.functional.interpolate(torch.rand(n, 1, 4, 4), side, mode="bilinear")
    lab = torch.cat([20 + 70 * light, 0 * light, 120 * light - 60], 1)
    return a_batch((lab_to_rgb(lab) * 255).round().to(torch.uint8))


def a_method(backbone: str = "test_resnet", size: int = SIZE) -> Colorization:
    torch.manual_seed(0)
    spec = backbones.plan(backbone, size, 3, (0.5,) * 3, (0.25,) * 3)
    return Colorization(backbones.create(spec), Colorization.Config())


def plain_encoding(ab: tuple[float, float], bins: list[list[float]], sigma: float) -> list[float]:
    """Section 2.2's Z of one pixel, all Q of it."""
    squared = [(ab[0] - a) ** 2 + (ab[1] - b) ** 2 for a, b in bins]
    nearest = sorted(range(len(bins)), key=lambda q: squared[q])[:5]
    gauss = {q: math.exp(-squared[q] / (2 * sigma**2)) for q in nearest}
    return [gauss.get(q, 0.0) / sum(gauss.values()) for q in range(len(bins))]


def plain_loss(logits: Tensor, ab: Tensor, prior: list[float], sigma: float, balance: float) -> Tensor:
    """Equations 2, 3 and 4, one pixel and one colour at a time."""
    bins = ab_bins().tolist()
    weights = [1 / ((1 - balance) * p + balance / len(bins)) for p in prior]
    mean = sum(p * w for p, w in zip(prior, weights, strict=True))
    total = torch.zeros((), dtype=logits.dtype)
    for row, colour in zip(logits, ab.tolist(), strict=True):
        z = plain_encoding(colour, bins, sigma)
        log_sum = sum((torch.exp(v) for v in row), torch.zeros((), dtype=logits.dtype)).log()
        entropy = sum((-z[q] * (row[q] - log_sum) for q in range(len(bins)) if z[q]), torch.zeros(()))
        total = total + weights[max(range(len(bins)), key=lambda q: z[q])] / mean * entropy
    return total / len(logits)


@pytest.mark.parametrize(("sigma", "balance"), [(5.0, 0.5), (3.0, 0.9)])
def test_loss_and_gradient_equal_a_slow_reference(sigma: float, balance: float) -> None:
    torch.manual_seed(0)
    raw = torch.randn(12, 313, dtype=torch.float64)
    ab = shrunk_ab(torch.rand(1, 3, 12, 12), 12).flatten(0, 2)[:12]
    prior = torch.rand(313).double().pow(4)
    prior = prior / prior.sum()
    results = []
    for plain in (True, False):
        logits = raw.clone().requires_grad_()
        if plain:
            loss = plain_loss(logits, ab, prior.tolist(), sigma, balance)
        else:
            near, share = AbBins().spread(ab, sigma)
            weight = rebalancing(prior, balance)[near[:, 0]]
            loss = weighted_cross_entropy(logits.log_softmax(1), near, share.double(), weight)
        loss.backward()
        assert logits.grad is not None
        results.append((loss.detach(), logits.grad))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_the_methods_loss_is_made_of_these() -> None:
    """What forward returns equals the slow reference on the same view, with the prior that it has by then."""
    method, batch = a_method(), painted(2)
    method.prior.copy_(torch.rand(313) / 156)
    method.eval()
    with torch.no_grad():
        torch.manual_seed(3)
        out = method(batch, 0.0)
        torch.manual_seed(3)
        x = method.view(batch)
        logits = method.answer(x).flatten(0, 2)
    ab = shrunk_ab(x, 8).flatten(0, 2)
    expected = plain_loss(logits.double(), ab, method.prior.tolist(), 5.0, 0.5)
    assert float(out["loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_rare_colours_weigh_more_and_a_common_pixel_one_on_average() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0])
    weight = rebalancing(prior, 0.5)
    assert weight.tolist() == sorted(weight.tolist())
    assert float((prior * weight).sum()) == pytest.approx(1)
    assert float(weight[3] / weight[0]) == pytest.approx((0.5 * 0.7 + 0.125) / 0.125)
    assert torch.allclose(rebalancing(prior, 1.0), torch.ones(4))


def test_an_encoded_colour_decodes_to_nearly_itself() -> None:
    ab = shrunk_ab(torch.rand(4, 3, 16, 16), 16).flatten(0, 2)
    bins = AbBins()
    near, share = bins.spread(ab, 5.0)
    assert torch.allclose(share.sum(1), torch.ones(len(ab)))
    decoded = (bins.centres[near] * share[:, :, None]).sum(1)
    assert float((decoded - ab).norm(dim=1).max()) < 6
    assert float((decoded - ab).norm(dim=1).mean()) < 2


def test_only_lightness_reaches_the_backbone() -> None:
    method, seen = a_method().eval(), []
    method.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    original = method.backbone.maps
    method.backbone.maps = lambda x: seen.append(x) or original(x)  # type: ignore[func-returns-value, method-assign]
    x = torch.rand(2, 3, SIZE, SIZE)
    answers = method.answer(x)
    assert torch.equal(seen[0][:, 0], seen[0][:, 1])
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])
    grey = seen[0].clone()
    assert torch.allclose(method.answer(grey), answers, atol=1e-4), "the image in grey is the same to it"


def test_the_prior_becomes_that_of_the_data() -> None:
    method = a_method()
    bins = ab_bins().tolist()
    red, teal = bins.index([30, 20]), bins.index([-30, -10])
    near = torch.tensor([[red] * 5] * 3 + [[teal] * 5])
    share = torch.full((4, 5), 0.2)
    method.learn_prior(near[:3], share[:3])
    assert float(method.prior[red]) == pytest.approx(1), "the first batch replaces the uniform one"
    for _ in range(3):
        method.learn_prior(near[3:], share[3:])
    assert float(method.prior.sum()) == pytest.approx(1, abs=1e-5)
    assert float(method.prior[red]) == pytest.approx(0.25, abs=1e-5), "each batch counts alike"
    assert float(method.prior[teal]) == pytest.approx(0.75)
    before = method.prior.clone()
    method.learn_prior(near, torch.zeros_like(share))
    assert torch.allclose(method.prior, before, atol=1e-6), "a batch without colours changes nothing"
    method.eval()(painted(4), 0.5)
    assert torch.allclose(method.prior, before), "only training data counts"
    assert {"prior", "batches"} <= method.state_dict().keys()


def process(rank: int, folder: str, near: Tensor, share: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    method = a_method(size=16)
    method.learn_prior(near[4 * rank : 4 * rank + 4], share[4 * rank : 4 * rank + 4])
    torch.save(method.prior, f"{folder}/prior{rank}")
    dist.destroy_process_group()


def test_two_processes_have_the_prior_of_one(tmp_path: Path) -> None:
    near, share = torch.randint(0, 313, (8, 5)), torch.rand(8, 5)
    together(process, str(tmp_path), near, share)
    method = a_method(size=16)
    method.learn_prior(near, share)
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f"prior{rank}", weights_only=True), method.prior, atol=1e-7)


@pytest.mark.parametrize(("channels", "why"), [(1, "these are grey"), (4, "these have 4 bands")])
def test_data_without_colours_is_refused(channels: int, why: str) -> None:
    with pytest.raises(SelfsightError, match=f"colours of red-green-blue images; {why}"):
        Colorization.Config().fit_to(Facts(100, SIZE, channels))


def test_grey_images_stored_in_colour_are_refused_when_none_has_colour() -> None:
    grey = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8).expand(-1, 3, -1, -1)
    method = a_method()
    for _ in range(PATIENCE - 1):
        method(a_batch(grey), 0.0)
    with pytest.raises(SelfsightError, match="these images have none"):
        method(a_batch(grey), 0.0)


def test_a_few_colours_among_grey_images_may_come_late(photo: NDArray[np.uint8]) -> None:
    grey = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8).expand(-1, 3, -1, -1)
    colours = torch.from_numpy(photo[:192, :48].copy().reshape(4, 48, 48, 3)).permute(0, 3, 1, 2)
    late, early = a_method(), a_method()
    for _ in range(PATIENCE - 1):
        late(a_batch(grey), 0.0)
    uniform = late.prior.clone()
    for method in (late, early):
        torch.manual_seed(0)
        method(a_batch(colours), 0.0)
    assert not torch.equal(late.prior, uniform)
    assert torch.equal(late.prior, early.prior), "the wait doesn't count"
    assert float(late.batches) == 1
    for _ in range(PATIENCE):
        late(a_batch(grey), 0.0)


def test_a_grey_image_among_coloured_ones_teaches_nothing() -> None:
    method, coloured = a_method().eval(), painted(3)
    grey = torch.randint(0, 256, (1, 1, 48, 48), dtype=torch.uint8).expand(-1, 3, -1, -1)
    x = method.view(a_batch(torch.cat([coloured.images, grey])))
    logits = torch.zeros(4, 8, 8, 313, requires_grad=True)
    method.view = lambda batch: x  # type: ignore[assignment]
    method.answer = lambda x: logits.log_softmax(-1)  # type: ignore[method-assign]
    method(coloured, 0.0)["loss"].backward()
    assert logits.grad is not None
    assert float(logits.grad[:3].abs().sum(-1).min()) > 0
    assert float(logits.grad[3].abs().max()) == 0


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [("test_resnet", 32, 8), ("resnet10t", 64, 16), ("resnet10t", 96, 24), ("test_vit", 64, 16), ("test_vit", 84, 24)],
)
def test_the_answer_has_about_a_quarter_of_the_images_side(backbone: str, size: int, side: int) -> None:
    method = a_method(backbone, size)
    assert all(m.training for m in method.modules())
    with torch.no_grad():
        assert method.answer(torch.rand(2, 3, size, size)).shape == (2, side, side, 313)


def test_it_learns_colours_that_lightness_tells() -> None:
    method, batch = a_method(), painted(32)
    optimizer = optim.build(method, method.optim)
    optim.set_rate(optimizer.param_groups, 3e-3)
    for step in range(80):
        loss = method(batch, step / 80)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        out = {k: float(v) for k, v in method(painted(32), 1.0).items()}
    assert out["loss"] < 0.9 * out["chance"]
    assert out["ab_error"] < 0.6 * min(out["grey_error"], out["mean_error"])
