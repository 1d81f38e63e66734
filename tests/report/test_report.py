import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsight import backbones
from selfsight.data import ImageSet, Skipped, write_skipped
from selfsight.errors import SelfsightError
from selfsight.evaluate.results import Row, append_row, read_rows
from selfsight.pictures import save_pictures
from selfsight.report import write_report
from selfsight.run import RunFolder

pytestmark = pytest.mark.usefixtures("quick_map")
CPU = torch.device("cpu")
EVIL = "<img src=x onerror=alert(1)>.png"


def image_set(n: int, channels: int = 3, classes: int = 0) -> ImageSet:
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes if classes else None
    pixels = random.integers(0, 256, (n, channels, 24, 24)).astype(np.uint8)
    names = [f"{i}.png" for i in range(n)]
    return ImageSet(
        "the photos",
        pixels,
        np.ones(n, np.float32),
        names,
        labels=labels,
        classes=[f"class {i}" for i in range(classes)],
    )


def finished(path: Path, images: ImageSet) -> RunFolder:
    run = RunFolder(path)
    config = {"method": "simclr", "data": images.source, "images": len(images), "chosen": {"device": "cpu"}}
    run.write_config(config)
    torch.manual_seed(0)
    c = images.channels
    run.save_backbone(backbones.create(backbones.plan("resnet10t", 24, c, (0.5,) * c, (0.25,) * c)))
    return run


def trained(run: RunFolder, loss: float) -> None:
    for step in (20, 40):
        row = {"step": step, "epoch": step / 10, "seconds": step, "images_per_second": 1234, "lr": 0.001}
        run.append_metrics(row | {"loss": loss, "chance": 5.0})
    run.append_metrics(
        {"step": 60, "epoch": 6, "seconds": 60, "loss": loss, "rankme_share": 0.3, "view_retrieval": 0.5}
    )


def results(run: RunFolder, own: float, seeds: int = 3, commonest: float | None = None) -> None:
    for method, value in {"simclr": own, "pixels": 0.4, "random": 0.3}.items():
        for seed in range(seeds):
            row = Row(
                "run", method, "labeled", "classification", "linear", 0.1, seed, "accuracy", value + 0.001 * seed, 1.0
            )
            append_row(run.results_file, replace(row, tested=2000, commonest=commonest))


