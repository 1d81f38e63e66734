r"""Does each method without negatives keep its embeddings apart, and is it told when its safeguard is missing?

    python benchmarks/collapse.py DATA [--methods byol simsiam …]

Trains each for 300 steps as it is, and again without what keeps it from one answer for all images: predictor,
stop-gradient, centring, variance, whitening; this until the health check says that it collapsed, which it is asked
every 300 steps, five times at most. Prints RankMe of both, and the verdicts. Those that hide patches train
vit_tiny_patch16_224, the others resnet10t. One row a training, with all that health measures, is appended to --out as
it comes; what is there already is judged again, not trained.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from selfsight import methods, optim
from selfsight.data import ImageSet, open_images
from selfsight.data.images import Batch
from selfsight.data.loader import Loader
from selfsight.distillation import dino_loss
from selfsight.evaluate.health import FEW_EPOCHS, Health, light_view, measure, verdict
from selfsight.masking import encode, take, the_vit, where
from selfsight.methods import Facts, Method
from selfsight.nn import autocast, cosines, unit
from selfsight.training import Pretrain, new_backbone

SIZE = 32
"""Side of a view in pixels."""

FLOOR = 8.0
"""RankMe that a method as it is must keep: untrained networks have 11 and 12 on these images, collapsed ones 2."""

CHECKS = 5
"""How often a training without safeguard is looked at, in as many times the steps."""

BATCH = {"wmse": 128}
"""Of methods that can't learn from --batch-size: twice as many images as the projected vectors are long, to whiten."""


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
    """Images a step; fewer where a method's own batch is smaller."""
    out: Path = Path("collapse.jsonl")
    """Where the rows go."""


def no_predictor(method: Any) -> None:
    """From the other view's own features, with their gradient, and without a predictor: any constant is perfect."""
    method.predictor = nn.Identity()
    method.forward = lambda batch, progress: agree(method.head(method.backbone(method.draw(batch))))


def agree(z: Tensor) -> dict[str, Tensor]:
    """Return the squared distance of two views' unit vectors z (2B, D), and nothing else."""
    a, b = F.normalize(z.float(), dim=1).chunk(2)
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


def own_codes(method: Any) -> None:
    """SwAV's codes as the softmax of the scores, not spread over the prototypes, and with their gradient."""

    def forward(batch: Batch, progress: float) -> dict[str, Tensor]:
        features = method.features(batch)
        z = unit(method.head(features.flatten(0, 1)))
        scores = cosines(z, F.normalize(method.prototypes, dim=1)).view(*features.shape[:2], -1)
        codes = (scores[:2] / method.config.epsilon).softmax(2)
        return {"loss": dino_loss(scores, codes, method.config.temperature), "chance": torch.zeros(())}

    method.forward = forward


def no_whitening(method: Any) -> None:
    """W-MSE, MMCR and ReSSL without what spreads features: their views only have to agree."""
    method.forward = lambda batch, progress: agree(method.head(method.backbone(method.draw(batch))))


def own_answers(method: Any) -> None:
    """I-JEPA and data2vec with the student's own features as the targets, and their gradient: any constant is perfect.

    Without the normalization of the targets, which would give a constant its variance back.
    """
    decoder = method.predictor if hasattr(method, "predictor") else method.decoder
    prefix = the_vit(method.backbone).num_prefix_tokens

    def forward(batch: Any, progress: float) -> dict[str, Tensor]:
        x = method.view(batch)
        if hasattr(method, "hide"):
            hidden = method.hide(len(x), x.device)
            seen = ~hidden
        else:
            seen, (hidden, *_) = method.draw(len(x))
        kept, asked = where(seen), where(hidden)
        answers = decoder(encode(method.backbone, x, kept=kept)[:, prefix:], kept, asked)
        wanted = take(encode(method.backbone, x)[:, prefix:], asked)
        return {"loss": F.mse_loss(answers.float(), wanted.float())}

    method.forward = forward


