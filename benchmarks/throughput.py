"""Speed of a step: selfsight's SimCLR beside lightly's documented pipeline, and any method beside its own ceiling.

    python benchmarks/throughput.py --photos DATA/photos --fashion DATA/fashion
    python benchmarks/throughput.py --photos DATA/photos --method dino --batch-size 64

Same backbone, batch, views and optimizer (AdamW); each contestant lives in a process of its own, and they take turns,
so that a busy machine slows all alike. lightly runs as its documentation shows it: its SimCLRTransform on PIL images,
a DataLoader with two workers, float32, torch's default memory format; and once more tuned by hand to what selfsight
does by default: channels_last, and bf16 autocast where the processor is faster with it. selfsight tunes the allocator
of its process, and computes some layers in its own way on a CPU (`selfsight.cpu`), as its training does; lightly's
are left as they are. The ceiling is selfsight's step on ready-made
tensors: no loading, no views. Methods other than SimCLR have no contestant but their ceiling.
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfsight import backbones, methods, optim
from selfsight.data import ImageSet, Loader, open_images
from selfsight.data.augment import View
from selfsight.data.images import Batch
from selfsight.memory import tune_allocator
from selfsight.methods import Facts, Method
from selfsight.nn import autocast

OPTIM = optim.Optim("adamw", lr=1e-3, weight_decay=0.01)
Step = Callable[[], None]
Turn = Callable[[], Step]
"""Begins a turn and returns its step; loader workers of a turn end with it, and don't slow the next contestant."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    photos: Path | None = None
    """Folder of JPEG photos, measured at 96 pixels."""
    fashion: Path | None = None
    """Folder of Fashion-MNIST's IDX files, measured at 28 pixels."""
    method: str = "simclr"
    """Another one, dino for example, is measured beside its ceiling only."""
    backbone: str = "resnet10t"
    """timm's name."""
    batch_size: int = 256
    """Images a step."""
    blocks: int = 4
    """How often the contestants take turns."""
    seconds: float = 15.0
    """Shortest length of a turn."""


def build(images: ImageSet, size: int, arguments: Arguments, device: torch.device) -> tuple[Method, Any]:
    """Return a fresh method and its optimizer."""
    torch.manual_seed(0)
    channels = images.channels
    spec = backbones.plan(arguments.backbone, size, channels, (0.5,) * channels, (0.25,) * channels)
    kind = methods.get(arguments.method)
    method = kind(backbones.create(spec), kind.Config().fit_to(Facts(len(images), size, channels))).to(device)
    optimizer = optim.build(method, OPTIM)
    optim.set_rate(optimizer.param_groups, 1e-3)
    return method, optimizer


def ours(images: ImageSet, size: int, arguments: Arguments, device: torch.device, ready_made: bool) -> Turn:
    """Return selfsight's step."""
    method, optimizer = build(images, size, arguments, device)
    loader = Loader(images, images.rows("train"), arguments.batch_size, device)
    batches = loader.stream()
    batch = next(batches)
    if ready_made:
        fix_views(method, batch)

    def step() -> None:
        nonlocal batch
        if not ready_made:
            batch = next(batches)
        with backbones.quick_on_cpu(method, device), autocast(device):
            loss = method(batch, 0.5)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(0.5)

    return lambda: step


def fix_views(method: Method, batch: Batch) -> None:
    """Let each view that the method draws be the one drawn now of `batch`."""

    def fixed(view: View) -> Callable[[Batch], Tensor]:
        ready = view(batch)
        return lambda _: ready

    for name, value in list(vars(method).items()):
        if isinstance(value, View):
            setattr(method, name, fixed(value))
        elif isinstance(value, tuple) and all(isinstance(view, View) for view in value):
            setattr(method, name, tuple(fixed(view) for view in value))


