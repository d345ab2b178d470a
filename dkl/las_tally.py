"""What strategies were drawn in an epoch, and what they earned.

Shapes: B batch, L lists to choose from.
"""

from collections.abc import Mapping
from typing import Any

import torch

from dkl.events import ChoiceShares, StrategyEpoch
from dkl.las_network import Drawn
from dkl.las_reward import Earned

_REWARDS = ("loss", "robust", "clean", "total")


class StrategyTally:
    """Sums over the batches of an epoch so far. It is no larger after many than after one."""

    def __init__(self, lists: Mapping[str, tuple[float, ...]]) -> None:
        self.lists = lists
        self.counts = {name: torch.zeros(len(values), dtype=torch.int64) for name, values in lists.items()}
        self.images = 0
        self.entropy = 0.0
        self.rewards = dict.fromkeys(_REWARDS, 0.0)
        self.rewarded = 0
        """Images that something was learnt from."""
        self.updates = 0
        """Of the strategy network."""

    def add(self, drawn: Drawn, found: Earned | None) -> None:
        """The strategies of a batch, and the rewards, where it was one to learn from."""
        choices_BL = drawn.choices_BL.cpu()
        for place, (name, values) in enumerate(self.lists.items()):
            self.counts[name] += torch.bincount(choices_BL[:, place], minlength=len(values))
        self.images += len(choices_BL)
        self.entropy += float(drawn.entropy_B.double().sum())
        if found is not None:
            sums = torch.stack(list(found)).sum(1).tolist()
            self.rewards = {name: self.rewards[name] + more for name, more in zip(_REWARDS, sums, strict=True)}
            self.rewarded += len(choices_BL)
            self.updates += 1

    def epoch(self) -> StrategyEpoch:
        return StrategyEpoch(
            choices=tuple(
                ChoiceShares(
                    name=name,
                    values=values,
                    shares=tuple((self.counts[name] / self.images).tolist()),
                    mean=float((self.counts[name] * torch.tensor(values).double()).sum() / self.images),
                )
                for name, values in self.lists.items()
            ),
            entropy=self.entropy / self.images,
            rewards={name: total / self.rewarded for name, total in self.rewards.items()} if self.rewarded else {},
            updates=self.updates,
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lists"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
