"""The comparison of pretext tasks: one chart, one table, and what each saw and answered side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from selfsight.data import ImageSet
from selfsight.evaluate.results import BASELINES, TITLES, Row, Summary, accuracy_words, summary
from selfsight.pictures import data_uri, examples
from selfsight.report.looks import draw_looks
from selfsight.report.page import METHODS, drawn, noise, saved_pictures, sentence, write_page
from selfsight.report.plots import as_image, comparison_figure
from selfsight.run import RunFolder, folder_of, replace_file

FIGURES = {
    "rankme": "RankMe",
    "view_retrieval": "Views found",
    "images_per_second": "Images/s",
    "peak_memory_bytes": "Memory",
    "epochs": "Epochs",
}
"""What is known of a run besides accuracy, and how it is called."""
HIGHER_IS_BETTER = ("view_retrieval", "images_per_second")
"""Of these figures the best is marked. Of RankMe more is not always better, and of epochs it depends on the task."""


@dataclass(frozen=True)
class Entry:
    """A method of the comparison."""

    method: str
    state: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped or failed, in a line."""
    figures: dict[str, float] = field(default_factory=dict)
    """By the names of FIGURES, those that were measured."""


@dataclass(frozen=True)
class Comparison:
    """What was compared, on what, and what came out."""

    out: str
    """The folder, with a run folder for each method."""
    data: str
    images: int
    """In the training."""
    backbone: str
    image_size: int
    budget: str
    """Of each method, in words."""
    device: str
    measured: int
    """Images on which health was measured."""
    entries: Sequence[Entry] = ()
    untrained: dict[str, float] = field(default_factory=dict)
    """Figures of the untrained network."""
    rows: Sequence[Row] = ()
    """Results of all methods and of the baselines."""
    trainings: int = 1
    """Of each method. With two or more a row of a method is one training, its mean over draws of labels."""

    def as_dict(self) -> dict[str, Any]:
        """Return all as JSON's types, with means and intervals instead of the single results."""
        return asdict(self) | {"rows": [asdict(s) for s in summary(self.rows)]}


@dataclass(frozen=True)
class Column:
    """A column of the table: a protocol and an amount of labels, or one of FIGURES."""

    group: str
    name: str
    first: bool
    """Of its group."""


@dataclass(frozen=True)
class Cell:
    """A value in words."""

    text: str = ""
    best: bool = False
    """Of all methods; baselines don't count."""


@dataclass(frozen=True)
class Line:
    """A method or a baseline."""

    name: str
    baseline: bool
    link: str = ""
    reason: str = ""
    cells: Sequence[Cell] = ()


