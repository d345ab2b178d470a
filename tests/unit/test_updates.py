"""One update: the authors' own epochs number by number, and what a batch in parts has to do with a whole one."""

import copy

import pytest
import torch
from golden import TinyNet, assert_state, entry, tensor
from torch import nn

from dkl.documents import ThreatModel
from dkl.objectives import AWP, GKL, IKL, MART, PGD, PGDAT, TRADES, Natural
from dkl.prior import ClassPrior
from dkl.updates import Batch, Network, Plan, goes_adversarial_first, update

# --- the reference's numbers ------------------------------------------------------------------------------


def objective_and_views(e: dict) -> tuple[IKL | GKL, tuple[float, ...]]:
    hyper, is_v2 = e["hyper"], "v2" in e["id"]
    weights = {"wmse_weight": hyper["beta"], "ce_weight": hyper["alpha"], "prior_temperature": hyper["T"]}
    objective = GKL(**weights, gamma=hyper["gamma"]) if is_v2 else IKL(**weights)
    second = hyper["aug_weight"] if is_v2 else hyper["gamma"]
    return objective, (1.0, second) if hyper["aug"] == "autoaug" else (1.0,)


@pytest.mark.parametrize("script", ["v1c100", "v1c10", "v2c100", "v2c10"])
@pytest.mark.parametrize("views", ["basic", "autoaug"])
@pytest.mark.parametrize("epoch", [3, 60])
def test_golden_epoch_of_two_batches(script, views, epoch):
    """The authors' real training loop: with AWP from epoch 10 on, one view and two."""
    e = entry(f"pub-epoch-{script}-{views}-ep{epoch}")
    hyper = e["hyper"]
    objective, view_weights = objective_and_views(e)
    model = TinyNet(e["initial_state"])
    network = Network(model, model, model)
    optimizer = torch.optim.SGD(model.parameters(), **hyper["sgd"])
    prior = ClassPrior(hyper["C"], temperature=hyper["T"], momentum=hyper.get("m", 1.0))
    prior.load_state_dict({**prior.state_dict(), "rows": tensor(e["previous_class_weights"])})
    plan = Plan(
        objective,
        attack=PGD(loss="ikl" if script.endswith("c100") else "kl"),
        threat=ThreatModel(norm="Linf", eps=8 / 255 * epoch / hyper["epochs"]),
        awp=AWP(gamma=hyper["gamma_awp"]) if epoch >= hyper["awp_warmup"] else None,
        adversarial_first=goes_adversarial_first(objective, None),
        view_weights=view_weights,
    )
    losses = []
    for batch, noise in zip(e["batches"], e["noise"], strict=True):
        views = ["x_basic", "x_aug"] if len(view_weights) == 2 else ["x"]
        x = torch.stack([tensor(batch[view]) for view in views])
        y = torch.tensor(batch["target"])
        start = (0.001 * tensor(noise)).unflatten(0, (len(view_weights), -1))
        losses.append(update(network, optimizer, prior, plan, Batch(x, y, start)).loss)
    prior.end_epoch()
    assert losses == pytest.approx([loss for loss in e["backward_losses"] if loss > 0], rel=1e-8)
    torch.testing.assert_close(prior.rows, tensor(e["next_class_weights"]), rtol=1e-8, atol=1e-8)
    assert_state(model, e["final_state"], tolerance=1e-8)


def test_golden_step_of_dm_at():
    """Attack on batch statistics that are not kept; then clean and adversarial images, in this order."""
    e = entry("pub-dmat-trades-step")
    hyper = e["hyper"]
    model = TinyNet(e["initial_state"])
    x, y = tensor(e["x_natural"]), torch.tensor(e["target"])
    objective = TRADES(beta=hyper["beta"], label_smoothing=hyper["label_smoothing"])
    attack = PGD(
        loss="kl",
        steps=hyper["steps"],
        relative_step_size=hyper["step_size"] / hyper["epsilon"],
        start="uniform",
        mode="batch",
        eps_schedule="constant",
    )
    plan = Plan(
        objective,
        attack,
        ThreatModel(norm="Linf", eps=hyper["epsilon"]),
        adversarial_first=goes_adversarial_first(objective, None),
    )
    seen_adversarial = []
    model.register_forward_pre_hook(lambda _, args: seen_adversarial.append(args[0].detach().clone()))
    no_movement = torch.optim.SGD(model.parameters(), lr=0.0)
    prior = ClassPrior(4, temperature=1.0)
    start = tensor(e["uniform_noise"])
    seen = update(Network(model, model, model), no_movement, prior, plan, Batch(x[None], y, start[None]))
    torch.testing.assert_close(seen_adversarial[-1], tensor(e["x_adv_final"]), rtol=1e-10, atol=1e-10)
    assert seen.loss == pytest.approx(e["loss"], rel=1e-10)
    assert seen.loss == pytest.approx(sum(seen.terms.values()), rel=1e-12)
    for name, wanted in e["param_grads"].items():
        gradient = model.get_parameter(name).grad
        torch.testing.assert_close(gradient, tensor(wanted), rtol=1e-9, atol=1e-9, msg=name)
    assert_state(model, e["state_after_forwards"], tolerance=1e-10)


# --- a batch in parts -------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """Without batch norm, so that parts of a batch and the whole do the same; in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).double()

    def forward(self, x):
        return self.layers(x)


