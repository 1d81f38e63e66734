"""How much faster do networks train on this CPU with selfsight's ways of computing (`selfsight.cpu`) than with torch's?

    python benchmarks/kernels.py [--precision float32]

In bfloat16 where that is fast, else in float32; each network with torch's kernels and with ours in turn, three times;
prints the median seconds of a forward and backward pass, and their ratio. ONEDNN_MAX_CPU_ISA=AVX2 has oneDNN, which
computes torch's convolutions, do as on an older processor.
"""

import argparse
import statistics
import time
from contextlib import nullcontext

import torch

from selfsight import backbones
from selfsight.nn import autocast

CASES = (
    ("resnet10t", 32, 256),
    ("resnet10t", 32, 8),
    ("resnet10t", 64, 128),
    ("resnet10t", 96, 128),
    ("resnet10t", 256, 8),
    ("resnet18", 32, 256),
    ("tf_efficientnet_lite0", 128, 32),
    ("mobilenetv3_small_100", 96, 64),
    ("convnext_atto", 96, 64),
    ("vit_tiny_patch16_224", 32, 256),
    ("vit_tiny_patch16_224", 224, 16),
)
"""Backbone, side of the images in pixels, images a batch."""
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("float32",), help="by default bfloat16 where that is fast")
    narrow = parser.parse_args().precision is None
    for name, size, batch in CASES:
        torch.manual_seed(0)
        backbone = backbones.create(backbones.plan(name, size, 3, (0.5,) * 3, (0.25,) * 3)).train()
        x = torch.rand(batch, 3, size, size)
        seconds: dict[str, list[float]] = {"torch's": [], "ours": []}
        for turn in range(4):
            for kind, taken in seconds.items():
                with backbones.quick_on_cpu(backbone, CPU) if kind == "ours" else nullcontext():
                    start = time.perf_counter()
                    with autocast(CPU) if narrow else nullcontext():
                        loss = backbone(x).float().square().mean()
                    loss.backward()
                if turn:  # the first warms up
                    taken.append(time.perf_counter() - start)
        theirs, ours = (statistics.median(taken) for taken in seconds.values())
        print(f"{name}, {size} pixels, {batch} images: {theirs:.3f} s, {ours:.3f} s, {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
