"""What watches a training: the journal of metrics and health, the keeper of checkpoints, the bar, the pictures."""

import importlib
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data import ImageSet, Loader, in_order
from selfsight.errors import SelfsightError
from selfsight.evaluate import health
from selfsight.evaluate.features import evaluating, extract
from selfsight.evaluate.knn import knn_predict
from selfsight.evaluate.linear import fit_probe
from selfsight.memory import start_peak
from selfsight.methods import Method
from selfsight.progress import bar, say
from selfsight.run import RunFolder

SETTINGS = ("optim", "method_config", "chosen", "backbone", "pretrain")
"""Of a run's config, what loggers are told to compare trainings by."""
STRENGTH = 0.01
"""C of the linear probes during a training: to choose it would take longer than all else of a check."""
CHECKS = 10
"""Health is measured this many times over a training, or fewer where that would take long."""
LONG = 2.0
"""Seconds: of checks that take longer some are left out, so that all take about a tenth of the training."""


class Resumable(Protocol):
    """What the keeper of checkpoints sees of a training."""

    run: RunFolder

    @property
    def trainer(self) -> L.Trainer:
        """Lightning's trainer."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""


class Training(Resumable, Protocol):
    """What a watcher sees of a training."""

    method: Method
    images: ImageSet
    loader: Loader
    batch_size: int
    steps: int
    seconds: float
    progress: float
    rate: float
    scalars: dict[str, float]

    def kept(self) -> Backbone:
        """Return the backbone that the run keeps."""


def pace(training: Training) -> dict[str, float]:
    """Return epochs and seconds so far, and images a second."""
    return {
        "epoch": training.steps / training.loader.steps_per_epoch,
        "seconds": training.seconds,
        "images_per_second": training.steps * training.batch_size / max(training.seconds, 1e-9),
    }


class Watchers:
    """All that watch one training: they are called at its start, after each step and at its end."""

    def __init__(self, checkpoint_minutes: float) -> None:
        self.journal, self.keeper, self.bar = Journal(), Keeper(checkpoint_minutes), Bar()

    def start(self, training: Training) -> None:
        """Begin to watch."""
        start_peak(training.device)
        self.journal.start(training)
        self.keeper.start(training)
        self.bar.start(training)

    def must_stop(self, training: Training) -> bool:
        """Write a checkpoint if it is time or the user asked to stop; return whether the training must stop."""
        return self.keeper.save_if_due(training)

    def after_step(self, training: Training) -> None:
        """Write and show what this step was like."""
        self.journal.after_step(training)
        self.bar.after_step(training)

    def end(self) -> None:
        """Give the terminal back."""
        self.keeper.end()
        self.bar.end()

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs of the watchers."""
        return vars(self.journal)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        vars(self.journal).update(state)


class Journal:
    """Writes the mean of the scalars every 20 steps, and at each tenth of the training the health of the embeddings.

    Where measuring health takes long some tenths go without, but never the last.

    Its attributes are its state, and plain data: they are in the checkpoint.
    """

    def __init__(self) -> None:
        self.checks = 0
        self.rest = 0.0  # seconds of training before which health isn't measured again
        self.count = 0
        self.sums: dict[str, float] = {}

    def start(self, training: Training) -> None:
        """Drop what a killed run wrote after its last checkpoint; tell the loggers how this one is trained."""
        if training.trainer.is_global_zero:
            training.run.forget_metrics_after(training.steps)
            config = training.run.config()
            for logger in training.trainer.loggers:
                logger.log_hyperparams({name: config[name] for name in ("method", *SETTINGS)})

    def after_step(self, training: Training) -> None:
        """Add this step's scalars; write a row if it is time."""
        self.count += 1
        for k, v in training.scalars.items():
            self.sums[k] = self.sums.get(k, 0.0) + v
        check = int(training.progress * CHECKS) > self.checks
        if check or training.steps % 20 == 0:
            self._write(training, check)

    def _write(self, training: Training, check: bool) -> None:
        names = sorted(self.sums)
        means = torch.tensor([self.sums[k] / self.count for k in names], device=training.device)
        if training.trainer.world_size > 1:  # each process has the scalars of its own images
            dist.all_reduce(means)
            means /= training.trainer.world_size
        row = {
            "step": float(training.steps),
            **pace(training),
            "lr": training.rate,
            **dict(zip(names, means.tolist(), strict=True)),
        }
        self.count, self.sums = 0, {}
        self.checks = int(training.progress * CHECKS)
        if training.trainer.is_global_zero:
            if check and (training.progress >= 1 or training.seconds >= self.rest):
                start = time.monotonic()
                row |= _health(training)
                took = time.monotonic() - start
                self.rest = training.seconds + 10 * took if took > LONG else 0.0
            training.run.append_metrics(row)
            for logger in training.trainer.loggers:
                logger.log_metrics(row, training.steps)


def _health(training: Training) -> dict[str, float]:
    """Measure the embeddings of 512 images, and with labels at hand how well these are told from them."""
    rows, images, backbone = training.images.rows("train"), training.images, training.kept()
    view = health.light_view(backbone.spec.image_size)
    measured = health.measure(backbone, view, images, rows, training.device, n=512, method=training.method)
    figures = {k: v for k, v in asdict(measured).items() if isinstance(v, float)}
    return figures if images.labels is None else figures | _probes(training, images.labels)


