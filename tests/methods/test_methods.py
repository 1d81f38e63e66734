"""The contract that every method keeps; runs over all of them."""

import copy
import dataclasses
import functools
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from selfsight import api, backbones, methods, optim
from selfsight.backbones import BackboneSpec
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods import Facts, Method
from selfsight.methods.deepcluster_v2 import DeepClusterV2
from selfsight.nn import synchronize_batchnorm
from selfsight.run import RunFolder
from selfsight.training import Pretrain
from tests.processes import together

SIZE = 32


SMALL = {
    "hidden": 16, "projection": 8, "bottleneck": 16, "dim": 8, "queue": 24, "prototypes": 12, "slices": 5, "width": 32,
    "depth": 1, "local_views": 2,
}  # fmt: skip
"""Settings by which a slow reference is quick enough, for the methods that have them."""


@functools.cache
def a_photo() -> Tensor:
    return torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)


def a_batch(n: int = 16) -> Batch:
    photo = a_photo()
    crops = [photo[:, 20 * i : 20 * i + 48, 30 * i : 30 * i + 48] for i in range(n)]
    return Batch(torch.stack(crops), torch.ones(n), torch.arange(n), torch.arange(n) % 3)


@functools.cache
def a_run() -> str:
    """The folder of a run whose backbone may teach."""
    torch.manual_seed(5)
    spec = backbones.plan("test_resnet", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    run = RunFolder(Path(tempfile.mkdtemp()))
    run.write_config({"backbone": backbones.spec_to_json(spec)})
    run.save_backbone(backbones.create(spec))
    return str(run.path)


def a_method(name: str, backbone: str | None = None, small: bool = False) -> Method:
    teacher = a_run() if name == "distill" else None
    torch.manual_seed(0)
    cls = methods.get(name)
    backbone = backbone or ("test_vit" if cls.vit else "test_resnet")
    by_mean = cls.mean_tokens and backbone == "test_vit"
    spec = backbones.plan(backbone, SIZE, 3, (0.5,) * 3, (0.25,) * 3, mean_tokens=by_mean)
    own = {field.name for field in dataclasses.fields(cls.Config)}
    settings: dict[str, Any] = {k: v for k, v in SMALL.items() if small and k in own}
    settings |= {"teacher": teacher} if teacher else {}
    return cls(backbones.create(spec), cls.Config(**settings).fit_to(Facts(16, SIZE, 3)))


def gradients(method: Method, loss: Tensor) -> dict[str, Tensor]:
    """The loss's gradient by each trained parameter's name."""
    method.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", methods.names())
def test_loss_is_finite_and_reaches_the_whole_backbone(name: str) -> None:
    method = a_method(name)
    for module in method.modules():  # timm starts residual branches at zero, which would hide them from the gradient
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    out = method(a_batch(), 0.5)
    assert torch.isfinite(out["loss"])
    out["loss"].backward()
    for parameter, weight in method.backbone.named_parameters():  # the student, where a teacher is kept
        assert weight.grad is not None, parameter
        assert float(weight.grad.abs().sum()) > 0, parameter


@pytest.mark.parametrize("name", methods.names())
def test_a_few_steps_lower_the_loss(name: str) -> None:
    method = a_method(name, small=True)
    batch = a_batch()
    optimizer = optim.build(method, method.optim)
    optim.set_rate(optimizer.param_groups, 1e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step % 3)  # three fixed draws of views
        loss = method(batch, step / 12)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step / 12)
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", methods.names())
def test_state_survives_save_and_load(name: str) -> None:
    method = a_method(name, small=True)
    method(a_batch(), 0.5)["loss"].backward()
    method.after_step(0.5)
    other = a_method(name, small=True)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    results = []
    for m in (method, other):
        torch.manual_seed(7)
        results.append(m(a_batch(), 0.6)["loss"])
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("name", methods.names())
def test_trains_a_vit_and_says_so_where_it_trains_nothing_else(name: str) -> None:
    out = a_method(name, "test_vit")(a_batch(4), 0.0)
    assert math.isfinite(float(out["loss"].detach()))
    if methods.get(name).vit:
        with pytest.raises(SelfsightError, match=r"--backbone test_resnet: .*vit_tiny_patch16_224"):
            a_method(name, "test_resnet")


