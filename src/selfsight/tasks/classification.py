"""Classification with few labels, one class an image or several: settings, data, and the job for the trainer.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; Yun et al. 2019, "CutMix: Regularization Strategy to
Train Strong Classifiers with Localizable Features"; Cubuk et al. 2020, "RandAugment: Practical Automated Data
Augmentation with a Reduced Search Space"; Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning
Method".
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from selfsight.backbones import Backbone
from selfsight.data import ImageSet, few_images, few_labels, in_order, open_images, stratified_split, whole_groups
from selfsight.data.annotations import Problem
from selfsight.data.augment import View, whole
from selfsight.data.copies import copied, learn_copies, warn_of_overlap
from selfsight.data.decode import of_another_kind
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import answers
from selfsight.evaluate.finetune import LinearHead
from selfsight.evaluate.linear import fit_probe
from selfsight.pictures import save_pictures
from selfsight.processes import told
from selfsight.progress import say
from selfsight.tasks.classifier import (
    Classifier,
    KnnHead,
    best_temperature,
    classification_scores,
    fit_probes,
    write_confusion,
)
from selfsight.tasks.labelled import spare, warn_of_unseen
from selfsight.tasks.model import TaskModel

Head = Literal["finetune", "linear", "knn"]
Target = dict[str, Tensor]
CALIBRATED_FROM = 50
"""With fewer validation images confidences are left as they are: one wrong image would move them all."""
LABELS_ENOUGH = 1000
"""With fewer labels none is spared for validation: of 600 on Fashion-MNIST a fifth was worth 1.4 points of accuracy."""
MISTAKES = 8
"""So many are drawn."""
PSEUDO_SHARE = 0.75
"""At most this share of a batch is pseudo-labelled on average: the true labels are repeated until they are the rest."""


@dataclass(frozen=True)
class ClassificationConfig:
    """The classifier."""

    head: Head = "finetune"
    """finetune trains all weights, from the linear probe on; linear and knn leave the backbone as it is."""
    separator: str | None = None
    """What stands between the classes of an image that has several, | in 'cat|dog': multi-label. By default an image
    has one class."""
    mixup: float = 0.0
    """Blend pairs of images and of their labels, by shares drawn from Beta(mixup, mixup); 0 is off."""
    cutmix: float = 0.0
    """Paste a rectangle of another image, and a share of its label: of an area drawn from Beta(cutmix, cutmix); 0 is
    off. With mixup as well each batch gets one of the two."""
    randaugment: int = 0
    """Strength of two random changes of shape or colour of each image, 1 to 30, 9 for example; 0 is off. Colour or grey
    images only."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes, 0 to 1."""
    crop: float = 0.5
    """Smallest share of an image's area that a training view shows, 0 to 1."""
    pseudo_labels: float | None = None
    """Train a second model, also on the unlabelled rest, with the classes that the first is sure of by this
    confidence, 0.95 for example; both are reported."""

    def __post_init__(self) -> None:
        for flag, low in (("crop", self.crop), ("pseudo-labels", self.pseudo_labels)):
            if low is not None and not 0 < low <= 1:
                raise SelfsightError(f"--{flag} {low}: must be above 0 and at most 1")
        if self.mixup < 0 or self.cutmix < 0 or not 0 <= self.label_smoothing < 1:
            raise SelfsightError("--mixup and --cutmix must be 0 or more, --label-smoothing a share below 1")
        if not 0 <= self.randaugment <= 30:
            raise SelfsightError(f"--randaugment {self.randaugment}: must be from 0 to 30")
        if self.separator is not None and not self.separator.strip():
            raise SelfsightError("--separator: name what stands between the classes of an image, such as '|'")
        if self.pseudo_labels is not None and (self.separator is not None or self.head != "finetune"):
            raise SelfsightError("--pseudo-labels: for fine-tuning with one class an image only")

    def fit_to(self, device: torch.device) -> Self:
        """Return the settings; none depends on the device."""
        return self