def _probes(training: Training, labels: NDArray[np.int64]) -> dict[str, float]:
    """Measure a kNN and a linear probe that learn from one half of 1,000 labelled images and are asked of the other.

    Of the backbone that the run keeps, 'knn' and 'linear', and of the one that stands beside it as teacher or student,
    'knn_teacher' and so on. No gradient reaches any of them.
    """
    images, kept = training.images, training.kept()
    rows = images.rows("train")
    chosen = np.random.default_rng(0).permutation(rows[labels[rows] >= 0])[:1000]
    half = len(chosen) // 2
    if half < 10:
        return {}
    known, asked, classes = labels[chosen[:half]], labels[chosen[half:]], len(images.classes)
    backbones = {"": kept}
    for one in training.method.modules():  # a distillation's teacher of another kind learns nothing
        if isinstance(one, Backbone) and one is not kept and one.spec == kept.spec:
            backbones["_student" if one is training.method.backbone else "_teacher"] = one
    figures = {}
    for name, backbone in backbones.items():
        x = extract(backbone, images, chosen, device=training.device)
        probe = fit_probe(x[:half], known, classes, strength=STRENGTH)
        figures[f"linear{name}"] = float((probe.predict(x[half:]) == asked).mean())
        figures[f"knn{name}"] = float((knn_predict(x[:half], known, x[half:], classes) == asked).mean())
    return figures


class Keeper:
    """Writes a checkpoint every few minutes, at Ctrl-C, and where a cluster ends the job (SIGTERM)."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.asked_to_stop = False
        self.stopped = False
        # Noted now: Lightning listens to them, too, and has given them back by the time the training ends.
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def start(self, training: Resumable) -> None:
        """Listen for Ctrl-C and SIGTERM."""
        self.saved = time.monotonic()

        def stop(number: int, frame: FrameType | None) -> None:
            say("stopping after this step and writing a checkpoint; press Ctrl-C again to leave at once")
            self.asked_to_stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        with suppress(ValueError):  # not in the main thread, as in a server's worker: they go elsewhere
            for number in self.before:
                signal.signal(number, stop)

    def save_if_due(self, training: Resumable) -> bool:
        """Write a checkpoint if it is time or the user asked to stop; return whether the training must stop."""
        trainer = training.trainer
        due, self.stopped = time.monotonic() - self.saved > 60 * self.minutes, self.asked_to_stop
        if trainer.world_size > 1:  # all processes save and stop together
            flags = torch.tensor([due, self.stopped], dtype=torch.int32, device=training.device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            due, self.stopped = bool(flags[0]), bool(flags[1])
        if due or self.stopped:
            path = training.run.checkpoint_file
            temporary = Path(f"{path}.part")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(path)
            self.saved = time.monotonic()
        return self.stopped

    def end(self) -> None:
        """Give the signals back."""
        with suppress(ValueError):
            for number, before in self.before.items():
                if before is not None:  # None: it was not Python's
                    signal.signal(number, before)


class Bar:
    """The progress bar: percent, images a second, loss, time left; a line a tenth where stderr is no terminal."""

    def __init__(self) -> None:
        self.bar = bar()

    def start(self, training: Training) -> None:
        """Show the bar."""
        self.task = self.bar.add_task("pretrain", total=100, unit="%", note="")
        self.tenth = int(training.progress * 10)
        if training.trainer.is_global_zero:
            self.bar.start()

    def after_step(self, training: Training) -> None:
        """Move the bar."""
        t = training
        tenth = int(t.progress * 10)
        if not t.trainer.is_global_zero or (t.steps % 5 and tenth == self.tenth):
            return
        speed = pace(t)["images_per_second"]
        left = t.seconds / max(t.progress, 1e-9) * (1 - t.progress)
        note = f"loss {t.scalars['loss']:.3f} · {speed:,.0f} images/s · {left / 60:.1f} min left"
        self.bar.update(self.task, completed=100 * t.progress, note=note)
        if self.bar.disable and tenth > self.tenth:
            say(f"{t.progress:4.0%} · step {t.steps:,} · {note}")
        self.tenth = tenth

    def end(self) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()


@contextmanager
def loggers(run: RunFolder, wandb: bool) -> Iterator[list[Logger]]:
    """Give where the journal writes its rows beside the run's metrics.csv: TensorBoard, and if asked for W&B.

    A resumed run goes on in its W&B run, another one has its own; but in one that the program has begun, as a sweep
    does, all is written there, and it stays open. Raises SelfsightError where the package isn't installed.
    """
    chosen: list[Logger] = [TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)]
    if not wandb:
        yield chosen
        return
    try:
        package = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise SelfsightError("--wandb: pip install wandb") from error
    known = run.config().get("id") if run.config_file.exists() else None  # a helper may be here before it is written
    project, begun = os.environ.get("WANDB_PROJECT", "selfsight"), package.run is not None
    chosen.append(WandbLogger(project=project, name=run.path.name, save_dir=run.path, id=known))
    try:
        yield chosen
    finally:
        if not begun:
            package.finish()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints for other uses of it from the terminal: none that the user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|tensorboard|torch\.jit|torch\.utils\.tensorboard).*")
        warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec|LeafSpec|does not have many workers).*")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        yield


def draw(method: Method, images: ImageSet, rows: NDArray[np.int64], seed: int) -> dict[str, Tensor]:
    """Return a method's pictures of these rows: by caption, images (rows, up to 10, C, S, S) in [0, 1].

    The random views are fixed by `seed`; the method is on the CPU.
    """
    with torch.random.fork_rng(devices=[]), evaluating(method):
        torch.manual_seed(seed)
        (batch,) = in_order(images, rows, len(rows), torch.device("cpu"))
        return method.picture(batch)
