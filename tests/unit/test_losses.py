"""Losses against the reference's numbers, against their definitions, and at the edges of arithmetic."""

import functools

import pytest
import torch
from golden import entry, of_kind, tensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dkl.losses import dkl, gkl, ikl, kl, weighted_mse

exactly = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def golden_inputs(e: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits_nat and logits_adv, which want gradients, the prior's rows, and the labels."""
    inputs = entry(e["inputs"])
    nat, adv = tensor(inputs["logits_nat"]).requires_grad_(), tensor(inputs["logits_adv"]).requires_grad_()
    return nat, adv, tensor(inputs["class_scores"]), torch.tensor(inputs["target"])


def assert_golden(e: dict, loss: Tensor, nat: Tensor, adv: Tensor) -> None:
    exactly(loss, tensor(e["loss"]))
    gradients = torch.autograd.grad(loss, (nat, adv), materialize_grads=True)
    exactly(gradients[0], tensor(e["grad_logits_nat"]))
    exactly(gradients[1], tensor(e["grad_logits_adv"]))


def random_logits(batch: int, classes: int, *, scale: float = 3.0) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(batch, classes, generator=source, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    ]


def random_prior(batch: int, classes: int) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(batch, classes, generator=source, dtype=torch.float64).softmax(1)


# --- the reference's numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", of_kind("loss"))
def test_every_golden_loss(name):
    e = entry(name)
    nat, adv, prior, _ = golden_inputs(e)
    hyper = e["hyper"]
    match e["formula"]:
        case "KL":
            loss = kl(nat, adv)
        case "DKL_theorem1":
            loss = dkl(nat, adv, wmse_weight=hyper["paper_alpha_on_wMSE"], ce_weight=hyper["paper_beta_on_CE"])
        case "IKL_AT_v1":
            loss = ikl(
                nat, adv, prior, wmse_weight=hyper["code_beta_on_wMSE"], ce_weight=hyper["code_alpha_on_CE"]
            )
        case "GKL_AT_v2":
            loss = gkl(
                nat,
                adv,
                prior,
                gamma=hyper["gamma"],
                wmse_weight=hyper["code_beta_on_wMSE"],
                ce_weight=hyper["code_alpha_on_CE"],
                temperature=hyper["temperature"],
            )
        case formula:
            pytest.fail(f"no test for {formula}")
    assert_golden(e, loss, nat, adv)


@pytest.mark.parametrize("name", of_kind("objective"))
def test_every_golden_objective(name):
    e = entry(name)
    nat, adv, prior, y = golden_inputs(e)
    hyper = e["hyper"]
    natural = torch.nn.functional.cross_entropy(nat, y)

    def robust(rows: slice) -> Tensor:
        if "trades" in name:
            return hyper["beta"] * kl(nat[rows], adv[rows])
        weights = {"wmse_weight": hyper["code_beta"], "ce_weight": hyper["code_alpha"]}
        if "v2" in name:
            return gkl(nat[rows], adv[rows], prior[rows], gamma=hyper["gamma"], **weights)
        return ikl(nat[rows], adv[rows], prior[rows], **weights)

    if "two_view" in name:
        half = hyper["B_per_view"]
        second_view = hyper["aug_weight"] if "v2" in name else hyper["gamma_aug_view"]
        loss = natural + robust(slice(half)) + second_view * robust(slice(half, None))
    else:
        loss = natural + robust(slice(None))
    assert_golden(e, loss, nat, adv)


def test_golden_trades_loss():
    e = entry("pub-TRADES-B4-C10")
    inputs = entry(e["inputs"])
    nat, adv = tensor(inputs["logits_nat"]).requires_grad_(), tensor(inputs["logits_adv"]).requires_grad_()
    natural = torch.nn.functional.cross_entropy(nat, torch.tensor(inputs["target"]))
    assert_golden(e, natural + e["hyper"]["beta"] * kl(nat, adv), nat, adv)


# --- the definitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1.0, 7.5])
def test_weighted_mse_is_the_sum_over_all_pairs(total):
    a, b = random_logits(5, 7)
    w = total * random_prior(5, 7)
    pairs = (a[:, :, None] - a[:, None, :]) - (b[:, :, None] - b[:, None, :])
    expected = (0.25 * w[:, :, None] * w[:, None, :] * pairs**2).sum((1, 2)).mean()
    exactly(weighted_mse(a, b, w), expected)
    for gradient, wanted in zip(
        torch.autograd.grad(weighted_mse(a, b, w), (a, b)), torch.autograd.grad(expected, (a, b)), strict=True
    ):
        exactly(gradient, wanted)


def test_weighted_mse_of_weights_that_are_all_zero_is_zero():
    a, b = random_logits(3, 4)
    loss = weighted_mse(a, b, torch.zeros(3, 4, dtype=torch.float64))
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (a, b)))


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_theorem_1_dkl_has_the_gradient_of_kl(classes, scale):
    nat, adv = random_logits(6, classes, scale=scale)
    for of_kl, of_dkl in zip(
        torch.autograd.grad(kl(nat, adv), (nat, adv)), torch.autograd.grad(dkl(nat, adv), (nat, adv)), strict=True
    ):
        torch.testing.assert_close(of_dkl, of_kl, rtol=1e-12, atol=1e-13)


