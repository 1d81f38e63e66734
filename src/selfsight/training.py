"""Learning: any Method driven by Lightning's Trainer, on a budget of epochs or minutes, resumable at any step.

What surrounds it is elsewhere: the run's folder and messages in pretraining.py, metrics and checkpoints in watch.py.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from selfsight import backbones, optim
from selfsight.backbones import Backbone, BackboneSpec
from selfsight.data import ImageSet, Loader, open_images
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.memory import enough_memory
from selfsight.methods import Facts, Method
from selfsight.nn import Teacher, fast_bf16, process, synchronize_batchnorm
from selfsight.processes import cluster, ending_helpers, require_all
from selfsight.run import RunFolder
from selfsight.watch import Watchers, loggers, quiet_lightning

DEFAULT_MINUTES = 10.0
GRANULE = 16
"""Views are enlarged to a multiple of this side: a small-stem ResNet halves it four times without a rest."""


@dataclass(frozen=True)
class Pretrain:
    """How to pretrain, whatever the method."""

    out: Path | None = None
    """Run folder; by default runs/<data>-<method>. A comparison keeps its runs here, by default runs/<data>-compare."""
    backbone: str = "auto"
    """Any timm model; auto is resnet10t on a CPU; on a GPU resnet18 for small images, else resnet50. For methods that
    hide patches vit_tiny_patch16_224, and vit_small_patch16_224 on a GPU."""
    pretrained: str | None = None
    """Start from weights: 'timm' for timm's own, a local .safetensors or .pth file, or the folder of another run, whose
    backbone is then taken as it is."""
    image_size: int | None = None
    """Side of a view in pixels; by default the images' own, rounded up to a multiple of 16, and at most 96 (224 with a
    GPU)."""
    channels: int | None = None
    """Channels of the images, by default found out; 1 to see colours as grey, 4 where a tile's file calls its fourth
    band transparency."""
    patch_size: int | None = None
    """Side of a ViT's patches in pixels; by default its own, or smaller, until 6 x 6 of them cover a view. With patches
    twice as large it sees several times as many images a minute; small ones show it more detail."""
    stem_stride: Literal[1, 2] = 2
    """Stride of a ResNet's first convolution for images of up to 64 pixels: 2, or 1 as in the literature on CIFAR, at
    four times the work for each image, and sixteen times above 40 pixels, where there is else a mean of 2x2 too."""
    minutes: float | None = None
    """Train this long; the schedule fits itself to it. Default: 10 minutes if --epochs is not given."""
    epochs: float | None = None
    """Train this many passes over the images."""
    fraction: float = 1.0
    """Train on this share of the images, above 0 and at most 1, drawn at random by --seed."""
    batch_size: int | None = None
    """Images a step, over all processes; by default the method's own, mostly 256, and fewer for small sets."""
    accumulate: int = 1
    """Steps whose gradients add up before the weights move. The learning rate is that of so many times the batch, but
    what compares the images of a batch, as SimCLR and BatchNorm do, sees those of one step."""
    lr: float | None = None
    """Peak learning rate of a batch of 256 images, of another batch in proportion: of 64 a quarter; muon's grows with
    the square root above 256. By default the method's own, which config.json tells under optim."""
    weight_decay: float | None = None
    """Weight decay; by default the method's own, which may rise."""
    final_weight_decay: float | None = None
    """Weight decay at the end, to which it goes by half a cosine; by default it stays at --weight-decay where that is
    given."""
    optimizer: optim.OptimName | None = None
    """By default the method's own; another one wants another --lr, and mostly another --weight-decay."""
    warmup: float | None = None
    """Share of the training over which the rate rises; by default the method's own."""
    clip: float | None = None
    """Largest gradient norm; by default the method's own; 0 is no limit."""
    ema: float = 0.0
    """Keep an average of the weights with this momentum, for example 0.999, instead of the last ones; 0 is off. It is
    less in short trainings, of which the average then spans the last twentieth."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """bf16 where the processor is faster with it, else float32."""
    compile: bool = False
    """Compile the backbone with torch.compile: slow to start, pays on a GPU in long runs."""
    devices: int = 1
    """Processes on this machine, one a GPU; with no GPU, processes on the CPU."""
    nodes: int = 1
    """Machines; Lightning reads SLURM's and torchrun's environment."""
    strategy: str = "auto"
    """Lightning's strategy, for example ddp."""
    seed: int = 0
    """Fixes weights, batches and views."""
    resume: bool = False
    """Continue the run in --out exactly where its last checkpoint left it."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints; Ctrl-C writes one too."""
    cache: bool = True
    """Decode the images once into a memory map; --no-cache reads the files at each epoch."""
    cache_dir: Path | None = None
    """Where the decoded images are kept; by default $SELFSIGHT_CACHE, or ~/.cache/selfsight."""
    wandb: bool = False
    """Also log to Weights & Biases, if its package is installed: to the project selfsight, or $WANDB_PROJECT."""

    def __post_init__(self) -> None:
        if self.minutes is not None and self.epochs is not None:
            raise SelfsightError("--minutes and --epochs: give one of them")
        for flag in ("minutes", "epochs", "batch_size", "image_size", "patch_size", "accumulate", "devices", "nodes"):
            value = getattr(self, flag)
            if value is not None and value <= 0:
                raise SelfsightError(f"--{flag.replace('_', '-')} {value}: must be above 0")
        gpus = torch.cuda.device_count()
        if self.devices > gpus > 0:
            raise SelfsightError(f"--devices {self.devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
        if not 0 < self.fraction <= 1:
            raise SelfsightError(f"--fraction {self.fraction}: must be above 0 and at most 1")

    @property
    def processes(self) -> int:
        """How many take part, over all machines."""
        return self.devices * self.nodes

    def share_of(self, images: int) -> int:
        """Return how many of so many images are trained on, at least one."""
        return max(1, round(self.fraction * images))


def prepare(data: Any, config: Pretrain, *, verify: bool = False) -> tuple[ImageSet, Facts]:
    """Open the images, and return what a method may know of them. To `verify`, as labels need it: see `open_images`."""
    largest = config.image_size or (224 if torch.cuda.is_available() else 96)
    place: dict[str, Any] = {"cache": config.cache, "cache_dir": config.cache_dir}
    images = open_images(data, image_size=largest, channels=config.channels, verify=verify, **place)
    if config.fraction < 1:
        rows = images.rows("train")
        kept = np.random.default_rng(config.seed).permutation(rows)[: config.share_of(len(rows))]
        split = np.full(len(images), "rest", dtype="<U5") if images.split is None else images.split.astype("<U5")
        split[rows] = "rest"
        split[kept] = "train"
        images = replace(images, split=split)
    size = config.image_size or min(-(-images.side // GRANULE) * GRANULE, largest)
    return images, Facts(len(images.rows("train")), size, images.channels, len(images))


def begin(
    cls: type[Method],
    settings: Method.Config,
    images: ImageSet,
    facts: Facts,
    run: RunFolder,
    config: Pretrain,
    spec: BackboneSpec | None = None,
) -> "Trainee":
    """Return a fresh method about to be trained, in batches that the images fill.

    With the backbone that the config asks for; or, of a run that is to go on from its checkpoint, with that of `spec`.
    """
    if facts.images < 2:
        raise SelfsightError(f"{images.source}: {facts.images} image to train on; two are the least, thousands better")
    processes = config.processes
    batch_size = config.batch_size or min(cls.batch_size, max(16, 2 ** int(math.log2(max(facts.images // 8, 1)))))
    batch_size = min(batch_size, facts.images) // processes * processes
    if not batch_size:
        raise SelfsightError(f"{images.source}: {facts.images} images are too few for {processes} processes")
    L.seed_everything(config.seed, verbose=False)
    backbone = new_backbone(cls, config, images, facts.image_size) if spec is None else backbones.create(spec)
    method = cls(backbone, settings)
    if config.optimizer not in (None, cls.optim.name) and config.lr is None and spec is None:
        usual = f"{cls.optim.lr:g} is {cls.optim.name}'s"
        raise SelfsightError(f"--optimizer {config.optimizer}: give its --lr too; {usual}")
    own = cls.optim if spec is None else run.settings(optim.Optim, "optim")  # as it was when the run began
    return Trainee(method, images, run, config, recipe(own, config), batch_size)


def recipe(own: optim.Optim, config: Pretrain) -> optim.Optim:
    """Return the method's optimizer with what the user set instead."""
    if config.optimizer not in (None, own.name):
        own = replace(own, momentum=optim.Optim("adamw", lr=own.lr).momentum)  # the usual one, not the other's
    final = config.final_weight_decay
    if final is None and config.weight_decay is None:
        final = own.final_weight_decay
    return replace(
        own,
        name=config.optimizer or own.name,
        lr=config.lr or own.lr,
        weight_decay=own.weight_decay if config.weight_decay is None else config.weight_decay,
        final_weight_decay=final,
        warmup=own.warmup if config.warmup is None else config.warmup,
        clip=own.clip if config.clip is None else config.clip,
    )


def new_backbone(cls: type[Method], config: Pretrain, images: ImageSet, size: int) -> Backbone:
    """Return the backbone that a training by this method starts from, for images of `size` pixels."""
    if config.pretrained and Path(config.pretrained).is_dir():
        return backbones.check(_backbone_of_run(config, images, size))
    name = config.backbone
    if name == "auto" and cls.vit:
        name = "vit_small_patch16_224" if torch.cuda.is_available() else "vit_tiny_patch16_224"
    elif name == "auto":
        name = "resnet10t" if not torch.cuda.is_available() else "resnet18" if size <= backbones.SMALL else "resnet50"
    imagenet = config.pretrained == "timm" and images.channels == 3
    mean, std = backbones.colours_of(name) if imagenet else colours(images)
    loaded, by_mean = config.pretrained is not None, cls.mean_tokens and backbones.is_vit(name)
    spec = backbones.plan(
        name, size, images.channels, mean, std, pretrained=loaded, patch_size=config.patch_size, mean_tokens=by_mean
    )
    if config.stem_stride == 1:
        if not spec.small_stem:
            raise SelfsightError(f"--stem-stride 1: {name} has no stem for small images at {size} pixels")
        spec = backbones.with_stem(spec, 1, 1)
    source = config.pretrained
    return backbones.check(backbones.load_pretrained(spec, source) if source else backbones.create(spec))


def colours(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation, 0.01 at least, of each channel in [0, 1], of up to 1,000 images spread over all."""
    rows = np.linspace(0, len(images) - 1, min(len(images), 1000)).astype(np.int64)
    moments = np.zeros((2, images.channels))
    for some in np.array_split(rows, -(-len(rows) // 32)):  # not all at once: as floats they would take gigabytes
        pixels = images.images[some] / 255.0
        moments += pixels.mean((2, 3)).sum(0), np.square(pixels).mean((2, 3)).sum(0)
    mean, square = moments / len(rows)
    std = np.sqrt(np.maximum(square - mean**2, 0.01**2))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _backbone_of_run(config: Pretrain, images: ImageSet, size: int) -> Backbone:
    """Return the backbone of the run in the folder `config.pretrained`, for images of `size` pixels."""
    begun = RunFolder(Path(str(config.pretrained))).load_backbone()
    if config.backbone not in ("auto", begun.spec.name) or begun.spec.channels != images.channels:
        raise SelfsightError(
            f"--pretrained {config.pretrained}: is {begun.spec.name} for {begun.spec.channels} channels"
        )
    if config.patch_size not in (None, begun.spec.patch_size):
        raise SelfsightError(f"--patch-size {config.patch_size}: {config.pretrained} has {begun.spec.patch_size}")
    if config.stem_stride == 1 and begun.spec.stem[0] != 1:
        raise SelfsightError(f"--stem-stride 1: {config.pretrained} has {begun.spec.stem[0]}")
    spec = replace(begun.spec, image_size=size)
    return backbones.with_weights(spec, begun.model.state_dict(), f"--pretrained {config.pretrained}")


def fit(module: "Trainee", device: torch.device) -> None:
    """Run Lightning's Trainer over the module, from the run's last checkpoint if it is to be resumed."""
    config, checkpoint = module.config, module.run.checkpoint_file
    bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(device))
    logged = loggers(module.run, config.wandb)
    with quiet_lightning(), backbones.quick_on_cpu(module, device), logged as written_to:
        trainer = L.Trainer(
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.devices,
            num_nodes=config.nodes,
            # Lightning's choice in a notebook would be to fork, whose training is lost: the forked processes have it.
            strategy="ddp" if config.strategy == "auto" and config.processes > 1 else config.strategy,
            precision="bf16-mixed" if bf16 else "32-true",
            accumulate_grad_batches=config.accumulate,
            logger=written_to,
            plugins=cluster(),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            resume = config.resume and checkpoint.exists()
            with ending_helpers(trainer), enough_memory(module.batch_size):
                trainer.fit(module, ckpt_path=checkpoint if resume else None, weights_only=True)
        finally:
            module.watchers.end()


class Trainee(L.LightningModule):
    """A method in training: its batches, its schedule, its clock.

    Step k's images and random numbers are functions of (seed, k): a resumed run does what the killed one would have.
    """

    def __init__(
        self, method: Method, images: ImageSet, run: RunFolder, config: Pretrain, recipe: optim.Optim, batch_size: int
    ) -> None:
        super().__init__()
        self.method, self.images, self.run, self.config = method, images, run, config
        self.recipe, self.batch_size = recipe, batch_size  # a batch is that of all processes
        self.average = Teacher(method.encoder()) if config.ema else None
        self.minutes = config.minutes or DEFAULT_MINUTES
        self.steps = 0  # batches so far
        self.seconds = 0.0  # of training so far, over all sessions of this run
        self.progress = 0.0
        self.scalars: dict[str, float] = {}  # of the last step
        self.watchers = Watchers(config.checkpoint_minutes)
        for part in method.modules() if config.compile else ():
            if isinstance(part, Backbone):  # a teacher's too
                part.compile_model()

    def kept(self) -> Backbone:
        """Return the backbone that the run keeps: the averaged one if there is one."""
        if self.average is not None:
            assert isinstance(self.average.model, Backbone)
            return self.average.model
        return self.method.encoder()

    def configure_model(self) -> None:
        """With several processes, let BatchNorm see the whole batch; SelfsightError if not all are here."""
        require_all(self.trainer.world_size)
        if self.trainer.world_size > 1:
            synchronize_batchnorm(self.method, self.trainer.strategy.root_device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the recipe's optimizer; the rate is set at each step."""
        return optim.build(self.method, self.recipe)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient's norm. Lightning's own way refuses fused optimizers under autocast, bfloat16 or not."""
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.clip)

    def train_dataloader(self) -> Iterator[Batch]:
        """Return the batches from where the run stands, without an end: Lightning counts them as one epoch."""
        rows, seed, (rank, world) = self.images.rows("train"), self.config.seed, process()
        size = self.batch_size // world
        self.loader = Loader(self.images, rows, size, self.device, seed=seed, rank=rank, world=world)
        return self.loader.stream(self.steps)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave the batch: the loader has put it there."""
        return batch

    def on_train_start(self) -> None:
        """Start the clock."""
        self.started, self.begun_at = time.monotonic() - self.seconds, self.steps
        self.watchers.start(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Set the seed and the learning rate of this step; -1 ends the training."""
        # Only here have the optimizer, this module and Lightning's counters all seen the same number of steps.
        if self.steps % self.config.accumulate == 0 and self.watchers.must_stop(self):
            self.trainer.should_stop = True
            return -1
        torch.manual_seed(self.config.seed * 1_000_003 + self.steps)
        groups, batch_size = self.trainer.optimizers[0].param_groups, self.batch_size * self.config.accumulate
        self.rate = optim.schedule(groups, self.recipe, self.progress, batch_size)
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the method's loss."""
        try:
            out = self.method(batch, self.progress)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # features that are not finite
            raise SelfsightError(
                f"step {self.steps}: {error}; try a lower --lr or --clip 1, in another --out"
            ) from error
        self.scalars = {k: float(torch.as_tensor(v).detach()) for k, v in out.items()}
        if not math.isfinite(self.scalars["loss"]):
            value = self.scalars["loss"]
            raise SelfsightError(
                f"the loss is {value} at step {self.steps}; try a lower --lr or --clip 1, in another --out"
            )
        loss: Tensor = out["loss"]
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Move on: teacher, clock, watchers; stop when the budget is spent."""
        self.steps += 1
        if self.config.compile and self.steps == self.begun_at + 1:
            self.started = time.monotonic() - self.seconds  # compiling is no training: it would leave no warm-up
        self.seconds = time.monotonic() - self.started
        if self.steps % self.config.accumulate == 0:
            self.method.after_step(self.progress)
            if self.average is not None:
                self.average.update(self.method.encoder(), self.average.brisk(self.config.ema, self.progress))
        self.progress = self._progress()
        self.watchers.after_step(self)
        if self.progress >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the run stands."""
        own = {"steps": self.steps, "seconds": self.seconds, "progress": self.progress}
        checkpoint["selfsight"] = {"trainee": own, "watchers": self.watchers.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stand where the run stood."""
        vars(self).update(checkpoint["selfsight"]["trainee"])
        self.watchers.load_state(checkpoint["selfsight"]["watchers"])

    def _progress(self) -> float:
        if self.config.epochs:
            steps, together = round(self.config.epochs * self.loader.steps_per_epoch), self.config.accumulate
            return min(1.0, self.steps / max(together, -(-steps // together) * together))  # no gradient is thrown away
        share = min(1.0, self.seconds / (60 * self.minutes))
        if self.trainer.world_size > 1:  # all processes must agree on the rate and on when to stop
            agreed = torch.tensor(share, device=self.device)
            dist.broadcast(agreed, 0)
            share = float(agreed)
        return share
