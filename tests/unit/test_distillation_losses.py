"""Logit distillation against the references' numbers, its identities, and the edges of arithmetic."""

import functools
from typing import Any

import pytest
import torch
from golden_kd import assert_golden, entry, inputs, names, tensor
from torch import Tensor

from dkl.distillation import decoupled, gkl_kd, hinton, ikl_kd, sample_weight
from dkl.losses import kl, weighted_mse

exactly = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def logits(batch: int, classes: int, *, dtype: Any = torch.float64) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [
        (3 * torch.randn(batch, classes, generator=source, dtype=torch.float64)).to(dtype).requires_grad_()
        for _ in range(2)
    ]


def prior(batch: int, classes: int) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(batch, classes, generator=source, dtype=torch.float64).softmax(1)


# --- golden -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("kd/"))
def test_hinton_is_the_references(name: str) -> None:
    e = entry(name)
    student, teacher = inputs(e, "logits_student", "logits_teacher")
    assert_golden(e, hinton(student, teacher, temperature=e["hyper"]["T"]), {"logits_student": student})


@pytest.mark.parametrize("name", names("kd_total/"))
def test_hinton_beside_the_cross_entropy_is_the_references(name: str) -> None:
    e = entry(name)
    student, teacher, y = inputs(e, "logits_student", "logits_teacher", "target")
    hyper = e["hyper"]
    ce = hyper["ce_weight"] * torch.nn.functional.cross_entropy(student, y)
    kd = hyper["kd_weight"] * hinton(student, teacher, temperature=hyper["T"])
    exactly(ce, tensor(e["outputs"]["loss_ce"]))
    exactly(kd, tensor(e["outputs"]["loss_kd"]))
    assert_golden(e, ce + kd, {"logits_student": student})


@pytest.mark.parametrize("name", names("dkd/"))
def test_decoupled_is_the_references(name: str) -> None:
    e = entry(name)
    student, teacher, y = inputs(e, "logits_student", "logits_teacher", "target")
    hyper = e["hyper"]
    loss = decoupled(
        student, teacher, y,
        temperature=hyper["T"], target_weight=hyper["alpha"], non_target_weight=hyper["beta"],
    )  # fmt: skip
    assert_golden(e, loss, {"logits_student": student})


@pytest.mark.parametrize("name", [*names("ikl_kd/"), *names("gkl_kd/")])
def test_ikl_and_gkl_are_the_references(name: str) -> None:
    e = entry(name)
    hyper = e["hyper"]
    student, teacher = inputs(e, "logits_student", "logits_teacher")
    weight = tensor(e["inputs"]["class_prior"]) if hyper["GI"] else sample_weight(teacher, temperature=hyper["T2"])
    # The authors' code calls the weight of the cross-entropy alpha, and that of the wMSE beta.
    weights = {"wmse_weight": hyper["beta"], "ce_weight": hyper["alpha"], "temperature": hyper["T"]}
    if "gamma" in hyper:
        loss = gkl_kd(student, teacher, weight, gamma=hyper["gamma"], **weights)
    else:
        loss = ikl_kd(student, teacher, weight, **weights)
    assert_golden(e, loss, {"logits_student": student})
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


# --- identities -------------------------------------------------------------------------------------------

WEIGHTS = {"wmse_weight": 4.0, "ce_weight": 1.0, "temperature": 4.0}


def test_a_perfect_student_has_nothing_to_learn() -> None:
    student, _ = logits(5, 7)
    y = torch.arange(5)
    for loss in (
        hinton(student, student.detach(), temperature=4.0),
        decoupled(student, student.detach(), y, temperature=4.0, target_weight=1.0, non_target_weight=8.0),
        ikl_kd(student, student.detach(), prior(5, 7), **(WEIGHTS | {"ce_weight": 0.0})),
    ):
        exactly(loss, torch.zeros((), dtype=torch.float64))
        exactly(torch.autograd.grad(loss, student)[0], torch.zeros(5, 7, dtype=torch.float64))
    ce_only = ikl_kd(student, student.detach(), prior(5, 7), **(WEIGHTS | {"wmse_weight": 0.0}))
    exactly(torch.autograd.grad(ce_only, student)[0], torch.zeros(5, 7, dtype=torch.float64))