DIVIDED = {"dino", "ibot", "dinov2", "ijepa", "all4one"}
"""Methods whose loss depends on how a batch is divided: KoLeo, how many patches are hidden, dropout."""


def step_of_half(rank: int, folder: str, names: list[str], world: int) -> None:
    """Take one step of each method on this process's part of a batch, and keep its loss and weights."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    batch, found = a_batch(), {}
    size = len(batch.images) // world
    part = Batch(*(values[rank * size :][:size] for values in vars(batch).values()))
    for name in names:
        method = a_method(name, small=True)
        if isinstance(method, DeepClusterV2):
            method.clusters[:, : len(batch.images) // 2] = 1  # one process knows all of its images, the other none
        if world > 1:
            synchronize_batchnorm(method, torch.device("cpu"))
        torch.manual_seed(4)
        loss = method(part, 0.5)["loss"]
        loss.backward()
        weights = [p for p in method.parameters() if p.requires_grad]
        for weight in weights:
            assert weight.grad is not None
            if world > 1:  # as DistributedDataParallel does
                dist.all_reduce(weight.grad)
                weight.grad /= world
        torch.optim.SGD(weights, lr=0.02).step()
        method.after_step(0.5)
        value = loss.detach()
        if world > 1:
            dist.all_reduce(value)
        found[name] = value / world, method.state_dict()
    torch.save(found, f"{folder}/{world}-{rank}")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_take_the_same_step_as_one(tmp_path: Path) -> None:
    names = methods.names()
    together(step_of_half, str(tmp_path), names, 2)
    step_of_half(0, str(tmp_path), names, 1)
    first, second, alone = (torch.load(tmp_path / name, weights_only=True) for name in ("2-0", "2-1", "1-0"))
    for name in names:
        (loss, state), (_, other), (plain, one) = first[name], second[name], alone[name]
        assert torch.isfinite(loss), name
        for key, value in state.items():
            assert torch.equal(value, other[key]), (name, key, "the two processes went apart")
            if name not in DIVIDED and value.is_floating_point():
                assert torch.allclose(value, one[key], atol=1e-4), (name, key)
        if name not in DIVIDED:
            assert float(loss) == pytest.approx(float(plain), abs=1e-4), name


COMPARES_NOTHING = {
    "affine", "colorization", "data2vec", "ijepa", "inpainting", "jigsaw", "mae", "rotation", "simmim", "supcon",
}  # fmt: skip
"""Methods that predict a class, a colour or features of hidden parts, so that no images' vectors are to differ."""


@pytest.mark.parametrize("name", methods.names())
def test_what_is_compared_is_a_vector_an_image(name: str) -> None:
    method = a_method(name, small=True).eval()
    with torch.no_grad():
        features = method.encoder()(a_batch().images[:, :, :SIZE, :SIZE].float() / 255)
        found = method.projections(features)
    assert (found is None) == (name in COMPARES_NOTHING)
    if found is not None:
        assert found.shape[0] == len(features)
        assert found.dim() == 2
        assert len(found.unique(dim=0)) == len(features), "different images differ"


@pytest.mark.parametrize("name", methods.names())
def test_draws_pictures_in_range(name: str) -> None:
    method = a_method(name).eval()
    with torch.no_grad():
        pictures = method.picture(a_batch())
    assert pictures
    for caption, images in pictures.items():
        assert caption
        assert images.dim() == 5
        assert images.shape[1] <= 10
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1


@pytest.mark.parametrize("name", methods.names())
def test_says_what_it_is(name: str) -> None:
    cls = methods.get(name)
    assert cls.paper
    assert (cls.__doc__ or "").strip().endswith(".")
    config = cls.Config().fit_to(Facts(1000, SIZE, 3))
    assert config == config.fit_to(Facts(10**6, 224, 3)), "a filled-in config stays as it is"


