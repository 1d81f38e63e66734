"""Label efficiency of a task: one model on few and on many labels, pretrained and from scratch."""

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.backbones import (
    Backbone,
    colours_of,
    create,
    load_pretrained,
    plan,
    spec_from_json,
    spec_to_json,
)
from selfsight.data import BoxSet, open_boxes, open_masks, write_problems
from selfsight.data.labels import amounts_of, check_draws
from selfsight.errors import SelfsightError
from selfsight.evaluate.curve import weights_hash
from selfsight.evaluate.finetune import FinetuneConfig
from selfsight.evaluate.results import Row, append_row, labels_words, plot_curve, read_rows
from selfsight.evaluate.savings import BASELINE, savings
from selfsight.processes import expect, leads, own_device, part, together, told
from selfsight.progress import console, say
from selfsight.run import RunFolder, folder_of
from selfsight.tasks.augment import DenseView
from selfsight.tasks.classification import Classification, ClassificationConfig, open_classified
from selfsight.tasks.jobs import DenseConfig, Detection, DetectionConfig, Job, Segmentation, SegmentationConfig
from selfsight.tasks.labelled import Labelled, open_labelled
from selfsight.tasks.learning import LearnConfig, Learner, learn, stop
from selfsight.tasks.model import TaskModel

Settings = ClassificationConfig | DetectionConfig | SegmentationConfig
TASKS: dict[str, type[Settings]] = {
    "classification": ClassificationConfig,
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
}
"""The tasks there are, and the settings of each one's model."""


def default_learning(task: str) -> LearnConfig:
    """Return how models of this task learn by default; classifiers as in `selfsight evaluate`."""
    if task != "classification":
        return LearnConfig()
    known = asdict(FinetuneConfig())
    shared = {f.name: known[f.name] for f in fields(LearnConfig) if f.name in known}
    return LearnConfig(**shared, clip=0.0)


MACHINES = ("workers", "checkpoint_minutes")
"""How a machine goes about learning, not what is learned: a stopped training goes on with others."""
STEP = 32
"""View sides are multiples of this, by which every usual backbone shrinks images to a whole number, or of its patch."""
LARGEST_CPU, LARGEST_GPU = 256, 512
MANY_SMALL = 0.25
"""A larger share of boxes that are too small is said."""


@dataclass(frozen=True)
class TrainConfig:
    """What to train and to measure."""

    out: Path | None = None
    """Folder of the result; by default runs/<data>-<task>."""
    test: str | None = None
    """Labelled images to test on; by default the data's own test part, else a seeded share of it. Of data with parts
    only the train part is learned from."""
    labels: tuple[float, ...] | None = None
    """Fractions of the training images whose labels may be used, each in (0, 1]: the label-efficiency curve, each
    also from scratch. By default all labels, once, and no training from scratch."""
    per_class: tuple[int, ...] = ()
    """Counts of labels per class to use, besides the fractions; for classification."""
    seeds: int | None = None
    """How many random subsets (and trainings) an amount gets; by default 3 with --labels or --per-class, else 1."""
    baselines: bool = True
    """With --labels or --per-class train the same network from scratch as well."""
    imagenet: str | None = None
    """Train from these weights too, to compare: timm for its own, mostly of ImageNet, or a file of weights of the same
    architecture."""
    image_size: int | None = None
    """Side of a view in pixels; by default that of the pretraining for classification, else the images' longer side, at
    most 256 (512 with a GPU)."""
    strict: bool = False
    """Stop at the first label that is wrong, instead of listing it in problems.csv and going on."""
    test_share: float = 0.2
    """Share of the images held out for the test, where the data comes without a split and without --test."""
    seed: int = 0
    """The first seed; also that of the split."""
    cache: bool = True
    """Decode the images once into a memory map."""
    cache_dir: Path | None = None
    """Where the decoded images are kept; by default $SELFSIGHT_CACHE, or ~/.cache/selfsight."""

    def __post_init__(self) -> None:
        for amount in self.labels or ():
            if not 0 < amount <= 1:
                raise SelfsightError(f"--labels {amount}: must be a fraction in (0, 1]")
        check_draws(self.seeds, self.seed, self.test_share)

    @property
    def curve(self) -> bool:
        """Whether amounts of labels are compared."""
        return self.labels is not None or bool(self.per_class)

    @property
    def amounts(self) -> tuple[float | int, ...]:
        """Fractions of the labels, each a float, and counts per class, each an int."""
        return amounts_of(self.labels or (() if self.per_class else (1.0,)), self.per_class)


