"""Label efficiency: how good a backbone is with 1 %, 10 % and all labels, beside what needs no pretraining."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from selfsight.backbones import Backbone, create
from selfsight.data.copies import learn_copies, warn_of_overlap
from selfsight.data.images import ImageSet
from selfsight.data.labels import amounts_of, check_draws, few_labels, stratified_split
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import extract, pixels
from selfsight.evaluate.finetune import FinetuneConfig, classify, finetune
from selfsight.evaluate.knn import knn_predict
from selfsight.evaluate.linear import Probe, fit_probe
from selfsight.evaluate.results import Row, append_row, keep_rows, labels_words, read_rows
from selfsight.progress import say
from selfsight.run import replace_file

Protocol = Literal["knn", "linear", "finetune"]
Metric = Literal["accuracy", "balanced_accuracy"]


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure on labeled images."""

    labels: tuple[float, ...] | None = None
    """Fractions of the training labels to use, each in (0, 1], at least one image a class; by default 0.01 and 0.1,
    and none where --per-class is given."""
    per_class: tuple[int, ...] = ()
    """Counts of labels per class to use, besides the fractions."""
    seeds: int = 5
    """How many random label subsets (and trainings) an amount gets."""
    protocols: tuple[Protocol, ...] = ("knn", "linear", "finetune")
    """knn and linear look at frozen features; finetune trains the whole network and takes much longer."""
    metric: Metric = "accuracy"
    """accuracy is the share of the test images that are right; balanced_accuracy is the mean of this share over the
    classes, for data in which some are rare."""
    baselines: bool = True
    """Measure raw pixels, the untrained network and, with finetune, training from scratch as well."""
    test_share: float = 0.2
    """Share of each class held out for the test, where the data comes without a split."""
    seed: int = 0
    """The first seed; also that of the split and of the untrained network."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """How finetune trains."""

    def __post_init__(self) -> None:
        check_draws(self.seeds, self.seed, self.test_share)


@dataclass(frozen=True)
class Job:
    """One row to compute."""

    method: str
    protocol: Protocol
    labels: float | int
    seed: int


def evaluate(
    backbone: Backbone,
    images: ImageSet,
    config: EvaluateConfig,
    *,
    method: str,
    run: str,
    data: str,
    out: Path,
    device: torch.device,
) -> list[Row]:
    """Measure `config.metric` on the test part for each amount of labels, seed and protocol; return the rows.

    Rows go to `out`/results.jsonl as they come; those that are there already, of the same weights, images and
    settings, are not computed again, others of this data are forgotten. Features are kept in `out`/features.npz.

    Raises SelfsightError without labels, where a class has no image to learn from or to test on, or where more labels
    per class are asked for than there are.
    """
    task = Task(backbone.to(device), images, config, method, out, device)
    fingerprint = task.fingerprint()
    results, marks = out / "results.jsonl", out / "evaluated.json"
    known: dict[str, str] = json.loads(marks.read_text()) if marks.exists() else {}
    if known.get(data) != fingerprint:  # of other weights, images or settings
        before = len(read_rows(results))
        keep_rows(results, lambda row: row.data != data)
        if forgotten := before - len(read_rows(results)):
            say(f"{forgotten} results on {data} are forgotten: of other weights, images, labels or settings")
    done = {row.key: row for row in read_rows(results)}
    replace_file(marks, lambda p: p.write_text(json.dumps(known | {data: fingerprint}, indent=2) + "\n"))
    rows = []
    jobs = list(task.jobs())
    for amount in task.amounts if "finetune" in config.protocols else ():
        count = len(task.labeled(amount, config.seed))
        if config.finetune.cut_short(count):
            most, passes = config.finetune.max_steps, config.finetune.max_steps * config.finetune.batch_size / count
            say(
                f"fine-tuning on {labels_words(amount)} ends after {most:,} steps, from scratch too: "
                f"that is {passes:.3g} passes, not {config.finetune.epochs}"
            )
    for i, job in enumerate(jobs, 1):
        used = len(task.labeled(job.labels, job.seed)) / len(task.train)
        what = (run, job.method, data, "classification", job.protocol, job.labels, job.seed, config.metric)
        row = Row(*what, value=0, seconds=0, used=used, tested=len(task.test), commonest=task.commonest)
        if row.key not in done:
            value, seconds = task.score(job)
            row = replace(row, value=value, seconds=round(seconds, 3))
            append_row(results, row)
            words = f"{job.protocol} on {labels_words(job.labels)}, seed {job.seed}: {value:.1%}"
            say(f"[{i}/{len(jobs)}] {job.method}: {words} ({seconds:.1f} s)")
        rows.append(replace(done.get(row.key, row), used=used, tested=row.tested, commonest=row.commonest))
    return rows


class Task:
    """The split, the label subsets and the features, each made when it is first needed."""

    def __init__(
        self, backbone: Backbone, images: ImageSet, config: EvaluateConfig, method: str, out: Path, device: torch.device
    ) -> None:
        self.backbone, self.images, self.config = backbone, images, config
        self.method, self.out, self.device = method, out, device
        self.labels = images.require_labels()
        self.classes = len(images.classes)
        self.split = images.split
        if self.split is None:
            self.split = stratified_split(
                self.labels, config.test_share, config.seed, classes=images.classes, groups=images.groups
            )
            learn_copies(images, self.split, self.labels)
        known = self.labels >= 0
        self.train = np.flatnonzero((self.split == "train") & known)
        self.test = np.flatnonzero((self.split == "test") & known)
        self.rows = np.concatenate([self.train, self.test])
        self.place = np.full(len(images), -1)
        self.place[self.rows] = np.arange(len(self.rows))
        for part, rows in (("train", self.train), ("test", self.test)):
            if not len(rows):
                raise SelfsightError(f"{images.source}: no labeled image in the {part} part")
        if len(np.unique(self.labels[self.train])) < 2:
            hint = "nothing to tell apart (in arrays numbers below 0 mean no label)"
            raise SelfsightError(f"{images.source}: all labeled images are of one class: {hint}")
        warn_of_overlap(images, self.train, images, self.test)
        unseen = np.setdiff1d(self.labels[self.test], self.labels[self.train])
        if len(unseen):
            raise SelfsightError(
                f"{images.source}: class {images.classes[unseen[0]]!r} has no image in the train part to learn from"
            )
        self._labeled: dict[tuple[str, int], NDArray[np.int64]] = {}
        for amount in self.amounts:
            self.labeled(amount, config.seed)  # says at once if there are too few
        self._features: dict[str, NDArray[np.float32]] = {}
        self._probes: dict[tuple[str, int], Probe] = {}

    @property
    def amounts(self) -> tuple[float | int, ...]:
        """Fractions, then counts per class, each once."""
        fractions = self.config.labels
        if fractions is None:
            fractions = () if self.config.per_class else (0.01, 0.1)
        return amounts_of(fractions, self.config.per_class)

    def jobs(self) -> Iterator[Job]:
        """Yield what to compute, cheap amounts first; all labels are one subset, so frozen features need one seed."""
        for amount in self.amounts:
            for seed in range(self.config.seed, self.config.seed + self.config.seeds):
                for protocol in self.config.protocols:
                    if protocol != "finetune" and _all(amount) and seed > self.config.seed:
                        continue
                    others = ("scratch",) if protocol == "finetune" else ("random", "pixels")
                    for method in (self.method, *(others if self.config.baselines else ())):
                        yield Job(method, protocol, amount, seed)

    def labeled(self, amount: float | int, seed: int) -> NDArray[np.int64]:
        """Return the rows whose labels may be used, drawn once."""
        key = (repr(amount), seed)  # by repr: all of them, 1.0, is not one a class, 1
        if key not in self._labeled:
            try:
                self._labeled[key] = few_labels(self.labels, self.train, amount, seed, classes=self.images.classes)
            except SelfsightError as error:
                flag = "--per-class" if isinstance(amount, int) else "--labels"
                raise SelfsightError(f"{flag} {amount}: {error}") from error
        return self._labeled[key]

    def score(self, job: Job) -> tuple[float, float]:
        """Return the share of test images that are right, or its mean over classes, and the seconds it took.

        These are without those for the features.
        """
        if job.method != "scratch":
            self.features(job.method)
        start = time.monotonic()
        if job.protocol == "finetune":
            answer = self._finetune(job)
        elif job.protocol == "linear":
            answer = self.probe(job).predict(self._part(job.method, self.test))
        else:
            rows = self.labeled(job.labels, job.seed)
            train = self._part(job.method, rows)
            answer = knn_predict(train, self.labels[rows], self._part(job.method, self.test), self.classes)
        truth, seconds = self.labels[self.test], time.monotonic() - start
        right = answer == truth
        if self.config.metric == "accuracy":
            return float(right.mean()), seconds
        return float(np.mean([right[truth == k].mean() for k in np.unique(truth)])), seconds

    def probe(self, job: Job) -> Probe:
        """Return the linear probe of a method on the labels of this job, fitted once."""
        seed = self.config.seed if _all(job.labels) else job.seed
        key = (f"{job.method} {job.labels!r}", seed)
        if key not in self._probes:
            rows = self.labeled(job.labels, seed)
            groups = None if self.images.groups is None else self.images.groups[rows]
            x, y = self._part(job.method, rows), self.labels[rows]
            self._probes[key] = fit_probe(x, y, self.classes, seed, groups=groups)
        return self._probes[key]

    def features(self, method: str) -> NDArray[np.float32]:
        """Return the features (len(rows), D) of train and test rows, from `out`/features*.npz if they are there."""
        if method not in self._features:
            if method == "pixels":
                self._features[method] = pixels(self.images, self.rows, self.backbone.spec.image_size)
            else:
                random = method == "random"
                backbone = self.fresh(self.config.seed) if random else self.backbone
                path = self.out / ("features-random.npz" if random else "features.npz")
                self._features[method] = self._kept(backbone, path)
        return self._features[method]

    @property
    def commonest(self) -> float | None:
        """The share of the test images that are of their commonest class; None where classes count alike."""
        if self.config.metric == "balanced_accuracy":
            return None
        return float(np.bincount(self.labels[self.test]).max() / len(self.test))

    def fresh(self, seed: int) -> Backbone:
        """Return the same architecture untrained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create(self.backbone.spec).to(self.device)

    def fingerprint(self) -> str:
        """Return what all results depend on, as a hash: weights, images, labels, split and settings."""
        digest = hashlib.sha256(f"{weights_hash(self.backbone)} {self._data_hash}".encode())
        digest.update(self.labels.tobytes() + np.asarray(self.rows).tobytes() + self.test.tobytes())
        digest.update(f"{self.config.seed} {self.config.finetune}".encode())
        if self.config.metric != "accuracy":
            digest.update(self.config.metric.encode())
        if self.images.groups is not None:
            digest.update(self.images.groups.tobytes())
        return digest.hexdigest()

    @cached_property
    def _data_hash(self) -> str:
        return hashlib.sha256(f"{self.images.source}\n{self.images.digest()}".encode()).hexdigest()

    def _kept(self, backbone: Backbone, path: Path) -> NDArray[np.float32]:
        key = f"{weights_hash(backbone)} {self._data_hash} {hashlib.sha256(self.rows.tobytes()).hexdigest()}"
        if path.exists():
            with np.load(path) as file:
                if str(file["key"]) == key:
                    return np.asarray(file["features"], np.float32)
        x = extract(backbone, self.images, self.rows, device=self.device)
        names = np.array([self.images.names[row] for row in self.rows])
        replace_file(path, lambda p: np.savez(p, features=x, rows=self.rows, names=names, key=key))
        return x

    def _part(self, method: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(self.features(method)[self.place[rows]])

    def _finetune(self, job: Job) -> NDArray[np.int64]:
        scratch = job.method == "scratch"
        model = finetune(
            self.fresh(job.seed) if scratch else self.backbone,
            self.images,
            self.labeled(job.labels, job.seed),
            self.labels,
            self.classes,
            self.config.finetune,
            probe=None if scratch else self.probe(job),
            device=self.device,
            seed=job.seed,
        )
        return np.asarray(classify(model, self.images, self.test, device=self.device).argmax(1), np.int64)


def weights_hash(backbone: Backbone) -> str:
    """Return a hash of the architecture and all weights."""
    digest = hashlib.sha256(repr(backbone.spec).replace(", heads=None", "").encode())  # as before there were heads
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _all(amount: float | int) -> bool:
    return isinstance(amount, float) and amount == 1