def all_losses(student: Tensor, teacher: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
    return [
        hinton(student, teacher, temperature=4.0),
        decoupled(student, teacher, y, temperature=4.0, target_weight=1.0, non_target_weight=8.0),
        ikl_kd(student, teacher, weight, **WEIGHTS),
        gkl_kd(student, teacher, weight, gamma=0.3, **WEIGHTS),
    ]


@pytest.mark.parametrize(("batch", "classes"), [(6, 9), (1, 9), (6, 2), (1, 2)])
def test_adding_a_number_to_all_logits_of_an_image_changes_nothing(batch: int, classes: int) -> None:
    student, teacher = logits(batch, classes)
    y, weight = torch.arange(batch) % classes, prior(batch, classes)
    shift = torch.linspace(-50, 50, 2 * batch, dtype=torch.float64)[:, None]
    plain = all_losses(student, teacher, y, weight)
    shifted = all_losses(student + shift[:batch], teacher + shift[batch:], y, weight)
    for before, after in zip(plain, shifted, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
        gradient = torch.autograd.grad(before, student)[0]
        torch.testing.assert_close(gradient.sum(1), torch.zeros(batch, dtype=torch.float64), rtol=0, atol=1e-12)


def test_decoupled_with_the_coupling_weight_is_hinton() -> None:
    """KD = TCKD + (1 - p_y) * NCKD for a single image: equation 5 of the paper."""
    student, teacher = logits(1, 6)
    y = torch.tensor([2])
    temperature = 3.0
    p_y = (teacher / temperature).softmax(1)[0, 2].item()
    parts = decoupled(student, teacher, y, temperature=temperature, target_weight=1.0, non_target_weight=1 - p_y)
    exactly(parts, hinton(student, teacher, temperature=temperature))


def test_hinton_at_temperature_one_is_kl() -> None:
    student, teacher = logits(4, 5)
    exactly(hinton(student, teacher, temperature=1.0), kl(teacher.detach(), student))


def test_gkl_with_gamma_one_is_ikl_and_with_gamma_zero_half_the_variance() -> None:
    student, teacher = logits(4, 7)
    weight = prior(4, 7)
    exactly(gkl_kd(student, teacher, weight, gamma=1.0, **WEIGHTS), ikl_kd(student, teacher, weight, **WEIGHTS))
    flat = gkl_kd(student, teacher, weight, gamma=0.0, **(WEIGHTS | {"wmse_weight": 1.0, "ce_weight": 0.0}))
    exactly(flat, 0.5 * (teacher - student).var(1, unbiased=False).mean())


def test_gkl_does_not_depend_on_the_scale_of_its_weights() -> None:
    student, teacher = logits(4, 7)
    weight, options = prior(4, 7), WEIGHTS | {"ce_weight": 0.0}
    exactly(
        gkl_kd(student, teacher, 37 * weight, gamma=0.6, **options),
        gkl_kd(student, teacher, weight, gamma=0.6, **options),
    )


def test_the_wmse_moves_the_student_where_kl_with_a_frozen_teacher_does_not() -> None:
    """Breaking the asymmetry: in DKL the wMSE's gradient goes to the teacher's side alone."""
    student, teacher = logits(4, 5)
    loss = ikl_kd(student, teacher, prior(4, 5), **(WEIGHTS | {"ce_weight": 0.0}))
    assert torch.autograd.grad(loss, student)[0].abs().max() > 0.01


def test_the_wmse_is_the_pairwise_sum() -> None:
    student, teacher = logits(3, 5)
    weight = 2.5 * prior(3, 5)  # not normalised
    gap = (teacher - student).detach()
    pairs = weight[:, :, None] * weight[:, None, :] * (gap[:, :, None] - gap[:, None, :]).square()
    exactly(weighted_mse(teacher, student, weight).detach(), pairs.sum((1, 2)).mean() / 4)


# --- edges of arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_saturated_logits_stay_finite_in_float32(offset: float) -> None:
    student = torch.tensor([[200.0, 0.0, -200.0], [-1e4, 1e4, 0.0]]) + offset
    teacher = torch.tensor([[-200.0, 0.0, 200.0], [1e4, -1e4, 0.0]]) + offset
    student.requires_grad_()
    for loss in all_losses(student, teacher, torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, student, retain_graph=True)[0].isfinite().all()


def test_large_offsets_cost_no_digits_in_float32() -> None:
    student, teacher = logits(8, 100, dtype=torch.float32)
    y, weight = torch.arange(8), prior(8, 100).float()
    exact = all_losses(student.double(), teacher.double(), y, weight.double())
    off = all_losses(student.double() + 1e4, teacher.double(), y, weight.double())
    single = all_losses(student + 1e4, teacher, y, weight)
    for name, a, b, c in zip(("hinton", "decoupled", "ikl", "gkl"), exact, off, single, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        # Logits near 1e4 have been rounded to 1e-3 already; the losses must not add to it.
        torch.testing.assert_close(c.double(), b, rtol=2e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_16_bits_are_computed_in_32() -> None:
    student, teacher = logits(4, 10, dtype=torch.bfloat16)
    for loss in all_losses(student, teacher, torch.arange(4), prior(4, 10)):
        assert loss.dtype in (torch.float32, torch.float64)


def test_networks_with_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3\) and \(2, 4\)"):
        hinton(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1.0)
