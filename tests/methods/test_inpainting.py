"""Losses equal plain loops; masks hide the stated share and leak nothing; each player has its own gradient."""

import copy
import math
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selfsight import backbones
from selfsight.adversarial import adversarial_losses, discriminator
from selfsight.data.images import Batch
from selfsight.data.masks import Blend, centre_block, depths, error_weight, random_regions, smooth_fill
from selfsight.errors import SelfsightError
from selfsight.methods import inpainting
from selfsight.methods.inpainting import Inpainting, psnr, reconstruction_loss
from selfsight.methods.method import Facts

CPU = torch.device("cpu")


def a_method(size: int = 32, channels: int = 3, backbone: str = "test_resnet", **settings: object) -> Inpainting:
    torch.manual_seed(0)
    spec = backbones.plan(backbone, size, channels, (0.4,) * channels, (0.25,) * channels)
    config = Inpainting.Config(**settings)  # type: ignore[arg-type]
    return Inpainting(backbones.create(spec), config.fit_to(Facts(100, size, channels)))


def a_batch(n: int = 4, channels: int = 3, side: int = 48) -> Batch:
    noise = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(noise, size=side, mode="bilinear")
    return Batch((smooth * 255).to(torch.uint8), torch.ones(n), torch.arange(n))


# ------------------------------------------------------------------------------------------------------ losses


def plain_weight(hidden: Tensor, overlap: int) -> Tensor:
    """Pixel by pixel: hidden ones count once, seen ones within reach of a hidden one ten times."""
    weight = torch.zeros(hidden.shape, dtype=torch.float64)
    n, _, rows, columns = hidden.shape
    for i in range(n):
        for y in range(rows):
            for x in range(columns):
                near = hidden[i, 0, max(0, y - overlap) : y + overlap + 1, max(0, x - overlap) : x + overlap + 1]
                weight[i, 0, y, x] = 1 if hidden[i, 0, y, x] else 10 if near.any() else 0
    return weight


