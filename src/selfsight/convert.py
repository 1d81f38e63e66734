"""Backbones out of checkpoints of other libraries: solo-learn, lightly, lightly-train, timm, torchvision, and
EfficientNets of efficientnet_pytorch.

Nothing in a checkpoint is executed: of what it was pickled with only tensors and plain containers are built, and
settings of other libraries become empty shells.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from selfsight import backbones
from selfsight.errors import SelfsightError
from selfsight.progress import say
from selfsight.run import RunFolder

TORCHVISION = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""A ResNet's parts in order: lightly's examples put them into a Sequential, where they go by their numbers."""
EFFICIENTNET = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"} | SQUEEZE
EXPANDING |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} | SQUEEZE
"""How efficientnet_pytorch names an EfficientNet's parts, and timm: outside of the blocks, in those that widen their
maps first, and in those that don't."""
SOLO_STEM, PLAIN_STEM = (1, 2), (1, 1)
"""Stride and padding of a 3 x 3 stem for small images: solo-learn's, which adds a border of two pixels, and others'."""
AS_MAE = ("decoder.", "momentum_projector.")
"""Begins of what solo-learn keeps beside a ViT in methods for which it gives small ones more heads than timm."""


def convert(
    checkpoint: Path,
    out: Path,
    backbone: str,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    heads: int | None = None,
    mean_tokens: bool = False,
) -> RunFolder:
    """Write the backbone of another library's checkpoint as a run, which all verbs but `pretrain --resume` take.

    Its pretext task and its images are not known: `show` draws what the backbone looks at, and `report` must be told
    which images to show.

    `backbone` is timm's name of the architecture; its patches are as large as in the checkpoint, which doesn't tell how
    many `heads` a ViT's attention has (None: as timm's), nor whether features are the mean of its patches' tokens
    instead of timm's, mostly the class token. Where several networks are in the checkpoint the first counts, which
    is the student; of a file with a `teacher` and a `student` part, as DINO's, the teacher. Raises SelfsightError where
    the file or the architecture is not it, and where `out` is taken.
    """
    run = RunFolder(out)
    if run.path.exists() and any(run.path.iterdir()):
        raise SelfsightError(f"--out {out}: is not empty; choose another folder")
    state = tensors(checkpoint)
    channels = len(mean)
    spec = backbones.plan(backbone, image_size, channels, mean, std, pretrained=True, mean_tokens=mean_tokens)
    if (heads is not None or mean_tokens) and not backbones.is_vit(backbone):
        raise SelfsightError(f"--heads, --mean-tokens: {backbone} is not a ViT")
    model = backbones.create(spec).model
    if heads is not None and (heads < 1 or model.embed_dim % heads):
        raise SelfsightError(f"--heads {heads}: does not divide the {model.embed_dim} numbers of a token of {backbone}")
    spec = replace(spec, heads=heads)
    found = best_part(state, model.state_dict())
    patches = found.get("patch_embed.proj.weight")
    if spec.patch_size is not None and patches is not None and patches.shape[-1] != spec.patch_size:
        if image_size % patches.shape[-1]:
            raise SelfsightError(
                f"--image-size {image_size}: its patches of {patches.shape[-1]} pixels don't divide it"
            )
        spec = replace(spec, patch_size=int(patches.shape[-1]))
        model = backbones.create(spec).model
    if spec.patch_size is not None and heads is None and any(name.startswith(AS_MAE) for name in state):
        say(f"{checkpoint}: of solo-learn's MAE or MoCo v3? Then its tiny and small ViTs have --heads 12")
    stem = found.get("conv1.weight")
    small = stem is not None and stem.shape[-1] == 3
    if small and model.conv1.weight.shape[-1] == 7:  # solo-learn keeps a classifier of its own beside the backbone
        stride, padding = SOLO_STEM if any(name.startswith("classifier.") for name in state) else PLAIN_STEM
        spec = backbones.with_stem(spec, stride, padding)
        model = backbones.create(spec).model
    wanted = model.state_dict()
    # A ViT's places are resampled to its images' size; all else must be there, or it would stay as it began.
    free = ("pos_embed",) if backbones.is_vit(backbone) else ()
    fits = [n for n, value in found.items() if n in wanted and (n in free or value.shape == wanted[n].shape)]
    for name, weight in wanted.items():
        # Old files don't count their batches; a pretrained ConvNeXt V2 has no norm behind its maps, as timm knows.
        if name not in fits and not name.endswith("num_batches_tracked") and not name.startswith("head.norm."):
            there = f"is {list(found[name].shape)} there" if name in found else "is not"
            raise SelfsightError(
                f"{checkpoint}: {len(fits)} of the {len(wanted)} tensors of --backbone {backbone} are in it; "
                f"{name} {list(weight.shape)} {there}"
            )
    trained = backbones.check(
        backbones.with_weights(spec, wanted | {name: found[name] for name in fits}, str(checkpoint))
    )
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config({"method": "converted", "data": str(checkpoint), "converted": {"tensors": len(fits)}})
    run.save_backbone(trained)
    return run


