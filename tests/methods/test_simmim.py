"""SimMIM's blocks of hidden patches."""

import pytest

from selfsight import backbones
from selfsight.errors import SelfsightError
from selfsight.methods.simmim import SimMIM


def test_blocks_that_do_not_divide_the_patches_are_refused() -> None:
    spec = backbones.plan("test_vit", 32, 3, (0.5,) * 3, (0.25,) * 3)
    grid = 32 // (spec.patch_size or 1)
    with pytest.raises(SelfsightError, match=f"--block {grid + 1}: {grid} patches in a row"):
        SimMIM(backbones.create(spec), SimMIM.Config(block=grid + 1))
