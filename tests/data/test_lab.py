"""Lab has its published values and comes back; the ab bins are the published 313; the quick search is exact."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

from selfsight.data.lab import AbBins, ab_bins, lab_to_rgb, rgb_to_lab, to_lightness


def all_colours(levels: int) -> Tensor:
    """As an image (1, 3, levels ** 2, levels) in double precision."""
    axis = torch.linspace(0, 1, levels, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis, axis).T.reshape(1, 3, levels**2, levels)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # of Bruce Lindbloom's calculator (sRGB, D65)
        ((1, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 1, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602)),
        ((1, 1, 0), (97.1393, -21.5537, 94.4780)),
        ((0, 1, 1), (91.1132, -48.0875, -14.1312)),
        ((1, 0, 1), (60.3242, 98.2343, -60.8249)),
        ((0.5, 0.5, 0.5), (53.3890, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((0.02, 0.02, 0.02), (1.3983, 0, 0)),  # on both straight pieces: 0.02 / 12.92 · 24389 / 27
    ],
)
def test_lab_has_its_published_values(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    x = torch.tensor(rgb, dtype=torch.float64)[:, None, None]
    assert rgb_to_lab(x).flatten().tolist() == pytest.approx(lab, abs=2e-4)


def test_colours_come_back_in_single_precision_too() -> None:
    x = all_colours(17)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(x)), x, atol=1e-6)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(x.float())), x.float(), atol=1e-4)


def test_autocast_rounds_nothing() -> None:
    x = all_colours(5).float()
    exact = rgb_to_lab(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(x), exact)
        assert torch.equal(lab_to_rgb(exact), lab_to_rgb(rgb_to_lab(x)))


def test_what_no_screen_can_show_is_clipped() -> None:
    x = lab_to_rgb(torch.tensor([50.0, -120, 120])[:, None, None])
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


def test_the_grey_image_keeps_lightness_and_greys() -> None:
    x = all_colours(9)
    grey = to_lightness(x)
    assert grey.shape == (1, 1, 81, 9)
    assert torch.allclose(rgb_to_lab(grey.expand_as(x))[:, 0], rgb_to_lab(x)[:, 0], atol=1e-4)
    assert torch.allclose(to_lightness(grey.expand_as(x)), grey, atol=1e-6)


def test_bins_are_the_313_that_were_published() -> None:
    """For each a from -90 to 100, the lowest b and how many, as in the paper's data."""
    bins = [(int(a), int(b)) for a, b in ab_bins().tolist()]
    lowest = (50, 20, 0, -20, -30, -40, -50, -50, -60, -70, -80, -80, -90, -100, -100, -110, -110, -110, -110, -90)
    counts = (5, 8, 10, 12, 14, 15, 16, 16, 17, 18, 18, 18, 19, 20, 19, 20, 20, 19, 19, 10)
    rows = zip(range(-90, 101, 10), lowest, counts, strict=True)
    assert bins == [(a, b + 10 * i) for a, b, n in rows for i in range(n)]
    assert len(bins) == 313


def test_bins_are_the_grid_around_the_hull_of_all_colours() -> None:
    """The rule of the docstring, by another way: the hull's half planes, each moved out by a step in a and in b."""
    hull = ConvexHull(rgb_to_lab(all_colours(33))[0, 1:].flatten(1).T.numpy())
    corners = np.array([(a, b) for a in (-9.9999, 9.9999) for b in (-9.9999, 9.9999)])
    grown = ConvexHull((hull.points[hull.vertices][:, None] + corners).reshape(-1, 2))
    grid = np.array([(a, b) for a in range(-150, 160, 10) for b in range(-150, 160, 10)])
    inside = (grid @ grown.equations[:, :2].T + grown.equations[:, 2] <= 0).all(1)
    assert grid[inside].tolist() == ab_bins().tolist()


def test_the_quick_search_finds_the_same_bins_as_comparing_with_all() -> None:
    ab = rgb_to_lab(all_colours(64))[0, 1:].flatten(1).T.float()
    bins = AbBins()
    near, squared = bins.nearest(ab, 5)
    for part in range(0, len(ab), 1 << 16):
        rows = slice(part, part + (1 << 16))
        plain = (ab[rows, None] - bins.centres).square().sum(2).topk(5, largest=False).values
        assert torch.allclose(squared[rows], plain, atol=1e-2)
    assert torch.allclose((bins.centres[near] - ab[:, None]).square().sum(2), squared)
    assert not bins.state_dict(), "derived, so not in a checkpoint"


def test_annealing_goes_from_the_likeliest_colour_to_the_mean() -> None:
    bins = AbBins()
    told, rest = torch.tensor([3, 100, 250]), torch.full((1, 313), -math.inf)
    probabilities, colours = torch.tensor([0.2, 0.5, 0.3]), bins.centres[told]
    logp = rest.index_copy(1, told, probabilities.log()[None])
    assert torch.allclose(bins.decode(logp, 0.01), colours[1:2], atol=1e-3)
    assert torch.allclose(bins.decode(logp, 1.0), (0.2 * colours[0] + 0.5 * colours[1] + 0.3 * colours[2])[None])
    p = probabilities.pow(1 / 0.38)
    assert torch.allclose(bins.decode(logp, 0.38), (p / p.sum()) @ colours[None], atol=1e-4)
