"""What a study knows of its rows from the ledger: whose jobs they are, how far, and what they have measured."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from samples import JUDGED, STARTED, TRAINED
from sqlalchemy import Engine

from dkl.catalog import resolve
from dkl.catalog.studies import Planned, UnknownStudyError, study
from dkl.events import Event, Progress
from dkl.flags import Flags, pack
from dkl.paired import Pairs
from service import claims, jobs, studies
from service.callers import COMMAND_LINE
from service.study_table import study_table, study_words
from service.study_views import StudyRow
from service.tables import Job
from service.web.study_chart import picture

IKL, TRADES = "IKL-AT", "TRADES"


def planned(name: str, method: str) -> Planned:
    return next(row for row in study(name).rows if row.row.method == method)


def submit(db: Engine, name: str, method: str) -> tuple[Job, Job]:
    """What `dklbench reproduce` queues for a row."""
    row = planned(name, method)
    training = jobs.create(db, resolve(row.row.recipe, row.overrides), name=row.row.recipe)
    return training, jobs.create(db, row.judge.of(training.id), name=row.judge.recipe)


def run(db: Engine, job: Job, *events: Event) -> claims.Claim:
    claim = claims.claim(db, job.id, worker="box:1", lease_seconds=3600)
    assert claim is not None
    for event in (STARTED, *events):
        claims.append(db, claim, event)
    return claim


def finish(db: Engine, job: Job, **result: Any) -> None:
    ended = TRAINED if job.kind == "train" else JUDGED
    claims.finish(db, run(db, job), ended.model_copy(update={"result": ended.result.model_copy(update=result)}))


def judged(db: Engine, name: str, method: str, clean: float, robust: float) -> None:
    training, evaluation = submit(db, name, method)
    finish(db, training, seconds=100.0)
    finish(
        db, evaluation, images=300, clean_accuracy=clean, clean_interval=(clean - 0.05, clean + 0.05),
        robust_accuracy=robust, robust_interval=(robust - 0.04, robust + 0.05), seconds=20.0,
    )  # fmt: skip


def row(db: Engine, name: str, method: str) -> StudyRow:
    return next(found for found in studies.find(db, name).rows if found.method == method)


def test_an_empty_ledger_has_the_published_numbers_only(db: Engine) -> None:
    found = studies.find(db, "2-tiny")
    assert {one.state for one in found.rows} == {"missing"}
    assert (found.finished, found.seconds) == (0, 0)
    assert row(db, "2-tiny", IKL).published.robust_accuracy == 0.3191  # type: ignore[union-attr]
    assert found.left_out[0].published.robust_accuracy == 0.3883  # type: ignore[union-attr]
    assert picture(found) is None


def test_a_row_goes_from_state_to_state(db: Engine) -> None:
    states = [row(db, "3-tiny", IKL).state]
    training, evaluation = submit(db, "3-tiny", IKL)
    states.append(row(db, "3-tiny", IKL).state)
    claim = run(db, training, Progress(phase="epoch 1 of 8", done=1, total=8, rate=1, eta_seconds=7))
    states.append(row(db, "3-tiny", IKL).state)
    progress = row(db, "3-tiny", IKL).training.progress  # type: ignore[union-attr]
    assert progress is not None
    assert (progress["done"], progress["total"]) == (1, 8)
    claims.finish(db, claim, TRAINED)
    states.append(row(db, "3-tiny", IKL).state)
    finish(db, evaluation)
    states.append(row(db, "3-tiny", IKL).state)
    assert states == ["missing", "queued", "training", "judging", "succeeded"]
    assert row(db, "3-tiny", TRADES).state == "missing"


def test_failed_and_canceled_rows_say_so(db: Engine) -> None:
    training, _ = submit(db, "3-tiny", IKL)
    claims.fail(db, run(db, training), "loss is nan")
    assert row(db, "3-tiny", IKL).state == "failed"
    training, evaluation = submit(db, "3-tiny", TRADES)
    finish(db, training)
    jobs.cancel(db, evaluation.id, caller=COMMAND_LINE)
    assert row(db, "3-tiny", TRADES).state == "canceled"
    training, evaluation = submit(db, "3-tiny", "MART")
    jobs.cancel(db, training.id, caller=COMMAND_LINE)
    assert row(db, "3-tiny", "MART").evaluation.status == "failed"  # type: ignore[union-attr]
    assert row(db, "3-tiny", "MART").state == "canceled"


def test_a_trained_model_that_nobody_judges_is_known(db: Engine) -> None:
    plan = planned("3-tiny", IKL)
    training = jobs.create(db, plan.recipe)
    finish(db, training)
    assert row(db, "3-tiny", IKL).state == "trained"
    jobs.create(db, resolve(plan.judge.recipe, {**plan.judge.overrides, "images": 7, "model.job": training.id}))
    assert row(db, "3-tiny", IKL).state == "trained"  # judged otherwise than the study does


def test_a_job_with_another_recipe_is_none_of_the_row(db: Engine) -> None:
    plan = planned("3-tiny", IKL)
    jobs.create(db, resolve(plan.row.recipe, {**plan.overrides, "seed": 1}), name=plan.row.recipe)
    assert row(db, "3-tiny", IKL).state == "missing"


def test_of_several_jobs_the_furthest_stands_for_the_row(db: Engine) -> None:
    first, _ = submit(db, "3-tiny", IKL)
    claims.fail(db, run(db, first), "the disk is full")
    judged(db, "3-tiny", IKL, 0.4, 0.2)
    submit(db, "3-tiny", IKL)
    found = row(db, "3-tiny", IKL)
    assert found.state == "succeeded"
    assert found.robust_accuracy == 0.2


def test_a_row_at_work_counts_more_than_a_newer_model_that_nobody_judges(db: Engine) -> None:
    training, evaluation = submit(db, "3-tiny", IKL)
    finish(db, training)
    run(db, evaluation)
    finish(db, jobs.create(db, planned("3-tiny", IKL).recipe))
    found = row(db, "3-tiny", IKL)
    assert found.state == "judging"
    assert found.training is not None
    assert found.training.id == training.id


@pytest.mark.parametrize("how", ["failed", "canceled"])
def test_a_new_attempt_counts_more_than_a_model_whose_evaluation_came_to_nothing(db: Engine, how: str) -> None:
    """As `reproduce` submits it where the old model's files are gone."""
    training, evaluation = submit(db, "3-tiny", IKL)
    finish(db, training)
    if how == "failed":
        claims.fail(db, run(db, evaluation), "the disk is full")
    else:
        jobs.cancel(db, evaluation.id, caller=COMMAND_LINE)
    assert row(db, "3-tiny", IKL).state == how
    anew, _ = submit(db, "3-tiny", IKL)
    found = row(db, "3-tiny", IKL)
    assert found.training is not None
    assert (found.state, found.training.id) == ("queued", anew.id)
    run(db, anew)
    assert row(db, "3-tiny", IKL).state == "training"


