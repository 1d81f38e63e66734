"""DINO's loss and centre equal a plain loop and lightly's; the teacher sees global views only and is never trained."""

import copy
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightly.loss import DINOLoss, KoLeoLoss, swav_loss
from torch import Tensor

from selfsight import backbones, optim
from selfsight.data.images import Batch
from selfsight.distillation import dino_loss
from selfsight.errors import SelfsightError
from selfsight.methods import Facts
from selfsight.methods.dino import DINO
from selfsight.methods.dinov2 import DINOv2
from selfsight.methods.ibot import IBOT
from tests.processes import together

PROTOTYPES = 12


def a_dino(
    backbone: str = "test_resnet", size: int = 32, centring: Literal["mean", "sinkhorn"] = "mean", koleo: float = 0
) -> DINO:
    torch.manual_seed(0)
    spec = backbones.plan(backbone, size, 3, (0.5,) * 3, (0.25,) * 3)
    config = DINO.Config(prototypes=PROTOTYPES, hidden=16, local_views=3, centring=centring, koleo=koleo)
    return DINO(backbones.create(spec), config.fit_to(Facts(3000, size, 3)))


def a_batch(n: int = 5) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randint(0, 256, (n, 3, 40, 40), dtype=torch.uint8), torch.ones(n), torch.arange(n))


def plain_loss(student: Tensor, teacher: Tensor, centre: Tensor, teacher_temperature: float) -> Tensor:
    """Algorithm 1 with multi-crop (equation 3), one pair of views of one image at a time."""
    terms = []
    for i in range(student.shape[1]):
        for t in range(len(teacher)):
            for s in range(len(student)):
                if s != t:
                    p = torch.exp((teacher[t, i] - centre) / teacher_temperature)
                    q = torch.exp(student[s, i] / 0.1)
                    terms.append(-(p / p.sum() * torch.log(q / q.sum())).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("views", [2, 5])
def test_loss_gradient_and_centre_equal_a_plain_loop_and_lightlys_over_many_steps(views: int) -> None:
    torch.manual_seed(0)
    method, theirs = a_dino(), DINOLoss(PROTOTYPES, student_temp=0.1, center_momentum=0.9)
    plain_centre = torch.rand(PROTOTYPES) / 10  # of zero on, the first answers are centred by their own mean
    method.targets.mean.copy_(plain_centre)
    theirs.center.copy_(plain_centre.view_as(theirs.center))
    for step in range(5):
        cosines = torch.rand(2, 4, PROTOTYPES) * 2 - 1
        raw = torch.rand(views, 4, PROTOTYPES) * 2 - 1
        results = []
        for loss in (
            lambda x, t: dino_loss(x, method.targets(t, 1.0), 0.1),
            lambda x, t, centre=plain_centre: plain_loss(x, t, centre, 0.02),
            lambda x, t: theirs(list(t), list(x), teacher_temp=0.02),
        ):
            x = raw.clone().requires_grad_()
            value = loss(x, cosines)
            value.backward()
            assert x.grad is not None
            results.append((value.detach(), x.grad))
        for value, grad in results[1:]:
            assert torch.allclose(value, results[0][0], atol=1e-5), step
            assert torch.allclose(grad, results[0][1], atol=1e-5), step
        method.targets.follow(cosines, 0.9)
        plain_centre = 0.9 * plain_centre + 0.1 * sum(cosines[t, i] for t in range(2) for i in range(4)) / 8
        assert torch.allclose(method.targets.mean, plain_centre, atol=1e-6)
        assert torch.allclose(method.targets.mean, theirs.center.flatten(), atol=1e-6)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_teacher_sees_global_views_only_and_the_student_all(backbone: str) -> None:
    method = a_dino(backbone)
    sides: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    answers: dict[str, Tensor] = {}
    for name, net in (("student", method.backbone), ("teacher", method.encoder())):
        net.register_forward_pre_hook(lambda _, x, name=name: sides[name].append(tuple(x[0].shape)))
    method.head.register_forward_hook(lambda _, x, y: answers.update(student=y))
    method.teacher.register_forward_hook(lambda _, x, y: answers.update(teacher=y))
    method.teacher.steps.fill_(1_000_000)  # no hurry
    method.targets.mean.uniform_(-0.1, 0.1)
    centre = method.targets.mean.clone()
    loss = method(a_batch(), 1.0)["loss"]
    assert sides == {"student": [(10, 3, 32, 32), (15, 3, 16, 16)], "teacher": [(10, 3, 32, 32)]}
    student, teacher = answers["student"].view(5, 5, -1), answers["teacher"].view(2, 5, -1)
    assert torch.allclose(loss, plain_loss(student, teacher, centre, 0.02), atol=1e-5)
    assert torch.allclose(method.targets.mean, 0.9 * centre + 0.1 * teacher.mean((0, 1)), atol=1e-6)


def test_gradients_never_reach_the_teacher() -> None:
    method = a_dino()
    method(a_batch(), 0.5)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = {id(p) for group in optim.build(method, DINO.optim).param_groups for p in group["params"]}
    assert trained == {id(p) for net in (method.backbone, method.head) for p in net.parameters()}


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)])
def test_the_teacher_is_an_average_that_moves_less_and_less(progress: float, momentum: float) -> None:
    method = a_dino()
    before = copy.deepcopy(dict(method.teacher.model.named_parameters()))
    for parameter in (*method.backbone.parameters(), *method.head.parameters()):
        parameter.data.add_(torch.rand_like(parameter))
    student = dict(torch.nn.Sequential(method.backbone, method.head).named_parameters())
    method.teacher.steps.fill_(1_000_000)  # steps were so small that the teacher need not hurry
    method.after_step(progress)
    for name, weight in method.teacher.model.named_parameters():
        assert torch.allclose(weight, momentum * before[name] + (1 - momentum) * student[name], atol=1e-6), name


