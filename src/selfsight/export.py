"""Export: the backbone for other runtimes, each file checked against the original before it is there."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.errors import SelfsightError
from selfsight.onnx_file import write_onnx
from selfsight.progress import say
from selfsight.run import RunFolder, replace_file

Format = Literal["onnx", "timm", "torchscript"]

FILES: dict[Format, str] = {"onnx": "model.onnx", "timm": "model.safetensors", "torchscript": "model.pt"}
"""The name in the run folder where no other is asked for; the suffix is each format's own."""
TOLERANCE = 1e-4
"""Largest absolute difference of a feature; float32 sums in another order differ by some 1e-6."""
BATCHES = (1, 3)
"""Batch sizes that a file is checked with; traced with 2, so neither is the traced one."""


def export(run: RunFolder, format: Format, out: Path | None = None) -> Path:  # noqa: A002  the flag's name
    """Write the run's backbone to `out` and return the path; by default into the run folder, as FILES says.

    onnx and torchscript take 'images' (N, C, S, S) float32 in [0, 1], any N, and return 'features' (N, D).
    timm is a state dict for `timm.create_model`, which takes normalized images; the .json beside it says all that
    is needed. Every file is compared with the backbone on random images before it gets its name.

    Raises SelfsightError for an unfinished run, a suffix that is not the format's, a missing package, or features
    that differ by more than TOLERANCE.
    """
    out = out or run.path / FILES[format]
    suffix = Path(FILES[format]).suffix
    if out.suffix != suffix:
        raise SelfsightError(f"--out {out}: the {format} format is a {suffix} file")
    backbone = run.load_backbone().cpu()
    difference = {"onnx": _onnx, "timm": _timm, "torchscript": _torchscript}[format](backbone, out)
    say(f"{out}: features equal the backbone's to {difference:.1e}")
    return out


def _onnx(backbone: Backbone, out: Path) -> float:
    return write_onnx(
        backbone,
        random_images(backbone, 2),
        out,
        ["features"],
        lambda answer: check(out, backbone, lambda x: answer(x)[0]),
    )


def _torchscript(backbone: Backbone, out: Path) -> float:
    difference = 0.0

    def write(path: Path) -> None:
        nonlocal difference
        with warnings.catch_warnings():
            # TorchScript is no longer developed, but still what C++ and mobile programs load.
            warnings.filterwarnings("ignore", r".*torch\.jit")
            traced = torch.jit.trace(backbone, random_images(backbone, 2))  # type: ignore[no-untyped-call]
            torch.jit.save(traced, path)
            difference = check(out, backbone, torch.jit.load(path))  # type: ignore[no-untyped-call]

    replace_file(out, write)
    return difference


def _timm(backbone: Backbone, out: Path) -> float:
    spec = backbone.spec
    model: Any = timm.create_model(spec.name, **spec.timm_arguments())
    state = timm_state(backbone, model)
    model.load_state_dict(state, strict=True)
    edits = []
    if spec.small_stem:
        model.maxpool = spec.stem_pool()
        stride, padding = spec.stem
        edits = [f"model.maxpool = torch.nn.{model.maxpool!r}"]
        if isinstance(model.conv1, torch.nn.Sequential):  # of small convolutions, of which the first has the stride
            first: Any = model.conv1[0]
            first.stride = (stride, stride)
            edits.append(f"model.conv1[0].stride = {first.stride}")
        else:
            model.conv1.stride, model.conv1.padding = (stride, stride), (padding + 2, padding + 2)  # 3x3 within its 7x7
            edits.append(f"model.conv1.stride, model.conv1.padding = {model.conv1.stride}, {model.conv1.padding}")
    if spec.mean_tokens:
        model.global_pool, model.fc_norm = "avg", torch.nn.Identity()
        edits.append("model.global_pool, model.fc_norm = 'avg', torch.nn.Identity()")
    model.eval()
    difference = check(out, backbone, lambda x: model(backbone.normalize(x)))
    arguments = ", ".join(f"{k}={v!r}" for k, v in spec.timm_arguments().items())
    about = {
        "architecture": spec.name,
        "arguments": spec.timm_arguments(),
        "image_size": spec.image_size,
        "mean": spec.mean,
        "std": spec.std,
        "edits": edits,
        "python": [
            "import safetensors.torch, timm, torch",
            f"model = timm.create_model({spec.name!r}, {arguments})",
            f"model.load_state_dict(safetensors.torch.load_file({out.name!r}))",
            *edits,
            "features = model.eval()((images - mean) / std)  # images (N, C, S, S) in [0, 1]",
        ],
    }
    replace_file(out, lambda path: path.write_bytes(save(state, {"format": "pt"})))
    replace_file(out.with_suffix(".json"), lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    return difference


def timm_state(backbone: Backbone, model: Any) -> dict[str, Tensor]:
    """Return the backbone's weights under the names and shapes of `model`, timm's own of this architecture.

    A small stem's 3x3 convolution becomes the middle of timm's 7x7, whose padding is 3 instead of 1: the same function.
    """
    state = {k: v.detach().contiguous() for k, v in backbone.model.state_dict().items()}
    for name, own in model.state_dict().items():
        if name == "conv1.weight" and own.shape[2:] != state[name].shape[2:]:
            border = (own.shape[2] - state[name].shape[2]) // 2
            state[name] = F.pad(state[name], (border, border, border, border))
    return state


def random_images(backbone: Backbone, n: int) -> Tensor:
    """Return (n, C, S, S) uniform noise in [0, 1], the same at each call."""
    spec = backbone.spec
    return torch.rand(n, spec.channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(n))


def check(out: Path, backbone: Backbone, answer: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference between `answer` and the backbone's features on random images.

    As a share of the largest feature, where that is above 1. Raises SelfsightError above TOLERANCE.
    """
    with torch.inference_mode():
        pairs = [(answer(x), backbone(x)) for x in (random_images(backbone, n) for n in BATCHES)]
    difference = max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)
    if not difference <= TOLERANCE:  # NaN too
        raise SelfsightError(f"{out}: not written: its features differ from the backbone's by {difference:.1e}")
    return difference
