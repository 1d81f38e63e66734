"""A teacher is a run or one of timm's, is never trained, and sees images of a size that its patches fit in."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from selfsight import backbones
from selfsight.errors import SelfsightError
from selfsight.methods.distill import Distill, known
from selfsight.run import RunFolder
from tests.methods.test_methods import SIZE, a_batch, a_method, a_run


def a_student(size: int = SIZE, channels: int = 3) -> backbones.Backbone:
    return backbones.create(backbones.plan("test_resnet", size, channels, (0.5,) * channels, (0.25,) * channels))


def test_the_teacher_stays_as_it_is_and_evaluates() -> None:
    method = a_method("distill", small=True).train()
    assert isinstance(method, Distill)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        loss = method(a_batch(), 0.5)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not method.teacher.training
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())


def test_a_run_teaches_at_the_students_size() -> None:
    teacher = known(a_run(), a_student(48))
    assert teacher.spec.image_size == 48
    assert torch.isfinite(teacher(torch.rand(2, 3, 48, 48))).all()


def test_a_run_of_patches_gets_a_size_that_they_fit_in(tmp_path: Path) -> None:
    spec = backbones.plan("test_vit", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    run = RunFolder(tmp_path)
    run.write_config({"backbone": backbones.spec_to_json(spec)})
    run.save_backbone(backbones.create(spec))
    patch = spec.patch_size or 0
    teacher = known(str(tmp_path), a_student(5 * patch + 1))
    assert teacher.spec.image_size == 6 * patch > 6
    assert torch.isfinite(teacher(torch.rand(2, 3, 6 * patch, 6 * patch))).all()


def test_timms_teacher_gets_a_size_that_its_patches_fit_in(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_weights(name: str, pretrained: bool = False, **settings: Any) -> Any:
        return create(name, pretrained=False, **settings)  # weights can't be fetched here

    monkeypatch.setattr(timm, "create_model", without_weights)
    teacher = known("test_vit", a_student(40))
    assert (teacher.spec.image_size, teacher.spec.patch_size) == (48, 16)
    assert teacher.spec.mean == (0.5, 0.5, 0.5), "this one's, not ImageNet's"


@pytest.mark.parametrize(
    ("teacher", "words"),
    [(None, "--teacher: name a timm model or the folder"), ("no_such_net", "--teacher no_such_net: timm has no model")],
)
def test_without_a_teacher_it_says_what_to_do(teacher: str | None, words: str) -> None:
    with pytest.raises(SelfsightError, match=words):
        known(teacher, a_student())


def test_a_run_of_other_channels_is_refused() -> None:
    with pytest.raises(SelfsightError, match="of 3 channels, the images of 1"):
        known(a_run(), a_student(channels=1))


def test_names_say_their_patches() -> None:
    assert backbones.own_patch("vit_small_patch14_dinov2.lvd142m") == 14
    assert backbones.own_patch("vit_base_patch8_224.dino") == 8
    assert backbones.own_patch("deit_tiny") == 16