@pytest.mark.parametrize(
    ("name", "backbone", "layers", "standardized"),
    [
        ("moco_v3", "test_resnet", 2, (True, False)),
        ("moco_v3", "test_vit", 3, (True, True)),
        ("nnclr", "test_resnet", 3, (True, False)),
        ("all4one", "test_resnet", 3, (True, False)),
        ("simsiam", "test_resnet", 3, (True, False)),
    ],
)
def test_projector_and_predictor_end_as_the_paper_says(
    name: str, backbone: str, layers: int, standardized: tuple[bool, bool]
) -> None:
    """MoCo v3 (section 5.1), NNCLR (4.1), SimSiam (appendix A): how many layers, and whether BatchNorm is the last."""
    method: Any = a_method(name, backbone, small=True)
    kinds = [type(module) for module in method.head.modules()]
    assert (kinds.count(torch.nn.Linear), kinds.count(torch.nn.BatchNorm1d)) == (layers, layers)
    with torch.no_grad():
        z = method.head(torch.randn(64, method.backbone.dim) * 3 + 1)
        answers = (z, method.predictor(z))
    found = [float(y.mean(0).abs().max() + (y.std(0, correction=0) - 1).abs().max()) for y in answers]
    assert tuple(distance < 0.01 for distance in found) == standardized


@pytest.mark.parametrize(("name", "share"), [("mae", 1.0), ("mae", 0.0), ("data2vec", 75.0), ("simmim", 0.001)])
def test_a_mask_that_hides_all_or_nothing_is_named(name: str, share: float) -> None:
    spec = backbones.plan("test_vit", SIZE, 3, (0.5,) * 3, (0.25,) * 3, mean_tokens=True)
    cls: Any = methods.get(name)
    with pytest.raises(SelfsightError, match=f"--mask {share:g}: hides"):
        cls(backbones.create(spec), cls.Config(mask=share).fit_to(Facts(16, SIZE, 3)))


@pytest.mark.parametrize("name", ["byol", "dino", "ressl"])
def test_views_are_drawn_as_told(name: str) -> None:
    cls: Any = methods.get(name)
    spec = backbones.plan("test_resnet", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    config = cls.Config(hflip=0.1, vflip=0.5, blur=0.3, solarize=0.4, strength=0.0)
    method = cls(backbones.create(spec), config.fit_to(Facts(16, SIZE, 3)))
    first, second = method.views
    assert (first.hflip, first.vflip, first.blur, first.solarize) == (0.1, 0.5, 0.3, 0.0)
    assert second == dataclasses.replace(first, blur=second.blur, solarize=0.4)
    assert second.blur == pytest.approx(0.03)
    other = method.local if name == "dino" else method.gentle if name == "ressl" else first
    assert (other.hflip, other.vflip) == (0.1, 0.5)
    plain = cls(backbones.create(spec), cls.Config().fit_to(Facts(16, SIZE, 3))).views
    assert (plain[0].blur, plain[1].blur, plain[1].solarize) == (SIZE >= 64, 0.1 * (SIZE >= 64), 0.2)


def test_a_method_of_ones_own_is_in_no_folder_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_file: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    lines = ("from selfsight.methods.rotation import Rotation", "class TurnedTwice(Rotation): 'Mine.'", "NOTHING = 3")
    (tmp_path / "mine.py").write_text("\n".join(lines))
    config = Pretrain(epochs=1, backbone="test_resnet", batch_size=64, fraction=0.1)
    run = api.pretrain(digits_file, "mine:TurnedTwice", config=config)
    assert run.path == Path("runs") / f"{digits_file.stem}-TurnedTwice"
    assert type(api.load(run.path).trained_method()).__name__ == "TurnedTwice"
    for name, words in (
        ("mine:Other", "mine:Other: no such method .*has no Other"),
        ("nowhere:Other", "No module named 'nowhere'"),
        ("../mine:TurnedTwice", "name it as module:Class"),
        ("mine:NOTHING", "is no selfsight.methods.Method"),
    ):
        with pytest.raises(SelfsightError, match=words):
            methods.get(name)
    assert methods.name_of(methods.get("mine:TurnedTwice")) == "mine:TurnedTwice"
    before = run.folder.config()["source"]
    assert before == methods.source("mine:TurnedTwice")
    (tmp_path / "mine.py").write_text("\n".join((*lines, "NOTHING = 4")))
    assert methods.source("mine:TurnedTwice") not in (None, before)
    assert methods.source("rotation") is None, "of selfsight's the version tells"


@pytest.mark.parametrize(
    ("text", "error"), [("import nosuchlibrary", ModuleNotFoundError), ("1 / 0", ZeroDivisionError)]
)
def test_an_error_in_ones_own_file_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "unfinished.py").write_text(text)
    with pytest.raises(error):
        methods.get("unfinished:Method")


