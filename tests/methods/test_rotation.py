"""All four rotations of each image, labels that fit, flips before the rotation only."""

import torch
import torchvision.transforms.v2.functional as TF

from selfsight.methods.rotation import four_rotations


def test_all_four_rotations_of_each_image_with_their_labels() -> None:
    x = torch.rand(3, 1, 6, 6)
    rotated, turns = four_rotations(x)
    assert rotated.shape == (12, 1, 6, 6)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for image, k, source in zip(rotated, turns.tolist(), list(x) * 4, strict=True):
        assert torch.equal(image, TF.rotate(source, 90.0 * k))


def test_labels_stay_unambiguous_under_the_flips_before() -> None:
    """A flipped image is another upright image: its rotations carry the same labels as any upright image's."""
    x = torch.rand(2, 1, 4, 4)
    rotated, turns = four_rotations(TF.hflip(x))
    upright = torch.stack([torch.rot90(r, -int(k), (1, 2)) for r, k in zip(rotated, turns, strict=True)])
    assert torch.equal(upright, TF.hflip(x).repeat(4, 1, 1, 1))
