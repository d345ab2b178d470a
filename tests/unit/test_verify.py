"""The verifier against images that cheat."""

import pytest
import torch
from trials import Linear

import dkl.verify
from dkl.documents import ThreatModel
from dkl.verify import ROUNDING, verify

THREATS = [
    ThreatModel(norm="Linf", eps=8 / 255),
    ThreatModel(norm="L2", eps=0.5),
    ThreatModel(norm="L1", eps=12.0),
]
SIZE = 3 * 32 * 32


def two_classes() -> Linear:
    """Class 1 where the first pixel is above 1/2."""
    weight = torch.zeros(2, SIZE)
    weight[1, 0] = 1.0
    return Linear(weight)


def just_below() -> tuple[torch.Tensor, torch.Tensor]:
    """One image of class 0 at distance 0.01 from the border, with its label."""
    x = torch.full((1, 3, 32, 32), 0.5)
    x[0, 0, 0, 0] = 0.49
    return x, torch.tensor([0])


def moved(x: torch.Tensor, distance: float) -> torch.Tensor:
    """`x` with its first pixel moved up: `distance` in every norm."""
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] += distance
    return x_adv


def verdict(x_adv: torch.Tensor, threat: ThreatModel = THREATS[0]):
    x, y = just_below()
    return verify(two_classes(), x, x_adv, y, threat)


def test_an_honest_image_is_broken():
    assert verdict(moved(just_below()[0], 0.02)).broken.tolist() == [True]


def test_the_clean_image_is_not_broken():
    result = verdict(just_below()[0])
    assert result.allowed.all()
    assert result.finite.all()
    assert not result.broken.any()


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize(("factor", "allowed"), [(0.99, True), (1.0, True), (1.01, False)])
def test_the_ball(threat, factor, allowed):
    direction = {"Linf": 1.0, "L2": SIZE**-0.5, "L1": 1 / SIZE}[threat.norm]
    x, _ = just_below()
    x_adv = x + factor * threat.eps * direction * torch.randn(x.shape).sign()
    assert verdict(x_adv, threat).allowed.tolist() == [allowed]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize(("roundings", "allowed"), [(0.9, True), (1.2, False)])
def test_the_slack_is_one_rounding_per_pixel(threat, roundings, allowed):
    x, _ = just_below()
    direction = {"Linf": 1.0, "L2": SIZE**-0.5, "L1": 1 / SIZE}[threat.norm]
    x_adv = x.double() + threat.eps * direction + roundings * ROUNDING
    assert dkl.verify.allowed(x.double(), x_adv, threat).tolist() == [allowed]


@pytest.mark.parametrize(("roundings", "allowed"), [(0.9, True), (1.2, False)])
def test_the_slack_of_the_pixel_range(roundings, allowed):
    x = torch.ones((1, 3, 32, 32), dtype=torch.float64)
    assert dkl.verify.allowed(x, x + roundings * ROUNDING, THREATS[0]).tolist() == [allowed]
    assert dkl.verify.allowed(1 - x, 1 - x - roundings * ROUNDING, THREATS[0]).tolist() == [allowed]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_an_image_that_is_no_number_is_refused(bad, threat):
    x_adv = moved(just_below()[0], 0.02)
    x_adv[0, 2, 3, 4] = bad
    result = verdict(x_adv, threat)
    assert not result.allowed.any()
    assert not result.broken.any()


@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_outside_the_pixel_range_is_refused(value):
    x = torch.full((1, 3, 32, 32), float(round(value)))
    x_adv = x.clone()
    x_adv[0, 1, 1, 1] = value
    assert not verify(two_classes(), x, x_adv, torch.tensor([0]), THREATS[0]).allowed.any()


def test_logits_that_are_no_numbers_break_nothing():
    class Nan(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), float("nan"))

    x, _ = just_below()
    result = verify(Nan(), x, x, torch.tensor([1]), THREATS[0])
    assert result.fooled.all()
    assert not result.finite.any()
    assert not result.broken.any()


def test_images_are_judged_one_by_one():
    x, y = just_below()
    x_adv = torch.cat([moved(x, 0.02), x, moved(x, 0.2), moved(x, float("nan"))])
    result = verify(two_classes(), x.repeat(4, 1, 1, 1), x_adv, y.repeat(4), THREATS[0])
    assert result.broken.tolist() == [True, False, False, False]
    assert result.allowed.tolist() == [True, True, False, False]


def test_another_shape_is_an_error():
    x, y = just_below()
    with pytest.raises(ValueError, match=r"must have the shape of the clean ones, \(1, 3, 32, 32\), found \(2, "):
        verify(two_classes(), x, x.repeat(2, 1, 1, 1), y, THREATS[0])


def test_the_model_is_asked_in_float32_whatever_surrounds_it():
    x, y = just_below()
    near = moved(x, 0.010002)  # bfloat16 would put it on the border
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert verify(two_classes(), x, near, y, THREATS[0]).broken.all()


def test_tf32_is_off_while_the_model_is_asked_and_as_it_was_afterwards():
    cudnn, seen = torch.backends.cudnn, []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append((cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled))
            return torch.zeros(len(x), 2)

    before = (cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled, cudnn.benchmark)
    x, y = just_below()
    verify(Spy(), x, x, y, THREATS[0])
    assert seen == [(False, "highest", before[2])]
    assert (cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled, cudnn.benchmark) == before
