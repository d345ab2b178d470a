"""Which attacks see which images, in which order: a policy is a sequence of stages that depends on what was found.

    exact     the suite, on all that stand
    fast      the suite with a 16-bit search, then again in float32 on the 5 % of the survivors that came nearest
              to falling; where the hardware has no fast 16 bits, the search is in float32 and nothing is repeated
    audited   a cheap search, then the suite on those 5 % and on a random 3 % of the other survivors; on all
              others, too, if one of the random ones falls, or if gradients may be masked
    screen    the cheap search

Whatever stage an attack of the suite runs in, an image meets it with the same random numbers. So an audited
evaluation that falls back breaks every image that an exact one breaks (and those that only the cheap search
broke), and fast in float32 is exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from dkl.attacks.search import Precision
from dkl.documents import show_pixels
from dkl.events import Phase
from dkl.intervals import hypergeometric_upper
from dkl.protocols import Protocol
from dkl.suites import SCREEN, Attack, Suite
from dkl.tally import Rows, Tally

NEAREST = 0.05
"""Share of the survivors with the smallest margins that get a second, closer look."""
SAMPLED = 0.03
"""Share of the other survivors that the audit draws."""
MASKING_GAP = 0.1
"""Share of all images that targeted APGD may break after APGD-CE; models that mask their gradients show more."""

# They tell the uses of one attack apart, so that no two share random numbers; the suite itself has 0, 1, ...
_SCREEN_USE = 256
_SEARCH_USE = 512


@dataclass(frozen=True)
class Stage:
    """One attack on some of the images."""

    attack: Attack
    phase: Phase
    eps: float
    precision: Precision
    use: int
    """See `dkl.attacks.hunt`."""
    rows: NDArray[np.intp]
    """Which images of the evaluation."""
    share: float
    """Part of all images that was expected to get here; for telling how far the whole is."""


def stages(recipe: Protocol, tally: Tally, fast_precision: Precision) -> Iterator[Stage]:
    """The stages after the clean pass, radius by radius; `tally` is read whenever the next one is asked for."""
    for eps in recipe.radii():
        tally.begin_radius()
        match recipe.policy:
            case "exact":
                yield from _suite(recipe, tally, eps, "suite")
            case "fast":
                yield from _fast(recipe, tally, eps, fast_precision)
            case "audited":
                yield from _audited(recipe, tally, eps, fast_precision)
            case "screen":
                yield from _screen(recipe, tally, eps, fast_precision)
                _weigh(tally.claimed(), [], tally, eps, fast_precision)
            case _:
                assert_never(recipe.policy)


def planned(recipe: Protocol) -> Suite:
    """All attacks that may come up, each once."""
    screen = SCREEN[recipe.threat.norm]
    match recipe.policy:
        case "exact" | "fast":
            attacks = recipe.attacks()
        case "audited":
            attacks = (*screen, *recipe.attacks())
        case "screen":
            attacks = screen
        case _:
            assert_never(recipe.policy)
    return tuple(dict.fromkeys(attacks))


def _suite(recipe: Protocol, tally: Tally, eps: float, phase: Phase) -> Iterator[Stage]:
    for use, attack in enumerate(recipe.attacks()):
        yield Stage(attack, phase, eps, "float32", use, tally.standing(), share=1.0)


def _fast(recipe: Protocol, tally: Tally, eps: float, precision: Precision) -> Iterator[Stage]:
    if precision == "float32":
        yield from _suite(recipe, tally, eps, "search")
        return
    for use, attack in enumerate(recipe.attacks()):
        yield Stage(attack, "search", eps, precision, _SEARCH_USE + use, tally.standing(), share=1.0)
    chosen, claimed = tally.nearest(tally.standing(), NEAREST), tally.claimed()
    for use, attack in enumerate(recipe.attacks()):
        rows = tally.still(chosen)
        yield Stage(attack, "recheck", eps, "float32", use, rows, share=NEAREST)
    _weigh(claimed, chosen, tally, eps, precision)


def _screen(recipe: Protocol, tally: Tally, eps: float, precision: Precision) -> Iterator[Stage]:
    for number, attack in enumerate(SCREEN[recipe.threat.norm]):
        yield Stage(attack, "screen", eps, precision, _SCREEN_USE + number, tally.standing(), share=1.0)


def _audited(recipe: Protocol, tally: Tally, eps: float, precision: Precision) -> Iterator[Stage]:
    accuracies = [tally.accuracy()]
    for stage in _screen(recipe, tally, eps, precision):
        yield stage
        accuracies.append(tally.accuracy())
    survivors, claimed = tally.standing(), tally.claimed()
    near = tally.nearest(survivors, NEAREST)
    others = np.setdiff1d(survivors, near)
    sample = tally.random(others, ceil(SAMPLED * len(others)))
    chosen = np.union1d(near, sample)
    doubt = _masking(tally, survivors, gap=accuracies[1] - accuracies[2])
    audited = 0
    for use, attack in enumerate(recipe.attacks() if doubt is None else ()):
        yield Stage(attack, "audit", eps, "float32", use, tally.still(chosen), share=NEAREST + SAMPLED)
        audited = use + 1
        if fallen := len(sample) - len(tally.still(sample)):
            doubt = f"{attack.kind} broke {fallen} of {len(sample)} sampled images that the cheap search had not"
            break
    if doubt is None:
        _weigh(claimed, chosen, tally, eps, precision)
        missed = hypergeometric_upper(0, len(sample), len(others))
        tally.could_still_break[eps] = missed / len(tally.images)
        tally.note(
            f"audited at radius {show_pixels(eps)}: of {len(survivors)} survivors of the cheap search, the "
            f"{len(near)} with the smallest margins and {len(sample)} others at random got the whole suite; of "
            "the random ones none fell"
        )
        return
    tally.note(f"the audit at radius {show_pixels(eps)} gave way to the whole suite on every image: {doubt}")
    for use, attack in enumerate(recipe.attacks()):
        rows = tally.standing() if use >= audited else np.setdiff1d(tally.standing(), chosen)
        yield Stage(attack, "fallback", eps, "float32", use, rows, share=1.0)
    _weigh(claimed, survivors, tally, eps, precision)


def _weigh(claimed: Rows, again: Rows | Sequence[int], tally: Tally, eps: float, precision: Precision) -> None:
    """What became of images that a search in 16 bits took for broken and the verifier did not. They are those
    nearest to falling, so a second look in float32 has them all, unless they are many; `again` are who got it."""
    if precision == "float32":
        return  # no rounding explains such claims: whoever refused them has warned
    search = f"the {precision} search at radius {show_pixels(eps)}"
    unseen = np.setdiff1d(claimed, again)
    if seen := len(claimed) - len(unseen):
        tally.note(
            f"images that {search} took for broken and the verifier refused: {seen}; the suite went on with them "
            "in float32"
        )
    if len(unseen):
        tally.warn(
            f"the verifier refused images that {search} took for broken: {len(unseen)} of them met no attack in "
            "float32 afterwards, so the accuracy may be too high"
        )


def _masking(tally: Tally, survivors: NDArray[np.intp], gap: float) -> str | None:
    """Why gradients may mislead the cheap search; None for no reason."""
    if flat := int(tally.flat[survivors].sum()):
        return f"{flat} of {len(survivors)} survivors of the cheap search have gradients of exactly zero"
    if gap > MASKING_GAP:
        return f"targeted APGD broke {gap:.1%} of all images after APGD-CE, which hints at masked gradients"
    return None
