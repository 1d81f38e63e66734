"""The report: everything that a person wants to see of a run, in one file that needs nothing else."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfsight import methods
from selfsight.backbones import Backbone
from selfsight.data import ImageSet
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import extract
from selfsight.evaluate.health import Health, Verdict, light_view, measure, verdict
from selfsight.evaluate.results import (
    BASELINES,
    Row,
    Summary,
    by_amount,
    labels_words,
    read_rows,
    summary,
)
from selfsight.pictures import data_uri, examples, grid, read_pictures
from selfsight.report.looks import draw_looks
from selfsight.report.plots import Plot, efficiency_plots, series, training_plots
from selfsight.report.similar import HEIGHT, THUMBNAIL, WIDTH, draw_map, nearest, share_alike
from selfsight.run import RunFolder, read_table, replace_file

MOST_IMAGES = 5000
"""Images that are embedded for the map and the neighbours."""
MEASURED = 512
"""Images on which health is measured."""
HEADLINES = {
    "learning": "It is learning",
    "collapsed": "The embeddings have collapsed",
    "too short": "Too short to tell",
}
PROTOCOLS = {"linear": "a linear probe", "finetune": "fine-tuning", "knn": "nearest neighbours"}
UNEVEN = 0.4
"""Where so many images are of one class, it is said what always naming that one gets right."""
METHODS = {"pixels": "raw pixels", "random": "the untrained network", "scratch": "training from scratch"}


@dataclass(frozen=True)
class Card:
    """A key number."""

    name: str
    value: str
    beside: str
    """What to compare it with."""
    meaning: str
    """One line for a newcomer."""


@dataclass(frozen=True)
class Efficiency:
    """How few labels are enough, on one data set."""

    data: str
    sentence: str
    plots: list[Plot]
    amounts: list[str]
    lines: list[tuple[str, str, bool, list[str]]]
    """Protocol, method, whether it is a baseline, and a cell an amount."""


def write_report(run: RunFolder, images: ImageSet, device: torch.device) -> Path:
    """Write report.html into the run and return its path: one file without links to others.

    Raises SelfsightError for an unfinished run or fewer than 2 images.
    """
    if len(images) < 2:
        raise SelfsightError(f"{images.source}: a report needs at least 2 images, here is {len(images)}")
    config, metrics, path = run.config(), run.metrics(), run.path / "report.html"
    backbone = run.load_backbone().to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = run.random_backbone().to(device)
    health, random = (_health(b, images, device) for b in (backbone, untrained))
    # The head is not kept, but it was seen in training.
    health = replace(health, projected=_last(metrics, "projected"), projected_std=_last(metrics, "projected_std"))
    rows = np.random.default_rng(0).permutation(len(images))[:MOST_IMAGES]
    features = _features(backbone, images, rows, device)
    neighbours = nearest(images, rows, features)
    source = Path(str(config["data"])).name or config["data"]
    page = {
        "title": f"{source}, converted" if "converted" in config else f"{config['method']} on {source}",
        "config": config,
        "shown": images.source,
        "backbone": backbone.spec,
        "seconds": _last(metrics, "seconds"),
        "verdict": _verdict(health, random, metrics),
        "headlines": HEADLINES | ({"learning": "Not trained here"} if "converted" in config else {}),
        "cards": _cards(health, random, metrics),
        "plots": training_plots(metrics),
        "pictures": saved_pictures(run.path / "pictures"),
        "looks": drawn(draw_looks(backbone, images, examples(images))),
        "efficiency": _efficiency(read_rows(run.results_file)),
        "map": draw_map(images, rows, features),
        "untold": "converted" not in config and not methods.saw_labels(config),
        "embedded": len(rows),
        "neighbours": neighbours,
        "alike": share_alike(neighbours),
        "skipped": read_table(run.skipped_file),
        "commands": _commands(run, images),
        "duration": duration,
        "methods": METHODS,
        "measured": health.images,
        "width": WIDTH,
        "height": HEIGHT,
        "side": THUMBNAIL,
        "config_text": json.dumps(config, indent=2, ensure_ascii=False),
    }
    write_page(path, "report.html", page)
    return path


def write_page(path: Path, template: str, values: dict[str, Any]) -> None:
    """Write a page from one of this folder's templates."""
    environment = Environment(
        loader=PackageLoader("selfsight", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    text = environment.get_template(template).render(values)
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def _features(
    backbone: Backbone, images: ImageSet, rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float32]:
    """Return the features of the rows, read in the order in which the images lie on disk."""
    order = np.argsort(rows)
    features = np.empty((len(rows), backbone.dim), np.float32)
    features[order] = extract(backbone, images, rows[order], device=device)
    return features


def _health(backbone: Backbone, images: ImageSet, device: torch.device) -> Health:
    return measure(backbone, light_view(backbone.spec.image_size), images, np.arange(len(images)), device, n=MEASURED)


def _last(metrics: Sequence[dict[str, str]], column: str, share: float = 0.0) -> float | None:
    """Return the mean over the last `share` of a column; None where it was not measured."""
    found = series(metrics, column)
    return found.last(share) if found else None


def _verdict(health: Health, random: Health, metrics: Sequence[dict[str, str]]) -> Verdict:
    loss, chance = _last(metrics, "loss", 0.1), _last(metrics, "chance", 0.1)
    epochs = _last(metrics, "epoch")  # none where it was not trained here, which no words of training fit
    return verdict(health, random, loss, chance, math.inf if epochs is None else epochs)


def _cards(health: Health, random: Health, metrics: Sequence[dict[str, str]]) -> list[Card]:
    cards = []
    knn = _last(metrics, "knn")
    if knn is not None:
        cards.append(
            Card(
                "kNN accuracy",
                f"{knn:.1%}",
                "at the last check",
                "Of up to 500 training images: how many their neighbours name rightly.",
            )
        )
    compared = "" if health.projected is None else f" · what the loss compares: {health.projected:.0f}"
    cards += [
        Card(
            "Views found",
            f"{health.view_retrieval:.0%}",
            f"untrained {random.view_retrieval:.0%} · chance {health.chance:.1%}",
            "Two crops of one image that recognize each other among all others.",
        ),
        Card(
            "Dimensions in use",
            f"{health.rankme:.0f}",
            f"of {min(health.images, health.dim)} · untrained {random.rankme:.0f}{compared}",
            "RankMe: how many independent things the embedding tells. Near 1 is a collapse.",
        ),
    ]
    loss, chance = _last(metrics, "loss", 0.1), _last(metrics, "chance", 0.1)
    if loss is not None:
        beside = "over the last tenth" if chance is None else f"guessing scores {chance:.2f}"
        cards.append(
            Card("Loss", f"{loss:.2f}", beside, "How badly the task is solved: to compare within one method only.")
        )
    epochs, seconds, speed = (_last(metrics, name) for name in ("epoch", "seconds", "images_per_second"))
    if epochs is not None and seconds is not None:
        meaning = "Passes over all images."
        cards.append(Card("Epochs", f"{epochs:.3g}", f"in {duration(seconds)}", meaning))
    if speed is not None:
        cards.append(Card("Images a second", f"{speed:,.0f}", "over the whole training", "The speed of training."))
    return cards


def duration(seconds: float) -> str:
    """Return '45 seconds', '3.2 minutes' or '1.5 hours'."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _efficiency(rows: Sequence[Row]) -> list[Efficiency]:
    """Return the results of each data set, of which each has its own table."""
    sets: dict[str, list[Row]] = {}
    # A run that was moved, or called by another path, has measured the same again: one result a seed counts.
    for row in {replace(row, run="").key: row for row in rows}.values():
        sets.setdefault(row.data, []).append(row)
    found = []
    for data, part in sets.items():
        results = summary(part)
        amounts, table = by_amount(results)
        lines = [(protocol, method, method in BASELINES, cells) for protocol, method, cells in table]
        found.append(Efficiency(data, sentence(results), efficiency_plots(part), amounts, lines))
    return found


def sentence(results: Sequence[Summary]) -> str:
    """Say what a table of results means: the method with fewest labels, beside its baselines."""
    protocol = next((p for p in PROTOCOLS if any(s.protocol == p for s in results)), None)
    part = [s for s in results if s.protocol == protocol and s.method not in BASELINES]
    if protocol is None or not part:
        return ""
    own = min(part, key=lambda s: s.place_used)
    alike = (protocol, repr(own.labels))  # by repr: all of them, 1.0, is not one a class, 1
    others = [s for s in results if (s.protocol, repr(s.labels)) == alike and s.method in BASELINES]
    amount = labels_words(own.labels, own.used)
    tested = f"{own.tested:,} test images" if own.tested else "test images"
    words = f"With {amount}, {PROTOCOLS[protocol]} on this backbone is right for {own.mean:.1%} of the {tested}"
    words += ", each class counting alike" if own.metric == "balanced_accuracy" else ""
    if not others:
        return words + "; no baseline was measured beside it."
    rivals = [(s.mean, s.margin, METHODS[s.method]) for s in others]
    if own.commonest is not None and own.commonest >= UNEVEN:
        rivals.append((own.commonest, 0.0, "always naming the commonest class"))
    words += ", against " + " and ".join(f"{mean:.1%} for {name}" for mean, _, name in rivals)
    best, margin, _ = max(rivals, key=lambda rival: rival[0])
    if own.margin is None or margin is None:
        return words + " (one run: no interval)."
    gap, least = own.mean - best, noise(own, margin)
    if gap > least:
        return f"{words}: {gap * 100:.1f} points more than the best of these."
    if gap < -least:
        return f"{words}: pretraining has not paid yet here, {-gap * 100:.1f} points less than the best of these."
    return f"{words}: no clear difference, the intervals overlap."


def noise(own: Summary, margin: float) -> float:
    """Return by how much a mean must differ from another of this margin to tell anything: one test image at least."""
    return max(math.hypot(own.margin or 0, margin), 1.000001 / own.tested if own.tested else 0.0)


def saved_pictures(folder: Path) -> list[tuple[str, str]]:
    """Return the data URI and caption of each picture in a folder."""
    found = []
    for picture in read_pictures(folder):
        with Image.open(picture.file) as image:
            found.append((data_uri(image), picture.caption))
    return found


def drawn(pictures: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the data URI and caption of each picture."""
    return [(data_uri(grid(images.numpy())), caption) for caption, images in pictures.items()]


def _commands(run: RunFolder, images: ImageSet) -> dict[str, Any]:
    """Return what to type next, with the real paths where there are any: array data has none."""
    source = images.source if Path(images.source).exists() else "photos"
    where, data = shlex.quote(str(run.path)), shlex.quote(source)
    labeled = data if images.labels is not None else "labeled"
    return {
        "shell": [
            (
                "Embeddings of any images, for search, clustering or a classifier",
                f"selfsight embed {where} {data} --out embeddings.npz",
            ),
            (
                "Accuracy with few labels, beside raw pixels and an untrained network; a subfolder a class",
                f"selfsight evaluate {where} {labeled}",
            ),
            ("The network for other programs", f"selfsight export {where} --format onnx"),
        ],
        "python": "\n".join(
            [
                "import selfsight",
                "",
                f"run = selfsight.load({str(run.path)!r})",
                f"embedding = run.embed({source!r})",
                "embedding.features  # one row an image, in the order of embedding.names",
            ]
        ),
    }
