r"""Does each method without negatives keep its embeddings apart, and is it told when its safeguard is missing?

    python benchmarks/collapse.py DATA [--methods byol simsiam …]

Trains each for 300 steps as it is, and again without what keeps it from one answer for all images: predictor,
stop-gradient, centring, variance, whitening. Prints RankMe of both, and the verdict of the health check.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from selfsight import backbones, methods, optim
from selfsight.data import open_images
from selfsight.data.loader import Loader
from selfsight.evaluate.health import light_view, measure, verdict
from selfsight.methods import Facts
from selfsight.nn import autocast

FLOOR = 8.0
"""RankMe that a method as it is must keep: an untrained network has about 20 on these images, a collapsed one 1."""


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    data: tyro.conf.Positional[str]
    """Images."""
    methods: tuple[str, ...] = ()
    """By default all without negatives."""
    steps: int = 300
    """Of each training."""
    batch_size: int = 64
    """Images a step."""


def no_predictor(method: Any) -> None:
    """From the other view's own features, with their gradient, and without a predictor: any constant is perfect."""
    method.predictor = nn.Identity()
    method.forward = lambda batch, progress: agree(method.head(method.backbone(method.draw(batch))))


def agree(z: Tensor) -> dict[str, Tensor]:
    """Return the squared distance of two views' unit vectors z (2B, D), and nothing else."""
    a, b = torch.nn.functional.normalize(z.float(), dim=1).chunk(2)
    return {"loss": (a - b).square().sum(1).mean(), "chance": torch.tensor(2.0)}


def weights(*values: float) -> Callable[[Any], None]:
    """Return what sets the weights of a method's terms."""
    return lambda method: setattr(method, "weights", values)


def flat_targets(method: Any) -> None:
    """The teacher's answers as they are, neither centred nor spread, and nothing that keeps embeddings apart."""
    method.targets.spread = False
    method.targets.follow = lambda cosines, momentum: None
    method.targets.by_mean = lambda cosines, progress: (cosines / method.targets.temperature(progress)).softmax(-1)
    method.config = dataclasses.replace(method.config, koleo=0.0)
    if hasattr(method, "patch_targets"):
        method.patch_targets = method.targets


def flat_codes(method: Any) -> None:
    """SwAV's codes as the softmax of the scores, not spread over the prototypes."""
    method.assigned = lambda scores, prototypes, progress: (scores / method.config.epsilon).softmax(1)


def no_whitening(method: Any) -> None:
    """W-MSE, MMCR and ReSSL without what spreads features: their views only have to agree."""
    method.forward = lambda batch, progress: agree(method.head(method.backbone(method.draw(batch))))


SAFEGUARD: dict[str, tuple[str, Callable[[Any], None]]] = {
    "byol": ("predictor and teacher", no_predictor),
    "nnbyol": ("predictor and teacher", no_predictor),
    "simsiam": ("predictor and stop-gradient", no_predictor),
    "nnsiam": ("predictor and stop-gradient", no_predictor),
    "vicreg": ("variance and covariance", weights(25.0, 0.0, 0.0)),
    "vibcreg": ("whitening, variance, correlation", no_whitening),
    "barlow_twins": ("decorrelation", no_whitening),
    "wmse": ("whitening", no_whitening),
    "mmcr": ("centres apart", no_whitening),
    "lejepa": ("Gaussian", lambda method: setattr(method, "weight", 0.0)),
    "dino": ("centring", flat_targets),
    "swav": ("even use of the prototypes", flat_codes),
}


def main(asked: Arguments) -> None:
    images = open_images(asked.data, image_size=32)
    facts = Facts(len(images.rows("train")), 32, images.channels, len(images))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table("method", "RankMe", "verdict", "without", "RankMe", "verdict")
    for name in asked.methods or tuple(SAFEGUARD):
        cells = []
        for without in (None, SAFEGUARD[name][1]):
            torch.manual_seed(0)
            cls = methods.get(name)
            spec = backbones.plan("resnet10t", 32, images.channels, (0.3,) * images.channels, (0.35,) * images.channels)
            method = cls(backbones.create(spec), cls.Config().fit_to(facts)).to(device)
            before = measure(method.backbone, light_view(32), images, images.rows("train"), device)
            if without:
                without(method)
            optimizer = optim.build(method, cls.optim)
            loader = Loader(images, images.rows("train"), asked.batch_size, device, seed=0)
            out: dict[str, Tensor] = {}
            for step, batch in zip(range(asked.steps), loader.stream(0), strict=False):
                optim.set_rate(optimizer.param_groups, optim.rate(cls.optim, step / asked.steps, asked.batch_size))
                with autocast(device):
                    out = method(batch, step / asked.steps)
                optimizer.zero_grad()
                out["loss"].backward()
                optimizer.step()
                method.after_step(step / asked.steps)
            health = measure(method.encoder(), light_view(32), images, images.rows("train"), device)
            said = verdict(health, before, float(out["loss"].detach()), None, 11.0)
            low = not without and health.rankme < FLOOR
            cells += [f"{health.rankme:.1f}{', below the floor' if low else ''}", said.state]
            print(name, "without" if without else "as it is", *cells[-2:], flush=True)
        table.add_row(name, *cells[:2], SAFEGUARD[name][0], *cells[2:])
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
