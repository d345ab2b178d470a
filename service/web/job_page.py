"""The page of one job, and what one does to it there."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Engine, select

from dkl.catalog import RECIPES
from dkl.protocols import AnyProtocol, CorruptionProtocol
from service import jobs
from service.access import Reader, Submitter, needs
from service.callers import Caller
from service.db import reading
from service.history import entries_of_runs, history_of, reruns
from service.lineage import LEARNERS
from service.measured import show_suite, why_unranked
from service.moves import TERMINAL
from service.outlook import asked, outlook
from service.published import Comparison, compare, compare_accuracy, entry_of, judged_as_published
from service.queue import ring
from service.roster import roster
from service.space import show_bytes
from service.state import state_of
from service.stored import NoFileError, stored_file
from service.tables import Job, JobEvent, Upload
from service.web.charts import Chart, svg_file
from service.web.joblog import lines
from service.web.strategy import StrategyCurveName, strategy_charts, strategy_curve
from service.web.templating import templates
from service.web.training import CURVES, CurveName, Training, training_curve, training_of
from service.web.verdict import verdict_of

router = APIRouter(include_in_schema=False)
_LOG_LINES = 200
"""Of the log, the last ones; all of it is a download."""
_MOST_COMPARED = 6


@router.get("/jobs/{job_id}")
def job_page(job_id: str, request: Request, caller: Reader) -> Response:
    state = state_of(request)
    db = state.db
    job = jobs.get(db, job_id)
    events = jobs.events(db, job_id)
    verdict = verdict_of(job, events) if job.kind == "evaluate" else None
    parent = jobs.get(db, job.parent_id) if job.parent_id else None
    children = jobs.children(db, job_id)
    training = training_of(job, events) if job.kind in LEARNERS else None
    runs = _runs(db, job)
    log = list(lines(events))
    context = {
        "job": job,
        "over": job.status in TERMINAL,
        "parent": parent,
        "children": [child for child in children if child.kind != "distill"],
        "students": [child for child in children if child.kind == "distill"],
        "mine": caller.may("submit") and caller.owns(job.key_id),
        "asked": asked(job),
        "outlook": outlook(db, job, roster(db, lease_seconds=state.settings.lease_seconds)),
        "grace_seconds": state.settings.grace_seconds,
        "reruns": [run for run in runs if run.rerun_of == job.id],
        "compared": entries_of_runs(db, runs)[:_MOST_COMPARED] if len(runs) > 1 else [],
        "history": history_of(events),
        "training": training,
        "curves": [name for name in CURVES if training_curve(training, name)] if training else [],
        "strategic": "strategy" in (job.recipe.get("objective") or {}),
        "strategy": strategy_charts(training) if training else [],
        "log": log[-_LOG_LINES:],
        "log_lines": len(log),
        "show_bytes": show_bytes,
        "upload": _upload(db, job, caller) if job.kind == "import" else None,
        "verdict": verdict,
        "corruptions": _corruptions(job, events) if job.kind == "corruptions" else None,
        "stored": {kind for kind in ("evidence", "checkpoint") if stored_file(state.artifacts, job, kind)},
        "judges": _judges(job),
        "published": _published(job, parent, children),
    }
    return templates.TemplateResponse(request, "job.html", context)


@router.get("/jobs/{job_id}/curves.svg", dependencies=[needs("read")])
def job_curve(job_id: str, of: CurveName | StrategyCurveName, request: Request) -> Response:
    """A curve of a training as a file."""
    db = state_of(request).db
    job = jobs.get(db, job_id)
    training = training_of(job, jobs.events(db, job_id)) if job.kind in LEARNERS else None
    chart = _curve(training, of) if training else None
    if chart is None:
        raise NoFileError(f"job {job_id} has no curve of its {of}: that takes a training with an epoch behind it")
    return svg_file(chart, f"{job_id}-{of}.svg")


def _curve(training: Training, of: CurveName | StrategyCurveName) -> Chart | None:
    match of:
        case "accuracy" | "loss" | "rate" | "eps" | "speed":
            return training_curve(training, of)
        case _:
            return strategy_curve(training, of)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, request: Request, caller: Submitter) -> Response:
    jobs.cancel(state_of(request).db, job_id, caller=caller)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, request: Request, caller: Submitter) -> Response:
    state = state_of(request)
    jobs.resume(state.db, job_id, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.post("/jobs/{job_id}/rerun")
def rerun_job(job_id: str, request: Request, caller: Submitter) -> Response:
    state = state_of(request)
    job = jobs.rerun(state.db, job_id, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return RedirectResponse(f"/jobs/{job.id}", 303)


# --- what a job page shows --------------------------------------------------------------------------------


class CorruptionRow(NamedTuple):
    name: str
    accuracies: list[float | None]
    """One per severity; absent while it is not done."""
    mean: float | None


class CorruptionTable(NamedTuple):
    severities: list[int]
    rows: list[CorruptionRow]
    means: list[float | None]
    """Over the corruptions, one per severity."""
    mean: float | None
    clean: float | None
    images: int
    done: int
    total: int
    """Cells."""


def _corruptions(job: Job, events: Sequence[JobEvent]) -> CorruptionTable:
    """The accuracies that are known so far; a mean is known once all that it is over is."""
    passes = [event.payload for event in events if event.kind == "corruption"]
    known: dict[tuple[str, int], float] = {(p["corruption"], p["severity"]): p["accuracy"] for p in passes}
    severities, names = job.recipe["severities"], job.recipe["corruptions"]
    cells = [[known.get((name, severity)) for severity in severities] for name in names]
    rows = [CorruptionRow(name.replace("_", " "), row, _mean(row)) for name, row in zip(names, cells, strict=True)]
    return CorruptionTable(
        severities=severities,
        rows=rows,
        means=[_mean(column) for column in zip(*cells, strict=True)],
        mean=_mean([accuracy for row in cells for accuracy in row]),
        clean=known.get(("clean", 0)),
        images=passes[0]["images"] if passes else 0,
        done=len(known.keys() - {("clean", 0)}),
        total=len(names) * len(severities),
    )


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return fmean(known) if len(known) == len(accuracies) else None


def _runs(db: Engine, job: Job) -> list[Job]:
    """The job, the one that it runs again, and those that run it again."""
    before = [jobs.get(db, job.rerun_of)] if job.rerun_of else []
    return [*before, job, *reruns(db, job.id)]


def _upload(db: Engine, job: Job, caller: Caller) -> Upload | None:
    """The upload that an import takes in, where the caller may know of it."""
    same = select(Upload).where(Upload.sha256 == job.recipe["upload"], Upload.finished_at.is_not(None))
    with reading(db) as session:
        uploads = session.scalars(same.order_by(Upload.finished_at)).all()
    return next((upload for upload in uploads if caller.owns(upload.key_id)), None)


def _judges(job: Job) -> list[str]:
    """The catalogue's evaluations that fit this job's data and threat model; of corruptions all fit."""
    protocols = ((name, entry.recipe) for name, entry in RECIPES.items() if isinstance(entry.recipe, AnyProtocol))
    return [
        name
        for name, recipe in protocols
        if recipe.dataset == job.dataset
        and (isinstance(recipe, CorruptionProtocol) or job.norm in {None, recipe.threat.norm})
    ]


def _published(job: Job, parent: Job | None, children: Sequence[Job]) -> Comparison | None:
    """The paper's numbers beside ours: of a training and its best-founded evaluation, or of an evaluation."""
    if job.kind in LEARNERS and (found := compare_accuracy(job)):
        return found
    if job.kind == "train":
        judged = [child for child in children if _says_autoattack(child) and judged_as_published(job, child)]
        return compare(job, max(judged, key=lambda child: (child.result or {})["images"], default=None))
    if job.kind == "evaluate" and parent is not None and entry_of(parent):
        return compare(parent, job)
    return None


def _says_autoattack(job: Job) -> bool:
    ranked = job.kind == "evaluate" and job.status == "succeeded" and why_unranked(job) is None
    return ranked and show_suite(job).startswith("AutoAttack standard")
