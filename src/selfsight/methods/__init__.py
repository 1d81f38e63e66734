"""Pretext tasks, one file each. The folder is the registry: a new file is a new method."""

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts, Method

__all__ = ["Facts", "Method", "get", "names", "saw_labels"]

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


def saw_labels(config: Mapping[str, Any]) -> bool:
    """Return whether the training that wrote this config saw labels; by its method's name where it didn't say so."""
    known = config["method"] in names() and get(config["method"]).supervised
    return bool(config.get("supervised", known))


def _own(name: str) -> type[Method]:
    module, _, wanted = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` does, but the command doesn't
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), wanted)
    except (ModuleNotFoundError, AttributeError, ValueError, TypeError) as error:
        raise SelfsightError(f"{name}: no such method ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SelfsightError(f"{name}: is no selfsight.methods.Method")
    return found
