"""Compare pretext tasks: the same backbone, data, budget and seeds for each, beside what needs no pretraining."""

import itertools
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfsight import api, methods
from selfsight.backbones import Backbone
from selfsight.data import ImageSet
from selfsight.errors import SelfsightError, StoppedError
from selfsight.evaluate.curve import EvaluateConfig, Task
from selfsight.evaluate.health import light_view, measure
from selfsight.evaluate.results import BASELINES, Row, read_rows
from selfsight.methods import Facts
from selfsight.methods.distill import Distill
from selfsight.pretraining import name_of, require_same
from selfsight.progress import say
from selfsight.report import Comparison, Entry, write_comparison
from selfsight.run import RunFolder, folder_of
from selfsight.training import DEFAULT_MINUTES, Pretrain, new_backbone, prepare, recipe

METHODS = ("rotation", "jigsaw", "colorization", "inpainting", "simclr", "dino")
MEASURED = 512
"""Images on which health is measured."""


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    methods: tuple[str, ...] = METHODS
    """Pretext tasks; those that do not suit the images, as colorization grey ones, are left out and named."""
    teacher: str | None = None
    """Whom distill learns from: a run's folder or the name of a timm model."""
    trainings: int = 1
    """Trainings of each method, with --seed and those after it. With two or more, intervals are over trainings, of
    which each counts with the mean of its draws of labels; with one they are over these draws."""

    def __post_init__(self) -> None:
        if self.trainings < 1:
            raise SelfsightError(f"--trainings {self.trainings}: must be 1 or more")


def compare(
    data: Any,
    config: CompareConfig | None = None,
    training: Pretrain | None = None,
    evaluation: EvaluateConfig | None = None,
) -> Comparison:
    """Pretrain with each method, measure each with few labels, and write the page that shows them side by side.

    Each method's run is in `training.out`/<method>, of further trainings in <method>-seed<n>, beside them report.html,
    compare.png and compare.json with all figures. What is finished is not done again, what was interrupted goes on: the
    same call resumes.
    The baselines (raw pixels, the untrained network, training from scratch) depend on no method and are measured once.

    A method that fails is in the result with its reason, and the others go on. Raises SelfsightError for data without
    labels or with too few, for settings that are wrong for all, for runs of other settings in the folder, where a
    training is stopped by Ctrl-C, and where no method came through.
    """
    config, training, evaluation = config or CompareConfig(), training or Pretrain(), evaluation or EvaluateConfig()
    if training.processes > 1:
        raise SelfsightError("--devices, --nodes: a comparison trains one method after another in a single process")
    names = list(dict.fromkeys(config.methods))
    if not names:
        raise SelfsightError("--methods: name at least one")
    classes = [methods.get(name) for name in names]  # a name that there is not, is wrong for all
    images, facts = prepare(data, replace(training, fraction=1.0))  # measured on all, trained on some
    out = training.out or Path("runs") / f"{name_of(data)}-compare"
    if training.cache and not isinstance(data, str | Path):
        data = images  # in memory: an object of another library would be decoded anew for each training
    # One backbone for all: a ViT where any needs one.
    begun = new_backbone(max(classes, key=lambda cls: cls.vit), training, images, facts.image_size)
    if training.backbone == "auto":
        training = replace(training, backbone=begun.spec.name)
    # Made here already to say now, and not after hours, what is amiss with the labels.
    task = Task(begun, images, evaluation, "", out, api.default_device())
    untrained = task.fresh(evaluation.seed)
    seeds = range(training.seed, training.seed + config.trainings)
    for name, seed in itertools.product(names, seeds):
        _require_same(_place(out, name, seed, training), name, replace(training, seed=seed), images, facts, config)
    comparison = Comparison(
        out=str(out),
        data=images.source,
        images=training.share_of(facts.images),
        backbone=begun.spec.name,
        image_size=facts.image_size,
        budget=f"{training.epochs:g} epochs" if training.epochs else f"{training.minutes or DEFAULT_MINUTES:g} minutes",
        device=str(api.default_device()),
        measured=min(MEASURED, facts.images),
        untrained=_health(untrained, images),
        trainings=config.trainings,
    )
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name}")
        found: list[tuple[dict[str, float], list[Row]]] = []
        try:
            entry = _unsuited(name, facts, images) or Entry(name, "done")
            for seed in seeds if entry.state == "done" else ():
                own = replace(training, out=_place(out, name, seed, training).path, resume=True, seed=seed)
                # The baselines are the first training's.
                measured = evaluation if seed == training.seed else replace(evaluation, baselines=False)
                found.append(_one(data, images, name, own, measured, config))
                entry = Entry(name, "done", figures=_means([figures for figures, _ in found]))
        except StoppedError as error:
            raise SelfsightError(f"{out}: stopped in {name}; the same command goes on from there") from error
        except SelfsightError as error:
            entry = Entry(name, "failed", str(error))
        except Exception as error:  # a bug, mostly in a method of one's own: the others' hours are not lost
            traceback.print_exc()
            entry = Entry(name, "failed", f"{type(error).__name__}: {error}")
        rows = [row for _, some in found[:1] for row in some if len(seeds) == 1 or row.method in BASELINES]
        if len(seeds) > 1 and entry.state == "done":
            rows += _by_training([some for _, some in found], seeds)
        if entry.reason:
            say(f"{name} {entry.state}: {entry.reason}")
        comparison = replace(comparison, entries=[*comparison.entries, entry], rows=[*comparison.rows, *rows])
        write_comparison(comparison, images)  # after each, to be looked at while the others train
    if all(entry.state != "done" for entry in comparison.entries):
        raise SelfsightError(f"no method came through; {comparison.entries[0].method}: {comparison.entries[0].reason}")
    return comparison


