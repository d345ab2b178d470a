"""Auto-PGD: projected gradient ascent that chooses its step size by itself, for Linf, L2 and L1 balls.

It starts at a random point with a step of the size of the ball and a momentum of a quarter. At growing numbers of
steps it checks every image: where the loss rose in few of the last steps, or its best value has not risen since
the last check, the step is halved and the walk goes on from the best point. In L1 steps are sparse, and how sparse
is what the checks adapt.

Source: Croce and Hein, arXiv:2003.01690 (Linf, L2) and arXiv:2103.01208 (L1). All constants are AutoAttack's.
Shapes: B batch, K classes, n pixels of an image.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from dkl.attacks.looks import Look, Looks, margin, take
from dkl.attacks.noise import Noise
from dkl.attacks.projections import l1_ball
from dkl.attacks.search import Search
from dkl.documents import Norm, ThreatModel

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""logits_BK, y_B, aim_B (the class aimed at) -> loss_B, the larger the more adversarial"""

MOMENTUM = 0.25
RISES = 0.75
"""A step size is kept while the loss rises in more than this fraction of the steps."""
FIRST_CHECK, CHECKS_SHRINK_BY, LAST_CHECKS = 0.22, 0.03, 0.06
"""Distances between checks, in units of all steps."""
L1_CHECK = 0.04
L1_FIRST_DENSITY = 0.2
L1_SPARSER = 1.5
L1_LEAST_STEP = 0.1
"""In units of eps, which is also the largest."""
LARGE_EPS = ((3, 0.3), (2, 0.3), (1, 0.4))
"""Radius in units of eps, and the share of the steps spent in it."""


def apgd(
    search: Search,
    loss: Loss,
    x_Bn: Tensor,
    y_B: Tensor,
    aim_B: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    noise: Noise,
    eot: int = 1,
    large_eps: bool = False,
) -> Looks:
    """One run from one random start: `steps` + 1 looks, the first at the start.

    With `eot` > 1 the gradients of as many forward passes are averaged. With `large_eps` (L1) it walks in larger
    balls first; looks there are not inside, and each ball begins with a look of its own.
    """
    if not large_eps:
        start_Bn = _start(x_Bn, threat, noise)
        yield from _walk(search, loss, _Walk.at(start_Bn, x_Bn, y_B, aim_B), threat, steps, eot, sparse=False)
        return
    budgets = [ceil(share * steps) for _, share in LARGE_EPS]
    budgets[-1] = steps - sum(budgets[:-1])
    widest = ThreatModel(norm=threat.norm, eps=LARGE_EPS[0][0] * threat.eps)
    walk = _Walk.at(_start(x_Bn, widest, noise), x_Bn, y_B, aim_B)
    done = 0
    for (factor, _), budget in zip(LARGE_EPS, budgets, strict=True):
        ball = ThreatModel(norm=threat.norm, eps=factor * threat.eps)
        shrunk_Bn = walk.x + l1_ball(walk.x, walk.x_best - walk.x, ball.eps)
        walk = _Walk.at(shrunk_Bn.clamp(0, 1), walk.x, walk.y, walk.aim)
        walk = yield from _walk(
            search, loss, walk, ball, budget, eot, sparse=True, first_step=done, inside=factor == 1
        )
        done += budget


# --- one walk ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walk:
    """Where every image is."""

    x: Tensor
    y: Tensor
    aim: Tensor
    x_adv: Tensor
    x_old: Tensor
    gradient: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_last: Tensor
    rises: Tensor
    """Steps since the last check in which the loss rose."""
    best_at_check: Tensor
    halved_at_check: Tensor
    step_size: Tensor
    density: Tensor
    """L1: fraction of the pixels that a step moves."""
    support: Tensor
    """L1: pixels that differed from x at the last check."""

    @classmethod
    def at(cls, start_Bn: Tensor, x_Bn: Tensor, y_B: Tensor, aim_B: Tensor) -> "_Walk":
        nothing_B = torch.zeros_like(x_Bn[:, 0])
        return cls(
            x=x_Bn,
            y=y_B,
            aim=aim_B,
            x_adv=start_Bn,
            x_old=start_Bn,
            gradient=start_Bn,
            x_best=start_Bn,
            gradient_best=start_Bn,
            loss_best=nothing_B,
            loss_last=nothing_B,
            rises=nothing_B,
            best_at_check=nothing_B,
            halved_at_check=torch.ones_like(y_B, dtype=torch.bool),
            step_size=nothing_B[:, None],
            density=nothing_B,
            support=nothing_B,
        )