KL_ATTACK = PGD(loss="kl", steps=2)
EVERY = {
    "natural": (Natural(label_smoothing=0.1), None),
    "pgd-at": (PGDAT(), PGD(loss="ce", steps=2)),
    "trades": (TRADES(), KL_ATTACK),
    "mart": (MART(), PGD(loss="ce", steps=2)),
    "ikl": (IKL(), PGD(loss="ikl", steps=2)),
    "gkl": (GKL(gamma=0.4), KL_ATTACK),
}


def run_updates(name: str, *, awp: AWP | None, views: int, micro_batch: int | None):
    objective, attack = EVERY[name]
    model = Smooth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    prior = ClassPrior(4, temperature=2.0)
    random = torch.Generator().manual_seed(1)
    plan = Plan(
        objective,
        attack,
        None if attack is None else ThreatModel(norm="Linf", eps=0.1),
        None if attack is None else awp,
        goes_adversarial_first(objective, awp),
        (1.0, 0.3)[:views],
    )
    seen = []
    for _ in range(3):
        x = torch.rand(views, 7, 3, 2, 2, generator=random, dtype=torch.float64)
        start = None if attack is None else 0.001 * torch.randn(x.shape, generator=random, dtype=torch.float64)
        batch = Batch(x, torch.arange(7) % 4, start)
        seen.append(update(Network(model, model, model), optimizer, prior, plan, batch, micro_batch=micro_batch))
        prior.end_epoch()
    return model, prior, seen


@pytest.mark.parametrize("micro_batch", [1, 3, 6])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_in_parts_moves_the_weights_as_the_whole_does(name, views, micro_batch):
    views = 1 if name == "natural" else views
    whole, prior, seen = run_updates(name, awp=AWP(gamma=0.05), views=views, micro_batch=None)
    parts, prior_parts, seen_parts = run_updates(name, awp=AWP(gamma=0.05), views=views, micro_batch=micro_batch)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(prior.rows, prior_parts.rows, rtol=1e-12, atol=0)
    for one, other in zip(seen, seen_parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-9)
        assert one.terms == pytest.approx(other.terms, rel=1e-9)
        assert (one.correct_nat, one.correct_adv) == (other.correct_nat, other.correct_adv)


@pytest.mark.parametrize("name", EVERY)
def test_an_update_lowers_its_loss_and_says_what_it_is_made_of(name):
    _, _, seen = run_updates(name, awp=None, views=1, micro_batch=None)
    terms = {
        "natural": {"natural"},
        "pgd-at": {"adversarial"},
        "trades": {"natural", "kl"},
        "mart": {"boosted_ce", "weighted_kl"},
        "ikl": {"natural", "wmse", "soft_ce"},
        "gkl": {"natural", "wmse", "soft_ce"},
    }
    assert seen[0].terms.keys() == terms[name]
    assert seen[0].loss == pytest.approx(sum(seen[0].terms.values()))
    assert (seen[0].correct_nat is None) == (name == "pgd-at")
    assert (seen[0].correct_adv is None) == (name == "natural")


# --- order, parameters, failure ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "awp", "adversarial_first"),
    [
        (IKL(), None, True),
        (GKL(), None, True),
        (TRADES(), None, False),
        (TRADES(), AWP(), True),
        (MART(), None, False),
    ],
    ids=str,
)
def test_the_order_of_the_passes_is_the_originals(objective, awp, adversarial_first):
    assert goes_adversarial_first(objective, awp) is adversarial_first


def test_awp_differs_and_the_weights_end_near_where_they_would_without_it():
    plain, *_ = run_updates("trades", awp=None, views=1, micro_batch=None)
    with_awp, *_ = run_updates("trades", awp=AWP(gamma=0.005), views=1, micro_batch=None)
    for one, other in zip(plain.parameters(), with_awp.parameters(), strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_that_is_not_finite_moves_nothing(name):
    objective, attack = EVERY[name]
    model = Smooth()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.full((1, 4, 3, 2, 2), torch.nan, dtype=torch.float64)
    threat = None if attack is None else ThreatModel(norm="Linf", eps=0.1)
    batch = Batch(x, torch.arange(4), None if attack is None else torch.zeros_like(x))
    plan = Plan(objective, attack, threat, None if attack is None else AWP())
    with pytest.raises(FloatingPointError, match="loss is nan"):
        update(Network(model, model, model), optimizer, ClassPrior(4, temperature=1.0), plan, batch)
    if attack is None:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_that_failed_half_way_counts_once_when_it_is_tried_again():
    """As where the second part of a batch no longer fits into memory."""
    model, prior = Smooth(), ClassPrior(4, temperature=1.0)
    passes = iter(range(100))

    def forward(x):
        if failing and next(passes) == 6:
            raise torch.OutOfMemoryError("no room")
        return model(x)

    x = torch.rand(1, 4, 3, 2, 2, dtype=torch.float64)
    plan = Plan(IKL(), PGD(loss="kl", steps=1), ThreatModel(norm="Linf", eps=0.1), None, True)
    batch = Batch(x, torch.arange(4), torch.zeros_like(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    failing = True
    with pytest.raises(torch.OutOfMemoryError):
        update(Network(model, forward, forward), optimizer, prior, plan, batch, micro_batch=2)
    failing = False
    update(Network(model, forward, forward), optimizer, prior, plan, batch, micro_batch=1)
    once = ClassPrior(4, temperature=1.0)
    once.update(model(x[0]), batch.y_B)
    torch.testing.assert_close(prior.state_dict(), once.state_dict())
