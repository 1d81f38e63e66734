"""How long a training step takes on the device that is here, a GPU if there is one, and of it a large view.

    python -m benchmarks.steps
    python -m benchmarks.steps --methods simclr dino --backbone resnet50 --size 224 --stored 256 --channels 3

On made-up images that are on the device already: neither reading nor decoding is in it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro

from selfsight import backbones, methods, optim
from selfsight.data.augment import View
from selfsight.data.images import Batch
from selfsight.memory import tune_allocator
from selfsight.methods import Facts
from selfsight.nn import autocast


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    methods: tuple[str, ...] = ("simclr",)
    """Any methods that make views of images."""
    backbone: str = "resnet18"
    """timm's name."""
    size: int = 32
    """Side of a view in pixels."""
    stored: int = 28
    """Side of the images that views are made of."""
    channels: int = 1
    """1 or 3."""
    batch_sizes: tuple[int, ...] = (256, 1024)
    """Images a step."""
    steps: int = 20
    """How often each is timed."""


def milliseconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Return how long a piece of work takes, after three times to warm up."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / times


def images(count: int, arguments: Arguments, device: torch.device) -> Batch:
    """Return smooth random images."""
    coarse = torch.rand(count, arguments.channels, 6, 6, device=device)
    pixels = F.interpolate(coarse, size=(arguments.stored, arguments.stored), mode="bilinear").mul(255).byte()
    return Batch(pixels, torch.ones(count), torch.arange(count, device=device), torch.arange(count, device=device) % 10)


def measure(name: str, batch_size: int, arguments: Arguments, device: torch.device) -> str:
    """Return a line of the table."""
    torch.manual_seed(0)
    kind, channels = methods.get(name), arguments.channels
    by_mean = kind.mean_tokens and backbones.is_vit(arguments.backbone)
    colours = (0.5,) * channels, (0.25,) * channels
    spec = backbones.plan(arguments.backbone, arguments.size, channels, *colours, mean_tokens=by_mean)
    facts = Facts(60_000, arguments.size, channels)
    method = kind(backbones.create(spec), kind.Config().fit_to(facts)).to(device)
    optimizer = optim.build(method, kind.optim)
    optim.set_rate(optimizer.param_groups, 1e-4)
    batch = images(batch_size, arguments, device)

    def step() -> None:
        with autocast(device):
            loss = method(batch, 0.5)["loss"]
        float(loss.detach())  # as a training does, to stop where it isn't finite
        optimizer.zero_grad()
        loss.backward()
        if kind.optim.clip:
            torch.nn.utils.clip_grad_norm_(method.parameters(), kind.optim.clip)
        optimizer.step()
        method.after_step(0.5)

    parts = (part for value in vars(method).values() for part in (value if isinstance(value, tuple) else (value,)))
    large = max((part for part in parts if isinstance(part, View)), key=lambda view: view.size)
    with backbones.quick_on_cpu(method, device):
        whole = milliseconds(step, arguments.steps, device)
    view = milliseconds(lambda: large(batch), arguments.steps, device)
    speed = 1000 * batch_size / whole
    return f"| `{name}` | {batch_size:,} | {view:.1f} | {whole:.0f} | {speed:,.0f} |"


def main(arguments: Arguments) -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tune_allocator()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {arguments.backbone}, {arguments.size} pixels of {arguments.stored}")
    print("| method | images a step | a view, ms | a step, ms | images/s |\n|---|---|---|---|---|")
    for name in arguments.methods:
        for batch_size in arguments.batch_sizes:
            print(measure(name, batch_size, arguments, device), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