def plain_reconstruction(answer: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Equation 1 with overlap weights, one value at a time; per image over the sum of the weights, then averaged."""
    total = torch.zeros((), dtype=answer.dtype)
    n, channels, rows, columns = truth.shape
    for i in range(n):
        errors, weights = torch.zeros((), dtype=answer.dtype), 0.0
        for c in range(channels):
            for y in range(rows):
                for x in range(columns):
                    w = float(weight[i, 0, y, x])
                    errors = errors + w * (truth[i, c, y, x] - answer[i, c, y, x]) ** 2
                    weights += w
        total = total + errors / weights / n
    return total


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_reconstruction_loss_and_gradient_equal_a_plain_loop(overlap: int) -> None:
    torch.manual_seed(0)
    hidden = torch.cat([centre_block(9, 0.25), random_regions(2, 9, 0.25, 3, CPU)])
    assert torch.equal(error_weight(hidden, overlap).double(), plain_weight(hidden, overlap))
    raw, truth = torch.randn(2, 3, 2, 9, 9, dtype=torch.float64)
    results = []
    for weight, loss in (
        (error_weight(hidden, overlap), reconstruction_loss),
        (plain_weight(hidden, overlap), plain_reconstruction),
    ):
        answer = raw.clone().requires_grad_()
        value = loss(answer, truth, weight)
        value.backward()
        assert answer.grad is not None
        results.append((value.detach(), answer.grad))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


def test_adversarial_losses_equal_a_plain_loop() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    real, fake = torch.rand(2, 5, 3, 2, 2)
    fooling, judging = adversarial_losses(critic, real, fake)

    def probability(image: Tensor) -> float:
        return float(torch.sigmoid(critic(image[None])).detach())

    g = d = 0.0
    for i in range(5):
        g += -math.log(probability(fake[i])) / 5
        d += (-math.log(probability(real[i])) - math.log(1 - probability(fake[i]))) / 5
    assert float(fooling.detach()) == pytest.approx(g, rel=1e-5)
    assert float(judging.detach()) == pytest.approx(d, rel=1e-5)


def test_forward_is_the_papers_joint_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 4 of the answers that the network gave, in a plain loop; its value is without the discriminator's."""
    method = a_method(mask="centre", adversarial=0.2)
    seen: dict[str, Tensor] = {}
    answer = Inpainting.answer

    def spy(self: Inpainting, x: Tensor, hidden: Tensor) -> Tensor:
        seen["x"], seen["hidden"], seen["answer"] = x, hidden, answer(self, x, hidden)
        return seen["answer"]

    monkeypatch.setattr(Inpainting, "answer", spy)
    out = method(a_batch(2), 0.0)
    weight = plain_weight(seen["hidden"], 1)  # 32 / 32 pixels around the block
    truth = (seen["x"] - 0.4) / 0.25
    expected = 0.8 * plain_reconstruction(seen["answer"], truth, weight) + 0.2 * out["adversarial"]
    assert torch.allclose(out["loss"], expected.float(), rtol=1e-4)
    assert float(out["discriminator"].detach()) > 0.5, "two balanced players are at 2 ln 2"


def test_chance_is_the_loss_of_the_best_single_colour() -> None:
    method = a_method()
    truth, answers = [], []
    original = reconstruction_loss

    def spy(answer: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        truth.append((t, weight))
        answers.append(answer)
        return original(answer, t, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inpainting, "reconstruction_loss", spy)
        out = method(a_batch(8), 0.0)
    t, weight = truth[0]
    for shift in (-0.1, 0.0, 0.1):
        for c in range(3):
            colour = (weight * t).sum((0, 2, 3), keepdim=True) / weight.sum()
            colour[0, c] += shift
            assert float(original(colour, t, weight)) >= float(out["chance"]) - 1e-6
    assert float(out["psnr_chance"]) == pytest.approx(-10 * math.log10(float(out["chance"]) * 0.25**2), abs=0.05)


def test_psnr_of_a_known_error_counts_hidden_pixels_only() -> None:
    hidden = centre_block(8, 0.25).expand(2, -1, -1, -1)
    truth = torch.full((2, 3, 8, 8), 0.5)
    assert float(psnr(torch.where(hidden, truth + 0.1, 0.0), truth, hidden)) == pytest.approx(20, abs=1e-4)
    assert float(psnr(truth, truth, hidden)) == pytest.approx(100, abs=1e-3)


# ------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("size", [16, 28, 64])
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_regions_hide_exactly_the_share_of_each_image(size: int, share: float) -> None:
    hidden = random_regions(6, size, share, size // 4, CPU)
    assert hidden.shape == (6, 1, size, size)
    assert hidden.sum((1, 2, 3)).tolist() == [round(share * size * size)] * 6


def test_regions_are_connected_shapes_that_hide_every_place_equally_often() -> None:
    torch.manual_seed(0)
    hidden = torch.cat([random_regions(200, 32, 0.25, 8, CPU) for _ in range(20)]).float()
    often = hidden.mean((0, 1))
    assert abs(float(often.mean()) - 0.25) < 0.002
    assert float(often.min()) > 0.2
    assert float(often.max()) < 0.3
    same = (hidden[..., 1:] == hidden[..., :-1]).float().mean()
    assert float(same) > 0.9, "neighbours mostly share their fate; of independent pixels 62.5 % would"
    assert not torch.equal(hidden[0], hidden[1])


def test_the_centre_block_is_centred() -> None:
    hidden = centre_block(64, 0.25)[0, 0]
    assert hidden[16:48, 16:48].all()
    assert int(hidden.sum()) == 32 * 32
    assert torch.equal(hidden, hidden.flip(0, 1))
    assert int(centre_block(28, 0.25).sum()) == 14 * 14


def test_masks_of_two_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    alone = random_regions(6, 32, 0.25, 8, CPU)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("selfsight.data.augment.process", lambda rank=rank: (rank, 2))
        torch.manual_seed(3)
        parts.append(random_regions(3, 32, 0.25, 8, CPU))
    assert torch.equal(torch.cat(parts), alone)


@pytest.mark.parametrize("mask", ["regions", "centre"])
def test_hidden_pixels_do_not_leak(mask: Literal["regions", "centre"]) -> None:
    method = a_method(mask=mask).eval()
    x = torch.rand(3, 3, 32, 32)
    hidden = method.draw_masks(x)
    inputs: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        maps = method.backbone.maps

        def watched(seen: Tensor) -> Tensor:
            inputs.append(seen)
            return maps(seen)

        patch.setattr(method.backbone, "maps", watched)
        answers = [method.answer(images, hidden) for images in (x, torch.where(hidden, torch.rand_like(x), x))]
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(answers[0], answers[1])
    normalized = method.backbone.normalize(inputs[0])
    assert not normalized[hidden.expand_as(x)].any(), "the mean colour is zero to the network"
    assert torch.equal(inputs[0][~hidden.expand_as(x)], x[~hidden.expand_as(x)])


# ---------------------------------------------------------------------------------------- the fill that knows nothing


def plain_harmonic(x: Tensor, hidden: Tensor, steps: int) -> Tensor:
    """Each hidden pixel of (S, S) the mean of itself and its up to eight neighbours, a pixel at a time till all are."""
    filled = torch.where(hidden, x[~hidden].mean(), x)
    side = len(x)
    places = hidden.nonzero().tolist()
    for _ in range(steps):
        before = filled.clone()
        for row, column in places:
            around = before[max(row - 1, 0) : min(row + 2, side), max(column - 1, 0) : min(column + 2, side)]
            filled[row, column] = around.mean()
    return filled


@pytest.mark.parametrize("side", [12, 13])
def test_the_smooth_fill_is_nearly_harmonic(side: int) -> None:
    """Far nearer to it than the one colour that fits best; visible pixels stay, and it knows nothing of hidden ones."""
    torch.manual_seed(0)
    x = nn.functional.interpolate(torch.rand(3, 1, 4, 4), side, mode="bilinear")
    hidden = torch.cat([centre_block(side, 0.25), random_regions(2, side, 0.3, 4, CPU)])
    filled = smooth_fill(x, hidden)
    assert torch.equal(filled[~hidden], x[~hidden])
    assert torch.equal(smooth_fill(torch.where(hidden, 7.0, x), hidden), filled)
    for image, mask, answer in zip(x[:, 0], hidden[:, 0], filled[:, 0], strict=True):
        target = plain_harmonic(image, mask, 60)[mask]
        error = (answer[mask] - target).square().mean()
        assert float(error) < 0.2 * float((target - target.mean()).square().mean() + 1e-4)


def test_the_smooth_fill_continues_a_constant_and_a_slope() -> None:
    hidden = centre_block(32, 0.25)
    assert torch.allclose(smooth_fill(torch.full((1, 3, 32, 32), 0.3), hidden), torch.tensor(0.3))
    slope = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    assert float((smooth_fill(slope, hidden) - slope).abs().max()) < 0.08


@pytest.mark.parametrize("trust", [0.0, 1.0])
def test_the_blend_goes_from_the_smooth_fill_to_the_answer(trust: float) -> None:
    blend = Blend()
    blend.trust[0] = trust
    answer, smooth = torch.rand(2, 2, 3, 32, 32)
    assert torch.allclose(blend(answer, smooth, random_regions(2, 32, 0.25, 8, CPU)), answer if trust else smooth)


def test_trust_is_the_least_squares_fit_of_the_batch() -> None:
    """numpy's, over the hidden pixels and bands one by one."""
    torch.manual_seed(0)
    blend, hidden = Blend(), random_regions(2, 16, 0.4, 4, CPU)
    answer, smooth, truth = torch.rand(3, 2, 3, 16, 16)
    blend.learn(answer, smooth, truth, hidden)
    depth, rows, wanted = depths(hidden), [], []
    for i, _, y, x in hidden.nonzero().tolist():
        for c in range(3):
            rows.append((depth[i, :, y, x] * (answer - smooth)[i, c, y, x]).tolist())
            wanted.append(float((truth - smooth)[i, c, y, x]))
    expected = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    shares = np.array(rows) @ np.stack([expected, blend.trust.numpy()], 1)
    assert np.abs(shares[:, 0] - shares[:, 1]).max() < 0.05 * np.abs(shares[:, 0]).max()


def test_the_blend_learns_to_trust_the_answer_deep_inside_only() -> None:
    """An answer that is off by as much everywhere, a smooth fill that is the more so the deeper, both known."""
    blend, hidden = Blend(), centre_block(32, 0.5).expand(8, -1, -1, -1)
    truth = torch.zeros(8, 3, 32, 32)
    away = (torch.arange(32) - 15.5).abs()
    depth = (12 - torch.maximum(away[:, None], away)).clamp(min=0)  # in pixels
    smooth, answer = truth + 0.1 * depth, truth - 0.4
    blend.learn(answer, smooth, truth, hidden)
    blended = blend(answer, smooth, hidden)
    errors = [float(reconstruction_loss(y, truth, hidden.float())) for y in (blended, answer, smooth)]
    assert errors[0] < 0.5 * min(errors[1:])


def test_the_backbone_learns_from_the_answer_alone() -> None:
    """With or without the blend its gradient is the same: that of the paper's loss."""
    method, batch = a_method(), a_batch()
    gradients = []
    for alone in (True, False):
        method.zero_grad()
        torch.manual_seed(5)
        if alone:
            x = method.view(batch)
            hidden = method.draw_masks(x)
            truth = method.backbone.normalize(x)
            reconstruction_loss(method.answer(x, hidden), truth, error_weight(hidden, 0)).backward()
        else:
            method(batch, 0.0)["loss"].backward()
        gradients.append([p.grad.clone() for p in method.backbone.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert method.blend.trust.any()


def test_trust_is_fitted_in_training_only_and_kept_in_checkpoints() -> None:
    method = a_method().eval()
    method(a_batch(), 0.0)
    assert not method.blend.trust.any()
    assert {"blend.trust", "blend.sums"} <= method.state_dict().keys()


# ----------------------------------------------------------------------------------------------------- players


def test_each_player_has_the_gradient_of_its_own_loss() -> None:
    method = a_method(mask="centre", adversarial=0.3)
    batch = a_batch()
    assert method.critic is not None

    def gradients(which: str) -> dict[str, Tensor]:
        trial = copy.deepcopy(method)
        torch.manual_seed(5)
        x = trial.view(batch)
        hidden = trial.draw_masks(x)
        answer, truth = trial.answer(x, hidden), trial.backbone.normalize(x)
        weight = error_weight(hidden, 1)
        fake = torch.where(weight > 0, answer, truth)
        assert trial.critic is not None
        if which == "generator":
            fooling = -torch.sigmoid(trial.critic(fake)).log().mean()
            loss = 0.7 * reconstruction_loss(answer, truth, weight) + 0.3 * fooling
        else:
            right, wrong = torch.sigmoid(trial.critic(truth)), torch.sigmoid(trial.critic(fake.detach()))
            loss = -right.log().mean() - (1 - wrong).log().mean()
        loss.backward()
        return {name: p.grad for name, p in trial.named_parameters() if p.grad is not None}

    expected = {k: v for k, v in gradients("generator").items() if not k.startswith("critic.")}
    expected |= gradients("discriminator")
    torch.manual_seed(5)
    method(batch, 0.0)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-5), name
        assert name in expected


def test_the_discriminator_learns_to_tell_answers_from_images() -> None:
    method = a_method(mask="centre", adversarial=0.001)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    values = []
    for _ in range(15):
        out = method(a_batch(16), 0.0)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        values.append(float(out["discriminator"].detach()))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("size", [16, 28, 32, 64, 96])
def test_the_discriminator_takes_any_size(size: int) -> None:
    assert discriminator(3, size)(torch.rand(2, 3, size, size)).shape == (2,)


# ---------------------------------------------------------------------------------------------- sizes and bands


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64), (5, 32)])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_any_number_of_bands_and_any_size(channels: int, size: int, backbone: str) -> None:
    method = a_method(size, channels, backbone, adversarial=0.001)
    before = {k: v.clone() for k, v in method.backbone.named_buffers()}
    assert all(torch.equal(v, before[k]) for k, v in a_method(size, channels, backbone).backbone.named_buffers())
    assert method.backbone.training, "the dry run leaves the backbone as it was"
    batch = a_batch(4, channels, size + 8)
    out = method(batch, 0.0)
    out["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    with torch.inference_mode():
        (rows,) = method.eval().picture(batch).values()
    assert rows.shape == (3, 4, channels, size, size)


def test_pictures_change_hidden_pixels_only() -> None:
    method = a_method(mask="centre").eval()
    with torch.no_grad():
        ((caption, (seen, filled, truth)),) = method.picture(a_batch(12)).items()
    hidden = centre_block(32, 0.25)[0, 0]
    assert len(truth) == 10
    assert torch.equal(filled[..., ~hidden], truth[..., ~hidden])
    assert torch.equal(seen[..., ~hidden], truth[..., ~hidden])
    assert torch.allclose(seen[..., hidden], torch.tensor(0.4))
    assert "dB" in caption


def test_learns_more_than_a_colour(photo: NDArray[np.uint8]) -> None:
    method = a_method(crop_min=1.0)
    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    crops = [pixels[:, 20 * i : 20 * i + 96 : 2, 30 * i : 30 * i + 96 : 2] for i in range(16)]
    batch = Batch(torch.stack(crops), torch.ones(16), torch.arange(16))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(60):
        out = method(batch, 0.0)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert float(out["loss"].detach()) < 0.6 * float(out["chance"])
    assert float(out["psnr"]) > float(out["psnr_chance"]) + 2


def test_without_adversarial_loss_there_is_no_discriminator() -> None:
    method = a_method()
    assert method.critic is None
    assert set(method(a_batch(), 0.0)) == {"loss", "chance", "psnr", "psnr_blend", "psnr_smooth", "psnr_chance"}


def test_defaults_follow_the_paper() -> None:
    centre = Inpainting.Config(mask="centre").fit_to(Facts(1000, 227, 3))
    assert centre.overlap == 7
    regions = Inpainting.Config().fit_to(Facts(1000, 64, 3))
    assert (regions.overlap, regions.grain, regions.share) == (0, 16, 0.25)


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.0}, {"adversarial": 1.0}, {"adversarial": -0.1}])
def test_impossible_settings_are_named(settings: dict[str, float]) -> None:
    name = next(iter(settings))
    with pytest.raises(SelfsightError, match=rf"{name} {settings[name]}"):
        Inpainting.Config(**settings)  # type: ignore[arg-type]
