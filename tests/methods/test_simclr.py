"""NT-Xent equals a plain loop and lightly's; views of one image are its positives."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from selfsight import backbones
from selfsight.data.images import Batch
from selfsight.methods import Facts
from selfsight.methods.simclr import SimCLR, nt_xent
from selfsight.pictures import CELL, MARK


def plain_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper, one pair at a time."""
    n = len(z) // 2
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        s = [torch.dot(z[i], z[k]) / temperature for k in range(2 * n)]
        denominator = sum((torch.exp(s[k]) for k in range(2 * n) if k != i), torch.zeros((), dtype=z.dtype))
        losses.append(-torch.log(torch.exp(s[j]) / denominator))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_equal_a_plain_loop_and_lightlys(temperature: float) -> None:
    torch.manual_seed(0)
    raw = torch.randn(12, 5, dtype=torch.float64)
    results = []
    for loss in (
        lambda z: nt_xent(z, temperature)[0],
        lambda z: plain_nt_xent(z, temperature),
        lambda z: NTXentLoss(temperature=temperature)(z[:6], z[6:]),
    ):
        x = raw.clone().requires_grad_()
        value = loss(F.normalize(x, dim=1))
        value.backward()
        assert x.grad is not None
        results.append((value.detach(), x.grad))
    for value, grad in results[1:]:
        assert torch.allclose(value, results[0][0], atol=1e-5)
        assert torch.allclose(grad, results[0][1], atol=1e-5)


def test_accuracy_counts_views_that_find_their_partner() -> None:
    z = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1]]), dim=1)
    # 0 and 2 are views of one image and nearest; 1's partner is 3, but 2 is nearer to 1.
    accuracy = nt_xent(z, 0.5)[1]
    assert float(accuracy) <= 0.75
    assert float(accuracy) >= 0.5


def test_equal_embeddings_have_the_loss_of_chance() -> None:
    z = F.normalize(torch.ones(10, 4), dim=1)
    assert math.isclose(float(nt_xent(z, 0.2)[0]), math.log(9), rel_tol=1e-5)


def test_the_picture_shows_how_alike_the_views_are() -> None:
    torch.manual_seed(0)
    backbone = backbones.create(backbones.plan("test_resnet", 32, 1, (0.5,), (0.25,)))
    method = SimCLR(backbone, SimCLR.Config()).eval()
    batch = Batch(torch.randint(0, 256, (12, 1, 40, 40), dtype=torch.uint8), torch.ones(12), torch.arange(12))
    with torch.no_grad():
        views, (caption, drawn) = method.picture(batch).values(), list(method.picture(batch).items())[1]
    assert next(iter(views)).shape == (3, 10, 1, 32, 32)
    assert drawn.shape == (1, 1, 3, 21 * CELL, 21 * CELL), "ten images' twenty views, with themselves before and above"
    cells = drawn[0, 0].unflatten(2, (21, CELL)).unflatten(1, (21, CELL)).permute(1, 3, 0, 2, 4)[1:, 1:]
    marked = (cells == torch.tensor(MARK)[:, None, None]).all(2).flatten(2).any(2)
    assert torch.equal(marked, torch.eye(20, dtype=torch.bool).roll(10, 1)), "positives are framed"
    assert "positives" in caption
    with torch.no_grad():
        one = Batch(batch.images[:1], batch.aspect[:1], batch.index[:1])
        assert len(method.picture(one)) == 1, "a single pair has no negatives"


@pytest.mark.parametrize(
    ("size", "crop", "strength", "blur"), [(32, 0.2, 0.5, 0), (64, 0.3, 0.5, 0.5), (96, 0.08, 1, 0.5)]
)
def test_views_suit_the_size_of_the_images(size: int, crop: float, strength: float, blur: float) -> None:
    config = SimCLR.Config().fit_to(Facts(3000, size, 3))
    assert (config.crop_min, config.strength, config.blur) == (crop, strength, blur)