class PilImages(Dataset[tuple[Any, int]]):
    """An array as a torchvision-like data set, which transforms PIL images."""

    def __init__(self, images: ImageSet, transform: SimCLRTransform) -> None:
        self.pixels, self.transform = images.images[images.rows("train")], transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[i, 0])), 0


def lightlys(
    images: ImageSet, folder: Path | None, size: int, arguments: Arguments, device: torch.device, tuned: bool
) -> Turn:
    """Return lightly's documented SimCLR."""
    small = size < 64
    transform = SimCLRTransform(
        input_size=size,
        cj_strength=0.5 if small else 1.0,
        gaussian_blur=0.0 if small else 0.5,
        min_scale=0.2 if small else 0.08,
        normalize=None,
    )
    if folder is None:
        dataset: Dataset[Any] = PilImages(images, transform)
    else:
        dataset = LightlyDataset(str(folder), transform=transform)
    loader = DataLoader(dataset, arguments.batch_size, shuffle=True, drop_last=True, num_workers=2)
    method, _ = build(images, size, arguments, device)
    layout = torch.channels_last if tuned else torch.contiguous_format
    net = torch.nn.Sequential(method.backbone.model, SimCLRProjectionHead(method.backbone.dim, 512, 128))
    net.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = optim.build(net, OPTIM)
    criterion = NTXentLoss(temperature=0.2)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            for views, *_ in loader:
                yield views

    def begin() -> Step:
        batches = endless()

        def step() -> None:
            a, b = (v.to(device, memory_format=layout) for v in next(batches))
            with autocast(device) if tuned else nullcontext():
                loss = criterion(net(a), net(b))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    return begin


def turn(begin: Turn, seconds: float, batch_size: int, device: torch.device) -> float:
    """Run steps for a while; return images a second, after the first step, which starts the workers."""
    step = begin()
    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or steps < 3:
        step()
        steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - start)


CONTESTANTS = ("selfsight", "ceiling", "lightly", "lightly, tuned")


def contestant(name: str, data: Path, cache: Path | None, size: int, arguments: Arguments, pipe: Any) -> None:
    """Run in a process of its own: a turn for each message, answered by its images a second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = open_images(data, image_size=size, cache_dir=cache)
    if name in ("selfsight", "ceiling"):
        tune_allocator()
        begin = ours(images, size, arguments, device, ready_made=name == "ceiling")
    else:
        begin = lightlys(images, data if images.files else None, size, arguments, device, tuned="tuned" in name)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(turn(begin, arguments.seconds, arguments.batch_size, device))


def measure(title: str, data: Path, cache: Path | None, size: int, arguments: Arguments) -> None:
    """Let the contestants take turns and print the table."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    contestants = CONTESTANTS if arguments.method == "simclr" else CONTESTANTS[:2]
    for name in contestants:
        here, there = spawn.Pipe()
        spawn.Process(target=contestant, args=(name, data, cache, size, arguments, there), daemon=False).start()
        here.recv()  # one after the other: starting up must not disturb
        pipes[name] = here
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.blocks):
        for name, pipe in pipes.items():
            pipe.send(True)
            speeds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    print(f"\n{arguments.method}, {title}, {size} pixels, {arguments.backbone}, batch {arguments.batch_size}")
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(speeds["selfsight"], values, strict=True)]
        print(
            f"  {name:18} {statistics.median(values):9,.0f} images/s   selfsight is {statistics.median(ratios):5.2f}× "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main(arguments: Arguments) -> None:
    """Measure what was asked for."""
    if arguments.photos is not None:
        cache = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        photos = open_images(arguments.photos, image_size=96, cache_dir=cache)
        seconds = time.perf_counter() - start
        print(f"cache of {len(photos):,} photos: {len(photos) / seconds:,.0f} photos/s")
        measure("JPEG photos", arguments.photos, cache, 96, arguments)
        shutil.rmtree(cache)
    if arguments.fashion is not None:
        measure("Fashion-MNIST", arguments.fashion, None, 28, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