def test_each_dkl_term_moves_one_side_only():
    nat, adv = random_logits(4, 6)
    of_nat, of_adv = torch.autograd.grad(dkl(nat, adv, ce_weight=0.0), (nat, adv), materialize_grads=True)
    assert of_nat.abs().max() > 1e-3
    assert (of_adv == 0).all()
    of_nat, of_adv = torch.autograd.grad(dkl(nat, adv, wmse_weight=0.0), (nat, adv), materialize_grads=True)
    assert (of_nat == 0).all()
    assert of_adv.abs().max() > 1e-3


def test_ikl_moves_both_sides_through_the_wmse_and_never_the_prior():
    nat, adv = random_logits(4, 6)
    prior = random_prior(4, 6).requires_grad_()
    of_nat, of_adv, of_prior = torch.autograd.grad(
        ikl(nat, adv, prior, wmse_weight=1.0, ce_weight=0.0), (nat, adv, prior), materialize_grads=True
    )
    exactly(of_nat, -of_adv)
    assert of_nat.abs().max() > 1e-3
    assert (of_prior == 0).all()


def test_gkl_with_gamma_1_is_ikl():
    nat, adv = random_logits(4, 6)
    prior = random_prior(4, 6)
    exactly(
        gkl(nat, adv, prior, gamma=1.0, wmse_weight=3.0, ce_weight=2.0),
        ikl(nat, adv, prior, wmse_weight=3.0, ce_weight=2.0),
    )


def test_the_temperature_softens_only_the_cross_entropy():
    nat, adv = random_logits(4, 6)
    prior = random_prior(4, 6)
    loss = ikl(nat, adv, prior, wmse_weight=1.0, ce_weight=2.0, temperature=4.0)
    soft = -((nat / 4).softmax(1) * (adv / 4).log_softmax(1)).sum(1).mean()
    exactly(loss, weighted_mse(nat, adv, prior) + 2 * soft)


LOSSES = {
    "kl": kl,
    "dkl": dkl,
    "ikl": lambda nat, adv: ikl(nat, adv, random_prior(*nat.shape), wmse_weight=20.0, ce_weight=4.0),
    "gkl": lambda nat, adv: gkl(nat, adv, random_prior(*nat.shape), gamma=0.4, wmse_weight=20.0, ce_weight=4.0),
}


@pytest.mark.parametrize("loss", [kl, lambda a, b: weighted_mse(a, b, random_prior(*a.shape))], ids=["kl", "wmse"])
def test_gradients_are_those_of_the_value(loss):
    assert torch.autograd.gradcheck(loss, random_logits(3, 5))
    assert torch.autograd.gradgradcheck(loss, random_logits(3, 5))


@pytest.mark.parametrize("name", ["ikl", "gkl"])
def test_the_adversarial_gradient_is_that_of_the_value(name):
    # The clean side has a stop-gradient on purpose, so only the other one can be checked by differences.
    nat, adv = random_logits(3, 5)
    assert torch.autograd.gradcheck(lambda logits: LOSSES[name](nat.detach(), logits), adv)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_a_mean_over_the_batch(name):
    nat, adv = (logits.detach()[:1].expand(5, -1) for logits in random_logits(1, 6))
    prior = random_prior(1, 6)
    loss = {**LOSSES, "ikl": lambda n, a: ikl(n, a, prior.expand(len(n), -1), wmse_weight=20.0, ce_weight=4.0)}
    loss["gkl"] = lambda n, a: gkl(n, a, prior.expand(len(n), -1), gamma=0.4, wmse_weight=20.0, ce_weight=4.0)
    exactly(loss[name](nat, adv), loss[name](nat[:1], adv[:1]))


