"""Evaluation: verdicts as in closed form and of pyautoattack, a verifier that believes nothing, and resuming."""

import hashlib
import math
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import wait_until
from pyautoattack import AutoAttack
from torch import nn
from trials import (
    KINDS,
    SHA256,
    Linear,
    batches,
    cnn,
    evaluation,
    judge,
    left,
    left_by_pyautoattack,
    loaded,
    quick_suite,
    result,
    write_images,
)

from dkl.attacks.hunt import passes
from dkl.attacks.looks import Look
from dkl.bench import batch_seed
from dkl.datasets import DatasetError, load
from dkl.evaluate import evaluate
from dkl.events import Progress
from dkl.evidence import read_evidence
from dkl.feasible import adaptations
from dkl.flags import Flags, pack
from dkl.intervals import wilson_interval
from dkl.protocols import Policy
from dkl.reverify import verify_evidence
from dkl.suites import AUTOATTACK
from dkl.weights import LoadedModel

EFFORT = {"steps": 6, "targets": 3, "queries": 60, "restarts": 2}
SUITE = quick_suite(steps=4, targets=2, queries=30)
NORMS = [("Linf", 0.01), ("L2", 0.12), ("L1", 0.6)]
ONE_ATTACK = [{"kind": "apgd-ce", "steps": 3}]


@pytest.fixture(autouse=True)
def no_16_bits(monkeypatch):
    """So that a processor with bfloat16 does not change what these tests see; test_policies.py turns it on."""
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "float32")


def progress(events):
    return [event for event in events if isinstance(event, Progress)]


# --- the verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_reference_engine_gives_the_verdicts_of_pyautoattack_called_directly(norm, eps, tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 24)
    suite = quick_suite(**EFFORT)
    recipe = evaluation(norm, eps, suite=suite, engine="pyautoattack", chunk_size=16, seed=3)
    events = judge(recipe, model, tmp_path)
    expected = left_by_pyautoattack(model, recipe, x, y, **EFFORT)
    assert [left(events, kind) for kind in KINDS] == expected
    assert 4 <= len(expected[-1]) <= 20  # there was something to find, and something to miss
    assert result(events).engine == "pyautoattack 0.2.0"
    assert result(events).rejected == 0


class Steady(Linear):
    """Adds up each image by itself, so that its logits have the same bits in every batch."""

    def forward(self, x):
        return ((x.flatten(1) - 0.5)[:, None] * self.weight).sum(dim=2)


def linear(classes=5, seed=0):
    return Steady(torch.randn(classes, 64, generator=torch.Generator().manual_seed(seed)))


def nearest_border(model, x, y, dual):
    """Distance of each image to the nearest other class: min_k (z_y - z_k) / ||w_y - w_k||_dual."""
    logits = model(x).double()
    gaps = logits.gather(1, y[:, None]) - logits
    widths = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, dual, dim=2).double()
    own = nn.functional.one_hot(y, logits.shape[1]).bool()
    return (gaps / widths).masked_fill(own, float("inf")).min(dim=1).values


