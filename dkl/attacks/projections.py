"""Projections without sorting, on rows of pixels: the hot spots of FAB and of attacks in L1.

Each solves one equation phi(s) = c per row, where phi is piecewise linear and monotone, in a fixed number of steps
that never wait for a GPU. (The L1 hyperplane alone sorts: its phi jumps.)

Shapes: B rows, n pixels.
"""

import torch
from torch import Tensor

NEWTON_STEPS = 12
"""phi of the hyperplane projections is concave: from 0 Newton climbs to the root and does not overshoot. On CIFAR
images with gradients of trained networks, 5 to 8 steps reach it to the last digit of float32."""

BISECTIONS = 30
"""phi of the L1 ball is neither convex nor concave, so its root is enclosed: to 2**-30 of the largest change."""

TINY = 1e-20


def hyperplane_linf(t_Bn: Tensor, w_Bn: Tensor, c_B: Tensor) -> Tensor:
    """The step d of least maximum norm with <w, d> = -c and t + d in [0, 1]; the corner if the box has none.

        d_i = -sign(c w_i) min(s, room_i),    sum_i |w_i| min(s, room_i) = |c|

    room_i is the distance from t_i to the side of the box that d_i moves to. Source: arXiv:1907.02044, Eq. 4.
    """
    size_Bn, direction_Bn, room_Bn = _ways(t_Bn, w_Bn, c_B)
    room_Bn = torch.where(size_Bn > 0, room_Bn, 0)
    return direction_Bn * _climb(size_Bn, torch.ones_like(size_Bn), room_Bn, c_B.abs())


def hyperplane_l2(t_Bn: Tensor, w_Bn: Tensor, c_B: Tensor) -> Tensor:
    """The step d of least Euclidean norm with <w, d> = -c and t + d in [0, 1]; the corner if the box has none.

        d_i = -sign(c w_i) min(s |w_i|, room_i),    sum_i |w_i| min(s |w_i|, room_i) = |c|

    Source: arXiv:1907.02044, Eq. 4.
    """
    size_Bn, direction_Bn, room_Bn = _ways(t_Bn, torch.where(w_Bn.abs() > 1e-8, w_Bn, 0), c_B)
    speed_Bn = size_Bn / size_Bn.amax(dim=1, keepdim=True).clamp_min(TINY)
    return direction_Bn * _climb(size_Bn, speed_Bn, room_Bn, c_B.abs())


def _ways(t_Bn: Tensor, w_Bn: Tensor, c_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per pixel: |w|, the direction (-1, 0, 1) that lowers |<w, t> + c|, and the room to the box in it."""
    direction_Bn = -(w_Bn * c_B.sign()[:, None]).sign()
    room_Bn = torch.where(direction_Bn < 0, t_Bn, 1 - t_Bn)
    return w_Bn.abs(), direction_Bn, room_Bn


def _climb(size_Bn: Tensor, speed_Bn: Tensor, room_Bn: Tensor, goal_B: Tensor) -> Tensor:
    """min(s speed_i, room_i) for the s with sum_i size_i min(s speed_i, room_i) = goal, or room if there is none.

    s only ever rises, so a row that has arrived stays, and stopping early on the CPU changes no row's answer.
    """
    unit_B = size_Bn.amax(dim=1).clamp_min(TINY)
    size_Bn, goal_B = size_Bn / unit_B[:, None], goal_B / unit_B
    gain_Bn = size_Bn * speed_Bn
    s_B1 = torch.zeros_like(goal_B)[:, None]
    for _ in range(NEWTON_STEPS):
        way_Bn = s_B1 * speed_Bn
        free_Bn = way_Bn < room_Bn
        missing_B = goal_B - torch.linalg.vecdot(size_Bn, torch.minimum(way_Bn, room_Bn))
        slope_B = torch.linalg.vecdot(gain_Bn, free_Bn.to(gain_Bn.dtype))
        rise_B = (missing_B / slope_B.clamp_min(TINY)).clamp_max(1 / TINY)  # infinite times speed 0 were NaN
        higher_B1 = torch.maximum(s_B1, s_B1 + rise_B[:, None])
        if s_B1.device.type == "cpu" and torch.equal(higher_B1, s_B1):
            break
        s_B1 = higher_B1
    return torch.minimum(s_B1 * speed_Bn, room_Bn)


def hyperplane_l1(t_Bn: Tensor, w_Bn: Tensor, c_B: Tensor) -> Tensor:
    """The step d of least L1 norm with <w, d> = -c and t + d in [0, 1]; the corner if the box has none.

    The pixels with the largest |w_i| go all the way to their side of the box, the last one as far as is needed.

    Source: arXiv:1907.02044, Eq. 4.
    """
    size_Bn, direction_Bn, room_Bn = _ways(t_Bn, torch.where(w_Bn.abs() > 1e-8, w_Bn, 0), c_B)
    size_Bn, order_Bn = size_Bn.sort(dim=1, descending=True)
    gain_Bn = size_Bn * room_Bn.gather(1, order_Bn)
    left_Bn = c_B.abs()[:, None] - (gain_Bn.cumsum(dim=1) - gain_Bn)
    share_Bn = (left_Bn / gain_Bn.clamp_min(TINY)).clamp(0, 1)
    return direction_Bn * room_Bn * torch.zeros_like(room_Bn).scatter(1, order_Bn, share_Bn)


def l1_ball(x_Bn: Tensor, delta_Bn: Tensor, eps: float) -> Tensor:
    """The perturbation nearest to `delta_Bn` with ||.||_1 <= eps and x + . in [0, 1].

        d_i = sign(delta_i) clip(|delta_i| - lam, 0, room_i),    sum_i |d_i| = eps,  or lam = 0 if that is inside

    Source: arXiv:2103.01208, Sec. 3.
    """
    size_Bn = delta_Bn.abs()
    room_Bn = torch.where(delta_Bn > 0, 1 - x_Bn, x_Bn)
    inside_B1 = torch.minimum(size_Bn, room_Bn).sum(dim=1, keepdim=True) <= eps
    low_B1 = torch.zeros_like(size_Bn[:, :1])
    high_B1 = size_Bn.amax(dim=1, keepdim=True)
    for _ in range(BISECTIONS):
        lam_B1 = (low_B1 + high_B1) / 2
        outside_B1 = (size_Bn - lam_B1).clamp_min(0).minimum(room_Bn).sum(dim=1, keepdim=True) > eps
        low_B1 = torch.where(outside_B1, lam_B1, low_B1)
        high_B1 = torch.where(outside_B1, high_B1, lam_B1)
    lam_B1 = torch.where(inside_B1, 0, high_B1)
    return (size_Bn - lam_B1).clamp_min(0).minimum(room_Bn) * delta_Bn.sign()
