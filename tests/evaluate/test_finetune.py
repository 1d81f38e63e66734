from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.backbones import Backbone, create
from selfsight.evaluate.features import extract
from selfsight.evaluate.finetune import Classifier, FinetuneConfig, classify, finetune
from selfsight.evaluate.linear import fit_probe
from selfsight.nn import synchronize_batchnorm
from tests.evaluate.digits import CPU, SPEC, backbone, digits

QUICK = FinetuneConfig(batch_size=32, min_steps=60, max_steps=60)


def test_training_from_scratch_learns_and_leaves_the_backbone_alone() -> None:
    images, net = digits(500), backbone()
    labels = images.require_labels()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train, test = images.rows("train")[:200], images.rows("test")
    model = finetune(net, images, train, labels, 10, QUICK, probe=None, device=CPU, seed=0)
    assert (classify(model, images, test, device=CPU).argmax(1) == labels[test]).mean() > 0.7
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_pretrained_head_starts_as_the_linear_probe() -> None:
    images, net = digits(300), backbone()
    labels, rows = images.require_labels(), np.arange(200)
    x = extract(net, images, np.arange(300), device=CPU)
    probe = fit_probe(x[rows], labels[rows], 10)
    model = Classifier(net, 10, probe)
    answer = classify(model, images, np.arange(300), device=CPU).argmax(1)
    assert (answer == probe.predict(x)).mean() > 0.97  # bfloat16 may tip a close one
    # A step of rate zero changes nothing but BatchNorm's running statistics.
    still = replace(QUICK, lr=0.0, min_steps=1, max_steps=1)
    tuned = finetune(net, images, rows, labels, 10, still, probe=probe, device=CPU, seed=0)
    assert torch.equal(tuned.head.linear.weight, model.head.linear.weight)


def test_without_batchnorm_a_network_learns_at_a_lower_rate() -> None:
    vit = create(replace(SPEC, name="test_vit", patch_size=4, small_stem=False))
    convnext = create(replace(SPEC, name="test_convnext", image_size=32, small_stem=False))
    assert FinetuneConfig().optim(vit).lr == FinetuneConfig().optim(convnext).lr == 5e-4
    assert FinetuneConfig().optim(backbone()).lr == 2e-3
    assert FinetuneConfig().optim(synchronize_batchnorm(backbone(), CPU)).lr == 2e-3  # type: ignore[arg-type]
    assert FinetuneConfig(lr=0.1).optim(vit).lr == 0.1


def test_a_vit_is_tuned_and_read_without_fused_attention_on_a_cpu(fused: list[bool]) -> None:
    images, vit = digits(60), create(replace(SPEC, name="test_vit", patch_size=4, small_stem=False))
    brief = replace(QUICK, min_steps=2, max_steps=2)
    model = finetune(vit, images, np.arange(40), images.require_labels(), 10, brief, probe=None, device=CPU, seed=0)
    classify(model, images, np.arange(60), device=CPU)
    assert not fused


def test_the_seed_decides_everything() -> None:
    images, net = digits(60), backbone()
    labels = images.require_labels()
    short = replace(QUICK, batch_size=16, min_steps=3, max_steps=3)

    def train(seed: int) -> Tensor:
        torch.rand(1)  # whatever was drawn before
        return finetune(
            net, images, np.arange(40), labels, 10, short, probe=None, device=CPU, seed=seed
        ).head.linear.weight.detach()

    state = torch.get_rng_state()
    first = train(0)
    assert torch.allclose(train(0), first)
    assert not torch.allclose(train(1), first)
    torch.set_rng_state(state)


class Counting(Backbone):
    """Notes the size of each batch that it trains on."""

    seen: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


def test_few_labels_fill_whole_batches() -> None:
    net = Counting(SPEC)
    net.seen = []
    images = digits(30)
    model = finetune(
        net,
        images,
        np.array([3, 4, 7]),
        images.require_labels(),
        10,
        replace(QUICK, batch_size=32, min_steps=2, max_steps=2),
        probe=None,
        device=CPU,
        seed=0,
    )
    assert isinstance(model.backbone, Counting)
    assert model.backbone.seen == [32, 32]


@pytest.mark.parametrize(("labels", "steps"), [(10, 200), (600, 234), (1200, 468), (60000, 1000)])
def test_steps_grow_with_the_labels_within_bounds(labels: int, steps: int) -> None:
    assert FinetuneConfig().steps(labels) == steps
