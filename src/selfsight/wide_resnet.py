"""WideResNet-28, which timm lacks, put together from timm's pre-activation ResNet and made known to timm.

Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016: three stages of four basic blocks behind a 3x3 convolution, for
images of 32 pixels. `--backbone wide_resnet28_2` is the one of the papers on few labels, `_10` the large one.
"""

from typing import Any

from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2
from torch import nn

NAMES = ("wide_resnet28_2", "wide_resnet28_10")
default_cfgs = generate_default_cfgs(
    {name: {"input_size": (3, 32, 32), "pool_size": (8, 8), "first_conv": "stem.conv"} for name in NAMES}
)


class WideResNet(ResNetV2):
    """timm's pre-activation ResNet of basic blocks, with the stem for small images."""

    def __init__(self, width: int, **arguments: Any) -> None:
        """Build the network whose stages have 16, 32 and 64 times `width` channels."""
        channels = tuple(width * c for c in (16, 32, 64))
        parts: dict[str, Any] = {
            "norm_layer": BatchNormAct2d,
            "conv_layer": create_conv2d,
            "stem_chs": 16,
            "bottle_ratio": 1.0,
        }
        super().__init__([4, 4, 4], channels, basic=True, **(parts | arguments))
        conv = nn.Conv2d(self.in_chans, 16, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.stem.conv, self.stem.pool = conv, nn.Identity()
        stages: list[Any] = self.feature_info
        for stage in stages:  # timm counts on a stem that shrinks images four times
            stage["reduction"] = max(1, stage["reduction"] // 4)


def _wide_resnet(name: str, width: int, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    built: nn.Module = build_model_with_cfg(WideResNet, name, pretrained, width=width, **arguments)
    return built


@register_model
def wide_resnet28_2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return WideResNet-28-2, of 1.5 million weights."""
    return _wide_resnet("wide_resnet28_2", 2, pretrained, arguments)


@register_model
def wide_resnet28_10(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return WideResNet-28-10, of 36.5 million weights."""
    return _wide_resnet("wide_resnet28_10", 10, pretrained, arguments)
