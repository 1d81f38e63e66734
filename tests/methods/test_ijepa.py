"""I-JEPA's blocks: as large and as tall as the paper says, and nothing of them is seen."""

from typing import Any

import torch
from torch import Tensor

from tests.methods.test_methods import a_method


def drawn(times: int = 30, count: int = 8) -> tuple[Any, list[tuple[Tensor, list[Tensor]]]]:
    method: Any = a_method("ijepa")
    method.grid = 14  # the paper's, of 224 pixels
    return method, [method.draw(count) for _ in range(times)]


def sides(mask: Tensor) -> list[tuple[int, int]]:
    """Height and width of the rectangle that is true in each row (196,) of a mask."""
    found = []
    for row in mask.view(-1, 14, 14):
        height, width = int(row.any(1).sum()), int(row.any(0).sum())
        assert int(row.sum()) == height * width, "a full rectangle"
        found.append((height, width))
    return found


def test_targets_are_blocks_of_one_shape_a_batch_at_many_places() -> None:
    _, draws = drawn()
    places, shapes = set(), set()
    for _, targets in draws:
        assert len(targets) == 4
        for target in targets:
            (shape,) = set(sides(target))
            shapes.add(shape)
            height, width = shape
            assert 0.15 - 0.05 <= height * width / 196 <= 0.2 + 0.05, "to whole patches"
            assert 0.75 - 0.2 <= height / width <= 1.5 + 0.35
            places |= {int(row.nonzero()[0]) for row in target}
    assert len(shapes) > 5
    assert len(places) > 30


def test_the_context_is_large_and_has_nothing_of_the_targets() -> None:
    _, draws = drawn()
    shares = []
    for context, targets in draws:
        assert not (context & torch.stack(targets).any(0)).any()
        assert len(set(context.sum(1).tolist())) == 1, "as many patches of each image"
        shares.append(float(context.float().mean()))
    assert min(shares) > 0.1
    assert 0.25 < sum(shares) / len(shares) < 0.6


def test_something_is_seen_even_where_the_targets_cover_all() -> None:
    method, _ = drawn(0)
    method.config = type(method.config)(targets=4, target_area=(0.7, 0.8), target_ratio=(1.0, 1.0))
    covered = 0
    for _ in range(30):
        context, targets = method.draw(8)
        covered += int(torch.stack(targets).any(0).all(1).sum())
        assert (context.sum(1) > 0).all()
        assert not (context & targets[0]).any()
    assert covered, "of some images the targets leave nothing"
