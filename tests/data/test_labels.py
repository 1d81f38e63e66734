"""Splits hold every class; few labels are stratified, seeded and nested."""

import numpy as np
import pytest

from selfsight.data import few_labels, stratified_split, whole_groups
from selfsight.errors import SelfsightError

LABELS = np.repeat([0, 1, 2, -1], [100, 50, 2, 10])


def test_a_split_holds_a_share_of_every_class_and_trains_on_the_unlabeled() -> None:
    split = stratified_split(LABELS, 0.2, seed=1)
    assert [int((split[label == LABELS] == "test").sum()) for label in (0, 1, 2, -1)] == [20, 10, 1, 0]
    assert (split == stratified_split(LABELS, 0.2, seed=1)).all()
    assert (split != stratified_split(LABELS, 0.2, seed=2)).any()


def test_a_class_with_one_image_cannot_be_split_and_is_named() -> None:
    with pytest.raises(SelfsightError, match="class 'okapi' has a single image"):
        stratified_split(np.array([0, 0, 1]), classes=["cat", "okapi"])
    with pytest.raises(SelfsightError, match="no image has a label"):
        stratified_split(np.array([-1, -1]))


def test_groups_are_never_divided() -> None:
    """As slices of one patient, whose neighbours would tell the answer."""
    random = np.random.default_rng(0)
    groups = random.integers(0, 40, len(LABELS))
    split = stratified_split(LABELS, 0.2, seed=1, groups=groups)
    known = LABELS >= 0
    assert not set(groups[split == "test"]) & set(groups[split == "train"]), "without a label too"
    assert set(LABELS[split == "train"]) >= {0, 1, 2}
    assert 0.1 < (split[known] == "test").mean() < 0.3
    assert (split == stratified_split(LABELS, 0.2, seed=1, groups=groups)).all()
    with pytest.raises(SelfsightError, match="class 'okapi' is in a single group"):
        stratified_split(np.array([0, 0, 1, 1]), classes=["cat", "okapi"], groups=np.array([0, 1, 2, 2]))
    apart = whole_groups(groups, 0.2, seed=0)
    assert not set(groups[apart]) & set(groups[~apart])
    assert 0.1 < apart.mean() <= 0.2
    for seed in range(5):
        assert not whole_groups(np.array([5, 5, 5, 7]), 0.1, seed).any(), "each is more than twice the share"
        assert whole_groups(np.array([5, 5, 5, 7]), 0.2, seed).tolist() == [False, False, False, True]
        assert not whole_groups(groups, 0.0, seed).any()
        assert not whole_groups(np.zeros(9, np.int64), 0.9, seed).any(), "one group is learned from"
        shows = np.eye(3, dtype=bool)[[0, 0, 1, 1, 2]]
        left = ~whole_groups(np.array([0, 1, 2, 3, 4]), 0.5, seed, shows)
        assert shows[left].any(0).all(), "each class is left to learn from"
        assert left.sum() == 3
    small = stratified_split(np.repeat([0, 1], 4), 0.2, seed=0, groups=np.arange(8))
    assert (small == "test").sum() == 2
    assert (stratified_split(LABELS, 0.75, seed=1, groups=groups)[known] == "test").mean() > 0.6


def test_a_test_part_of_whole_groups_is_near_its_share_and_shows_the_classes() -> None:
    """scikit-learn's first fold is the largest group alone."""
    groups = np.repeat(np.arange(10), [600] + [40] * 9)
    labels = np.concatenate([np.repeat([0, 1], [400, 200]), np.tile(np.repeat([0, 1], 20), 9)])
    for seed in range(3):
        assert 0.1 < (stratified_split(labels, 0.2, seed, groups=groups) == "test").mean() < 0.3
    sizes = [300, 10, 10, 10, 10, 250, 10, 10, 10]  # each of one class, as patients and their diagnosis
    groups, labels = np.repeat(np.arange(9), sizes), np.repeat([0, 1], [340, 280])
    for seed in range(3):
        split = stratified_split(labels, 0.2, seed, groups=groups)
        assert set(labels[split == "test"]) == set(labels[split == "train"]) == {0, 1}


def test_a_fraction_is_taken_of_every_class_and_at_least_one() -> None:
    rows = np.arange(0, len(LABELS), 2)
    chosen = few_labels(LABELS, rows, 0.1, seed=0)
    assert np.isin(chosen, rows).all()
    assert np.bincount(LABELS[chosen]).tolist() == [5, 2, 1]
    assert few_labels(LABELS, rows, 1.0, seed=0).tolist() == rows[LABELS[rows] >= 0].tolist()


def test_a_count_is_taken_per_class_and_larger_amounts_contain_smaller_ones() -> None:
    everything = np.arange(len(LABELS))
    one, two = (few_labels(LABELS, everything, count, seed=3) for count in (1, 2))
    assert np.bincount(LABELS[two]).tolist() == [2, 2, 2]
    assert set(one) < set(two)
    assert one.tolist() != few_labels(LABELS, everything, 1, seed=4).tolist()


def test_too_high_a_count_names_the_class_and_how_many_it_has() -> None:
    with pytest.raises(SelfsightError, match="class 'rare' has 2 labeled images, fewer than the 3"):
        few_labels(LABELS, np.arange(len(LABELS)), 3, seed=0, classes=["a", "b", "rare"])


@pytest.mark.parametrize("amount", [0, -1, 1.5, 0.0])
def test_amounts_that_mean_nothing_are_refused(amount: float) -> None:
    with pytest.raises(SelfsightError, match="neither a fraction"):
        few_labels(LABELS, np.arange(len(LABELS)), amount, seed=0)
