"""Orders of the nine tiles of a jigsaw puzzle that are far from one another."""

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from selfsight.errors import SelfsightError


@functools.cache
def permutation_set(count: int, seed: int = 0) -> Tensor:
    """Return `count` orders of nine tiles, far from one another: (count, 9) int64; place j shows tile p[j].

    Algorithm 1 of Noroozi & Favaro 2016 ("Solving Jigsaw Puzzles"): from a random one on, always add the one of all 9!
    that has the largest summed (thus also average) Hamming distance to those chosen before. Of those equal in this, the
    one whose nearest is farthest: where two orders differ in blank tiles only, they cannot be told apart.

    Raises SelfsightError unless 2 <= count <= 9!.
    """
    orders = math.factorial(9)
    if not 2 <= count <= orders:
        raise SelfsightError(f"permutations {count}: nine tiles have 2 to {orders:,}; the paper uses up to 1000")
    flat = np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(9))), np.uint8, 9 * orders)
    every = np.ascontiguousarray(flat.reshape(orders, 9).T)  # (9, 9!)
    total, nearest = np.zeros(orders, np.int64), np.full(orders, 9, np.uint8)
    chosen = [int(np.random.default_rng(seed).integers(orders))]
    while len(chosen) < count:
        distance = (every != every[:, chosen[-1], None]).sum(0, dtype=np.uint8)  # (9!,)
        total += distance
        total[chosen[-1]] = -(10**9)  # never again
        np.minimum(nearest, distance, out=nearest)
        chosen.append(int((10 * total + nearest).argmax()))
    return torch.from_numpy(every[:, chosen].T.astype(np.int64))
