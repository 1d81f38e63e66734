"""Weighted nearest neighbours on frozen features: the cheapest look at what a backbone has learned.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MOST = 20
"""So many neighbours vote, if there are labels enough."""
TEMPERATURE = 0.07


def knn_predict(
    train_x: NDArray[np.float32],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.float32],
    classes: int,
    k: int = MOST,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> NDArray[np.int64]:
    """Return the class (M,) of each test row by the vote of its nearest labeled rows.

    A neighbour of cosine similarity s votes with weight exp(s / temperature).

    `train_x` (N, D), `train_y` (N,) in [0, classes), `test_x` (M, D). At most as many neighbours vote as there
    are labels per class on average (`neighbours`): with 5 labels a class, the 6th neighbour is bound to be of
    another class. Memory is bounded by `chunk` test rows at a time. Raises ValueError without labeled rows.
    """
    if not len(train_x):
        raise ValueError("kNN needs at least one labeled row")
    k = neighbours(train_y, k)
    bank = F.normalize(torch.from_numpy(np.ascontiguousarray(train_x)), dim=1)
    targets = F.one_hot(torch.from_numpy(np.ascontiguousarray(train_y)), classes).float()
    answers = []
    for start in range(0, len(test_x), chunk):
        part = torch.from_numpy(np.ascontiguousarray(test_x[start : start + chunk]))
        answers.append(votes(part, bank, targets, k, temperature).argmax(1).numpy())
    return np.concatenate(answers) if answers else np.zeros(0, np.int64)


def votes(features: Tensor, bank: Tensor, targets: Tensor, k: int, temperature: float = TEMPERATURE) -> Tensor:
    """Return the share (M, K) of its `k` nearest rows' votes that each class gets, 0 to 1, for features (M, D).

    `bank` (N, D) are unit vectors, `targets` (N, K) 1 where a row is of a class, else 0. Neighbours of several
    classes vote for each of them.
    """
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 is too coarse to rank cosines
        similarity, near = (F.normalize(features.to(bank.dtype), dim=1) @ bank.T).topk(k, dim=1)  # (M, k) each
        weights = (similarity / temperature).softmax(1)
        return (weights[:, None] @ targets[near])[:, 0]


def neighbours(labels: NDArray[np.int64], k: int) -> int:
    """Return how many neighbours vote: `k`, or the mean number of labels per class present if that is less."""
    return max(1, min(k, len(labels) // len(np.unique(labels))))