def test_the_teachers_batchnorm_statistics_are_of_global_views() -> None:
    method = a_dino()
    teacher = copy.deepcopy(method.encoder())
    seen: list[Tensor] = []
    method.encoder().register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    method(a_batch(), 0.5)
    method.after_step(0.5)
    teacher(seen[0])
    for (name, mine), theirs in zip(method.encoder().named_buffers(), teacher.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_prototypes_are_directions_frozen_early() -> None:
    method = a_dino()
    x = torch.rand(3, method.backbone.dim)
    cosines = method.head(x)
    assert float(cosines.detach().abs().max()) <= 1
    with torch.no_grad():
        method.head.prototypes.mul_(torch.rand(PROTOTYPES, 1) + 1)
    assert torch.allclose(method.head(x), cosines, atol=1e-6)

    optimizer = optim.build(method, DINO.optim)
    before = F.normalize(method.head.prototypes.detach().clone())
    for progress, moves in ((0.0, False), (0.019, False), (0.02, True)):
        optimizer.zero_grad()
        method(a_batch(), progress)["loss"].backward()
        grad = method.head.prototypes.grad
        assert grad is not None, "DistributedDataParallel would wait for it"
        assert bool(grad.any()) == moves
        optimizer.step()  # with weight decay, which changes lengths only
        assert torch.allclose(F.normalize(method.head.prototypes), before, atol=1e-6) != moves


def test_the_teachers_temperature_rises_to_its_end() -> None:
    torch.manual_seed(0)
    spec = backbones.plan("test_resnet", 32, 3, (0.5,) * 3, (0.25,) * 3)
    method = DINO(
        backbones.create(spec),
        DINO.Config(
            prototypes=2,
            teacher_temperature_start=0.04,
            teacher_temperature=0.08,
            teacher_warmup=0.5,
            centring="mean",
        ),
    )
    method.targets.mean.fill_(1.0)  # the same from each
    cosines = torch.tensor([[0.1, 0.0]])
    for progress, temperature in ((0.0, 0.04), (0.25, 0.06), (0.5, 0.08), (1.0, 0.08)):
        p = method.targets(cosines, progress)[0]
        assert float(0.1 / (p[0] / p[1]).log()) == pytest.approx(temperature, rel=1e-4)


def test_with_sinkhorn_the_targets_are_an_assignment_of_the_whole_batch_sharpened() -> None:
    method = a_dino(centring="sinkhorn")
    cosines = torch.rand(2, 24, PROTOTYPES) * 0.2 + torch.linspace(0, 1, PROTOTYPES)  # one answer for all
    target = method.targets(cosines, 1.0)
    assert torch.allclose(target, swav_loss.sinkhorn(cosines.flatten(0, 1), 3, 0.02).view_as(cosines), atol=1e-5)
    share = target.mean((0, 1)) * PROTOTYPES
    assert float(share.min()) > 0.5, "all prototypes are answers"
    answers: dict[str, Tensor] = {}
    method.head.register_forward_hook(lambda _, x, y: answers.update(student=y))
    method.teacher.register_forward_hook(lambda _, x, y: answers.update(teacher=y))
    loss = method(a_batch(), 1.0)["loss"]
    student, teacher = answers["student"].view(5, 5, -1), answers["teacher"].view(2, 5, -1)
    assert torch.allclose(loss, dino_loss(student, method.targets(teacher, 1.0), 0.1), atol=1e-5)


def test_koleo_keeps_apart_the_embeddings_of_each_global_view() -> None:
    method = a_dino(koleo=0.5)
    maps: list[Tensor] = []
    method.backbone.register_forward_hook(lambda _, x, y: maps.append(y.detach()))
    out = method(a_batch(), 1.0)
    one, two = (KoLeoLoss()(view) for view in maps[0].chunk(2))
    assert float(out["koleo"]) == pytest.approx(float(one + two) / 2, abs=1e-5)
    answers = float(out["teacher_entropy"] + out["divergence"])
    assert float(out["loss"].detach()) == pytest.approx(answers + 0.5 * float(out["koleo"]), abs=1e-5)
    assert float(out["chance"]) == pytest.approx(math.log(PROTOTYPES) + 0.5 * float(out["koleo"]), abs=1e-5)


def test_the_first_answers_are_centred_by_their_own_mean() -> None:
    method = a_dino()
    cosines = torch.rand(2, 24, PROTOTYPES) * 0.2 + torch.linspace(0, 1, PROTOTYPES)
    assert torch.allclose(method.targets(cosines, 1.0), F.softmax((cosines - cosines.mean((0, 1))) / 0.02, 2))


def test_the_centre_is_in_the_checkpoint() -> None:
    method, other = a_dino(), a_dino()
    method(a_batch(), 0.5)
    assert method.targets.mean.any(), "set by the first batch"
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.targets.mean, method.targets.mean)


