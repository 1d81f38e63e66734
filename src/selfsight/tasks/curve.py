"""Label efficiency of detection and segmentation: one model on few and on many labels, pretrained and from scratch."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsight.backbones import Backbone, create, spec_to_json
from selfsight.data import few_images, open_boxes, open_masks, write_problems
from selfsight.errors import SelfsightError
from selfsight.evaluate.results import Row, amount_words, append_row, plot_curve, read_rows
from selfsight.progress import say
from selfsight.run import RunFolder
from selfsight.tasks.augment import DenseView
from selfsight.tasks.jobs import WIDTH, Detection, DetectionConfig, Job, Segmentation, SegmentationConfig
from selfsight.tasks.labelled import open_labelled
from selfsight.tasks.learning import LearnConfig, learn

Settings = DetectionConfig | SegmentationConfig
TASKS: dict[str, type[Settings]] = {"detection": DetectionConfig, "segmentation": SegmentationConfig}
"""The tasks there are, and the settings of each one's model."""
STEP = 32
"""View sides are multiples of this: what every usual backbone shrinks images to a whole number by."""
LARGEST_CPU, LARGEST_GPU = 256, 512
GPU_WIDTH = 256


@dataclass(frozen=True)
class TrainConfig:
    """What to train and to measure."""

    out: Path | None = None
    """Folder of the result; by default runs/<data>-<task>."""
    test: str | None = None
    """Labelled images to test on; by default the data's own test part, else a seeded share of it."""
    labels: tuple[float, ...] | None = None
    """Fractions of the training images whose labels may be used, each in (0, 1]: the label-efficiency curve, each
    also from scratch. By default all labels, once, and no training from scratch."""
    seeds: int | None = None
    """How many random subsets (and trainings) a fraction gets; by default 3 with --labels, else 1."""
    baselines: bool | None = None
    """Train the same network from scratch as well; by default with --labels only."""
    image_size: int | None = None
    """Side of a view in pixels; by default the images' longer side, at most 256 (512 with a GPU)."""
    strict: bool = False
    """Stop at the first label that is wrong, instead of listing it in problems.csv and going on."""
    test_share: float = 0.2
    """Share of the images held out for the test, where the data comes without a split and without --test."""
    seed: int = 0
    """The first seed; also that of the split."""
    cache: bool = True
    """Decode the images once into a memory map."""
    cache_dir: Path | None = None
    """Where the decoded images are kept; by default ~/.cache/selfsight."""
    learning: LearnConfig = field(default_factory=LearnConfig)
    """How each model learns."""

    @property
    def amounts(self) -> tuple[float, ...]:
        """Fractions of the labels, each a float."""
        return tuple(float(amount) for amount in self.labels or (1.0,))


@dataclass(frozen=True)
class Trained:
    """What a training on labels gave."""

    out: Path
    rows: list[Row]
    metric: str
    """The metric that counts most: map_50 or miou."""
    problems: int
    """Labels or images that were wrong; they are listed in problems.csv."""


def train(
    backbone: Backbone,
    data: str | Path,
    config: TrainConfig,
    settings: Settings,
    *,
    method: str,
    run: str,
    out: Path,
) -> Trained:
    """Train on each amount of labels, from `backbone` and from scratch, test each, and keep the best-fed model.

    That one, pretrained, on the most labels and the first seed, goes to `out`. Rows go to `out`/results.jsonl as they
    come; the same call goes on where it was interrupted.

    Raises SelfsightError for labels that can't be used, for settings that differ from those `out` was begun with,
    StoppedError after Ctrl-C.
    """
    if any(not 0 < amount <= 1 for amount in config.amounts):
        raise SelfsightError(f"--labels {config.amounts}: fractions must lie in (0, 1]")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = replace(settings, width=settings.width or (GPU_WIDTH if device.type == "cuda" else WIDTH))
    job = open_job(backbone, data, config, settings)
    folder = RunFolder(out)
    describe(folder, job, backbone, data, config, settings, run, method)
    problems = [*job.train.data.problems, *(job.test.data.problems if job.test is not job.train else ())]
    write_problems(out / "problems.csv", problems)
    if problems:
        where = out / "problems.csv"
        say(f"{len(problems)} labels or images are wrong, listed in {where}; first: {_words(problems[0])}")
    done = {row.key for row in read_rows(folder.results_file)}
    runs = list(_runs(config))
    for number, (amount, seed, pretrained) in enumerate(runs, 1):
        name = method if pretrained else "scratch"
        blank = Row(run, name, job.train.data.source, job.task, _protocol(config), amount, seed, job.metric, 0.0, 0.0)
        part = RunFolder(out / "parts" / f"{name}-{amount:g}-{seed}")
        keeps = pretrained and amount == max(config.amounts) and seed == config.seed
        if blank.key in done and not (keeps and not folder.method_file.exists()):
            continue
        rows = few_images(job.train.data, amount, seed)
        rows = rows[job.train.place[rows] >= 0]
        say(f"[{number}/{len(runs)}] {name} on {amount_words(amount)} of the labels ({len(rows)} images), seed {seed}")
        start = time.monotonic()
        torch.manual_seed(seed)
        begun = create(backbone.spec)
        if pretrained:
            begun.load_state_dict(backbone.state_dict())
        model = job.model(begun)
        if config.learning.frozen:
            model.freeze_backbone()
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        part.path.mkdir(parents=True, exist_ok=True)
        learn(job, model, rows, config.learning, part, pretrained=pretrained, seed=seed, device=device)
        model.to(device)
        scores = job.scores(model, job.test, job.test.rows("test"))
        seconds = round(time.monotonic() - start, 1)
        for metric, value in reversed(scores.items()):  # the one that `done` looks for comes last
            append_row(folder.results_file, replace(blank, metric=metric, value=value, seconds=seconds))
        if keeps:
            folder.save_method(model)
        part.checkpoint_file.unlink(missing_ok=True)
        say(f"  {', '.join(f'{metric} {value:.3f}' for metric, value in scores.items())} ({seconds:.0f} s)")
    rows_now = read_rows(folder.results_file)
    main = [row for row in rows_now if row.metric == job.metric]
    plot_curve(main, out / "curve.png")
    return Trained(out, rows_now, job.metric, len(problems))


