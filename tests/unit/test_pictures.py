"""What an attack changed: its length in each norm, and how far it is amplified to be seen."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dkl.documents import Norm, ThreatModel
from service.web.pictures import Change, png


def change(norm: Norm, eps: float, delta: list[float]) -> Change:
    x = np.full((1, 1, len(delta)), 0.5)
    return Change(x, x + np.array(delta), ThreatModel(norm=norm, eps=eps))


@pytest.mark.parametrize(
    ("norm", "eps", "distance", "factor", "shown"),
    [
        ("Linf", 8 / 255, 4 / 255, 255 / 16, "4/255"),
        ("Linf", 0.2, 4 / 255, 2.5, "0.01569"),
        ("L2", 0.5, 5 / 255, 0.5 * 255 / 4, "0.01961"),
        ("L1", 12.0, 7 / 255, 0.5 * 255 / 4, "0.02745"),
    ],
)
def test_each_norm_has_its_length_and_its_contrast(
    norm: Norm, eps: float, distance: float, factor: float, shown: str
) -> None:
    found = change(norm, eps, [3 / 255, 0, -4 / 255])
    assert found.distance == pytest.approx(distance)
    assert found.factor == pytest.approx(factor)
    assert found.shown_distance == shown


def test_nothing_changed_is_grey_and_not_divided_by() -> None:
    assert (change("L2", 0.5, [0, 0]).distance, change("L2", 0.5, [0, 0]).factor) == (0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_has_the_pixels_and_cuts_off_what_is_none(channels: int) -> None:
    x = np.linspace(-0.5, 1.5, channels * 6).reshape(channels, 2, 3)
    x[0, 0, 0] = np.nan
    image = np.asarray(Image.open(BytesIO(png(x))))
    expected = np.rint(255 * np.nan_to_num(x).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(image.reshape(2, 3, channels), expected)
