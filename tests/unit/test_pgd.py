"""The inner maximisation: the reference's numbers, a closed form, and the promises about model and ball."""

import pytest
import torch
from golden import TinyNet, assert_state, entry, of_kind, tensor
from torch import nn
from torch.nn.functional import cross_entropy

from dkl.architectures import CNN
from dkl.attacks import attack_mode, draw_start, perturb
from dkl.attacks.pgd import pgd_l2, pgd_linf
from dkl.documents import ThreatModel
from dkl.losses import gkl, ikl, kl
from dkl.models import build
from dkl.objectives import PGD


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
    model = TinyNet(e["model_state"])
    x = tensor(e["x_natural"])
    loss = attacked_loss(e, TinyNet(e["model_state"]).eval(), x)
    threat = ThreatModel(norm="Linf", eps=e["hyper"]["epsilon"])
    with attack_mode(model, "eval"):
        x_adv = perturb(PGD(steps=2), model, x, threat, loss=loss, start_BCHW=0.001 * tensor(e["noise"]))
    close(x_adv, tensor(e["runs"][1]["x_adv"]))
    assert_state(model, e["model_state"], tolerance=0)


def test_perturb_clips_a_uniform_start_to_the_pixels_as_the_reference_does():
    e = entry("pub-attack-madry_at-l_inf")
    model = TinyNet(e["model_state"]).eval()
    x = tensor(e["x_natural"])
    attack = PGD(loss="ce", steps=e["runs"][1]["perturb_steps"], relative_step_size=0.25, start="uniform")
    threat = ThreatModel(norm="Linf", eps=e["hyper"]["epsilon"])
    loss = attacked_loss(e, model, x)
    x_adv = perturb(attack, model, x, threat, loss=loss, start_BCHW=tensor(e["delta_init_before_clip"]))
    close(x_adv, tensor(e["runs"][1]["x_adv"]))


# --- where it starts --------------------------------------------------------------------------------------


def started(start: str, norm: str, seed: int = 0) -> torch.Tensor:
    x = torch.zeros(400, 3, 8, 8)
    random = torch.Generator().manual_seed(seed)
    return draw_start(PGD(loss="ce", start=start), x, ThreatModel(norm=norm, eps=0.1), random)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gaussian_start_is_tiny_whatever_the_ball(norm):
    start = started("gaussian", norm)
    assert start.std().item() == pytest.approx(0.001, rel=0.02)
    assert start.mean().abs() < 1e-5


def test_a_uniform_start_fills_the_linf_ball():
    start = started("uniform", "Linf")
    assert start.abs().max() <= 0.1
    assert start.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.01)


def test_a_uniform_start_is_at_a_uniform_distance_in_the_l2_ball():
    lengths = started("uniform", "L2").flatten(1).norm(dim=1)
    assert lengths.max() <= 0.1 * (1 + 1e-6)
    assert lengths.mean().item() == pytest.approx(0.05, rel=0.06)
    assert lengths.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.06)


@pytest.mark.parametrize("start", ["gaussian", "uniform"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_start_follows_from_its_generator(start, norm):
    assert torch.equal(started(start, norm), started(start, norm))
    assert not torch.equal(started(start, norm), started(start, norm, seed=1))


# --- what it promises -------------------------------------------------------------------------------------


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
    model = build(CNN(width=4), channels=3, classes=5).eval()
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
    model = build(CNN(width=4), channels=3, classes=5)
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16) % 5
    model.eval()
    before = cross_entropy(model(x), y)
    x_adv = perturb(
        PGD(),
        model,
        x,
        ThreatModel(norm=norm, eps=0.5),
        loss=lambda logits: cross_entropy(logits, y),
        start_BCHW=0.001 * torch.randn_like(x),
    )
    assert cross_entropy(model(x_adv), y) > before + 0.01


@pytest.mark.parametrize("attack", [pgd_linf, pgd_l2])
def test_a_gradient_of_exactly_zero_is_no_nan(attack):
    start = 0.001 * torch.ones_like(GREY)
    x_adv = attack(
        Linear(torch.zeros_like(SLOPE)), GREY, raise_score, eps=0.1, step_size=0.05, steps=3, start=start
    )
    close(x_adv, GREY + start)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_an_attack_leaves_no_gradients_no_statistics_and_every_module_in_its_mode(mode):
    model = build(CNN(width=4), channels=1, classes=5)
    model.bn1.eval()
    model.linear.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 1, 8, 8)
    with attack_mode(model, mode):
        assert not any(p.requires_grad for p in model.parameters())
        assert model.bn1.training == model.bn2.training == (mode == "batch")
        x_adv = perturb(
            PGD(),
            model,
            x,
            ThreatModel(norm="Linf", eps=0.1),
            loss=lambda logits: logits.square().sum(),
            start_BCHW=0.001 * torch.randn_like(x),
        )
    assert not x_adv.requires_grad
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert model.conv1.weight.requires_grad
    assert not model.linear.bias.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model.bn2.training
    assert not model.bn1.training


def test_an_attack_in_training_mode_updates_running_statistics_at_every_step():
    """As the PGD-AT of Rice et al. and of the AWP repository does."""
    model = build(CNN(width=4), channels=1, classes=5)
    x = torch.rand(4, 1, 8, 8)
    with attack_mode(model, "train"):
        perturb(
            PGD(steps=3),
            model,
            x,
            ThreatModel(norm="Linf", eps=0.1),
            loss=lambda logits: logits.square().sum(),
            start_BCHW=torch.zeros_like(x),
        )
    assert model.bn1.num_batches_tracked == 3


def test_perturb_refuses_l1():
    model = build(CNN(width=4), channels=1, classes=5)
    x = torch.rand(4, 1, 8, 8)
    threat = ThreatModel(norm="L1", eps=1.0)
    with pytest.raises(ValueError, match="L1 is not available; use Linf or L2"):
        perturb(PGD(), model, x, threat, loss=lambda logits: logits.sum(), start_BCHW=x)
