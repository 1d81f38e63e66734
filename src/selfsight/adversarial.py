"""A discriminator, and the losses of it and of what it judges: for generative pretext tasks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def discriminator(channels: int, size: int, width: int = 32) -> nn.Sequential:
    """Return a DCGAN-like discriminator: (B, channels, size, size) → (B,) logits, high for real images."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    while (size := size // 2) >= 8:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))


def adversarial_losses(critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of what made `fake`, -log D(fake) as in the authors' code, and that of the discriminator D.

    Equation 3 of "Context Encoders" (2016), per image. The first passes D with its parameters detached, the second gets
    `fake` detached: one optimizer steps both players, each on its own gradient.
    """
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    fooled: Tensor = torch.func.functional_call(critic, frozen, (fake,))
    judging = F.softplus(-critic(real).float()).mean() + F.softplus(critic(fake.detach()).float()).mean()
    return F.softplus(-fooled.float()).mean(), judging
