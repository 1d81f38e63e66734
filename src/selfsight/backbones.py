"""Backbones: any timm model, with pooled features (B, D) and feature maps (B, D, h, w), at any image size."""

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import is_model_in_modules
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfsight import wide_resnet as wide_resnet  # makes itself known to timm
from selfsight.cpu import quick
from selfsight.errors import SelfsightError

SMALL = 64
"""Images of up to this many pixels a side get a small-image stem."""
TINY = 40
"""Those of more than this are halved twice by that stem, as by timm's: at 64 pixels it is three times as fast."""

VITS = ("vision_transformer", "deit", "eva")
"""timm's modules of plain ViTs, whose patches may be of any size; not so BEiT, LeViT, MaxViT and the like."""

MOST_PATCHES = 256
"""On a CPU all attention weights are held in memory for images of up to this many patches."""

CLASSIFIERS = ("fc.", "head.", "classifier.")
"""How timm's names of a classifier's weights begin, which a backbone is without."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """All that is needed to build a backbone again; saved in a run's config."""

    name: str
    """timm's name of the architecture."""
    image_size: int
    """Height and width of its input in pixels."""
    channels: int
    """1 grey, 3 colour, more for satellite bands."""
    mean: tuple[float, ...]
    """Mean of each channel in [0, 1], subtracted from the input."""
    std: tuple[float, ...]
    """Standard deviation of each channel, by which the input is divided."""
    small_stem: bool = False
    """For ResNets: a 3x3 first convolution and no max-pool; above TINY pixels a mean of 2x2 instead of it."""
    patch_size: int | None = None
    """For ViTs: side of a patch in pixels; None is the architecture's own."""
    stem: tuple[int, int] = (2, 1)
    """Stride and padding of a small stem's convolution; converted checkpoints have a stride of 1, and no pool."""
    mean_tokens: bool = False
    """For ViTs: features are the mean of the patches' tokens, whatever timm takes, which is mostly the class token."""
    heads: int | None = None
    """For ViTs: of attention, in each block; None is the architecture's own."""

    def stem_pool(self) -> nn.Module:
        """Return what a small stem has in the place of timm's max-pool."""
        return nn.Identity() if self.image_size <= TINY or self.stem[0] == 1 else nn.AvgPool2d(2)

    def timm_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of timm.create_model for this backbone."""
        arguments: dict[str, Any] = {"num_classes": 0, "in_chans": self.channels}
        if self.patch_size is not None:
            arguments |= {
                "img_size": self.image_size,
                "patch_size": self.patch_size,
                "dynamic_img_size": True,
            }
        if self.heads is not None:
            arguments["num_heads"] = self.heads
        if is_model_in_modules(self.name, ("swin_transformer", "swin_transformer_v2")):
            arguments["strict_img_size"] = False  # else it takes images of 224 pixels only
        return arguments


def plan(
    name: str,
    image_size: int,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pretrained: bool = False,
    patch_size: int | None = None,
    mean_tokens: bool = False,
    flag: str = "--backbone",
) -> BackboneSpec:
    """Choose stem and patch for this image size.

    ResNets get a small stem up to 64 pixels; a ViT's patch is made smaller until at least 6 x 6 patches cover the
    image, unless `patch_size` says its side. Pretrained weights keep the stem and patch that they were trained with.

    Raises SelfsightError, which names the `flag`, for a name that timm doesn't know; and for a patch size that does not
    divide the image's, or of a network that isn't a ViT.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0][:6]}*")[:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise SelfsightError(f"{flag} {name}: timm has no model of this name{hint}")
    if patch_size is not None and not is_vit(name):
        raise SelfsightError(f"--patch-size {patch_size}: {name} is not a ViT; leave it out, or name one with {flag}")
    if patch_size is not None and image_size % patch_size:
        raise SelfsightError(f"--patch-size {patch_size}: does not divide views of {image_size} pixels")
    if is_vit(name) and patch_size is None:
        patch_size = _patch_size(name, image_size, pretrained)
    small = is_model_in_modules(name, ("resnet",)) and image_size <= SMALL and not pretrained
    return BackboneSpec(name, image_size, channels, mean, std, small, patch_size, mean_tokens=mean_tokens)


def colours_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each of three channels in [0, 1] that timm's weights of this name were trained with.

    Not all have ImageNet's: many ViTs and what came from TensorFlow have 0.5, CLIP its own. A name without weights has
    ImageNet's.
    """
    known = timm.get_pretrained_cfg(name)
    return (tuple(known.mean), tuple(known.std)) if known else (IMAGENET_MEAN, IMAGENET_STD)


def is_vit(name: str) -> bool:
    """Whether timm's model of this name is a plain ViT."""
    found: bool = is_model_in_modules(name, VITS)
    return found


