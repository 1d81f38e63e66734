"""Splits and small labeled subsets, the same for the same seed."""

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from selfsight.errors import SelfsightError
from selfsight.progress import say

# scikit-learn's stratified splits may leave a rare class out of a part and know no unlabeled rows,
# so the rows are drawn class by class here, where they are in no groups.


def stratified_split(
    labels: NDArray[np.int64],
    test_share: float = 0.2,
    seed: int = 0,
    *,
    classes: Sequence[str] = (),
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.str_]:
    """Return (N,) 'train' or 'test', every class in both; rows without a label (-1) are train.

    With `groups` (N,) rows of one group are in one part, and a class may miss in the test: of scikit-learn's folds that
    is the one of most classes, of these the one nearest to the share. `classes` serve the message only.
    SelfsightError if a class has a single image or is in a single group, or none has a label.
    """
    by_class = _by_class(labels, np.arange(len(labels)))
    if not by_class:
        raise SelfsightError("no image has a label, so no labeled test part can be held out")
    split = np.full(len(labels), "train", dtype="<U5")
    if groups is not None:
        known = np.flatnonzero(labels >= 0)
        for label, members in by_class.items():
            if len(np.unique(groups[members])) == 1:
                raise SelfsightError(
                    f"class {_name(label, classes)} is in a single group; to hold out a test part it needs two or more"
                )
        smaller = min(test_share, 1 - test_share)
        most = min(len(np.unique(groups[known])), max(map(len, by_class.values())))
        parts = max(2, min(round(1 / smaller), most))
        with warnings.catch_warnings(action="ignore"):  # of classes that are rarer than parts
            folds = list(
                StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(known, labels[known], groups[known])
            )
        pairs = folds if smaller == test_share else [(held, taught) for taught, held in folds]

        def shown(rows: NDArray[np.int64]) -> int:
            return len(np.unique(labels[known[rows]]))

        least = min(2, len(by_class))
        fine = [held for taught, held in pairs if shown(taught) == len(by_class) and shown(held) >= least]
        if not fine:
            raise SelfsightError("the groups are too few to hold out a test part that leaves every class to learn from")
        # Not the first: scikit-learn deals the largest group to it.
        held = min(fine, key=lambda held: (len(by_class) - shown(held), abs(len(held) / len(known) - test_share)))
        if not 0.5 < (share := len(held) / len(known)) / test_share < 1.5:
            say(f"whole groups leave {share:.0%} of the labelled images for the test, not {test_share:.0%}")
        split[np.isin(groups, groups[known[held]])] = "test"
        return split
    random = np.random.default_rng(seed)
    for label, members in by_class.items():
        if len(members) == 1:
            raise SelfsightError(
                f"class {_name(label, classes)} has a single image; to hold out a test part it needs two or more"
            )
        count = min(max(1, round(test_share * len(members))), len(members) - 1)
        split[random.choice(members, count, replace=False)] = "test"
    return split


def few_labels(
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    amount: float | int,
    seed: int,
    *,
    classes: Sequence[str] = (),
) -> NDArray[np.int64]:
    """Return the sorted rows, out of `rows`, whose labels may be used.

    A float in (0, 1] is the fraction of every class, but at least one image of each; an int is the count per
    class. With the same seed a larger amount contains the smaller. Unlabeled rows (-1) are never taken.
    SelfsightError if a class has fewer images than the count, or the amount is out of range.
    """
    _check(amount, "a count per class")
    random = np.random.default_rng(seed)
    chosen: list[NDArray[np.int64]] = []
    for label, members in _by_class(labels, rows).items():
        count = amount if isinstance(amount, int) else max(1, round(amount * len(members)))
        if count > len(members):
            raise SelfsightError(
                f"class {_name(label, classes)} has {len(members)} labeled images, fewer than the {count} asked for"
            )
        chosen.append(random.permutation(members)[:count])
    if not chosen:
        raise SelfsightError("labels: none of these images has a label")
    return np.sort(np.concatenate(chosen))


