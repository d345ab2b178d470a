"""Adversarial training with learnt attack strategies: the method of LAS-AT, LAS-TRADES and LAS-AWP.

A second network looks at each image and chooses how it is attacked. The model learns from those adversarial images
as it would from any others; in one of `every` updates the second network learns, by REINFORCE, from what its
strategies earned. Nothing it knows is part of the published model.

Source: Jia et al., CVPR 2022, arXiv:2203.06616.

Shapes: B batch, C channels, H, W pixels, L lists to choose from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dkl import attacks, recipes
from dkl.adversarial import Adversarial
from dkl.attacks.per_image import LossOfRows
from dkl.draws import Draw, generator
from dkl.events import StrategyEpoch
from dkl.las_network import Drawn, StrategyNetwork, lists_of, reinforce, strategies
from dkl.las_reward import Attacked, Earned, Parts, earned, normalised
from dkl.las_tally import StrategyTally
from dkl.method import Shown, parts
from dkl.objectives import LASAT, LASTRADES, PGD
from dkl.terms import attacked_loss
from dkl.updates import Batch, Network, Plan, Update, update
from dkl.world import World


class LearntStrategy:
    """The strategy network with its optimiser, and the update of the model that it attacks for."""

    def __init__(self, recipe: recipes.Train, *, channels: int, classes: int, device: str, world: World) -> None:
        assert isinstance(recipe.objective, LASAT | LASTRADES)
        self.objective: LASAT | LASTRADES = recipe.objective
        self.strategy = recipe.objective.strategy
        self.seed = recipe.seed
        self.channels = channels
        self.device = device
        self.world = world
        self.host = Adversarial(recipe, classes=classes, device=device, world=world)
        """Knows the plan of each epoch, as for a fixed attack."""
        assert self.host.adversary is not None
        self.adversary = self.host.adversary
        self.tally = StrategyTally(lists_of(self.objective))
        self.updates = 0
        """Of the model, in all epochs."""

    def meet(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The strategy network has an optimiser of its own, so nothing is learnt by the model's."""
        self.network = StrategyNetwork(self.objective, channels=self.channels).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.strategy.lr)
        return ()

    # --- one update ---------------------------------------------------------------------------------------

    def update(self, network: Network, optimizer: Optimizer, shown: Shown, *, micro_batch: int | None) -> Update:
        network.model.train()
        plan = self.host.plan(shown.epoch)
        own = list(parts(len(shown.y_B), micro_batch, self.world))
        drawn = self._draw(shown, micro_batch)
        values = self.network.values(drawn.choices_BL)
        batch = Attacked(
            x_BCHW=shown.x_BCHW,
            x_adv_BCHW=self._attacked(network, plan, shown, values, own),
            y_B=shown.y_B,
            beta_B=values.get("beta"),
        )
        found: Earned | None = None
        gradients: list[Tensor] = []
        if self.updates % self.strategy.every == 0:
            lr = float(optimizer.param_groups[0]["lr"])
            found = self._earned(network, plan, shown, batch, lr, own)
            gradients = self._gradients(shown.x_BCHW, drawn.choices_BL, found.total_B, micro_batch)
        seen = update(
            network,
            optimizer,
            self.host.prior,
            plan,
            Batch(shown.x_BCHW[None], shown.y_B, None, batch.x_adv_BCHW[None], batch.beta_B),
            world=self.world,
            micro_batch=micro_batch,
        )
        # At last: a batch that did not fit into memory is tried again, and must find everything as it was.
        if gradients:
            self._learn(gradients)
        self.tally.add(drawn, found)
        self.updates += 1
        return seen

    def _key(self, shown: Shown) -> tuple[int, int, int]:
        return self.seed, shown.epoch, shown.number

    def _draw(self, shown: Shown, micro_batch: int | None) -> Drawn:
        """The strategies of the whole batch, in every process: batch norms see all images, as with one process."""
        rows = [some for some, _ in parts(len(shown.y_B), micro_batch)]
        random = generator(self.device, Draw.STRATEGY, *self._key(shown))
        drawn = self.network.draw(shown.x_BCHW, rows, random)
        if self.world.size == 1:
            return drawn
        # On GPUs the processes' probabilities may differ in the last bit: whose image it is, says what was drawn.
        own = self.world.share(len(shown.y_B))
        choices_BL = torch.zeros_like(drawn.choices_BL)
        choices_BL[own] = drawn.choices_BL[own]
        entropy_B = torch.zeros_like(drawn.entropy_B)
        entropy_B[own] = drawn.entropy_B[own]
        self.world.sum_(choices_BL)
        self.world.sum_(entropy_B)
        return Drawn(choices_BL, entropy_B)

    def _attacked(
        self, network: Network, plan: Plan, shown: Shown, values: Mapping[str, Tensor], own: Parts
    ) -> Tensor:
        """The batch with this process's images as their strategies leave them."""
        attack, threat = plan.attack, plan.threat
        assert attack is not None
        assert threat is not None
        start_BCHW = self.adversary.start(shown)
        strategies_B = strategies(values)
        x_adv_BCHW = shown.x_BCHW.clone()
        with attacks.attack_mode(network.model, attack.mode):
            for rows, _ in own:
                x_adv_BCHW[rows] = attacks.perturb_per_image(
                    attack,
                    network.forward,
                    shown.x_BCHW[rows],
                    strategies_B.of(rows),
                    loss=_attacked_loss(network, attack, shown.x_BCHW[rows], shown.y_B[rows]),
                    start_BCHW=start_BCHW[rows],
                )
        if self.strategy.clip_to_threat:
            x_adv_BCHW = x_adv_BCHW.clamp(shown.x_BCHW - threat.eps, shown.x_BCHW + threat.eps)
        return x_adv_BCHW

    # --- what the strategy learns -------------------------------------------------------------------------

    def _earned(
        self, network: Network, plan: Plan, shown: Shown, batch: Attacked, lr: float, own: Parts
    ) -> Earned:
        assert plan.attack is not None
        assert plan.threat is not None
        uniform = plan.attack.model_copy(update={"start": "uniform"})
        starts = [
            attacks.draw_start(
                uniform,
                shown.x_BCHW,
                plan.threat,
                generator(self.device, Draw.REWARD_START, *self._key(shown), restart),
            )
            for restart in range(self.strategy.reward.restarts)
        ]
        reward = self.strategy.reward
        return earned(network, plan, batch, starts, reward=reward, lr=lr, parts=own, world=self.world)

    def _gradients(
        self, x_BCHW: Tensor, choices_BL: Tensor, total_B: Tensor, micro_batch: int | None
    ) -> list[Tensor]:
        """REINFORCE's, of the whole batch, the same in all processes."""
        reward_B = normalised(total_B) if self.strategy.reward.normalisation == "batch" else total_B
        learnt = list(self.network.parameters())
        gradients: list[Tensor] = []
        for rows, share in parts(len(x_BCHW), micro_batch):
            log_probability_B = self.network.log_probability(x_BCHW[rows], choices_BL[rows])
            part = torch.autograd.grad(
                share * reinforce(log_probability_B, reward_B[rows].to(log_probability_B)), learnt
            )
            gradients = list(torch._foreach_add(gradients, part)) if gradients else list(part)
        if self.world.size > 1:  # each has computed all of it; rounding must not let them drift apart
            self.world.sum_(*gradients)
            torch._foreach_div_(gradients, self.world.size)
        return gradients

    def _learn(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.network.parameters(), self.strategy.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    # --- the rest of the method ---------------------------------------------------------------------------

    def eps(self, epoch: int) -> float | None:
        # Without the cut the largest radius in the strategy's list is the only limit.
        return self.host.eps(epoch) if self.strategy.clip_to_threat else None

    def end_epoch(self) -> StrategyEpoch:
        """What was drawn and earned in the epoch."""
        self.host.end_epoch()
        epoch = self.tally.epoch()
        self.tally = StrategyTally(self.tally.lists)
        return epoch

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.tally.load_state_dict(state["tally"])


def _attacked_loss(network: Network, attack: PGD, x_BCHW: Tensor, y_B: Tensor) -> LossOfRows:
    """What the strategies climb, over the images that still go on. The network is in the attack's mode."""
    nat_BK: Tensor | None = None
    if attack.loss != "ce":
        with torch.no_grad():
            nat_BK = network.forward(x_BCHW)

    def loss(rows_n: Tensor, adv_nK: Tensor) -> Tensor:
        nat_nK = None if nat_BK is None else nat_BK[rows_n]
        return attacked_loss(attack, nat_nK, adv_nK, y_B[rows_n], None)

    return loss
