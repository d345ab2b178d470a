"""Square: random search without gradients, for Linf, L2 and L1 balls.

Every query changes a square window of the perturbation, in Linf to +-eps per channel, in L2 and L1 by moving mass
from another window to a bump; the change stays where it lowers the margin. The windows shrink on a fixed schedule.

Source: Andriushchenko, Croce, Flammarion and Hein, arXiv:1912.00049; the L1 form and all constants are
AutoAttack's. Unlike there, each image draws its own windows and signs, as the paper has it.
Shapes: B batch, C channels, H, W pixels, n = H * W * C; S side of the window, A = S * S its area.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import sqrt

import torch
from torch import Tensor

from dkl.attacks.looks import Look, Looks, margin, take
from dkl.attacks.noise import Noise
from dkl.attacks.projections import l1_ball
from dkl.attacks.search import Search
from dkl.documents import ThreatModel

FIRST_SHARE = 0.8
"""Of the pixels, in the first window."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved."""
LEAST_SIDE = 5
"""Of images in L2 and L1, whose first perturbation is a grid of 5 x 5 bumps."""
QUERIES_PER_DRAW = 64
_L1_MARGIN = 1 - 1e-6
"""The radius that L1 windows are projected to, in units of eps."""


def square(search: Search, x_Bn: Tensor, y_B: Tensor, *, threat: ThreatModel, queries: int, noise: Noise) -> Looks:
    """One run: `queries` + 1 looks, the first at a start of stripes (Linf) or bumps (L2, L1)."""
    rules = _Stripes(search, threat) if threat.norm == "Linf" else _Bumps(search, threat)
    best = _Best.at(x_Bn, y_B, rules.start(x_Bn, noise), threat)
    best = replace(best, margin=margin(search.logits(best.x_best), y_B))
    keep = yield Look(best.x_best.clone(), best.margin, 0)  # x_best changes in place, a look must not
    best, noise = take(best, keep), noise if keep is None else noise.take(keep)
    for query in range(queries):
        block, row = divmod(query, QUERIES_PER_DRAW)
        if row == 0:
            plan = rules.plan(noise, block)
        proposal = rules.propose(best, plan, row)
        margin_B = margin(search.logits(proposal.x_adv), best.y)
        better_B = margin_B < best.margin
        best = replace(
            best, x_best=proposal.accepted(best.x_best, better_B), margin=torch.fmin(margin_B, best.margin)
        )
        keep = yield Look(proposal.x_adv, margin_B, query + 1)
        if keep is not None:
            best, plan, noise = take(best, keep), take(plan, keep), noise.take(keep)


@dataclass(frozen=True)
class _Best:
    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    """Limits of each pixel in an Linf ball."""
    x_best: Tensor
    margin: Tensor
    """Of x_best."""

    @classmethod
    def at(cls, x_Bn: Tensor, y_B: Tensor, start_Bn: Tensor, threat: ThreatModel) -> "_Best":
        low_Bn, high_Bn = (x_Bn - threat.eps).clamp_min(0), (x_Bn + threat.eps).clamp_max(1)
        return cls(x_Bn, y_B, low_Bn, high_Bn, start_Bn, torch.full_like(x_Bn[:, 0], torch.inf))


@dataclass(frozen=True)
class _Plan:
    """The windows of the next Q queries, made for many at once: a draw is many small operations."""

    sides: list[int]
    """Of each query's windows."""
    corner: Tensor
    """Column of the first pixel of each query's window; int64 (B, Q)."""
    source: Tensor
    """The same for the window that mass is taken from, in L2 and L1."""
    sign: Tensor
    """(B, Q, C)"""
    transposed: Tensor
    """Whether a bump is; bool (B, Q)."""


def _share(query: int) -> float:
    return FIRST_SHARE / 2 ** sum(query > bound for bound in HALVED_AFTER)


def _sign(u: Tensor) -> Tensor:
    """-1 or 1 from numbers in [0, 1)."""
    return torch.where(u < 0.5, -1.0, 1.0)


@dataclass(frozen=True)
class _Proposal:
    """A changed image, and the window where it differs from the best so far; everywhere if there is none."""

    x_adv: Tensor
    where: Tensor | None = None
    """Columns of the rows of pixels, int64 (B, A * C); `old` and `new` are what stands there."""
    old: Tensor | None = None
    new: Tensor | None = None

    def accepted(self, x_best_Bn: Tensor, better_B: Tensor) -> Tensor:
        """The best images, after this proposal replaced the `better_B` ones."""
        if self.where is None:
            return torch.where(better_B[:, None], self.x_adv, x_best_Bn)
        return x_best_Bn.scatter_(1, self.where, torch.where(better_B[:, None], self.new, self.old))


