"""One attack of AutoAttack, run by pyautoattack: its mathematics untouched, its answer handed over in turns.

Source: github.com/fra31/auto-attack (Croce and Hein, arXiv:2003.01690); pyautoattack is that code on PyPI.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import TypeVar, assert_never

import torch
from pyautoattack import AutoAttack, checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from dkl.attacks.loan import Loan
from dkl.attacks.turns import Pause, in_turns
from dkl.recipes import APGD, FAB, Attack, Square, Suite, TargetedAPGD, TargetedFAB, ThreatModel

ENGINE = f"pyautoattack {version('pyautoattack')}"
"""Who runs the attacks, as results name it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Claims:
    """What an attack says it has achieved. To be verified."""

    x_adv: Tensor
    """The images, adversarial where the attack claims so, else clean."""
    claimed: Tensor
    """Which images the attack claims to have broken; bool (B,)."""
    forwards: int
    """Images that passed the model."""
    seconds: float
    """Time spent, pauses not counted."""
    warnings: tuple[str, ...]
    """What looked suspicious on the way."""


def run_attack(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    classes: int,
    seed: int,
    loan: Loan,
    report: Callable[[int, float], T],
) -> Generator[T, None, Claims]:
    """Attack x (B, C, H, W; float32 in [0, 1]), which `model` classifies correctly as y (B,).

    Yields report(forwards, seconds) several times per second and returns the claims. Closing it ends the attack at
    the model's next forward pass. The attack runs in a thread of its own (where pyautoattack may set and clear
    sys.settrace), by turns with the caller, and has what `loan` lends while it does. The parameters of `model`
    should not require gradients: FAB piles them up.
    """
    watched = _Watched(model, x.device)
    adversary = _adversary(attack, watched, threat, classes=classes, seed=seed, device=x.device)
    outcome: list[tuple[Tensor, Tensor]] = []

    def compute(pause: Pause) -> None:
        watched.pause = pause
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # counters that else mark all after one dynamic model
        try:
            outcome.append(adversary.run_standard_evaluation(x, y, batch_size=len(x)))
        except (RuntimeError, AssertionError):
            if watched.finite:
                raise
            outcome.append((x, y))  # Square falls over NaN; it has found nothing

    seconds, started = 0.0, perf_counter()
    with closing(in_turns(compute, loan.turn)) as turns:
        for _ in turns:
            seconds += perf_counter() - started
            yield report(watched.forwards, seconds)
            started = perf_counter()
    seconds += perf_counter() - started
    [(x_adv, y_adv)] = outcome
    notes = loan.take_notes()
    if not watched.finite:
        notes.append("some logits were not finite numbers, so the attack may have missed adversarial images")
    warnings = tuple(f"{attack.kind}: {note}" for note in notes)
    return Claims(x_adv.detach(), y_adv != y, watched.forwards, seconds, warnings)


# --- what the recipe asks, in pyautoattack's terms ---------------------------------------------------------


def _adversary(
    attack: Attack, model: nn.Module, threat: ThreatModel, *, classes: int, seed: int, device: torch.device
) -> AutoAttack:
    adversary = AutoAttack(
        model,
        norm=threat.norm,
        eps=threat.eps,
        seed=seed,
        version="custom",
        attacks=[attack.kind],
        device=device,
    )
    adversary.verbose = False
    # APGD is built anew: its constructor computes from n_iter at which steps the step size may be halved.
    apgd = {"norm": threat.norm, "eps": threat.eps, "seed": seed, "device": device, "logger": adversary.logger}
    match attack:
        case APGD():
            adversary.apgd = APGDAttack(
                model,
                n_iter=attack.steps,
                n_restarts=attack.restarts,
                eot_iter=attack.eot,
                use_largereps=attack.large_eps,
                **apgd,
            )
            if attack.eot > 1:
                adversary.version = "rand"  # only skips the check for randomness, which such an attack expects
        case TargetedAPGD():
            adversary.apgd_targeted = APGDAttack_targeted(
                model,
                n_iter=attack.steps,
                n_restarts=attack.restarts,
                n_target_classes=min(attack.targets, classes - 1),
                use_largereps=attack.large_eps,
                **apgd,
            )
        case FAB():
            adversary.fab.n_iter = attack.steps
            adversary.fab.n_restarts = attack.restarts
        case TargetedFAB():
            adversary.fab.n_iter = attack.steps
            adversary.fab.n_target_classes = min(attack.targets, classes - 1)
        case Square():
            adversary.square.n_queries = attack.queries
            adversary.square.n_restarts = attack.restarts
        case _:
            assert_never(attack)
    return adversary


def expected_forwards(attack: Attack, classes: int) -> int:
    """Forward passes that `attack` spends on an image that it cannot break, pyautoattack's own checks included."""
    checking = 4 if isinstance(attack, APGD) and attack.eot > 1 else 9
    match attack:
        case APGD():
            return checking + 1 + attack.restarts * _apgd_gradients(attack) * attack.eot
        case TargetedAPGD():
            return (
                checking + 1 + min(attack.targets, classes - 1) * attack.restarts * (1 + _apgd_gradients(attack))
            )
        case FAB():
            return checking + 1 + attack.restarts * (2 + 2 * attack.steps)
        case TargetedFAB():
            return checking + 1 + min(attack.targets, classes - 1) * (3 + 2 * attack.steps)
        case Square():
            return checking + 1 + attack.restarts * (2 + attack.queries)
        case _:
            assert_never(attack)


def _apgd_gradients(attack: APGD | TargetedAPGD) -> int:
    return attack.steps + (3 if attack.large_eps else 1)  # one more at the start of each radius


def require_possible(suite: Suite, threat: ThreatModel, *, classes: int, height: int, width: int) -> None:
    """ValueError that says what to change if an attack of `suite` is not defined for such a model and data."""
    for attack in suite:
        if attack.kind in ("apgd-dlr", "apgd-t") and classes < 4:
            raise ValueError(
                f"{attack.kind} is not possible with {classes} classes: the targeted DLR loss needs at least 4; "
                "use a suite of apgd-ce, fab and square"
            )
        if isinstance(attack, Square) and threat.norm != "Linf" and min(height, width) < 5:
            raise ValueError(
                f"square under {threat.norm} needs images of at least 5 x 5 pixels, found {height} x {width}; "
                "leave it out of the suite"
            )


# --- what is seen of it ------------------------------------------------------------------------------------


class _Watched(nn.Module):
    """The model, whose every forward pass is counted, checked for NaN, and an occasion to pause."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.pause: Pause = lambda: None
        self._finite = torch.ones((), dtype=torch.bool, device=device)  # on the device: reading it would wait

    def forward(self, x: Tensor) -> Tensor:
        self.pause()
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        self._finite = self._finite & logits.isfinite().all()
        return logits

    @property
    def finite(self) -> bool:
        """Whether all logits so far were finite numbers."""
        return bool(self._finite)