def _start(x_Bn: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    pixels = x_Bn.shape[1]
    match threat.norm:
        case "Linf":
            direction_Bn = 2 * noise.uniform(0, pixels) - 1
            start_Bn = x_Bn + threat.eps * direction_Bn / direction_Bn.abs().amax(dim=1, keepdim=True)
        case "L2":
            start_Bn = x_Bn + threat.eps * _unit(noise.normal(0, pixels))
        case "L1":
            start_Bn = x_Bn + l1_ball(x_Bn, noise.normal(0, pixels), threat.eps)
    return start_Bn.clamp(0, 1)


def _walk(
    search: Search,
    loss: Loss,
    walk: _Walk,
    threat: ThreatModel,
    steps: int,
    eot: int,
    *,
    sparse: bool,
    first_step: int = 0,
    inside: bool = True,
) -> Generator[Look, Tensor | None, _Walk]:
    """From walk.x_adv; returns where it ended. `sparse`: the start is no noise but a walk's end."""
    logits_BK, loss_B, walk = _climb(search, loss, walk, eot)
    step_size_B1 = torch.full_like(loss_B, (1 if threat.norm == "L1" else 2) * threat.eps)[:, None]
    walk = replace(
        walk,
        gradient_best=walk.gradient,
        loss_best=loss_B,
        # AutoAttack compares the first step's loss with 0 (of an array still empty) when it counts rises.
        loss_last=torch.zeros_like(loss_B),
        best_at_check=loss_B,
        step_size=step_size_B1,
        **_first_sparsity(walk, sparse),
    )
    flat_B = (walk.gradient == 0).all(dim=1)
    outside = None if inside else torch.zeros_like(flat_B)
    walk = take(walk, (yield Look(walk.x_adv, margin(logits_BK, walk.y), first_step, outside, flat_B)))
    checks = _check_steps(steps, threat.norm)
    since_check = 0
    for step in range(1, steps + 1):
        walk = replace(walk, x_adv=_move(walk, threat, first=step == 1), x_old=walk.x_adv)
        if step < steps:
            logits_BK, loss_B, walk = _climb(search, loss, walk, eot)
        else:  # nobody follows the last gradient
            logits_BK = search.logits(walk.x_adv)
            loss_B = loss(logits_BK, walk.y, walk.aim)
        since_check += 1
        walk = _remember(walk, loss_B)
        look = Look(
            walk.x_adv,
            margin(logits_BK, walk.y),
            first_step + step,
            None if inside else torch.zeros_like(walk.y, dtype=torch.bool),
        )
        if step in checks:
            walk = _check_l1(walk, threat) if threat.norm == "L1" else _check(walk, since_check)
            since_check = 0
        walk = take(walk, (yield look))
    return walk


def _climb(search: Search, loss: Loss, walk: _Walk, eot: int) -> tuple[Tensor, Tensor, _Walk]:
    """logits, loss and the walk with its gradient at x_adv; of several passes the gradients' mean and the last."""
    total_Bn = torch.zeros_like(walk.x)
    for _ in range(eot):
        logits_BK, loss_B, gradient_Bn, exponent_B1 = search.gradient(
            walk.x_adv, lambda z: loss(z, walk.y, walk.aim)
        )
        total_Bn = total_Bn + torch.ldexp(gradient_Bn, -exponent_B1) if eot > 1 else gradient_Bn
    return logits_BK, loss_B, replace(walk, gradient=total_Bn / eot if eot > 1 else total_Bn)


def _remember(walk: _Walk, loss_B: Tensor) -> _Walk:
    better_B = loss_B > walk.loss_best
    return replace(
        walk,
        x_best=torch.where(better_B[:, None], walk.x_adv, walk.x_best),
        gradient_best=torch.where(better_B[:, None], walk.gradient, walk.gradient_best),
        loss_best=torch.where(better_B, loss_B, walk.loss_best),
        rises=walk.rises + (loss_B > walk.loss_last),
        loss_last=loss_B,
    )


# --- steps -------------------------------------------------------------------------------------------------


def _move(walk: _Walk, threat: ThreatModel, *, first: bool) -> Tensor:
    match threat.norm:
        case "Linf":
            low_Bn, high_Bn = (walk.x - threat.eps).clamp_min(0), (walk.x + threat.eps).clamp_max(1)
            z_Bn = (walk.x_adv + walk.step_size * walk.gradient.sign()).clamp(low_Bn, high_Bn)
            return _with_momentum(walk, z_Bn, first=first).clamp(low_Bn, high_Bn)
        case "L2":
            z_Bn = _into_l2(walk.x, walk.x_adv + walk.step_size * _unit(walk.gradient), threat.eps)
            return _into_l2(walk.x, _with_momentum(walk, z_Bn, first=first), threat.eps)
        case "L1":
            direction_Bn = _largest(walk.gradient, walk.density).sign()
            length_B1 = direction_Bn.abs().sum(dim=1, keepdim=True)
            z_Bn = walk.x_adv + walk.step_size * direction_Bn / (length_B1 + 1e-10)
            return walk.x + l1_ball(walk.x, z_Bn - walk.x, threat.eps)


def _with_momentum(walk: _Walk, z_Bn: Tensor, *, first: bool) -> Tensor:
    share = 0.0 if first else MOMENTUM
    return walk.x_adv + (z_Bn - walk.x_adv) * (1 - share) + (walk.x_adv - walk.x_old) * share


def _into_l2(x_Bn: Tensor, z_Bn: Tensor, eps: float) -> Tensor:
    delta_Bn = z_Bn - x_Bn
    return (x_Bn + _unit(delta_Bn) * delta_Bn.norm(dim=1, keepdim=True).clamp_max(eps)).clamp(0, 1)


def _unit(v_Bn: Tensor) -> Tensor:
    return v_Bn / (v_Bn.norm(dim=1, keepdim=True) + 1e-12)


def _largest(gradient_Bn: Tensor, density_B: Tensor) -> Tensor:
    """`gradient_Bn` with all but the largest of its entries, a fraction `density_B`, set to zero."""
    pixels = gradient_Bn.shape[1]
    rank_B = ((1 - density_B) * pixels).clamp(0, pixels - 1).long()
    size_Bn = gradient_Bn.abs()
    least_B1 = size_Bn.sort(dim=1)[0].gather(1, rank_B[:, None])
    return gradient_Bn * (size_Bn >= least_B1)


# --- checks ------------------------------------------------------------------------------------------------


def _check_steps(steps: int, norm: Norm) -> frozenset[int]:
    """The steps after which to check, counted from 1."""
    if norm == "L1":
        distance = max(int(L1_CHECK * steps), 1)
        return frozenset(range(distance, steps + 1, distance))
    distance, shrink = max(int(FIRST_CHECK * steps), 1), max(int(CHECKS_SHRINK_BY * steps), 1)
    least = max(int(LAST_CHECKS * steps), 1)
    checks, step = [], distance
    while step <= steps:
        checks.append(step)
        distance = max(distance - shrink, least)
        step += distance
    return frozenset(checks)


def _check(walk: _Walk, since_check: int) -> _Walk:
    oscillates_B = walk.rises <= RISES * since_check
    stuck_B = ~walk.halved_at_check & (walk.best_at_check >= walk.loss_best)
    halve_B = oscillates_B | stuck_B
    return replace(
        walk,
        step_size=torch.where(halve_B[:, None], walk.step_size / 2, walk.step_size),
        x_adv=torch.where(halve_B[:, None], walk.x_best, walk.x_adv),
        gradient=torch.where(halve_B[:, None], walk.gradient_best, walk.gradient),
        rises=torch.zeros_like(walk.rises),
        best_at_check=walk.loss_best,
        halved_at_check=halve_B,
    )


def _first_sparsity(walk: _Walk, sparse: bool) -> dict[str, Tensor]:
    pixels = walk.x.shape[1]
    if sparse:
        support_B = _support(walk.x_adv, walk.x)
        return {"support": support_B, "density": support_B / pixels / L1_SPARSER}
    return {
        "support": torch.full_like(walk.loss_best, pixels),
        "density": torch.full_like(walk.loss_best, L1_FIRST_DENSITY),
    }


def _check_l1(walk: _Walk, threat: ThreatModel) -> _Walk:
    support_B = _support(walk.x_best, walk.x)
    sparser_B = support_B < 0.95 * walk.support
    smaller_B1 = (walk.step_size / L1_SPARSER).clamp_min(L1_LEAST_STEP * threat.eps)
    return replace(
        walk,
        density=support_B / walk.x.shape[1] / L1_SPARSER,
        support=support_B,
        step_size=torch.where(sparser_B[:, None], threat.eps, smaller_B1),
        x_adv=torch.where(sparser_B[:, None], walk.x_best, walk.x_adv),
        gradient=torch.where(sparser_B[:, None], walk.gradient_best, walk.gradient),
    )


def _support(z_Bn: Tensor, x_Bn: Tensor) -> Tensor:
    return (z_Bn != x_Bn).sum(dim=1).float()