# --- the edges of arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_a_constant_added_to_the_logits_changes_nothing(name, shift):
    nat, adv = (logits.detach() for logits in random_logits(8, 10))
    shifted = LOSSES[name](nat.float(), (adv + shift).float())
    torch.testing.assert_close(shifted, LOSSES[name](nat, adv).float(), rtol=1e-3, atol=1e-4)


def edge_cases() -> dict[str, tuple[Tensor, Tensor]]:
    one_hot = torch.eye(10)[:4]
    wide = torch.linspace(-1, 1, 40).reshape(4, 10)
    many = torch.randn(2, 21_841, generator=torch.Generator().manual_seed(0))
    return {
        "logits of 1e4": (1e4 * wide, -1e4 * wide),
        "one-hot, the same": (1e4 * one_hot, 1e4 * one_hot),
        "one-hot, opposite": (1e4 * one_hot, 1e4 * one_hot.roll(1, 0)),
        "equal": (wide, wide.clone()),
        "two classes": (wide[:, :2], wide[:, 2:4]),
        "21,841 classes": (10 * many, -10 * many),
        "21,841 classes, one-hot": (1e4 * torch.eye(2, 21_841), -1e4 * torch.eye(2, 21_841)),
        "bfloat16": ((50 * wide).bfloat16(), (-50 * wide).bfloat16()),
        "float16": ((6e4 * wide).half(), (-6e4 * wide).half()),
    }


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", edge_cases())
def test_value_and_gradients_are_finite(name, case):
    nat, adv = (logits.requires_grad_() for logits in edge_cases()[case])
    loss = LOSSES[name](nat, adv)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (nat, adv)):
        assert gradient.isfinite().all()
        assert gradient.dtype == nat.dtype


@pytest.mark.parametrize("name", LOSSES)
def test_float32_agrees_with_float64(name):
    nat, adv = (logits.detach() for logits in random_logits(16, 100))
    torch.testing.assert_close(
        LOSSES[name](nat.float(), adv.float()), LOSSES[name](nat, adv).float(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_compared_in_float32(low):
    # Nearly equal logits: their difference has no digits left unless it is taken in float32.
    nat = 8 * torch.randn(16, 100, generator=torch.Generator().manual_seed(0))
    nat, adv = nat.to(low), (nat + 0.05 * torch.randn(16, 100, generator=torch.Generator().manual_seed(1))).to(low)
    assert torch.equal(LOSSES["ikl"](nat, adv), LOSSES["ikl"](nat.float(), adv.float()))


def test_small_gamma_does_not_lose_the_wmse_in_half_precision():
    # In float16 the batch's normaliser, about 1e5, is infinite, and the term silently zero.
    nat, adv = (logits.detach().half() for logits in random_logits(128, 100))
    prior = random_prior(128, 100)
    loss = gkl(nat, adv, prior, gamma=0.2, wmse_weight=1.0, ce_weight=0.0)
    exact = gkl(nat.double(), adv.double(), prior, gamma=0.2, wmse_weight=1.0, ce_weight=0.0)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_is_larger_than_the_logits(name):
    nat, adv = random_logits(4, 1000)
    with LargestTensor() as largest:
        LOSSES[name](nat, adv).backward()
    assert largest.elements == 4 * 1000


# --- mistakes ---------------------------------------------------------------------------------------------


def test_wrong_shapes_are_refused_with_the_way_out():
    nat, adv = random_logits(4, 6)
    with pytest.raises(ValueError, match=r"one shape \(B, K\), found \(4, 6\) and \(3, 6\)"):
        kl(nat, adv[:3])
    with pytest.raises(ValueError, match=r"one shape \(B, K\), found \(6,\)"):
        dkl(nat[0], adv[0])
    weights = {"wmse_weight": 1.0, "ce_weight": 1.0}
    for prior in (random_prior(1, 6)[0], random_prior(6, 6), random_prior(4, 5)):
        with pytest.raises(ValueError, match=r"prior must have one row per image.*rows_for"):
            ikl(nat, adv, prior, **weights)
        with pytest.raises(ValueError, match=r"prior must have one row per image.*rows_for"):
            gkl(nat, adv, prior, gamma=1.0, **weights)
    with pytest.raises(ValueError, match="gamma must be 0 or larger, found -1"):
        gkl(nat, adv, random_prior(4, 6), gamma=-1.0, **weights)
