"""The strategy network: what it draws, and that REINFORCE follows the gradient of the expected reward."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from dkl.architectures import CNN
from dkl.las_network import StrategyNetwork, lists_of, reinforce, strategies
from dkl.las_reward import normalised
from dkl.objectives import LASAT, LASTRADES
from dkl.strategy import Strategy

TINY = Strategy(network=CNN(width=2), eps=(0.1, 0.2, 0.3), steps=(1, 2), step_sizes=(0.05, 0.1))
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def network(objective=None) -> StrategyNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StrategyNetwork(objective or LASAT(strategy=TINY), channels=1).double()


def random(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the gradient -----------------------------------------------------------------------------------------

ALL = torch.tensor(list(itertools.product(range(3), range(2), range(2))))
REWARDS = torch.randn(len(X), len(ALL), generator=random(1), dtype=torch.float64)


def expected_reward(policy: StrategyNetwork) -> torch.Tensor:
    """The mean over the images of the sum over all strategies of p(strategy) * reward."""
    chances = [policy.log_probability(X, choices.expand(len(X), -1)).exp() for choices in ALL]
    return (torch.stack(chances, dim=1) * REWARDS).sum(1).mean()


def test_the_probabilities_of_all_strategies_sum_to_one():
    policy = network()
    total = sum(policy.log_probability(X, choices.expand(len(X), -1)).exp() for choices in ALL)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_reinforce_is_in_expectation_the_gradient_of_the_expected_reward():
    """Its expectation is enumerated, the other gradient is one of finite differences."""
    policy = network()
    loss = 0.0
    for place, choices in enumerate(ALL):
        log_probability = policy.log_probability(X, choices.expand(len(X), -1))
        loss = loss + reinforce(log_probability, log_probability.detach().exp() * REWARDS[:, place])
    weights = list(policy.parameters())
    found = torch.autograd.grad(-loss, weights)
    for seed in range(3):
        directions = [torch.randn(w.shape, generator=random(seed), dtype=torch.float64) for w in weights]
        expected = difference(policy, weights, directions)
        along = sum((g * v).sum() for g, v in zip(found, directions, strict=True))
        assert float(along) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert abs(expected) > 1e-4


@torch.no_grad()
def difference(policy, weights, directions, h=1e-5) -> float:
    values = []
    for sign in (1, -1):
        torch._foreach_add_(weights, directions, alpha=sign * h)
        values.append(float(expected_reward(policy)))
        torch._foreach_add_(weights, directions, alpha=-sign * h)
    return (values[0] - values[1]) / (2 * h)


# --- what is drawn ----------------------------------------------------------------------------------------


def test_strategies_are_drawn_as_often_as_they_are_likely():
    policy = network(LASTRADES(strategy=TINY, betas=(5.0, 9.0)))
    x = X[:1].expand(20_000, -1, -1, -1) + 0.1 * torch.rand(20_000, 1, 8, 8, generator=random(3)).double()
    drawn = policy.draw(x, [slice(0, 20_000)], random(4))
    for place, logs in enumerate(policy(x)):
        often = torch.bincount(drawn.choices_BL[:, place], minlength=logs.shape[1]) / len(x)
        torch.testing.assert_close(often.double(), logs.exp().mean(0), rtol=0, atol=0.015)


def test_what_is_drawn_follows_from_the_generator_and_has_the_entropy_it_says():
    policy = network()
    first, again, other = (policy.draw(X, [slice(0, 4)], random(seed)) for seed in (6, 6, 7))
    assert torch.equal(first.choices_BL, again.choices_BL)
    assert not torch.equal(first.choices_BL, other.choices_BL)
    torch.nn.init.zeros_(last_layer(policy).weight)
    torch.nn.init.zeros_(last_layer(policy).bias)
    alike = policy.draw(X, [slice(0, 2), slice(2, 4)], random(6)).entropy_B
    torch.testing.assert_close(alike, torch.full_like(alike, math.log(3 * 2 * 2)))


def last_layer(policy: StrategyNetwork) -> torch.nn.Linear:
    return [module for module in policy.modules() if isinstance(module, torch.nn.Linear)][-1]


def test_choices_become_values():
    policy = network(LASTRADES(strategy=TINY, betas=(5.0, 9.0)))
    values = policy.values(torch.tensor([[0, 1, 1, 0], [2, 0, 0, 1]]))
    chosen = strategies(values)
    torch.testing.assert_close(chosen.eps_B, torch.tensor([0.1, 0.3]))
    assert chosen.steps_B.tolist() == [2, 1]
    torch.testing.assert_close(chosen.step_size_B, torch.tensor([0.1, 0.05]))
    assert values["beta"].tolist() == [5.0, 9.0]
    assert list(lists_of(LASAT(strategy=TINY))) == ["eps", "steps", "step_size"]


def test_drawing_and_learning_leave_no_trace_in_batch_norms():
    policy = network()
    before = {name: value.clone() for name, value in policy.named_buffers()}
    policy.draw(X, [slice(0, 4)], random())
    policy.log_probability(X, torch.zeros(4, 3, dtype=torch.long))
    for name, value in policy.named_buffers():
        assert torch.equal(value, before[name])


# --- learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalisation", "updates", "reaches"), [("batch", 60, 0.9), ("none", 200, 0.6)])
def test_the_mean_reward_rises(normalisation, updates, reaches):
    """Dark images are to be attacked with the smallest radius, bright ones with the largest."""
    policy = network().float()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    bright = torch.arange(32) % 2
    mean = []
    for update in range(updates):
        x = 0.5 * torch.rand(32, 1, 8, 8, generator=random(update)) + 0.5 * bright[:, None, None, None]
        choices = policy.draw(x, [slice(0, 32)], random(1000 + update)).choices_BL
        reward = (choices[:, 0] == 2 * bright).float()
        mean.append(float(reward.mean()))
        optimizer.zero_grad()
        used = normalised(reward) if normalisation == "batch" else reward
        reinforce(policy.log_probability(x, choices), used).backward()
        optimizer.step()
    assert sum(mean[:5]) / 5 < 0.5
    assert sum(mean[-10:]) / 10 > reaches


# --- documents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"eps": (0.2, 0.1)}, "strategy.eps has to list different values, the smallest first"),
        ({"steps": (3, 3)}, "strategy.steps has to list different values, the smallest first"),
        ({"step_sizes": ("3/255", "1/255")}, "strategy.step_sizes has to list"),
        ({"eps": (8.0,)}, "did you mean '8/255'"),
        ({"eps": ()}, "at least 1 item"),
        ({"steps": (0, 1)}, "greater than or equal to 1"),
    ],
)
def test_lists_that_make_no_sense_are_refused(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Strategy(**fields)


def test_betas_are_ascending():
    with pytest.raises(ValidationError, match=r"objective\.betas has to list different values"):
        LASTRADES(betas=(6.0, 5.0))