def _place(out: Path, name: str, seed: int, training: Pretrain) -> RunFolder:
    """Return the folder of a method's training with this seed."""
    return RunFolder(out / (folder_of(name) + ("" if seed == training.seed else f"-seed{seed}")))


def _means(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure that all have."""
    return {k: sum(f[k] for f in figures) / len(figures) for k in figures[0] if all(k in f for f in figures)}


def _by_training(found: Sequence[Sequence[Row]], seeds: Sequence[int]) -> list[Row]:
    """Return one row a training instead of one a draw of labels, with their mean, without the baselines'."""
    rows = []
    for seed, own in zip(seeds, found, strict=True):
        draws: dict[tuple[str, str], list[Row]] = {}
        for row in own:
            if row.method not in BASELINES:
                draws.setdefault((row.protocol, repr(row.labels)), []).append(row)
        for some in draws.values():
            rows.append(replace(some[0], seed=seed, value=sum(row.value for row in some) / len(some)))
    return rows


def _unsuited(name: str, facts: Facts, images: ImageSet) -> Entry | None:
    """Return why a method is left out; None if it suits the data."""
    try:
        cls = methods.get(name)
        cls.Config().fit_to(facts)
    except SelfsightError as error:
        return Entry(name, "skipped", str(error))
    if cls.supervised and images.split is None:
        return Entry(name, "skipped", "sees the labels in training, and the data has no test part of its own")
    return None


def _one(
    data: Any, images: ImageSet, name: str, training: Pretrain, evaluation: EvaluateConfig, config: CompareConfig
) -> tuple[dict[str, float], list[Row]]:
    """Train and measure a method as far as that is not done; return its figures and results."""
    assert training.out
    folder = RunFolder(training.out)
    if folder.weights_file.exists():
        run = api.load(folder.path)
    else:
        run = api.pretrain(data, name, config=training, settings=_settings(name, config))
    holders = [n for n in dict.fromkeys(config.methods) if _has_baselines(folder.path.with_name(folder_of(n)))]
    rows = run.evaluate(data, replace(evaluation, baselines=evaluation.baselines and holders[:1] in ([], [name])))
    page = folder.path / "report.html"
    if not page.exists() or page.stat().st_mtime < folder.results_file.stat().st_mtime:
        run.report(data)
    measured = folder.config().get("measured", {})
    return {k: v for k, v in measured.items() if v is not None} | _health(run.backbone(), images), rows


def _settings(name: str, config: CompareConfig) -> Distill.Config | None:
    """Return a method's settings where they are not its own."""
    return Distill.Config(teacher=config.teacher) if name == "distill" else None


def _has_baselines(path: Path) -> bool:
    return any(row.method in BASELINES for row in read_rows(RunFolder(path).results_file))


def _health(backbone: Backbone, images: ImageSet) -> dict[str, float]:
    device = api.default_device()
    view = light_view(backbone.spec.image_size)
    health = measure(backbone.to(device), view, images, images.rows("train"), device, n=MEASURED)
    return {"rankme": health.rankme, "view_retrieval": health.view_retrieval}


def _require_same(
    run: RunFolder, name: str, training: Pretrain, images: ImageSet, facts: Facts, config: CompareConfig
) -> None:
    """Raise SelfsightError where a run is there already of other data or settings, or of a method that has changed."""
    if not run.config_file.exists():
        return
    saved = run.config()
    if saved["data"] != images.source:
        raise SelfsightError(f"--out {run.path.parent}: holds a comparison on {saved['data']}; choose another folder")
    if saved.get("data_digest") not in (None, images.digest()):
        raise SelfsightError(f"--out {run.path}: was trained on other images of {images.source}; choose another folder")
    if saved["method"] == "distill" and saved["method_config"]["teacher"] != config.teacher:
        begun = saved["method_config"]["teacher"]
        raise SelfsightError(f"--teacher {config.teacher}: {run.path} has learned from {begun}")
    require_same(run, saved["pretrain"], training)
    cls, seen = methods.get(name), replace(facts, images=training.share_of(facts.images))
    if saved.get("source") not in (None, methods.source(name)):
        raise SelfsightError(f"--out {run.path}: {name} has changed since; choose another folder, or delete this one")
    require_same(run, saved["method_config"], (_settings(name, config) or cls.Config()).fit_to(seen))
    require_same(run, saved["optim"], recipe(cls.optim, training))
