"""All four rotations of each image, mirrored or not; labels that fit; flips before the rotation only."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from torch import Tensor

from selfsight import backbones, optim
from selfsight.data.augment import whole
from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.methods.method import Facts
from selfsight.methods.rotation import Rotation, draw, inverse, transform


def a_method(size: int = 16, channels: int = 1, **settings: object) -> Rotation:
    torch.manual_seed(0)
    spec = backbones.plan("test_resnet", size, channels, (0.5,) * channels, (0.25,) * channels)
    return Rotation(backbones.create(spec), Rotation.Config(**settings))  # type: ignore[arg-type]


def a_batch(images: Tensor) -> Batch:
    return Batch(images, torch.ones(len(images)), torch.arange(len(images)))


def plain(image: Tensor, element: int) -> Tensor:
    """Symmetry number `element` of one image, by torchvision."""
    rotated: Tensor = TF.rotate(TF.hflip(image) if element >= 4 else image, 90.0 * (element % 4))
    return rotated


def test_all_four_rotations_of_each_image_with_their_labels() -> None:
    x = torch.rand(3, 1, 6, 6)
    turns = draw(3, mirrors=False)
    rotated = transform(x.repeat(4, 1, 1, 1), turns)
    assert rotated.shape == (12, 1, 6, 6)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for image, k, source in zip(rotated, turns.tolist(), list(x) * 4, strict=True):
        assert torch.equal(image, TF.rotate(source, 90.0 * k))


def test_labels_stay_unambiguous_under_the_flips_before() -> None:
    """A flipped image is another upright image: its rotations carry the same labels as any upright image's."""
    x = TF.hflip(torch.rand(2, 1, 4, 4))
    turns = draw(2, mirrors=False)
    rotated = transform(x.repeat(4, 1, 1, 1), turns)
    upright = torch.stack([torch.rot90(r, -int(k), (1, 2)) for r, k in zip(rotated, turns, strict=True)])
    assert torch.equal(upright, x.repeat(4, 1, 1, 1))


def test_the_eight_symmetries_are_what_their_numbers_say_and_all_different() -> None:
    x = torch.rand(1, 2, 5, 5)
    seen = transform(x.repeat(8, 1, 1, 1), torch.arange(8))
    for k in range(8):
        assert torch.equal(seen[k], plain(x[0], k)), k
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 8


def test_symmetries_compose_as_the_dihedral_group_and_undo_each_other() -> None:
    """R^b F^n after R^a F^m is R^(b ± a) F^(n + m), minus where n is a flip: FR = R⁻¹F."""
    x = torch.rand(1, 1, 4, 4)
    for first in range(8):
        for second in range(8):
            twice = transform(transform(x, torch.tensor([first])), torch.tensor([second]))
            turns = second + (-first if second >= 4 else first)
            expected = turns % 4 + 4 * ((first >= 4) != (second >= 4))
            assert torch.equal(twice[0], plain(x[0], expected)), (first, second)
    every = torch.arange(8)
    assert torch.equal(transform(transform(x.repeat(8, 1, 1, 1), every), inverse(every)), x.repeat(8, 1, 1, 1))


def test_mirrored_or_not_is_a_fair_coin_for_each_rotation_of_each_image() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw(50, mirrors=True).view(4, 50) for _ in range(40)])  # (40, 4, 50)
    assert torch.equal(drawn % 4, torch.arange(4)[None, :, None].expand(40, 4, 50))
    assert int(torch.bincount(drawn.flatten(), minlength=8).min()) > 850
    assert float((drawn >= 4).float().mean(0).min()) > 0.15, "of every image in every rotation"


def test_two_processes_draw_the_mirrors_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    alone = draw(6, mirrors=True).view(4, 6)
    for rank in range(2):
        monkeypatch.setattr("selfsight.data.augment.process", lambda rank=rank: (rank, 2))
        torch.manual_seed(3)
        assert torch.equal(draw(3, mirrors=True).view(4, 3), alone[:, 3 * rank : 3 * rank + 3])


