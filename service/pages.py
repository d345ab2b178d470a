"""The HTML pages: the leaderboard, the jobs, one job. Server-rendered; they work without JavaScript."""

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates
from pydantic import TypeAdapter, ValidationError

from dkl.architectures import Model, show_model
from dkl.catalog import RECIPES
from dkl.datasets import show_name
from dkl.documents import show_pixels
from dkl.protocols import AnyProtocol, CorruptionProtocol
from service import jobs, leaderboard, wording
from service.db import Job, JobEvent
from service.leaderboard import Board, Row, show_suite, why_unranked
from service.published import Comparison, compare, entry_of, judged_as_published
from service.state import state_of
from service.stored import stored_file
from service.training import training_of
from service.verdict import curve_of, verdict_of

_WEB = Path(__file__).parent / "web"
router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(directory=_WEB / "templates")
_templates.env.trim_blocks = _templates.env.lstrip_blocks = True
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


# --- routes -----------------------------------------------------------------------------------------------


@router.get("/")
def leaderboard_page(request: Request, question: Annotated[leaderboard.Question, Query()]) -> Response:
    found = leaderboard.find(state_of(request).db, question)
    context = {
        "found": found,
        "sort": question.sort,
        "search": question.search,
        "scatter": _scatter(found.rows),
    }
    return _templates.TemplateResponse(request, "leaderboard.html", context)


@router.get("/jobs")
def jobs_page(request: Request) -> Response:
    db = state_of(request).db
    newest = jobs.recent(db)
    known = {job.id: job for job in newest}
    parents = {
        job.parent_id: known.get(job.parent_id) or jobs.get(db, job.parent_id) for job in newest if job.parent_id
    }
    context = {"jobs": newest, "parents": parents, "busy": any(job.status not in jobs.TERMINAL for job in newest)}
    return _templates.TemplateResponse(request, "jobs.html", context)


@router.get("/jobs/{job_id}")
def job_page(job_id: str, request: Request) -> Response:
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
        "history": [event for event in events if event.kind in {"status", "started", "adjusted"}],
        "training": training_of(job, events) if job.kind == "train" else None,
        "verdict": verdict,
        "curve": curve_of(verdict.points) if verdict else None,
        "corruptions": _corruptions(job, events) if job.kind == "corruptions" else None,
        "stored": {kind for kind in ("evidence", "checkpoint") if stored_file(state.artifacts, job, kind)},
        "judges": _judges(job),
        "published": _published(job, parent, children),
    }
    return _templates.TemplateResponse(request, "job.html", context)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, request: Request, sec_fetch_site: Annotated[str, Header()] = "none") -> Response:
    if sec_fetch_site not in {"same-origin", "none"}:
        raise HTTPException(403, "another site asked to cancel this job; open the job here and cancel it yourself")
    jobs.cancel(state_of(request).db, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.get("/api/docs")
def api_page(request: Request) -> Response:
    return _templates.TemplateResponse(request, "api.html", {"api": request.app.openapi()})


def wants_html(request: Request) -> bool:
    """Whether a browser asked for a page, rather than a program for data."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, status: int, sentence: str) -> Response:
    return _templates.TemplateResponse(request, "error.html", {"status": status, "sentence": sentence}, status)


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


# --- the picture of a board -------------------------------------------------------------------------------


class Dot(NamedTuple):
    row: Row
    x: float
    y: float


class Scatter(NamedTuple):
    """Clean against robust accuracy in a frame of 100 x 100, y downwards."""

    dots: list[Dot]
    x_ticks: list[tuple[float, float]]
    """Place and value."""
    y_ticks: list[tuple[float, float]]


def _scatter(rows: Sequence[Row]) -> Scatter | None:
    if not rows:
        return None
    x_ticks = _ticks([row.clean_accuracy for row in rows])
    y_ticks = _ticks([row.robust_accuracy for row in rows])
    dots = [
        Dot(row, _place(row.clean_accuracy, x_ticks), 100 - _place(row.robust_accuracy, y_ticks)) for row in rows
    ]
    return Scatter(
        dots,
        [(_place(value, x_ticks), value) for value in x_ticks],
        [(100 - _place(value, y_ticks), value) for value in y_ticks],
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose `values` with some air, within [0, 1]."""
    low, high = min(values), max(values)
    span = max(high - low, 0.04)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if span / step <= 6 or step == 0.2)
    first = max(0, math.floor((low - span / 12) / step + 1e-9))
    last = min(round(1 / step), math.ceil((high + span / 12) / step - 1e-9))
    return [round(i * step, 2) for i in range(first, last + 1)]


def _place(value: float, ticks: Sequence[float]) -> float:
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)


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


def _board_url(board: Board, **more: str) -> str:
    return "/?" + urlencode({"dataset": board.dataset, "norm": board.norm, "eps": repr(board.eps), **more})


@cache
def _asset(name: str) -> str:
    """The address of a static file; it changes with the content, so that no browser shows an old one."""
    digest = hashlib.sha256((_WEB / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:8]}"


_templates.env.filters.update(
    pixels=show_pixels,
    dataset=show_name,
    percent=wording.percent,
    count=wording.count,
    many=wording.many,
    duration=wording.duration,
    ago=wording.ago,
    when=wording.when,
    title_of=_title,
    suite_of=show_suite,
    hedge=_hedge,
    unranked=why_unranked,
    architecture=_architecture,
    fields=wording.fields,
)
_templates.env.globals.update(asset=_asset, board_url=_board_url)
