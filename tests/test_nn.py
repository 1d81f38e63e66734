"""Gathers and BatchNorm over two processes equal one process's; the teacher is an exponential average."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import backbones
from selfsight.methods.simclr import nt_xent
from selfsight.nn import CpuSyncBatchNorm, Teacher, gather, mlp, nearest, spread, synchronize_batchnorm
from tests.processes import together

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    spec = backbones.plan("test_resnet", 16, 1, (0.5,), (0.25,))
    return nn.Sequential(backbones.create(spec), mlp(96, 32, 8)).double()


def loss_and_gradients(net: nn.Module, views: Tensor) -> tuple[Tensor, list[Tensor]]:
    """`views` (2, B, 1, 16, 16): NT-Xent of two views."""
    z = F.normalize(net(views.flatten(0, 1)), dim=1)
    loss = nt_xent(z, 0.2)[0]
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters() if p.grad is not None]


def process(rank: int, folder: str, views: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net = synchronize_batchnorm(network(), CPU)
    own = views[:, 4 * rank : 4 * rank + 4]
    loss, grads = loss_and_gradients(net, own)
    for value in (loss, *grads):  # as DistributedDataParallel: the mean over the processes
        dist.all_reduce(value)
        value /= 2
    if rank == 0:
        buffers = {k: v for k, v in net.named_buffers() if "running" in k}
        torch.save({"loss": loss, "grads": grads, "buffers": buffers}, f"{folder}/result")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    views = torch.rand(2, 8, 1, 16, 16, dtype=torch.float64)
    net = network()
    loss, grads = loss_and_gradients(net, views)
    together(process, str(tmp_path), views)
    result = torch.load(tmp_path / "result", weights_only=True)
    assert torch.allclose(result["loss"], loss, atol=1e-6)
    assert len(grads) == len(result["grads"])
    for mine, theirs in zip(grads, result["grads"], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    for name, value in net.named_buffers():
        if "running" in name:
            assert torch.allclose(value, result["buffers"][name], atol=1e-6), name


def test_gather_without_processes_is_the_same_tensor() -> None:
    x = torch.rand(3, 2)
    assert gather(x) is x


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 3, 3)])
def test_cpu_sync_batchnorm_keeps_names_and_evaluates_alike(shape: tuple[int, ...]) -> None:
    norm: nn.BatchNorm1d | nn.BatchNorm2d = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    norm(torch.rand(shape))
    synced = CpuSyncBatchNorm(norm)
    assert list(synced.state_dict()) == list(norm.state_dict())
    x = torch.rand(shape)
    assert torch.allclose(synced.eval()(x), norm.eval()(x))


def test_the_nearest_is_found_within_autocast_too() -> None:
    """In bfloat16 all of these cosines are 1, and the first would be taken."""
    angles = torch.tensor([0.03, 0.02, 0.01, 0.04])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(torch.tensor([[1.0, 0.0]]), rows)
    assert torch.equal(found, rows[2:3])


def test_teacher_is_an_exponential_average() -> None:
    student = nn.Linear(3, 2)
    teacher = Teacher(student)
    before = student.weight.detach().clone()
    with torch.no_grad():
        student.weight.add_(1)
    teacher.update(student, 0.9)
    average = teacher.model.get_parameter("weight")
    assert torch.allclose(average, before + 0.1)
    assert not average.requires_grad
    assert not teacher(torch.rand(1, 3)).requires_grad


def test_teacher_keeps_batchnorm_statistics_of_its_own_if_asked() -> None:
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student)
    student(torch.rand(4, 2) + 1)
    teacher.update(student, 0.9, buffers=False)
    assert not teacher.model.get_buffer("running_mean").any()
    teacher.update(student, 0.9)
    assert torch.equal(teacher.model.get_buffer("running_mean"), student.get_buffer("running_mean"))


@pytest.mark.parametrize(("steps", "share"), [(100, 0.99), (10, 0.97), (100_000, 0.999)])
def test_a_teacher_follows_a_training_however_short(steps: int, share: float) -> None:
    student = nn.Linear(1, 1)
    teacher = Teacher(student)
    with torch.no_grad():
        student.weight.copy_(teacher.model.get_parameter("weight") + 1)
    start = float(student.weight.detach()) - 1
    for step in range(steps // 4):
        teacher.follow(student, 0.996, step / steps)
    assert float(teacher.model.get_parameter("weight")) - start > share


def test_a_pause_is_no_step_that_a_teacher_hurries_after() -> None:
    teacher = Teacher(nn.Linear(1, 1))
    teacher.steps.fill_(100)
    for progress in (0.2, 0.25):  # of a clock: the last step was at 0.198
        assert teacher.brisk(0.99, progress) == pytest.approx(1 - progress / 100 / 0.05)


def test_a_teacher_in_a_long_training_has_the_momentum_asked_for() -> None:
    student = nn.Linear(1, 1)
    teacher = Teacher(student)
    before = float(student.weight.detach())
    with torch.no_grad():
        student.weight.add_(1)
    teacher.follow(student, 0.99, 0.0)
    teacher.follow(student, 0.99, 1e-5)
    assert float(teacher.model.get_parameter("weight")) - before == pytest.approx(1 - 0.99**2, abs=1e-5)


def test_mlp_has_the_papers_layers() -> None:
    kinds = [type(layer).__name__ for layer in mlp(4, 8, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    kinds = [type(layer).__name__ for layer in mlp(4, 8, 8, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_vicregs_hinge_is_zero_where_features_spread_enough() -> None:
    z = torch.randn(50, 4, dtype=torch.float64)
    z = 1.1 * (z - z.mean(0)) / z.std(0)
    wide, narrow = z.clone().requires_grad_(), (z / 2).requires_grad_()
    spread(wide).backward()
    assert float(spread(wide).detach()) == 0
    assert wide.grad is not None
    assert not wide.grad.any()
    assert float(spread(narrow).detach()) == pytest.approx(1 - 0.55, abs=1e-3)
