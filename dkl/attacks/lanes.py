"""The lanes of a round: what still stands, each image in as many as it aims at classes, judged and thinned out.

Legend: B images, K classes, n pixels of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkl.attacks.looks import Look, Looks
from dkl.attacks.outcome import UNTARGETED, Outcome
from dkl.attacks.search import Search
from dkl.documents import ThreatModel
from dkl.verify import verify

GPU_LOOKS_EVERY = 10


class Round(NamedTuple):
    """One restart of an attack."""

    restart: int
    ranks: tuple[int, ...]
    """Of the classes aimed at among the wrong ones, by clean logits: 0 for the most likely. Empty: untargeted."""

    @property
    def lanes(self) -> int:
        """Per image."""
        return max(len(self.ranks), 1)

    def parts(self, lanes: int) -> list["Round"]:
        """Itself; or where not even one image has room in so many lanes, its ranks in several rounds."""
        return [self._replace(ranks=self.ranks[i : i + lanes]) for i in range(0, self.lanes, lanes)]


class Prey:
    """The images of a batch, and what has been found out about each."""

    def __init__(self, model: nn.Module, search: Search, threat: ThreatModel, x: Tensor, y: Tensor) -> None:
        self.model, self.search, self.threat = model, search, threat
        self.x, self.y = search.rows(x), y
        self.x_adv = self.x.clone()
        self.standing = torch.ones_like(y, dtype=torch.bool)
        self.predicted = torch.full_like(y, -1)
        self.restart = torch.full_like(y, -1)
        self.target = torch.full_like(y, UNTARGETED)
        self.step = torch.full_like(y, -1)
        self.margin = torch.full_like(self.x[:, 0], float("inf"))
        self.flat = torch.zeros_like(self.standing)
        self.forwards = torch.zeros_like(y)
        self.backwards = torch.zeros_like(y)
        self.refused = torch.zeros_like(self.standing)
        self.inadmissible = torch.zeros_like(self.standing)
        self.forwards_now = 0

    def confirm(self, rows: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the finds hold, bool like `rows`, and the classes predicted for all of them."""
        images = self.search.images
        verdict = verify(self.model, images(self.x[rows]), images(x_adv), self.y[rows], self.threat)
        self.refused[rows[~verdict.broken]] = True
        self.inadmissible[rows[~verdict.admissible]] = True
        return verdict.broken, verdict.predicted

    def outcome(self) -> Outcome:
        return Outcome(
            x_adv=self.search.images(self.x_adv),
            broken=~self.standing,
            predicted=self.predicted,
            restart=self.restart,
            target=self.target,
            step=self.step,
            margin=self.margin,
            flat=self.flat,
            forwards=self.forwards,
            backwards=self.backwards,
            rejected=int((self.refused & self.standing).sum()),
            inadmissible=int((self.inadmissible & self.standing).sum()),
            finite=self.search.finite,
        )


@dataclass
class _Finds:
    """What looked misclassified since the last look at it; one per lane, the first."""

    there: Tensor
    x_adv: Tensor
    step: Tensor | int
    """Per lane, or of all."""


