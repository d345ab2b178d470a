"""The reference: set up as pyautoattack sets it up, counted exactly, stopped at once, and leaving no trace."""

import logging
import sys
import threading
import time
import warnings
from contextlib import closing

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn
from trials import KINDS, Linear, cnn, quick_suite

from dkl.attacks.loan import Loan, by_turns
from dkl.attacks.outcome import Outcome
from dkl.attacks.reference import _adversary, attack_by_reference, expected_forwards
from dkl.attacks.turns import in_turns
from dkl.documents import ThreatModel
from dkl.protocols import Protocol
from dkl.suites import AUTOATTACK
from dkl.verify import verify

LINF = ThreatModel(norm="Linf", eps=0.05)
NORMS = ["Linf", "L2", "L1"]
CPU = torch.device("cpu")


def suite(*attacks, threat=LINF):
    return Protocol(dataset="npz:tiny", threat=threat, suite=list(attacks)).attacks()


def one(attack, threat=LINF):
    return suite(attack, threat=threat)[0]


ENDLESS = one({"kind": "square", "queries": 10**9})


def confident(classes=10) -> Linear:
    """Sees class 0 in every image, by a margin that no small perturbation closes."""
    weight = 0.01 * torch.randn(classes, 64, generator=torch.Generator().manual_seed(0))
    model = Linear(weight).requires_grad_(False)
    model.register_buffer("bias", torch.tensor([50.0] + [0.0] * (classes - 1)))
    model.forward = lambda x: Linear.forward(model, x) + model.bias
    return model


def images(count=5):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(
        count, dtype=torch.long
    )


def attack_on(model, attack=ENDLESS, threat=LINF, classes=10, count=5, seed=0, loan=None):
    x, y = images(count)
    return attack_by_reference(
        attack, model, x, y, threat, classes=classes, seed=seed, loan=loan or Loan(seed), at_once=len(x)
    )


def finish(run) -> Outcome:
    """The outcome, after all reports."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def notes_of(model, attack, threat=LINF):
    loan = Loan(0)
    finish(attack_on(model, attack, threat, loan=loan))
    return loan.take_notes()


# --- set up as pyautoattack sets it up ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_versions_are_those_of_autoattack(version, norm):
    model = cnn()
    reference = AutoAttack(model, norm=norm, eps=0.1, seed=5, version=version)
    attacks = AUTOATTACK[version][norm]
    # The cheapest first: ours are the same attacks in an order that wastes less.
    assert sorted(attack.kind for attack in attacks) == sorted(reference.attacks_to_run)
    for attack in attacks:
        ours = _adversary(attack, model, ThreatModel(norm=norm, eps=0.1), classes=10, seed=5, device=CPU)
        assert ours.attacks_to_run == [attack.kind]
        name = {"apgd-ce": "apgd", "apgd-dlr": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab"}.get(
            attack.kind, attack.kind
        )
        unused = {"device", "loss" if name == "apgd" else "", "n_restarts" if attack.kind == "fab-t" else ""}
        assert settings(getattr(ours, name), unused) == settings(getattr(reference, name), unused)


def settings(attack, unused):
    """What decides what the attack does; AutoAttack itself sets the `unused` ones before it runs it."""
    return {name: value for name, value in vars(attack).items() if name not in unused}


@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t"])
def test_fewer_steps_move_the_checkpoints_of_the_step_size(kind):
    adversary = _adversary(one({"kind": kind, "steps": 50}), cnn(), LINF, classes=10, seed=0, device=CPU)
    apgd = adversary.apgd if kind == "apgd-ce" else adversary.apgd_targeted
    assert (apgd.n_iter, apgd.n_iter_orig, apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr) == (50, 50, 11, 3, 1)


@pytest.mark.parametrize("kind", ["apgd-t", "fab-t"])
def test_there_are_no_more_targets_than_wrong_classes(kind):
    adversary = _adversary(one({"kind": kind}), cnn(), LINF, classes=5, seed=0, device=CPU)
    attack = adversary.apgd_targeted if kind == "apgd-t" else adversary.fab
    assert attack.n_target_classes == 4
    loan = Loan(0)
    finish(attack_on(confident(5), one({"kind": kind, "steps": 2}), classes=5, loan=loan))
    assert loan.take_notes() == []


# --- counted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "attack",
    [
        *quick_suite(steps=4, targets=3, queries=20, restarts=2),
        {"kind": "apgd-ce", "steps": 3, "eot": 4},
        {"kind": "apgd-t", "steps": 3, "targets": 9},
        {"kind": "square", "queries": 7, "restarts": 3},
    ],
    ids=lambda attack: "-".join(map(str, attack.values())),
)
def test_what_stands_costs_what_was_expected(norm, attack):
    attack = one(attack)
    outcome = finish(attack_on(confident(5), attack, ThreatModel(norm=norm, eps=0.05), classes=5))
    assert not outcome.broken.any()
    assert outcome.forwards.tolist() == 5 * [expected_forwards(attack, classes=5)]


@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t"])
def test_the_schedule_of_radii_costs_what_was_expected(kind):
    threat = ThreatModel(norm="L1", eps=0.5)
    attack = one({"kind": kind, "steps": 10, "restarts": 2, "large_eps": True}, threat)
    outcome = finish(attack_on(confident(), attack, threat))
    assert outcome.forwards.tolist() == 5 * [expected_forwards(attack, classes=10)]


def test_the_published_costs():
    """Forward passes per image that stands, counted in pyautoattack 0.2.0, and 9 of its own checks each."""
    costs = [expected_forwards(attack, classes=10) - 9 for attack in AUTOATTACK["standard"]["Linf"]]
    assert costs == [102, 919, 1828, 5003]


# --- confirmed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_what_falls_is_adversarial_and_the_rest_is_unknown(norm):
    model = cnn()
    x, _ = images(12)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    threat = ThreatModel(norm=norm, eps={"Linf": 0.012, "L2": 0.12, "L1": 0.7}[norm])
    attack = one({"kind": "apgd-ce", "steps": 10}, threat)
    outcome = finish(
        attack_by_reference(attack, model, x, y, threat, classes=10, seed=0, loan=Loan(0), at_once=len(x))
    )
    assert 1 <= outcome.broken.sum() <= 11
    assert torch.equal(outcome.broken, verify(model, x, outcome.x_adv, y, threat).broken)
    for unknown in (outcome.restart, outcome.target, outcome.step):
        assert (unknown == -1).all()
    assert outcome.margin.isposinf().all()
    assert outcome.rejected == 0
    assert outcome.finite


class Fickle(nn.Module):
    """Everything but the clean images is class 1, until it has been asked `limit` times."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        clean = (x.flatten(1)[:, None] == images()[0].flatten(1)).all(dim=2).any(dim=1)
        right = clean | (self.calls > self.limit)
        return torch.stack((right.float(), 1 - right.float(), *torch.zeros(8, len(x))), dim=1) + 0 * x.sum()


