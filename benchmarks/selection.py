"""Which images to label: accuracy of a linear probe after so many labels, by the strategy that chose them.

    python benchmarks/selection.py RUN DATA --labels 20 50 100 --seeds 5

Each strategy begins with none and chooses in steps, as one labels: what `uncertain` and `both` ask of a classifier is
what the labels so far say; their first step is `typical`. Accuracy on the data's test part, or on a fifth held out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import selfsight
from selfsight.data import stratified_split
from selfsight.evaluate.features import extract
from selfsight.evaluate.linear import fit_probe
from selfsight.progress import say
from selfsight.search import Strategy, select
from selfsight.search.index import unit


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: tyro.conf.Positional[Path]
    """Labelled images."""
    labels: tuple[int, ...] = (20, 50, 100)
    """Numbers of labels, each reached from the one before."""
    seeds: int = 5
    pool: int = 5000
    """Of so many images, drawn anew with each seed, a strategy chooses."""
    strategies: tuple[Strategy, ...] = get_args(Strategy)


def accuracies(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    asked: Arguments,
    strategy: Strategy,
    seed: int,
) -> list[float]:
    """Return the accuracy after each number of labels."""
    known = np.full(len(x), -1)
    found = []
    for goal in asked.labels:
        enough = len(np.unique(known[known >= 0])) > 1
        now: Strategy = strategy if enough or strategy in ("typical", "diverse", "random") else "typical"
        rows = select(x, known, goal - int((known >= 0).sum()), now, seed)
        known[rows] = y[rows]
        labelled = np.flatnonzero(known >= 0)
        probe = fit_probe(unit(x[labelled]), known[labelled], int(y.max()) + 1)
        found.append(float((probe.predict(unit(test[0])) == test[1]).mean()))
    return found


def main(asked: Arguments) -> None:
    run = selfsight.load(asked.run)
    images = run.images(str(asked.data))
    labels = images.require_labels()
    split = images.split if images.split is not None else stratified_split(labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = np.flatnonzero((split == "test") & (labels >= 0))
    train = np.flatnonzero((split == "train") & (labels >= 0))
    features = extract(run.backbone().to(device), images, np.arange(len(images)), device=device)
    table = Table("strategy", *(f"{n} labels" for n in asked.labels))
    for strategy in asked.strategies:
        rows = []
        for seed in range(asked.seeds):
            some = np.sort(np.random.default_rng(seed).permutation(train)[: asked.pool])
            rows.append(accuracies(features[some], labels[some], (features[test], labels[test]), asked, strategy, seed))
            say(f"{strategy} {seed}: {rows[-1]}")
        mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / len(rows) ** 0.5
        table.add_row(strategy, *(f"{100 * m:.1f} ± {196 * e:.1f}" for m, e in zip(mean, error, strict=True)))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