class _Windows:
    """Square windows of images as columns of rows of pixels."""

    def __init__(self, search: Search) -> None:
        self.channels, self.height, self.width = search.shape
        self.device = search.device
        self._offsets = cache(self._make_offsets)

    def side(self, query: int) -> int:
        """Of an Linf window."""
        side = round(sqrt(_share(query) * self.height * self.width))
        return min(max(side, 1), self.height, self.width)

    def odd_side(self, query: int) -> int:
        """Of windows that hold a bump."""
        side = max(round(sqrt(_share(query) * self.height * self.width)), 3)
        return min(side + 1 - side % 2, self.height, self.width)

    def corners(self, u_BQ: Tensor, v_BQ: Tensor, sides: list[int]) -> Tensor:
        """Where windows of these sides begin, (B, Q); u, v in [0, 1) place them.

        The last row and the last column of places are never used, as in AutoAttack.
        """
        sides_Q = torch.tensor(sides, device=self.device)
        top_BQ = (u_BQ * (self.height - sides_Q)).long()
        left_BQ = (v_BQ * (self.width - sides_Q)).long()
        return (top_BQ * self.width + left_BQ) * self.channels

    def columns(self, corner_B: Tensor, side: int) -> Tensor:
        """All columns of a window, (B, A * C)."""
        return corner_B[:, None] + self._offsets(side)

    def _make_offsets(self, side: int) -> Tensor:
        """Columns of the window at the top left corner, row by row, channels last; (A * C,)."""
        rows = torch.arange(side, device=self.device)[:, None, None] * self.width
        columns = torch.arange(side, device=self.device)[None, :, None]
        return ((rows + columns) * self.channels + torch.arange(self.channels, device=self.device)).flatten()


def _plan(windows: _Windows, noise: Noise, block: int, sides: list[int]) -> _Plan:
    """Of the queries of a block, of which there are QUERIES_PER_DRAW."""
    each = 5 + windows.channels
    u_BQ = noise.uniform(1 + block, len(sides) * each).unflatten(1, (len(sides), each))
    return _Plan(
        sides,
        corner=windows.corners(u_BQ[..., 0], u_BQ[..., 1], sides),
        source=windows.corners(u_BQ[..., 2], u_BQ[..., 3], sides),
        transposed=u_BQ[..., 4] > 0.5,
        sign=_sign(u_BQ[..., 5:]),
    )


def _queries(block: int) -> range:
    return range(block * QUERIES_PER_DRAW, (block + 1) * QUERIES_PER_DRAW)


class _Stripes:
    """Linf: a start of vertical stripes, windows of one sign per channel."""

    def __init__(self, search: Search, threat: ThreatModel) -> None:
        self.windows = _Windows(search)
        self.eps = threat.eps

    def start(self, x_Bn: Tensor, noise: Noise) -> Tensor:
        stripe = self.windows.width * self.windows.channels
        stripes_Bn = _sign(noise.uniform(0, stripe)).repeat(1, self.windows.height)
        return (x_Bn + self.eps * stripes_Bn).clamp(0, 1)

    def plan(self, noise: Noise, block: int) -> _Plan:
        plan = _plan(self.windows, noise, block, [self.windows.side(query) for query in _queries(block)])
        return replace(plan, sign=2 * self.eps * plan.sign)

    def propose(self, best: _Best, plan: _Plan, row: int) -> _Proposal:
        where = self.windows.columns(plan.corner[:, row], plan.sides[row])
        old = best.x_best.gather(1, where)
        moved = (old.unflatten(1, (-1, self.windows.channels)) + plan.sign[:, None, row]).flatten(1)
        new = moved.clamp(best.low.gather(1, where), best.high.gather(1, where))
        return _Proposal(best.x_best.scatter(1, where, new), where, old, new)