def test_of_equals_the_newest_stands_for_the_row(db: Engine) -> None:
    submit(db, "3-tiny", IKL)
    newest, judging = submit(db, "3-tiny", IKL)
    again = jobs.create(db, planned("3-tiny", IKL).judge.of(newest.id))
    found = row(db, "3-tiny", IKL)
    assert found.training is not None
    assert found.evaluation is not None
    assert (found.training.id, found.evaluation.id) == (newest.id, again.id)
    jobs.cancel(db, again.id, caller=COMMAND_LINE)
    assert row(db, "3-tiny", IKL).evaluation.id == judging.id  # type: ignore[union-attr]


def test_a_trained_model_counts_more_than_a_failure_that_was_to_be_judged(db: Engine) -> None:
    first, _ = submit(db, "3-tiny", IKL)
    claims.fail(db, run(db, first), "the disk is full")
    by_hand = jobs.create(db, planned("3-tiny", IKL).recipe)
    finish(db, by_hand)
    found = row(db, "3-tiny", IKL)
    assert found.state == "trained"
    assert found.training is not None
    assert found.training.id == by_hand.id


def test_differences_where_the_data_are_the_same(db: Engine) -> None:
    judged(db, "3-tiny", IKL, 0.40, 0.20)
    judged(db, "3-tiny", TRADES, 0.45, 0.17)
    found = studies.find(db, "3-tiny")
    trades = row(db, "3-tiny", TRADES)
    assert trades.clean_difference == pytest.approx(0.45 - 0.8492)
    assert trades.robust_difference == pytest.approx(0.17 - 0.5308)
    assert trades.published_lead == pytest.approx(0.5308 - 0.5709)
    assert trades.measured_lead == pytest.approx(-0.03)
    assert (trades.images, trades.robust_interval) == (300, (0.13, 0.22000000000000003))
    assert (found.finished, found.seconds) == (2, 240.0)
    plot = picture(found)
    assert plot is not None
    drawn = next(lane for lane in plot.lanes if lane.label == TRADES)
    assert [dot.hollow for dot in drawn.dots] == [True, False]
    low, high = drawn.dots[1].interval  # type: ignore[misc]
    assert low < drawn.dots[1].x < high < drawn.dots[0].x


