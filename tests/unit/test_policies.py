"""Which attacks see which images: stage by stage on hand-made findings, and in whole evaluations."""

import re
from collections import Counter
from math import ceil

import numpy as np
import pytest
import torch
from torch import nn
from trials import Linear, batches, evaluation, judge, left, loaded, quick_suite, result
from witness import finding

from dkl.datasets import load
from dkl.evidence import read_evidence
from dkl.intervals import hypergeometric_upper
from dkl.policies import planned, stages
from dkl.protocols import show_protocol
from dkl.reverify import verify_evidence
from dkl.suites import AUTOATTACK, SCREEN
from dkl.tally import Tally

SUITE = quick_suite(steps=4, targets=2, queries=30)
STANDARD = AUTOATTACK["standard"]["Linf"]
EXACT, FAST, AUDITED, SIXTEEN = "exact", "fast", "audited", "bfloat16"


def clean(count=100, wrong=(), seed=0):
    """Images 0, 2, 4, ... after the clean pass."""
    tally = Tally(2 * np.arange(count), np.zeros(count, np.int64), seed)
    tally.add(0, finding(list(range(count)), list(wrong)))
    return tally


def drive(recipe, tally, precision="float32", fall=lambda stage: [], margins=None, flat=()):
    """All stages, in each of which the rows `fall(stage)` fall if they are in it."""
    done = []
    for number, stage in enumerate(stages(recipe, tally, precision), start=1):
        done.append(stage)
        rows = stage.rows.tolist()
        fell = [row for row in fall(stage) if row in rows]
        found = finding(rows, fell, flat=list(flat))
        tally.add(
            number, found._replace(margin=(margins if margins is not None else np.arange(1000.0))[stage.rows])
        )
    return done


def phases(done):
    return Counter(stage.phase for stage in done)


def suite_runs(done):
    """How often each row met each attack of the suite in float32: (number of the attack, row) -> times."""
    runs = [s for s in done if s.precision == "float32" and s.phase not in ("screen",)]
    return Counter((stage.use, row) for stage in runs for row in stage.rows.tolist())


# --- stage by stage ----------------------------------------------------------------------------------------


def test_exact_is_the_suite_on_what_stands():
    tally = clean(wrong=[7])
    done = drive(evaluation(), tally, SIXTEEN, fall=lambda stage: [10 * stage.use])
    assert [stage.attack for stage in done] == list(STANDARD)
    assert {(stage.phase, stage.precision, stage.eps) for stage in done} == {("suite", "float32", 0.1)}
    assert [stage.use for stage in done] == [0, 1, 2, 3]
    standing = [row for row in range(100) if row != 7]
    for stage in done:
        assert stage.rows.tolist() == standing
        standing = [row for row in standing if row != 10 * stage.use]
    assert tally.could_still_break == {}
    assert tally.notes == []


def test_fast_without_16_bits_is_exact_by_another_name():
    plain, fast = clean(), clean()
    one = drive(evaluation(), plain, fall=lambda stage: [stage.use])
    other = drive(evaluation(policy=FAST), fast, fall=lambda stage: [stage.use])
    assert phases(other) == {"search": 4}
    for a, b in zip(one, other, strict=True):
        assert (a.attack, a.precision, a.use, a.rows.tolist()) == (b.attack, b.precision, b.use, b.rows.tolist())


def test_fast_looks_again_at_the_survivors_that_came_nearest():
    tally = clean(90)
    margins = np.random.default_rng(0).permutation(90).astype(float)
    near_of = {}

    def fall(stage):
        if stage.phase == "search":
            return [stage.use % 8, stage.use % 8 + 40]
        near_of.setdefault("first", stage.rows.tolist())
        return near_of["first"][:1]

    done = drive(evaluation(policy=FAST), tally, SIXTEEN, fall, margins)
    assert phases(done) == {"search": 4, "recheck": 4}
    search, recheck = done[:4], done[4:]
    assert {stage.precision for stage in search} == {SIXTEEN}
    assert [stage.use for stage in recheck] == [0, 1, 2, 3]
    assert not {stage.use for stage in search} & {0, 1, 2, 3}
    survivors = [row for row in range(90) if row not in {0, 1, 2, 3, 40, 41, 42, 43}]
    nearest = sorted(sorted(survivors, key=lambda row: margins[row])[: ceil(0.05 * 82)])
    assert [stage.rows.tolist() for stage in recheck] == [nearest] + [nearest[1:]] * 3
    assert {stage.precision for stage in recheck} == {"float32"}


# --- what 16 bits took for broken and float32 did not -------------------------------------------------------