@dataclass(frozen=True)
class Classified:
    """Images and their classes."""

    images: ImageSet
    classes: Sequence[str]
    """(K,) names."""
    targets: NDArray[np.float32]
    """(N, K) 1 where the image is of the class, else 0."""
    known: NDArray[np.bool_]
    """(N,) whether the image has a label at all."""

    @cached_property
    def digest(self) -> str:
        """A hash that changes with any image's name or class."""
        found = hashlib.sha256("\0".join(self.images.names).encode())
        found.update(self.targets.tobytes() + self.known.tobytes())
        return found.hexdigest()

    @property
    def present(self) -> list[NDArray[np.int64]]:
        """(N,) arrays: the classes of each image."""
        return [np.flatnonzero(row) for row in self.targets]

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the labelled rows of the 'train' or 'test' part."""
        rows = self.images.rows(part)
        return rows[self.known[rows]]


def open_classified(
    data: Any,
    test: Any,
    separator: str | None,
    *,
    image_size: int,
    channels: int,
    strict: bool,
    test_share: float,
    seed: int,
    **cache: Any,
) -> tuple[Classified, Classified]:
    """Return what to learn from, its part 'train', and what to test on, its part 'test'; the same set if it has both.

    Without `test` the set's own split counts, or else a seeded `test_share` of each class is held out (of all images,
    where they have several classes). With it, only the train part of a set that has parts is learned from. `separator`
    stands between the classes of one image.

    Raises SelfsightError without labels or with a single class, where the test has a class that training has not, and,
    if `strict`, for an image that can't be read.
    """
    cache |= {"verify": True}
    images = open_images(data, image_size=image_size, channels=channels, **cache)
    labels = images.require_labels()
    own = images.split is not None
    if test is not None:
        images = images if own else replace(images, split=np.full(len(images), "train"))
    elif images.split is None and separator is None:
        split = stratified_split(labels, test_share, seed, classes=images.classes, groups=images.groups)
        learn_copies(images, split, labels)
        images = replace(images, split=split)
    elif images.split is None:
        split = np.full(len(images), "train", dtype="<U5")
        if images.groups is None:
            split[np.random.default_rng(seed).permutation(len(images))[: round(test_share * len(images))]] = "test"
        else:
            split[whole_groups(images.groups, test_share, seed)] = "test"
        learn_copies(images, split, labels)
        images = replace(images, split=split)
    train = _classified(images, separator, None)
    other = train
    if test is not None:
        tested = open_images(test, image_size=image_size, channels=channels, stretch=images.stretch, **cache)
        other = _classified(replace(tested, split=np.full(len(tested), "test")), separator, train.classes)
    if len(train.classes) < (2 if separator is None else 1):
        raise SelfsightError(f"{images.source}: all images are of one class, or of none: nothing to learn")
    for found, part in ((train, "train"), (other, "test")):
        if strict and (wrong := [skip for skip in found.images.skipped if not of_another_kind(skip.name)]):
            skip = wrong[0]
            raise SelfsightError(f"{skip.name}: {skip.reason}")
        if not len(found.rows(part)):
            raise SelfsightError(f"{found.images.source}: no labelled image in the {part} part")
    learned, held = train.rows("train"), other.rows("test")
    unseen = np.flatnonzero(other.targets[held].any(0) & ~train.targets[learned].any(0))
    if len(unseen) and own and separator is None:
        name = train.classes[unseen[0]]
        raise SelfsightError(f"{images.source}: class {name!r} has no image in the train part to learn from")
    warn_of_unseen([train.classes[k] for k in unseen.tolist()])
    warn_of_overlap(train.images, learned, other.images, held)
    return train, other


def _classified(images: ImageSet, separator: str | None, classes: Sequence[str] | None) -> Classified:
    """Number the classes as `classes` does, or as they come."""
    labels = images.require_labels()
    names = [[name] if separator is None else _parts(name, separator) for name in images.classes]
    own = list(dict.fromkeys(name for several in names for name in several))
    own = own if separator is None else sorted(own)
    classes = classes or own
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise SelfsightError(f"{images.source}: has the class {unknown[0]!r}, which the training images don't have")
    table = np.zeros((len(names) + 1, len(classes)), np.float32)  # the last row is that of -1: no label
    for row, several in enumerate(names):
        table[row, [list(classes).index(name) for name in several]] = 1
    return Classified(images, classes, table[labels], labels >= 0)


def _parts(name: str, separator: str) -> list[str]:
    """Return the classes in 'cat|dog'; none in '|', an image that shows none of them."""
    return [part.strip() for part in name.split(separator) if part.strip()]


@dataclass(frozen=True)
class Classification:
    """The class of an image, or its classes; as a job for the trainer."""

    train: Classified
    test: Classified
    config: ClassificationConfig
    image_size: int
    hflip: bool
    protocol: str
    task: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        channels = self.train.images.channels
        if self.config.randaugment and channels not in (1, 3):
            raise SelfsightError(f"--randaugment: for colour or grey images only; {self.source} has {channels} bands")

    @property
    def many(self) -> bool:
        """Whether an image may have several classes."""
        return self.config.separator is not None

    @property
    def metric(self) -> str:
        """Share of the images that are right; the classes' mean average precision where an image has several."""
        return "mean_average_precision" if self.many else "accuracy"

    @property
    def learns(self) -> bool:
        """Whether weights are trained by gradient steps."""
        return self.config.head == "finetune"

    @property
    def source(self) -> str:
        """What the user passed."""
        return self.train.images.source

    @property
    def classes(self) -> Sequence[str]:
        """(K,) names."""
        return self.train.classes

    @property
    def problems(self) -> list[Problem]:
        """Images that could not be read."""
        sets = [self.train] if self.test is self.train else [self.train, self.test]
        skipped = [skip for part in sets for skip in part.images.skipped if not of_another_kind(skip.name)]
        return [Problem(skip.name, None, skip.reason) for skip in skipped]

    def part(self, name: str) -> Classified:
        """Return the 'train' or the 'test' images."""
        return self.train if name == "train" else self.test

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the labelled rows of a part."""
        return self.part(part).rows(part)

    @property
    def view(self) -> View:
        """The training view."""
        return View(self.image_size, (self.config.crop, 1.0), hflip=0.5 if self.hflip else 0.0)

    def few(self, amount: float | int, seed: int) -> NDArray[np.int64]:
        """Return the rows whose labels may be used; SelfsightError for a count a class where images have several."""
        if self.many and isinstance(amount, int):
            raise SelfsightError("--per-class: not with --separator; use --labels with fractions of the images")
        if self.many:
            return few_images(self.train, self.train.rows("train"), amount, seed)
        rows, labels = self.train.rows("train"), self.train.targets.argmax(1)
        return few_labels(labels, rows, amount, seed, classes=self.classes)

    def spare(self, rows: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows to train on, and about this share of `rows` to validate on, or none if these are few.

        None are below LABELS_ENOUGH. Of each class the whole part of its share is spared: of a rare one nothing; or,
        where the images are in groups, whole ones.
        """
        if len(rows) < LABELS_ENOUGH:
            return rows, rows[:0]
        groups = self.train.images.groups
        if groups is not None:
            apart = whole_groups(groups[rows], share, seed, self.train.targets[rows] > 0)
            return rows[~apart], rows[apart]
        if self.many:
            return spare(rows, share, seed, self.train.targets[rows] > 0)
        random, labels = np.random.default_rng([seed, 1]), self.train.targets.argmax(1)
        members = [random.permutation(rows[labels[rows] == k]) for k in range(len(self.classes))]
        spared = np.concatenate([some[: int(share * len(some))] for some in members])
        return np.setdiff1d(rows, spared), np.sort(spared)

    def model(self, backbone: Backbone, rows: NDArray[np.int64] | None = None) -> Classifier:
        """Return a classifier whose head starts as the linear probe (or is kNN) of these rows, or at zero without."""
        if rows is None:
            return Classifier(backbone, LinearHead(backbone.dim, len(self.classes)))
        device, y = next(backbone.parameters()).device, self.train.targets[rows]
        x = answers(backbone, self.image_size, self.train.images, rows, device=device)
        if self.config.head == "knn":
            return Classifier(backbone, KnnHead(torch.from_numpy(x), torch.from_numpy(y), self.many))
        count = len(self.classes)
        groups = self.train.images.groups
        alike = None if groups is None else groups[rows]
        many = self.many
        probe = fit_probes(x, y.astype(np.int64), alike) if many else fit_probe(x, y.argmax(1), count, groups=alike)
        return Classifier(backbone, LinearHead(backbone.dim, count, probe))

    def example(self, row: int) -> tuple[Tensor, Target]:
        """Return a whole training image, (C, S, S) uint8, and its classes: views are drawn a batch at a time."""
        images = self.train.images
        pixels = torch.from_numpy(np.array(images.images[np.array([row])]))[0]
        if self.config.randaugment:
            pixels = v2.RandAugment(magnitude=self.config.randaugment)(pixels)
        return pixels, {
            "aspect": torch.tensor(images.aspect[row]),
            "classes": torch.from_numpy(self.train.targets[row]),
        }

    def loss(self, model: TaskModel, images: Tensor, targets: list[Target]) -> Tensor:
        """Return the cross entropy of views of a batch (B, C, S, S) uint8."""
        aspect = torch.stack([target["aspect"] for target in targets])
        x = self.view(Batch(images, aspect, torch.arange(len(images))))
        y = torch.stack([target["classes"] for target in targets])
        blends = (v2.MixUp, self.config.mixup), (v2.CutMix, self.config.cutmix)
        chosen = [kind(alpha=alpha) for kind, alpha in blends if alpha]
        if chosen:
            x, y = v2.RandomChoice(chosen)(x, y)
        logits = model(x).float()
        if self.many:
            smooth = self.config.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, y.clamp(smooth, 1 - smooth))
        return F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)

    def logits(self, model: TaskModel, part: str, rows: NDArray[np.int64]) -> Tensor:
        """Return the logits (len(rows), K) of these rows of the training or the test images, on the CPU."""
        images, device = self.part(part).images, next(model.parameters()).device
        return torch.from_numpy(answers(model, self.image_size, images, rows, device=device, name=part))

    def scores(self, model: TaskModel, part: str, rows: NDArray[np.int64]) -> dict[str, float]:
        """Return how good the model is on these rows of the 'train' or 'test' images, each number 0 to 1."""
        targets = torch.from_numpy(self.part(part).targets[rows])
        return classification_scores(self.logits(model, part, rows), targets, self.classes, self.many)

    def calibrate(self, model: TaskModel, rows: NDArray[np.int64]) -> None:
        """Set the temperature by which the confidences on these images, kept out of training, are likeliest."""
        if len(rows) >= CALIBRATED_FROM:
            logits, targets = self.logits(model, "train", rows), torch.from_numpy(self.train.targets[rows])
            model.get_buffer("temperature").fill_(best_temperature(logits, targets, self.many))

    def with_pseudo_labels(
        self, model: TaskModel, labelled: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[Self, NDArray[np.int64]]:
        """Return the job with the labels that the model is sure of added, and rows to train on.

        Asked are the training part's images that are not `labelled`: those without a label, and those whose label may
        not be used, but no copies of test images and none of a group that is validated on. To train on are the
        pseudo-labelled rows, and `rows` so often that they are at least a quarter.
        """
        assert self.config.pseudo_labels is not None
        rest, groups = np.setdiff1d(self.train.images.rows("train"), labelled), self.train.images.groups
        if groups is not None:  # what it is validated on has no relatives among what it learns from
            rest = rest[~np.isin(groups[rest], groups[np.setdiff1d(labelled, rows)])]
        copies = copied(self.test.images, self.rows("test"), self.train.images, rest)
        if copies.any():
            say(f"  pseudo-labels: {copies.sum()} images are copies of test images and not asked")
            rest = rest[~copies]
        if not len(rest):
            return self, rows
        sure, answer = told(self.logits(model, "train", rest)).softmax(1).max(1)
        # Undo the smoothing: a model that has learned it to perfection is never surer than 1 - smoothing + its share.
        # A temperature, found on true labels, has done it.
        smoothing = self.config.label_smoothing if model.get_buffer("temperature") == 1 else 0.0
        sure = (sure - smoothing / len(self.classes)) / (1 - smoothing)
        taken = (sure >= self.config.pseudo_labels).numpy()
        targets = self.train.targets.copy()
        targets[rest] = F.one_hot(answer, len(self.classes)).float().numpy()
        train = replace(self.train, targets=targets)
        repeats = math.ceil(int(taken.sum()) * (1 - PSEUDO_SHARE) / PSEUDO_SHARE / len(rows))
        return replace(self, train=train), np.concatenate([np.tile(rows, max(1, repeats)), rest[taken]])

    def illustrate(self, model: TaskModel, folder: Path) -> None:
        """Draw mistakes, the surest first, and write confusion.csv and .png; nothing with several classes an image."""
        if self.many:
            return
        rows = self.rows("test")
        sure, answer = self.logits(model, "test", rows).softmax(1).max(1)
        truth = self.test.targets[rows].argmax(1)
        write_confusion(folder.parent, truth, answer.numpy(), self.classes)
        wrong = np.flatnonzero(answer.numpy() != truth)
        wrong = wrong[np.argsort(-sure.numpy()[wrong], kind="stable")][:MISTAKES]
        if len(wrong):
            (batch,) = in_order(self.test.images, rows[wrong], len(wrong), torch.device("cpu"))
            names = ", ".join(f"{self.classes[int(answer[i])]} for {self.classes[int(truth[i])]}" for i in wrong)
            save_pictures(folder, {f"The surest mistakes on test images: {names}": whole(batch, self.image_size)[None]})
