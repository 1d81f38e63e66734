import threading
import time

import numpy as np
import pytest
from scipy.stats import binomtest

from selfsight.gallery.learn import Accuracy, Trainer, answer, measure


def heaps(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    heap = random.integers(0, 3, n)
    return 3 * np.eye(16, dtype=np.float32)[heap] + random.normal(size=(n, 16)).astype(np.float32), heap


def test_few_labels_name_all_images() -> None:
    x, heap = heaps(600)
    labels = np.full(600, -1)
    labels[:30] = heap[:30] * 10 + 7  # ids, not places
    found = answer(x, labels, 5)
    assert (found.version, found.classes) == (5, (7, 17, 27))
    right = found.best == heap * 10 + 7
    assert right.mean() > 0.8
    assert found.confidence[right].mean() > found.confidence[~right].mean()
    assert ((found.margin >= -1e-6) & (found.margin <= found.confidence + 1e-6)).all()
    assert found.accuracy is not None
    assert found.accuracy.count == 30
    low, high = found.accuracy.interval
    assert low <= right.mean() <= high


@pytest.mark.parametrize("labels", [[], [(0, 4)], [(0, 4), (1, 4)]])
def test_no_classifier_without_two_classes(labels: list[tuple[int, int]]) -> None:
    known = np.full(9, -1)
    for row, identity in labels:
        known[row] = identity
    found = answer(np.ones((9, 3), np.float32), known, 1)
    assert (found.best == -1).all()
    assert found.probe is None
    assert found.accuracy is None


def test_accuracy_on_labels_without_meaning_is_that_of_a_guess() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 16)).astype(np.float32), random.integers(0, 2, 200)
    found = measure(x, y, 2)
    assert found is not None
    assert abs(found.value - 0.5) < 0.12, "a label is never predicted from itself"
    assert found.guess == max(np.bincount(y)) / 200
    assert measure(x[:9], y[:9], 2) is None


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (17, 20), (480, 500)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert Accuracy(right, count, 0.5).interval == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_trainer_works_once_for_many_wishes() -> None:
    begun, go, times = threading.Event(), threading.Event(), []

    def work() -> None:
        times.append(1)
        begun.set()
        assert go.wait(10)

    trainer = Trainer(work)
    trainer.wake()
    assert begun.wait(10)
    for _ in range(20):
        trainer.wake()
    go.set()
    for _ in range(200):
        if len(times) == 2:
            break
        time.sleep(0.01)
    trainer.end()
    assert len(times) == 2