def open_job(backbone: Backbone, data: str | Path, config: TrainConfig, settings: Settings) -> Job:
    """Return the task of these settings on this data; SelfsightError where it can't be used."""
    largest = config.image_size or (LARGEST_GPU if torch.cuda.is_available() else LARGEST_CPU)
    options: dict[str, Any] = {
        "image_size": largest,
        "channels": backbone.spec.channels,
        "strict": config.strict,
        "test_share": config.test_share,
        "seed": config.seed,
        "cache": config.cache,
        "cache_dir": config.cache_dir,
    }
    if isinstance(settings, DetectionConfig):
        boxes = open_labelled(data, config.test, open_boxes, **options)
        size = config.image_size or _size(boxes[0].data.sizes, largest)
        return Detection(*boxes, settings, size, _view(size, backbone, config.learning))
    masks = open_labelled(data, config.test, open_masks, **options)
    size = config.image_size or _size(masks[0].data.sizes, largest)
    return Segmentation(*masks, settings, size, _view(size, backbone, config.learning))


def describe(
    folder: RunFolder,
    job: Job,
    backbone: Backbone,
    data: str | Path,
    config: TrainConfig,
    settings: Settings,
    run: str,
    method: str,
) -> None:
    """Write what the folder's models are to its config.json; SelfsightError if it holds others already."""
    asked = asdict(config)
    for free in ("out", "cache", "cache_dir", "strict"):
        asked.pop(free)
    content = {
        "task": job.task,
        "run": run,
        "method": method,
        "data": str(data),
        "classes": list(job.train.data.classes),
        "image_size": job.image_size,
        "backbone": spec_to_json(backbone.spec),
        "model": asdict(settings),
        "training": asked,
    }
    content = json.loads(json.dumps(content, default=str))
    if folder.config_file.exists():
        before = folder.config()
        for key in content:
            if before.get(key) != content[key]:
                raise SelfsightError(f"--out {folder.path}: holds a training with other {key}; choose another folder")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(content)


def _runs(config: TrainConfig) -> Iterator[tuple[float, int, bool]]:
    """Yield (amount, seed, pretrained), cheap amounts first."""
    seeds = config.seeds or (3 if config.labels else 1)
    baselines = config.labels is not None if config.baselines is None else config.baselines
    for amount in sorted(config.amounts):
        for seed in range(config.seed, config.seed + seeds):
            for pretrained in (True, False) if baselines else (True,):
                yield amount, seed, pretrained


def _protocol(config: TrainConfig) -> str:
    return "frozen" if config.learning.frozen else "finetune"


def _size(sizes: Any, largest: int) -> int:
    """Return the view's side that suits images of these sizes (N, 2)."""
    longer = float(np.percentile(sizes.max(1), 90))
    return int(min(-(-longer // STEP) * STEP, largest))


def _view(size: int, backbone: Backbone, config: LearnConfig) -> DenseView:
    return DenseView(size, backbone.spec.mean, config.scale, config.hflip)


def _words(problem: Any) -> str:
    line = "" if problem.line is None else f":{problem.line}"
    return f"{problem.file}{line}: {problem.reason}"