def test_answers_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        method = a_dino()
        assert method.head(torch.rand(2, method.backbone.dim)).dtype == torch.float32
        assert method(a_batch(), 0.5)["loss"].dtype == torch.float32


def test_teacher_entropy_and_divergence_tell_the_two_collapses() -> None:
    method = a_dino()
    out = method(a_batch(), 0.5)
    assert float(out["teacher_entropy"] + out["divergence"]) == pytest.approx(float(out["loss"].detach()), abs=1e-5)
    method.head.prototypes.data[:] = method.head.prototypes.data[0]
    method.teacher.update(torch.nn.Sequential(method.backbone, method.head), 0.0)
    method.targets.mean.zero_()
    uniform = method(a_batch(), 0.5)
    assert float(uniform["teacher_entropy"]) == pytest.approx(math.log(PROTOTYPES), abs=1e-4)
    assert float(uniform["divergence"]) == pytest.approx(0, abs=1e-4)
    assert float(uniform["loss"].detach()) == pytest.approx(float(uniform["chance"]), abs=1e-4)


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [
        ("resnet10t", 16, 16),
        ("resnet10t", 28, 16),
        ("resnet10t", 64, 32),
        ("resnet10t", 96, 48),
        ("resnet10t", 224, 96),
        ("convnext_atto", 64, 32),
        ("vit_tiny_patch16_224", 28, 12),
        ("vit_tiny_patch16_224", 64, 32),
        ("vit_tiny_patch16_224", 224, 96),
    ],
)
def test_local_views_are_of_a_size_that_the_backbone_takes(backbone: str, size: int, side: int) -> None:
    method = a_dino(backbone, size)
    assert method.local.size == side
    with torch.no_grad():
        assert method.backbone.eval()(torch.rand(1, 3, side, side)).shape == (1, method.backbone.dim)


def test_a_backbone_that_takes_no_small_views_is_named() -> None:
    backbone = backbones.create(backbones.plan("levit_128s", 224, 3, (0.5,) * 3, (0.2,) * 3))
    with pytest.raises(SelfsightError, match=r"--backbone levit_128s: takes no small views of 96 .* --local-views 0"):
        DINO(backbone, DINO.Config())
    assert DINO(backbone, DINO.Config(local_views=0)).local_views == 0


def test_defaults_shrink_with_the_data() -> None:
    configs = [DINO.Config().fit_to(Facts(n, 224, 3)) for n in (3000, 100_000, 358_000, 1_280_000, 10**8)]
    assert [c.prototypes for c in configs] == [1024, 1024, 8192, 65536, 65536]
    assert [c.teacher_temperature for c in configs] == pytest.approx([0.02, 0.02, 0.045, 0.07, 0.07], abs=1e-4)
    assert [c.momentum for c in configs] == pytest.approx([0.99, 0.99, 0.993, 0.996, 0.996], abs=1e-4)
    assert [c.koleo for c in configs] == pytest.approx([0.1, 0.1, 0.05, 0, 0], abs=1e-3)
    assert [c.centring for c in configs] == ["sinkhorn"] * 3 + ["mean"] * 2, "with KoLeo never the mean"
    others = [cls.Config().fit_to(Facts(1_280_000, 224, 3)).prototypes for cls in (IBOT, DINOv2)]
    assert others == [8192, 65536], "as in their papers"
    asked = DINO.Config(prototypes=10, momentum=0.0, local_views=0).fit_to(Facts(3000, 224, 3))
    assert (asked.prototypes, asked.momentum, asked.local_views) == (10, 0.0, 0)


def move_centre_of_half(rank: int, folder: str, cosines: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    method = a_dino()
    method.targets.follow(cosines[:, 3 * rank : 3 * rank + 3], 0.9)
    torch.save(method.targets.mean, f"{folder}/centre{rank}")
    dist.destroy_process_group()


def test_two_processes_have_one_centre(tmp_path: Path) -> None:
    cosines = torch.rand(2, 6, PROTOTYPES)
    method = a_dino()
    method.targets.follow(cosines, 0.9)
    together(move_centre_of_half, str(tmp_path), cosines)
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f"centre{rank}", weights_only=True), method.targets.mean, atol=1e-6)
