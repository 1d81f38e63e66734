"""The run folder: what a pretraining leaves behind, and the one place that knows its file names.

config.json            what was asked for, what was chosen, the backbone's spec
metrics.csv            loss, rate and health over the training
backbone.safetensors   the result
method.safetensors     the whole method with its heads and teachers, to draw what it answers
last.ckpt              where to resume
training.lock          held while a process trains here
skipped.csv            files that could not be decoded
results.jsonl          evaluation rows
report.html            everything a person wants to see
index/                 embeddings of data sets, for search
gallery/               labels given by hand, by data set
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors.torch import save
from torch import nn

from selfsight.backbones import Backbone, create, read_safetensors, spec_from_json, spec_to_json
from selfsight.errors import SelfsightError
from selfsight.locks import locked
from selfsight.processes import leads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)


LONGEST_STEM = 200
"""Bytes of a temporary file's name: file systems take 255."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: the file is whole or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    short = os.fsdecode(os.fsencode(path.stem)[:LONGEST_STEM])  # with the number it must still be a name
    temporary = path.with_name(f".{short}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV for other programs, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    replace_file(path, write)


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV with a header, nothing where there is no file; a value that a row has not is ''."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, restval=""))


def unfilled(path: Path, columns: Sequence[str]) -> bool:
    """Return whether nothing is lost by writing this table: there is none, or its last column is empty."""
    if not path.exists():
        return True
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        return False
    return not lines or (lines[0] == list(columns) and not any(line[-1] for line in lines[1:] if line))


def folder_of(method: str) -> str:
    """Return the name of a folder for a method: Windows takes none with the colon of one's own."""
    return method.replace(":", ".")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and how its files are read and written."""

    path: Path

    @property
    def config_file(self) -> Path:
        """What was asked for and chosen."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """Loss, rate and health over the training."""
        return self.path / "metrics.csv"

    @property
    def weights_file(self) -> Path:
        """The trained backbone."""
        return self.path / "backbone.safetensors"

    @property
    def method_file(self) -> Path:
        """The trained method: backbone, heads, teachers, buffers."""
        return self.path / "method.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        """Where to resume."""
        return self.path / "last.ckpt"

    @property
    def lock_file(self) -> Path:
        """Held while a process trains here."""
        return self.path / "training.lock"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other trainings out of this folder, but for this one's helpers.

        Raises SelfsightError where another process trains here.
        """
        if not leads():
            yield
            return
        with locked(self.lock_file, f"--out {self.path}: another process trains in this folder", wait=False):
            yield

    @property
    def skipped_file(self) -> Path:
        """Files that could not be decoded."""
        return self.path / "skipped.csv"

    @property
    def results_file(self) -> Path:
        """Evaluation rows."""
        return self.path / "results.jsonl"

    def config(self) -> dict[str, Any]:
        """Read the config; SelfsightError if this is no run folder."""
        if not self.config_file.exists():
            raise SelfsightError(f"{self.path}: not a run (no config.json); make one with `selfsight pretrain`")
        try:
            config: dict[str, Any] = json.loads(self.config_file.read_text())
        except json.JSONDecodeError as error:
            raise SelfsightError(f"{self.config_file}: not valid JSON ({error})") from error
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the config."""
        text = json.dumps(config, indent=2, default=str) + "\n"
        replace_file(self.config_file, lambda p: p.write_text(text))

    def save_backbone(self, backbone: Backbone) -> None:
        """Write the weights; the spec goes into the config."""
        _save_weights(self.weights_file, backbone.model)
        self.write_config(self.config() | {"backbone": spec_to_json(backbone.spec)})

    def load_backbone(self) -> Backbone:
        """Build the backbone and load its weights, in evaluation mode.

        Raises SelfsightError where the run has not finished.
        """
        config = self.config()
        if not self.weights_file.exists():
            raise SelfsightError(f"{self.path}: not finished (no backbone.safetensors); continue it with --resume")
        backbone = create(spec_from_json(config["backbone"]))
        backbone.model.load_state_dict(read_safetensors(self.weights_file, str(self.weights_file)))
        return backbone.eval()

    def save_method(self, method: nn.Module) -> None:
        """Write the weights of the whole method."""
        _save_weights(self.method_file, method)

    def load_method(self, method: nn.Module) -> None:
        """Load the weights into a method built with this run's settings.

        Raises SelfsightError where the run has none, or they don't fit.
        """
        if not self.method_file.exists():
            raise SelfsightError(f"{self.method_file}: no such file; pretrain again to draw what the method answers")
        try:
            method.load_state_dict(read_safetensors(self.method_file, str(self.method_file)))
        except RuntimeError as error:
            raise SelfsightError(f"{self.method_file}: written by another version; pretrain again") from error

    def settings(self, kind: "type[T]", key: str = "method_config") -> "T":
        """Return what the config holds as `key`, by default the method's settings, in its class `kind`.

        Raises SelfsightError if they are of another version of it.
        """
        saved = self.config()[key]
        if unknown := sorted(set(saved) - {field.name for field in fields(kind)}):
            raise SelfsightError(f"{self.config_file}: written by another version, with {unknown[0]}; pretrain again")
        return kind(**saved)

    def random_backbone(self) -> Backbone:
        """Build the same backbone untrained."""
        return create(spec_from_json(self.config()["backbone"]))

    def append_metrics(self, row: dict[str, float]) -> None:
        """Append a row to metrics.csv; columns that are new in this row rewrite the file with them."""
        new = not self.metrics_file.exists()
        columns = [] if new else _header(self.metrics_file)
        if missing := [c for c in row if c not in columns]:
            rows = [] if new else self.metrics()
            columns += missing
            replace_file(self.metrics_file, lambda p: _write_csv(p, columns, rows))
        with self.metrics_file.open("a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, columns).writerow({k: f"{v:.6g}" for k, v in row.items()})

    def metrics(self) -> list[dict[str, str]]:
        """Read metrics.csv; a value that a row has not is ''."""
        return read_table(self.metrics_file)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows after this step: a resumed run writes them again."""
        if self.metrics_file.exists():
            rows = [r for r in self.metrics() if int(float(r["step"])) <= step]
            columns = _header(self.metrics_file)
            replace_file(self.metrics_file, lambda p: _write_csv(p, columns, rows))


def _save_weights(path: Path, module: nn.Module) -> None:
    # Cloned: safetensors refuses tensors that share memory, as a head and its teacher's may.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    # Not by save_file, which lets nobody but the owner read the file.
    replace_file(path, lambda p: p.write_bytes(save(state, {"format": "pt"})))


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as f:
        return next(csv.reader(f))


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
