"""The command line: verbs work end to end, results as JSON on stdout, one-line errors, exit codes."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selfsight import cli

Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


def selfsight(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["selfsight", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """Two hundred digits as PNGs in a folder a class, and a broken file."""
    root = tmp_path_factory.mktemp("photos")
    for i, (image, label) in enumerate(zip(digits[0][:200], digits[1][:200], strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{i}.png")
    (root / "3" / "broken.jpg").write_text("no image")
    return root


@pytest.mark.usefixtures("few_checks", "quick_map")
def test_the_main_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folder → pretrain → embed → evaluate → export, each with its JSON."""
    run = tmp_path / "run"
    flags = ["--out", run, "--epochs", 2, "--batch-size", 32, "--backbone", "test_resnet", "--json"]
    assert selfsight(monkeypatch, "pretrain", "simclr", folder, *flags, "--temperature", 0.3) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(run), "report": str(run / "report.html")}
    assert json.loads((run / "config.json").read_text())["method_config"]["temperature"] == 0.3
    assert (run / "skipped.csv").read_text().splitlines()[1].startswith("3/broken.jpg,")
    page = (run / "report.html").read_text()
    assert "broken.jpg" in page
    assert "must find each other" in page, "the views that the method saw"

    pictures = tmp_path / "pictures"
    assert selfsight(monkeypatch, "show", run, folder, "--out", pictures, "--images", 4, "--json") == 0
    shown = json.loads(capsys.readouterr().out)["pictures"]
    assert [p["file"] for p in shown] == [str(pictures / f"0{i}.png") for i in (1, 2, 3)]
    assert "positives" in shown[1]["caption"]

    out = tmp_path / "digits.csv"
    assert selfsight(monkeypatch, "embed", run, folder, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "images": 200, "dim": 96}
    assert len(out.read_text().splitlines()) == 201

    flags = ["--query", folder / "0" / "0.png", "-k", 3, "--json"]
    assert selfsight(monkeypatch, "search", run, folder, *flags) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert (hits[0]["name"], hits[0]["label"], len(hits)) == ("0/0.png", "0", 3)
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert selfsight(monkeypatch, "search", run, folder, *flags, "--folder", "7") == 0
    assert {hit["label"] for hit in json.loads(capsys.readouterr().out)["hits"]} == {"7"}
    assert selfsight(monkeypatch, "search", run, folder, "--query", folder / "3" / "broken.jpg") == 1
    assert "3/broken.jpg: none of 1 images could be read" in capsys.readouterr().err

    copies = tmp_path / "copies"
    assert selfsight(monkeypatch, "duplicates", run, folder, "--out", copies, "--similarity", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["groups"] == [], "no digit was scanned twice"
    assert len((copies / "keep.txt").read_text().splitlines()) == 200
    assert "No image is there twice" in (copies / "report.html").read_text()

    few = tmp_path / "few.csv"
    labels = [(f, f.parent.name if i % 20 == 0 else "") for i, f in enumerate(sorted(folder.rglob("*.png")))]
    few.write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in labels))
    backwards = tmp_path / "backwards.csv"
    backwards.write_text("path\n" + "".join(f"{file}\n" for file, _ in labels[::-1]))
    assert selfsight(monkeypatch, "embed", run, backwards, "--out", tmp_path / "b.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 200
    paths = [line.split(",")[0] for line in (tmp_path / "b.csv").read_text().splitlines()[1:]]
    assert paths == [str(file) for file, _ in labels[::-1]], "in the order of the data"
    chosen = tmp_path / "next.csv"
    assert selfsight(monkeypatch, "select", run, few, "-n", 7, "--strategy", "both", "--out", chosen, "--json") == 0
    assert len(set(json.loads(capsys.readouterr().out)["images"])) == 7
    written = chosen.read_text().splitlines()
    assert written[0] == "path,label"
    chosen.write_text("\n".join([*written[:-1], written[-1] + "7"]))
    assert selfsight(monkeypatch, "select", run, few, "-n", 7, "--out", chosen) == 1
    assert "holds labels, which would be lost" in " ".join(capsys.readouterr().err.split())
    assert chosen.read_text().endswith(",7")
    for table in ("path,label\na.png,Bär\n".encode("latin-1"), b"path;label\na.png;cat\n", b"path,Label\na.png,cat\n"):
        chosen.write_bytes(table)  # as a spreadsheet saves it
        assert selfsight(monkeypatch, "select", run, few, "-n", 7, "--out", chosen) == 1
        assert "holds labels, which would be lost" in " ".join(capsys.readouterr().err.split())
        assert chosen.read_bytes() == table
    assert selfsight(monkeypatch, "select", run, folder, "-n", 3) == 1
    assert "--ignore-labels" in capsys.readouterr().err
    assert selfsight(monkeypatch, "select", run, folder, "-n", 3, "--ignore-labels", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3

    flags = ["--per-class", 2, 5, "--seeds", 2, "--protocols", "knn", "linear", "--json"]
    assert selfsight(monkeypatch, "evaluate", run, folder, *flags) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(r["method"], r["protocol"], r["labels"], r["seed"]) for r in rows} == {
        (m, p, n, s) for m in ("simclr", "random", "pixels") for p in ("knn", "linear") for n in (2, 5) for s in (0, 1)
    }
    assert len((run / "results.jsonl").read_text().splitlines()) == len(rows)
    assert "How few labels" in (run / "report.html").read_text()

    assert selfsight(monkeypatch, "export", run, "--format", "timm", "--json") == 0
    assert Path(json.loads(capsys.readouterr().out)["out"]).exists()

    model = tmp_path / "model"
    flags = ["--head", "linear", "--per-class", 2, 4, "--seeds", 2, "--out", model]
    assert selfsight(monkeypatch, "train", "classification", run, folder, *flags) == 0
    said = capsys.readouterr().out
    assert "4 per class" in said
    assert f"selfsight predict {model}" in said
    assert selfsight(monkeypatch, "train", "classification", run, folder, *flags, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    kept = [r for r in rows if r["metric"] == "accuracy"]
    assert {(r["method"], r["labels"], r["seed"]) for r in kept} == {
        (m, n, s) for m in ("simclr", "random") for n in (2, 4) for s in (0, 1)
    }
    out = tmp_path / "predictions"
    assert selfsight(monkeypatch, "predict", model, folder / "3", "--out", out, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["skipped"] == 1
    assert len((out / "predictions.csv").read_text().splitlines()) == written["images"] + 1
    assert selfsight(monkeypatch, "export", model, "--format", "timm") == 1
    assert "written as onnx" in capsys.readouterr().err


def test_compare_prints_its_table_and_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    training = ["--out", out, "--epochs", 1, "--batch-size", 32, "--backbone", "test_resnet"]
    flags = [*training, "--methods", "rotation", "--per-class", 2, "--seeds", 1, "--protocols", "knn"]
    assert selfsight(monkeypatch, "compare", folder, *flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(out / "report.html")
    assert Path(found["report"]).exists()
    assert [(e["method"], e["state"]) for e in found["entries"]] == [("rotation", "done")]
    assert {r["method"] for r in found["rows"]} == {"rotation", "random", "pixels"}
    assert selfsight(monkeypatch, "compare", folder, *flags) == 0
    words = capsys.readouterr().out
    assert "raw pixels" in words
    assert words.strip().endswith("report.html")


def test_methods_are_listed_with_their_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert selfsight(monkeypatch, "methods", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert "Chen" in rows["simclr"]["paper"]
    assert selfsight(monkeypatch, "methods") == 0
    assert "rotation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "selfsight pretrain METHOD DATA"),
        (["--help"], 0, "selfsight pretrain METHOD DATA"),
        (["fly"], 2, "no verb 'fly'"),
        (["pretrain"], 2, "METHOD is one of"),
        (["pretrain", "simclr", "--help"], 0, "Divides the similarities"),
        (["pretrain", "simclr", "x", "--no-such-flag"], 2, "no-such-flag"),
        (["pretrain", "nosuch", "x"], 1, "nosuch: no such method"),
        (["pretrain", "simclr", "/no/such/folder"], 1, "/no/such/folder"),
        (["embed", "/no/such/run", "x"], 1, "/no/such/run: not a run"),
        (["evaluate", "--help"], 0, "random label subsets"),
        (["show", "/no/such/run"], 1, "/no/such/run: not a run"),
        (["compare", "--help"], 0, "--finetune.lr"),
        (["compare", "x", "--methods", "nosuch"], 1, "nosuch: no such method"),
        (["predict", "x", "y", "--score", "50"], 1, "--score 50.0: must be a share in [0, 1]"),
        (["duplicates", "x", "y", "--burst-seconds", "inf"], 1, "--burst-seconds inf: must be 0 to 86,400"),
        (["train", "detection", "x", "y", "--workers", "-1"], 1, "--workers -1: must be 0 or more"),
        (["evaluate", "x", "y", "--batch-size", "0"], 1, "--batch-size 0: must be above 0"),
        (["evaluate", "x", "y", "--label-smoothing", "2"], 1, "--label-smoothing 2.0: must be a share below 1"),
    ],
)
def test_usage_and_errors(
    arguments: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert selfsight(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert words in " ".join((captured.out + captured.err).split())
    if code == 1:
        assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a failed command leaves nothing behind"


def test_what_the_system_refuses_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(argv: list[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *argv)

    monkeypatch.setitem(cli.VERBS, "embed", fill)
    assert selfsight(monkeypatch, "embed", "x.npz") == 1
    assert capsys.readouterr().err == "selfsight: x.npz: no space left on device\n"
    with pytest.raises(OSError, match="No space left"):  # of what, is in the traceback alone
        selfsight(monkeypatch, "embed")


def test_evaluating_images_without_labels_says_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--out", run, "--epochs", 1, "--batch-size", 16, "--backbone", "test_resnet"]
    assert selfsight(monkeypatch, "pretrain", "rotation", folder / "3", *flags) == 0
    capsys.readouterr()
    assert selfsight(monkeypatch, "evaluate", run, folder / "3") == 1
    assert "no labels; put images in one subfolder per class" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `selfsight methods | head -1`."""
    command = [sys.executable, "-m", "selfsight", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