def test_other_data_have_leads_and_no_differences(db: Engine) -> None:
    judged(db, "2-tiny", TRADES, 0.45, 0.17)
    alone = studies.find(db, "2-tiny")
    assert row(db, "2-tiny", TRADES).measured_lead is None
    plot = picture(alone)
    assert plot is not None
    assert not any(dot.hollow for lane in plot.lanes for dot in lane.dots)  # no CIFAR-100 beside CIFAR-10
    judged(db, "2-tiny", IKL, 0.40, 0.20)
    trades = row(db, "2-tiny", TRADES)
    assert (trades.clean_difference, trades.robust_difference) == (None, None)
    assert trades.measured_lead == pytest.approx(-0.03)
    assert trades.published_lead == pytest.approx(0.2687 - 0.3191)
    plot = picture(studies.find(db, "2-tiny"))
    assert plot is not None
    assert plot.x_label == "robust accuracy less that of IKL-AT, points"


def test_a_lead_has_an_interval_of_its_own(db: Engine) -> None:
    """Newcombe's, of the images on which two models differ; not that of either model, moved."""
    stands = {IKL: [True] * 60 + [False] * 240, TRADES: [True] * 40 + [False] * 10 + [True] * 10 + [False] * 240}
    of_images = {IKL: "1" * 64, TRADES: "1" * 64, "MART": "2" * 64}
    for method, data in of_images.items():
        training, evaluation = submit(db, "2-tiny", method)
        finish(db, training)
        flags = stands.get(method, stands[IKL])
        finish(
            db, evaluation, images=300, robust_accuracy=sum(flags) / 300,
            flags=Flags(data_sha256=data, clean=pack(flags), robust=pack(flags)),
        )  # fmt: skip
    trades = row(db, "2-tiny", TRADES)
    assert trades.measured_lead == pytest.approx(-10 / 300)
    assert trades.measured_lead_interval == Pairs(both=50, only_a=0, only_b=10, neither=240).interval()
    low, high = trades.measured_lead_interval
    assert low < -10 / 300 < high < 0
    assert row(db, "2-tiny", IKL).measured_lead_interval is None
    other = row(db, "2-tiny", "MART")  # judged on other images
    assert (other.measured_lead, other.measured_lead_interval) == (pytest.approx(0.0), None)
    plot = picture(studies.find(db, "2-tiny"))
    assert plot is not None
    dots = {lane.label: lane.dots[-1] for lane in plot.lanes}
    assert dots[IKL].interval is dots["MART"].interval is None
    assert dots[TRADES].interval is not None
    assert dots[TRADES].interval[0] < dots[TRADES].x < dots[TRADES].interval[1] < dots[IKL].x


@pytest.mark.parametrize("name", ["2-tiny", "3-tiny"])
def test_the_table_fits_a_terminal(db: Engine, name: str) -> None:
    for method in (IKL, TRADES):
        judged(db, name, method, 0.40, 0.20)
    found = studies.find(db, name).model_dump(mode="json")
    terminal = Console(file=StringIO(), width=80)
    terminal.print(study_table(found, found["rows"]), *study_words(found, found["rows"]), sep="\n")
    said = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "1 min 40 s" in said
    assert "16.0..25.0" in said
    assert {"2-tiny": "-5.04/+0.00", "3-tiny": "-33.08"}[name] in said
    assert "\u2026" not in said  # nothing was cut
    assert max(map(len, said.splitlines())) <= 80


def test_a_job_serves_every_study_that_asks_the_same(db: Engine) -> None:
    """DAJAT and others of both tables differ; what a study counts is its own."""
    judged(db, "3-tiny", IKL, 0.4, 0.2)
    counts = {one.name: one.finished for one in studies.every(db)}
    assert counts["3-tiny"] == 1
    same = {p.row.method for p in study("2-tiny").rows if p.recipe == planned("3-tiny", IKL).recipe}
    assert counts["2-tiny"] == len(same)
    assert counts["3-small"] == counts["3-full"] == 0


def test_an_unknown_study_is_an_error(db: Engine) -> None:
    with pytest.raises(UnknownStudyError, match="there is no study '9-tiny'"):
        studies.find(db, "9-tiny")
