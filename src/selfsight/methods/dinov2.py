"""DINOv2's recipe: DINO and iBOT with a head each, answers spread by Sinkhorn, embeddings kept apart by KoLeo.

Oquab et al.: DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, section 4.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfsight.methods.ibot import IBOT


class DINOv2(IBOT):
    """Self-distillation: DINO and iBOT with separate heads, Sinkhorn's centring, and KoLeo."""

    paper = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2024"

    @dataclass(frozen=True)
    class Config(IBOT.Config):
        """iBOT's hyperparameters with DINOv2's values."""

        doublings: ClassVar[int] = 6
        shared: bool = False
        """Whether patches and whole views are answered by the same head; for large models separate ones are better."""
        centring: Literal["mean", "sinkhorn"] | None = "sinkhorn"
        """What keeps the teacher from one answer for all: its mean answer is taken away, or a batch's answers spread
        over all prototypes."""
        koleo: float | None = 0.1
        """Weight of KoLeo, which keeps embeddings apart."""