@dataclass(frozen=True)
class Trained:
    """What a training on labels gave."""

    out: Path
    rows: list[Row]
    method: str
    """By which the backbone was pretrained."""
    metric: str
    """The metric that counts most: accuracy, mean_average_precision, map_50 or miou."""
    protocol: str
    """How the backbone was used: finetune, frozen, linear or knn; rows of pseudo-labels are of another."""
    most: str
    """The amount of labels, as Python writes it, of the model that was kept."""
    problems: int
    """Labels or images that were wrong; they are listed in problems.csv."""

    @property
    def main(self) -> list[Row]:
        """The rows of the metric that counts most."""
        return [row for row in self.rows if row.metric == self.metric]

    def savings(self) -> list[str]:
        """Return in a sentence for each amount of labels how many pretraining saved."""
        compared = (self.method, BASELINE)
        rows = [row for row in self.main if row.protocol == self.protocol and row.method in compared]
        return [saved.sentence() for saved in savings(rows)]


def train(
    backbone: Backbone,
    data: Any,
    config: TrainConfig,
    settings: Settings,
    learning: LearnConfig,
    *,
    method: str,
    run: str,
    out: Path,
) -> Trained | None:
    """Train on each amount of labels, from `backbone` and from what it is compared with; keep the best-fed model.

    That one, from `backbone`, on the most labels and the first seed, goes to `out`; rows to `out`/results.jsonl as they
    come; the same call goes on where it was interrupted. Returns None in the processes that only help.

    Raises SelfsightError for labels that can't be used, for settings that differ from those `out` was begun with,
    StoppedError after Ctrl-C.
    """
    expect(learning.devices)
    console.quiet = not leads()
    device = own_device()
    settings = settings.fit_to(device)
    job = open_job(backbone, data, config, settings, learning)
    starts = _starts(backbone, job, config, method)
    # Too few labels are known at once. By repr: all of them, 1.0, is not one a class, 1.
    few = {(repr(amount), seed): job.few(amount, seed) for amount, seed in _subsets(config)}
    folder = RunFolder(out)
    with folder.alone():
        if leads():
            describe(folder, job, backbone, config, settings, learning, run, method)
            problems = out / "problems.csv"
            write_problems(problems, job.problems)
            if job.problems:
                first = _words(job.problems[0])
                say(f"wrong labels or images: {len(job.problems)}, listed in {problems}; first: {first}")
        done = {row.key for row in read_rows(folder.results_file)}
        most = max(map(repr, config.amounts), key=lambda amount: len(few[amount, config.seed]))
        runs = [(*subset, name) for subset in _subsets(config) for name in starts]
        for number, (amount, seed, name) in enumerate(runs, 1):
            rows = few[repr(amount), seed]
            used = len(rows) / len(job.rows("train"))
            tested = len(job.rows("test"))
            blank = Row(run, name, job.source, job.task, job.protocol, amount, seed, job.metric, 0.0, 0.0, used, tested)
            keeps = name == method and repr(amount) == most and seed == config.seed
            if blank.key in done and not (keeps and not folder.method_file.exists()):
                continue
            say(f"[{number}/{len(runs)}] {name} on {labels_words(amount)} ({len(rows)} images), seed {seed}")
            start = time.monotonic()
            torch.manual_seed(seed)
            fresh, known = create(backbone.spec), starts[name]
            place = out / "parts" / f"{folder_of(name)}-{amount!r}-{seed}"
            once = Training(job, (known or fresh).to(device), learning, place, known is not None, seed)
            models = {job.protocol: once.fit(rows)}
            if name == method and isinstance(job, Classification) and job.config.pseudo_labels is not None:
                models["pseudo"] = once.with_pseudo_labels(models[job.protocol], rows)
            if leads():
                results = {protocol: job.scores(model, "test", job.rows("test")) for protocol, model in models.items()}
                _record(folder.results_file, blank, results, round(time.monotonic() - start, 1))
                if keeps:
                    best = list(models.values())[-1]
                    try:
                        job.illustrate(best, out / "pictures")
                    except Exception as error:  # whatever is wrong with a picture, the training is not lost
                        say(f"{out / 'pictures'}: can't be drawn ({error!r})")
                    folder.save_method(best)
                once.forget()
            together()
        part()
        if not leads():
            return None
        rows_now = read_rows(folder.results_file)
        plot_curve([row for row in rows_now if row.metric == job.metric], out / "curve.png")
        return Trained(out, rows_now, method, job.metric, job.protocol, most, len(job.problems))