class Page(HTMLParser):
    """The ids of a page, where it links to, its tags and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data") and v]

    def handle_data(self, data: str) -> None:
        self.words += data


def page(run: RunFolder, images: ImageSet) -> Page:
    return Page(write_report(run, images, CPU).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("n", "channels", "classes"), [(12, 1, 0), (40, 3, 2), (10, 5, 25)])
def test_one_file_without_links_for_any_images(tmp_path: Path, n: int, channels: int, classes: int) -> None:
    images = image_set(n, channels, classes)
    run = finished(tmp_path, images)
    trained(run, 3.0)
    save_pictures(run.path / "pictures", {"two views": torch.rand(2, 10, channels, 24, 24)})
    text = write_report(run, images, CPU).read_text(encoding="utf-8")
    found = Page(text)
    assert found.links
    assert all(link.startswith("data:image/") for link in found.links)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert not re.search(r"@import|url\(", text)
    assert {"training", "views", "looks", "map", "neighbours", "next", "config"} <= set(found.ids)


def test_a_bare_run_leaves_out_what_it_has_not(tmp_path: Path) -> None:
    images = image_set(4)
    found = page(finished(tmp_path, images), images)
    assert found.ids == ["looks", "neighbours", "next", "config"]
    assert found.links, "the neighbours are shown"


def test_what_is_there_is_shown(tmp_path: Path) -> None:
    images = image_set(12, classes=3)
    run = finished(tmp_path, images)
    trained(run, 3.0)
    results(run, own=0.5)
    write_skipped(run.skipped_file, [Skipped(f"bad{i}.jpg", "truncated") for i in range(25)])
    found = page(run, images)
    assert {"labels-1", "training", "map", "skipped"} <= set(found.ids)
    assert "It is learning" in found.words
    assert "25 files left out" in found.words
    assert "bad19.jpg" in found.words
    assert "bad20.jpg" not in found.words
    assert "50.1 ± 0.2" in found.words
    assert "raw pixels" in found.words
    assert f"selfsight export {run.path} --format onnx" in found.words
    assert "class 2" in found.words


def test_names_from_the_data_are_text_and_not_markup(tmp_path: Path) -> None:
    plain = image_set(8, classes=2)
    images = replace(plain, source=EVIL, names=[EVIL] * 8, classes=[EVIL, '"><script>'])
    run = finished(tmp_path, images)
    write_skipped(run.skipped_file, [Skipped(EVIL, "no image")])
    save_pictures(run.path / "pictures", {EVIL: torch.rand(1, 2, 3, 24, 24)})
    text = write_report(run, images, CPU).read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<script" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert EVIL in Page(text).words


@pytest.mark.parametrize(
    ("own", "seeds", "words"),
    [
        (0.5, 3, "10.0 points more than the best of these"),
        (0.401, 3, "no clear difference"),
        (0.35, 3, "5.0 points less than the best of these"),
        (0.5, 1, "no interval"),
    ],
)
def test_the_sentence_says_what_the_intervals_allow(tmp_path: Path, own: float, seeds: int, words: str) -> None:
    images = image_set(4)
    run = finished(tmp_path, images)
    results(run, own, seeds)
    assert words in page(run, images).words


def test_the_sentence_tells_what_the_commonest_class_gets_where_it_is_most_of_the_images(tmp_path: Path) -> None:
    images = image_set(4)
    for commonest, words in ((0.1, "10.0 points more"), (0.9, "39.9 points less")):
        run = finished(tmp_path / str(commonest), images)
        results(run, 0.5, commonest=commonest)
        found = page(run, images).words
        assert "right for 50.1% of the 2,000 test images" in found
        assert words in found
        assert ("90.0% for always naming the commonest class" in found) == (commonest > 0.5)


def test_a_run_that_was_moved_counts_each_seed_once(tmp_path: Path) -> None:
    images = image_set(4)
    run = finished(tmp_path / "run", images)
    results(run, 0.41)
    before = page(run, images).words
    for row in read_rows(run.results_file):
        append_row(run.results_file, replace(row, run="/elsewhere/run"))
    assert page(run, images).words == before


def test_commands_name_only_data_that_are_there(tmp_path: Path) -> None:
    images = replace(image_set(4), source=str(tmp_path))
    run = finished(tmp_path / "run 1", images)
    words = page(run, images).words
    assert f"selfsight embed '{run.path}' {tmp_path} --out embeddings.npz" in words
    assert f"selfsight evaluate '{run.path}' labeled" in words, "these have no labels"
    words = page(run, replace(images, source="array of 4")).words
    assert f"selfsight embed '{run.path}' photos --out" in words
    assert "the task's own pictures, is of array of 4" in words


def test_a_loss_at_chance_is_in_the_headline(tmp_path: Path) -> None:
    images = image_set(12)
    run = finished(tmp_path, images)
    trained(run, 4.99)
    assert "Too short to tell" in page(run, images).words


def test_a_collapsed_network_is_in_the_headline(tmp_path: Path) -> None:
    images = image_set(12)
    run = finished(tmp_path, images)
    backbone = run.load_backbone()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.zero_()
    run.save_backbone(backbone)
    assert "have collapsed" in page(run, images).words


def test_a_head_that_collapsed_in_training_is_in_the_headline(tmp_path: Path) -> None:
    images = image_set(12)
    run = finished(tmp_path, images)
    trained(run, 3.0)
    assert "have collapsed" not in page(run, images).words
    run.append_metrics({"step": 80, "epoch": 8, "seconds": 80, "loss": 0.0, "projected": 1.2})
    words = page(run, images).words
    assert "have collapsed" in words
    assert "differs in 1.2 directions" in words


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    images = image_set(12, classes=2)
    run = finished(tmp_path, images)
    torch.manual_seed(1)
    first = write_report(run, images, CPU).read_text(encoding="utf-8")
    torch.manual_seed(2)
    assert write_report(run, images, CPU).read_text(encoding="utf-8") == first


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    run = finished(tmp_path, image_set(3))
    with pytest.raises(SelfsightError, match="at least 2 images"):
        write_report(run, image_set(1), CPU)
    run.weights_file.unlink()
    with pytest.raises(SelfsightError, match="not finished"):
        write_report(run, image_set(3), CPU)
    assert json.loads(run.config_file.read_text())["method"] == "simclr"
    assert not (tmp_path / "report.html").exists()