class Lanes:
    """The images of a round, each in as many lanes as it aims at classes, and idle lanes that round up the batch.

    What is counted per lane is entered into the prey's books whenever the batch changes.
    """

    def __init__(
        self, prey: Prey, rows: Tensor, one: Round, wrong_BK: Tensor | None, gpu: bool | None = None
    ) -> None:
        self.prey, self.restart = prey, one.restart
        self.gpu = rows.device.type == "cuda" if gpu is None else gpu
        count = len(rows) * one.lanes
        padding = self._size(count) - count
        lane = torch.arange(count, device=rows.device)
        self.rows = _padded(rows.repeat_interleave(one.lanes), padding)
        ranks = torch.tensor(one.ranks or (0,), device=rows.device)
        self.rank = _padded(ranks[lane % one.lanes], padding)
        self.aim = torch.full_like(self.rows, UNTARGETED)
        if wrong_BK is not None:
            self.aim = wrong_BK[self.rows, self.rank]
        self.alive = _padded(torch.ones_like(lane, dtype=torch.bool), padding, idle=False)
        self.finds: _Finds | None = None
        self._open_books()

    def follow(self, looks: Looks) -> Iterator[None]:
        """Go through the round, dropping what is broken; yields after every look."""
        unseen = 0
        try:
            look = next(looks)
            while True:
                self._note(look)
                unseen += 1
                yield
                keep = None
                if unseen == (GPU_LOOKS_EVERY if self.gpu else 1):
                    keep, unseen = self._judge(), 0
                    if len(self.rows) == 0:
                        break
                look = looks.send(keep)
        except StopIteration:
            self._judge()
        finally:
            looks.close()
            self._close_books()

    # --- what a look tells ---

    def _note(self, look: Look) -> None:
        """Keep what the look tells; nothing here waits for a GPU."""
        self._count()
        margin = look.margin if look.inside is None else torch.where(look.inside, look.margin, torch.inf)
        if self.gpu:
            margin = torch.where(self.alive, margin, torch.inf)
        self.margin = torch.fmin(self.margin, margin)
        if look.flat is not None:
            self.flat |= look.flat
        hit = margin <= 0
        if self.finds is None:
            self.finds = _Finds(hit, look.x_adv, look.step)
            return
        new = hit & ~self.finds.there
        self.finds = _Finds(
            self.finds.there | hit,
            torch.where(new[:, None], look.x_adv, self.finds.x_adv),
            torch.where(new, look.step, self.finds.step),
        )

    def _judge(self) -> Tensor | None:
        """Confirm the finds and drop what is broken; returns the lanes to go on with, None for all."""
        finds, self.finds = self.finds, None
        if finds is None or not finds.there.any():
            return None
        lanes = finds.there.nonzero().squeeze(1)
        broken, of_find = self.prey.confirm(self.rows[lanes], finds.x_adv[lanes])
        if not broken.any():
            return None
        step = torch.as_tensor(finds.step, device=lanes.device).expand(len(self.rows))
        predicted = torch.full_like(self.rows, -1)
        predicted[lanes] = of_find
        lanes = self._first_of_each_row(lanes[broken], step[lanes[broken]])
        self._record(lanes, finds.x_adv[lanes], predicted[lanes], step[lanes])
        return self._shrink()

    def _first_of_each_row(self, lanes: Tensor, step: Tensor) -> Tensor:
        """Of several lanes of one image the one that found something first, or the lowest."""
        lanes = lanes[step.argsort(stable=True)]
        order = self.rows[lanes].argsort(stable=True)
        rows = self.rows[lanes][order]
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        return lanes[order[first]]

    def _record(self, lanes: Tensor, x_adv: Tensor, predicted: Tensor, step: Tensor) -> None:
        prey, rows = self.prey, self.rows[lanes]
        prey.standing[rows] = False
        prey.x_adv[rows] = x_adv
        prey.predicted[rows] = predicted
        prey.restart[rows] = self.restart
        prey.target[rows] = self.aim[lanes]
        prey.step[rows] = step

    # --- the batch ---

    def _shrink(self) -> Tensor | None:
        """Leave out the lanes of broken images; returns those that are left, None if nothing changes."""
        alive = self.alive & self.prey.standing[self.rows]
        busy = alive.nonzero().squeeze(1)
        size = self._size(len(busy))
        if size == len(self.rows) and not self.gpu:
            return None
        self._close_books()
        self.alive = alive
        keep = torch.arange(len(alive), device=alive.device)
        if size < len(alive):
            keep = torch.cat((busy, (~alive).nonzero().squeeze(1)[: size - len(busy)]))
            self.rows, self.rank, self.aim = self.rows[keep], self.rank[keep], self.aim[keep]
            self.alive = alive[keep]
        self._open_books()
        return keep if size < len(alive) else None

    def _size(self, needed: int) -> int:
        """How large a batch to use: on a GPU powers of two and one and a half times these, else just as needed."""
        if not self.gpu or needed == 0:
            return needed
        power = 1 << (needed - 1).bit_length()
        return power * 3 // 4 if power >= 4 and needed <= power * 3 // 4 else power

    # --- the books ---

    def _open_books(self) -> None:
        self.margin = torch.full_like(self.prey.x[self.rows, 0], torch.inf)
        self.flat = torch.zeros_like(self.alive)
        self.calls_before = self._calls()
        self.calls_counted = self.calls_before

    def _calls(self) -> tuple[int, int]:
        return self.prey.search.forward_calls, self.prey.search.backward_calls

    def _count(self) -> None:
        calls = self._calls()
        self.prey.forwards_now += (calls[0] - self.calls_counted[0]) * len(self.rows)
        self.calls_counted = calls

    def _close_books(self) -> None:
        """Enter what the lanes counted since the books were opened."""
        prey, rows = self.prey, self.rows[self.alive]
        forwards, backwards = (now - then for now, then in zip(self._calls(), self.calls_before, strict=True))
        prey.forwards.index_add_(0, rows, torch.full_like(rows, forwards))
        prey.backwards.index_add_(0, rows, torch.full_like(rows, backwards))
        prey.margin.scatter_reduce_(0, rows, self.margin[self.alive], "amin")
        prey.flat.index_put_((rows[self.flat[self.alive]],), torch.ones_like(prey.flat[:1]))
        self.calls_before = self._calls()


def _padded(values: Tensor, padding: int, idle: bool | None = None) -> Tensor:
    """`values` and the last of them, or `idle`, as often as that."""
    last = values[-1:] if idle is None else torch.full_like(values[-1:], idle)
    return torch.cat((values, last.expand(padding)))
