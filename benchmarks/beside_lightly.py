r"""Is each method as good as lightly's, and how much faster? Same backbone, images, epochs and batch.

    python -m benchmarks.beside_lightly DATA/fashion --methods byol vicreg moco_v2 barlow_twins swav dino

lightly trains as its example of the method does: its heads, loss, optimizer and rate, its transform on PIL images in a
DataLoader with two workers, float32; only what depends on the size of images is fitted to 28 pixels. selfsight trains
with its defaults. Both are measured by kNN on the test part. A row for each training is appended to --out as it comes;
what is there already is left out, and lightly's side, hours on two cores, goes on after its last whole epoch. Compare
seconds of rows of one machine only.
"""

import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MoCoProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.transforms.swav_transform import SwaVTransform
from lightly.transforms.vicreg_transform import VICRegTransform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.throughput import PilImages
from selfsight import api, backbones
from selfsight.backbones import Backbone
from selfsight.data import ImageSet, open_images
from selfsight.evaluate.features import extract
from selfsight.evaluate.knn import knn_predict
from selfsight.run import replace_file
from selfsight.training import Pretrain

SIZE = 32
VIEW: dict[str, Any] = {"input_size": SIZE, "min_scale": 0.2, "gaussian_blur": 0.0, "normalize": None}
"""What lightly's transforms are told of small images; colours they leave alone where there are none."""
Loss = Callable[[list[Tensor], float], Tensor]
"""The loss of a batch's views, at a progress from 0 to 1."""


@dataclass(frozen=True)
class Arguments:
    """What to race."""

    data: tyro.conf.Positional[str]
    """Grey images with a train and a test part."""
    methods: tuple[str, ...] = ("byol", "vicreg", "moco_v2", "barlow_twins", "swav", "dino")
    """Which methods."""
    images: int = 20_000
    """Training images used."""
    epochs: int = 10
    """Passes over them."""
    batch_size: int = 256
    """Images a step, of both."""
    out: Path = Path("beside_lightly.jsonl")
    """Where the rows go."""


@dataclass(frozen=True)
class Recipe:
    """A method as lightly's example has it."""

    transform: Any
    modules: nn.Module
    """What is trained."""
    optimizer: torch.optim.Optimizer
    loss: Loss
    followers: nn.Module = field(default_factory=nn.Module)
    """What moves besides: slow copies, a queue, a centre."""
    after: Callable[[], None] = lambda: None
    """What follows an optimizer step's gradients, before it."""


def byol(backbone: Backbone, batch_size: int) -> Recipe:
    head, predictor = BYOLProjectionHead(backbone.dim, 1024, 256), BYOLPredictionHead(256, 1024, 256)
    slow, slow_head = frozen_copy(backbone), frozen_copy(head)
    criterion = NegativeCosineSimilarity()

    def loss(views: list[Tensor], progress: float) -> Tensor:
        momentum = cosine_schedule(round(10_000 * progress), 10_000, 0.996, 1)
        update_momentum(backbone, slow, momentum)
        update_momentum(head, slow_head, momentum)
        p = [predictor(head(backbone(view))) for view in views]
        with torch.no_grad():
            z = [slow_head(slow(view)) for view in views]
        value: Tensor = 0.5 * (criterion(p[0], z[1]) + criterion(p[1], z[0]))
        return value

    modules = nn.ModuleList([backbone, head, predictor])
    transform = BYOLTransform(BYOLView1Transform(**VIEW), BYOLView2Transform(**VIEW))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Recipe(transform, modules, optimizer, loss, nn.ModuleList([slow, slow_head]))


def pair(backbone: Backbone, criterion: Any, transform: Any) -> Recipe:
    """Barlow Twins and VICReg: one head, one loss of two views."""
    head = BarlowTwinsProjectionHead(backbone.dim, 2048, 2048)
    modules = nn.Sequential(backbone, head)

    def loss(views: list[Tensor], progress: float) -> Tensor:
        value: Tensor = criterion(modules(views[0]), modules(views[1]))
        return value

    return Recipe(transform, modules, torch.optim.SGD(modules.parameters(), lr=0.06), loss)


