"""Several processes at one training: which of them leads, and what they agree on.

Lightning starts the helpers as this same program, from its beginning: they must come to the same decisions, and leave
files and words to the leader.
"""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from selfsight.errors import SelfsightError
from selfsight.nn import process

T = TypeVar("T")

RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")
"""Where torchrun, SLURM and Lightning write a process's or a machine's number, before the processes meet."""
LIGHTNINGS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning writes to the environment of the process that it starts helpers from."""
_expected = 1
_parted = False


def expect(count: int) -> None:
    """Note how many processes take part in what begins. Of one alone these numbers mean nothing: it leads.

    Raises SelfsightError where this process has led others before, and in an interactive Python: helpers run a program
    from its beginning.
    """
    global _expected
    if count > 1 and hasattr(sys, "ps1"):
        raise SelfsightError(
            "--devices, --nodes: a notebook or an interactive Python can't start other processes; run a script, or "
            "`selfsight` itself"
        )
    if count > 1 and _parted:
        raise SelfsightError("--devices, --nodes: one training of several processes in a Python program; start another")
    _expected = count


def part() -> None:
    """Leave the other processes: what a program does after its training, it does alone."""
    global _parted
    rank, world = process()
    if world == 1:
        return
    dist.destroy_process_group()
    _parted = True
    if rank == 0 and not dist.is_torchelastic_launched():  # a helper stays one
        for name in LIGHTNINGS:
            os.environ.pop(name, None)


def leads() -> bool:
    """Return whether this process writes, tests and reports."""
    return process()[0] == 0 and (_expected == 1 or all(os.environ.get(name, "0") == "0" for name in RANKS))


def own_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", _local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def require_all(count: int) -> None:
    """Raise SelfsightError where fewer or more processes have met than take part: a cluster started others."""
    if count != _expected:
        raise SelfsightError(
            f"--devices, --nodes: {_expected} processes were asked for, the cluster started {count}; with SLURM start "
            f"one a device, as `srun --ntasks-per-node` does"
        )


def cluster() -> list[Any]:
    """Return SLURM's environment for Lightning where it is, but no checkpoints of its own: they would be loaded anew.

    Lightning's go to the current directory, in the middle of a step, and from there into the next training.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


@contextmanager
def ending_helpers(trainer: Any) -> Iterator[None]:
    """Kill the processes that Lightning's trainer started where the block fails: only Ctrl-C makes Lightning do so.

    On GPUs they would wait for this one for half an hour, and hold the memory.
    """
    try:
        yield
    except BaseException:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has the second only
        raise


def together() -> None:
    """Wait until all processes are here."""
    if process()[1] > 1:
        dist.barrier()


def told(value: T) -> T:
    """Return the leader's value, which can be pickled."""
    if process()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


@atexit.register
def _part() -> None:
    """Close the connection to the other processes before Python ends: gloo's threads must not outlive it.

    Else the process is aborted at random ("terminate called without an active exception"), and Lightning kills the
    others with it. Lightning itself closes NCCL's alone. See pytorch/pytorch#190489.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _local_rank() -> int:
    """Return this process's number on this machine, which Lightning, torchrun and SLURM set."""
    return 0 if _expected == 1 else int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