def claims(policy, count, precision=SIXTEEN, fall=lambda stage: []):
    """Notes and warnings about 100 images of which the search left `count` with margins below 0."""
    tally = clean()
    margins = np.concatenate((np.full(count, -0.01), np.arange(1.0, 1000.0)))
    drive(evaluation(policy=policy), tally, precision, fall, margins)
    ours = "images that the bfloat16 search at radius 0.1 took for broken and the verifier refused"
    return [note for note in tally.notes if note.startswith(ours)], tally.warnings


@pytest.mark.parametrize("policy", [FAST, AUDITED])
@pytest.mark.parametrize("count", [1, 5])
def test_a_claim_that_float32_looked_at_again_is_worth_a_note(policy, count):
    [note], warnings = claims(policy, count)
    assert note.endswith(f": {count}; the suite went on with them in float32")
    assert warnings == []


@pytest.mark.parametrize(("policy", "seen", "unseen"), [(FAST, 5, 2), (AUDITED, 5, 2), ("screen", 0, 7)])
def test_a_claim_that_nothing_looked_at_again_is_a_warning(policy, seen, unseen):
    notes, [warning] = claims(policy, 7)
    assert [note.split(": ")[1].split(";")[0] for note in notes] == [str(seen)] * bool(seen)
    assert f": {unseen} of them met no attack in float32" in warning


def test_an_audit_that_gives_way_looks_at_every_claim():
    [note], warnings = claims(AUDITED, 30, fall=lambda stage: stage.rows.tolist() * (stage.phase == "audit"))
    assert ": 30; the suite went on" in note
    assert warnings == []


@pytest.mark.parametrize("policy", [EXACT, FAST, AUDITED, "screen"])
def test_a_search_in_float32_has_no_rounding_to_blame(policy):
    assert claims(policy, 7, precision="float32") == ([], [])
    assert claims(policy, 0) == ([], [])


def test_claims_at_one_radius_are_none_at_the_next():
    tally = clean()
    recipe = evaluation(policy=FAST, curve=[0.2])
    for number, stage in enumerate(stages(recipe, tally, SIXTEEN), start=1):
        margin = np.where((stage.rows < 7) & (stage.eps == 0.1), -1.0, 1.0).astype(np.float32)
        tally.add(number, finding(stage.rows.tolist(), [])._replace(margin=margin))
    assert [note.count("radius 0.1 ") for note in tally.notes] == [1]
    assert [warning.count(": 2 of them met") for warning in tally.warnings] == [1]


def test_screen_is_the_cheap_search_alone():
    tally = clean()
    done = drive(evaluation(policy="screen"), tally, SIXTEEN)
    assert [stage.attack for stage in done] == list(SCREEN["Linf"])
    assert {(stage.phase, stage.precision) for stage in done} == {("screen", SIXTEEN)}
    assert [attack.targets for attack in SCREEN["L2"][1:]] == [9]
    assert {attack.steps for attack in SCREEN["L1"]} == {20}
    assert tally.could_still_break == {}


@pytest.mark.parametrize(
    ("count", "near", "sampled"), [(1, 1, 0), (2, 1, 1), (20, 1, 1), (100, 5, 3), (134, 7, 4)]
)
def test_the_audit_takes_5_percent_nearest_and_3_percent_of_the_others(count, near, sampled):
    tally = clean(count + 6, wrong=[0, 1])
    margins = np.random.default_rng(1).permutation(1000).astype(float)
    done = drive(
        evaluation(policy=AUDITED), tally, SIXTEEN, lambda s: [2, 3, 4, 5] * (s.phase == "screen"), margins
    )
    assert phases(done) == {"screen": 2, "audit": 4}
    survivors = np.arange(6, count + 6)
    nearest = set(survivors[np.argsort(margins[survivors])][:near].tolist())
    chosen = set(done[2].rows.tolist())
    assert nearest <= chosen
    assert len(chosen) == near + sampled
    others = np.array(sorted(set(survivors.tolist()) - nearest), np.intp)
    assert chosen - nearest == set(tally.random(others, sampled).tolist())
    assert all(set(stage.rows.tolist()) == chosen and stage.precision == "float32" for stage in done[2:])
    bound = hypergeometric_upper(0, sampled, len(others))
    assert tally.could_still_break == {0.1: bound / (count + 6)}
    assert tally.notes == [
        f"audited at radius 0.1: of {count} survivors of the cheap search, the {near} with the smallest margins "
        f"and {sampled} others at random got the whole suite; of the random ones none fell"
    ]


