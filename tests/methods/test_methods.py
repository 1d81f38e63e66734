"""The contract that every method keeps; runs over all of them."""

import copy
import math

import pytest
import torch
from sklearn.datasets import load_sample_images

from selfsight import backbones, methods, optim
from selfsight.backbones import BackboneSpec
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods import Facts, Method

SIZE = 32


def a_batch(n: int = 16) -> Batch:
    photo = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    crops = [photo[:, 20 * i : 20 * i + 48, 30 * i : 30 * i + 48] for i in range(n)]
    return Batch(torch.stack(crops), torch.ones(n), torch.arange(n))


def a_method(name: str, backbone: str = "test_resnet") -> Method:
    torch.manual_seed(0)
    cls = methods.get(name)
    spec = backbones.plan(backbone, SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    return cls(backbones.create(spec), cls.Config().fit_to(Facts(16, SIZE, 3)))


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
    method = a_method(name)
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
    method = a_method(name)
    method(a_batch(), 0.5)["loss"].backward()
    method.after_step(0.5)
    other = a_method(name)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    results = []
    for m in (method, other):
        torch.manual_seed(7)
        results.append(m(a_batch(), 0.6)["loss"])
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("name", methods.names())
def test_trains_a_vit(name: str) -> None:
    out = a_method(name, "test_vit")(a_batch(4), 0.0)
    assert math.isfinite(float(out["loss"].detach()))


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


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(SelfsightError, match=r"simsiamese: no such method; there are .*simclr"):
        methods.get("simsiamese")


def test_spec_is_plain_data() -> None:
    spec = backbones.plan("resnet18", SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    assert isinstance(spec, BackboneSpec)
    assert backbones.spec_from_json(backbones.spec_to_json(spec)) == spec
