"""From a few labels to a class for every image: a linear probe of the embeddings, fitted anew after every label."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.evaluate.linear import Probe, fit_probe, folds

FEWEST_MEASURED = 10
"""Labels below which no accuracy is told: its interval would be everything."""


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier of the other labels names a labelled image's class, five-fold cross-validated."""

    right: int
    count: int
    guess: float
    """The share of the commonest class: what is right by always saying that."""

    @property
    def value(self) -> float:
        """Share that is right."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference"."""
        z, n = 1.96, self.count
        centre = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.value * (1 - self.value) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Answers:
    """What a classifier says of every image."""

    version: int
    """Of the labels that it learned from."""
    classes: tuple[int, ...]
    """Ids of the classes that have a label."""
    best: NDArray[np.int64]
    """(N,) the likeliest class's id, -1 where there is no classifier yet."""
    confidence: NDArray[np.float32]
    """(N,) its probability."""
    margin: NDArray[np.float32]
    """(N,) by how much it is likelier than the second; the lower, the more a label would say."""
    accuracy: Accuracy | None
    probe: Probe | None
    seconds: float
    """How long it took to learn."""


def answer(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], version: int, given: NDArray[np.bool_] | None = None
) -> Answers:
    """Return the answers for vectors (N, D) from labels (N,), ids of classes, -1 where unknown.

    Accuracy is measured on the `given` ones (N,), by default all: labels that a classifier gave would confirm it.
    """
    start = time.monotonic()
    known = np.flatnonzero(labels >= 0)
    ids, y = np.unique(labels[known], return_inverse=True)
    y = y.astype(np.int64)
    if len(ids) < 2:
        n = len(vectors)
        nothing = np.zeros(n, np.float32)
        return Answers(version, tuple(ids.tolist()), np.full(n, -1), nothing, nothing, None, None, 0.0)
    probe = fit_probe(vectors[known], y, len(ids))
    logits = probe.logits(vectors)  # (N, K)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    rows, own = np.arange(len(likely)), np.ones(len(known), bool) if given is None else given[known]
    best = likely.argmax(1)
    confidence = likely[rows, best]
    likely[rows, best] = 0
    return Answers(
        version,
        tuple(ids.tolist()),
        ids[best],
        confidence,
        confidence - likely.max(1),
        measure(vectors[known[own]], y[own], len(ids)),
        probe,
        time.monotonic() - start,
    )


def measure(x: NDArray[np.float32], y: NDArray[np.int64], classes: int) -> Accuracy | None:
    """Return the cross-validated accuracy of features (N, D) with classes (N,); None for too few labels.

    The strength of each fold's probe is chosen without the labels that it is tested on.
    """
    fold = folds(torch.from_numpy(y), 0) if len(y) >= FEWEST_MEASURED else None
    if fold is None:
        return None
    held = fold.numpy()
    right = 0
    for part in range(int(held.max()) + 1):
        probe = fit_probe(x[held != part], y[held != part], classes)
        right += int((probe.predict(x[held == part]) == y[held == part]).sum())
    return Accuracy(right, len(y), float(np.bincount(y).max() / len(y)))


class Trainer:
    """Fits again in a thread of its own whenever it is told to; of several wishes at once it fulfils the last."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._wish = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="selfsight-trainer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ask for another fit."""
        self._wish.set()

    def end(self) -> None:
        """Stop after the fit that is going on."""
        self._ended = True
        self._wish.set()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            self._wish.wait()
            self._wish.clear()
            if self._ended:
                return
            self._work()
