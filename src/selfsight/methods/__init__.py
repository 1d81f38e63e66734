"""Pretext tasks, one file each. The folder is the registry: a new file is a new method."""

import hashlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts, Method

__all__ = ["Facts", "Method", "get", "labels_seen", "name_of", "names", "saw_labels", "source"]

SHARED = ("method", "two_views")


def names() -> list[str]:
    """Return the names of all methods: the files of this folder but those that several methods share."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def get(name: str) -> type[Method]:
    """Return the method of this name, importing its file; or the class that 'module:Class' names, of any module.

    Raises SelfsightError where there is none.
    """
    if ":" in name:
        return _own(name)
    if name not in names():
        raise SelfsightError(f"{name}: no such method; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    found = [v for v in classes if issubclass(v, Method)]
    if len(found) != 1:
        raise SelfsightError(f"methods/{name}.py: must define exactly one Method, has {len(found)}")
    return found[0]


def source(name: str) -> str | None:
    """Return a digest of the file of a method of one's own, None of selfsight's: results of another one are others."""
    if ":" not in name:
        return None
    try:
        text = inspect.getsource(sys.modules[get(name).__module__])
    except (OSError, TypeError):  # typed into an interpreter
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_of(method: str | type[Method]) -> str:
    """Return what `get` finds a method by: its name, or of a class 'module:Class'."""
    return method if isinstance(method, str) else f"{method.__module__}:{method.__qualname__}"


def saw_labels(config: Mapping[str, Any]) -> bool:
    """Return whether the training that wrote this config saw labels; by its method's name where it didn't say so."""
    known = config["method"] in names() and get(config["method"]).supervised
    return bool(config.get("supervised", known))


def labels_seen(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return of which data the training that wrote this config saw labels, or one whose weights it began with.

    Each as 'data', its source, and where they are known 'data_digest' and 'parts_digest'.
    """
    own = {key: config[key] for key in ("data", "data_digest", "parts_digest") if key in config}
    seen: list[dict[str, Any]] = config.get("labels_seen", [own] if saw_labels(config) else [])
    return seen


def _own(name: str) -> type[Method]:
    module, _, wanted = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` does, but the command doesn't
        sys.path.append(here)
    if not all(part.isidentifier() for part in module.split(".")):
        raise SelfsightError(f"{name}: no such method (name it as module:Class)")
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # one that the user's file imports
            raise
        raise SelfsightError(f"{name}: no such method ({error})") from error
    found = getattr(holder, wanted, None)
    if found is None:
        raise SelfsightError(f"{name}: no such method (module {module!r} has no {wanted})")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SelfsightError(f"{name}: is no selfsight.methods.Method")
    return found
