"""A pretraining from data to run folder: everything around the learning itself, which is in training.py.

Whether the folder is free or resumed, what it says of the run (config.json, skipped files, figures, pictures), and what
the user is told.
"""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from selfsight import backbones, methods
from selfsight.data import write_skipped
from selfsight.errors import SelfsightError, StoppedError
from selfsight.memory import peak_memory, tune_allocator
from selfsight.methods import Facts, Method
from selfsight.pictures import save_pictures, spread
from selfsight.processes import leads
from selfsight.progress import say
from selfsight.run import RunFolder
from selfsight.training import Pretrain, Trainee, begin, fit, prepare
from selfsight.watch import draw, pace


def pretrain(data: Any, method: str, config: Pretrain, method_config: Method.Config | None = None) -> RunFolder | None:
    """Pretrain a backbone on unlabeled images; return its run, or None in the processes that only help.

    `data` is whatever `selfsight.data.open_images` takes. Of data that comes with a split only the train part is used.
    Raises SelfsightError for anything that the user can mend.
    """
    cls = methods.get(method)
    run = RunFolder(config.out or Path("runs") / f"{name_of(data)}-{method}")
    if config.resume and run.config_file.exists():
        config, method_config = _resumed(run, method, config)
    if run.weights_file.exists() or (run.checkpoint_file.exists() and not config.resume):
        done = "is finished" if run.weights_file.exists() else "has begun; continue it with --resume"
        raise SelfsightError(f"--out {run.path}: {done}, or choose another folder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, facts = prepare(data, config)
    settings = (method_config or cls.Config()).fit_to(facts)
    module = begin(cls, settings, images, facts, run, config)
    if leads():
        _announce(module, method, settings, facts, device)
    tune_allocator()
    fit(module, device)
    if not module.trainer.is_global_zero:
        return None
    write_skipped(run.skipped_file, images.skipped)  # without a cache damage shows when a file is read
    if module.watchers.keeper.stopped:
        raise StoppedError(f"{run.path}: stopped at {module.progress:.0%}; continue with --resume --out {run.path}")
    speed = pace(module)
    measured = {
        "steps": module.steps,
        "epochs": speed["epoch"],
        "seconds": speed["seconds"],
        "images_per_second": speed["images_per_second"],
        "peak_memory_bytes": peak_memory(device),
    }
    run.write_config(run.config() | {"measured": measured, "skipped": len(images.skipped)})
    rows = spread(images.rows("train"))
    save_pictures(run.path / "pictures", draw(module.method.cpu(), images, rows, config.seed))
    run.save_method(module.method)
    run.save_backbone(module.kept())
    run.checkpoint_file.unlink(missing_ok=True)  # nothing is left to resume
    return run


def name_of(data: Any) -> str:
    """Return how data is called in the names of folders: a path's last part, or the kind of object."""
    return Path(data).resolve().stem if isinstance(data, str | Path) else type(data).__name__.lower()


def place_of(data: str | Path) -> str:
    """Return the name of a folder for what belongs to this data set: no other path has the same."""
    return f"{name_of(data)}-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:8]}"


def _resumed(run: RunFolder, method: str, config: Pretrain) -> tuple[Pretrain, Method.Config]:
    """Return the settings that the run was begun with: flags need not be given again."""
    saved = run.config()
    if saved["method"] != method:
        raise SelfsightError(f"--resume {run.path}: was begun with {saved['method']}, not {method}")
    begun = saved["pretrain"] | {"out": run.path, "resume": True, "cache_dir": config.cache_dir}
    return Pretrain(**begun), run.method_config(methods.get(method).Config)


def _announce(module: Trainee, method: str, settings: Method.Config, facts: Facts, device: torch.device) -> None:
    """Write what was asked for and chosen to the run's config, and say it."""
    config, images, run, spec = module.config, module.images, module.run, module.method.backbone.spec
    run.write_config(
        {
            "method": method,
            "data": images.source,
            "images": facts.images,
            "skipped": len(images.skipped),
            "backbone": backbones.spec_to_json(spec),
            "method_config": asdict(settings),
            "optim": asdict(module.recipe),
            "pretrain": asdict(config),
            "chosen": {"batch_size": module.batch_size, "image_size": spec.image_size, "device": str(device)},
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        }
    )
    write_skipped(run.skipped_file, images.skipped)
    budget = f"{config.epochs:g} epochs" if config.epochs else f"{module.minutes:g} minutes"
    say(
        f"{method} on {facts.images:,} images of {images.source} ({len(images.skipped)} skipped): "
        f"{spec.name}, {spec.image_size} pixels, batches of {module.batch_size}, {budget}, {device} → {run.path}"
    )
