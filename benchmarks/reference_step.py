"""The step of IKL-AT's authors, written down from its formulas in the plain way: what ours is measured against.

Clean logits in every step of the attack, parameters that want gradients meanwhile, the weighted MSE over all pairs
of classes, AWP through a second network, a moving average in a Python loop.

Shapes: B batch, C channels, H, W pixels, K classes.

Source: arXiv:2305.13948, Algorithm 1 and Eq. 10; arXiv:2004.05884 for AWP.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot, softmax

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Of one row of the paper. wmse_weight is the paper's alpha, ce_weight its beta."""

    wmse_weight: float
    ce_weight: float
    prior_temperature: float
    eps: float
    step_size: float
    steps: int
    awp_gamma: float
    lr: float
    momentum: float
    weight_decay: float
    ema_decay: float


def pairwise_ikl(
    nat_BK: Tensor, adv_BK: Tensor, prior_BK: Tensor, *, wmse_weight: float, ce_weight: float
) -> Tensor:
    """IKL with the weighted MSE as Eq. 10 writes it: over pairs of classes, B x K x K numbers several times.

    wMSE = 1/4 * sum_jk w_j w_k * ((nat_j - nat_k) - (adv_j - adv_k))**2, mean over the batch
    """
    gap_nat_BKK = nat_BK[:, :, None] - nat_BK[:, None, :]
    gap_adv_BKK = adv_BK[:, :, None] - adv_BK[:, None, :]
    weight_BKK = torch.bmm(prior_BK[:, :, None], prior_BK[:, None, :])
    wmse = 0.25 * (weight_BKK * (gap_nat_BKK - gap_adv_BKK) ** 2).sum() / len(nat_BK)
    soft_ce = -(softmax(nat_BK, dim=1).detach() * log_softmax(adv_BK, dim=1)).sum(1).mean()
    return wmse_weight * wmse + ce_weight * soft_ce


class ReferenceStep:
    """The network, the proxy and all else that a step changes."""

    def __init__(self, model: nn.Module, prior_KK: Tensor, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.prior_KK = prior_KK
        self.seen_KK = torch.zeros_like(prior_KK)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.proxy = copy.deepcopy(model)
        self.proxy_optimizer = torch.optim.SGD(self.proxy.parameters(), lr=settings.lr)
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def step(self, x_BCHW: Tensor, y_B: Tensor, noise_BCHW: Tensor) -> float:
        """One update on a batch; the loss before it. The attack starts from x + noise."""
        settings = self.settings
        prior_BK = self.prior_KK[y_B]
        x_adv_BCHW = self._attack(x_BCHW, x_BCHW + noise_BCHW, prior_BK)

        self.model.train()
        self.optimizer.zero_grad()
        shift = self._awp(x_BCHW, x_adv_BCHW, y_B, prior_BK)
        _add(self.model, shift, settings.awp_gamma)
        adv_BK = self.model(x_adv_BCHW)
        nat_BK = self.model(x_BCHW)
        with torch.no_grad():
            member_BK = one_hot(y_B, len(self.seen_KK)).to(nat_BK.dtype)
            self.seen_KK += member_BK.T @ softmax(nat_BK / settings.prior_temperature, dim=1)
        loss = self._loss(nat_BK, adv_BK, y_B, prior_BK)
        loss.backward()
        self.optimizer.step()
        _add(self.model, shift, -settings.awp_gamma)
        self._average()
        return loss.item()

    def _loss(self, nat_BK: Tensor, adv_BK: Tensor, y_B: Tensor, prior_BK: Tensor) -> Tensor:
        weights = {"wmse_weight": self.settings.wmse_weight, "ce_weight": self.settings.ce_weight}
        return cross_entropy(nat_BK, y_B) + pairwise_ikl(nat_BK, adv_BK, prior_BK, **weights)

    def _attack(self, x_BCHW: Tensor, x_adv_BCHW: Tensor, prior_BK: Tensor) -> Tensor:
        settings = self.settings
        self.model.eval()
        for _ in range(settings.steps):
            x_adv_BCHW = x_adv_BCHW.detach().requires_grad_()
            adv_BK, nat_BK = self.model(x_adv_BCHW), self.model(x_BCHW)
            loss = pairwise_ikl(nat_BK, adv_BK, prior_BK, wmse_weight=1.0, ce_weight=1.0)
            (gradient_BCHW,) = torch.autograd.grad(loss, [x_adv_BCHW])
            x_adv_BCHW = x_adv_BCHW.detach() + settings.step_size * gradient_BCHW.sign()
            x_adv_BCHW = torch.min(torch.max(x_adv_BCHW, x_BCHW - settings.eps), x_BCHW + settings.eps)
            x_adv_BCHW = x_adv_BCHW.clamp(0.0, 1.0)
        return x_adv_BCHW

    def _awp(self, x_BCHW: Tensor, x_adv_BCHW: Tensor, y_B: Tensor, prior_BK: Tensor) -> Weights:
        """Per kernel w the way that one ascent step of the proxy goes, with the length of w."""
        self.proxy.load_state_dict(self.model.state_dict())
        self.proxy.train()
        nat_BK, adv_BK = self.proxy(x_BCHW), self.proxy(x_adv_BCHW)
        self.proxy_optimizer.zero_grad()
        (-self._loss(nat_BK, adv_BK, y_B, prior_BK)).backward()
        self.proxy_optimizer.step()
        shift, moved = {}, self.proxy.state_dict()
        for name, weight in self.model.state_dict().items():
            if weight.ndim > 1 and "weight" in name:
                difference = moved[name] - weight
                shift[name] = weight.norm() / (difference.norm() + 1e-20) * difference
        return shift

    def _average(self) -> None:
        decay = self.settings.ema_decay
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                self.ema[name] = decay * self.ema[name] + (1 - decay) * value.detach()


@torch.no_grad()
def _add(model: nn.Module, shift: Weights, factor: float) -> None:
    for name, parameter in model.named_parameters():
        if name in shift:
            parameter.add_(factor * shift[name])
