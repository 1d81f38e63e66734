"""Result rows: the file they live in, their means with intervals, as a table and as the label-efficiency curve."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from selfsight.run import replace_file

BASELINES = ("scratch", "random", "pixels")
"""What a method is compared with: the same network on the labels alone, untrained, and no network at all."""
COLOURS = ("#1f5fbf", "#e07b00", "#2a9d57", "#b5379b", "#7a5c3e", "#00a0b0")
GREYS = {"scratch": ("#333333", "--"), "random": ("#777777", ":"), "pixels": ("#a5a5a5", "-.")}
TITLES = {
    "knn": "Nearest neighbours",
    "linear": "Linear probe",
    "frozen": "Frozen backbone",
    "finetune": "Fine-tuning",
    "pseudo": "Fine-tuning with pseudo-labels",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mean_average_precision": "mean AP",
    "map_50": "AP50",
    "miou": "mean IoU",
}
"""What metrics are called in tables and plots; others by their own name."""


@dataclass(frozen=True)
class Row:
    """One result, one line of results.jsonl."""

    run: str
    method: str
    """A method's name, or a baseline: pixels, random or scratch."""
    data: str
    task: str
    protocol: str
    labels: float | int
    """A float is the fraction of the labels used, an int the count per class."""
    seed: int
    metric: str
    value: float
    seconds: float
    """How long the protocol took, given the features."""
    used: float | None = None
    """The share of the training labels that this amount came to: 1 % of 20 images a class is one of each, 5 %."""
    tested: int | None = None
    """How many images it was tested on."""
    commonest: float | None = None
    """The share of these that are of the commonest class, as much as always naming it gets right; of accuracy only."""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells one result from another; 1.0 (all labels) differs from 1 (one a class)."""
        parts = (self.run, self.method, self.data, self.task, self.protocol, self.labels, self.seed, self.metric)
        return tuple(repr(part) for part in parts)


@dataclass(frozen=True)
class Summary:
    """The results of one method, protocol and label amount over seeds."""

    method: str
    protocol: str
    labels: float | int
    metric: str
    seeds: int
    mean: float
    margin: float | None
    """Half the width of the 95 % t-interval of the mean; None with a single seed."""
    used: float | None = None
    """The share of the training labels that the amount came to, where that was recorded."""
    tested: int | None = None
    """As in Row."""
    commonest: float | None = None
    """As in Row."""

    @property
    def amount(self) -> str:
        """The amount of labels in words."""
        return amount_words(self.labels, self.used)

    @property
    def place_used(self) -> float:
        """By which amounts are in order, the fewest labels first: the share used, where it is known."""
        return float(self.labels) if self.used is None else self.used

    @property
    def place(self) -> float | int:
        """Where it stands on an axis: the share that the fraction came to, or the count."""
        return came_to(self.labels, self.used)


def read_rows(path: Path) -> list[Row]:
    """Read results.jsonl; of rows with the same key the last counts. A line cut off by a crash is left out."""
    rows: dict[tuple[str, ...], Row] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = Row(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            rows[row.key] = row
    return list(rows.values())


def keep_rows(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Leave only the rows for which this holds in results.jsonl."""
    if path.exists():
        lines = [json.dumps(asdict(row)) + "\n" for row in read_rows(path) if wanted(row)]
        replace_file(path, lambda p: p.write_text("".join(lines)))


def append_row(path: Path, row: Row) -> None:
    """Append a row to results.jsonl, on a line of its own even after a line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as f:
        if f.tell():
            f.seek(-1, 2)
            if f.read(1) != b"\n":
                f.write(b"\n")
        f.write(json.dumps(asdict(row)).encode() + b"\n")


def amount_words(labels: float | int, used: float | None = None) -> str:
    """Return '1 %' for a fraction, '10 per class' for a count; '1 % (4.2 % used)' where it came to another share."""
    if isinstance(labels, int):
        return f"{labels} per class"
    came = came_to(labels, used)
    return f"{labels * 100:.4g} %" + (f" ({came * 100:.3g} % used)" if came != labels else "")


def came_to(labels: float | int, used: float | None) -> float | int:
    """Return the fraction that `labels` came to, itself where rounding to whole images is all; a count as it is."""
    if isinstance(labels, int) or used is None or abs(used / labels - 1) <= 0.1:
        return labels
    return used


def metric_words(metric: str) -> str:
    """Return what a metric is called in tables and plots."""
    return METRICS.get(metric, metric)


def labels_words(labels: float | int, used: float | None = None) -> str:
    """Return the amount within a sentence: '1 % of the labels', '10 labels a class'."""
    if isinstance(labels, int):
        return f"{labels} labels a class"
    return amount_words(labels, used).replace(" %", " % of the labels", 1)


def accuracy_words(s: Summary) -> str:
    """Return an accuracy in per cent: '43.1 ± 1.2', '43.1' without an interval."""
    return f"{s.mean * 100:.1f}" + (f" ± {s.margin * 100:.1f}" if s.margin is not None else "")


def summary(rows: Iterable[Row]) -> list[Summary]:
    """Return mean and 95 % t-interval over the seeds, by protocol, labels, then method with the baselines last."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.protocol, repr(row.labels), row.metric), []).append(row)
    found = []
    for group in groups.values():
        values, n = [row.value for row in group], len(group)
        mean = sum(values) / n
        margin = None
        if n > 1:
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
            margin = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
        first = group[0]
        what = first.method, first.protocol, first.labels, first.metric
        found.append(Summary(*what, n, mean, margin, first.used, first.tested, first.commonest))
    order = {protocol: i for i, protocol in enumerate(TITLES)}
    return sorted(
        found,
        key=lambda s: (order.get(s.protocol, 9), isinstance(s.labels, int), s.labels, _rank(s.method), s.method),
    )