def test_what_the_verifier_does_not_see_is_not_broken():
    attack = one({"kind": "square", "queries": 3})
    model = Fickle(10**9)
    assert finish(attack_on(model, attack)).broken.all()
    outcome = finish(attack_on(Fickle(model.calls - 1), attack))  # the verifier asks last
    assert not outcome.broken.any()
    assert (outcome.rejected, outcome.inadmissible) == (5, 0)


# --- stopped -----------------------------------------------------------------------------------------------


def test_closing_ends_a_long_attack_within_a_second_or_two():
    threads = threading.active_count()
    run = attack_on(confident())
    reports = [next(run) for _ in range(3)]
    assert reports == sorted(reports)
    assert reports[0] > 0
    started = time.monotonic()
    run.close()
    assert time.monotonic() - started < 2
    assert threading.active_count() == threads


def test_dropping_it_ends_it_too():
    threads = threading.active_count()
    run = attack_on(confident())
    next(run)
    del run
    assert threading.active_count() == threads


def test_reports_flow_several_times_per_second():
    started = time.monotonic()
    with closing(attack_on(confident())) as run:
        for _ in range(4):
            next(run)
    assert 0.9 < time.monotonic() - started < 3


def test_an_interrupted_wait_ends_the_computation_before_its_loan_ends():
    events = []

    class Loaned:
        def __enter__(self):
            events.append("lent")

        def __exit__(self, *_):
            events.append("returned")

    def compute(pause):
        try:
            while True:
                pause()
                if len(events) == 3:  # second turn
                    raise KeyboardInterrupt
        finally:
            events.append("over")

    with pytest.raises(KeyboardInterrupt):
        list(in_turns(compute, Loaned))
    assert events == ["lent", "returned", "lent", "over", "returned"]


def test_an_error_of_the_model_arrives():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such layer")

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="no such layer"):
        finish(attack_on(Broken()))
    assert threading.active_count() == threads


# --- no trace ----------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Draws random numbers and warns whenever it is asked."""

    def forward(self, x):
        warnings.warn("restless", UserWarning, stacklevel=1)
        return confident()(x) + 0.1 * torch.rand(len(x), 10)


@pytest.mark.parametrize("model", [Restless(), confident()], ids=["random", "fixed"])
def test_the_random_generator_stays_the_callers(model):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with closing(attack_on(model)) as run:
        for _ in range(2):
            next(run)
            assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_random_numbers_do_not_reach_the_attack(monkeypatch):
    monkeypatch.setattr("dkl.attacks.turns.SECONDS_PER_TURN", 0.01)  # else a fast machine has one turn only
    attack = one({"kind": "square", "queries": 1200})
    seen = []
    for disturb in (lambda: None, lambda: torch.manual_seed(0)):
        model = Recording()
        reports = [disturb() for _ in attack_on(model, attack)]
        assert len(reports) > 1
        seen.append(model.pixels)
    assert seen[0] == seen[1]


