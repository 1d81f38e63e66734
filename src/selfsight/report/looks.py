"""What a backbone looks at: a ViT's attention, and the main directions of any network's feature map as colours.

Attention of the class token: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
Principal components as colours: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data import ImageSet, in_order
from selfsight.data.augment import whole
from selfsight.errors import SelfsightError
from selfsight.evaluate.features import evaluating
from selfsight.pictures import heat, in_colour

MOST_HEADS = 6
FINE = 7
"""Positions a side of a map that is worth looking at: as many as a ResNet's last of 224 pixels has."""


def draw_looks(backbone: Backbone, images: ImageSet, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """Return what the backbone looks at in these rows, up to ten: by caption, images (rows, B, 3, S, S) in [0, 1]."""
    device = backbone.mean.device
    with evaluating(backbone):
        (batch,) = in_order(images, rows, len(rows), device)
        x = whole(batch, backbone.spec.image_size)
        weights, colours = attention(backbone, x), components(backbone, x)
    shown, size = in_colour(x), x.shape[-2:]
    pictures = {}
    if weights is not None:
        heads = weights.shape[1]
        maps = torch.cat([weights.mean(1, keepdim=True), weights[:, :MOST_HEADS]], 1).cpu()  # (B, 1 + heads, h, w)
        # Registers and single patches that draw all attention would leave the rest of the image black.
        most = maps.flatten(2).quantile(0.98, dim=2).clamp(min=1e-12)[:, :, None, None]
        maps = F.interpolate((maps / most).clamp(0, 1), size, mode="bilinear").transpose(0, 1)
        which = f"{min(heads, MOST_HEADS)} of {heads} heads" if heads > MOST_HEADS else f"the {heads} heads"
        caption = (
            f"Where the last layer attends: the image, the mean of all heads, and {which}; bright is much, each map "
            "scaled by itself"
        )
        pictures[caption] = torch.cat([shown[None], over(maps, shown)])
    colours = F.interpolate(colours, size, mode="bicubic").clamp(0, 1)
    caption = (
        "What the feature map tells apart: the image, the first three principal components of all these images' "
        "features as red, green and blue, and both; one colour is like features, in other images too"
    )
    pictures[caption] = torch.stack([shown, colours, 0.45 * grey(shown) + 0.55 * colours])
    return pictures


def attention(backbone: Backbone, x: Tensor) -> Tensor | None:
    """Return how much each head of the last layer attends to each patch of x (B, C, S, S): (B, heads, h, w).

    From the class token if the features are its, else the mean over all patches. Shares of an attention that sums to 1
    with that to class and register tokens. None for a network without such a layer.
    """
    weights = attention_weights(backbone, x)
    prefix = int(getattr(backbone.model, "num_prefix_tokens", 0))
    side = round((weights.shape[-1] - prefix) ** 0.5) if weights is not None else 0
    if weights is None or prefix + side * side != weights.shape[-1]:
        return None
    by_token = getattr(backbone.model, "global_pool", "") == "token" and not backbone.spec.mean_tokens
    token = prefix > 0 and by_token
    rows = weights[:, :, 0] if token else weights[:, :, prefix:].mean(2)  # (B, heads, prefix + h·w)
    return rows[:, :, prefix:].reshape(*rows.shape[:2], side, side)


def attention_weights(backbone: Backbone, x: Tensor) -> Tensor | None:
    """Return the last layer's attention (B, heads, N, N) of queries (rows, which sum to 1) to keys, N tokens.

    These are the layer's own numbers, caught where timm drops some of them in training; so query and key norms, rotary
    and relative positions are in them. None for a network without a layer of global self-attention at its end.
    """
    blocks = getattr(backbone.model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return None
    layers: list[Any] = [m for m in blocks[-1].modules() if hasattr(m, "attn_drop") and hasattr(m, "fused_attn")]
    if not layers:
        return None
    caught: list[Tensor] = []
    hook = layers[-1].attn_drop.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    fused = layers[-1].fused_attn
    try:
        layers[-1].fused_attn = False  # a fused kernel never holds the weights
        backbone(x)
    finally:
        layers[-1].fused_attn = fused
        hook.remove()
    square = len(caught) == 1 and caught[0].dim() == 4 and caught[0].shape[-1] == caught[0].shape[-2]
    return caught[0] if square and len(caught[0]) == len(x) else None


def components(backbone: Backbone, x: Tensor) -> Tensor:
    """Return the first three principal components of the feature map of x (B, C, S, S) as colours (B, 3, h, w).

    Of `fine_map`, those of all positions of the batch together, each scaled from its 2nd to its 98th percentile to
    [0, 1]; a component that there is not, as in a map of a single position, is 0.5.
    """
    maps = fine_map(backbone, x).float().cpu()  # (B, D, h, w)
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2).numpy()  # (B·h·w, D)
    count = min(3, flat.shape[1], len(flat) - 1)
    colours = np.full((len(flat), 3), 0.5, np.float32)
    if count:
        with np.errstate(all="ignore"):  # scikit-learn divides by the variance, which a collapsed network hasn't
            found = PCA(count, random_state=0).fit_transform(flat)
        low, high = np.percentile(found, (2, 98), axis=0)
        colours[:, :count] = ((found - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return torch.from_numpy(colours).view(len(x), *maps.shape[2:], 3).permute(0, 3, 1, 2)


def fine_map(backbone: Backbone, x: Tensor) -> Tensor:
    """Return the last feature map (B, D, h, w) of x (B, C, S, S), or the last with FINE positions a side.

    A ResNet's last map of 64 pixels is 2 x 2: nothing to look at.
    """
    last = backbone.maps(x)
    if min(last.shape[2:]) >= FINE or not backbone.hierarchical:
        return last
    try:
        maps = [level for level in backbone.pyramid(x) if min(level.shape[2:]) >= FINE]
    except SelfsightError:  # it has none, or not of this size
        return last
    return maps[-1] if maps else last


def over(maps: Tensor, images: Tensor) -> Tensor:
    """Lay maps (M, B, S, S) from 0 to 1 as heat over images (B, 3, S, S): (M, B, 3, S, S)."""
    strength = 0.35 + 0.45 * maps[:, :, None]
    return strength * heat(maps, "inferno") + (1 - strength) * grey(images)


def grey(images: Tensor) -> Tensor:
    """Return the lightness of images (B, 3, S, S), three times over."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(-3, keepdim=True).expand_as(images)