def barlow_twins(backbone: Backbone, batch_size: int) -> Recipe:
    transform = BYOLTransform(BYOLView1Transform(**VIEW), BYOLView2Transform(**VIEW))
    return pair(backbone, BarlowTwinsLoss(), transform)


def vicreg(backbone: Backbone, batch_size: int) -> Recipe:
    return pair(backbone, VICRegLoss(), VICRegTransform(**VIEW))


def moco_v2(backbone: Backbone, batch_size: int) -> Recipe:
    head = MoCoProjectionHead(backbone.dim, 512, 128)
    slow, slow_head = frozen_copy(backbone), frozen_copy(head)
    criterion = NTXentLoss(memory_bank_size=(4096, 128))

    def loss(views: list[Tensor], progress: float) -> Tensor:
        momentum = cosine_schedule(round(10_000 * progress), 10_000, 0.996, 1)
        update_momentum(backbone, slow, momentum)
        update_momentum(head, slow_head, momentum)
        query = head(backbone(views[0]))
        with torch.no_grad():
            key = slow_head(slow(views[1]))
        value: Tensor = criterion(query, key)
        return value

    modules = nn.ModuleList([backbone, head])
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Recipe(MoCoV2Transform(**VIEW), modules, optimizer, loss, nn.ModuleList([slow, slow_head, criterion]))


def swav(backbone: Backbone, batch_size: int) -> Recipe:
    head, prototypes = SwaVProjectionHead(backbone.dim, 512, 128), SwaVPrototypes(128, 512)
    criterion = SwaVLoss()

    def loss(views: list[Tensor], progress: float) -> Tensor:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(head(backbone(view)), dim=1)) for view in views]
        value: Tensor = criterion(scores[:2], scores[2:])
        return value

    transform = SwaVTransform(crop_sizes=(SIZE, SIZE // 2), gaussian_blur=0.0, normalize=None)
    modules = nn.ModuleList([backbone, head, prototypes])
    return Recipe(transform, modules, torch.optim.Adam(modules.parameters(), lr=0.001), loss)


def dino(backbone: Backbone, batch_size: int) -> Recipe:
    head = DINOProjectionHead(backbone.dim, 512, 64, 2048, freeze_last_layer=1)
    slow = frozen_copy(backbone)
    slow_head = DINOProjectionHead(backbone.dim, 512, 64, 2048)
    deactivate_requires_grad(slow_head)
    criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)
    at = 0

    def loss(views: list[Tensor], progress: float) -> Tensor:
        nonlocal at
        at = int(10 * progress)
        momentum = cosine_schedule(round(10_000 * progress), 10_000, 0.996, 1)
        update_momentum(backbone, slow, momentum)
        update_momentum(head, slow_head, momentum)
        with torch.no_grad():
            teacher = [slow_head(slow(view)) for view in views[:2]]
        value: Tensor = criterion(teacher, [head(backbone(view)) for view in views], epoch=at)
        return value

    transform = DINOTransform(
        global_crop_size=SIZE, local_crop_size=SIZE // 2, gaussian_blur=(0.0, 0.0, 0.0), normalize=None
    )
    modules = nn.ModuleList([backbone, head])
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.001)
    followers = nn.ModuleList([slow, slow_head, criterion])
    return Recipe(
        transform, modules, optimizer, loss, followers, lambda: head.cancel_last_layer_gradients(current_epoch=at)
    )


RECIPES = {f.__name__: f for f in (byol, barlow_twins, vicreg, moco_v2, swav, dino)}


def frozen_copy(module: Any) -> Any:
    copied = copy.deepcopy(module)
    deactivate_requires_grad(copied)
    return copied


