"""The documentation's examples run as they stand there, but for shorter trainings of smaller networks."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import selfsight
from selfsight import cli, methods, optim

pytestmark = pytest.mark.usefixtures("few_checks", "quick_map")
DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {
    "minutes=10": "epochs=1",
    '"resnet18"': '"test_resnet"',
    "image_size=96": "image_size=32",
    "(4e-3, 8e-3)": "(4e-3,)",
    "range(3)": "range(1)",
    '"mine:Sharp", "mine:Steady"), trainings=3': '"mine:Sharp"), trainings=1',
}


def blocks(page: str, shorter: dict[str, str]) -> list[tuple[int, str]]:
    """The page's blocks of Python, each with the number of lines before it, what is long in them made short."""
    found = [(m.string.count("\n", 0, m.start(1)), m[1]) for m in BLOCK.finditer((DOCS / page).read_text("utf-8"))]
    for long, short in shorter.items():
        assert any(long in code for _, code in found), f"{page} has no {long} any more"
        found = [(line, code.replace(long, short)) for line, code in found]
    return found


def is_file(code: str) -> bool:
    return code.startswith("# mine.py\n")


@pytest.fixture
def folder(tmp_path: Path, photo: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 48 pieces of a photo in `photos` and, its upper and its lower part, in `labeled`."""
    places = [(y, x) for y in range(0, 384, 64) for x in range(0, 512, 64)]
    for y, x in places:
        piece = Image.fromarray(photo[y : y + 32, x : x + 32])
        for place in (tmp_path / "photos", tmp_path / "labeled" / ("upper" if y < 192 else "lower")):
            place.mkdir(parents=True, exist_ok=True)
            piece.save(place / f"{y}-{x}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_page_on_python(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "python.md"}
    for line, code in blocks("python.md", SHORTER):
        if is_file(code):
            (folder / "mine.py").write_text(code)
        else:  # behind as many empty lines as stand above it, so that an error names the page's own
            exec(compile("\n" * line + code, str(DOCS / "python.md"), "exec"), names)
    dim, x = names["backbone"].dim, names["x"]
    assert names["run"].path.parent == Path("runs") / "sweep"
    assert names["features"].shape == names["embedding"].features.shape == (48, dim)
    embedded, plain = torch.from_numpy(names["embedding"].features), names["features"]
    assert float((embedded - plain).norm() / plain.norm()) < 0.05, "nearly the same, in the same order"
    assert names["logits"].shape == (4, 2)
    with torch.inference_mode():
        torch.testing.assert_close(names["same"], names["backbone"](x))
    assert [list(y.shape[:2]) for y in names["several"]] == [[4, n] for n in names["backbone"].pyramid_channels]
    assert names["last"].shape == names["several"][-1].shape
    assert names["projected"].shape == (4, 128)
    assert {(row.method, row.protocol) for row in names["rows"]} == {("simclr", "knn"), ("simclr", "linear")}
    assert [(entry.method, entry.state) for entry in names["compared"].entries] == [
        ("simclr", "done"),
        ("mine:Sharp", "done"),
    ]
    config = selfsight.load("runs/compared/mine.Sharp").folder.config()
    assert config["method_config"]["temperature"] == 0.1
    steady = methods.get("mine:Steady").optim
    assert {optim.rate(steady, progress / 10, 256) for progress in range(11)} == {steady.lr}


def test_a_method_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (code for _, code in blocks("add-a-method.md", {}) if is_file(code))
    (folder / "mine.py").write_text(code)
    command = "pretrain mine:Sphere photos/ --minutes 10 --weight 2"
    assert f"    selfsight {command}\n" in (DOCS / "add-a-method.md").read_text("utf-8")
    flags = command.replace("--minutes 10", "--epochs 1 --backbone test_resnet")
    monkeypatch.setattr(sys, "argv", ["selfsight", *flags.split()])
    cli.main()
    run = selfsight.load("runs/photos-Sphere")
    assert run.folder.config()["method_config"]["weight"] == 2
    last = run.folder.metrics()[-1]
    assert float(last["loss"]) == pytest.approx(float(last["distance"]) + 2 * float(last["crowding"]), abs=1e-3)
    assert type(run.trained_method()).__name__ == "Sphere"
    assert (run.path / "report.html").exists()