def test_the_audit_s_own_finds_near_the_border_are_no_reason_for_doubt():
    tally = clean()
    done = drive(evaluation(policy=AUDITED), tally, fall=lambda s: [0, 1, 2, 3, 4] * (s.phase == "audit"))
    assert phases(done) == {"screen": 2, "audit": 4}
    assert [len(stage.rows) for stage in done] == [100, 100, 8, 3, 3, 3]
    assert tally.could_still_break[0.1] == hypergeometric_upper(0, 3, 95) / 100
    assert tally.accuracy() == 0.95


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_one_sampled_find_and_everybody_gets_the_whole_suite_once(when):
    tally = clean()
    sample = tally.random(np.arange(5, 100), 3)

    def fall(stage):
        found_it = stage.phase == "audit" and stage.use == when
        return [0, sample[1]] if found_it else [50 + stage.use] if stage.phase == "fallback" else []

    done = drive(evaluation(policy=AUDITED), tally, fall=fall)
    assert phases(done) == {"screen": 2, "audit": when + 1, "fallback": 4}
    fallen = {0, int(sample[1]), 50, 51, 52, 53}
    runs = suite_runs(done)
    for row in set(range(100)) - fallen:
        assert [runs[use, row] for use in range(4)] == [1, 1, 1, 1], row
    assert max(runs.values()) == 1
    assert tally.could_still_break == {}
    kind = STANDARD[when].kind
    assert tally.notes == [
        "the audit at radius 0.1 gave way to the whole suite on every image: "
        f"{kind} broke 1 of 3 sampled images that the cheap search had not"
    ]


def test_zero_gradients_of_a_survivor_are_a_reason_for_doubt():
    tally = clean()
    done = drive(evaluation(policy=AUDITED), tally, flat=[60, 61], fall=lambda s: [60] * (s.phase == "screen"))
    assert phases(done) == {"screen": 2, "fallback": 4}
    assert all(len(stage.rows) == 99 for stage in done[2:])
    assert tally.notes[0].endswith("1 of 99 survivors of the cheap search have gradients of exactly zero")
    gone = clean()
    done = drive(evaluation(policy=AUDITED), gone, flat=[60], fall=lambda s: [60] * (s.phase == "screen"))
    assert phases(done) == {"screen": 2, "audit": 4}  # a broken image may have had them


@pytest.mark.parametrize(("broken", "doubt"), [(10, False), (11, True)])
def test_a_gap_between_untargeted_and_targeted_is_a_reason_for_doubt(broken, doubt):
    tally = clean()
    done = drive(
        evaluation(policy=AUDITED),
        tally,
        fall=lambda s: {"apgd-ce": range(40, 70), "apgd-t": range(broken)}[s.attack.kind] if s.use >= 256 else [],
    )
    assert phases(done)["fallback"] == (4 if doubt else 0)
    if doubt:
        assert (
            "targeted APGD broke 11.0% of all images after APGD-CE, which hints at masked gradi" in tally.notes[0]
        )


def test_nobody_is_left_to_audit():
    tally = clean(4)
    done = drive(evaluation(policy=AUDITED), tally, fall=lambda stage: range(4) if stage.use == 256 else [])
    assert all(len(stage.rows) == 0 for stage in done[1:])
    assert tally.accuracy() == 0
    assert tally.could_still_break == {0.1: 0.0}


@pytest.mark.parametrize("policy", [EXACT, FAST, AUDITED, "screen"])
def test_each_radius_begins_with_what_the_smaller_ones_left(policy):
    tally = clean()
    fell = {0.01: [3], 0.05: [4], 0.1: [5]}
    recipe = evaluation(policy=policy, curve=[0.05, 0.01])
    done = drive(recipe, tally, fall=lambda stage: fell[stage.eps] if stage.use in (0, 256) else [])
    assert list(dict.fromkeys(stage.eps for stage in done)) == [0.01, 0.05, 0.1]
    first = {stage.eps: stage.rows for stage in reversed(done)}
    assert [len(first[eps]) for eps in (0.01, 0.05, 0.1)] == [100, 99, 98]
    if policy == AUDITED:
        assert tally.could_still_break.keys() == {0.01, 0.05, 0.1}
        assert len(tally.notes) == 3


def test_the_uses_of_an_attack_share_no_random_numbers():
    recipe = evaluation(policy=AUDITED, suite=SUITE * 16)
    audited = drive(recipe, clean(40))
    uses = {phase: {stage.use for stage in audited if stage.phase == phase} for phase in ("screen", "audit")}
    fast = {stage.use for stage in drive(evaluation(policy=FAST, suite=SUITE * 16), clean(40), SIXTEEN)[:96]}
    assert not uses["screen"] & uses["audit"]
    assert not fast & (uses["screen"] | uses["audit"])
    assert max(fast) < 2**16


