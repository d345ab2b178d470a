"""Learning rate, momentum and radius by epoch, against the originals and torch's own scheduler."""

import pytest
import torch
from golden import entry
from golden_kd import entry as kd_entry

from dkl.documents import ThreatModel
from dkl.objectives import PGD
from dkl.recipes import SGD, Cosine, OneCycle, Steps, WarmCosine
from dkl.schedules import learning_rate, momentum, radius

ROWS = {row["script"]: row for row in entry("pub-schedules")["rows"]}


@pytest.mark.parametrize(("script", "from_full"), [("v1c100", False), ("v1trades", True)])
def test_golden_learning_rates(script, from_full):
    optimizer = SGD(lr=0.2, schedule=Cosine(from_full=from_full))
    for epoch, expected in ROWS[script]["lr_at_epoch"].items():
        assert learning_rate(optimizer, int(epoch), 200) == pytest.approx(expected, rel=1e-12)


def test_golden_one_cycle():
    [row] = [row for script, row in ROWS.items() if script.startswith("DM-AT")]
    optimizer = SGD(lr=0.2, schedule=OneCycle())
    for expected in row["values"]:
        assert learning_rate(optimizer, expected["epoch"], 400) == pytest.approx(expected["lr"], rel=1e-9)
        assert momentum(optimizer, expected["epoch"], 400) == pytest.approx(expected["momentum"], rel=1e-9)


def test_golden_radii():
    threat = ThreatModel(norm="Linf", eps=8 / 255)
    for epoch, expected in entry("pub-schedules")["attack_budget_high"]["by_epoch"].items():
        now = radius(PGD(), threat, int(epoch), 200)
        assert now.eps == pytest.approx(expected["eps_t"], rel=1e-12)
        assert PGD().relative_step_size * now.eps == pytest.approx(expected["step"], rel=1e-12)
        assert PGD().steps == expected["iters"]
    assert radius(PGD(eps_schedule="constant"), threat, 1, 200) == threat


def test_steps_divide_by_ten_from_their_epoch_on():
    optimizer = SGD(lr=0.1, schedule=Steps(epochs=(75, 90)))
    lrs = [learning_rate(optimizer, epoch, 100) for epoch in (1, 74, 75, 89, 90, 100)]
    assert lrs == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert momentum(optimizer, 75, 100) == 0.9


def test_the_first_epoch_may_be_gentle():
    optimizer = SGD(lr=0.1, schedule=Steps(epochs=(76, 91), first_epoch=0.2))
    lrs = [learning_rate(optimizer, epoch, 100) for epoch in (1, 2, 75, 76, 91)]
    assert lrs == pytest.approx([0.02, 0.1, 0.1, 0.01, 0.001])
    assert "first_epoch" not in Steps(epochs=(76,)).model_dump()  # recipes from before keep their fingerprints


def test_golden_steps_of_distillation():
    """The reference divides after the epochs that it names."""
    e = kd_entry("schedule/cifar100_step")
    optimizer = SGD(lr=e["hyper"]["LR"], schedule=Steps(epochs=tuple(stage + 1 for stage in e["hyper"]["stages"])))
    lrs = [learning_rate(optimizer, epoch, 240) for epoch in e["inputs"]["epochs_1based"]]
    assert lrs == pytest.approx(e["outputs"]["lr"], rel=1e-12)


def test_golden_warm_up_and_cosine():
    e = kd_entry("schedule/imagenet_lt_cosine")
    hyper = e["hyper"]
    optimizer = SGD(lr=hyper["LR"], schedule=WarmCosine(warmup=hyper["warmup_epochs"]))
    lrs = [learning_rate(optimizer, epoch + 1, hyper["epochs"]) for epoch in e["inputs"]["epochs_0based"]]
    assert lrs == pytest.approx(e["outputs"]["lr"], rel=1e-12)
    assert momentum(optimizer, 1, hyper["epochs"]) == optimizer.momentum


@pytest.mark.parametrize(("epochs", "shares"), [(1, [0.5]), (2, [0.5, 1]), (3, [0.5, 1, 0.5])])
def test_a_short_run_warms_up_first(epochs, shares):
    optimizer = SGD(lr=0.2, schedule=WarmCosine(warmup=2))
    lrs = [learning_rate(optimizer, epoch, epochs) for epoch in range(1, epochs + 1)]
    assert lrs == pytest.approx([0.2 * share for share in shares])


@pytest.mark.parametrize("epochs", [100, 1600, 2400])
def test_one_cycle_is_torch_s(epochs):
    optimizer = SGD(lr=0.2, schedule=OneCycle())
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=0.2, momentum=0.9, nesterov=True)
    theirs = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.2, pct_start=0.025, total_steps=epochs)
    for epoch in range(1, epochs + 1):
        group = sgd.param_groups[0]
        assert learning_rate(optimizer, epoch, epochs) == pytest.approx(group["lr"], rel=1e-9), epoch
        assert momentum(optimizer, epoch, epochs) == pytest.approx(group["momentum"], rel=1e-9), epoch
        sgd.step()
        if epoch < epochs:
            theirs.step()


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_one_cycle_of_a_few_epochs_begins_at_the_top(epochs):
    optimizer = SGD(lr=0.2, schedule=OneCycle())
    lrs = [learning_rate(optimizer, epoch, epochs) for epoch in range(1, epochs + 1)]
    assert lrs[0] == pytest.approx(0.2)
    assert lrs == sorted(lrs, reverse=True)
    if epochs > 1:
        assert lrs[-1] == pytest.approx(8e-7)
