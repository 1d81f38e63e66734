"""ONNX files: a module written for other runtimes, and answered by one of them before the file gets its name."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsight.errors import SelfsightError
from selfsight.run import replace_file

Answer = Callable[[Tensor], list[Tensor]]
"""From images (N, C, S, S) to the outputs, in the order of their names."""


def write_onnx(
    module: nn.Module,
    example: Tensor,
    out: Path,
    outputs: Sequence[str],
    check: Callable[[Answer], float],
    *,
    one_image: bool = False,
) -> float:
    """Write `module`, which takes 'images' like `example` (N, C, S, S) and returns `outputs`; return what `check` does.

    `check` gets the file's answers by onnxruntime, and raises if they are not the module's: then nothing is written.
    The batch may be of any size; with `one_image`, for modules whose outputs are as long as what they find, N is 1.

    Raises SelfsightError without the packages that it takes.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ModuleNotFoundError as error:
        raise SelfsightError(f"--format onnx needs {error.name}: pip install -e '.[onnx]'") from error
    result = 0.0

    def write(path: Path) -> None:
        nonlocal result
        options: dict[str, Any] = {"input_names": ["images"], "output_names": list(outputs), "verbose": False}
        if one_image:
            # torch.export can't follow lengths that depend on the data through torchvision's detectors; tracing can.
            options |= {"dynamo": False, "opset_version": 17, "dynamic_axes": {name: {0: "found"} for name in outputs}}
        else:
            batch = {0: torch.export.Dim("batch")}
            options |= {"dynamo": True, "external_data": False, "dynamic_shapes": (batch,)}
        with warnings.catch_warnings():
            # onnxscript, torch.export and the tracer about their own internals: nothing that the user could act on.
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (example,), path, **options)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        result = check(lambda x: [torch.from_numpy(y) for y in session.run(list(outputs), {"images": x.numpy()})])

    replace_file(out, write)
    return result
