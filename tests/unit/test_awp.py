"""AWP against the reference's numbers, and what it leaves alone."""

import pytest
import torch
from golden import TinyNet, assert_state, entry, of_kind, tensor
from torch.nn.functional import cross_entropy

from dkl.architectures import CNN, WideResNet
from dkl.awp import ascent_direction, kernel_gradients, perturbed
from dkl.losses import gkl, ikl, kl
from dkl.models import build


def direction_of(model, loss):
    return ascent_direction(model, kernel_gradients(model, [loss]))


def awp_case(name: str):
    """The golden entry, its network in training mode, and the loss of logits_nat and logits_adv it ascends."""
    e = entry(name)
    hyper, y, prior = e["hyper"], torch.tensor(e["target"]), tensor(e["class_scores"])

    def loss(nat, adv):
        match e["formula"]:
            case "AWP_v1":
                robust = ikl(nat, adv, prior, wmse_weight=hyper["beta"], ce_weight=hyper["alpha"])
            case "AWP_v2":
                weights = {"wmse_weight": hyper["beta"], "ce_weight": hyper["alpha"]}
                robust = gkl(nat, adv, prior, gamma=hyper["gamma"], **weights)
            case "AWP_trades_kl":
                robust = hyper["beta"] * kl(nat, adv)
        return cross_entropy(nat, y) + robust

    return e, TinyNet(e["initial_state"]).train(), loss


@pytest.mark.parametrize("name", of_kind("awp"))
def test_every_golden_awp_step(name):
    e, model, loss = awp_case(name)
    x, x_adv = tensor(e["inputs_clean"]), tensor(e["inputs_adv"])
    gamma = e["hyper"]["gamma_awp"]
    optimizer = torch.optim.SGD(model.parameters(), **e["hyper"]["sgd"])

    def loss_of(forward):
        if e["formula"] == "AWP_at_ce":
            return cross_entropy(model(x_adv), torch.tensor(e["target"]))
        return forward()

    direction = direction_of(model, lambda: loss_of(lambda: loss(model(x), model(x_adv))))
    assert direction.keys() == e["diff"].keys()
    for weight, expected in e["diff"].items():
        torch.testing.assert_close(direction[weight], tensor(expected), rtol=1e-10, atol=1e-10)
    assert_state(model, e["initial_state"], tolerance=0)
    assert all(p.grad is None for p in model.parameters())

    def adversarial_first():
        adv = model(x_adv)
        return loss(model(x), adv)

    with perturbed(model, direction, gamma):
        assert_state(model, e["perturbed_state"])
        train_loss = loss_of(adversarial_first)
        torch.testing.assert_close(train_loss, tensor(e["train_loss_on_perturbed"]), rtol=1e-10, atol=0)
        train_loss.backward()
        optimizer.step()
    assert_state(model, e["state_after_sgd_step_and_restore"])


def test_awp_leaves_biases_and_batch_norm_alone():
    model = build(WideResNet(depth=10, width=1), channels=1, classes=3)
    direction = direction_of(model, lambda: model(torch.rand(4, 1, 8, 8)).square().sum())
    assert all(name.endswith("weight") and "bn" not in name for name in direction)
    assert {"conv1.weight", "fc.weight"} < direction.keys()
    for name, shift in direction.items():
        torch.testing.assert_close(shift.norm(), model.get_parameter(name).detach().norm(), rtol=1e-4, atol=0)


def test_weights_are_restored_when_the_update_fails():
    _, model, _ = awp_case("pub-awp-v1")
    x = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    before = model.fc1.weight.detach().clone()
    direction = direction_of(model, lambda: model(x).square().sum())
    with pytest.raises(FloatingPointError), perturbed(model, direction, 0.5):
        raise FloatingPointError
    torch.testing.assert_close(model.fc1.weight.detach(), before, rtol=1e-14, atol=1e-14)


def test_a_zero_gradient_perturbs_nothing():
    model = build(CNN(width=2), channels=1, classes=3)
    direction = direction_of(model, lambda: 0 * model(torch.rand(4, 1, 8, 8)).sum())
    assert all((shift == 0).all() for shift in direction.values())


def test_the_gradient_of_a_batch_in_parts_is_the_whole_one():
    _, model, _ = awp_case("pub-awp-v1")
    x = torch.rand(6, 3, 2, 2, dtype=torch.float64)
    model.eval()  # kernel_gradients sees to batch statistics itself
    whole = kernel_gradients(model, [lambda: 2 * model(x).square().sum()])
    parts = kernel_gradients(model, [lambda: model(x).square().sum()] * 2)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-12, atol=1e-14)
    assert not model.training
