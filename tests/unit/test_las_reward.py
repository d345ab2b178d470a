"""What strategies earn, against the same computed the long way: a copy of the model that really takes the step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dkl.attacks import perturb
from dkl.documents import ThreatModel
from dkl.las_reward import Attacked, Earned, earned, normalised, stepped
from dkl.method import parts
from dkl.objectives import LASAT, LASTRADES, PGD
from dkl.strategy import Reward
from dkl.updates import Network, Plan
from dkl.world import World

LINF = ThreatModel(norm="Linf", eps=0.1)
JUDGE = PGD(loss="ce", steps=3, relative_step_size=0.5, start="uniform", eps_schedule="constant")
COUNT = 40


class Smooth(nn.Module):
    """Two linear layers in float64; no batch norms, so that parts of a batch are the batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        for weights in self.layers.parameters():
            weights.data *= 3

    def forward(self, x):
        return self.layers(x)


def batch(beta_B=None) -> Attacked:
    random = torch.Generator().manual_seed(1)
    x = torch.rand(COUNT, 1, 4, 4, generator=random, dtype=torch.float64)
    with torch.no_grad():
        y = Smooth()(x).argmax(1)
    y[:10] = torch.randint(0, 3, (10,), generator=random)
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=random, dtype=torch.float64)).clamp(0, 1)
    return Attacked(x, x_adv, y, beta_B)


def starts() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [0.2 * torch.rand(COUNT, 1, 4, 4, generator=random, dtype=torch.float64) - 0.1 for _ in range(2)]


def of(model, objective, given, reward, micro_batch=None) -> Earned:
    return earned(
        Network(model, model, model),
        Plan(objective, JUDGE, LINF),
        given,
        starts(),
        reward=reward,
        lr=0.5,
        parts=list(parts(COUNT, micro_batch)),
        world=World(),
    )


def trades(model, given) -> torch.Tensor:
    nat, adv = model(given.x_BCHW).log_softmax(1), model(given.x_adv_BCHW).log_softmax(1)
    kl = (nat.exp() * (nat - adv)).sum(1)
    return cross_entropy(model(given.x_BCHW), given.y_B) + (given.beta_B * kl).mean()


@pytest.mark.parametrize("kind", ["las-at", "las-trades"])
@pytest.mark.parametrize("micro_batch", [None, 7])
def test_rewards_are_those_of_a_copy_that_takes_the_step(kind, micro_batch):
    model, given = Smooth(), batch(None if kind == "las-at" else torch.linspace(5, 9, COUNT).double())
    reward = Reward(robust=3.0, clean=0.5, largest_loss=1.2)
    objective = LASAT(label_smoothing=0.3) if kind == "las-at" else LASTRADES()
    before = copy.deepcopy(model.state_dict())
    found = of(model, objective, given, reward, micro_batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    later = copy.deepcopy(model)
    loss = (
        cross_entropy(later(given.x_adv_BCHW), given.y_B, label_smoothing=0.3)
        if kind == "las-at"
        else trades(later, given)
    )
    optimizer = torch.optim.SGD(later.parameters(), lr=0.5)
    loss.backward()
    optimizer.step()
    clean = later(given.x_BCHW).argmax(1) == given.y_B
    robust = torch.ones_like(clean)
    for start in starts():
        x_adv = perturb(
            JUDGE,
            later,
            given.x_BCHW,
            LINF,
            loss=lambda logits: cross_entropy(logits, given.y_B, reduction="sum"),
            start_BCHW=start,
        )
        robust &= later(x_adv).argmax(1) == given.y_B
    losses = cross_entropy(model(given.x_adv_BCHW), given.y_B, reduction="none").clamp(max=1.2)
    torch.testing.assert_close(found.loss_B, losses.detach())
    assert torch.equal(found.robust_B, robust.double())
    assert torch.equal(found.clean_B, clean.double())
    torch.testing.assert_close(found.total_B, losses.detach() + 3 * robust + 0.5 * clean)
    assert 0 < robust.sum() < clean.sum() < COUNT  # the case tells them apart
    assert (losses == 1.2).any()


def test_the_step_is_taken_back_to_the_bit_whatever_happens():
    model = Smooth()
    weights = list(model.parameters())
    before = [w.detach().clone() for w in weights]
    gradients = [torch.randn_like(w) for w in weights]
    inside = []

    def fails():
        with stepped(weights, gradients, 0.1):
            inside.extend(w.detach().clone() for w in weights)
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        fails()
    for found, old, gradient in zip(inside, before, gradients, strict=True):
        torch.testing.assert_close(found, old - 0.1 * gradient)
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))


def test_normalised_rewards():
    reward = torch.tensor([1.0, 4.0, 2.0, 5.0], dtype=torch.float64)
    found = normalised(reward)
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found.square().mean()) == pytest.approx(1)
    assert torch.equal(found.argsort(), reward.argsort())
    assert torch.equal(normalised(torch.full((3,), 7.0)), torch.zeros(3))
