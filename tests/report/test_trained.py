"""The page of a training on labels."""

from pathlib import Path

import torch

from selfsight.evaluate.results import Row, plot_curve
from selfsight.pictures import save_pictures
from selfsight.report import write_trained
from selfsight.run import RunFolder
from selfsight.tasks.curve import Trained


def row(method: str, amount: float, seed: int, metric: str, value: float, protocol: str = "finetune") -> Row:
    return Row("run", method, "boxes", "detection", protocol, amount, seed, metric, value, 1.0)


def test_the_page_holds_results_pictures_and_what_to_do_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "it's")
    backbone = {"name": "resnet18", "image_size": 64}
    config = {"task": "detection", "method": "simclr", "run": "runs/a", "data": "/x/boxes", "image_size": 96}
    folder.path.mkdir()
    folder.write_config(config | {"classes": ["cat", "<dog>"], "backbone": backbone})
    rows = [
        row(m, a, s, "map_50", v + 0.01 * s)
        for m, a, v in (("simclr", 0.1, 0.4), ("scratch", 0.1, 0.2), ("simclr", 1.0, 0.6), ("scratch", 1.0, 0.5))
        for s in (0, 1)
    ]
    rows += [row("simclr", 1.0, s, "ap:cat", 0.7 + s / 10) for s in (0, 1)]
    plot_curve([r for r in rows if r.metric == "map_50"], folder.path / "curve.png")
    save_pictures(folder.path / "pictures", {"labels above, found below": torch.rand(2, 3, 3, 8, 8)})
    page = write_trained(Trained(folder.path, rows, "simclr", "map_50", "finetune", "1.0", 3)).read_text()
    for words in (
        "Detection of boxes",
        "With 10 % of the labels pretraining",
        "40.5",
        "training from scratch",
        "labels above, found below",
        "ap of cat",
        "0.700",
        "3 labels",
        "&lt;dog&gt;",
        "AP50",
    ):
        assert words in page, words
    assert "0.800" not in page, "only the scores of the model that was kept"
    assert page.count("data:image/") == 2


def test_one_amount_has_no_curve_and_no_labels_wrong_are_not_mentioned(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = {"task": "segmentation", "method": "dino", "run": "r", "data": "masks", "image_size": 64, "classes": []}
    folder.write_config(config | {"backbone": {"name": "resnet18"}})
    found = Trained(tmp_path, [row("dino", 1.0, 0, "miou", 0.5)], "dino", "miou", "finetune", "1.0", 0)
    page = write_trained(found).read_text()
    assert "data:image/" not in page
    assert "problems.csv" not in page
    assert "mean IoU" in page