def test_what_may_come_up():
    assert planned(evaluation()) == planned(evaluation(policy=FAST)) == STANDARD
    assert planned(evaluation(policy="screen")) == SCREEN["Linf"]
    assert planned(evaluation("L1", 1.0, policy=AUDITED)) == SCREEN["L1"] + AUTOATTACK["standard"]["L1"]


def test_only_the_whole_suite_in_float32_is_autoattack_without_further_words():
    assert show_protocol("standard", "exact") == "AutoAttack standard"
    assert show_protocol("plus", "audited") == "AutoAttack plus, audited"
    assert show_protocol("rand", "exact") == "AutoAttack rand"
    assert show_protocol(({"kind": "fab"},), "fast") == "custom, fast"
    for suite in ("standard", "plus", ({"kind": "fab"},)):
        assert show_protocol(suite, "screen") == "screen"


# --- whole evaluations -------------------------------------------------------------------------------------


class Misleading(nn.Module):
    """A linear model whose gradients are those of another one: gradients find nothing, Square does."""

    def __init__(self, strength=1.0):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.true, self.false = (Linear(torch.randn(5, 64, generator=random)) for _ in range(2))
        self.strength = strength

    def forward(self, x):
        shown = self.strength * self.false(x)
        return self.true(x.detach()) + shown - shown.detach()


