"""The peak of memory is that of the stretch that is measured."""

import sys

import numpy as np
import pytest
import torch

from selfsight.memory import peak_memory, start_peak

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's peak cannot be reset")
def test_what_was_freed_before_the_start_does_not_count() -> None:
    start_peak(CPU)
    low = peak_memory(CPU)
    np.ones(300 * MIB, np.uint8)  # freed at once
    high = peak_memory(CPU)
    start_peak(CPU)
    again = peak_memory(CPU)
    assert low is not None
    assert high is not None
    assert again is not None
    assert high - low > 290 * MIB
    assert again - low < 100 * MIB
