from typing import get_args

import numpy as np
import pytest

from selfsight.errors import SelfsightError
from selfsight.search import Strategy, select

SIZES = (200, 100, 50, 10)


def heaps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four heaps of points around four directions, and which heap each is of."""
    random = np.random.default_rng(seed)
    heap = np.repeat(np.arange(4), SIZES)
    features = 4 * np.eye(8, dtype=np.float32)[heap] + random.normal(size=(len(heap), 8)).astype(np.float32)
    return features, heap


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_the_rows_are_different_and_unlabelled_and_the_same_again(strategy: Strategy) -> None:
    features, heap = heaps()
    labels = np.full(len(heap), -1)
    labels[::40] = heap[::40]
    rows = select(features, labels, 25, strategy, seed=1)
    assert len(set(rows.tolist())) == 25
    assert (labels[rows] < 0).all()
    assert np.array_equal(rows, select(features, labels, 25, strategy, seed=1))
    everything = select(features, labels, int((labels < 0).sum()), strategy)
    assert sorted(everything.tolist()) == np.flatnonzero(labels < 0).tolist()


def test_typical_takes_one_of_each_heap_the_largest_first_from_its_midst() -> None:
    features, heap = heaps()
    rows = select(features, np.full(len(heap), -1), 4, "typical")
    assert heap[rows].tolist() == [0, 1, 2, 3]
    for row in rows[:2]:
        mine = features[heap == heap[row]]
        off = np.linalg.norm(mine - mine.mean(0), axis=1)
        assert np.linalg.norm(features[row] - mine.mean(0)) < np.quantile(off, 0.25)
    labels = np.full(len(heap), -1)
    labels[rows[:2]] = heap[rows[:2]]
    assert set(heap[select(features, labels, 2, "typical")].tolist()) == {2, 3}


def test_diverse_goes_where_nothing_is_known() -> None:
    features, heap = heaps()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.full(len(heap), -1)
    labels[[0, 1]] = 0
    rows = select(features, labels, 30, "diverse")
    known = [0, 1]
    for row in rows:  # each is the farthest from all before
        distance = (1 - unit @ unit[known].T).min(1)
        distance[known] = -np.inf
        assert distance[row] == pytest.approx(distance.max(), abs=1e-5)
        known.append(int(row))


def test_uncertain_asks_where_two_classes_meet() -> None:
    angles = np.deg2rad(np.linspace(0, 90, 91))
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.full(91, -1)
    labels[:5], labels[-5:] = 0, 1
    assert (abs(select(features, labels, 5, "uncertain") - 45) <= 5).all()
    both = select(features, labels, 5, "both")
    assert np.ptp(both) > np.ptp(select(features, labels, 5, "uncertain")), "doubtful ones that differ"


def test_what_cannot_be_chosen_is_said() -> None:
    features, heap = heaps()
    labels = np.full(len(heap), -1)
    with pytest.raises(SelfsightError, match="-n 361: must be 1 to 360"):
        select(features, labels, 361)
    with pytest.raises(SelfsightError, match="needs labels of two classes"):
        select(features, labels, 3, "uncertain")
    with pytest.raises(SelfsightError, match="--seed -1: must be 0 or more"):
        select(features, labels, 3, "random", -1)
    with pytest.raises(SelfsightError, match="--strategy best"):
        select(features, labels, 3, "best")  # type: ignore[arg-type]
    with pytest.raises(SelfsightError, match=r"all images have a class; .* add --ignore-labels"):
        select(features, heap, 3)