def test_a_flip_of_the_view_would_make_mirrors_ambiguous_and_is_refused() -> None:
    x = torch.rand(8, 1, 4, 4)
    every = torch.arange(8)
    assert torch.equal(transform(x.flip(3), every), transform(x, (every + 4) % 8)), "each would have two labels"
    with pytest.raises(SelfsightError, match=r"hflip 0\.5: must be 0 with family dihedral"):
        Rotation.Config(family="dihedral", hflip=0.5)
    facts = Facts(100, 32, 3)
    assert Rotation.Config(family="dihedral").fit_to(facts).hflip == 0
    assert Rotation.Config().fit_to(facts).hflip == 0.5
    assert Rotation.Config(hflip=0.0).fit_to(facts).hflip == 0
    assert a_method(family="dihedral").view.hflip == 0


@pytest.mark.parametrize("classes", [4, 8])
def test_borders_and_interpolation_tell_nothing(classes: int) -> None:
    """A blank image gives the same bits in every transform, and any image the very same pixels in other places."""
    every = torch.arange(classes)
    blank = transform(torch.full((classes, 3, 6, 6), 0.3), every)
    assert (blank == 0.3).all()
    seen = transform(torch.rand(1, 3, 7, 7).repeat(classes, 1, 1, 1), every).flatten(2).sort(2).values
    assert (seen == seen[0]).all()


@pytest.mark.parametrize(("family", "classes"), [("rotations", 4), ("dihedral", 8)])
def test_forward_is_the_cross_entropy_of_the_drawn_labels(family: str, classes: int) -> None:
    """The loss again, from the images that the backbone saw and the labels that fit to them, one at a time."""
    method, inputs = a_method(family=family).eval(), list[Tensor]()
    method.backbone.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    batch = a_batch(torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8))
    torch.manual_seed(5)
    out = method(batch, 0.0)
    torch.manual_seed(5)
    view = method.view(batch)
    total, right = 0.0, 0
    for i, seen in enumerate(inputs[0]):
        (label,) = (k for k in range(classes) if torch.equal(plain(view[i % 3], k), seen))
        p = method.head(method.backbone(seen[None]))[0].detach().softmax(0)
        assert len(p) == classes
        total -= math.log(float(p[label])) / 12
        right += int(p.argmax()) == label
    assert float(out["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(out["accuracy"]) == pytest.approx(right / 12)
    assert float(out["chance"]) == pytest.approx(math.log(classes))


class Answers(torch.nn.Module):
    """A head that gives these answers."""

    def __init__(self, answers: Tensor, classes: int) -> None:
        super().__init__()
        self.answers, self.out_features = answers, classes

    def forward(self, features: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.answers, self.out_features).float()


@pytest.mark.parametrize(("family", "classes"), [("rotations", 4), ("dihedral", 8)])
@pytest.mark.parametrize("off", [0, 1])
def test_the_picture_shows_the_image_again_where_the_answer_is_right(family: str, classes: int, off: int) -> None:
    method = a_method(family=family).eval()
    method.head = Answers((torch.arange(10) + off) % classes, classes)  # type: ignore[assignment]
    batch = a_batch(torch.randint(0, 256, (12, 1, 24, 24), dtype=torch.uint8))
    ((caption, (seen, undone)),) = method.picture(batch).items()
    assert caption.endswith(f"({0 if off else 10} of 10 right)")
    images = whole(batch, 16)[:10]
    assert all(torch.equal(seen[i], plain(images[i], i % classes)) for i in range(10))
    assert torch.equal(undone, images) == (not off)


def test_it_learns_to_tell_the_symmetries_of_digits(digits: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """A digit shows how it was written: twice as many right as by chance after a few steps."""
    images, labels = digits
    sevens = torch.from_numpy(images[labels == 7][:96])[:, None]
    method = a_method(family="dihedral", crop_min=0.9)
    optimizer = optim.build(method, Rotation.optim)
    optim.set_rate(optimizer.param_groups, 3e-3)
    for step in range(20):
        out = method(a_batch(sevens[step % 3 * 32 :][:32]), step / 20)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert float(out["loss"].detach()) < 0.7 * float(out["chance"])
    assert float(out["accuracy"]) > 2 / 8
