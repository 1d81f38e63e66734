"""Processes for tests, forked from one that has imported what they need: a new Python takes eight seconds to."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

needs_two_devices = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs, or none at all")

NEEDED = ["pytest", "sklearn.datasets", "selfsight.api", "lightly.loss"]
"""Only imported in that process, so that it has no threads when it forks."""


def together(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` with the number of the process and the arguments in two processes; an error of either is raised."""
    multiprocessing.set_forkserver_preload(NEEDED)
    start_processes(work, arguments, nprocs=2, start_method="forkserver")
