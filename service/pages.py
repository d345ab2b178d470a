"""The HTML pages: the leaderboard, the jobs, one job. Server-rendered; they work without JavaScript."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from pydantic import TypeAdapter, ValidationError

from dkl.architectures import Model, show_model
from dkl.catalog import RECIPES
from dkl.datasets import show_name
from dkl.documents import show_pixels
from dkl.protocols import AnyProtocol, CorruptionProtocol
from service import jobs, leaderboard, wording
from service.access import Reader, Submitter, needs
from service.history import history_of, reruns
from service.outlook import asked, obstacles, outlook
from service.published import Comparison, compare, entry_of, judged_as_published
from service.queue import ring
from service.roster import roster
from service.rows import Board, show_suite, why_unranked
from service.scatter import scatter
from service.state import state_of
from service.stored import stored_file
from service.tables import Job, JobEvent
from service.training import training_of
from service.verdict import curve_of, verdict_of

_WEB = Path(__file__).parent / "web"
router = APIRouter(include_in_schema=False)
templates = Jinja2Templates(directory=_WEB / "templates")
templates.env.trim_blocks = templates.env.lstrip_blocks = True
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


# --- routes -----------------------------------------------------------------------------------------------


@router.get("/", dependencies=[needs("leaderboard")])
def leaderboard_page(request: Request, question: Annotated[leaderboard.Question, Query()]) -> Response:
    found = leaderboard.find(state_of(request).db, question)
    context = {
        "found": found,
        "sort": question.sort,
        "search": question.search,
        "page": question.page,
        "limit": question.limit,
        "scatter": scatter(found.rows),
    }
    return templates.TemplateResponse(request, "leaderboard.html", context)


@router.get("/jobs", dependencies=[needs("read")])
def jobs_page(request: Request) -> Response:
    state = state_of(request)
    db = state.db
    newest = jobs.recent(db)
    known = {job.id: job for job in newest}
    parents = {
        job.parent_id: known.get(job.parent_id) or jobs.get(db, job.parent_id) for job in newest if job.parent_id
    }
    context = {
        "jobs": newest,
        "parents": parents,
        "obstacles": obstacles(db, newest, roster(db, lease_seconds=state.settings.lease_seconds)),
        "busy": any(job.status not in jobs.TERMINAL for job in newest),
    }
    return templates.TemplateResponse(request, "jobs.html", context)


@router.get("/jobs/{job_id}")
def job_page(job_id: str, request: Request, caller: Reader) -> Response:
    state = state_of(request)
    db = state.db
    job = jobs.get(db, job_id)
    events = jobs.events(db, job_id)
    verdict = verdict_of(job, events) if job.kind == "evaluate" else None
    parent = jobs.get(db, job.parent_id) if job.parent_id else None
    children = jobs.children(db, job_id)
    context = {
        "job": job,
        "over": job.status in jobs.TERMINAL,
        "parent": parent,
        "children": children,
        "mine": caller.may("submit") and caller.owns(job.key_id),
        "asked": asked(job),
        "outlook": outlook(db, job, roster(db, lease_seconds=state.settings.lease_seconds)),
        "grace_seconds": state.settings.grace_seconds,
        "reruns": reruns(db, job_id),
        "history": history_of(events),
        "training": training_of(job, events) if job.kind == "train" else None,
        "verdict": verdict,
        "curve": curve_of(verdict.points) if verdict else None,
        "corruptions": _corruptions(job, events) if job.kind == "corruptions" else None,
        "stored": {kind for kind in ("evidence", "checkpoint") if stored_file(state.artifacts, job, kind)},
        "judges": _judges(job),
        "published": _published(job, parent, children),
    }
    return templates.TemplateResponse(request, "job.html", context)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, request: Request, caller: Submitter) -> Response:
    jobs.cancel(state_of(request).db, job_id, caller=caller)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.post("/jobs/{job_id}/rerun")
def rerun_job(job_id: str, request: Request, caller: Submitter) -> Response:
    state = state_of(request)
    job = jobs.rerun(state.db, job_id, caller=caller, max_queued=state.settings.max_queued)
    ring(state.db, state.settings)
    return RedirectResponse(f"/jobs/{job.id}", 303)


@router.get("/api/docs", dependencies=[needs("leaderboard")])
def api_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "api.html", {"api": request.app.openapi()})


@router.get("/api/openapi.json", dependencies=[needs("leaderboard")])
def api_document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


def wants_html(request: Request) -> bool:
    """Whether a browser asked for a page, rather than a program for data."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, status: int, sentence: str) -> Response:
    return templates.TemplateResponse(request, "error.html", {"status": status, "sentence": sentence}, status)


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
    if job.kind == "train":
        judged = [child for child in children if _says_autoattack(child) and judged_as_published(job, child)]
        return compare(job, max(judged, key=lambda child: (child.result or {})["images"], default=None))
    if job.kind == "evaluate" and parent is not None and entry_of(parent):
        return compare(parent, job)
    return None


def _says_autoattack(job: Job) -> bool:
    ranked = job.kind == "evaluate" and job.status == "succeeded" and why_unranked(job) is None
    return ranked and show_suite(job).startswith("AutoAttack standard")


# --- what templates call ----------------------------------------------------------------------------------


def _title(job: Job) -> str:
    return job.name or f"{job.kind} on {show_name(job.dataset)}"


def _hedge(job: Job) -> str:
    """The word that a robust accuracy needs in front: "at most" where the evaluation stopped early."""
    if (job.result or {}).get("stopped_early"):
        return "at most"
    return "estimate" if job.recipe.get("policy") == "screen" else ""


def _architecture(job: Job) -> str:
    """The network's name; its kind where the document is one that today's recipes do not know any more."""
    document = job.recipe.get("model") or {}
    try:
        return show_model(_MODEL.validate_python(document))
    except ValidationError:
        return str(document.get("kind", "a network"))


def _board_url(board: Board, **more: str | int) -> str:
    asked = {"dataset": board.dataset, "norm": board.norm, "eps": repr(board.eps), **more}
    return "/?" + urlencode({name: value for name, value in asked.items() if value})


@cache
def _asset(name: str) -> str:
    """The address of a static file; it changes with the content, so that no browser shows an old one."""
    digest = hashlib.sha256((_WEB / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:8]}"


templates.env.filters.update(
    pixels=show_pixels,
    dataset=show_name,
    percent=wording.percent,
    count=wording.count,
    many=wording.many,
    duration=wording.duration,
    ago=wording.ago,
    since=wording.since,
    when=wording.when,
    title_of=_title,
    suite_of=show_suite,
    hedge=_hedge,
    unranked=why_unranked,
    architecture=_architecture,
    fields=wording.fields,
)
templates.env.globals.update(asset=_asset, board_url=_board_url)
