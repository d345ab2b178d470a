"""FAB, the fast adaptive boundary attack: looks for the nearest adversarial image, in Linf, L2 or L1.

Each step takes the decision boundary for a plane, projects the current and the clean image onto it (inside the
box), goes to a point between the two projections and a little beyond the plane, and, where that is adversarial, a
step back towards the clean image. It knows no radius: an image it finds counts if it happens to lie in the ball.

Source: Croce and Hein, arXiv:1907.02044. All constants are AutoAttack's.
Shapes: B batch, K classes, n pixels of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dkl.attacks.looks import Look, Looks, margin, take
from dkl.attacks.noise import Noise
from dkl.attacks.projections import hyperplane_l1, hyperplane_l2, hyperplane_linf
from dkl.attacks.search import Search
from dkl.documents import Norm, ThreatModel

OVERSHOOT = 1.05
MOST_BIAS = 0.1
"""Towards the clean image's projection."""
STEP_BACK = 0.9

_PROJECT: dict[Norm, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Linf": hyperplane_linf,
    "L2": hyperplane_l2,
    "L1": hyperplane_l1,
}
_ORDER: dict[Norm, float] = {"Linf": float("inf"), "L2": 2, "L1": 1}
_DUAL_ORDER: dict[Norm, float] = {"Linf": 1, "L2": 2, "L1": float("inf")}


@dataclass(frozen=True)
class _Chase:
    x: Tensor
    y: Tensor
    aim: Tensor | None
    z: Tensor
    """Where every image is now."""


def fab(
    search: Search,
    x_Bn: Tensor,
    y_B: Tensor,
    aim_B: Tensor | None,
    *,
    threat: ThreatModel,
    steps: int,
    noise: Noise | None,
) -> Looks:
    """One run: `steps` looks, towards the classes `aim_B`, or towards the nearest boundary of all (None).

    It starts at the clean image, or, given `noise`, at random half-way to the sphere of radius eps.
    """
    start_Bn = x_Bn if noise is None else _random_start(x_Bn, threat, noise)
    chase = _Chase(x_Bn, y_B, aim_B, start_Bn)
    for step in range(1, steps + 1):
        difference_B, w_Bn = _boundary(search, chase, threat.norm)
        chase = replace(chase, z=_approach(chase, difference_B, w_Bn, threat.norm))
        margin_B = margin(search.logits(chase.z), chase.y)
        distance_B = (chase.z - chase.x).norm(_ORDER[threat.norm], dim=1)
        look = Look(chase.z, margin_B, step, inside=distance_B <= threat.eps)
        back_Bn = chase.x + (chase.z - chase.x) * STEP_BACK
        chase = replace(chase, z=torch.where(margin_B[:, None] < 0, back_Bn, chase.z))
        chase = take(chase, (yield look))


def _random_start(x_Bn: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    pixels = x_Bn.shape[1]
    t_Bn = 2 * noise.uniform(0, pixels) - 1 if threat.norm == "Linf" else noise.normal(0, pixels)
    t_Bn = t_Bn / t_Bn.norm(_ORDER[threat.norm], dim=1, keepdim=True)
    return (x_Bn + threat.eps / 2 * t_Bn).clamp(0, 1)


def _boundary(search: Search, chase: _Chase, norm: Norm) -> tuple[Tensor, Tensor]:
    """z_k - z_y of the class aimed at, or of the one whose boundary seems nearest, and its gradient (B, n)."""
    logits_BK, gradient_of = search.jacobian(chase.z)
    if chase.aim is not None:
        difference_B = (logits_BK.gather(1, chase.aim[:, None]) - logits_BK.gather(1, chase.y[:, None])).squeeze(1)
        return difference_B, gradient_of(_one(logits_BK, chase.aim) - _one(logits_BK, chase.y))
    nearest_B = torch.full_like(logits_BK[:, 0], float("inf"))
    difference_B, w_Bn = torch.zeros_like(nearest_B), torch.zeros_like(chase.z)
    for k in range(logits_BK.shape[1]):
        other_B = torch.full_like(chase.y, k)
        k_difference_B = logits_BK[:, k] - logits_BK.gather(1, chase.y[:, None]).squeeze(1)
        k_w_Bn = gradient_of(_one(logits_BK, other_B) - _one(logits_BK, chase.y))
        distance_B = k_difference_B.abs() / (k_w_Bn.norm(_DUAL_ORDER[norm], dim=1) + 1e-12)
        closer_B = (distance_B < nearest_B) & (chase.y != k)
        nearest_B = torch.where(closer_B, distance_B, nearest_B)
        difference_B = torch.where(closer_B, k_difference_B, difference_B)
        w_Bn = torch.where(closer_B[:, None], k_w_Bn, w_Bn)
    return difference_B, w_Bn


def _one(logits_BK: Tensor, k_B: Tensor) -> Tensor:
    return torch.zeros_like(logits_BK).scatter(1, k_B[:, None], 1)


def _approach(chase: _Chase, difference_B: Tensor, w_Bn: Tensor, norm: Norm) -> Tensor:
    """The next point. The plane is {z' : <w, z' - z> + difference = 0}."""
    from_x_B = difference_B + torch.linalg.vecdot(w_Bn, chase.x - chase.z)
    d_z_Bn = _PROJECT[norm](chase.z, w_Bn, difference_B)
    d_x_Bn = _PROJECT[norm](chase.x, w_Bn, from_x_B)
    length_z_B1 = d_z_Bn.norm(_ORDER[norm], dim=1, keepdim=True).clamp_min(1e-8)
    length_x_B1 = d_x_Bn.norm(_ORDER[norm], dim=1, keepdim=True).clamp_min(1e-8)
    bias_B1 = (length_z_B1 / (length_z_B1 + length_x_B1)).clamp(0, MOST_BIAS)
    near_Bn = chase.z + OVERSHOOT * d_z_Bn
    clean_Bn = chase.x + OVERSHOOT * d_x_Bn
    return (near_Bn * (1 - bias_B1) + clean_Bn * bias_B1).clamp(0, 1)
