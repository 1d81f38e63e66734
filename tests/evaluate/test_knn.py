import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from selfsight.evaluate.knn import knn_predict, neighbours


def test_it_votes_as_a_plain_loop_does() -> None:
    rng = np.random.default_rng(0)
    train_x = rng.normal(size=(90, 5)).astype(np.float32)
    train_y = rng.integers(0, 3, 90)
    test_x = rng.normal(size=(40, 5)).astype(np.float32)
    expected = []
    for x in test_x:
        cosine = [float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)) for t in train_x]
        near = sorted(range(90), key=lambda i: -cosine[i])[:7]
        votes = [0.0, 0.0, 0.0]
        for i in near:
            votes[train_y[i]] += math.exp(cosine[i] / 0.2)
        expected.append(int(np.argmax(votes)))
    answer = knn_predict(train_x, train_y, test_x, 3, k=7, temperature=0.2, chunk=16)
    assert answer.tolist() == expected


def test_digits_are_recognised() -> None:
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    assert (knn_predict(x[:1000], y[:1000], x[1000:], 10) == y[1000:]).mean() > 0.93


def test_few_labels_limit_the_neighbours() -> None:
    assert neighbours(np.arange(10), 20) == 1
    assert neighbours(np.repeat(np.arange(10), 5), 20) == 5
    assert neighbours(np.repeat(np.arange(2), 50), 20) == 20
    # One neighbour each of two classes: with k = 3 the two far rows of class 1 would outvote the near one of class 0.
    x = np.array([[1, 0], [0.5, 1], [0.5, 1.1]], np.float32)
    assert knn_predict(x, np.array([0, 1, 1]), np.array([[1, 0.1]], np.float32), 2, temperature=10.0).tolist() == [0]


def test_no_rows() -> None:
    x = np.zeros((1, 2), np.float32)
    assert knn_predict(x, np.array([0]), np.zeros((0, 2), np.float32), 1).shape == (0,)
    with pytest.raises(ValueError, match="labeled"):
        knn_predict(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), x, 1)
