"""A plain ViT's forward pass, written out, and its patches: what methods that hide patches are checked against."""

from typing import Any

import torch
from torch import Tensor


def patch(image: Tensor, place: int, grid: int) -> Tensor:
    """Return the pixels (C, P, P) of the patch at a place, counted by rows, of an image (C, S, S)."""
    side = image.shape[1] // grid
    row, column = divmod(place, grid)
    return image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]


def slow_start(
    backbone: Any, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None, kept: Tensor | None = None
) -> Tensor:
    """Return the class token and the patches' tokens (B, 1 + N, D), with their places, as the first block gets them."""
    vit = backbone.model
    weight = vit.patch_embed.proj.weight.flatten(1)  # (D, C · P · P)
    grid = x.shape[-1] // vit.patch_embed.patch_size[0]
    images = []
    for i in range(len(x)):
        own = []
        for place in range(grid * grid):
            if hidden is not None and bool(hidden[i, place]):
                assert token is not None
                own.append(token)
            else:
                pixels = (patch(x[i], place, grid) - backbone.mean[0]) / backbone.std[0]
                own.append(weight @ pixels.flatten() + vit.patch_embed.proj.bias)
        placed = torch.stack(own) + vit.pos_embed[0, 1:]
        images.append(torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], placed if kept is None else placed[kept]]))
    return torch.stack(images)


def slow_layers(backbone: Any, x: Tensor, **what: Any) -> list[Tensor]:
    """Return the tokens (B, 1 + N, D) behind each block."""
    y, found = slow_start(backbone, x, **what), []
    for block in backbone.model.blocks:
        y = block(y)
        found.append(y)
    return found


def slow_tokens(
    backbone: Any, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None, kept: Tensor | None = None
) -> Tensor:
    """Return the last tokens (B, 1 + N, D), behind the final norm."""
    tokens: Tensor = backbone.model.norm(slow_layers(backbone, x, hidden=hidden, token=token, kept=kept)[-1])
    return tokens