def no_clustering(method: Any) -> None:
    """DeepCluster's clusters as the nearest of random centres, which nothing keeps from being the same for all."""
    method.deal = lambda scores: scores.argmax(1)
    method.after_step = lambda progress: None


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
    "ibot": ("centring", flat_targets),
    "dinov2": ("centring", flat_targets),
    "swav": ("even use and stop-gradient", own_codes),
    "deepcluster_v2": ("k-means and even use", no_clustering),
    "ressl": ("relations to other images, teacher", no_whitening),
    "ijepa": ("teacher and stop-gradient", own_answers),
    "data2vec": ("teacher and stop-gradient", own_answers),
}


def seen(method: Method, images: ImageSet, rows: NDArray[np.int64], device: torch.device) -> Health:
    """Return the health of what the method would keep, and of what it compares."""
    return measure(method.encoder(), light_view(SIZE), images, rows, device, method=method)


def train(name: str, without: Callable[[Any], None] | None, images: ImageSet, asked: Arguments) -> dict[str, Any]:
    """Train a method, `without` its safeguard if that is given; return its steps, and the health before and after."""
    torch.manual_seed(0)
    device, cls = torch.device("cuda" if torch.cuda.is_available() else "cpu"), methods.get(name)
    rows = images.rows("train")
    backbone = new_backbone(cls, Pretrain(), images, SIZE)
    method = cls(backbone, cls.Config().fit_to(Facts(len(rows), SIZE, images.channels, len(images)))).to(device)
    row: dict[str, Any] = {"untrained": dataclasses.asdict(seen(method, images, rows, device))}
    longest = asked.steps * (CHECKS if without else 1)
    if without:
        without(method)
    optimizer = optim.build(method, cls.optim)
    batch_size = BATCH.get(name, min(cls.batch_size, asked.batch_size))
    stream = Loader(images, rows, batch_size, device, seed=0).stream(0)
    for step, batch in zip(range(longest), stream, strict=False):
        optim.schedule(optimizer.param_groups, cls.optim, step / longest, batch_size)
        with autocast(device):
            out = method(batch, step / longest)
        optimizer.zero_grad()
        out["loss"].backward()
        if cls.optim.clip:
            nn.utils.clip_grad_norm_(method.parameters(), cls.optim.clip)
        optimizer.step()
        method.after_step(step / longest)
        if (step + 1) % asked.steps == 0:
            row |= {"steps": step + 1, "trained": dataclasses.asdict(seen(method, images, rows, device))}
            if judged(row)[1] == "collapsed":
                break
    return row


def judged(row: dict[str, Any]) -> tuple[Health, str]:
    """Return the trained network's health and the verdict on it, as after too many epochs to be too short."""
    health, before = Health(**row["trained"]), Health(**row["untrained"])
    return health, verdict(health, before, None, None, FEW_EPOCHS + 1).state


def main(asked: Arguments) -> None:
    images = open_images(asked.data, image_size=SIZE)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    done = {(row["method"], row["without"]): row for row in map(json.loads, lines)}
    table = Table(
        "method", "untrained", "RankMe", "verdict", "without", "steps", "RankMe", "directions compared", "verdict"
    )
    for name in asked.methods or tuple(SAFEGUARD):
        what, remove = SAFEGUARD[name]
        for without in ("", what):
            if (name, without) not in done:
                row = {"method": name, "without": without} | train(name, remove if without else None, images, asked)
                done[name, without] = row
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, without, *judged(row), flush=True)
        row, off = done[name, ""], done[name, what]
        (whole, said), (bare, said_off) = judged(row), judged(off)
        low = ", below the floor" if whole.rankme < FLOOR else ""
        compared = "" if bare.projected is None else f"{bare.projected:.1f}"
        table.add_row(
            name,
            f"{row['untrained']['rankme']:.1f}",
            f"{whole.rankme:.1f}{low}",
            said,
            what,
            str(off["steps"]),
            f"{bare.rankme:.1f}",
            compared,
            said_off,
        )
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
