"""Learning from labels: a head and the backbone under it, by AdamW, resumable, in Lightning.

The rates, the warm-up and the cosine are those of evaluate/finetune.py, which trains classifiers in the same way.
"""

import itertools
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, NoReturn

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from selfsight import optim
from selfsight.backbones import quick_on_cpu
from selfsight.errors import SelfsightError, StoppedError
from selfsight.evaluate.finetune import RATE_BATCH, peak
from selfsight.memory import enough_memory
from selfsight.nn import fast_bf16, process, synchronize_batchnorm
from selfsight.processes import cluster, ending_helpers, leads, require_all, told
from selfsight.progress import bar, say
from selfsight.run import RunFolder
from selfsight.tasks.augment import Target
from selfsight.tasks.jobs import Job
from selfsight.tasks.model import TaskModel
from selfsight.watch import Keeper, quiet_lightning

VIT_DECAY = 0.75
"""A pretrained ViT's decay of the rate from block to block (Bao et al. 2022, "BEiT")."""


@dataclass(frozen=True)
class LearnConfig:
    """How a model learns from labels."""

    minutes: float | None = None
    """Train this long, each time; the schedule fits itself to it."""
    epochs: float = 40.0
    """Passes over the labelled images, within the bounds below, if --minutes is not given."""
    min_steps: int = 300
    """Steps taken however few labels there are."""
    max_steps: int = 20_000
    """Steps taken at most."""
    batch_size: int = 8
    """Images a step, over all processes."""
    lr: float | None = None
    """Peak learning rate of all weights, but for the layer decay; by default 2e-3, and 5e-4 without BatchNorm
    (ViTs, Swin, ConvNeXt)."""
    weight_decay: float = 0.05
    """Decay of all weights but biases and norms."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from zero."""
    clip: float = 5.0
    """Largest norm of the gradient; 0 is no limit."""
    frozen: bool = False
    """Leave the backbone as it is and train only what stands on it."""
    layer_decay: float | None = None
    """A pretrained backbone's rate falls by this factor from block to block, from the last to the first: what the first
    see is the same in every task. By default 0.75 for ViTs, as is usual since BEiT, and 1 for all others."""
    hflip: bool = True
    """Mirror half of the training views; switch it off where left and right mean something."""
    validation: float = 0.1
    """Share of the labelled images that choose the best weights, where there are 200 or more (for classification
    1,000); 0 keeps the last."""
    checks: int = 5
    """How often over a training the images of --validation are asked."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """bf16 where the processor is faster with it, else float32."""
    devices: int = 1
    """Processes on this machine, one a GPU; with no GPU, processes on the CPU."""
    workers: int | None = None
    """Processes that draw views; by default none on a CPU, 8 with a GPU."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints; Ctrl-C writes one too."""

    def __post_init__(self) -> None:
        for flag in ("minutes", "epochs", "batch_size", "min_steps", "max_steps", "checks", "devices"):
            value = getattr(self, flag)
            if value is not None and value <= 0:
                raise SelfsightError(f"--{flag.replace('_', '-')} {value}: must be above 0")
        if self.workers is not None and self.workers < 0:
            raise SelfsightError(f"--workers {self.workers}: must be 0 or more")
        if self.batch_size % self.devices:
            raise SelfsightError(f"--batch-size {self.batch_size}: is no multiple of --devices {self.devices}")
        if not 0 <= self.validation < 1:
            raise SelfsightError(f"--validation {self.validation}: must be a share below 1")

    def cut_short(self, images: int) -> bool:
        """Return whether `max_steps` ends the training before the last of the passes over this many images."""
        return self.minutes is None and self.epochs * images / self.batch_size >= self.max_steps + 1

    def steps(self, images: int) -> int:
        """Return the number of steps for this many labelled images."""
        return int(min(max(self.epochs * images / self.batch_size, self.min_steps), self.max_steps))