@dataclass(frozen=True)
class Training:
    """One training: where it starts, how it learns, and its folder."""

    job: Job
    backbone: Backbone
    config: LearnConfig
    folder: Path
    pretrained: bool
    seed: int

    def fit(self, rows: NDArray[np.int64]) -> TaskModel:
        """Return a model that learned from these rows, on the backbone's device."""
        if not self.job.learns:
            return self._fit(self.job, rows, rows[:0], "plain")
        return self._fit(self.job, *self.job.spare(rows, self.config.validation, self.seed), "plain")

    def with_pseudo_labels(self, teacher: TaskModel, rows: NDArray[np.int64]) -> TaskModel:
        """Return a model that learned from these rows and from what `teacher` is sure of among the others."""
        assert isinstance(self.job, Classification)
        trained, validated = self.job.spare(rows, self.config.validation, self.seed)
        job, more = self.job.with_pseudo_labels(teacher, rows, trained)
        sure = len(np.setdiff1d(more, rows))
        say(f"  pseudo-labels: sure of {sure:,} more images")
        if not sure:
            return teacher
        return self._fit(job, more, validated, "pseudo")

    def _fit(self, job: Job, rows: NDArray[np.int64], validated: NDArray[np.int64], name: str) -> TaskModel:
        device = next(self.backbone.parameters()).device
        backbone = copy.deepcopy(self.backbone)
        # Where the backbone stays as it is, an untrained one's head begins at its linear probe as well.
        probed = self.pretrained or not job.learns or self.config.frozen
        model = job.model(backbone, np.unique(rows) if probed else None)
        if self.config.frozen:
            model.freeze_backbone()
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if job.learns:
            folder = RunFolder(self.folder / name)
            if folder.method_file.exists():  # it was stopped later, while it was tested
                folder.load_method(model)
                return model.to(device).eval()
            folder.path.mkdir(parents=True, exist_ok=True)
            if self.config.cut_short(len(rows)):
                passes = self.config.max_steps * self.config.batch_size / len(rows)
                asked = f"not the {self.config.epochs:g} of --epochs"
                say(f"  --max-steps {self.config.max_steps}: that is {passes:.3g} passes, {asked}")
            learner = Learner(job, model, rows, validated, self.config, folder, self.pretrained, self.seed)
            learn(learner, device)
            job.calibrate(model.to(device), validated)
            if leads():
                folder.save_method(model)
                folder.checkpoint_file.unlink(missing_ok=True)
            if told(float(learner.keeper.asked_to_stop)):  # in its last step, behind which it looks no more
                stop(learner)
        return model.eval()

    def forget(self) -> None:
        """Remove the weights from the training's folder, once its results are written."""
        for file in self.folder.rglob("*.safetensors"):
            file.unlink()


def open_job(backbone: Backbone, data: Any, config: TrainConfig, settings: Settings, learning: LearnConfig) -> Job:
    """Return the task of these settings on this data; SelfsightError where it can't be used."""
    largest = config.image_size or (LARGEST_GPU if torch.cuda.is_available() else LARGEST_CPU)
    protocol = "frozen" if learning.frozen else "finetune"
    options: dict[str, Any] = {
        "image_size": largest,
        "channels": backbone.spec.channels,
        "strict": config.strict,
        "test_share": config.test_share,
        "seed": config.seed,
        "cache": config.cache,
        "cache_dir": config.cache_dir,
    }
    if isinstance(settings, ClassificationConfig):
        size = options["image_size"] = config.image_size or backbone.spec.image_size
        if backbone.spec.patch_size and size % backbone.spec.patch_size:
            raise SelfsightError(f"--image-size {size}: {backbone.spec.name} needs a multiple of {backbone.reduction}")
        classified = open_classified(data, config.test, settings.separator, **options)
        protocol = protocol if settings.head == "finetune" else settings.head
        return Classification(*classified, settings, size, learning.hflip, protocol)
    if isinstance(settings, DetectionConfig):
        boxes = open_labelled(data, config.test, open_boxes, **options)
        size = config.image_size or _size(boxes[0].data.sizes, largest, backbone)
        _warn_of_what_is_missed(boxes[0], size, settings)
        return Detection(*boxes, size, _view(size, backbone, learning, settings), protocol, settings)
    protocol = "frozen" if settings.decoder == "linear" else protocol
    masks = open_labelled(data, config.test, open_masks, **options)
    size = config.image_size or _size(masks[0].data.sizes, largest, backbone)
    return Segmentation(*masks, size, _view(size, backbone, learning, settings), protocol, settings)