def whole_groups(
    groups: NDArray[np.int64], share: float, seed: int, shows: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return which rows (N,) to set apart: groups at random, together about this share of them.

    None where every group is larger than twice the share. Of classes that rows show, `shows` (N, K), a group stays that
    shows each.
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    classes = np.zeros((len(sizes), 0 if shows is None else shows.shape[1]), bool)
    if shows is not None:
        np.logical_or.at(classes, number, shows)
    left, most, total = classes.sum(0), share * len(groups), 0
    taken: list[int] = []
    for group in np.random.default_rng([seed, 1]).permutation(len(sizes)):
        fits = total + sizes[group] <= (most if taken else 2 * most)
        if fits and len(taken) < len(sizes) - 1 and not (left[classes[group]] == 1).any():
            taken.append(int(group))
            total += int(sizes[group])
            left = left - classes[group]
    return np.isin(number, taken)


class ManyLabels(Protocol):
    """Images that may show several classes each: a set of boxes or of masks."""

    @property
    def classes(self) -> Sequence[str]:
        """Names."""

    @property
    def present(self) -> Sequence[NDArray[np.int64]]:
        """(N,) arrays: the classes that occur in each image."""


def shown_in(data: ManyLabels, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which classes these rows show, (rows, K)."""
    shows, present = np.zeros((len(rows), len(data.classes)), bool), data.present
    for place, row in enumerate(rows):
        shows[place, present[row]] = True
    return shows


def few_images(data: ManyLabels, rows: NDArray[np.int64], amount: float | int, seed: int) -> NDArray[np.int64]:
    """Return the sorted rows, out of `rows`, whose boxes or masks may be used.

    A float in (0, 1] is their fraction, but at least one; an int is their count. First come images that together show
    every class, each the one that adds most, as far as the amount goes; the others are random. With the same seed a
    larger amount contains the smaller.
    SelfsightError if there are fewer rows than the count, or the amount is out of range.
    """
    _check(amount, "a count of images")
    order = np.random.default_rng(seed).permutation(rows)
    count = amount if isinstance(amount, int) else max(1, round(amount * len(order)))
    if count > len(order):
        raise SelfsightError(f"labels: there are {len(order)} images to train on, fewer than the {count} asked for")
    shows = shown_in(data, order)
    first: list[int] = []
    missing = shows.any(axis=0)
    while missing.any() and len(first) < count:
        first.append(int(shows[:, missing].sum(axis=1).argmax()))
        missing &= ~shows[first[-1]]
    chosen = np.concatenate([order[first], np.delete(order, first)])[:count]
    return np.sort(chosen)


def amounts_of(fractions: Sequence[float], counts: Sequence[int]) -> tuple[float | int, ...]:
    """Return amounts of labels, each once: fractions, which are floats, then counts, which are ints."""
    return (*dict.fromkeys(map(float, fractions)), *dict.fromkeys(counts))


def check_draws(seeds: int | None, seed: int, test_share: float) -> None:
    """Raise SelfsightError for a number of draws, a first seed or a share of test images that makes no sense."""
    if seeds is not None and seeds < 1:
        raise SelfsightError(f"--seeds {seeds}: must be 1 or more")
    if seed < 0:
        raise SelfsightError(f"--seed {seed}: must be 0 or more")
    if not 0 < test_share < 1:
        raise SelfsightError(f"--test-share {test_share}: must be a share between 0 and 1")


def _check(amount: float | int, count: str) -> None:
    if not amount > 0 or (isinstance(amount, float) and amount > 1):
        raise SelfsightError(f"labels: {amount} is neither a fraction in (0, 1] nor {count}")


def _by_class(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return the rows of each class that occurs, without the unlabeled."""
    known = rows[labels[rows] >= 0]
    if not len(known):
        return {}
    order = known[np.argsort(labels[known], kind="stable")]
    found, first = np.unique(labels[order], return_index=True)
    return {int(label): members for label, members in zip(found, np.split(order, first[1:]), strict=True)}


def _name(label: int, classes: Sequence[str]) -> str:
    return repr(classes[label]) if label < len(classes) else str(label)
