"""NNBYOL: from one view predict the nearest neighbour, among earlier images, of what a teacher makes of the other.

BYOL (Grill et al. 2020) with the neighbours of Dwibedi et al.: With a Little Help from My Friends: Nearest-Neighbor
Contrastive Learning of Visual Representations, ICCV 2021, where it is an ablation.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.methods.byol import BYOL
from selfsight.methods.method import Facts
from selfsight.nn import Queue, nearest, unit


class NNBYOL(BYOL):
    """Bootstrapping: predict the neighbour, among earlier images, of the teacher's features of the other view."""

    paper = "Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning, 2021"
    seen = "two views; from each the student predicts the neighbour of the teacher's features of the other"

    @dataclass(frozen=True)
    class Config(BYOL.Config):
        """BYOL's hyperparameters, and how many earlier views are neighbours."""

        queue: int | None = None
        """Earlier views among which neighbours are looked for; by default half of the images, from 256 to 65,536."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), queue=self.queue or min(65_536, max(256, facts.images // 2)))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.queue = Queue(config.queue or 65_536, config.projection)

    def target(self, z: Tensor, count: int) -> Tensor:
        """Return what is to be predicted from each view, (2B, D): of the teacher's z its partner's neighbour."""
        z = unit(z)
        found = nearest(z, self.queue.rows)
        self.queue.push(z[:count])  # afterwards: before, a view would be its own neighbour
        return super().target(found, count)
