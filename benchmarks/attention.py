"""How much faster does a ViT train on this CPU with plain attention than with torch's fused kernel?

    python benchmarks/attention.py

`vit_tiny_patch16_224` in bfloat16 where that is fast, else float32; each case fused and plain in turn, three times;
prints the median seconds of a forward and backward pass, and their ratio.
"""

import statistics
import time
from contextlib import nullcontext

import torch

from selfsight import backbones
from selfsight.nn import autocast

CASES = ((32, 256), (224, 16))
"""Side of the images in pixels, images a batch."""
CPU = torch.device("cpu")


def main() -> None:
    for size, batch in CASES:
        torch.manual_seed(0)
        backbone = backbones.create(backbones.plan("vit_tiny_patch16_224", size, 3, (0.5,) * 3, (0.25,) * 3)).train()
        x = torch.rand(batch, 3, size, size)
        seconds: dict[str, list[float]] = {"fused": [], "plain": []}
        for turn in range(4):
            for kind, taken in seconds.items():
                with backbones.plain_attention(backbone, CPU) if kind == "plain" else nullcontext():
                    start = time.perf_counter()
                    with autocast(CPU):
                        loss = backbone(x).float().square().mean()
                    loss.backward()
                if turn:  # the first warms up
                    taken.append(time.perf_counter() - start)
        fused, plain = (statistics.median(taken) for taken in seconds.values())
        ratio = f"{fused / plain:.2f} times as fast"
        print(f"{size} pixels, {batch} images: fused {fused:.2f} s, plain {plain:.2f} s, {ratio}")


if __name__ == "__main__":
    main()
