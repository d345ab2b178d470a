"""One attack: set up as pyautoattack sets it up, counted exactly, stopped at once, and leaving no trace."""

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

from dkl.attacks.autoattack import _adversary, expected_forwards, require_possible, run_attack
from dkl.attacks.loan import Loan
from dkl.attacks.turns import in_turns
from dkl.recipes import AUTOATTACK, Protocol, ThreatModel

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


def attack_on(model, attack=ENDLESS, threat=LINF, classes=10, count=5, seed=0, labels=None):
    x, y = images(count)
    return run_attack(
        attack,
        model,
        x,
        y if labels is None else labels,
        threat,
        classes=classes,
        seed=seed,
        loan=Loan(seed),
        report=lambda forwards, seconds: (forwards, seconds),
    )


def finish(run):
    """The claims, after all reports."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


# --- set up as pyautoattack sets it up ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_versions_are_those_of_autoattack(version, norm):
    model = cnn()
    reference = AutoAttack(model, norm=norm, eps=0.1, seed=5, version=version)
    attacks = AUTOATTACK[version][norm]
    assert [attack.kind for attack in attacks] == reference.attacks_to_run
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
    assert finish(attack_on(confident(5), one({"kind": kind, "steps": 2}), classes=5)).warnings == ()


# --- what is not possible ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apgd-dlr", "apgd-t"])
def test_three_classes_are_too_few_for_dlr(kind):
    with pytest.raises(
        ValueError, match="3 classes: the targeted DLR loss needs at least 4; use a suite of apgd-ce"
    ):
        require_possible(suite({"kind": "fab"}, {"kind": kind}), LINF, classes=3, height=8, width=8)
    require_possible(suite({"kind": kind}), LINF, classes=4, height=8, width=8)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_square_needs_a_few_pixels(norm):
    with pytest.raises(
        ValueError, match=f"square under {norm} needs images of at least 5 x 5 pixels, found 4 x 8"
    ):
        require_possible(suite({"kind": "square"}), ThreatModel(norm=norm, eps=1.0), classes=10, height=4, width=8)


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
    claims = finish(attack_on(confident(5), attack, ThreatModel(norm=norm, eps=0.05), classes=5))
    assert not claims.claimed.any()
    assert claims.forwards == 5 * expected_forwards(attack, classes=5)


@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t"])
def test_the_schedule_of_radii_costs_what_was_expected(kind):
    threat = ThreatModel(norm="L1", eps=0.5)
    attack = one({"kind": kind, "steps": 10, "restarts": 2, "large_eps": True}, threat)
    claims = finish(attack_on(confident(), attack, threat))
    assert claims.forwards == 5 * expected_forwards(attack, classes=10)


def test_the_published_costs():
    """Forward passes per image that stands, counted in pyautoattack 0.2.0, and 9 of its own checks each."""
    costs = [expected_forwards(attack, classes=10) - 9 for attack in AUTOATTACK["standard"]["Linf"]]
    assert costs == [102, 919, 1828, 5003]


# --- stopped -----------------------------------------------------------------------------------------------


def test_closing_ends_a_long_attack_within_a_second_or_two():
    threads = threading.active_count()
    run = attack_on(confident())
    reports = [next(run) for _ in range(3)]
    assert reports == sorted(reports)
    assert reports[0][0] > 0
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


def test_pauses_are_not_counted_as_time():
    with closing(attack_on(confident())) as run:
        _, before = next(run)
        time.sleep(1)
        _, after = next(run)
    assert after - before < 0.9


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


def test_the_callers_random_numbers_do_not_reach_the_attack():
    attack = one({"kind": "square", "queries": 3000})
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
        claims = finish(attack_on(confident(), one({"kind": "apgd-ce", "steps": 2})))
        assert not torch.is_grad_enabled()
    assert claims.forwards > 0


def test_warnings_are_collected_and_go_nowhere_else(caplog, capfd):
    class Softmax(nn.Module):
        def forward(self, x):
            return confident()(x).softmax(dim=1)

    logger = logging.getLogger("auto-attack")
    before = (logger.level, list(logger.filters), list(warnings.filters))
    claims = finish(attack_on(Softmax(), one({"kind": "apgd-ce", "steps": 1})))
    [warning] = claims.warnings
    assert warning.startswith("apgd-ce: it seems that the output is a probability distribution, please be sure")
    claims = finish(attack_on(Restless(), one({"kind": "apgd-ce", "steps": 1})))
    assert any("randomized defense" in warning for warning in claims.warnings)
    assert "apgd-ce: restless" in claims.warnings
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert (logger.level, list(logger.filters), list(warnings.filters)) == before


def test_randomness_is_no_news_to_an_attack_that_averages_over_it():
    claims = finish(attack_on(Restless(), one({"kind": "apgd-ce", "steps": 1, "eot": 2})))
    assert not any("randomized" in warning for warning in claims.warnings)


def test_a_dynamic_model_does_not_mark_the_next_one():
    class Dynamic(nn.Module):
        def forward(self, x):
            return self.grad(x)

        def grad(self, x):
            return confident()(x)

    attack = one({"kind": "apgd-ce", "steps": 1})
    assert "dynamic defense" in " ".join(finish(attack_on(Dynamic(), attack)).warnings)
    assert finish(attack_on(confident(), attack)).warnings == ()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_logits_are_said_and_stop_nothing(norm, kind):
    class Nan(nn.Module):
        """Not a number off the clean images."""

        def forward(self, x):
            clean = (x.flatten(1)[:, None] == images()[0].flatten(1)).all(dim=2).any(dim=1)
            return torch.where(clean[:, None], confident()(x), torch.nan)

    quick = {"square": {"queries": 20}}.get(kind, {"steps": 3})
    claims = finish(attack_on(Nan(), one({"kind": kind, **quick}), ThreatModel(norm=norm, eps=0.5)))
    assert f"{kind}: some logits were not finite numbers, so the attack may have missed" in claims.warnings[-1]