@torch.no_grad()
def write_decided(data_dir, model, norm, count=120, *, width=0.03):
    """Grey images whose distance to the border is known and not near eps, the median; eps and who stands."""
    images = torch.randint(
        110, 146, (count, 8, 8, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )  # far from 0 and 1
    x = images.permute(0, 3, 1, 2).float() / 255
    y = model(x).argmax(dim=1)
    distance = nearest_border(model, x, y, {"Linf": 1, "L2": 2, "L1": float("inf")}[norm])
    eps = distance.median().item()
    decided = (distance / eps - 1).abs() > width  # L1 APGD comes near the border, not to it
    np.savez(data_dir / "tiny_test.npz", image=images[decided].numpy(), label=y[decided].numpy())
    return eps, (distance[decided] > eps).nonzero().squeeze(1).tolist()


LINEAR_SUITE = [{"kind": "apgd-ce"}, {"kind": "apgd-t"}, {"kind": "fab-t", "steps": 20}]


@pytest.mark.parametrize("policy", ["exact", "fast", "audited", "screen"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_linear_model_has_the_verdicts_of_the_closed_form(norm, policy: Policy, tmp_path):
    model = linear()
    eps, robust = write_decided(tmp_path, model, norm, width=0.15 if policy == "screen" else 0.03)
    events = judge(evaluation(norm, eps, suite=LINEAR_SUITE, policy=policy), model, tmp_path, classes=5)
    assert left(events) == robust
    outcome = result(events)
    assert outcome.clean_accuracy == 1.0
    assert outcome.robust_accuracy == len(robust) / outcome.images
    assert 0.3 < outcome.robust_accuracy < 0.7


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_few_classes_are_enough_and_said(norm, classes, tmp_path):
    model = linear(classes)
    eps, robust = write_decided(tmp_path, model, norm, count=40)
    suite = [
        {"kind": "apgd-t"},
        {"kind": "apgd-dlr", "steps": 20},
        {"kind": "fab-t", "steps": 5},
        {"kind": "square", "queries": 5},
    ]
    events = judge(evaluation(norm, eps, suite=suite), model, tmp_path, classes=classes)
    assert left(events) == robust
    assert batches(events)[1].name == "apgd-t"
    assert list(result(events).notes) == adaptations(evaluation(suite=suite).attacks(), classes)
    assert len(result(events).class_robust_accuracy) == classes


def test_what_is_said_about_few_classes():
    standard, plus = AUTOATTACK["standard"]["Linf"], AUTOATTACK["plus"]["Linf"]
    assert adaptations(standard, 10) == []
    assert adaptations(standard, 9) == ["with 9 classes apgd-t and fab-t aim at all 8 wrong ones"]
    assert adaptations(AUTOATTACK["standard"]["L1"], 9) == ["with 9 classes fab-t aim at all 8 wrong ones"]
    two = adaptations(plus, 2)
    assert two[0] == "with 2 classes apgd-t and fab-t aim at the wrong one"
    assert two[1].startswith("the DLR loss of apgd-dlr and apgd-t is adapted to 2 classes")
    assert adaptations(plus, 4) == ["with 4 classes apgd-t and fab-t aim at all 3 wrong ones"]


def test_the_published_versions_adapt_to_few_classes(tmp_path):
    model = linear(3)
    x, y = write_images(tmp_path, model, 5)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    np.savez(tmp_path / "tiny_test.npz", image=images, label=(y.numpy() + 1) % 3)  # nothing is left to attack
    recipe = evaluation("L1", 1.0)
    assert result(judge(recipe, model, tmp_path, classes=3)).notes == tuple(adaptations(recipe.attacks(), 3))


def test_wrong_images_are_not_attacked(tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 6)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    wrong = np.array([0, 1, 0, 0, 1, 1])
    np.savez(tmp_path / "tiny_test.npz", image=images, label=(y.numpy() + wrong) % 10)
    events = judge(evaluation(eps=0.001, suite=ONE_ATTACK), model, tmp_path)
    clean, attack = batches(events)
    assert clean.standing == "101100"
    assert attack.images == (0, 2, 3)
    assert result(events).stages[1].attacked == 3
    np.savez(tmp_path / "tiny_test.npz", image=images, label=(y.numpy() + 1) % 10)
    events = judge(evaluation(eps=0.001, suite=SUITE), model, tmp_path, tmp_path / "all wrong")
    assert [batch.standing for batch in batches(events)] == ["000000"]
    assert [stage.attacked for stage in result(events).stages] == [6] + [0] * 6
    assert result(events).robust_accuracy == 0.0


def test_forward_and_backward_passes_are_counted(tmp_path):
    model = linear()
    write_decided(tmp_path, model, "Linf")
    suite = [*quick_suite(steps=5, targets=3, queries=7, restarts=2), {"kind": "apgd-ce", "steps": 5, "eot": 3}]
    recipe = evaluation(eps=1e-6, suite=suite, images=10)
    events = judge(recipe, model, tmp_path, classes=5)
    expected = [10 * passes(attack, 5) for attack in recipe.attacks()]
    assert [batch.forwards for batch in batches(events)] == [10, *expected]
    backwards = [2 * 5, 2 * 5, 2 * 5 * 5, 2 * 3 * 5, 3 * 5, 0, 3 * 5]  # FAB needs one per class and step
    assert [batch.backwards for batch in batches(events)][1:] == [10 * count for count in backwards]
    assert result(events).forwards == 10 + sum(expected)


# --- nothing depends on what else is in the batch ----------------------------------------------------------


@pytest.mark.parametrize("policy", ["exact", "audited"])
def test_the_batch_size_changes_nothing(policy, tmp_path):
    model = linear(10)
    eps, _ = write_decided(tmp_path, model, "Linf", count=16)
    records, said = [], []
    for chunk_size in (1, 7, 100):
        suite = quick_suite(steps=5, targets=3, queries=20)
        recipe = evaluation(eps=eps, suite=suite, chunk_size=chunk_size, policy=policy, curve=[eps / 2])
        events = judge(recipe, model, tmp_path, tmp_path / str(chunk_size))
        records.append(read_evidence(tmp_path / str(chunk_size) / "evidence.safetensors"))
        said.append(result(events).model_dump(exclude={"evidence_sha256", "seconds", "stages", "provenance"}))
    for record in records[1:]:
        for name in vars(record).keys() - {"about"}:
            np.testing.assert_array_equal(getattr(record, name), getattr(records[0], name), name)
        assert record.about.stages == records[0].about.stages
    assert said[0] == said[1] == said[2]
    assert {-1, 0, 1} == set(records[0].broken_at)


def test_the_batch_size_changes_no_verdict_of_a_network(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 12)
    stood = [
        left(judge(evaluation(eps=0.01, suite=SUITE, chunk_size=size), model, tmp_path, tmp_path / str(size)))
        for size in (1, 5, 12)
    ]
    assert stood[0] == stood[1] == stood[2]
    assert 2 <= len(stood[0]) <= 10


def test_a_random_sample_is_seeded_and_each_image_has_the_verdict_it_has_among_all(tmp_path):
    model = linear(10)
    eps, _ = write_decided(tmp_path, model, "Linf", count=45)
    whole = judge(evaluation(eps=eps, suite=SUITE, seed=4, images=40), model, tmp_path)
    recipe = evaluation(eps=eps, suite=SUITE, seed=4, images=15, sample="random")
    events = judge(recipe, model, tmp_path, tmp_path / "sample")
    drawn = batches(events)[0].images
    assert len(set(drawn)) == 15
    assert list(drawn) == sorted(drawn)
    records = [read_evidence(tmp_path / folder / "evidence.safetensors") for folder in ("work", "sample")]
    both, at = np.intersect1d(records[0].images, records[1].images), {}
    assert 10 < len(both) < 15
    for place, evidence in enumerate(records):
        at[place] = np.searchsorted(evidence.images, both)
    for name in ("broken_at", "stage", "restart", "target", "step", "margin"):
        one, other = (getattr(evidence, name)[at[place]] for place, evidence in enumerate(records))
        np.testing.assert_array_equal(one, other, name)
    assert 2 < len(set(left(whole)) & set(both)) < len(both) - 2
    assert result(events).robust_interval == wilson_interval(len(left(events)), 15)
    other = evaluation(eps=0.01, suite=ONE_ATTACK, seed=5, images=15, sample="random")
    assert batches(judge(other, model, tmp_path, tmp_path / "other"))[0].images != drawn
    first = evaluation(eps=0.01, suite=ONE_ATTACK, images=15)
    assert batches(judge(first, model, tmp_path, tmp_path / "first"))[0].images == tuple(range(15))


# --- the curve ---------------------------------------------------------------------------------------------


def test_a_curve_shares_work_and_agrees_with_single_radii(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 30)
    radii = [0.002, 0.006, 0.012, 0.05]
    events = judge(evaluation(eps=0.006, suite=SUITE, chunk_size=16, curve=[0.05, 0.002, 0.012]), model, tmp_path)
    outcome, record = result(events), read_evidence(tmp_path / "work" / "evidence.safetensors")
    assert [point.eps for point in outcome.curve] == radii
    accuracies = [point.robust_accuracy for point in outcome.curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(set(accuracies)) == 4
    assert outcome.robust_accuracy == accuracies[1]
    assert outcome.robust_interval == outcome.curve[1].robust_interval
    attacked = {eps: set() for eps in radii}
    for batch in batches(events)[2:]:
        attacked[batch.eps] |= set(batch.images)
    for radius, eps in enumerate(radii):
        alone = left(judge(evaluation(eps=eps, suite=SUITE), model, tmp_path, tmp_path / str(eps)))
        stands = record.standing(radius)
        # Broken here is broken alone or at a smaller radius, which implies it.
        assert set(np.flatnonzero(stands)) <= set(alone)
        assert accuracies[radius] >= (len(alone) - 1) / 30
        if radius:
            assert not attacked[eps] & set(np.flatnonzero(~record.standing(radius - 1)))


# --- stopping early ----------------------------------------------------------------------------------------


def test_it_stops_as_soon_as_it_is_certain_to_be_below(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 30)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=4, stop_below=0.85)
    events = judge(recipe, model, tmp_path)
    attacked = [batch for batch in batches(events) if batch.stage]
    assert {batch.name for batch in attacked} == {"apgd-ce"}
    assert 1 < len(attacked) < attacked[0].batches
    fallen = [sum(batch.standing.count("0") for batch in attacked[:count]) for count in range(len(attacked) + 1)]
    assert fallen[-2] <= 4 < fallen[-1]  # 25 of 30 is less than 0.85, 26 of 30 is not
    outcome = result(events)
    assert outcome.stopped_early
    assert outcome.robust_accuracy == (30 - fallen[-1]) / 30
    assert outcome.stages[-1].name == "apgd-ce"
    assert progress(events)[-1].done == progress(events)[-1].total
    read_evidence(tmp_path / "work" / "evidence.safetensors")


def test_it_stops_before_any_attack_if_the_clean_accuracy_is_below(tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 10)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    np.savez(tmp_path / "tiny_test.npz", image=images, label=np.where(np.arange(10) < 6, 9 - y.numpy(), y.numpy()))
    outcome = result(judge(evaluation(suite=SUITE, stop_below=0.6, chunk_size=3), model, tmp_path))
    assert outcome.stopped_early
    assert [stage.name for stage in outcome.stages] == ["clean"]
    assert outcome.robust_accuracy == outcome.clean_accuracy < 0.6


def test_what_went_through_to_the_end_did_not_stop_early(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    whole = result(judge(evaluation(eps=0.01, suite=SUITE), model, tmp_path))
    limit = whole.robust_accuracy
    exactly = evaluation(eps=0.01, suite=SUITE, stop_below=limit)
    assert not result(judge(exactly, model, tmp_path, tmp_path / "exactly")).stopped_early
    # The last batch of the last stage makes it certain, and nothing is left to save.
    one = evaluation(eps=0.05, suite=[{"kind": "apgd-ce", "steps": 20}], stop_below=1.0)
    assert not result(judge(one, model, tmp_path, tmp_path / "one")).stopped_early


def test_a_curve_stops_for_the_radius_that_was_asked_about(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    more = evaluation(eps=0.002, suite=SUITE, curve=[0.05], stop_below=0.3)
    outcome = result(judge(more, model, tmp_path))  # below at 0.05 alone
    assert not outcome.stopped_early
    assert outcome.curve[1].robust_accuracy < 0.3 < outcome.robust_accuracy
    less = evaluation(eps=0.05, suite=SUITE, curve=[0.02], stop_below=0.9)
    outcome = result(judge(less, model, tmp_path, tmp_path / "less"))  # an image broken at 0.02 is broken at 0.05
    assert outcome.stopped_early
    assert [point.eps for point in outcome.curve] == [0.02]


# --- the verifier ------------------------------------------------------------------------------------------


def far(x):
    return (x + 0.5).clamp(0, 1)


def nan(x):
    return torch.full_like(x, torch.nan)


def nothing(x):
    return x


def beyond(x):
    return x - 2.0


CHEATS = [far, nan, nothing, beyond]


def assert_refused(events, about):
    assert [batch.standing for batch in batches(events)] == ["111111", "111111"]
    assert result(events).robust_accuracy == 1.0
    assert result(events).rejected == 6
    assert any(
        warning.startswith("apgd-ce: the verifier refused 6 images that the search took for broken")
        for warning in result(events).warnings
    ), about


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_reference_that_cheats_breaks_nothing(cheat, tmp_path, monkeypatch):
    def lie(_self, x, y, *, batch_size):
        return cheat(x), (y + 1) % 10

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", lie)
    model = cnn()
    write_images(tmp_path, model, 6)
    recipe = evaluation(suite=ONE_ATTACK, engine="pyautoattack")
    assert_refused(judge(recipe, model, tmp_path), cheat)


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_attack_of_ours_that_cheats_breaks_nothing(cheat, tmp_path, monkeypatch):
    def lie(_search, _loss, x, y, _aim, **_):
        yield Look(cheat(x), torch.full_like(x[:, 0], -1.0), 0)
        yield Look(cheat(x), torch.full_like(x[:, 0], -1.0), 1)

    monkeypatch.setattr("dkl.attacks.hunt.apgd", lie)
    model = cnn()
    write_images(tmp_path, model, 6)
    assert_refused(judge(evaluation(suite=ONE_ATTACK), model, tmp_path), cheat)


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_in_16_bits_is_not_taken_for_rounding(cheat, tmp_path, monkeypatch):
    def lie(search, _loss, x, y, _aim, **_):
        if search.precision == "bfloat16":
            yield Look(cheat(x), torch.full_like(x[:, 0], -1.0), 0)

    monkeypatch.setattr("dkl.attacks.hunt.apgd", lie)
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "bfloat16")
    model = cnn()
    write_images(tmp_path, model, 6)
    outcome = result(judge(evaluation(suite=ONE_ATTACK, policy="fast"), model, tmp_path))
    assert (outcome.robust_accuracy, outcome.rejected) == (1.0, 6)
    outside = "apgd-ce: the verifier refused 6 images that the search took for broken: outside the ball"
    assert any(warning.startswith(outside) for warning in outcome.warnings) == (cheat is not nothing)
    unseen = "the verifier refused images that the bfloat16 search at radius"
    assert any(warning.startswith(unseen) and "5 of them met no attack" in warning for warning in outcome.warnings)


class Reversed(nn.Module):
    def forward(self, x):
        return -cnn()(x)


class TwoFaced(nn.Module):
    """Its copy, which attacks search with, sees everything the other way round."""

    def __init__(self):
        super().__init__()
        self.inner = cnn()

    def forward(self, x):
        return self.inner(x)

    def __deepcopy__(self, memo):
        return Reversed()


def test_a_search_model_that_is_wrong_breaks_nothing(tmp_path):
    write_images(tmp_path, cnn(), 6)
    assert_refused(judge(evaluation(eps=1e-6, suite=ONE_ATTACK), TwoFaced(), tmp_path), "a copy that lies")


class NanOffTheGrid(nn.Module):
    """Whatever is no image of 8-bit pixels gives NaN; images with a white first pixel too."""

    def __init__(self):
        super().__init__()
        self.inner = cnn()

    def forward(self, x):
        off_grid = ((x * 255).round() / 255 - x).abs().flatten(1).amax(dim=1) > 1e-6
        return torch.where((off_grid | (x[:, 0, 0, 0] == 1))[:, None], torch.nan, self.inner(x))


@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
def test_nan_logits_are_no_misclassification(engine, tmp_path):
    write_images(tmp_path, cnn(), 8)
    outcome = result(judge(evaluation(suite=ONE_ATTACK, engine=engine), NanOffTheGrid(), tmp_path))
    assert outcome.robust_accuracy == outcome.clean_accuracy == 1.0
    said = "apgd-ce: some logits were not finite numbers, so the attack may have missed adversarial images"
    assert said in outcome.warnings


def test_nan_logits_are_no_correct_answer(tmp_path):
    x, y = write_images(tmp_path, cnn(), 8)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    images[2:4, 0, 0, 0] = 255
    labels = np.where(np.isin(np.arange(8), (2, 3)), 0, y.numpy())  # the argmax of NaN is 0
    np.savez(tmp_path / "tiny_test.npz", image=images, label=labels)
    outcome = result(judge(evaluation(suite=ONE_ATTACK), NanOffTheGrid(), tmp_path))
    assert outcome.clean_accuracy == 6 / 8
    assert "clean: 2 images have logits that are not finite, and count as wrong" in outcome.warnings


class NanNearWhite(NanOffTheGrid):
    """NaN only off the grid and only where the first pixel is bright."""

    def forward(self, x):
        logits = super().forward(x)
        return torch.where((x[:, 0, 0, 0] > 0.5)[:, None], logits, self.inner(x))


def test_a_batch_is_not_blamed_for_the_nan_of_another(tmp_path):
    x, y = write_images(tmp_path, cnn(), 6)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    images[:, 0, 0, 0] = [200, 200, 50, 50, 200, 50]
    with torch.no_grad():
        y = cnn()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(dim=1)
    np.savez(tmp_path / "tiny_test.npz", image=images, label=y.numpy())
    events = judge(evaluation(eps=1e-3, suite=ONE_ATTACK, chunk_size=2), NanNearWhite(), tmp_path)
    not_finite = [any("not finite" in note for note in batch.warnings) for batch in batches(events)]
    assert not_finite == [False, False, False, True, False, True]


# --- the evidence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_evidence_is_proved_and_says_what_the_result_says(norm, eps, engine, tmp_path):
    model = cnn()
    write_images(tmp_path, model, 24)
    arrays = load("npz:tiny", "test", tmp_path)
    labels = (arrays.labels + (np.arange(24) % 8 == 0)) % 10  # three are wrong
    np.savez(tmp_path / "tiny_test.npz", image=arrays.images, label=labels)
    recipe = evaluation(norm, eps, suite=SUITE, engine=engine, chunk_size=10, images=20, sample="random")
    events = judge(recipe, model, tmp_path)
    outcome, path = result(events), tmp_path / "work" / "evidence.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == outcome.evidence_sha256
    record = read_evidence(path)
    arrays = load("npz:tiny", "test", tmp_path)
    *_, report = verify_evidence(record, loaded(model), arrays, device="cpu", batch_size=7)
    assert report.ok, report.sentences
    assert report.clean_accuracy == outcome.clean_accuracy < 1
    assert report.robust_accuracy == (outcome.robust_accuracy,)
    stands = record.standing(0)
    assert record.about.format == 2  # so the report is about predictions and pictures, too
    assert (record.predicted != record.labels).sum() == 20 - record.clean_correct.sum() > 0
    assert len(set(record.predicted_adv[~stands & record.clean_correct].tolist())) > 1
    assert len(record.x_clean) == 20
    assert outcome.flags == Flags(
        data_sha256=record.about.data_sha256, clean=pack(record.clean_correct), robust=pack(stands)
    )
    assert record.images[stands].tolist() == left(events)
    assert outcome.robust_interval == wilson_interval(int(stands.sum()), 20)
    assert outcome.clean_interval == wilson_interval(int(record.clean_correct.sum()), 20)
    for flags, accuracies in (
        (record.clean_correct, outcome.class_clean_accuracy),
        (stands, outcome.class_robust_accuracy),
    ):
        expected = [flags[record.labels == k].mean() if k in record.labels else None for k in range(10)]
        assert list(accuracies) == expected
    assert [stage.name for stage in record.about.stages] == ["clean", *KINDS]
    assert record.about.engine == outcome.engine
    assert record.about.recipe == recipe.model_dump(mode="json")
    if engine == "dkl":  # who fell says to what
        fallen = record.broken_at >= 0
        assert (record.step[fallen] >= 0).all()
        assert (record.restart[fallen] >= 0).all()
        assert (record.margin[fallen] <= 0).all()
        assert (record.margin[stands] > 0).all()
        aimed = [record.about.stages[stage].name in ("apgd-t", "fab-t") for stage in record.stage[fallen]]
        assert ((record.target[fallen] >= 0) == aimed).all()


# --- the events --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
def test_progress_only_moves_forward_and_arrives(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("dkl.attacks.loan.SECONDS_PER_TURN", 0.0)  # else a fast machine has no turns
    model = cnn()
    write_images(tmp_path, model, 20)
    suite = quick_suite(steps=6, targets=3, queries=600)
    recipe = evaluation(eps=0.01, suite=suite, chunk_size=8, curve=[0.005], engine=engine)
    steps = progress(judge(recipe, model, tmp_path))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert len({step.total for step in steps}) == 1
    assert steps[-1].done == steps[-1].total
    assert steps[-2].done <= steps[-1].total * (1 + 1e-9)
    assert steps[-1].eta_seconds == 0
    assert all(step.rate > 0 for step in steps)
    assert all(math.isfinite(step.eta_seconds) and step.eta_seconds >= 0 for step in steps)
    assert steps[0].phase == "clean, batch 1 of 3"
    if engine == "dkl":  # the other one's turns may be longer than an attack
        assert any(step.phase.startswith("square, batch 1 of") for step in steps)
    assert steps[-1].phase == "done"


@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
def test_closing_ends_a_long_attack(engine, tmp_path):
    model = cnn()
    write_images(tmp_path, model, 8)
    threads = threading.active_count()
    suite = [{"kind": "square", "queries": 10**9}]
    recipe = evaluation(eps=0.0001, suite=suite, engine=engine)
    events = evaluate(recipe, loaded(model), tmp_path, device="cpu", data_dir=tmp_path)
    for event in events:
        if isinstance(event, Progress) and event.phase.startswith("square"):
            break
    started = time.monotonic()
    events.close()
    assert time.monotonic() - started < 2
    assert threading.active_count() == threads
    assert [path.name for path in tmp_path.glob("stage-*")] == ["stage-000-batch-0000.safetensors"]


class Noisy(nn.Module):
    """Draws from the process's random numbers in every forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = cnn()

    def forward(self, x):
        logits = self.inner(x)
        return logits + 0.05 * torch.randn_like(logits)


class Loud(Noisy):
    """And warns."""

    def forward(self, x):
        warnings.warn("a noisy model", stacklevel=1)
        return super().forward(x)


RANDOM_SUITE = [{"kind": "apgd-ce", "steps": 4, "eot": 3}, {"kind": "apgd-dlr", "steps": 4, "eot": 3}]


@pytest.mark.parametrize(
    ("model", "suite", "engine"),
    [(cnn, SUITE, "dkl"), (cnn, SUITE, "pyautoattack"), (Noisy, RANDOM_SUITE, "dkl"), (Loud, RANDOM_SUITE, "dkl")],
)
def test_the_caller_keeps_its_random_numbers_gradients_and_warnings(model, suite, engine, tmp_path):
    write_images(tmp_path, cnn(), 8)
    model = model()
    torch.manual_seed(5)
    state, filters = torch.get_rng_state(), list(warnings.filters)
    recipe = evaluation(eps=0.01, suite=suite, engine=engine)
    events = evaluate(recipe, loaded(model), tmp_path, device="cpu", data_dir=tmp_path)
    for _ in events:
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()
        assert warnings.filters == filters
        assert not torch.is_autocast_enabled("cpu")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_training_model_is_judged_in_eval_mode(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 8)
    checkpoint = loaded(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = result(judge(evaluation(suite=ONE_ATTACK), checkpoint, tmp_path))
    assert outcome.clean_accuracy == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_says_what_was_judged(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    checkpoint = LoadedModel(**{**vars(loaded(model)), "preprocessing": "mean 0.5", "notes": ("from a test",)})
    outcome = result(judge(evaluation(images=10, suite=ONE_ATTACK), checkpoint, tmp_path))
    assert outcome.images == 10
    assert outcome.checkpoint_sha256 == SHA256
    assert outcome.architecture == "CNN-4"
    assert outcome.engine.startswith("dkl-bench ")
    assert outcome.precision == "float32"
    assert outcome.protocol == "custom"
    assert outcome.preprocessing == "mean 0.5"
    assert outcome.notes == ("from a test",)
    assert outcome.could_still_break is None
    assert not outcome.stopped_early
    assert len(outcome.class_robust_accuracy) == 10


# --- resuming ----------------------------------------------------------------------------------------------


def test_batches_have_seeds_of_their_own():
    seeds = [batch_seed(seed, batch) for seed in (0, 1, 2**63 - 1) for batch in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert batch_seed(0, 0) == 3757552657  # kept for ever: stored verdicts depend on it


def interrupted(recipe, model, data_dir, workdir, after):
    """Closed once `after` batches are done."""
    workdir.mkdir(exist_ok=True)
    with closing(evaluate(recipe, loaded(model), workdir, device="cpu", data_dir=data_dir)) as events:
        seen = []
        for event in events:
            seen.append(event)
            if len(batches(seen)) == after:
                return batches(seen)
    raise AssertionError("it ended before")


def without_seconds(batch):
    return batch.model_copy(update={"seconds": 0.0})


@pytest.mark.parametrize(
    ("model", "suite", "engine", "policy"),
    [
        (cnn, SUITE, "dkl", "exact"),
        (cnn, SUITE, "dkl", "audited"),
        (cnn, SUITE, "pyautoattack", "exact"),
        (Noisy, RANDOM_SUITE, "dkl", "exact"),
    ],
)
@pytest.mark.parametrize("after", [1, 5])
def test_a_resumed_run_leaves_the_same_bytes(model, suite, engine, policy, after, tmp_path):
    write_images(tmp_path, cnn(), 20)
    model = model()
    recipe = evaluation(eps=0.01, suite=suite, chunk_size=6, engine=engine, policy=policy)
    whole = judge(recipe, model, tmp_path, tmp_path / "whole")
    stopped = interrupted(recipe, model, tmp_path, tmp_path / "work", after)
    resumed = judge(recipe, model, tmp_path)
    assert batches(resumed)[:after] == stopped  # told again, with their seconds: not computed again
    assert [without_seconds(batch) for batch in batches(resumed)] == [
        without_seconds(batch) for batch in batches(whole)
    ]
    assert result(resumed).evidence_sha256 == result(whole).evidence_sha256
    assert result(resumed).warnings == result(whole).warnings
    again = judge(recipe, model, tmp_path)
    assert batches(again) == batches(resumed)
    assert result(again) == result(resumed)
    assert len(progress(again)) == 1


PROGRAM = """
import sys
from pathlib import Path
import torch
from trials import cnn, judge
from dkl.protocols import Evaluate
torch.set_num_threads(1)
folder = Path(sys.argv[1])
judge(Evaluate.model_validate_json((folder / "recipe.json").read_text()), cnn(), folder)
"""


@pytest.mark.long
def test_what_kill_9_left_is_gone_on_with(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    suite = [*SUITE[:2], {"kind": "square", "queries": 400}]
    recipe = evaluation(eps=0.003, suite=suite, chunk_size=6)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    work, tests = tmp_path / "work", str(Path(__file__).parent.parent)
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env={"PYTHONPATH": tests}, cwd=tests)
    wait_until(lambda: (work / "stage-003-batch-0000.safetensors").exists() or child.poll() is not None)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in work.glob("stage-*")}
    assert not (work / "evidence.safetensors").exists()
    resumed = judge(recipe, model, tmp_path)
    stages = [int(name.split("-")[1]) for name in done]
    assert max(stages) == 3
    assert stages.count(3) < sum(batch.stage == 3 for batch in batches(resumed))
    assert {name: (work / name).stat().st_mtime_ns for name in done} == done
    whole = judge(recipe, model, tmp_path, tmp_path / "whole")
    kept, expected = ((folder / "evidence.safetensors").read_bytes() for folder in (work, tmp_path / "whole"))
    assert kept == expected
    assert [without_seconds(b) for b in batches(resumed)] == [without_seconds(b) for b in batches(whole)]


def test_batches_may_be_missing_anywhere(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=6)
    whole = judge(recipe, model, tmp_path)
    (tmp_path / "work" / "stage-001-batch-0001.safetensors").unlink()
    resumed = judge(recipe, model, tmp_path)
    assert [batch.key for batch in batches(resumed)] == [batch.key for batch in batches(whole)]
    assert result(resumed).evidence_sha256 == result(whole).evidence_sha256


@pytest.mark.parametrize("change", [{"seed": 1}, {"eps": 0.02}, {"images": 5}, {"chunk_size": 5}])
def test_batches_of_another_recipe_are_an_error(change, tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=ONE_ATTACK), model, tmp_path)
    with pytest.raises(
        ValueError, match=r"batch-0000\.safetensors holds verdicts of another recipe or checkpoint"
    ):
        judge(evaluation(suite=ONE_ATTACK, **change), model, tmp_path)


def test_batches_of_another_checkpoint_are_an_error(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=ONE_ATTACK), model, tmp_path)
    other = LoadedModel(**{**vars(loaded(model)), "sha256": "1" * 64})
    with pytest.raises(ValueError, match="use another work directory or empty this one"):
        judge(evaluation(suite=ONE_ATTACK), other, tmp_path)


def test_a_damaged_batch_is_an_error(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=ONE_ATTACK), model, tmp_path)
    path = tmp_path / "work" / "stage-001-batch-0000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged; delete it to judge its images again"):
        judge(evaluation(suite=ONE_ATTACK), model, tmp_path)


# --- what does not fit -------------------------------------------------------------------------------------


def refused(sentence, recipe, model, tmp_path, **about):
    """`sentence` is said, and no batch has been judged."""
    with pytest.raises(ValueError, match=sentence):
        judge(recipe, model, tmp_path, **about)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture
def tiny(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 30)
    return model


@pytest.mark.parametrize(
    ("recipe", "about", "sentence"),
    [
        ({"images": 31}, {}, "npz:tiny has 30 test images, found images=31; ask for fewer"),
        ({}, {"channels": 3}, "images of npz:tiny have 1 channels, the model, trained on npz:tiny, takes 3"),
        ({}, {"classes": 2}, r"npz:tiny has \d+ classes, the model, trained on npz:tiny, tells 2 apart"),
        ({"dataset": "digits"}, {"classes": 100}, "digits has 10 classes, the model, .*, tells 100 apart"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(recipe, about, sentence, tiny, tmp_path):
    refused(sentence, evaluation(**recipe), tiny, tmp_path, **about)


@pytest.mark.parametrize("kind", ["apgd-t", "fab-t"])
def test_more_targets_than_wrong_classes_are_refused(kind, tmp_path):
    model = linear(5)
    write_decided(tmp_path, model, "Linf", count=20)
    recipe = evaluation(suite=[{"kind": kind, "targets": 5}])
    refused(f"{kind} asks for 5 target classes, with 5 classes there are 4 wrong ones; ask for at most 4", recipe,
            model, tmp_path, classes=5)  # fmt: skip
    fitting = evaluation(suite=[{"kind": kind, "steps": 2, "targets": 4}])
    assert result(judge(fitting, model, tmp_path, classes=5)).notes == ()


@pytest.mark.parametrize("kind", ["apgd-dlr", "apgd-t"])
def test_three_classes_are_not_for_the_reference(kind, tmp_path):
    model = linear(3)
    write_decided(tmp_path, model, "Linf", count=20)
    recipe = evaluation(suite=[{"kind": kind}], engine="pyautoattack")
    refused(f"pyautoattack's {kind} is not possible with 3 classes; use the engine dkl", recipe, model, tmp_path,
            classes=3)  # fmt: skip
    suite = [{"kind": "apgd-ce", "steps": 3}, {"kind": "fab", "steps": 3}, {"kind": "square", "queries": 9}]
    recipe = evaluation(eps=0.001, suite=suite, engine="pyautoattack")
    assert result(judge(recipe, model, tmp_path, classes=3)).clean_accuracy == 1.0


def test_square_needs_room_in_l2(tmp_path):
    model = Steady(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    write_images(tmp_path, model, 6, side=4)
    suite = [{"kind": "square", "queries": 9}]
    sentence = "square under L2 needs images of at least 5 x 5 pixels, found 4 x 4"
    refused(sentence, evaluation("L2", suite=suite), model, tmp_path, classes=3)
    judge(evaluation(eps=0.01, suite=suite), model, tmp_path, classes=3)
    judge(evaluation("L2", suite=suite, policy="screen"), model, tmp_path, tmp_path / "other", classes=3)


def test_one_class_is_no_classification(tmp_path):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "tiny_test.npz", image=images, label=np.zeros(3, np.int64))
    refused("needs at least 2 classes", evaluation(), linear(1), tmp_path, classes=1)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((0, 8, 8, 1), np.uint8), [], "holds no images"),
        (np.full((2, 8, 8, 1), np.nan), [0, 1], r"must be uint8 of shape N,H,W,C .*, found float64"),
        (np.zeros((2, 8, 8, 1), np.uint8), [0, -1], r"labels in .* must be 0, found -1\.\.0"),
        (np.zeros((2, 8, 8, 1), np.uint8), [0, 10], "npz:tiny has 11 classes, the model, .*, tells 10 apart"),
    ],
)
def test_data_that_are_none_are_said(images, labels, sentence, tmp_path):
    np.savez(tmp_path / "tiny_test.npz", image=images, label=np.array(labels, np.int64))
    refused(sentence, evaluation(), cnn(), tmp_path)


def test_missing_data_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"tiny_test\.npz does not exist"):
        judge(evaluation(), cnn(), tmp_path)


def test_a_model_that_cannot_be_judged_is_said_before_any_attack(tmp_path):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 10), torch.nan)

    write_images(tmp_path, cnn(), 6)
    refused("the logits of all 6 clean images are NaN or infinite", evaluation(), Nan(), tmp_path)
