"""The peak of memory over a stretch of the program: the GPU's where there is one, else the process's."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch


def start_peak(device: torch.device) -> None:
    """Forget the peak so far, and on Linux give back what is free, so that an earlier training doesn't count.

    On other systems the process's peak cannot be reset.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, as musl
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):  # a sandbox that shows no such file
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM to the memory in use


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use at a time since `start_peak`; None where the system doesn't tell.

    On a GPU those of torch's tensors, else the process's resident memory, with the images that it has mapped.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