def write_grey(data_dir, model, count):
    """Grey images, labelled by `model`; the median of their distances to the border in Linf."""
    images = torch.randint(
        110, 146, (count, 8, 8, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    x = images.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(dim=1)
    np.savez(data_dir / "tiny_test.npz", image=images.numpy(), label=y.numpy())
    weight = model.true.weight.detach()
    gaps = logits.gather(1, y[:, None]) - logits
    widths = (weight[y][:, None] - weight).abs().sum(dim=2)
    return float((gaps / widths).masked_fill(gaps == 0, torch.inf).amin(dim=1).median())


MASKED_SUITE = [
    {"kind": "apgd-ce", "steps": 5},
    {"kind": "apgd-t", "steps": 5},
    {"kind": "square", "queries": 400},
]


@pytest.fixture
def no_16_bits(monkeypatch):
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "float32")


def record(workdir):
    return read_evidence(workdir / "evidence.safetensors")


def adversarial(evidence):
    """Row -> (stage's attack, radius, restart, target, step, bytes of the image)."""
    images = {
        **dict(zip(evidence.rows8.tolist(), evidence.x8, strict=True)),
        **dict(zip(evidence.rows32.tolist(), evidence.x32, strict=True)),
    }
    names = [stage.name for stage in evidence.about.stages]
    facts = (evidence.broken_at, evidence.restart, evidence.target, evidence.step)
    return {
        row: (names[evidence.stage[row]], *(int(fact[row]) for fact in facts), image.tobytes())
        for row, image in images.items()
    }


@pytest.mark.parametrize(
    ("strength", "reason"),
    [
        (1.0, "square broke 1 of 2 sampled images that the cheap search had not"),
        (0.0, r"\d+ of \d+ survivors of the cheap search have gradients of exactly zero"),
    ],
)
def test_where_gradients_mislead_the_audit_gives_way_and_ends_as_exact_does(
    strength, reason, tmp_path, no_16_bits
):
    model = Misleading(strength)
    eps = 2.0 * write_grey(tmp_path, model, 60)
    stood, kept, results = {}, {}, {}
    for policy in (EXACT, FAST, AUDITED, "screen"):
        recipe = evaluation(eps=eps, suite=MASKED_SUITE, policy=policy)
        events = judge(recipe, model, tmp_path, tmp_path / policy, classes=5)
        stood[policy], results[policy] = left(events), result(events)
        kept[policy] = record(tmp_path / policy)
    assert stood[EXACT] == stood[FAST] == stood[AUDITED]
    assert len(stood["screen"]) > len(stood[EXACT]) + 5  # what the audit is for
    assert adversarial(kept[EXACT]) == adversarial(kept[FAST])
    exact, audited = adversarial(kept[EXACT]), adversarial(kept[AUDITED])
    assert exact.keys() == audited.keys()
    screened = {row for row in audited if kept[AUDITED].about.stages[kept[AUDITED].stage[row]].phase == "screen"}
    assert len(screened) < len(audited) / 2
    assert all(audited[row] == exact[row] for row in audited.keys() - screened)
    np.testing.assert_array_equal(kept[EXACT].broken_at, kept[FAST].broken_at)
    outcome = results[AUDITED]
    assert outcome.could_still_break is None
    note = outcome.notes[-1]
    assert note.startswith("the audit at radius")
    assert re.search(reason, note), note
    assert any("square, which uses no gradients" in warning for warning in outcome.warnings)


def test_each_result_names_what_was_done(tmp_path, no_16_bits):
    model = Misleading()
    eps = 0.2 * write_grey(tmp_path, model, 60)
    named = {}
    for policy in (EXACT, FAST, AUDITED, "screen"):
        named[policy] = result(judge(evaluation(eps=eps, suite=MASKED_SUITE, policy=policy), model, tmp_path,
                                     tmp_path / policy, classes=5))  # fmt: skip
    assert {policy: outcome.protocol for policy, outcome in named.items()} == {
        EXACT: "custom", FAST: "custom, fast", AUDITED: "custom, audited", "screen": "screen"
    }  # fmt: skip
    survivors = round(named["screen"].robust_accuracy * 60)
    others = survivors - ceil(0.05 * survivors)
    bound = hypergeometric_upper(0, ceil(0.03 * others), others) / 60
    assert {policy: outcome.could_still_break for policy, outcome in named.items()} == {
        EXACT: None, FAST: None, AUDITED: bound, "screen": None
    }  # fmt: skip
    assert 0 < bound < 1
    assert {outcome.precision for outcome in named.values()} == {"float32"}


class TwoLayers(nn.Module):
    """Between its layers stand numbers near 16, of which 16 bits keep sixteenths: their verdicts are noise."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 5, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(32, 64, generator=random) / 8)
            self.first.bias.fill_(16.0)
            weight = torch.randn(5, 32, generator=random)
            self.second.weight.copy_(weight - weight.mean(dim=1, keepdim=True))
        self.true = Linear(self.second.weight.detach() @ self.first.weight.detach())

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


@pytest.mark.parametrize("policy", [FAST, AUDITED])
def test_a_few_that_16_bits_take_for_broken_do_not_make_a_result_doubtful(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: SIXTEEN)
    model = TwoLayers()
    model.first.bias.data.fill_(2.0)  # of numbers near 2, 16 bits keep 128ths
    eps = write_grey(tmp_path, model, 120)
    suite = [{"kind": "apgd-ce", "steps": 10}, {"kind": "apgd-t", "steps": 10}]
    exact = judge(evaluation(eps=eps, suite=suite), model, tmp_path, tmp_path / EXACT, classes=5)
    events = judge(evaluation(eps=eps, suite=suite, policy=policy), model, tmp_path, tmp_path / policy, classes=5)
    outcome = result(events)
    assert 0 < outcome.rejected < 6
    assert outcome.warnings == ()
    assert any("took for broken and the verifier refused" in note for note in outcome.notes)
    assert len(set(left(events)) ^ set(left(exact))) <= 1


@pytest.mark.parametrize("policy", [FAST, AUDITED, "screen"])
def test_what_16_bits_take_for_broken_counts_only_if_float32_agrees(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: SIXTEEN)
    model = TwoLayers()
    eps = write_grey(tmp_path, model, 120)
    suite = [{"kind": "apgd-ce", "steps": 10}, {"kind": "apgd-t", "steps": 10}]
    exact = evaluation(eps=eps, suite=suite)
    stands = left(judge(exact, model, tmp_path, tmp_path / EXACT, classes=5))
    events = judge(evaluation(eps=eps, suite=suite, policy=policy), model, tmp_path, tmp_path / policy, classes=5)
    outcome, kept = result(events), record(tmp_path / policy)
    assert outcome.precision == SIXTEEN
    assert outcome.rejected > 0  # 16 bits have claimed more
    assert any("the verifier refused" in warning for warning in outcome.warnings)
    assert set(stands) <= set(left(events))
    assert 20 < len(stands) < 100
    *_, report = verify_evidence(
        kept, loaded(model, classes=5), load("npz:tiny", "test", tmp_path), device="cpu", batch_size=50
    )
    assert report.ok, report.sentences
    assert report.robust_accuracy == (outcome.robust_accuracy,)
    if policy == FAST:
        assert phases(batches(events)) == {"clean": 1, "search": 2, "recheck": 2}
        assert outcome.stages[3].attacked == ceil(0.05 * round(outcome.stages[2].accuracy * 120))
        assert outcome.stages[3].accuracy < outcome.stages[2].accuracy  # float32 found what 16 bits had missed
    assert evaluation(eps=eps).policy == EXACT
    assert result(judge(exact, model, tmp_path, tmp_path / "again", classes=5)).precision == "float32"
