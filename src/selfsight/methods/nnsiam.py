"""NNSiam: from one view predict the nearest neighbour, among earlier images, of the other view's own features.

SimSiam (Chen & He 2021) with the neighbours of Dwibedi et al.: With a Little Help from My Friends: Nearest-Neighbor
Contrastive Learning of Visual Representations, ICCV 2021, where it is an ablation.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.methods.method import Facts
from selfsight.methods.simsiam import SimSiam
from selfsight.nn import Queue, nearest, unit


class NNSiam(SimSiam):
    """Siamese: predict the neighbour, among earlier images, of the same network's features of the other view."""

    paper = "Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning, 2021"
    seen = "two views; from each the network predicts the neighbour of its own features of the other"

    @dataclass(frozen=True)
    class Config(SimSiam.Config):
        """SimSiam's hyperparameters, and how many earlier views are neighbours."""

        queue: int | None = None
        """Earlier views that may be neighbours; by default half of the images, from 256 to 65,536."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            return replace(super().fit_to(facts), queue=self.queue or min(65_536, max(256, facts.images // 2)))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.queue = Queue(config.queue or 65_536, config.hidden)

    def target(self, z: Tensor, count: int) -> Tensor:
        """Return what is to be predicted from each view, (2B, D): its partner's neighbour among earlier z."""
        z = unit(z)
        found = nearest(z, self.queue.rows)
        self.queue.push(z[:count])
        return super().target(found, count)