def fresh(images: ImageSet) -> Backbone:
    torch.manual_seed(0)
    return backbones.create(backbones.plan("resnet10t", SIZE, images.channels, (0.29,), (0.35,)))


def checkpoint(name: str, asked: Arguments) -> Path:
    """Return where lightly's side is kept until its row is written."""
    return asked.out.with_suffix(f".{name}-{asked.images}-{asked.epochs}-{asked.batch_size}.pt")


def train_theirs(name: str, images: ImageSet, asked: Arguments, device: torch.device) -> tuple[Backbone, float]:
    """Train as lightly's example does, from the last whole epoch on; return the backbone and the seconds."""
    backbone = fresh(images).to(device)
    recipe = RECIPES[name](backbone, asked.batch_size)
    moving: list[Any] = [recipe.modules.to(device), recipe.followers.to(device), recipe.optimizer]
    loader = DataLoader(
        PilImages(images, recipe.transform), asked.batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    kept = checkpoint(name, asked)
    first, seconds = 0, 0.0
    if kept.exists():
        saved = torch.load(kept, map_location=device, weights_only=True)
        for part, state in zip(moving, saved["states"], strict=True):
            part.load_state_dict(state)
        for buffer_name, buffer in recipe.followers.named_buffers():
            buffer.copy_(saved["buffers"][buffer_name])
        first, seconds = saved["epochs"], saved["seconds"]
    for epoch in range(first, asked.epochs):
        torch.manual_seed(epoch)
        start = time.monotonic()
        for index, (views, _) in enumerate(loader):
            progress = (epoch + index / len(loader)) / asked.epochs
            loss = recipe.loss([view.to(device) for view in views], progress)
            recipe.optimizer.zero_grad()
            loss.backward()
            recipe.after()
            recipe.optimizer.step()
        seconds += time.monotonic() - start
        state = {
            "epochs": epoch + 1,
            "seconds": seconds,
            "states": [part.state_dict() for part in moving],
            "buffers": dict(recipe.followers.named_buffers()),  # lightly's queue is no part of its state
        }
        replace_file(kept, partial(torch.save, state))
    return backbone, seconds


def train_ours(name: str, images: ImageSet, asked: Arguments) -> tuple[Backbone, float]:
    """Train with selfsight's defaults; return the backbone and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        config = Pretrain(
            out=Path(folder) / "run", epochs=asked.epochs, batch_size=asked.batch_size, backbone="resnet10t"
        )
        run = api.pretrain(images, name, config=config)
        return run.backbone(), float(run.folder.config()["measured"]["seconds"])


def main(asked: Arguments) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = open_images(asked.data, image_size=28)
    labels = whole.require_labels()
    rows = np.sort(np.random.default_rng(0).permutation(whole.rows("train"))[: asked.images])
    chosen = np.full(len(whole), "rest", dtype="<U5")
    chosen[rows] = "train"
    images = replace(whole, split=chosen)
    rows_before = asked.out.read_text().splitlines() if asked.out.exists() else []
    done = [(row["method"], row["side"]) for row in map(json.loads, rows_before)]
    machine = {"device": str(device), "cpu": torch.backends.cpu.get_cpu_capability()}
    for name, side in itertools.product(asked.methods, ("selfsight", "lightly")):
        if (name, side) in done:
            continue
        ours = side == "selfsight"
        backbone, seconds = train_ours(name, images, asked) if ours else train_theirs(name, images, asked, device)
        backbone = backbone.to(device).eval()
        train, test = (extract(backbone, whole, part, device=device) for part in (rows, whole.rows("test")))
        found = knn_predict(train, labels[rows], test, len(whole.classes))
        accuracy = float((found == labels[whole.rows("test")]).mean())
        measured = {"knn": round(100 * accuracy, 2), "seconds": round(seconds, 1)}
        row = {"method": name, "side": side, "images": len(rows), "epochs": asked.epochs, **machine, **measured}
        with asked.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        checkpoint(name, asked).unlink(missing_ok=True)
        print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