def tensors(path: Path) -> dict[str, Tensor]:
    """Return all named tensors of a .safetensors file or of a torch checkpoint, whatever else stands in it."""
    if not path.is_file():
        raise SelfsightError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    if path.suffix == ".safetensors":
        return backbones.read_safetensors(path, str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=SAFE_PICKLE)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise SelfsightError(f"{path}: not a checkpoint that can be read ({str(error).splitlines()[0]})") from error
    for key in ("state_dict", "model", "teacher", "student", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise SelfsightError(f"{path}: holds no named tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def best_part(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors behind the prefix, such as 'backbone.', behind which most of the wanted names are.

    Of several the first, which is the student where there is a teacher too.
    """
    prefixes = list(dict.fromkeys(name[:i] for name in state for i in [0, *_ends(name)]))
    best: dict[str, Tensor] = {}
    for prefix in prefixes:
        part = {_by_name(name[len(prefix) :]): value for name, value in state.items() if name.startswith(prefix)}
        part = {name: value for name, value in _as_timm(part, wanted).items() if name in wanted}
        if len(part) > len(best):
            best = part
    return best


def _ends(name: str) -> list[int]:
    return [i + 1 for i, character in enumerate(name) if character == "."]


def _by_name(name: str) -> str:
    """Return a name with a ResNet's part, 4.0.conv1.weight, as torchvision and timm call it: layer1.0.conv1.weight."""
    first, _, rest = name.partition(".")
    return f"{TORCHVISION[int(first)]}.{rest}" if first.isdigit() and int(first) < len(TORCHVISION) else name


def _as_timm(part: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an EfficientNet by timm's names, if they have efficientnet_pytorch's; all others as is.

    There the blocks are numbered through, in timm within their stages.
    """
    if "_conv_stem.weight" not in part:
        return part
    blocks = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in wanted if name.startswith("blocks.")))
    renamed = {}
    for name, value in part.items():
        first, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        own, _, last = inner.partition(".")
        names = EXPANDING if f"_blocks.{number}._expand_conv.weight" in part else PLAIN
        if first in EFFICIENTNET:
            renamed[f"{EFFICIENTNET[first]}.{rest}"] = value
        elif first == "_blocks" and number.isdigit() and int(number) < len(blocks) and own in names:
            renamed[f"{blocks[int(number)]}.{names[own]}.{last}"] = value
    return renamed


class _Shell:
    """What stands for an object of a class that is not built."""

    def __init__(self, *args: object, **settings: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Builds tensors and ordered dicts; of all else a shell."""

    BUILT: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch", "Size"): torch.Size,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what this name of a module stands for."""
        if (module, name) in self.BUILT:
            return self.BUILT[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return getattr(torch, name, None) or getattr(torch.storage, name)
        return _Shell


SAFE_PICKLE = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load(), __name__="pickle")
"""In the place of Python's pickle, which runs what a file says."""
