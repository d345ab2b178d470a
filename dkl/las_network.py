"""The strategy network of LAS-AT: a distribution over attack strategies for every image; REINFORCE.

Shapes: B batch, C channels, H, W pixels, L lists to choose from, S their choices in all.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkl.attacks.per_image import Strategies
from dkl.models import batch_mode, build
from dkl.objectives import LASAT, LASTRADES


def lists_of(objective: LASAT | LASTRADES) -> dict[str, tuple[float, ...]]:
    """What the strategy chooses from, by name: "eps", "steps", "step_size", and "beta" of LAS-TRADES."""
    strategy = objective.strategy
    lists: dict[str, tuple[float, ...]] = {
        "eps": strategy.eps,
        "steps": strategy.steps,
        "step_size": strategy.step_sizes,
    }
    return lists | {"beta": objective.betas} if isinstance(objective, LASTRADES) else lists


class Drawn(NamedTuple):
    """A strategy for each image."""

    choices_BL: Tensor
    """Per list, the position of the value that was drawn; integers."""
    entropy_B: Tensor
    """Of the distribution that it was drawn from, in nats, summed over the lists."""


class StrategyNetwork(nn.Module):
    """x_BCHW -> a distribution over every list; the lists' values are drawn independently of each other.

    One linear layer gives the logits of all lists, one list's after the other. Batch norms take the statistics of
    the batch, while strategies are drawn and while they are learnt, so that both are about the same distribution.
    """

    def __init__(self, objective: LASAT | LASTRADES, *, channels: int) -> None:
        """The weights come from torch's global generator."""
        super().__init__()
        self.lists = lists_of(objective)
        self.sizes = [len(values) for values in self.lists.values()]
        self.network = build(objective.strategy.network, channels=channels, classes=sum(self.sizes))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Log-probabilities of each list's values."""
        with batch_mode(self.network):
            logits_BS = self.network(x_BCHW)
        return [logits.log_softmax(1) for logits in logits_BS.split(self.sizes, dim=1)]

    @torch.no_grad()
    def draw(self, x_BCHW: Tensor, parts: Sequence[slice], random: torch.Generator) -> Drawn:
        """Strategies from `random` alone; the images pass in `parts`."""
        uniform_BL = torch.rand(len(x_BCHW), len(self.sizes), generator=random, device=random.device)
        choices, entropies = [], []
        for rows in parts:
            logs = self(x_BCHW[rows])
            choices.append(_drawn(logs, uniform_BL[rows].to(x_BCHW.device)))
            entropies.append(-sum((log.exp() * log).sum(1) for log in logs))
        return Drawn(torch.cat(choices), torch.cat(entropies))

    def log_probability(self, x_BCHW: Tensor, choices_BL: Tensor) -> Tensor:
        """Of each image's strategy, shape (B,)."""
        logs = self(x_BCHW)
        chosen = [log.gather(1, choices_BL[:, [place]]) for place, log in enumerate(logs)]
        return torch.cat(chosen, dim=1).sum(1)

    def values(self, choices_BL: Tensor) -> Mapping[str, Tensor]:
        """What was drawn, by the names of the lists; float32, shape (B,) each."""
        return {
            name: torch.tensor(values, device=choices_BL.device)[choices_BL[:, place]]
            for place, (name, values) in enumerate(self.lists.items())
        }


def _drawn(logs: Sequence[Tensor], uniform_BL: Tensor) -> Tensor:
    """The first value of each list at which the cumulated probability exceeds the uniform number."""
    places = [
        (log.exp().cumsum(1) <= uniform_BL[:, [place]]).sum(1).clamp_max(log.shape[1] - 1)
        for place, log in enumerate(logs)
    ]
    return torch.stack(places, dim=1)


def strategies(values: Mapping[str, Tensor]) -> Strategies:
    return Strategies(values["eps"], values["steps"].long(), values["step_size"])


def reinforce(log_probability_B: Tensor, reward_B: Tensor) -> Tensor:
    """-mean of reward * log p: in expectation over the strategies, its gradient is minus that of the mean reward.

        grad E[r(a)] = E[r(a) grad log p(a)],      a ~ p

    Source: Williams, Machine Learning 8 (1992).
    """
    return -(reward_B.detach() * log_probability_B).mean()