def describe(
    folder: RunFolder,
    job: Job,
    backbone: Backbone,
    config: TrainConfig,
    settings: Settings,
    learning: LearnConfig,
    run: str,
    method: str,
) -> None:
    """Write what the folder's models are to its config.json; SelfsightError if it holds others already."""
    asked = asdict(config)
    for free in ("out", "cache", "cache_dir", "strict"):
        asked.pop(free)
    learned = {name: value for name, value in asdict(learning).items() if name not in MACHINES}
    content = {
        "task": job.task,
        "run": run,
        "method": method,
        "data": job.source,
        "classes": list(job.classes),
        "image_size": job.image_size,
        "stretch": job.train.images.stretch,
        "backbone": spec_to_json(backbone.spec),
        "weights": weights_hash(backbone),
        "images": {part: len(job.rows(part)) for part in ("train", "test")},
        "labels": {"train": job.train.digest, "test": job.test.digest},
        "pixels": {"train": job.train.images.digest(), "test": job.test.images.digest()},
        "parts": _parts(job),
        "model": asdict(settings),
        "training": asked,
        "learning": learned,
    }
    content = json.loads(json.dumps(content, default=str))
    if folder.config_file.exists():
        before = folder.config()
        if "backbone" in before:  # with what a later version knows of it
            before["backbone"] = json.loads(json.dumps(spec_to_json(spec_from_json(before["backbone"]))))
        for free in MACHINES:  # earlier versions kept them
            before.get("learning", {}).pop(free, None)
        for key in content:
            if key in before and before[key] != content[key]:
                raise SelfsightError(f"--out {folder.path}: holds a training with other {key}; choose another folder")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(content)


def _parts(job: Job) -> str:
    """Return a digest of which images are learned from and tested on, and of their groups."""
    digest = hashlib.sha256(job.rows("train").tobytes() + job.rows("test").tobytes())
    if (groups := job.train.images.groups) is not None:
        digest.update(groups.tobytes())
    return digest.hexdigest()


def _record(file: Path, blank: Row, results: dict[str, dict[str, float]], seconds: float) -> None:
    """Append a training's scores by protocol and metric, and say them; `blank`'s, by which it counts as done, last."""
    for protocol, scores in reversed(results.items()):
        for metric, value in reversed(scores.items()):
            append_row(file, replace(blank, protocol=protocol, metric=metric, value=value, seconds=seconds))
        words = ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items() if ":" not in metric)
        say(f"  {protocol}: {words} ({seconds:.0f} s)")


def _subsets(config: TrainConfig) -> Iterator[tuple[float | int, int]]:
    """Yield (amount, seed), small fractions first, then small counts."""
    seeds = config.seeds or (3 if config.curve else 1)
    for amount in sorted(config.amounts, key=lambda amount: (isinstance(amount, int), amount)):
        for seed in range(config.seed, config.seed + seeds):
            yield amount, seed


def _starts(backbone: Backbone, job: Job, config: TrainConfig, method: str) -> dict[str, Backbone | None]:
    """Return where the trainings start, by name; None is an untrained network."""
    starts: dict[str, Backbone | None] = {method: backbone}
    if config.imagenet is not None:
        spec = backbone.spec
        mean, std = colours_of(spec.name) if spec.channels == 3 else (spec.mean, spec.std)
        known = plan(spec.name, job.image_size, spec.channels, mean, std, pretrained=True)
        starts["imagenet"] = load_pretrained(known, config.imagenet, flag="--imagenet")
    if config.curve and config.baselines:
        # A frozen backbone does not learn: without pretraining it is a random network, and nothing is from scratch.
        starts["scratch" if job.learns and job.protocol != "frozen" else "random"] = None
    return starts


def _size(sizes: Any, largest: int, backbone: Backbone) -> int:
    """Return the view's side that suits images of these sizes (N, 2), and the backbone."""
    step = STEP if STEP % backbone.reduction == 0 else backbone.reduction
    longer = float(np.percentile(sizes.max(1), 90))
    return int(min(-(-longer // step), max(largest // step, 1)) * step)


def _warn_of_what_is_missed(labelled: Labelled[BoxSet], size: int, settings: DetectionConfig) -> None:
    """Say where training images show objects too small for the finest level, or more than are found in an image."""
    data, rows = labelled.data, labelled.rows("train")
    shrunk = [np.diff(data.boxes[row].reshape(-1, 2, 2), axis=1).min(2) * size / data.sizes[row].max() for row in rows]
    sides = np.concatenate(shrunk).ravel()
    small = float((sides < settings.finest).mean())
    if small > MANY_SMALL:
        finer = f"--finest {settings.finest // 2} or " if settings.finest > 4 else ""
        say(
            f"{small:.0%} of the boxes are smaller than {settings.finest} pixels in views of {size} and will hardly be "
            f"learned; try {finer}a larger --image-size"
        )
    counts = [len(data.boxes[row]) for row in rows]
    if max(counts) > settings.most:
        say(f"an image shows {max(counts)} objects, of which --most {settings.most} will be found")


def _view(size: int, backbone: Backbone, learning: LearnConfig, settings: DenseConfig) -> DenseView:
    return DenseView(size, backbone.spec.mean, settings.scale, learning.hflip)


def _words(problem: Any) -> str:
    line = "" if problem.line is None else f":{problem.line}"
    return f"{problem.file}{line}: {problem.reason}"