class _Bumps:
    """L2 and L1: mass moves from one window to a bump in another, and the image goes back to the ball."""

    def __init__(self, search: Search, threat: ThreatModel) -> None:
        self.windows = _Windows(search)
        self.eps = threat.eps
        self.order = 2 if threat.norm == "L2" else 1
        self._hills = cache(self._make_hills)

    def start(self, x_Bn: Tensor, noise: Noise) -> Tensor:
        height, width, channels = self.windows.height, self.windows.width, self.windows.channels
        side = height // LEAST_SIDE
        corner = (height - side * LEAST_SIDE) // 2
        delta_Bn = torch.zeros_like(x_Bn)
        grid = delta_Bn.unflatten(1, (height, width, channels))
        cells = [(i, j) for i in range(height // side) for j in range(width // side)]
        u = noise.uniform(0, len(cells) * (1 + channels)).unflatten(1, (len(cells), 1 + channels))
        for cell, (i, j) in enumerate(cells):
            top, left = corner + i * side, corner + j * side
            window = grid[:, top : top + side, left : left + side]  # smaller where the grid leaves the image
            bump_BSS = self._bump(side, u[:, cell, 0] > 0.5)[:, : window.shape[1], : window.shape[2]]
            window += bump_BSS[..., None] * _sign(u[:, cell, None, None, 1:])
        return self._back_into_ball(x_Bn, delta_Bn)

    def plan(self, noise: Noise, block: int) -> _Plan:
        return _plan(self.windows, noise, block, [self.windows.odd_side(query) for query in _queries(block)])

    def propose(self, best: _Best, plan: _Plan, row: int) -> _Proposal:
        height, width, channels = self.windows.height, self.windows.width, self.windows.channels
        side = plan.sides[row]
        to = self.windows.columns(plan.corner[:, row], side)
        source = self.windows.columns(plan.source[:, row], side)
        delta_Bn = best.x_best - best.x
        old_BAC = delta_Bn.gather(1, to).unflatten(1, (side * side, channels))
        both_Bn = torch.zeros_like(delta_Bn, dtype=torch.bool).scatter(1, to, True).scatter(1, source, True)
        mass_BC = self._norm((delta_Bn * both_Bn).unflatten(1, (height * width, channels)))
        bump_BAC = self._bump(side, plan.transposed[:, row]).flatten(1)[..., None] * plan.sign[:, None, row]
        mixed_BAC = bump_BAC + old_BAC / (1e-12 + self._norm(old_BAC)[:, None])
        new_BAC = mixed_BAC / (1e-12 + self._norm(mixed_BAC)[:, None])
        new_BAC = new_BAC * self._allowance(delta_Bn, mass_BC)[:, None]
        moved_Bn = delta_Bn.scatter(1, source, 0.0).scatter(1, to, new_BAC.flatten(1))
        return _Proposal(self._back_into_ball(best.x, moved_Bn))

    def _norm(self, v_BAC: Tensor) -> Tensor:
        return v_BAC.norm(self.order, dim=1)

    def _allowance(self, delta_Bn: Tensor, mass_BC: Tensor) -> Tensor:
        """The norm that the new window may have, per channel: what the two windows had, and what is unused."""
        channels = mass_BC.shape[1]
        used_B1 = delta_Bn.norm(self.order, dim=1, keepdim=True)
        if self.order == 1:
            return ((self.eps - used_B1).clamp_min(0) / channels + mass_BC) * channels
        return ((self.eps**2 - used_B1.square()).clamp_min(0) / channels + mass_BC.square()).sqrt()

    def _back_into_ball(self, x_Bn: Tensor, delta_Bn: Tensor) -> Tensor:
        if self.order == 1:
            return x_Bn + l1_ball(x_Bn, delta_Bn, self.eps * _L1_MARGIN)
        length_B1 = delta_Bn.norm(dim=1, keepdim=True)
        return (x_Bn + self.eps * delta_Bn / (length_B1 + 1e-12)).clamp(0, 1)

    def _bump(self, side: int, transposed_B: Tensor) -> Tensor:
        """A positive and a negative hill side by side; (B, S, S)."""
        bump_SS = self._hills(side)
        return torch.where(transposed_B[:, None, None], bump_SS.T, bump_SS)

    def _make_hills(self, side: int) -> Tensor:
        half = side // 2
        hills = torch.cat((self._hill(half, side), -self._hill(side - half, side)))
        return hills / hills.norm(self.order)

    def _hill(self, height: int, width: int) -> Tensor:
        """Terraces around the middle: that of half-width r adds 1 / r**2 (L2) or 1 / r**4 (L1), r = 1, 2, ..."""
        hill = torch.zeros(height, width, device=self.windows.device)
        rows, columns = height // 2 + 1, width // 2 + 1
        for r in range(max(rows, columns)):
            top, left = max(rows - 1 - r, 0), max(columns - 1 - r, 0)
            hill[top : rows + r, left : columns + r] += 1 / (r + 1) ** (2 if self.order == 2 else 4)
        return hill / hill.norm(self.order) if height else hill
