"""The page of a training on labels: how good, from how many labels, and what it finds."""

import json
import shlex
from pathlib import Path

from PIL import Image

from selfsight.evaluate.results import BASELINES, by_amount, metric_words, summary
from selfsight.pictures import data_uri
from selfsight.report.page import METHODS, saved_pictures, write_page
from selfsight.run import RunFolder
from selfsight.tasks.curve import Trained


def write_trained(trained: Trained) -> Path:
    """Write report.html into the folder of a training on labels, and return its path: one file without links."""
    folder, metric = RunFolder(trained.out), trained.metric
    config, results = folder.config(), summary(trained.main)
    amounts, table = by_amount(results)
    lines = [(protocol, METHODS.get(method, method), method in BASELINES, cells) for protocol, method, cells in table]
    where = shlex.quote(str(folder.path))
    values = {
        "title": f"{config['task'].capitalize()} of {Path(config['data']).name}",
        "config": config,
        "metric": metric_words(metric),
        "sentences": trained.savings(),
        "curve": _image(folder.path / "curve.png") if len(amounts) > 1 else "",
        "confusion": _image(folder.path / "confusion.png"),
        "amounts": amounts,
        "lines": lines,
        "scores": _scores(trained),
        "pictures": saved_pictures(folder.path / "pictures"),
        "problems": trained.problems,
        "commands": [f"selfsight predict {where} IMAGES --out predictions", f"selfsight export {where} --format onnx"],
        "config_text": json.dumps(config, indent=2, ensure_ascii=False),
    }
    path = folder.path / "report.html"
    write_page(path, "trained.html", values)
    return path


def _scores(trained: Trained) -> list[tuple[str, str]]:
    """Return all scores, in words, of the model that was kept: of the most labels and the first seed."""
    own = [row for row in trained.rows if row.method == trained.method and repr(row.labels) == trained.most]
    own = [row for row in own if row.seed == min(row.seed for row in own)]
    protocol = "pseudo" if any(row.protocol == "pseudo" for row in own) else trained.protocol
    kept = sorted((row for row in own if row.protocol == protocol), key=lambda row: ":" in row.metric)
    return [(row.metric.replace("_", " ").replace(":", " of "), f"{row.value:.3f}") for row in kept]


def _image(path: Path) -> str:
    """Return a PNG as a data URI; '' where there is none."""
    if not path.exists():
        return ""
    with Image.open(path) as image:
        return data_uri(image)