def own_patch(name: str) -> int:
    """Return the side of the patches by which a ViT's name calls it, 14 in vit_small_patch14_dinov2; else 16."""
    return next((int(p[5:]) for p in re.split("[_.]", name) if p.startswith("patch") and p[5:].isdigit()), 16)


def _patch_size(name: str, image_size: int, pretrained: bool) -> int:
    """Return the side of a ViT's patches that suits this image size."""
    own = own_patch(name)
    choices = [p for p in (own, 16, 14, 8, 7, 4, 2) if p <= own and image_size % p == 0]
    fine = [p for p in choices if pretrained or image_size // p >= 6]
    if not choices:
        raise SelfsightError(
            f"--image-size {image_size}: no patch size of {name} divides it; try {-(-image_size // 8) * 8}"
        )
    return fine[0] if fine else choices[-1]


class Backbone(nn.Module):
    """A timm model without its classifier, behind the input's normalization."""

    dim: int
    """Length of a feature vector."""
    map_dim: int
    """Channels of the last feature map: not `dim` where a layer behind the pooling widens it (MobileNet, VGG)."""
    reduction: int
    """How many times the last feature map is smaller than the image: the smallest side that it can take."""
    hierarchical: bool
    """Whether its maps shrink from stage to stage, as a CNN's or a Swin's do; a ViT's stay as they begin."""
    pyramid_channels: list[int]
    """Channels of each map of `pyramid`."""
    pyramid_strides: list[int]
    """How many times each map of `pyramid` is smaller than the image."""
    mean: Tensor
    std: Tensor

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        model: Any = timm.create_model(spec.name, **spec.timm_arguments())
        stages: list[dict[str, Any]] = list(getattr(model, "feature_info", None) or [])
        strides = [int(stage["reduction"]) for stage in stages]
        if spec.small_stem:
            use_small_stem(model, spec.stem_pool(), *spec.stem)
            if isinstance(model.maxpool, nn.Identity):  # timm's first map stands before the pool that is gone
                strides[1:] = [stride // 2 for stride in strides[1:]]
            if spec.stem[0] == 1:
                strides = [stride // 2 for stride in strides]
        reduction = max([1, *strides[-1:]])  # timm doesn't know that of all: 0
        # Not only of no use: oneDNN leaves weight gradients of a strided bfloat16 convolution of 1 x 1 maps unwritten.
        if spec.image_size < reduction:
            raise SelfsightError(
                f"--image-size {spec.image_size}: {spec.name} shrinks images {reduction} times; "
                f"use --image-size {reduction} or larger"
            )
        if spec.mean_tokens:  # what timm takes features by instead: several processes would wait for its gradients
            for unused in (getattr(model, "attn_pool", None), getattr(model, "fc_norm", None)):
                if unused is not None:
                    unused.requires_grad_(False)
        self.model = model
        self.reduction = reduction
        self.hierarchical = len(set(strides)) > 1
        if self.hierarchical:
            self._levels = list({stride: i for i, stride in enumerate(strides)}.values())  # the last map of each stride
        else:
            self._levels = [len(strides) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)] if len(strides) >= 4 else []
        self.pyramid_channels = [int(stages[i]["num_chs"]) for i in self._levels]
        self.pyramid_strides = [strides[i] for i in self._levels]
        self.map_dim = int(model.num_features)
        self.dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        shape = (1, spec.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(shape), persistent=False)

    def compile_model(self) -> None:
        """Compile the model with torch.compile: of a ViT each block, as what hides patches calls these alone.

        Of others what gives the maps too, which colorization and inpainting call by itself.
        """
        for part in self.model.blocks if is_vit(self.spec.name) else [self.model]:
            part.compile()
        if not is_vit(self.spec.name):
            self.model.forward_features = torch.compile(self.model.forward_features)

    def patches(self, side: int | None = None) -> float:
        """Return the number of patches of an image of this side, by default its own, where the backbone is a ViT."""
        return ((side or self.spec.image_size) / (self.spec.patch_size or own_patch(self.spec.name))) ** 2

    def side_from(self, least: float) -> int:
        """Return the smallest side of a view, `least` pixels or more: in whole patches, or else steps of 16 pixels."""
        unit = self.spec.patch_size or 16
        return max(math.ceil(least / unit) * unit, self.reduction)

    def normalize(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std for x (B, C, S, S) in [0, 1]."""
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features (B, dim) of images (B, C, S, S) in [0, 1]."""
        if self.spec.mean_tokens:
            return self.pool(self.model.forward_features(self.normalize(x)))
        features: Tensor = self.model(self.normalize(x))
        return features

    def pool(self, tokens: Tensor) -> Tensor:
        """Return features (B, dim) of a ViT's tokens (B, prefix + N, dim), what `forward` makes of them."""
        if self.spec.mean_tokens:
            return tokens[:, self.model.num_prefix_tokens :].mean(1)
        features: Tensor = self.model.forward_head(tokens, pre_logits=True)
        return features

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature map (B, map_dim, h, w) of images (B, C, H, W) in [0, 1]."""
        y: Tensor = self.model.forward_features(self.normalize(x))
        if y.dim() == 3:  # (B, prefix + h·w, D): a ViT's tokens
            y = y[:, getattr(self.model, "num_prefix_tokens", 0) :]
            height = round((y.shape[1] * x.shape[2] / x.shape[3]) ** 0.5)  # h / w is H / W
            return y.transpose(1, 2).reshape(len(y), -1, height, y.shape[1] // height)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return y.permute(0, 3, 1, 2)
        return y

    def train_maps_only(self) -> None:
        """Take what stands behind the maps out of the training: several processes would wait for its gradients."""
        spec, training = self.spec, self.training
        image = torch.zeros(1, spec.channels, spec.image_size, spec.image_size, device=self.mean.device)
        self.eval().maps(image).sum().backward()  # type: ignore[no-untyped-call]
        for weight in self.model.parameters():
            weight.requires_grad_(weight.requires_grad and weight.grad is not None)
        self.zero_grad()
        self.train(training)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Return feature maps (B, pyramid_channels[i], H / pyramid_strides[i], W / pyramid_strides[i]), finest first.

        The images (B, C, H, W) in [0, 1] may be of any height and width that are multiples of `reduction` (of a ViT's
        patch). CNNs and Swins give the last map of each stride; ViTs four maps of the same stride, of evenly spaced
        blocks behind the final norm, as DPT (Ranftl et al. 2021) takes them. The last one is that of `maps`, except in
        networks that widen it by a further convolution (EfficientNet, MobileNet).

        Raises SelfsightError for other sizes, and for networks of which timm gives no maps.
        """
        if not self._levels or not hasattr(self.model, "forward_intermediates"):
            raise SelfsightError(f"--backbone {self.spec.name}: timm gives no feature maps of it; use another")
        height, width = x.shape[2:]
        if height % self.reduction or width % self.reduction:
            raise SelfsightError(
                f"images of {width} x {height} pixels: the maps of {self.spec.name} need multiples of {self.reduction}"
            )
        maps: list[Tensor] = self.model.forward_intermediates(
            self.normalize(x), indices=self._levels, norm=True, intermediates_only=True
        )
        return maps


def quick_on_cpu(module: nn.Module, device: torch.device, side: int | None = None) -> AbstractContextManager[None]:
    """Return a block in which the module is computed as is fastest on a CPU, if this device is one: see `cpu.quick`.

    `side` is that of its images in pixels, by default that of a backbone's own: where ViTs have more than MOST_PATCHES
    patches of them, their attention stays as it is, which needs less memory.
    """
    many = any(part.patches(side) > MOST_PATCHES for part in module.modules() if isinstance(part, Backbone))
    return quick(module, device, many_patches=many)


def with_stem(spec: BackboneSpec, stride: int, padding: int) -> BackboneSpec:
    """Return the spec of a ResNet whose 3x3 first convolution has this stride and padding, and no pool behind it."""
    return replace(spec, small_stem=True, stem=(stride, padding))


def use_small_stem(model: Any, pool: nn.Module, stride: int, padding: int) -> None:
    """Give a timm ResNet its small-image stem: this pool, and a 3x3 first convolution instead of 7x7.

    Ours keeps the stride of 2: at equal compute the extra resolution was worth less than the epochs it costs.
    """
    model.maxpool = pool
    if isinstance(model.conv1, nn.Conv2d) and model.conv1.kernel_size == (7, 7):
        old = model.conv1
        model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, padding, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(model.conv1, nn.Sequential):
        first: Any = model.conv1[0]  # of several small ones, as resnet10t's, the first has the stride
        first.stride = (stride, stride)


def create(spec: BackboneSpec) -> Backbone:
    """Return the backbone with fresh random weights, from torch's global generator.

    A ViT begins as MAE's and MoCo v3's do, but for the patches' projection: its matrices by Xavier's rule, its places
    as sines and cosines. timm's own beginning, a deviation of 0.02 whatever the width, hides from the small ones where
    a patch is.
    """
    backbone = Backbone(spec)
    vit = backbone.model
    if isinstance(vit, VisionTransformer):
        vit.init_weights("moco")
        if vit.pos_embed is not None:
            grid = list(vit.patch_embed.grid_size)
            with torch.no_grad():
                vit.pos_embed[0, -math.prod(grid) :] = build_sincos2d_pos_embed(grid, vit.embed_dim)
    return backbone.to(memory_format=torch.channels_last)


def check(backbone: Backbone, small: int | None = None, remedy: str = "--local-views 0") -> Backbone:
    """Return the backbone if it takes images of its size, or views of `small` pixels, asked by an empty one.

    Where it takes no small views, the `remedy` is told.

    Raises SelfsightError where it does not: many of timm's networks are for one size only.
    """
    spec, training = backbone.spec, backbone.training
    size = small or spec.image_size
    try:
        with torch.no_grad():
            found = backbone.eval()(torch.zeros(1, spec.channels, size, size, device=backbone.mean.device))
        if found.shape != (1, backbone.dim):
            raise ValueError(f"its features are {list(found.shape)}, not [1, {backbone.dim}]")
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = _first_line(error).rstrip(".")
        what = f"small views of {size} pixels" if small else f"images of {size} pixels"
        remedy = remedy if small else "the --image-size in its name"
        raise SelfsightError(
            f"--backbone {spec.name}: takes no {what} ({reason}); "
            f"try {remedy}, a ResNet, a ConvNeXt or a ViT as vit_tiny_patch16_224"
        ) from error
    return backbone.train(training)


def load_pretrained(spec: BackboneSpec, source: str, flag: str = "--pretrained") -> Backbone:
    """Return the backbone with timm's own weights (`source` 'timm') or those of a local .safetensors or .pth file.

    Raises SelfsightError, which names the `flag`, where the file is missing or its weights don't fit the architecture.
    """
    if source == "timm":
        try:
            weights = timm.create_model(spec.name, pretrained=True, num_classes=0, in_chans=spec.channels)
        except (OSError, RuntimeError) as error:
            raise SelfsightError(f"{flag} timm: no weights for {spec.name} ({_first_line(error)})") from error
        state = weights.state_dict()
    else:
        state = read_weights(Path(source), flag)
    return with_weights(spec, state, f"{flag} {source}")


def with_weights(spec: BackboneSpec, state: Mapping[str, Tensor], source: str) -> Backbone:
    """Return the backbone with these weights of timm's model; a ViT's places are resampled to its number of patches.

    Raises SelfsightError, which begins with `source`, where they don't fit the architecture.
    """
    backbone = create(spec)
    own, place = backbone.model.state_dict(), state.get("pos_embed")
    try:
        if place is not None and "pos_embed" in own and place.shape != own["pos_embed"].shape:
            prefix = 0 if getattr(backbone.model, "no_embed_class", False) else backbone.model.num_prefix_tokens
            grid = list(backbone.model.patch_embed.grid_size)
            state = {**state, "pos_embed": resample_abs_pos_embed(place, grid, num_prefix_tokens=prefix)}
        backbone.model.load_state_dict({k: v for k, v in state.items() if k in own or not k.startswith(CLASSIFIERS)})
    except (RuntimeError, AttributeError) as error:  # places of another kind, or of no square
        raise SelfsightError(f"{source}: doesn't fit {spec.name} ({_first_line(error)})") from error
    return backbone


def read_weights(path: Path, flag: str = "--pretrained") -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a torch file with weights_only=True."""
    if not path.exists():
        raise SelfsightError(f"{flag} {path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path, f"{flag} {path}")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise SelfsightError(
            f"{flag} {path}: holds more than weights, or is damaged ({_first_line(error)}); `selfsight convert` reads "
            "checkpoints of other libraries"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping):
        raise SelfsightError(f"{flag} {path}: holds no weights by name")
    return dict(state)


def read_safetensors(path: Path, source: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file; SelfsightError, which begins with `source`, where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise SelfsightError(f"{source}: damaged, or not a .safetensors file ({_first_line(error)})") from error


def spec_from_json(values: dict[str, Any]) -> BackboneSpec:
    """Return the spec that `spec_to_json` wrote."""
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return BackboneSpec(**values | tuples)


def spec_to_json(spec: BackboneSpec) -> dict[str, Any]:
    """Return the spec as JSON's types."""
    return asdict(spec)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
