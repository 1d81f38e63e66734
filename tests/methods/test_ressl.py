"""ReSSL's student, whose backbone is kept, sees images without blur too."""

import pytest

from selfsight import backbones
from selfsight.methods import Facts
from selfsight.methods.ressl import ReSSL


@pytest.mark.parametrize(("size", "blur"), [(32, 0.0), (64, 0.5)])
def test_half_of_the_students_views_are_blurred_and_no_teachers(size: int, blur: float) -> None:
    spec = backbones.plan("test_resnet", size, 3, (0.5,) * 3, (0.25,) * 3)
    method = ReSSL(backbones.create(spec), ReSSL.Config().fit_to(Facts(256, size, 3)))
    assert (method.views[0].blur, method.gentle.blur) == (blur, 0)
