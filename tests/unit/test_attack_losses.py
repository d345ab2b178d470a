"""The attacks' losses: pyautoattack's values, slopes, invariances, and what becomes of them with few classes."""

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from dkl.attacks.looks import margin
from dkl.attacks.losses import ce, dlr, dlr_targeted

LOSSES = [ce, dlr, dlr_targeted]


def case(classes, count=40, seed=0):
    """logits, labels and classes aimed at; in half of the rows the label is the argmax."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (count,), generator=g)
    y[::2] = logits[::2].argmax(dim=1)
    aim = (y + torch.randint(1, classes, (count,), generator=g)) % classes
    return logits, y, aim


@pytest.mark.parametrize("classes", [3, 4, 10, 100])
def test_dlr_is_that_of_pyautoattack(classes):
    logits, y, aim = case(classes)
    reference = APGDAttack(None, eps=0.1).dlr_loss(logits, y)
    torch.testing.assert_close(dlr(logits, y, aim), reference, rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [4, 5, 10, 100])
def test_targeted_dlr_is_that_of_pyautoattack(classes):
    logits, y, aim = case(classes)
    reference = APGDAttack_targeted(None, eps=0.1)
    reference.y_target = aim
    torch.testing.assert_close(
        dlr_targeted(logits, y, aim), reference.dlr_loss_targeted(logits, y), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [4, 10])
def test_slopes_are_those_of_pyautoattack(loss, classes):
    logits, y, aim = (v.requires_grad_() if v.is_floating_point() else v for v in case(classes))
    reference = APGDAttack_targeted(None, eps=0.1)
    reference.y_target = aim
    theirs = {
        ce: lambda z: torch.nn.functional.cross_entropy(z, y, reduction="none"),
        dlr: lambda z: reference.dlr_loss(z, y),
        dlr_targeted: lambda z: reference.dlr_loss_targeted(z, y),
    }[loss]
    [ours] = torch.autograd.grad(loss(logits, y, aim).sum(), logits)
    [expected] = torch.autograd.grad(theirs(logits).sum(), logits)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_slopes_are_those_of_the_values(loss, classes):
    logits, y, aim = case(classes, count=8)
    assert torch.autograd.gradcheck(lambda z: loss(z, y, aim), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_shifted_logits_have_the_same_loss(loss, classes):
    logits, y, aim = case(classes)
    torch.testing.assert_close(loss(logits + 17.0, y, aim), loss(logits, y, aim))


@pytest.mark.parametrize("loss", [dlr, dlr_targeted])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scaled_logits_have_the_same_ratio_from_three_classes_on(loss, factor):
    for classes in (3, 4, 10):
        logits, y, aim = case(classes)
        torch.testing.assert_close(loss(factor * logits, y, aim), loss(logits, y, aim), rtol=1e-6, atol=1e-9)
    logits, y, aim = case(2)
    torch.testing.assert_close(loss(factor * logits, y, aim), factor * loss(logits, y, aim))


def test_two_classes_have_the_plain_difference():
    logits, y = torch.tensor([[2.0, 5.0], [2.0, 5.0]]), torch.tensor([0, 1])
    for loss in (dlr, dlr_targeted):
        assert loss(logits, y, 1 - y).tolist() == [3.0, -3.0]


def test_three_classes_by_hand():
    logits, y, aim = torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([0]), torch.tensor([1])
    assert dlr(logits, y, aim).item() == pytest.approx(-(4 - 2) / (4 - 1))
    assert dlr_targeted(logits, y, aim).item() == pytest.approx(-(4 - 1) / (4 - 1))


def test_four_classes_by_hand():
    logits, y, aim = torch.tensor([[4.0, 1.0, 2.0, 3.0]]), torch.tensor([3]), torch.tensor([1])
    assert dlr(logits, y, aim).item() == pytest.approx(-(3 - 4) / (4 - 2))
    assert dlr_targeted(logits, y, aim).item() == pytest.approx(-(3 - 1) / (4 - (2 + 1) / 2))


@pytest.mark.parametrize("loss", [dlr, dlr_targeted])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_equal_logits_give_finite_slopes(loss, classes):
    logits = torch.zeros(1, classes, requires_grad=True)
    value = loss(logits, torch.tensor([0]), torch.tensor([1]))
    assert value.item() == 0
    [slope] = torch.autograd.grad(value.sum(), logits)
    assert slope.isfinite().all()


@pytest.mark.parametrize("loss", [ce, dlr])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_untargeted_losses_aim_at_nothing(loss, classes):
    logits, y, aim = case(classes)
    assert torch.equal(loss(logits, y, aim), loss(logits, y, y))


def test_one_number_per_image_that_the_others_do_not_change():
    logits, y, aim = case(10)
    for loss in LOSSES:
        together = loss(logits, y, aim)
        assert together.shape == (40,)
        assert torch.equal(loss(logits[3:4], y[3:4], aim[3:4]), together[3:4])


def test_the_margin():
    logits, y = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0]]), torch.tensor([1, 0, 0])
    assert margin(logits, y).tolist() == [1.0, -2.0, 0.0]
    assert margin(torch.tensor([[torch.nan, 1.0]]), torch.tensor([0])).isnan().all()
