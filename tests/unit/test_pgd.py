"""The inner maximisation: the reference's numbers, a closed form, and the promises about model and ball."""

import pytest
import torch
from golden import TinyNet, assert_state, entry, of_kind, tensor
from torch import nn
from torch.nn.functional import cross_entropy

from dkl import recipes
from dkl.attacks import perturb
from dkl.attacks.pgd import pgd_l2, pgd_linf
from dkl.documents import ThreatModel
from dkl.losses import gkl, ikl, kl
from dkl.models import build


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def attacked_loss(e: dict, model: nn.Module, x: torch.Tensor):
    """The loss that the golden entry says was maximised."""
    with torch.no_grad():
        nat = model(x)
    if "PGD_AT" in e["formula"]:
        return lambda adv: cross_entropy(adv, torch.tensor(e["target"]))
    if e["attacked_loss"].startswith("KL sum"):
        return lambda adv: kl(nat, adv)
    prior = tensor(e["class_scores"])
    wmse_weight = 1.0 if "cifar100" in e["formula"] else 0.0
    if e["attacked_loss"].startswith("IKL"):
        return lambda adv: ikl(nat, adv, prior, wmse_weight=wmse_weight, ce_weight=1.0)
    assert e["attacked_loss"].startswith("GKL")
    return lambda adv: gkl(nat, adv, prior, gamma=1.0, wmse_weight=wmse_weight, ce_weight=1.0)


@pytest.mark.parametrize("name", of_kind("inner_max"))
def test_every_golden_inner_maximisation(name):
    e = entry(name)
    model = TinyNet(e["model_state"]).eval()
    x = tensor(e["x_natural"])
    eps = e["hyper"]["epsilon"]
    loss = attacked_loss(e, model, x)
    for run in e["runs"]:
        steps = run["perturb_steps"]
        if "PGD_AT" in e["formula"]:
            start = (x + tensor(e["delta_init_before_clip"])).clamp(0, 1) - x
        else:
            start = 0.001 * tensor(e["noise"])
        if name.endswith("l_2"):
            x_adv = pgd_l2(model, x, loss, eps=eps, step_size=2 * eps / steps, steps=steps, start=start)
        else:
            x_adv = pgd_linf(model, x, loss, eps=eps, step_size=e["hyper"]["step_size"], steps=steps, start=start)
        close(x_adv, tensor(run["x_adv"]))
    assert_state(model, e["model_state"], tolerance=0)


def test_perturb_is_the_golden_attack():
    e = entry("pub-attack-v1_cifar100-l_inf")
    model = TinyNet(e["model_state"]).train()  # perturb sees to eval mode itself
    x = tensor(e["x_natural"])
    loss = attacked_loss(e, TinyNet(e["model_state"]).eval(), x)
    threat = ThreatModel(norm="Linf", eps=e["hyper"]["epsilon"])
    x_adv = perturb(recipes.PGD(steps=2), model, x, threat, loss=loss, noise=tensor(e["noise"]))
    close(x_adv, tensor(e["runs"][1]["x_adv"]))
    assert model.training
    assert_state(model, e["model_state"], tolerance=0)


class Linear(nn.Module):
    """logits = (g . x, 0): every step's gradient is known."""

    def __init__(self, g: torch.Tensor) -> None:
        super().__init__()
        self.g = nn.Parameter(g)

    def forward(self, x):
        score = (x * self.g).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def raise_score(logits):
    return logits[:, 0].sum()


GREY = torch.full((5, 1, 4, 4), 0.5, dtype=torch.float64)
SLOPE = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_linear_model_is_attacked_to_the_corner_of_the_linf_ball():
    start = torch.zeros_like(GREY)
    x_adv = pgd_linf(Linear(SLOPE), GREY, raise_score, eps=0.1, step_size=0.04, steps=5, start=start)
    close(x_adv, GREY + 0.1 * SLOPE.sign())


def test_a_linear_model_is_attacked_to_the_l2_sphere_along_its_gradient():
    start = torch.zeros_like(GREY)
    x_adv = pgd_l2(Linear(SLOPE), GREY, raise_score, eps=0.4, step_size=0.16, steps=5, start=start)
    close(x_adv, GREY + 0.4 * SLOPE / SLOPE.norm(), tolerance=1e-6)


@pytest.mark.parametrize(("attack", "norm"), [(pgd_linf, float("inf")), (pgd_l2, 2)])
def test_x_adv_stays_in_the_ball_and_in_the_pixel_range(attack, norm):
    torch.manual_seed(0)
    model = build(recipes.CNN(width=4), channels=3, classes=5).eval()
    x = torch.rand(16, 3, 8, 8).round(decimals=1)  # some pixels are 0 or 1
    start = 0.001 * torch.randn_like(x)
    y = torch.arange(16) % 5
    x_adv = attack(model, x, lambda logits: cross_entropy(logits, y), eps=0.1, step_size=0.5, steps=4, start=start)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    distance = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=norm, dim=1)
    assert distance.max() <= 0.1 * (1 + 1e-5)
    assert distance.min() > 0.05


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_raises_the_loss(norm):
    torch.manual_seed(0)
    model = build(recipes.CNN(width=4), channels=3, classes=5)
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16) % 5
    model.eval()
    before = cross_entropy(model(x), y)
    x_adv = perturb(
        recipes.PGD(),
        model,
        x,
        ThreatModel(norm=norm, eps=0.5),
        loss=lambda logits: cross_entropy(logits, y),
        noise=torch.randn_like(x),
    )
    assert cross_entropy(model(x_adv), y) > before + 0.01


@pytest.mark.parametrize("attack", [pgd_linf, pgd_l2])
def test_a_gradient_of_exactly_zero_is_no_nan(attack):
    start = 0.001 * torch.ones_like(GREY)
    x_adv = attack(
        Linear(torch.zeros_like(SLOPE)), GREY, raise_score, eps=0.1, step_size=0.05, steps=3, start=start
    )
    close(x_adv, GREY + start)


def test_perturb_leaves_no_gradients_and_every_module_in_its_mode():
    model = build(recipes.CNN(width=4), channels=1, classes=5)
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 1, 8, 8)
    x_adv = perturb(
        recipes.PGD(),
        model,
        x,
        ThreatModel(norm="Linf", eps=0.1),
        loss=lambda logits: logits.square().sum(),
        noise=torch.randn_like(x),
    )
    assert not x_adv.requires_grad
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model.bn2.training
    assert not model.bn1.training


def test_perturb_refuses_l1():
    model = build(recipes.CNN(width=4), channels=1, classes=5)
    x = torch.rand(4, 1, 8, 8)
    threat = ThreatModel(norm="L1", eps=1.0)
    with pytest.raises(ValueError, match="L1 is not available; use Linf or L2"):
        perturb(recipes.PGD(), model, x, threat, loss=lambda logits: logits.sum(), noise=x)
