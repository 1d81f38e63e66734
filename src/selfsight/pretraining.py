"""A pretraining from data to run folder: everything around the learning itself, which is in training.py.

Whether the folder is free or resumed, what it says of the run (config.json, skipped files, figures, pictures), and what
the user is told.
"""

import hashlib
import json
import os
import secrets
import sys
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from selfsight import backbones, methods
from selfsight.data import write_skipped
from selfsight.errors import SelfsightError, StoppedError
from selfsight.memory import peak_memory, tune_allocator
from selfsight.methods import Facts, Method
from selfsight.pictures import examples, save_pictures
from selfsight.processes import expect, leads, part
from selfsight.progress import say
from selfsight.run import RunFolder
from selfsight.training import Pretrain, Trainee, begin, fit, prepare
from selfsight.watch import draw, pace

VERSIONS = ("selfsight", "torch", "torchvision", "timm", "lightning")
"""Of which libraries a run says the version."""
FREE = {"out", "resume", "cache", "cache_dir", "checkpoint_minutes", "wandb"}
"""Settings of a training that change nothing of its result."""


def pretrain(data: Any, method: str, config: Pretrain, method_config: Method.Config | None = None) -> RunFolder | None:
    """Pretrain a backbone on unlabeled images; return its run, or None in the processes that only help.

    `data` is whatever `selfsight.data.open_images` takes. Of data that comes with a split only the train part is used.
    Raises SelfsightError for anything that the user can mend.
    """
    cls = methods.get(method)
    expect(config.processes)
    run = RunFolder(config.out or Path("runs") / f"{name_of(data)}-{method.rpartition(':')[2]}")
    asked = method_config or cls.Config()
    if config.resume and run.weights_file.exists():  # a cluster may begin a job again after its end
        _require_own(run, data, method, config, asked)
        say(f"{run.path}: is finished")
        return run if leads() else None
    _require_free(run, config)
    resumed = run.config() if run.checkpoint_file.exists() else None
    if resumed is not None:
        config, method_config = _resumed(run, method, config, type(asked))
        expect(config.processes)  # they need not be asked for again
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, facts = prepare(data, config, verify=cls.supervised)
    settings = (method_config or cls.Config()).fit_to(facts)
    if resumed is None:
        module = begin(cls, settings, images, facts, run, config)
    else:
        if resumed.get("parts_digest", images.parts_digest()) != images.parts_digest():
            raise SelfsightError(
                f"--resume {run.path}: was begun with other images to train on and to test on; "
                "put them back as they were, or choose another --out"
            )
        if resumed.get("data_digest") not in (None, images.digest()):
            raise SelfsightError(
                f"--resume {run.path}: was begun with other images ({resumed['images']:,}, now {facts.images:,}); "
                "put them back as they were, or choose another --out"
            )
        require_same(run, resumed["method_config"], asked, type(asked)(), chosen=asked.fit_to(facts))
        if resumed.get("source") not in (None, methods.source(method)):
            say(f"--resume {run.path}: {method} has changed since it began; it goes on with what it is now")
        module = begin(cls, settings, images, facts, run, config, backbones.spec_from_json(resumed["backbone"]))
    with run.alone():
        _require_free(run, config)  # another process may have trained here meanwhile
        if leads() and resumed is None:
            _write(module, method, settings, facts, device)
        return _train(module, method, facts, device)


def _train(module: Trainee, method: str, facts: Facts, device: torch.device) -> RunFolder | None:
    config, images, run = module.config, module.images, module.run
    if leads():
        _announce(module, method, facts, device)
    tune_allocator()
    try:
        fit(module, device)
    finally:
        part()
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
    run.save_method(module.method)
    run.save_backbone(module.kept())
    run.checkpoint_file.unlink(missing_ok=True)  # nothing is left to resume
    try:
        pictures = draw(module.method.cpu(), images, examples(images), config.seed)
        save_pictures(run.path / "pictures", pictures)
    except Exception as error:  # whatever is wrong with the pictures of one's own method, the training is not lost
        say(f"{run.path}: its pictures can't be drawn ({error!r}); once that is mended, `selfsight show {run.path}`")
    return run


def _require_own(run: RunFolder, data: Any, method: str, config: Pretrain, asked: Method.Config) -> None:
    """Raise SelfsightError where the finished run is not what is asked for."""
    saved = run.config()
    if "pretrain" not in saved:
        raise SelfsightError(f"--resume {run.path}: was converted, not trained here; choose another --out")
    other = SelfsightError(f"--out {run.path}: is {saved['method']} on {saved['data']}; choose another folder")
    named = isinstance(data, str | Path)
    if saved["method"] != method or (named and not _alike(saved["data"], str(data))):
        raise other
    begun, _ = _resumed(run, method, config, type(asked))
    chosen = None
    if not named or Path(data).exists():  # an ended run needs no images; where they are, they must be its own
        images, facts = prepare(data, begun, verify=methods.get(method).supervised)
        if saved.get("data_digest", images.digest()) != images.digest():
            changed = f"--resume {run.path}: is finished, and the images have changed; choose another --out"
            raise SelfsightError(changed) if named else other
        chosen = asked.fit_to(facts)
    require_same(run, saved["method_config"], asked, type(asked)(), chosen=chosen)
    if saved.get("source") not in (None, methods.source(method)):
        say(f"--resume {run.path}: {method} has changed since then; for what it is now, choose another --out")


