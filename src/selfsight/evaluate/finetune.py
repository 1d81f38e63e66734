"""Fine-tune a whole backbone on few labels, or train the same network on them from scratch, to compare.

Linear probe first, then all weights: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution". With the head at its optimum, the first gradients no longer tear the features apart.
"""

import copy
import math
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from selfsight.backbones import Backbone, quick_on_cpu
from selfsight.data.augment import View
from selfsight.data.images import ImageSet
from selfsight.data.loader import Loader
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import answers
from selfsight.evaluate.linear import Probe
from selfsight.nn import autocast
from selfsight.optim import Optim, build, rate, set_rate
from selfsight.progress import bar

RATE_BATCH = 256
"""The batch for which `optim.rate` takes a rate as it is; the rates here are those of any batch."""
PEAK, BARE_PEAK = 2e-3, 5e-4
"""Learning rates that are good for a convolutional network, pretrained in minutes or fresh, and for one without
BatchNorm, which bears less: ViTs, Swin, ConvNeXt."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is trained on labels; AdamW, linear warm-up, then a cosine to zero."""

    lr: float | None = None
    """Peak learning rate of all weights, pretrained or fresh; by default 2e-3, and 5e-4 without BatchNorm (ViTs, Swin,
    ConvNeXt)."""
    weight_decay: float = 0.05
    """Decay of all weights but biases and norms."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes, 0 to 1."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from zero."""
    batch_size: int = 64
    """Images a step; fewer labels are repeated, each time in another view, so that BatchNorm has enough."""
    epochs: int = 25
    """Passes over the labeled images, within the bounds below."""
    min_steps: int = 200
    """Steps taken however few labels there are."""
    max_steps: int = 1000
    """Steps taken at most."""
    crop: float = 0.5
    """Smallest share of an image's area that a training view shows, 0 to 1."""
    hflip: bool = False
    """Mirror half of the training views; only where left and right mean the same."""

    def __post_init__(self) -> None:
        for flag in ("batch_size", "epochs", "min_steps", "max_steps"):
            if getattr(self, flag) <= 0:
                raise SelfsightError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: must be above 0")
        if not 0 <= self.label_smoothing < 1:
            raise SelfsightError(f"--label-smoothing {self.label_smoothing}: must be a share below 1")
        if not 0 < self.crop <= 1:
            raise SelfsightError(f"--crop {self.crop}: must be a share in (0, 1]")

    def cut_short(self, labels: int) -> bool:
        """Return whether `max_steps` ends the training before the last of the passes over this many labels."""
        return self.epochs * labels // self.batch_size > self.max_steps

    def steps(self, labels: int) -> int:
        """Return the number of steps for this many labels."""
        return min(max(self.epochs * labels // self.batch_size, self.min_steps), self.max_steps)

    def optim(self, backbone: Backbone) -> Optim:
        """Return how this backbone and its head are trained."""
        return Optim("adamw", lr=peak(self.lr, backbone), weight_decay=self.weight_decay, warmup=self.warmup)


def peak(lr: float | None, backbone: Backbone) -> float:
    """Return the peak learning rate that was asked for, else the one that suits the kind of network."""
    normed = any(name.endswith("running_mean") for name, _ in backbone.named_buffers())
    return (PEAK if normed else BARE_PEAK) if lr is None else lr


class LinearHead(nn.Module):
    """Logits (B, K) of features (B, D), which it standardizes: from a linear probe on, or from zero without one."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, classes: int, probe: Probe | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()
            if probe is not None:
                self.linear.weight.copy_(torch.from_numpy(probe.weight))
                self.linear.bias.copy_(torch.from_numpy(probe.bias))
                self.mean.copy_(torch.from_numpy(probe.mean))
                self.std.copy_(torch.from_numpy(probe.std))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) for features (B, D)."""
        logits: Tensor = self.linear((features - self.mean) / self.std)
        return logits


class Classifier(nn.Module):
    """A backbone and a linear head on its standardized features."""

    def __init__(self, backbone: Backbone, classes: int, probe: Probe | None) -> None:
        """Start the head from `probe`, or from zero without one."""
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(backbone.dim, classes, probe)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, S, S) in [0, 1]."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def finetune(
    backbone: Backbone,
    images: ImageSet,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: int,
    config: FinetuneConfig,
    *,
    probe: Probe | None,
    device: torch.device,
    seed: int,
) -> Classifier:
    """Train a copy of the backbone and a head on the labels (N,) of these rows; return it in eval mode.

    With `probe`, the linear probe on the same rows, the head starts there, with None at zero; the rest is the same.
    """
    model = Classifier(copy.deepcopy(backbone), classes, probe)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    steps = config.steps(len(rows))
    optim = config.optim(backbone)
    optimizer = build(model, optim)
    view = View(backbone.spec.image_size, scale=(config.crop, 1.0), hflip=0.5 if config.hflip else 0.0)
    # A batch of 10 images would leave BatchNorm with noise: repeat them to a full batch of different views.
    repeated = np.tile(rows, math.ceil(config.batch_size / len(rows)))
    loader = Loader(images, repeated, config.batch_size, device, seed=seed)
    targets = torch.from_numpy(labels).to(device)
    with torch.random.fork_rng(devices=[]), quick_on_cpu(model, device), bar(transient=True) as progress:
        torch.manual_seed(seed)
        task = progress.add_task("fine-tune" if probe else "scratch", total=steps, unit="steps", note="")
        for step, batch in enumerate(islice(loader.stream(0), steps)):
            set_rate(optimizer.param_groups, rate(optim, (step + 1) / (steps + 1), RATE_BATCH))
            optimizer.zero_grad()
            with autocast(device):
                logits = model(view(batch))
            loss = F.cross_entropy(logits.float(), targets[batch.index], label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance(task)
    return model.eval()


def classify(
    classifier: Classifier,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """Return the logits (len(rows), K) of the centre views of these rows."""
    size = classifier.backbone.spec.image_size
    return answers(classifier, size, images, rows, device=device, batch_size=batch_size, name="predict")
