"""Four small pictures of two rectangles each, and a short training on them."""

from collections.abc import Callable

import torch
from torch import Tensor

from selfsight import backbones, optim
from selfsight.tasks.model import TaskModel

SIDE = 64


def backbone(name: str, size: int = SIDE, channels: int = 3) -> backbones.Backbone:
    """A fresh backbone for images of `size` pixels, always of the same weights."""
    torch.manual_seed(0)
    return backbones.create(backbones.plan(name, size, channels, (0.5,) * channels, (0.25,) * channels))


def rectangles(n: int, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Grey noise (n, channels, SIDE, SIDE) with two rectangles each, their boxes (n, 2, 4) and masks (n, SIDE, SIDE).

    The first, on the left, is bright in the first channel and 1 in the mask, the second in the last channel and 2.
    """
    generator = torch.Generator().manual_seed(1)
    images = 0.4 + 0.1 * torch.rand(n, channels, SIDE, SIDE, generator=generator)
    boxes = torch.zeros(n, 2, 4)
    masks = torch.zeros(n, SIDE, SIDE, dtype=torch.int64)
    for i in range(n):
        for which in range(2):
            width, height = torch.randint(SIDE // 4, SIDE // 2, (2,), generator=generator).tolist()
            left = which * SIDE // 2 + int(torch.randint(SIDE // 2 - width + 1, (1,), generator=generator))
            top = int(torch.randint(SIDE - height + 1, (1,), generator=generator))
            rows, columns = slice(top, top + height), slice(left, left + width)
            images[i, :, rows, columns] = 0
            images[i, -which, rows, columns] = 1
            masks[i, rows, columns] = which + 1
            boxes[i, which] = torch.tensor([left, top, left + width, top + height])
    return images, boxes, masks


def learn(model: TaskModel, loss: Callable[[], Tensor], steps: int) -> None:
    """Train backbone and head on this loss."""
    config = optim.Optim("adamw", lr=3e-3)
    optimizers = [optim.build(part, config) for part in (model.train().backbone, model.head)]
    for step in range(steps):
        for optimizer in optimizers:
            optim.set_rate(optimizer.param_groups, optim.rate(config, (step + 1) / steps, 256))
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()
