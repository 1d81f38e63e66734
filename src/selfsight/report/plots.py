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

from selfsight.evaluate.results import (
    BASELINES,
    COLOURS,
    GREYS,
    TITLES,
    Row,
    Summary,
    draw_curve,
    labels_words,
    metric_words,
    summary,
)
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
            words = "The dashed line is what guessing scores. " if chance else ""
            words += (
                "Lower is better as long as the embeddings don't collapse: where a network answers itself or its "
                "teacher (BYOL, SimSiam, DINO, I-JEPA), one answer for all would score best, and the loss may rise."
            )
            plots.append(Plot(_uri(axes), "Loss of the pretext task", words))
        if accuracy := series(metrics, "accuracy"):
            axes = _axes("right answers", percent=True)
            axes.plot(accuracy.epochs, accuracy.values)
            plots.append(
                Plot(
                    _uri(axes), "The pretext task itself", "How often the network solves the task, on training images."
                )
            )
        shares = {
            "view_retrieval": "views that find their partner",
            "rankme_share": "dimensions in use",
            "knn": "kNN accuracy",
            "linear": "linear probe",
            "linear_teacher": "linear probe, teacher",
            "linear_student": "linear probe, student",
        }
        found = {label: series(metrics, column) for column, label in shares.items()}
        if any(found.values()):
            axes = _axes("share", percent=True)
            for (label, one), mark in zip(found.items(), "osDv^^", strict=True):
                if one:
                    axes.plot(one.epochs, one.values, marker=mark, label=label)
            axes.set_ylim(0, 1)
            axes.legend()
            plots.append(
                Plot(
                    _uri(axes),
                    "Health of the embeddings",
                    "Rising is good; dimensions in use that fall to zero are a collapse.",
                )
            )
        near, even = series(metrics, "alignment"), series(metrics, "uniformity")
        if near and even:
            axes = _axes("")
            axes.plot(near.epochs, near.values, marker="o", label="alignment")
            axes.plot(even.epochs, even.values, marker="s", label="uniformity")
            axes.legend()
            words = (
                "Views of one image should be near (alignment low) and all images spread out (uniformity low). "
                "Alignment alone says nothing: it is 0 after a collapse."
            )
            plots.append(Plot(_uri(axes), "Near and spread out", words))
        if rate := series(metrics, "lr"):
            axes = _axes("learning rate")
            axes.plot(rate.epochs, rate.values)
            plots.append(Plot(_uri(axes), "Learning rate", "As a rule a warm-up, then a slow fall to zero."))
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
            axes.set_ylabel(f"test {metric_words(part[0].metric)}")
            plots.append(Plot(_uri(axes), TITLES.get(protocol, protocol), "The band is the 95 % interval."))
    return plots


def comparison_figure(rows: Sequence[Row], methods: Sequence[str]) -> Figure:
    """Draw a bar a method, a row of panels a protocol, a column an amount of labels; the baselines as dashed lines.

    Linear probe and fine-tuning; nearest neighbours only where neither was measured.
    """
    found = summary(rows)
    there = {s.protocol for s in found}
    protocols: list[str] = [p for p in ("linear", "finetune") if p in there] or sorted(there)
    amounts = sorted({(isinstance(s.labels, int), s.labels) for s in found if s.protocol in protocols})
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        size = (1.2 + 4.2 * len(amounts), 0.5 + len(protocols) * (0.9 + 0.34 * len(methods)))
        figure = Figure(figsize=size)
        panels = figure.subplots(len(protocols), len(amounts), squeeze=False, sharey=True, sharex=True)
        for line, protocol in zip(panels, protocols, strict=True):
            for axes, (_, labels) in zip(line, amounts, strict=True):
                part = {s.method: s for s in found if s.protocol == protocol and repr(s.labels) == repr(labels)}
                _bars(axes, part, methods)
                amount = labels_words(labels, next((s.used for s in part.values()), None))
                axes.set_title(f"{TITLES.get(protocol, protocol)}, {amount}", loc="left", fontsize=11)
        most = max(s.mean + (s.margin or 0) for s in found if s.protocol in protocols)
        panels[0, 0].set_xlim(0, 1.16 * max(most, 1e-3))  # of all panels; room for the figures beside the bars
        for axes in panels[-1]:
            axes.set_xlabel(f"test {metric_words(rows[0].metric)}")
        marks = {
            label: mark for axes in panels.flat for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if marks:
            figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks), handlelength=3)
    return figure


def _bars(axes: Axes, part: dict[str, Summary], methods: Sequence[str]) -> None:
    """Draw a panel: the methods from the top down."""
    for i, method in enumerate(methods):
        if s := part.get(method):
            axes.barh(i, s.mean, height=0.66, color=COLOURS[i % len(COLOURS)], alpha=0.85)
            if s.margin is not None:
                axes.errorbar(s.mean, i, xerr=s.margin, color="#4a5460", linewidth=1.3, capsize=3)
            words = f"{s.mean * 100:.1f}"
            axes.annotate(words, (s.mean + (s.margin or 0), i), (5, 0), textcoords="offset points", va="center")
    for name in BASELINES:
        if s := part.get(name):
            colour, dashes = GREYS[name]
            axes.axvline(s.mean, color=colour, linestyle=dashes, linewidth=1.6, label=f"{name} (no pretraining)")
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)


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
    return data_uri(as_image(figure))


def as_image(figure: Figure) -> Image.Image:
    """Return a drawn figure."""
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file)
