import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View
from selfsight.errors import SelfsightError
from selfsight.evaluate.health import (
    Health,
    alignment,
    measure,
    rankme,
    spread,
    uniformity,
    verdict,
    view_retrieval,
)
from selfsight.methods import Method
from tests.evaluate.digits import CPU, SPEC, backbone, digits

HEALTHY = Health(1024, 512, rankme=150, rankme_share=0.3, std=0.8, alignment=0.3, uniformity=-3.0, view_retrieval=0.9)
UNTRAINED = Health(1024, 512, rankme=9, rankme_share=0.02, std=0.2, alignment=0.1, uniformity=-0.2, view_retrieval=0.2)


def pair(n: int = 12, d: int = 5, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=generator)
    return a, a + noise * torch.randn(n, d, generator=generator)


def unit(row: Tensor) -> list[float]:
    length = math.sqrt(sum(v * v for v in row.tolist()))
    return [v / length for v in row.tolist()]


def test_rankme_is_the_entropy_of_the_singular_values() -> None:
    x = pair()[0]
    sigma = np.sqrt(np.linalg.eigvalsh(x.double().numpy().T @ x.double().numpy()))
    p = [s / sum(sigma) for s in sigma]
    assert rankme(x) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), rel=1e-4)
    assert rankme(torch.eye(7)) == pytest.approx(7, rel=1e-4)
    assert rankme(torch.ones(50, 20)) == pytest.approx(1, abs=1e-3)


def test_spread_is_one_all_around_and_zero_in_a_point() -> None:
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(x) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(30, 64)) == pytest.approx(0, abs=1e-6)


def test_alignment_and_uniformity_equal_a_plain_loop() -> None:
    a, b = pair()
    ua, ub = [unit(row) for row in a], [unit(row) for row in b]
    squared = [sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for x, y in zip(ua, ub, strict=True)]
    assert alignment(a, b) == pytest.approx(sum(squared) / len(squared), rel=1e-5)
    potentials = [
        math.exp(-2 * sum((p - q) ** 2 for p, q in zip(ua[i], ua[j], strict=True))) for i in range(12) for j in range(i)
    ]
    assert uniformity(a) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)


def test_view_retrieval_equals_a_plain_loop() -> None:
    a, b = pair(noise=0.6)
    views = [unit(row) for row in [*a, *b]]
    right = 0
    for i, x in enumerate(views):
        others = [j for j in range(24) if j != i]
        nearest = max(others, key=lambda j: sum(p * q for p, q in zip(x, views[j], strict=True)))
        right += nearest == (i + 12) % 24
    assert 0 < right < 24
    assert view_retrieval(a, b) == right / 24
    assert view_retrieval(a, a.clone()) == 1
    assert view_retrieval(torch.ones(9, 4), torch.ones(9, 4)) == 0


class Constant(Backbone):
    """Gives every image the same embedding."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), self.dim)


class Pixels(Backbone):
    """Gives every image its own pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 8).flatten(1)


def test_measuring_is_repeatable_and_leaves_the_generator_alone() -> None:
    images, net, view = digits(80), backbone().train(), View(16, hflip=0)
    torch.manual_seed(1)
    first = measure(net, view, images, np.arange(80), CPU, n=40)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert measure(net, view, images, np.arange(80), CPU, n=40) == first
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert (first.images, first.dim) == (40, net.dim)
    assert net.training
    assert 0 < first.rankme_share <= 1
    with pytest.raises(ValueError, match="2 images"):
        measure(net, view, images, np.arange(1), CPU)


def test_weights_that_broke_are_named() -> None:
    net = backbone()
    torch.nn.init.constant_(next(net.parameters()), torch.nan)
    with pytest.raises(SelfsightError, match="not finite"):
        measure(net, View(16), digits(8), np.arange(8), CPU)


def test_easy_views_are_found_again_and_constants_are_not() -> None:
    images, view = digits(60), View(16, scale=(0.95, 1), hflip=0)
    good = measure(Pixels(SPEC), view, images, np.arange(60), CPU)
    assert good.view_retrieval > 0.8 > 10 * good.chance
    assert verdict(good, None, None, None, 50).state == "learning"
    collapsed = measure(Constant(SPEC), view, images, np.arange(60), CPU)
    assert collapsed.view_retrieval == 0
    assert collapsed.std < 1e-6
    assert verdict(collapsed, good, 0.1, 5.0, 50).state == "collapsed"