def learn(learner: "Learner", device: torch.device) -> None:
    """Train the learner's model in place, from its run's last checkpoint if there is one.

    With rows to validate on the best weights by the job's metric are kept, else the last.

    Raises SelfsightError where the loss is not finite, StoppedError after Ctrl-C.
    """
    config, run = learner.config, learner.run
    bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(device))
    with quiet_lightning(), quick_on_cpu(learner, device, learner.job.image_size):
        trainer = L.Trainer(
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.devices,
            # Not all of a detector is of use for all images: its other parameters' gradients are not waited for.
            strategy="auto" if config.devices == 1 else "ddp_find_unused_parameters_true",
            precision="bf16-mixed" if bf16 else "32-true",
            gradient_clip_val=None,
            logger=False,
            plugins=cluster(),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            checkpoint = run.checkpoint_file if run.checkpoint_file.exists() else None
            with ending_helpers(trainer), enough_memory(config.batch_size):
                trainer.fit(learner, ckpt_path=checkpoint, weights_only=True)
        finally:
            learner.keeper.end()
            learner.bar.stop()
    if learner.keeper.stopped:
        stop(learner)
    if learner.best is not None:
        learner.model.load_state_dict(learner.best)


def stop(learner: "Learner") -> NoReturn:
    """Leave after Ctrl-C: raise StoppedError in the leading process, end the others."""
    if not leads():
        raise SystemExit(0)
    raise StoppedError(f"{learner.run.path}: stopped at {learner.progress:.0%}; the same command goes on from there")


def outlive_signals(worker: int) -> None:
    """Let a worker go on at Ctrl-C and at a cluster's first SIGTERM, which the main process answers by a checkpoint."""

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


class Learner(L.LightningModule):
    """A model in training on labels: its examples, its schedule, its clock, its best weights."""

    def __init__(
        self,
        job: Job,
        model: TaskModel,
        rows: NDArray[np.int64],
        validated: NDArray[np.int64],
        config: LearnConfig,
        run: RunFolder,
        pretrained: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.job, self.model, self.config, self.run = job, model, config, run
        self.rows, self.validated, self.pretrained, self.seed = rows, validated, pretrained, seed
        self.total = config.steps(len(rows))
        self.steps, self.seconds, self.progress, self.value = 0, 0.0, 0.0, -math.inf
        self.best: dict[str, Tensor] | None = None
        self.loss_sum, self.loss_count = 0.0, 0
        self.keeper, self.bar = Keeper(config.checkpoint_minutes), bar(transient=True)

    def configure_model(self) -> None:
        """With several processes, let BatchNorm see the whole batch; SelfsightError if not all are here."""
        require_all(self.trainer.world_size)
        if self.trainer.world_size > 1:
            synchronize_batchnorm(self.model, self.trainer.strategy.root_device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the backbone and what stands on it; each group knows its own peak rate."""
        c, backbone = self.config, self.model.backbone
        lr = peak(c.lr, backbone)
        factor = c.layer_decay or (1.0 if backbone.hierarchical else VIT_DECAY)
        factor = factor if self.pretrained else 1.0
        groups: list[dict[str, Any]] = optim.parameter_groups(self.model.head.parameters(), c.weight_decay)
        if factor == 1:
            groups += optim.parameter_groups(backbone.parameters(), c.weight_decay)
        else:
            groups += param_groups_layer_decay(backbone.model, c.weight_decay, layer_decay=factor)
        return torch.optim.AdamW(
            [group | {"peak": lr * group.pop("lr_scale", 1.0)} for group in groups], lr, fused=True
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient's norm."""
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches from where the run stands, without an end."""
        workers = (8 if self.device.type == "cuda" else 0) if self.config.workers is None else self.config.workers
        return DataLoader(
            Examples(self.job, self.rows, self.seed),
            batch_sampler=Batches(self.config.batch_size, self.steps, *process()),
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            pin_memory=self.device.type == "cuda",
        )

    def on_train_start(self) -> None:
        """Start the clock."""
        self.started = time.monotonic() - self.seconds
        self.keeper.start(self)
        self.model.train()
        self.shown = self.bar.add_task("train", total=100, unit="%", note="")
        if leads():
            self.run.forget_metrics_after(self.steps)
            self.bar.start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Set the seed and the rates of this step; -1 ends the training."""
        if self.keeper.save_if_due(self):
            self.trainer.should_stop = True
            return -1
        torch.manual_seed(self.seed * 1_000_003 + self.steps)
        for group in self.trainer.optimizers[0].param_groups:
            recipe = optim.Optim("adamw", lr=group["peak"], warmup=self.config.warmup)
            group["lr"] = optim.rate(recipe, self.progress, RATE_BATCH)
        return None

    def training_step(self, batch: tuple[Tensor, list[Target]], batch_idx: int) -> Tensor:
        """Return the job's loss."""
        loss = self.job.loss(self.model, *batch)
        if not math.isfinite(float(loss.detach())):
            raise SelfsightError(f"the loss is {float(loss.detach())} at step {self.steps}; try a lower --lr")
        self.loss_sum, self.loss_count = self.loss_sum + float(loss.detach()), self.loss_count + 1
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move on; validate if it is time; stop when the budget is spent."""
        self.steps += 1
        self.seconds = time.monotonic() - self.started
        before = self.progress
        minutes = self.config.minutes
        self.progress = told(min(1.0, self.seconds / (60 * minutes))) if minutes else self.steps / self.total
        speed = self.steps * self.config.batch_size / max(self.seconds, 1e-9)
        left = self.seconds / max(self.progress, 1e-9) * (1 - self.progress)
        note = f"loss {self.loss_sum / self.loss_count:.3f} · {speed:,.0f} images/s · {left / 60:.1f} min left"
        self.bar.update(self.shown, completed=100 * self.progress, note=note)
        if int(self.progress * self.config.checks) > int(before * self.config.checks):
            self._check(note)
        if self.progress >= 1:
            self.trainer.should_stop = True

    def _check(self, note: str) -> None:
        """Write a row of metrics, and keep the weights if they are the best so far on the validation images."""
        row = {"step": float(self.steps), "seconds": self.seconds, "loss": self.loss_sum / self.loss_count}
        self.loss_sum, self.loss_count = 0.0, 0
        words = ""
        if len(self.validated):
            scores = self.job.scores(self.model, "train", self.validated)
            row |= scores
            value = told(scores[self.job.metric])
            words = f" · {self.job.metric} {value:.3f} on {len(self.validated)} validation images"
            if not value < self.value:  # of the same value, and where nothing can be measured, NaN: the last weights
                self.value = value
                self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        if leads():
            self.run.append_metrics(row)
        if self.bar.disable:
            say(f"  {self.progress:4.0%} · step {self.steps:,} · {note}{words}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the run stands."""
        own = {k: getattr(self, k) for k in ("steps", "seconds", "progress", "value", "loss_sum", "loss_count")}
        checkpoint["selfsight"] = own | {"best": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stand where the run stood."""
        vars(self).update(checkpoint["selfsight"])


class Examples(Dataset[tuple[Tensor, Target]]):
    """The random views of a job's training images, without an end, shuffled anew each epoch.

    The i-th is a function of (seed, i) alone: so a resumed run continues exactly, whichever process draws it.
    """

    def __init__(self, job: Job, rows: NDArray[np.int64], seed: int) -> None:
        self.job, self.rows, self.seed = job, rows, seed
        self.epoch, self.order = -1, rows

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        with torch.random.fork_rng(devices=[]):
            # An example needs the CPU's alone. torch.manual_seed also notes, for each kind of device that is absent,
            # from where it was called, which takes 5 ms: longer than a small image's views.
            torch.default_generator.manual_seed(self.seed * 1_000_003 + i)
            return self.job.example(self.row(i))

    def row(self, i: int) -> int:
        """Return which image the i-th example is a view of."""
        epoch, at = divmod(i, len(self.rows))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return int(self.order[at])


class Batches(Sampler[list[int]]):
    """The numbers of the examples of this process's share of each step, from any step on."""

    def __init__(self, batch_size: int, start: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.start, self.rank, self.world = batch_size // world, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start):
            first = (step * self.world + self.rank) * self.size
            yield list(range(first, first + self.size))


def collate(examples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Return the views as a batch (B, C, S, S), and their targets as a list."""
    images, targets = zip(*examples, strict=True)
    return torch.stack(images), list(targets)
