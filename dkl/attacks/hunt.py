"""Driving an attack: round after round on what still stands, every find confirmed, every broken image dropped.

A round is one restart. A targeted attack aims at all its classes at the same time, in a lane for each, and an
image falls as soon as one of its lanes finds something (dkl/attacks/lanes.py). Whatever an attack tries and the
search model takes for misclassified is checked by the verifier with the untouched model, and only if that agrees
the image is broken and leaves the batch. On a CPU finds are looked at after every step. A GPU would have to wait
for each such look, so there they are collected and looked at every few steps, and the batch shrinks only to sizes
that come back again.

Which images fall, and to what, depends on the recipe's seed, the model and the image alone, not on the batch (up
to the rounding of the model's own kernels, which may differ between batch sizes). Where not even all lanes of one
image may pass together, they come in several rounds: the same images fall, perhaps to another lane.
"""

from collections.abc import Generator
from typing import assert_never

import torch
from torch import Tensor, nn

from dkl.attacks.apgd import apgd
from dkl.attacks.fab import fab
from dkl.attacks.lanes import Lanes, Prey, Round
from dkl.attacks.looks import Looks
from dkl.attacks.losses import ce, dlr, dlr_targeted
from dkl.attacks.noise import Noise
from dkl.attacks.outcome import Outcome
from dkl.attacks.search import Search
from dkl.attacks.square import square
from dkl.documents import ThreatModel
from dkl.suites import APGD, FAB, Attack, Square, TargetedAPGD, TargetedFAB

CPU_PIXELS = 400_000
"""In one batch on a CPU: the activations of more leave its caches (measured with WRN-10-1 and a small CNN)."""


def rounds(attack: Attack, classes: int) -> list[Round]:
    """The rounds of `attack` on a model that tells `classes` classes apart, in order."""
    match attack:
        case TargetedAPGD():
            ranks = tuple(range(min(attack.targets, classes - 1)))
            return [Round(restart, ranks) for restart in range(attack.restarts)]
        case TargetedFAB():
            return [Round(0, tuple(range(min(attack.targets, classes - 1))))]
        case APGD() | FAB() | Square():
            return [Round(restart, ()) for restart in range(attack.restarts)]
        case _:
            assert_never(attack)


def passes(attack: Attack, classes: int) -> int:
    """Forward passes that an image which stands to the end costs."""
    match attack:
        case APGD() | TargetedAPGD():
            eot = attack.eot if isinstance(attack, APGD) else 1
            each = attack.steps * eot + (3 if attack.large_eps else 1)
        case FAB() | TargetedFAB():
            each = 2 * attack.steps
        case Square():
            each = attack.queries + 1
        case _:
            assert_never(attack)
    return each * sum(one.lanes for one in rounds(attack, classes))


def hunt(
    attack: Attack,
    model: nn.Module,
    search: Search,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    images: Tensor,
    classes: int,
    seed: int,
    use: int,
    lanes: int,
) -> Generator[int, None, Outcome]:
    """Attack x (B, C, H, W; float32 in [0, 1]), which `model` classifies correctly as y (B,).

    `images` (B,) are their positions in the data set; `use`, below 2**16, tells this use of an attack from others
    with the same seed; at most `lanes` images go through the model together. Yields the forward passes so far,
    after every step, and returns what was found. Close it to stop.
    """
    prey = Prey(model, search, threat, x, y)
    search.watch()
    wrong_BK = None
    if isinstance(attack, TargetedAPGD | TargetedFAB):
        logits_BK = torch.cat([search.logits(some) for some in prey.x.split(lanes)])
        ranked_BK = logits_BK.argsort(dim=1, descending=True, stable=True)
        wrong_BK = ranked_BK[ranked_BK != y[:, None]].unflatten(0, (len(y), -1))
    parts = [part for one in rounds(attack, classes) for part in one.parts(lanes)]
    if x.device.type == "cpu":
        lanes = min(lanes, max(CPU_PIXELS // x[0].numel(), 1))
    for one in parts:
        if not prey.standing.any():
            break
        for rows in prey.standing.nonzero().squeeze(1).split(max(lanes // one.lanes, 1)):
            batch = Lanes(prey, rows, one, wrong_BK)
            noise = Noise(seed, images[batch.rows], use << 16 | one.restart << 8 | batch.rank)
            looks = _start(attack, search, prey.x[batch.rows], y[batch.rows], batch.aim, threat, noise, one)
            for _ in batch.follow(looks):
                yield prey.forwards_now
    return prey.outcome()


def _start(
    attack: Attack,
    search: Search,
    x: Tensor,
    y: Tensor,
    aim: Tensor,
    threat: ThreatModel,
    noise: Noise,
    one: Round,
) -> Looks:
    match attack:
        case APGD():
            loss = ce if attack.kind == "apgd-ce" else dlr
            effort = {"steps": attack.steps, "eot": attack.eot, "large_eps": attack.large_eps}
            return apgd(search, loss, x, y, aim, threat=threat, noise=noise, **effort)
        case TargetedAPGD():
            effort = {"steps": attack.steps, "large_eps": attack.large_eps}
            return apgd(search, dlr_targeted, x, y, aim, threat=threat, noise=noise, **effort)
        case FAB():
            # AutoAttack's first restart begins at the image itself.
            return fab(search, x, y, None, threat=threat, steps=attack.steps, noise=noise if one.restart else None)
        case TargetedFAB():
            return fab(search, x, y, aim, threat=threat, steps=attack.steps, noise=None)
        case Square():
            return square(search, x, y, threat=threat, queries=attack.queries, noise=noise)
        case _:
            assert_never(attack)
