"""Studies as they stand in the ledger: published accuracies beside what the jobs of each row have measured.

A job belongs to a row because it has the fingerprint of the row's recipe, whoever submitted it and when.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from sqlalchemy.orm import lazyload

from dkl.architectures import show_model
from dkl.catalog import named
from dkl.catalog.entries import Published
from dkl.catalog.studies import LeftOut, Planned, Study, study, study_names
from dkl.datasets import show_name
from dkl.flags import Flags, unpack
from dkl.paired import pairs_of
from dkl.recipes import fingerprint
from service.db import reading
from service.study_views import MissingRow, PublishedNumbers, State, StudyJob, StudyRow, StudySummary, StudyView
from service.tables import Job

_PREFERRED = ("succeeded", "running", "queued", "cancelling", "failed", "canceled")
"""Of several jobs with one question, the one that is furthest stands for it."""


# --- finding ----------------------------------------------------------------------------------------------


def find(db: Engine, name: str) -> StudyView:
    """The study called TABLE-BUDGET; UnknownStudyError where there is none."""
    asked = study(name)
    jobs = _Jobs(db, [asked])
    found = [jobs.of(planned) for planned in asked.rows]
    rows = [_row(planned, *pair, asked) for planned, pair in zip(asked.rows, found, strict=True)]
    rows = _compared(rows, [_standing(evaluation) for _, evaluation in found], asked)
    done = [row for row in rows if row.state == "succeeded"]
    return StudyView(
        name=asked.name,
        title=asked.title,
        table=asked.table.number,
        table_title=asked.table.title,
        budget=asked.budget.name,
        about=asked.budget.about,
        can_say=asked.budget.can_say,
        cannot_say=asked.budget.cannot_say,
        dataset=show_name(asked.dataset),
        published_dataset=show_name(asked.table.dataset),
        reference=next(row.method for row in rows if row.recipe == asked.reference),
        rows=rows,
        left_out=[_missing(left_out) for left_out in asked.left_out],
        finished=len(done),
        seconds=sum(job.seconds or 0 for row in done for job in (row.training, row.evaluation) if job),
    )


def every(db: Engine) -> list[StudySummary]:
    """All studies, and how far each has come."""
    studies = [study(name) for name in study_names()]
    jobs = _Jobs(db, studies)
    return [
        StudySummary(
            name=one.name,
            title=one.title,
            table_title=one.table.title,
            budget=one.budget.name,
            about=one.budget.about,
            rows=len(one.rows),
            finished=sum(_state(*jobs.of(planned)) == "succeeded" for planned in one.rows),
        )
        for one in studies
    ]


class _Jobs:
    """Trainings of rows and evaluations of their models, in two queries."""

    def __init__(self, db: Engine, studies: Iterable[Study]) -> None:
        questions = {planned.question for one in studies for planned in one.rows}
        trainings = select(Job).where(Job.fingerprint.in_(questions), Job.kind == "train")
        with reading(db) as session:
            found = session.scalars(trainings.options(lazyload("*"))).all()
            judged = select(Job).where(Job.parent_id.in_([job.id for job in found]), Job.kind == "evaluate")
            evaluations = session.scalars(judged.options(lazyload("*"))).all()
        self._trainings = _grouped(found, "fingerprint")
        self._evaluations = _grouped(evaluations, "parent_id")

    def of(self, planned: Planned) -> tuple[Job | None, Job | None]:
        """The row's training and the evaluation of its model: of several, those that are furthest, the newest.
        What is on its way to a number is further than what got stuck."""

        def order(pair: tuple[Job, Job | None]) -> tuple[object, ...]:
            training, evaluation = pair
            is_done = evaluation is not None and evaluation.status == "succeeded"
            goes_on = evaluation is not None and evaluation.status in {"queued", "running"}
            created = [-job.created_at for job in pair if job is not None]
            return not is_done, not goes_on, _distance(training), _distance(evaluation), created

        pairs = []
        for training in self._trainings.get(planned.question, []):
            wanted = fingerprint(planned.judge.of(training.id))
            judged = [job for job in self._evaluations.get(training.id, []) if job.fingerprint == wanted]
            newest_first = sorted(judged, key=lambda job: -job.created_at)
            pairs.append((training, min(newest_first, key=_distance, default=None)))
        return min(pairs, key=order, default=(None, None))


def _grouped(jobs: Sequence[Job], by: str) -> Mapping[str, list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(getattr(job, by), []).append(job)
    return groups


def _distance(job: Job | None) -> int:
    """How far a job is from its end, in steps."""
    return len(_PREFERRED) if job is None else _PREFERRED.index(job.status)


def _state(training: Job | None, evaluation: Job | None) -> State:
    if training is None:
        return "missing"
    match training.status, evaluation.status if evaluation else None:
        case "queued", _:
            return "queued"
        case (("running" | "cancelling"), _):
            return "training"
        case "succeeded", None:
            return "trained"
        case "succeeded", "succeeded":
            return "succeeded"
        case "succeeded", ("queued" | "running" | "cancelling"):
            return "judging"
        case "canceled", _:  # whose evaluation has failed with it
            return "canceled"
        case ("failed", _) | (_, "failed"):
            return "failed"
        case _:
            return "canceled"


# --- views ------------------------------------------------------------------------------------------------


def _row(planned: Planned, training: Job | None, evaluation: Job | None, of: Study) -> StudyRow:
    result: dict[str, Any] = (evaluation.result if evaluation else None) or {}
    published = _numbers(planned.published)
    here = {name: result.get(name) for name in _MEASURED}
    return StudyRow(
        method=planned.row.method,
        recipe=planned.row.recipe,
        about=named(planned.row.recipe).about,
        note=planned.row.note,
        in_table=planned.row.in_table,
        overrides=dict(planned.overrides),
        judge=planned.judge.recipe,
        judge_overrides=dict(planned.judge.overrides),
        published=published,
        state=_state(training, evaluation),
        training=_job(training),
        evaluation=_job(evaluation),
        architecture=show_model(planned.recipe.model),
        **here,
        clean_difference=_less(
            here["clean_accuracy"], published.clean_accuracy if published else None, of.same_data
        ),
        robust_difference=_less(
            here["robust_accuracy"], published.robust_accuracy if published else None, of.same_data
        ),
    )


_MEASURED = ("images", "clean_accuracy", "clean_interval", "robust_accuracy", "robust_interval", "protocol")


def _less(here: float | None, published: float | None, comparable: bool) -> float | None:
    return here - published if comparable and here is not None and published is not None else None


class _Standing(NamedTuple):
    """Which images an evaluation has left standing."""

    data_sha256: str
    flags: NDArray[np.bool_]


def _standing(evaluation: Job | None) -> _Standing | None:
    """Absent before the end, and of evaluations older than flags in results."""
    result = (evaluation.result if evaluation else None) or {}
    if not result.get("flags"):
        return None
    kept = Flags.model_validate(result["flags"])
    return _Standing(kept.data_sha256, unpack(kept.robust, result["images"]))


def _compared(rows: list[StudyRow], standing: list[_Standing | None], of: Study) -> list[StudyRow]:
    """With what each row is ahead of the reference row."""
    at = next(at for at, row in enumerate(rows) if row.recipe == of.reference)
    reference = rows[at]
    printed = reference.published.robust_accuracy if reference.published else None
    return [
        row.model_copy(
            update={
                "published_lead": _less(row.published.robust_accuracy if row.published else None, printed, True),
                "measured_lead": _less(row.robust_accuracy, reference.robust_accuracy, True),
                "measured_lead_interval": None if row is reference else _lead_interval(mine, standing[at]),
            }
        )
        for row, mine in zip(rows, standing, strict=True)
    ]


def _lead_interval(mine: _Standing | None, other: _Standing | None) -> tuple[float, float] | None:
    if mine is None or other is None or mine.data_sha256 != other.data_sha256:
        return None
    return pairs_of(mine.flags, other.flags).interval()


def _numbers(published: Published | None) -> PublishedNumbers | None:
    if published is None:
        return None
    return PublishedNumbers(
        clean_accuracy=published.clean_accuracy,
        robust_accuracy=published.robust_accuracy,
        source=published.source,
        url=published.url,
    )


def _job(job: Job | None) -> StudyJob | None:
    if job is None:
        return None
    return StudyJob(id=job.id, status=job.status, progress=job.progress, seconds=(job.result or {}).get("seconds"))


def _missing(left_out: LeftOut) -> MissingRow:
    return MissingRow(
        method=left_out.row.method,
        recipe=left_out.row.recipe,
        published=_numbers(left_out.published),
        reason=left_out.reason,
    )
