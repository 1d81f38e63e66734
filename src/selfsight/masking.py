"""What methods share that hide patches from a ViT: which patches are hidden, and the tokens of a ViT that misses them.

Patches are numbered by rows, from the upper left. All random numbers are drawn for the batch of all processes, of which
each takes its part, as views are (data/augment.py).
"""

import math

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from selfsight.backbones import Backbone
from selfsight.data.augment import uniform
from selfsight.errors import SelfsightError


def the_vit(backbone: Backbone) -> VisionTransformer:
    """Return the ViT of a backbone; raises SelfsightError where it is another network, which has no tokens to hide."""
    vit = backbone.model
    if not isinstance(vit, VisionTransformer):
        raise SelfsightError(
            f"--backbone {backbone.spec.name}: this method hides patches from a ViT; "
            "use one, such as vit_tiny_patch16_224"
        )
    return vit


def grid_of(backbone: Backbone) -> int:
    """Return how many patches stand side by side in the square view of a ViT."""
    patch = the_vit(backbone).patch_embed.patch_size[0]
    return backbone.spec.image_size // int(patch)


def encode(
    backbone: Backbone,
    x: Tensor,
    *,
    hidden: Tensor | None = None,
    token: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Return the last tokens (B, prefix + N, D), behind the final norm, of images x (B, C, S, S) in [0, 1].

    Where `hidden` (B, N) is true `token` (D,) stands in the place of the patch. With `kept` (B, K) the ViT gets only
    these patches, each at its place, and K of them come out.
    """
    vit = the_vit(backbone)
    y = embed(backbone, x, hidden, token)
    if kept is not None:
        prefix = vit.num_prefix_tokens
        y = torch.cat([y[:, :prefix], take(y[:, prefix:], kept)], 1)
    tokens: Tensor = vit.norm(vit.blocks(vit.norm_pre(y)))
    return tokens


def embed(backbone: Backbone, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None) -> Tensor:
    """Return what the first block of a ViT gets: patches, `token` instead of the `hidden` ones, with their places."""
    vit = the_vit(backbone)
    y: Tensor = vit.patch_embed(backbone.normalize(x))  # (B, h, w, D), or (B, N, D) where the size is fixed
    if hidden is not None:
        assert token is not None
        y = torch.where(hidden.view(*y.shape[:-1], 1), token.to(y.dtype), y)
    placed: Tensor = vit._pos_embed(y)
    return placed


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (B, K, D) at these places (B, K) among tokens (B, N, D)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


def patchify(x: Tensor, grid: int) -> Tensor:
    """Return the pixels of each patch (B, N, C · P · P) of images x (B, C, S, S), N = grid · grid."""
    return F.unfold(x, x.shape[-1] // grid, stride=x.shape[-1] // grid).transpose(1, 2)


def unpatchify(patches: Tensor, size: int) -> Tensor:
    """Return images (B, C, size, size) of the pixels of their patches (B, N, C · P · P)."""
    side = size // round(patches.shape[1] ** 0.5)
    return F.fold(patches.transpose(1, 2), size, side, stride=side)


def without(x: Tensor, hidden: Tensor, grey: float = 0.5) -> Tensor:
    """Return images x (B, C, S, S) with the hidden patches (B, N) painted grey, for pictures."""
    grid = round(hidden.shape[1] ** 0.5)
    mask = F.interpolate(hidden.view(-1, 1, grid, grid).float(), x.shape[-2:])
    return x.lerp(torch.full_like(x, grey), mask)


def scattered(count: int, patches: int, ratio: float, device: torch.device) -> Tensor:
    """Return which patches (count, patches) of each image are hidden: the same number of each, anywhere."""
    return _first(uniform(count * patches, 0, 1).view(count, patches), torch.full((count, 1), ratio)).to(device)


def blocks(ratio: Tensor, grid: int, device: torch.device) -> Tensor:
    """Return which patches (B, grid²) are hidden: the share `ratio` (B,) of each image, in a few blocks.

    Blocks of random shapes lie over each other until they cover that share; single patches are then added or taken
    away at random until it is exact (BEiT's algorithm 1 as DINOv2 uses it).
    """
    count, ratio = len(ratio), ratio[:, None]
    order = uniform(count * grid * grid, 0, 1).view(count, -1)
    hidden = torch.zeros(count, grid * grid, dtype=torch.bool)
    for _ in range(10):
        enough = hidden.float().mean(1, keepdim=True) >= ratio
        area = grid * grid * ratio[:, 0] * uniform(count, 0.3, 0.7)
        shape = uniform(count, math.log(0.3), -math.log(0.3)).exp()  # width / height
        hidden = hidden | (placed((area / shape).sqrt().round(), (area * shape).sqrt().round(), grid) & ~enough)
    return _first(order - hidden.float(), ratio).to(device)


def placed(height: Tensor, width: Tensor, grid: int) -> Tensor:
    """Return patches (B, grid²) within a rectangle of this height and width (B,), in patches, at a random place."""
    inside = []
    for length in (height, width):
        length = length.clamp(1, grid)
        start = (uniform(len(length), 0, 1) * (grid - length + 1)).floor()[:, None]
        at = torch.arange(grid)
        inside.append((at >= start) & (at < start + length[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None]).flatten(1)


def _first(order: Tensor, ratio: Tensor) -> Tensor:
    """Return True for the share `ratio` (B, 1) of each row of `order` (B, N) that is least."""
    rank: Tensor = order.argsort(1).argsort(1)
    return rank < (ratio * order.shape[1]).round()


def require_share(share: float, places: int) -> None:
    """Raise SelfsightError where `--mask` hides none or all of so many places."""
    if not 0 < round(share * places) < places:
        raise SelfsightError(f"--mask {share:g}: hides {round(share * places)} of {places} patches; some must be left")


def where(mask: Tensor) -> Tensor:
    """Return the places (B, K) that are true in a mask (B, N) with the same number K of them in each row, in order."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


class MaskedDecoder(nn.Module):
    """A light ViT that sees some tokens at their places, and says something of the places of the others.

    MAE's decoder (He et al. 2022, section 3) and I-JEPA's predictor (Assran et al. 2023, section 3): a mask token
    stands, with its place by fixed sines and cosines, for what is not seen.
    """

    place: Tensor

    def __init__(self, dim: int, width: int, depth: int, grid: int, out: int) -> None:
        """Take tokens of length `dim`, of patches on a grid, and return `out` numbers a place."""
        super().__init__()
        self.narrow = nn.Linear(dim, width)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        heads = max(1, width // 32)
        self.layers = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)), nn.LayerNorm(width))
        self.out = nn.Linear(width, out)
        self.register_buffer("place", build_sincos2d_pos_embed([grid, grid], width), persistent=False)

    def forward(self, tokens: Tensor, kept: Tensor, asked: Tensor) -> Tensor:
        """Return the answers (B, A, out) at the places `asked` (B, A), from tokens (B, K, dim) at `kept` (B, K)."""
        seen = self.narrow(tokens) + self.place[kept]
        unseen = self.token + self.place[asked]
        answers: Tensor = self.out(self.layers(torch.cat([seen, unseen], 1))[:, kept.shape[1] :])
        return answers