class Recording(nn.Module):
    """Adds up every pixel that it is shown."""

    pixels = 0.0

    def forward(self, x):
        self.pixels += x.double().sum().item()
        return confident()(x)


def test_the_callers_tracer_stays():
    def tracer(*_):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        finish(attack_on(confident(), one({"kind": "apgd-ce", "steps": 2})))
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_it_runs_where_gradients_are_off():
    with torch.no_grad():
        outcome = finish(attack_on(confident(), one({"kind": "apgd-ce", "steps": 2})))
        assert not torch.is_grad_enabled()
    assert (outcome.forwards > 0).all()
    assert (outcome.backwards > 0).all()


def test_warnings_are_collected_and_go_nowhere_else(caplog, capfd):
    class Softmax(nn.Module):
        def forward(self, x):
            return confident()(x).softmax(dim=1)

    logger = logging.getLogger("auto-attack")
    before = (logger.level, list(logger.filters), list(warnings.filters))
    [note] = notes_of(Softmax(), one({"kind": "apgd-ce", "steps": 1}))
    assert note.startswith("it seems that the output is a probability distribution, please be sure")
    notes = notes_of(Restless(), one({"kind": "apgd-ce", "steps": 1}))
    assert any("randomized defense" in note for note in notes)
    assert "restless" in notes
    assert len(set(notes)) == len(notes)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert (logger.level, list(logger.filters), list(warnings.filters)) == before


def test_randomness_is_no_news_to_an_attack_that_averages_over_it():
    notes = notes_of(Restless(), one({"kind": "apgd-ce", "steps": 1, "eot": 2}))
    assert not any("randomized" in note for note in notes)


def test_a_dynamic_model_does_not_mark_the_next_one():
    class Dynamic(nn.Module):
        def forward(self, x):
            return self.grad(x)

        def grad(self, x):
            return confident()(x)

    attack = one({"kind": "apgd-ce", "steps": 1})
    assert "dynamic defense" in " ".join(notes_of(Dynamic(), attack))
    assert notes_of(confident(), attack) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_logits_are_said_stop_nothing_and_break_nothing(norm, kind):
    class Nan(nn.Module):
        """Not a number off the clean images."""

        def forward(self, x):
            clean = (x.flatten(1)[:, None] == images()[0].flatten(1)).all(dim=2).any(dim=1)
            return torch.where(clean[:, None], confident()(x), torch.nan)

    quick = {"square": {"queries": 20}}.get(kind, {"steps": 3})
    outcome = finish(attack_on(Nan(), one({"kind": kind, **quick}), ThreatModel(norm=norm, eps=0.5)))
    assert not outcome.finite
    assert not outcome.broken.any()


# --- the loan of our own attacks ---------------------------------------------------------------------------


def test_by_turns_hands_on_and_returns():
    def work():
        for number in range(5):
            yield number
            time.sleep(0.1)
        return "done"

    seen = []

    def told():
        seen.append((yield from by_turns(work(), Loan(0))))

    reports = list(told())
    assert seen == ["done"]
    assert reports == sorted(reports)
    assert 1 <= len(reports) < 5  # several in a turn, the latest is told


def test_by_turns_lends_random_numbers_and_takes_warnings():
    def work(draws):
        while True:
            warnings.warn("restless", UserWarning, stacklevel=1)
            draws.append(torch.rand(1).item())
            time.sleep(0.05)
            yield len(draws)

    torch.manual_seed(7)
    state, filters = torch.get_rng_state(), list(warnings.filters)
    seen = []
    for disturb in (lambda: None, lambda: torch.rand(3)):
        draws = []
        loan = Loan(11)
        with closing(by_turns(work(draws), loan)) as turns:
            for _ in range(2):
                before = torch.get_rng_state()
                next(turns)
                assert torch.equal(torch.get_rng_state(), before)
                assert list(warnings.filters) == filters
                disturb()
        assert loan.take_notes() == ["restless"]
        assert loan.take_notes() == []
        seen.append(draws[:8])
    assert seen[0][:6] == seen[1][:6]
    assert len(set(seen[0])) == len(seen[0])
    torch.set_rng_state(state)


def test_closing_by_turns_closes_the_work():
    closed = []

    def work():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    turns = by_turns(work(), Loan(0))
    next(turns)
    turns.close()
    assert closed == [True]


def test_an_error_of_the_work_arrives_and_everything_is_given_back():
    def work():
        yield 0
        raise RuntimeError("no such layer")

    state, filters = torch.get_rng_state(), list(warnings.filters)
    with pytest.raises(RuntimeError, match="no such layer"):
        list(by_turns(work(), Loan(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(warnings.filters) == filters
