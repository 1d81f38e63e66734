"""What is found is drawn so that one can see and read it."""

import numpy as np
import torch

from selfsight.tasks.overlay import overlay

RED, BLUE = (242, 61, 61), (61, 100, 242)
GREY = torch.full((3, 100, 100), 128, dtype=torch.uint8)


def test_a_box_has_a_frame_at_its_place_and_black_letters_on_its_colour() -> None:
    found = {
        "boxes": torch.tensor([[20.0, 40.0, 180.0, 160.0]]),  # of an original twice as large
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.64]),
    }

    picture = np.asarray(overlay(GREY, found, (200, 200), ["bush", "tree"], [BLUE, RED]))

    red, grey, dark = (picture == RED).all(-1), (picture == 128).all(-1), picture.max(-1) < 100
    assert np.concatenate([red[20, 10:90], red[80, 10:90], red[20:80, 10], red[20:80, 90]]).all()
    assert grey[40:79, 12:89].all()  # the object itself stays visible
    assert np.concatenate([grey[:19], grey[82:]]).all()
    letters = dark[21:40, 11:89]  # not wholly black: their edges are smooth
    assert letters.sum() > 20
    rows, columns = np.nonzero(letters)
    label = red[21:40, 11:89][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert label.mean() > 0.4  # what the letters leave


def test_a_mask_is_coloured_and_only_the_classes_in_it_are_named_below() -> None:
    answer = torch.zeros(200, 200, dtype=torch.long)
    answer[100:, :100] = 2

    picture = np.asarray(overlay(GREY, answer, (200, 200), ["nothing", "sky", "tree"], [(0, 0, 0), BLUE, RED]))

    image, legend = picture[:100], picture[100:]
    assert (image[50:, :50] == [(128 + c) // 2 for c in RED]).all()
    assert (image[:50] == 128).all()
    assert (image[:, 50:] == 128).all()
    assert (legend == RED).all(-1).any()
    assert not (legend == BLUE).all(-1).any()