def test_a_collapse_is_seen_in_what_the_loss_compares_when_features_still_differ() -> None:
    images, view = digits(60), View(16, scale=(0.95, 1), hflip=0)
    rows, pixels = np.arange(60), Pixels(SPEC)
    seen: list[Tensor] = []

    class Half(Method):
        """Compares the first 20 pixels."""

        def projections(self, features: Tensor) -> Tensor:
            seen.append(features.clone())
            return features[:, :20]

    class Lengths(Half):
        """Compares them as they are, lengths and all."""

        directions = False

    class Flat(Method):
        """Finds all the same."""

        def projections(self, features: Tensor) -> Tensor:
            return features[:, :9] * 0 + 1

    kept = measure(pixels, view, images, rows, CPU, method=Half(pixels, Half.Config()))
    plain = torch.cat(seen)[:, :20]
    assert kept.projected == pytest.approx(rankme(plain - plain.mean(0)), rel=1e-4)
    assert verdict(kept, None, None, None, 50).state == "learning"
    assert kept.projected_std == pytest.approx(spread(plain), rel=1e-4)
    lengths = measure(pixels, view, images, rows, CPU, method=Lengths(pixels, Half.Config()))
    assert lengths.projected_std == pytest.approx(float(plain.std(0).mean()), rel=1e-4)
    flat = measure(pixels, view, images, rows, CPU, method=Flat(pixels, Half.Config()))
    assert flat.projected == pytest.approx(1, abs=1e-3)
    assert flat.projected_std == pytest.approx(0, abs=1e-6)
    assert replace(flat, projected=kept.projected, projected_std=kept.projected_std) == kept, (
        "the features are the same"
    )
    said = verdict(flat, None, None, None, 50)
    assert said.state == "collapsed"
    assert "compares" in said.words
    assert measure(Pixels(SPEC), view, images, rows, CPU).projected is None


@pytest.mark.parametrize(
    ("health", "random", "loss", "chance", "epochs", "state"),
    [
        (HEALTHY, UNTRAINED, 3.0, 6.2, 100, "learning"),
        (HEALTHY, None, None, None, 100, "learning"),
        (replace(HEALTHY, std=0.01), None, 3.0, 6.2, 100, "collapsed"),  # one point
        (replace(HEALTHY, rankme=1.3), None, None, None, 100, "collapsed"),  # one direction
        (
            replace(HEALTHY, std=0.04, view_retrieval=0.01),
            UNTRAINED,
            3.0,
            6.2,
            100,
            "collapsed",
        ),  # worse than untrained
        (replace(HEALTHY, rankme=2.1, view_retrieval=0.01), UNTRAINED, None, None, 100, "collapsed"),  # few directions
        (replace(HEALTHY, projected=1.4), None, None, None, 100, "collapsed"),  # the head's
        (replace(HEALTHY, projected=40.0, projected_std=0.001), None, None, None, 100, "collapsed"),
        (replace(HEALTHY, projected=40.0, projected_std=0.9), None, None, None, 100, "learning"),
        (replace(HEALTHY, view_retrieval=0.01), UNTRAINED, 1.0, math.log(4), 50, "learning"),  # rotation: no views
        (UNTRAINED, UNTRAINED, 6.19, 6.2, 1, "too short"),  # loss at chance
        (HEALTHY, UNTRAINED, 6.19, 6.2, 100, "too short"),
        (UNTRAINED, UNTRAINED, None, None, 2, "too short"),  # no chance loss: no better than untrained
        (HEALTHY, UNTRAINED, None, None, 2, "learning"),
        (replace(UNTRAINED, projected=40.0, projected_std=0.9), UNTRAINED, 1.0, 2.0, 2, "too short"),  # as BYOL's
        (UNTRAINED, UNTRAINED, 1.0, 2.0, 2, "learning"),  # as rotation's
    ],
)
def test_verdicts(
    health: Health, random: Health | None, loss: float | None, chance: float | None, epochs: float, state: str
) -> None:
    found = verdict(health, random, loss, chance, epochs)
    assert found.state == state
    assert found.words.endswith(".")


def test_the_remedy_depends_on_how_long_it_was() -> None:
    assert "train longer" in verdict(UNTRAINED, UNTRAINED, 6.2, 6.2, 2).words
    assert "third of the rate" in verdict(UNTRAINED, UNTRAINED, 6.2, 6.2, 80).words