def _require_free(run: RunFolder, config: Pretrain) -> None:
    """Raise SelfsightError where the folder holds a finished run, one that is not to be resumed, or a labels' model."""
    if run.config_file.exists() and "task" in run.config():
        raise SelfsightError(f"--out {run.path}: holds a model that `selfsight train` made; choose another folder")
    if run.weights_file.exists() or (run.checkpoint_file.exists() and not config.resume):
        done = "is finished; delete it" if run.weights_file.exists() else "has begun; continue it with --resume"
        raise SelfsightError(f"--out {run.path}: {done}, or choose another folder by --out")


def name_of(data: Any) -> str:
    """Return how data is called in the names of folders: a path's last part, or the kind of object."""
    return Path(data).resolve().stem if isinstance(data, str | Path) else type(data).__name__.lower()


def place_of(data: str | Path) -> str:
    """Return the name of a folder for what belongs to this data set: no other path has the same."""
    return f"{name_of(data)}-{hashlib.sha256(os.fsencode(Path(data).resolve())).hexdigest()[:8]}"


def _resumed(
    run: RunFolder, method: str, config: Pretrain, kind: type[Method.Config]
) -> tuple[Pretrain, Method.Config]:
    """Return the settings that the run was begun with, its method's of this `kind`: flags need not be given again.

    Raises SelfsightError where a flag asks for something else, but for those that change nothing of the result, which
    are taken as they are asked for now.
    """
    saved = run.config()
    if saved["method"] != method:
        raise SelfsightError(f"--resume {run.path}: was begun with {saved['method']}, not {method}")
    begun, begun_settings = run.settings(Pretrain, "pretrain"), run.settings(kind)
    usual, place = Pretrain(), begun.cache_dir
    require_same(run, saved["pretrain"], config, usual)
    free: dict[str, Any] = {"cache_dir": Path(place) if place else None}  # JSON has no paths
    free |= {name: asked for name in FREE if (asked := getattr(config, name)) != getattr(usual, name)}
    free |= {"out": run.path, "resume": True}
    chosen = {name: saved["chosen"][name] for name in ("batch_size", "image_size")}
    return replace(begun, **free, **chosen), begun_settings


def require_same(run: RunFolder, saved: dict[str, Any], asked: Any, default: Any = None, *, chosen: Any = None) -> None:
    """Raise SelfsightError where a setting that was asked for is not what the run was begun with.

    Of `default`, if given, what was left as it is there counts as not asked for. `chosen` is what `asked` comes to with
    this data. A setting that there was not when the run began has its usual value in it.
    """
    usual = asdict(type(asked)())
    for name, value in json.loads(json.dumps(asdict(chosen or asked), default=str)).items():
        if default is not None and getattr(asked, name) == getattr(default, name):
            continue
        before = saved.get(name, usual[name])
        if name not in FREE and not _alike(before, value):
            raise SelfsightError(
                f"--{name.replace('_', '-')} {value}: {run.path} was begun with {before}; "
                "choose the same, or another --out"
            )


def _alike(one: Any, other: Any) -> bool:
    """Return whether two settings are the same, or two ways to write one path."""
    paths = isinstance(one, str) and isinstance(other, str)
    return one == other or (paths and Path(one).resolve() == Path(other).resolve())


def _write(module: Trainee, method: str, settings: Method.Config, facts: Facts, device: torch.device) -> None:
    """Write what was asked for and chosen to the run's config."""
    config, images, run, spec = module.config, module.images, module.run, module.method.backbone.spec
    of = {"data": images.source, "data_digest": images.digest(), "parts_digest": images.parts_digest()}
    before = [RunFolder(Path(p)) for p in (config.pretrained, asdict(settings).get("teacher")) if p]
    seen = [of] if module.method.supervised else []
    seen += [one for begun in before if begun.config_file.exists() for one in methods.labels_seen(begun.config())]
    run.write_config(
        {
            "id": secrets.token_hex(4),
            "method": method,
            "supervised": bool(seen),
            "labels_seen": seen,
            **of,
            "images": facts.images,
            "skipped": len(images.skipped),
            "backbone": backbones.spec_to_json(spec),
            "method_config": asdict(settings),
            "optim": asdict(module.recipe),
            "pretrain": asdict(config),
            "chosen": {"batch_size": module.batch_size, "image_size": spec.image_size, "device": str(device)},
            "source": methods.source(method),
            "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in VERSIONS},
        }
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # selfsight, used from a folder of its source
        return "not installed"


def _announce(module: Trainee, method: str, facts: Facts, device: torch.device) -> None:
    """Say what is trained on what, and list what can't be."""
    config, images, run, spec = module.config, module.images, module.run, module.method.backbone.spec
    write_skipped(run.skipped_file, images.skipped)
    budget = f"{config.epochs:g} epochs" if config.epochs else f"{module.minutes:g} minutes"
    say(
        f"{method} on {facts.images:,} images of {images.source} ({len(images.skipped)} skipped): "
        f"{spec.name}, {spec.image_size} pixels, batches of {module.batch_size}, {budget}, {device} → {run.path}"
    )