@pytest.mark.parametrize(("name", "parts"), [("mae", 6), ("byol", 2), ("inpainting", 1)])
def test_all_that_runs_of_a_backbone_is_compiled(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, parts: int
) -> None:
    """A ViT's blocks, as what hides patches calls these alone; a student and its teacher; what gives maps."""
    compiled: list[torch.nn.Module] = []
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))

    def compiled_maps(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: called.append(len(x)) or forward(x)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compiled_maps)
    backbone = "test_vit" if name == "mae" else "test_resnet"
    config = Pretrain(out=tmp_path / "run", epochs=1, batch_size=64, backbone=backbone, fraction=0.1, compile=True)
    api.pretrain(digits_file, name, config=config)
    assert len(compiled) == parts
    assert bool(called) == (name != "mae")


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(SelfsightError, match=r"simsiamese: no such method; there are .*simclr"):
        methods.get("simsiamese")


def test_spec_is_plain_data() -> None:
    spec = backbones.plan("resnet18", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    assert isinstance(spec, BackboneSpec)
    assert backbones.spec_from_json(backbones.spec_to_json(spec)) == spec


@pytest.mark.parametrize(
    ("name", "imagenet"), [("byol", 0.996), ("moco_v3", 0.99), ("moco_v2", 0.999), ("ressl", 0.999)]
)
def test_a_teacher_is_slower_for_large_sets(name: str, imagenet: float) -> None:
    found = [methods.get(name).Config().fit_to(Facts(n, SIZE, 3)) for n in (50_000, 100_000, 1_281_167)]
    assert [vars(config)["momentum"] for config in found] == pytest.approx([0.99, 0.99, imagenet], abs=1e-4)


@pytest.mark.parametrize("name", ["byol", "nnbyol"])
def test_a_projector_ends_with_a_norm_in_short_trainings_only(name: str) -> None:
    cls: Any = methods.get(name)
    assert [cls.Config().fit_to(Facts(n, SIZE, 3)).norm for n in (100_000, 200_000)] == [True, False]
    assert not cls.Config(norm=False).fit_to(Facts(16, SIZE, 3)).norm
    spec = backbones.plan("test_resnet", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    for norm in (True, False):
        method = cls(backbones.create(spec), cls.Config(hidden=64, norm=norm).fit_to(Facts(16, SIZE, 3)))
        z = torch.cat(
            [m(torch.rand(8, 3, SIZE, SIZE)) for m in (method.teacher, nn.Sequential(method.backbone, method.head))]
        )
        centred = bool((z.view(2, 8, -1).mean(1).abs() < 1e-5).all())
        assert centred == norm, "of the student and of its teacher"


@pytest.mark.parametrize("name", ["simclr", "byol", "dino"])
def test_no_view_is_grey_where_colour_is_what_tells(name: str) -> None:
    cls = methods.get(name)
    spec = backbones.plan("test_resnet", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    settings: dict[str, Any] = {"grey": 0.0, "strength": 0.0}
    method: Any = cls(backbones.create(spec), cls.Config(**settings).fit_to(Facts(16, SIZE, 3)))
    red = torch.zeros(8, 3, 48, 48, dtype=torch.uint8)
    red[:, 0] = 200
    batch = Batch(red, torch.ones(8), torch.arange(8), torch.zeros(8, dtype=torch.long))
    views = [method.view(batch)] if name == "simclr" else [view(batch) for view in method.views]
    assert not any(bool(((x[:, 0] - x[:, 1]).abs() < 0.1).flatten(1).all(1).any()) for x in views)
