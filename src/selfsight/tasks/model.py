"""What classifiers, detectors and segmenters share: a backbone, which may be frozen, and apart from it its head."""

from typing import Self

from torch import nn

from selfsight.backbones import Backbone

DECODER_GROUPS = 32
"""Groups of the group norms in torchvision's heads and smp's FPN: their widths are multiples of it."""


class TaskModel(nn.Module):
    """A backbone and a head, whose parameters a trainer gives rates of their own: `optim.build` takes either.

    The backbone itself is trained, not a copy of it.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = False

    def freeze_backbone(self) -> None:
        """Train the head only: the backbone's weights get no gradient, its BatchNorm statistics and dropout rest."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, of a frozen backbone always the latter."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self