@dataclass(frozen=True)
class Table:
    """All in figures."""

    columns: list[Column]
    lines: list[Line]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns, and over how many each."""
        return [(name, len(list(part))) for name, part in groupby(self.columns, key=lambda column: column.group)]


def write_comparison(comparison: Comparison, images: ImageSet) -> None:
    """Write compare.json, compare.png and report.html beside the run folders; some of the images are shown."""
    out = Path(comparison.out)
    text = json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False) + "\n"
    replace_file(out / "compare.json", lambda path: path.write_text(text, encoding="utf-8"))
    done = [entry.method for entry in comparison.entries if entry.state == "done"]
    chart = ""
    if comparison.rows:
        figure = comparison_figure(comparison.rows, done)
        replace_file(out / "compare.png", lambda path: figure.savefig(path, facecolor="white"))
        chart = data_uri(as_image(figure))
    rows = examples(images)
    pictures = []
    for method in done:
        run = RunFolder(out / folder_of(method))
        looks = draw_looks(run.load_backbone(), images, rows)
        shown = saved_pictures(run.path / "pictures") + drawn(looks)
        pictures.append((method, f"./{folder_of(method)}/report.html", shown))
    values = {
        "title": f"{len(done)} pretext task{'s' if len(done) != 1 else ''} on {Path(comparison.data).name}",
        "comparison": comparison,
        "chart": chart,
        "sentence": best_sentence(summary(comparison.rows), comparison.trainings),
        "table": table_of(comparison),
        "pictures": pictures,
        "measured": 2 * comparison.measured - 1,
    }
    write_page(out / "report.html", "compare.html", values)


def table_of(comparison: Comparison) -> Table:
    """Return the table: a line a method, then the baselines; columns of accuracies, then figures."""
    found = summary(comparison.rows)
    order = {protocol: i for i, protocol in enumerate(TITLES)}
    keys = {(s.protocol, isinstance(s.labels, int), s.labels) for s in found}
    places = [(protocol, labels) for protocol, _, labels in sorted(keys, key=lambda k: (order.get(k[0], 9), k[1:]))]
    words = {repr(s.labels): s.amount for s in found}
    columns = [
        Column(TITLES.get(protocol, protocol), words[repr(labels)], i == 0 or places[i - 1][0] != protocol)
        for i, (protocol, labels) in enumerate(places)
    ]
    columns += [Column("Health" if i < 2 else "Training", name, i in (0, 2)) for i, name in enumerate(FIGURES.values())]
    means = {(s.method, s.protocol, repr(s.labels)): s for s in found}
    done = [entry for entry in comparison.entries if entry.state == "done"]
    best: dict[tuple[str, str] | str, float] = {
        (protocol, repr(labels)): max(s.mean for s in part)
        for protocol, labels in places
        if (part := [s for e in done if (s := means.get((e.method, protocol, repr(labels))))])
    }
    for name in HIGHER_IS_BETTER:
        best[name] = max((e.figures[name] for e in done if name in e.figures), default=float("inf"))
    memory = [e.figures["peak_memory_bytes"] for e in done if "peak_memory_bytes" in e.figures]
    best["peak_memory_bytes"] = min(memory, default=float("inf"))

    def cells(method: str, figures: dict[str, float]) -> list[Cell]:
        row = []
        for protocol, labels in places:
            s = means.get((method, protocol, repr(labels)))
            row.append(Cell(accuracy_words(s), s.mean == best.get((protocol, repr(labels)))) if s else Cell())
        for name in FIGURES:
            value = figures.get(name)
            row.append(Cell() if value is None else Cell(_figure(name, value), value == best.get(name)))
        return row

    lines = [
        Line(e.method, False, f"./{folder_of(e.method)}/report.html", cells=cells(e.method, e.figures))
        if e.state == "done"
        else Line(e.method, False, reason=f"{e.state}: {e.reason}")
        for e in comparison.entries
    ]
    lines += [
        Line(METHODS[name], True, cells=cells(name, comparison.untrained if name == "random" else {}))
        for name in BASELINES
        if any(s.method == name for s in found)
    ]
    return Table(columns, lines)


def best_sentence(results: Sequence[Summary], trainings: int) -> str:
    """Say which method is best with the fewest labels, beside the baselines; '' without results.

    Intervals over draws of labels know nothing of how another of so many `trainings` would have ended.
    """
    for protocol in ("linear", "finetune", "knn"):
        own = [s for s in results if s.protocol == protocol and s.method not in BASELINES]
        if own:
            least = min(own, key=lambda s: s.place_used)
            fewest = [s for s in own if repr(s.labels) == repr(least.labels)]
            best = max(fewest, key=lambda s: s.mean)
            close = [s for s in fewest if best.mean - s.mean <= noise(best, s.margin or 0)]
            others = " and ".join(s.method for s in close if s is not best)
            part = [s for s in results if s.protocol == protocol and s.method in (best.method, *BASELINES)]
            once = " in this one training of each" if trainings == 1 else ""
            ahead = f"{best.method} is ahead{once}" + (f", not clearly of {others}" if others else "") + ". "
            if any(s.margin is None for s in fewest):
                ahead = f"{best.method} has the highest value, of one measurement each. "
            return (ahead if len(fewest) > 1 else "") + sentence(part)
    return ""


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table on stdout (or `console`), with the methods that were left out under it."""
    table, console = table_of(comparison), console or Console()
    drawn = RichTable(title="Accuracy in % ± 95 % interval, health and speed")
    drawn.add_column("\nmethod")
    for column in table.columns:
        drawn.add_column(f"{column.group if column.first else ''}\n{column.name}", justify="right")
    for line in table.lines:
        if not line.reason:
            texts = (f"[green]{cell.text}[/]" if cell.best else cell.text for cell in line.cells)
            drawn.add_row(line.name, *texts, style="dim" if line.baseline else "bold")
    # Wider than the terminal it breaks its lines: cells cut short would say nothing.
    drawn.width = Measurement.get(console, console.options.update(width=1000), drawn).maximum
    console.print(drawn, crop=False)
    for line in table.lines:
        if line.reason:
            console.print(f"{line.name}: {line.reason}", markup=False, highlight=False, soft_wrap=True)


def _figure(name: str, value: float) -> str:
    if name == "peak_memory_bytes":
        return f"{value / 1e9:.2f} GB" if value < 1e10 else f"{value / 1e9:.1f} GB"
    if name == "view_retrieval":
        return f"{value:.0%}"
    return f"{value:.3g}" if name == "epochs" else f"{value:,.0f}"
