"""One attack of AutoAttack, run by pyautoattack: its mathematics untouched, its answer handed over in turns.

Source: github.com/fra31/auto-attack (Croce and Hein, arXiv:2003.01690); pyautoattack is that code on PyPI.
"""

from collections.abc import Generator
from contextlib import closing
from importlib.metadata import version
from typing import assert_never

import torch
from pyautoattack import AutoAttack, checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from dkl.attacks.loan import Loan
from dkl.attacks.outcome import Outcome
from dkl.attacks.turns import Pause, in_turns
from dkl.documents import ThreatModel
from dkl.suites import APGD, FAB, Attack, Square, TargetedAPGD, TargetedFAB
from dkl.verify import verify

ENGINE = f"pyautoattack {version('pyautoattack')}"
"""Who runs the attacks, as results name it."""


def attack_by_reference(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    classes: int,
    seed: int,
    loan: Loan,
    at_once: int,
) -> Generator[int, None, Outcome]:
    """Attack x (B, C, H, W; float32 in [0, 1]), which `model` classifies correctly as y (B,), as `hunt` does.

    At most `at_once` images go through the model together; the attack's random numbers depend on it.

    Yields the forward passes so far, several times per second, and returns what was found; of each image that
    fell only that it did. Closing it ends the attack at the model's next forward pass. The attack runs in a thread
    of its own (where pyautoattack may set and clear sys.settrace), by turns with the caller, and has what `loan`
    lends while it does; what it finds suspicious is in the loan's notes. The parameters of `model` should not
    require gradients: FAB piles them up.
    """
    x = x.contiguous()
    watched = _Watched(model, x.device)
    adversary = _adversary(attack, watched, threat, classes=classes, seed=seed, device=x.device)
    outcome: list[tuple[Tensor, Tensor]] = []

    def compute(pause: Pause) -> None:
        watched.pause = pause
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # counters that else mark all after one dynamic model
        try:
            outcome.append(adversary.run_standard_evaluation(x, y, batch_size=at_once))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError):
            if watched.finite:
                raise
            outcome.append((x, y))  # Square falls over NaN; it has found nothing

    with closing(in_turns(compute, loan.turn)) as turns:
        for _ in turns:
            yield watched.forwards
    [(x_adv, y_adv)] = outcome
    with loan.turn():
        return _confirmed(model, x, x_adv.detach(), y, y_adv != y, threat, watched, at_once)


def _confirmed(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    claimed: Tensor,
    threat: ThreatModel,
    watched: "_Watched",
    at_once: int,
) -> Outcome:
    """What holds of the claims. Work is spread evenly: pyautoattack does not say on which image it was spent."""
    parts = zip(*(rows.split(at_once) for rows in (x, x_adv, y)), strict=True)
    verdicts = [verify(model, *part, threat) for part in parts]
    broken = claimed & torch.cat([verdict.broken for verdict in verdicts])
    admissible = torch.cat([verdict.admissible for verdict in verdicts])
    unknown = torch.full_like(y, -1)
    return Outcome(
        x_adv=x_adv,
        broken=broken,
        predicted=torch.cat([verdict.predicted for verdict in verdicts]).where(broken, -1),
        restart=unknown,
        target=unknown,
        step=unknown,
        margin=torch.full_like(x[:, 0, 0, 0], float("inf")),
        flat=torch.zeros_like(broken),
        forwards=torch.full_like(y, watched.forwards // len(y)),
        backwards=torch.full_like(y, watched.backwards // len(y)),
        rejected=int((claimed & ~broken).sum()),
        inadmissible=int((claimed & ~admissible).sum()),
        finite=watched.finite,
    )


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


# --- what is seen of it ------------------------------------------------------------------------------------


class _Watched(nn.Module):
    """The model, whose every forward pass is counted, checked for NaN, and an occasion to pause."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0
        self.pause: Pause = lambda: None
        self._finite = torch.ones((), dtype=torch.bool, device=device)  # on the device: reading it would wait

    def forward(self, x: Tensor) -> Tensor:
        self.pause()
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        self._finite = self._finite & logits.isfinite().all()
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    @property
    def finite(self) -> bool:
        """Whether all logits so far were finite numbers."""
        return bool(self._finite)
