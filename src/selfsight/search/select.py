"""Which images to label next, so that few labels say much: typical ones, ones far apart, ones the classifier doubts."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors

from selfsight.errors import SelfsightError
from selfsight.evaluate.linear import fit_probe
from selfsight.search.index import unit

Strategy = Literal["typical", "diverse", "uncertain", "both", "random"]
NEAR = 20
"""Neighbours by which an image's surroundings count as dense."""
MOST_EXACT = 50
"""Clusters above which k-means looks at parts of the data only: it would take minutes."""
DOUBTFUL = 10
"""Of how many times the images asked for, the most doubtful, `both` takes those that differ."""

Rows = NDArray[np.int64]
Features = NDArray[np.float32]


def select(
    features: Features,
    labels: NDArray[np.int64],
    n: int,
    strategy: Strategy = "typical",
    seed: int = 0,
) -> Rows:
    """Return `n` of the unlabelled rows, the most useful first.

    `features` (N, D); `labels` (N,) from 0, -1 where unknown. `typical` and `diverse` need no label at all,
    `uncertain` and `both` some of two classes.

    Raises SelfsightError where there are fewer unlabelled rows than `n`, or too few labels.
    """
    if strategy not in get_args(Strategy):
        raise SelfsightError(f"--strategy {strategy}: must be one of {', '.join(get_args(Strategy))}")
    if seed < 0:
        raise SelfsightError(f"--seed {seed}: must be 0 or more")
    free = np.flatnonzero(labels < 0)
    if len(labels) and not len(free):
        raise SelfsightError("all images have a class; where subfolders are albums, not classes, add --ignore-labels")
    if not 0 < n <= len(free):
        raise SelfsightError(f"-n {n}: must be 1 to {len(free)}, the number of images without a label")
    if strategy in ("uncertain", "both") and len(np.unique(labels[labels >= 0])) < 2:
        raise SelfsightError(f"--strategy {strategy}: needs labels of two classes or more; begin with typical")
    return STRATEGIES[strategy](unit(features), labels, n, np.random.default_rng(seed))


def _typical(matrix: Features, labels: NDArray[np.int64], n: int, random: np.random.Generator) -> Rows:
    """From each of the largest clusters without a label, the image in the densest surroundings.

    Hacohen, Dekel, Weinshall 2022, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets":
    TypiClust, algorithm 1, with as many clusters as there are labels and images asked for.
    """
    labelled = np.flatnonzero(labels >= 0)
    count = min(len(labelled) + n, len(matrix))
    cluster = _clusters(matrix, count, random)
    size = np.bincount(cluster, minlength=count)
    covered = np.bincount(cluster[labelled], minlength=count)
    chosen: list[int] = []
    taken = labels >= 0
    while len(chosen) < n:  # clusters with the fewest labels, of these the largest, as long as they have free images
        left = np.bincount(cluster[~taken], minlength=count)
        best = max(np.flatnonzero(left), key=lambda c: (-covered[c], size[c], -c))
        rows = np.flatnonzero((cluster == best) & ~taken)
        chosen.append(int(rows[_density(matrix, np.flatnonzero(cluster == best), rows).argmax()]))
        taken[chosen[-1]] = True
        covered[best] += 1
    return np.array(chosen)


def _diverse(matrix: Features, labels: NDArray[np.int64], n: int, random: np.random.Generator) -> Rows:
    """Each image the one farthest from all that are labelled or chosen before.

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", algorithm 1. With
    no label at all the first is the one nearest to the mean.
    """
    distance = np.full(len(matrix), np.inf, np.float32)
    for row in np.flatnonzero(labels >= 0):
        distance = np.minimum(distance, 1 - matrix @ matrix[row])
    if np.isinf(distance).all():
        distance = matrix @ matrix.mean(0)
        first = int(distance.argmax())
        distance = 1 - matrix @ matrix[first]
        chosen = [first]
    else:
        chosen = []
    taken = labels >= 0
    taken[chosen] = True
    while len(chosen) < n:
        chosen.append(int(np.where(taken, -np.inf, distance).argmax()))
        taken[chosen[-1]] = True
        distance = np.minimum(distance, 1 - matrix @ matrix[chosen[-1]])
    return np.array(chosen)


def _uncertain(matrix: Features, labels: NDArray[np.int64], n: int, random: np.random.Generator) -> Rows:
    """Those for which a linear probe of the labels finds its two likeliest classes the most alike."""
    free, margin = _margins(matrix, labels)
    return free[np.argsort(margin, kind="stable")[:n]]


def _both(matrix: Features, labels: NDArray[np.int64], n: int, random: np.random.Generator) -> Rows:
    """Of the most doubtful the centres of clusters in which the doubtful weigh more.

    Zhdanov 2019, "Diverse mini-batch Active Learning".
    """
    free, margin = _margins(matrix, labels)
    doubtful = np.argsort(margin, kind="stable")[: DOUBTFUL * n]
    rows, weight = free[doubtful], 1 - margin[doubtful]
    clusters = KMeans(n, n_init=1, random_state=int(random.integers(2**31)))
    distance = clusters.fit_transform(matrix[rows], sample_weight=np.maximum(weight, 1e-6))  # (m, n)
    chosen: list[int] = []
    for cluster in np.argsort(-np.bincount(clusters.labels_, weight, minlength=n), kind="stable"):
        order = rows[np.argsort(distance[:, cluster], kind="stable")]
        chosen.append(int(next(row for row in order if row not in chosen)))
    return np.array(chosen)


def _random(matrix: Features, labels: NDArray[np.int64], n: int, random: np.random.Generator) -> Rows:
    """Any."""
    return random.choice(np.flatnonzero(labels < 0), n, replace=False)


STRATEGIES: dict[Strategy, Callable[[Features, NDArray[np.int64], int, np.random.Generator], Rows]] = {
    "typical": _typical,
    "diverse": _diverse,
    "uncertain": _uncertain,
    "both": _both,
    "random": _random,
}


def _clusters(matrix: Features, count: int, random: np.random.Generator) -> Rows:
    """Return (N,) the number of each row's cluster, 0 to count - 1."""
    state = int(random.integers(2**31))
    few = count <= MOST_EXACT
    kind = KMeans(count, n_init=5, random_state=state) if few else MiniBatchKMeans(count, n_init=1, random_state=state)
    found = kind.fit_predict(matrix)
    return np.asarray(found, np.int64)


def _density(matrix: Features, among: Rows, rows: Rows) -> Features:
    """Return for `rows` the inverse of the mean distance to their nearest among `among`, which holds them."""
    k = min(NEAR, len(among) - 1)
    if not k:
        return np.ones(len(rows), np.float32)
    distance, _ = NearestNeighbors(n_neighbors=k + 1).fit(matrix[among]).kneighbors(matrix[rows])
    return np.asarray(1 / np.maximum(distance[:, 1:].mean(1), 1e-9), np.float32)


def _margins(matrix: Features, labels: NDArray[np.int64]) -> tuple[Rows, Features]:
    """Return the rows without a label, and how much likelier a probe's first class of each is than its second."""
    known, free = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    classes, y = np.unique(labels[known], return_inverse=True)
    logits = fit_probe(matrix[known], y.astype(np.int64), len(classes)).logits(matrix[free]).astype(np.float64)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    best = np.sort(likely, axis=1)
    return free, np.asarray(best[:, -1] - best[:, -2], np.float32)
