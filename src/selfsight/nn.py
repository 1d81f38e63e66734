"""What three methods or more share: an MLP head, an EMA teacher, gathers across processes, synchronized BatchNorm."""

import copy
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from selfsight.optim import cosine


def mlp(*sizes: int) -> nn.Sequential:
    """Return Linear layers with BatchNorm and ReLU between them: `mlp(512, 512, 128)` is 512 → 512 → 128."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def map_decoder(dim: int, out: int, doublings: int, width: int = 128) -> nn.Sequential:
    """Return a light decoder of feature maps: (B, dim, h, w) → (B, out, h · 2^doublings, w · 2^doublings).

    Narrows to `width` channels, then doubles the side by nearest upsampling and a 3 x 3 convolution (Odena et al. 2016,
    "Deconvolution and Checkerboard Artifacts"), halving the width down to 32; the last layer is linear, 1 x 1.
    """
    layers: list[nn.Module] = [nn.Conv2d(dim, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    for _ in range(doublings):
        narrower = max(width // 2, 32)
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, narrower, 3, padding=1, bias=False),
            nn.BatchNorm2d(narrower),
            nn.ReLU(inplace=True),
        ]
        width = narrower
    return nn.Sequential(*layers, nn.Conv2d(width, out, 1))


SLOWEST = 0.05
"""What follows a training averages over at most this share of it, unless a method says otherwise."""


class Teacher(nn.Module):
    """An exponential moving average of a student, kept in float32 and without gradients."""

    steps: Tensor

    def __init__(self, student: nn.Module, slowest: float = SLOWEST) -> None:
        """Copy the student, to average over at most this share of the training."""
        super().__init__()
        self.slowest = slowest
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def follow(self, student: nn.Module, momentum: float, progress: float) -> None:
        """Move the weights as far as it is usual in self-distillation: less and less, by a momentum that rises to 1.

        It rises by half a cosine from `momentum`, made `brisk`. Its BatchNorm statistics stay its own: it sees images.
        """
        start = self.brisk(momentum, progress)
        self.update(student, cosine(start, 1.0, progress), buffers=False)

    def brisk(self, momentum: float, progress: float) -> float:
        """Return `momentum`, or if that is less the one whose average spans the `slowest` share of the training.

        Papers choose theirs for 10^5 steps. In a training of 100 a teacher of 0.99 would half stay as it began.
        A step's share of the training is the mean so far: a clock goes on while health is measured or a laptop sleeps.
        """
        return min(momentum, max(0.0, 1 - progress / max(1, int(self.steps)) / self.slowest))

    def forward(self, x: Tensor) -> Tensor:
        """Return the teacher's output for `x`, without gradients."""
        with torch.no_grad():
            y: Tensor = self.model(x)
        return y

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float, buffers: bool = True) -> None:
        """Move the weights: teacher ← momentum · teacher + (1 - momentum) · student; buffers are copied.

        Not so with `buffers=False`: for a teacher that sees images in training and has BatchNorm statistics of its own.
        """
        self.steps += 1
        weights, new = list(self.model.parameters()), list(student.parameters())
        average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
        average(weights, new, None)  # all at once: on a GPU one by one take longer
        if buffers:
            for buffer, now in zip(self.model.buffers(), student.buffers(), strict=True):
                buffer.copy_(now)


def exact(x: Tensor) -> Tensor:
    """Return x in float32, out of autocast's bfloat16; in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Return the vectors (..., D) with a length of 1, in float32 at least."""
    return F.normalize(exact(x), dim=-1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance (N,) of the unit vectors of `a` and `b` (N, D): 2 - 2 cosine, 0 to 4."""
    return 2 - 2 * (unit(a) * unit(b)).sum(1)


def find(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of finding each query's key, by cosine / temperature.

    Unit vectors: `query` (B, D) of this process, `keys` (world · B, D) of all, in the order of their ranks.
    """
    own = process()[0] * len(query) + torch.arange(len(query), device=query.device)
    return F.cross_entropy(cosines(query, keys) / temperature, own)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines (N, M) of unit vectors (N, D) and (M, D), out of autocast's bfloat16.

    Near 1 that knows steps of 0.004 only, which a temperature of 0.04 makes steps of 0.1; and of many neighbours the
    nearest are then alike.
    """
    with torch.autocast(a.device.type, enabled=False):
        return exact(a) @ exact(b).T


def nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return of the `rows` (Q, D) the one most similar to each of the vectors (N, D), all of length 1: (N, D)."""
    return rows[cosines(vectors, rows).argmax(1)]


def spread(z: Tensor) -> Tensor:
    """Return the mean, over features, of what their standard deviations in z (N, D) lack of 1 (VICReg, eqs. 1, 2)."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


class Queue(nn.Module):
    """The last vectors that were put in, of all processes, the oldest overwritten first; at the start random ones."""

    rows: Tensor
    place: Tensor

    def __init__(self, length: int, dim: int) -> None:
        """Hold `length` unit vectors (length, dim), and the place where the next one goes."""
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def share(self) -> Tensor:
        """Return this process's part of the rows: the parts of all processes are the queue, but for a rest."""
        rank, world = process()
        return self.rows[: len(self.rows) // world * world].chunk(world)[rank]  # as many in each

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Put in this process's (N, dim) and those of the others, in the order of their ranks."""
        new, rows = gather(vectors.detach())[-len(self.rows) :], self.rows.clone()
        where = (self.place + torch.arange(len(new), device=rows.device)) % len(rows)
        rows[where] = new.to(rows.dtype)
        self.rows = rows  # another tensor: the step's gradients need the one that was read
        self.place = (self.place + len(new)) % len(rows)


def process() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rank, world = process()
        parts = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every process's loss depends on every row: the row's gradient is the sum over all of them.
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        world = process()[1]
        mine: Tensor = grad.chunk(world)[ctx.rank]
        return mine


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, in rank order, with gradients to each: (B, D) → (world · B, D)."""
    if process()[1] == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def total(x: Tensor) -> Tensor:
    """Return the sum of x over all processes, with gradients to each."""
    if process()[1] == 1:
        return x
    summed: Tensor = _Sum.apply(x)
    return summed


class CpuSyncBatchNorm(nn.Module):
    """BatchNorm over the batches of all processes, on the CPU, where torch has none.

    Statistics in float32 at least; parameter and buffer names are nn.BatchNorm's, so that state dicts fit either.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum if norm.momentum is not None else 0.1
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        # timm folds the activation into some of its norms; it has no parameters.
        self.after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, D) or (B, D, h, w) over all dimensions but D and over all processes."""
        if not self.training:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            normed: Tensor = self.after(y)
            return normed
        dims = [0, *range(2, x.dim())]
        xf = exact(x)
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * process()[1]
        mean: Tensor = _Sum.apply(xf.sum(dims)) / count
        centred = xf - mean.view(shape)
        var: Tensor = _Sum.apply(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / max(count - 1, 1), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        out: Tensor = self.after(y.to(x.dtype))
        return out


def synchronize_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with each BatchNorm taking its statistics from the batches of all processes."""
    if device.type != "cpu":
        converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return CpuSyncBatchNorm(module).train(module.training)  # a frozen teacher's stay frozen
    for name, child in module.named_children():
        setattr(module, name, synchronize_batchnorm(child, device))
    return module


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: CUDA from Ampere on, CPUs with AVX512-bf16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return bf16 autocast where it is faster, else a context that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if fast_bf16(device) else nullcontext()