def by_amount(results: Sequence[Summary]) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Return a table of results: its columns, the amounts of labels; a line (protocol, method, cells) each of these."""
    columns: dict[str, str] = {}
    for s in sorted(results, key=lambda s: (isinstance(s.labels, int), s.labels, s.used is not None)):
        columns[repr(s.labels)] = s.amount  # in the words of a result that knows what was used, if there is one
    cells = {(s.protocol, s.method, repr(s.labels)): accuracy_words(s) for s in results}
    return list(columns.values()), [
        (protocol, method, [cells.get((protocol, method, column), "") for column in columns])
        for protocol, method in dict.fromkeys((s.protocol, s.method) for s in results)
    ]


def print_table(rows: Iterable[Row], console: Console | None = None) -> None:
    """Print a table on stdout (or `console`): a line a method and protocol, a column a label amount.

    The rows are of one metric.
    """
    found = summary(rows)
    columns, lines = by_amount(found)
    metric = next((metric_words(s.metric) for s in found), "result")
    title = f"{metric[0].upper()}{metric[1:]} in % ± 95 % interval, by labels used"
    table = Table(title=title, min_width=len(title))  # rich wraps a title that is wider than its table
    table.add_column("protocol")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    before = None
    for protocol, method, cells in lines:
        if before not in (None, protocol):
            table.add_section()
        before = protocol
        table.add_row(protocol, method, *cells, style="dim" if method in BASELINES else "bold")
    (console or Console()).print(table)


def plot_curve(rows: Sequence[Row], path: Path) -> None:
    """Save the label-efficiency curve as a picture (.png, .svg or .pdf), a panel a protocol, a line a method.

    The rows are of one metric. Fractions and counts per class get panels of their own. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("no rows to plot")
    panels: dict[tuple[str, bool], list[Row]] = {}
    for s in summary(rows):
        kind = isinstance(s.labels, int)
        panels[s.protocol, kind] = [r for r in rows if (r.protocol, isinstance(r.labels, int)) == (s.protocol, kind)]
    figure = Figure(figsize=(1 + 4.6 * len(panels), 4.2), dpi=160, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, ((protocol, _), part) in zip(axes, panels.items(), strict=True):
        draw_curve(part, axis)
        axis.set_title(TITLES.get(protocol, protocol), loc="left", fontsize=13, fontweight="bold")
    axes[0].set_ylabel(f"test {metric_words(rows[0].metric)}", fontsize=11)
    replace_file(path, figure.savefig)


def draw_curve(rows: Iterable[Row], axes: Axes) -> None:
    """Draw accuracy over labels, log x, with 95 % intervals; rows of one protocol and one kind of label amount."""
    found = summary(rows)
    methods = sorted({s.method for s in found}, key=lambda m: (_rank(m), m))
    for i, method in enumerate(methods):
        line = [s for s in found if s.method == method]
        colour, style = GREYS.get(method, (COLOURS[i % len(COLOURS)], "-"))
        x, y = [s.place for s in line], [s.mean for s in line]
        wide = 1.6 if method in BASELINES else 2.6
        axes.plot(x, y, style, color=colour, linewidth=wide, marker="o", markersize=2.2 * wide, label=method)
        low = [s.mean - (s.margin or 0) for s in line]
        high = [s.mean + (s.margin or 0) for s in line]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    amounts = sorted({s.place for s in found})
    axes.set_xscale("log")
    counts = any(isinstance(a, int) for a in amounts)
    axes.set_xticks(amounts, [str(a) if counts else f"{a * 100:.3g} %" for a in amounts], fontsize=10)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labeled images per class" if counts else "share of the labels used", fontsize=11)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=10, loc="lower right")


def _rank(method: str) -> int:
    return 1 + BASELINES.index(method) if method in BASELINES else 0
