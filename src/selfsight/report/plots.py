"""Plots: one style, dark ink on a transparent ground; the page inverts the ink where the reader's screen is dark."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from selfsight.evaluate.results import TITLES, Row, draw_curve
from selfsight.pictures import data_uri

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": "#4a5460",
    "axes.prop_cycle": cycler(color=["#1f5fbf", "#e07b00", "#2a9d57", "#b5379b"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 160,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#9aa3ad",
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 4,
    "text.parse_math": False,
    "xtick.color": "#4a5460",
    "ytick.color": "#4a5460",
}
CHANCE = "#6b7480"


@dataclass(frozen=True)
class Plot:
    """A drawn plot and what the page says about it."""

    image: str
    """Data URI."""
    title: str
    words: str
    """One line on how to read it."""


@dataclass(frozen=True)
class Series:
    """A column of metrics.csv where it was measured."""

    epochs: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.values)

    def last(self, share: float = 0.0) -> float:
        """Return the mean over the last `share` of the values, at least the very last."""
        return float(np.mean(self.values[-max(1, math.ceil(share * len(self.values))) :]))


def series(metrics: Sequence[dict[str, str]], column: str) -> Series:
    """Return a column over epochs, without the rows that leave it blank or are not finite."""
    rows = [(float(row["epoch"]), float(row[column])) for row in metrics if row.get(column)]
    rows = [row for row in rows if math.isfinite(row[1])]
    return Series([row[0] for row in rows], [row[1] for row in rows])


def training_plots(metrics: Sequence[dict[str, str]]) -> list[Plot]:
    """Return the plots of a training that its metrics allow."""
    plots = []
    loss, chance = series(metrics, "loss"), series(metrics, "chance")
    with mpl.rc_context(STYLE):
        if loss:
            axes = _axes("loss")
            axes.plot(loss.epochs, loss.values)
            if chance:
                axes.plot(chance.epochs, chance.values, "--", color=CHANCE, linewidth=1.4, label="guessing")
                axes.legend()
            words = "Lower is better; the dashed line is what guessing scores." if chance else "Lower is better."
            plots.append(Plot(_uri(axes), "Loss of the pretext task", words))
        if accuracy := series(metrics, "accuracy"):
            axes = _axes("right answers", percent=True)
            axes.plot(accuracy.epochs, accuracy.values)
            plots.append(
                Plot(_uri(axes), "The pretext task itself", "How often the network solves the task it was set.")
            )
        shares = {
            "view_retrieval": "views that find their partner",
            "rankme_share": "dimensions in use",
            "knn": "kNN accuracy",
        }
        found = {label: series(metrics, column) for column, label in shares.items()}
        if any(found.values()):
            axes = _axes("share", percent=True)
            for (label, one), mark in zip(found.items(), "osD", strict=True):
                if one:
                    axes.plot(one.epochs, one.values, marker=mark, label=label)
            axes.set_ylim(0, 1)
            axes.legend()
            plots.append(
                Plot(_uri(axes), "Health of the embeddings", "Rising is good; a line that falls to zero is a collapse.")
            )
        near, even = series(metrics, "alignment"), series(metrics, "uniformity")
        if near and even:
            axes = _axes("")
            axes.plot(near.epochs, near.values, marker="o", label="alignment")
            axes.plot(even.epochs, even.values, marker="s", label="uniformity")
            axes.legend()
            words = "Views of one image should be near (alignment low), all images spread out (uniformity low)."
            plots.append(Plot(_uri(axes), "Near and spread out", words))
        if rate := series(metrics, "lr"):
            axes = _axes("learning rate")
            axes.plot(rate.epochs, rate.values)
            plots.append(Plot(_uri(axes), "Learning rate", "A warm-up, then a slow fall to zero."))
    return plots


def efficiency_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot of accuracy over the labels used for each protocol, and for fractions and counts."""
    panels: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.protocol, isinstance(row.labels, int)), []).append(row)
    plots = []
    with mpl.rc_context(STYLE):
        for (protocol, _), part in sorted(panels.items()):
            figure = Figure(figsize=(4.8, 3.4))
            axes = figure.add_subplot()
            draw_curve(part, axes)
            axes.set_ylabel("test accuracy")
            plots.append(Plot(_uri(axes), TITLES.get(protocol, protocol), "The band is the 95 % interval."))
    return plots


def _axes(ylabel: str, percent: bool = False) -> Axes:
    axes = Figure(figsize=(4.8, 3)).add_subplot()
    axes.set_xlabel("epochs")
    axes.set_ylabel(ylabel)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return axes


def _uri(axes: Axes) -> str:
    figure = axes.figure
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file)
    return data_uri(Image.open(file))
