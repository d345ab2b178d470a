"""Every objective's loss against the authors' own numbers, and what the inner maximisation climbs."""

import pytest
import torch
from golden import entry, of_kind, tensor
from torch.nn.functional import cross_entropy

from dkl import losses
from dkl.objectives import GKL, IKL, MART, PGD, PGDAT, TRADES, Natural, Objective
from dkl.terms import attacked_loss, natural_terms, normaliser_of, robust_terms


def total(
    objective: Objective, nat: torch.Tensor, adv: torch.Tensor, y: torch.Tensor, prior: torch.Tensor | None,
    view_weights: tuple[float, ...] = (1.0,),
) -> torch.Tensor:  # fmt: skip
    """The outer objective as dkl.updates composes it: natural over all rows, robust per view."""
    images = len(y) // len(view_weights)
    normaliser = normaliser_of(objective, None if prior is None else prior[:images])
    loss = sum(natural_terms(objective, nat, y).values(), start=torch.zeros((), dtype=nat.dtype))
    for view, weight in enumerate(view_weights):
        rows = slice(view * images, (view + 1) * images)
        terms = robust_terms(
            objective, nat[rows], adv[rows], y[rows], None if prior is None else prior[rows], normaliser
        )
        loss = loss + weight * sum(terms.values())
    return loss


def inputs(e: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    given = entry(e["inputs"])
    nat, adv = (tensor(given[name]).requires_grad_() for name in ("logits_nat", "logits_adv"))
    prior = tensor(given["class_scores"]) if "class_scores" in given else None
    return nat, adv, torch.tensor(given["target"]), prior


def assert_golden(e: dict, loss: torch.Tensor, nat: torch.Tensor, adv: torch.Tensor) -> None:
    torch.testing.assert_close(loss, tensor(e["loss"]), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(loss, (nat, adv), allow_unused=True)
    for gradient, name in zip(gradients, ("grad_logits_nat", "grad_logits_adv"), strict=True):
        if name in e:
            torch.testing.assert_close(gradient, tensor(e[name]), rtol=1e-9, atol=1e-10)


def objective_of(e: dict) -> tuple[Objective, tuple[float, ...]]:
    hyper = e["hyper"]
    match e["formula"].removeprefix("outer_objective_").split("_")[0]:
        case "trades":
            return TRADES(beta=hyper["beta"]), (1.0,)
        case "v1":
            objective: Objective = IKL(wmse_weight=hyper["code_beta"], ce_weight=hyper["code_alpha"])
        case "v2":
            weights = {"wmse_weight": hyper["code_beta"], "ce_weight": hyper["code_alpha"]}
            objective = GKL(**weights, gamma=hyper["gamma"])
    second = hyper.get("gamma_aug_view", hyper.get("aug_weight"))
    return objective, (1.0,) if second is None else (1.0, second)


@pytest.mark.parametrize("name", of_kind("objective"))
def test_every_golden_objective(name):
    e = entry(name)
    nat, adv, y, prior = inputs(e)
    objective, view_weights = objective_of(e)
    assert_golden(e, total(objective, nat, adv, y, prior, view_weights), nat, adv)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("pub-TRADES-B4-C10", TRADES(beta=6.0)), ("pub-MART-B4-C10", MART(beta=6.0))],
)
def test_the_rivals_golden_losses(name, objective):
    e = entry(name)
    nat, adv, y, prior = inputs(e)
    assert_golden(e, total(objective, nat, adv, y, prior), nat, adv)


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [("pub-SmoothCE-DMAT-B4-C10", 0.1), ("pub-SmoothCE-DAJAT-B4-C10", 0.1 * 10 / 9)],
)
def test_both_forms_of_label_smoothing(name, smoothing):
    """DM-AT shares 0.1 among all ten classes, DAJAT among the nine others."""
    e = entry(name)
    nat, adv, y, _ = inputs(e)
    for objective in (Natural(label_smoothing=smoothing), TRADES(label_smoothing=smoothing)):
        assert_golden(e, natural_terms(objective, nat, y)["natural"], nat, adv)


def test_dajat_without_views_is_acat_is_trades():
    e = entry("pub-DAJAT-num_auto0-B3-C5")
    assert e["logits_order"][:2] == ["nat_base", "adv_base"]
    nat, adv = (tensor(rows).requires_grad_() for rows in e["logits"][:2])
    loss = total(TRADES(beta=9.0), nat, adv, torch.tensor(e["target"]), None)
    torch.testing.assert_close(loss, tensor(e["loss"]), rtol=1e-10, atol=0)
    for gradient, wanted in zip(torch.autograd.grad(loss, (nat, adv)), e["grads"][:2], strict=True):
        torch.testing.assert_close(gradient, tensor(wanted), rtol=1e-9, atol=1e-10)


def test_pgd_at_is_the_cross_entropy_of_adversarial_images():
    adv, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    assert natural_terms(PGDAT(), None, y) == {}
    assert robust_terms(PGDAT(), None, adv, y, None, None)["adversarial"] == cross_entropy(adv, y)


# --- stability --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_mart_is_finite_for_saturated_logits(scale):
    nat = (scale * torch.randn(8, 10)).requires_grad_()
    adv = (scale * torch.randn(8, 10)).requires_grad_()
    y = torch.arange(8)
    loss = losses.boosted_cross_entropy(adv, y) + losses.misclassification_kl(nat, adv, y)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (nat, adv)))


def test_the_margin_is_the_distance_to_the_best_wrong_class():
    logits = torch.tensor([[1.0, 5.0, 2.0], [0.0, 3.0, 7.0]])
    assert losses.margin(logits, torch.tensor([1, 1])) == ((2 - 5) + (7 - 3)) / 2


# --- parts of a batch -------------------------------------------------------------------------------------


def test_gkl_of_two_parts_is_gkl_of_the_whole():
    """The normaliser belongs to the batch, so a part must be told it."""
    torch.manual_seed(0)
    nat, adv = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    prior = torch.rand(6, 5, dtype=torch.float64)
    y, objective = torch.zeros(6, dtype=torch.long), GKL(gamma=0.3)
    normaliser = normaliser_of(objective, prior)
    whole = sum(robust_terms(objective, nat, adv, y, prior, normaliser).values())
    parts = [
        len(y[rows])
        / 6
        * sum(robust_terms(objective, nat[rows], adv[rows], y[rows], prior[rows], normaliser).values())
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    wmse = losses.gkl(nat, adv, prior, gamma=0.3, wmse_weight=20.0, ce_weight=4.0)
    torch.testing.assert_close(whole, wmse, rtol=1e-12, atol=0)


# --- the inner maximisation -------------------------------------------------------------------------------


def test_the_attacked_losses_are_sums_with_the_gradients_of_their_names():
    torch.manual_seed(0)
    nat, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    adv = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    prior = torch.rand(6, 5, dtype=torch.float64)
    expected = {
        "ce": cross_entropy(adv, y, reduction="sum"),
        "kl": torch.nn.functional.kl_div(adv.log_softmax(1), nat.softmax(1), reduction="sum"),
        "ikl": 6 * losses.ikl(nat, adv, prior, wmse_weight=1.0, ce_weight=1.0),
    }
    for name, loss in expected.items():
        ours = attacked_loss(PGD(loss=name), None if name == "ce" else nat, adv, y, prior)
        [gradient], [wanted] = torch.autograd.grad(ours, adv), torch.autograd.grad(loss, adv, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)
