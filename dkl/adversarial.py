"""Training from scratch, natural and adversarial: the method of `Train`.

Shapes: V views, B batch, C channels, H, W pixels.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dkl import recipes
from dkl.adversary import adversary_of
from dkl.documents import ThreatModel
from dkl.method import Shown
from dkl.objectives import GKL, IKL, OfOneNetwork
from dkl.prior import ClassPrior
from dkl.updates import Batch, Network, Plan, Update, goes_adversarial_first, update
from dkl.world import World


class Adversarial:
    """The objective, its attack and its class prior."""

    def __init__(self, recipe: recipes.Train, *, classes: int, device: str, world: World) -> None:
        self.recipe = recipe
        self.device = device
        self.world = world
        assert isinstance(recipe.objective, OfOneNetwork)
        self.objective: OfOneNetwork = recipe.objective
        objective = self.objective
        temperature = objective.prior_temperature if isinstance(objective, IKL | GKL) else 1.0
        self.adversary = adversary_of(recipe, device)
        self.prior = ClassPrior(classes, temperature=temperature, device=device)

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        return ()

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        plan = self.plan(shown.epoch)
        batch = self._batch(plan, shown)
        return update(network, optimizer, self.prior, plan, batch, world=self.world, micro_batch=micro_batch)

    def plan(self, epoch: int) -> Plan:
        """What the updates of this epoch do."""
        recipe = self.recipe
        return Plan(
            objective=self.objective,
            attack=recipe.attack,
            threat=self._threat(epoch),
            awp=recipe.awp if recipe.awp and epoch >= recipe.awp.first_epoch else None,
            adversarial_first=goes_adversarial_first(self.objective, recipe.awp),
            view_weights=(1.0,) if recipe.second_view is None else (1.0, recipe.second_view.weight),
        )

    def _threat(self, epoch: int) -> ThreatModel | None:
        return self.recipe.threat if self.adversary is None else self.adversary.threat(epoch)

    def _batch(self, plan: Plan, shown: Shown) -> Batch:
        start_BCHW = None if self.adversary is None else self.adversary.start(shown)
        views = len(plan.view_weights)

        def by_view(rows: Tensor) -> Tensor:
            return rows.view(views, -1, *rows.shape[1:])

        start_VBCHW = None if start_BCHW is None else by_view(start_BCHW)
        return Batch(by_view(shown.x_BCHW), by_view(shown.y_B)[0], start_VBCHW)

    def eps(self, epoch: int) -> float | None:
        threat = self._threat(epoch)
        return None if threat is None else threat.eps

    def end_epoch(self) -> None:
        self.prior.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        return self.prior.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prior.load_state_dict(state)
