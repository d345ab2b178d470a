"""The HTML pages: the leaderboard, the jobs, one job. Server-rendered; they work without JavaScript."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates

from dkl.catalog import RECIPES, Named
from dkl.datasets import DATASETS, show_name
from dkl.recipes import Protocol, Train, show_model, show_pixels
from service import jobs, leaderboard
from service.db import Job, JobEvent
from service.leaderboard import Board, Row
from service.state import state_of

_WEB = Path(__file__).parent / "web"
router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(directory=_WEB / "templates")
_templates.env.trim_blocks = _templates.env.lstrip_blocks = True


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
    db = state_of(request).db
    job = jobs.get(db, job_id)
    events = jobs.events(db, job_id)
    context = {
        "job": job,
        "over": job.status in jobs.TERMINAL,
        "parent": jobs.get(db, job.parent_id) if job.parent_id else None,
        "children": jobs.children(db, job_id),
        "history": [event for event in events if event.kind in {"status", "started"}],
        "epochs": [event.payload for event in reversed(events) if event.kind == "epoch"],
        "waterfall": _waterfall(job, events) if job.kind == "evaluate" else None,
        "classes": _classes(job),
        "judges": _judges(job),
        "published": _published(job),
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


class Step(NamedTuple):
    """What one stage of an evaluation left standing, as fractions of the images seen."""

    name: str
    accuracy: float
    before: float
    seconds: float


class Waterfall(NamedTuple):
    steps: list[Step]
    images: int
    chunk: int
    chunks: int


def _waterfall(job: Job, events: Sequence[JobEvent]) -> Waterfall | None:
    """The accuracy after each stage: of the result, or before the end of the chunks so far."""
    chunks = [event.payload for event in events if event.kind == "chunk"]
    total = chunks[0]["chunks"] if chunks else 0
    if job.result:
        stages = [(s["name"], s["accuracy"], s["seconds"]) for s in job.result["stages"]]
        images = job.result["images"]
    elif chunks:
        columns = list(zip(*(chunk["stages"] for chunk in chunks), strict=True))
        flags = ["".join(stage["standing"] for stage in column) for column in columns]
        images = len(flags[0])
        stages = [
            (column[0]["name"], standing.count("1") / images, sum(stage["seconds"] for stage in column))
            for column, standing in zip(columns, flags, strict=True)
        ]
    else:
        return None
    before = [1.0, *(accuracy for _, accuracy, _ in stages)]
    steps = [Step(name, accuracy, b, s) for (name, accuracy, s), b in zip(stages, before, strict=False)]
    return Waterfall(steps, images, len(chunks), total)


def _classes(job: Job) -> list[tuple[str, float | None]]:
    """The robust accuracy of each class."""
    accuracies = (job.result or {}).get("class_robust_accuracy", ())
    names = DATASETS[job.dataset].class_names if job.dataset in DATASETS else map(str, range(len(accuracies)))
    return list(zip(names, accuracies, strict=False))


def _judges(job: Job) -> list[str]:
    """The catalogue's evaluations that fit this job's data and threat model."""
    protocols = ((name, entry.recipe) for name, entry in RECIPES.items() if isinstance(entry.recipe, Protocol))
    return [n for n, r in protocols if r.dataset == job.dataset and job.norm in {None, r.threat.norm}]


def _published(job: Job) -> Named | None:
    entry = RECIPES.get(job.name or "")
    return entry if entry and entry.published else None


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


# --- words and numbers ------------------------------------------------------------------------------------


def _percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    """The two largest units: "3 min 20 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (unit, size), (smaller, part) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _ago(at: float) -> str:
    passed = time.time() - at  # for the eye only: what is kept is in the database's time
    if passed < 1:
        return "just now"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= size:
            return f"{passed // size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def _when(at: float, layout: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    return datetime.fromtimestamp(at, UTC).strftime(layout)


def _title(job: Job) -> str:
    return job.name or f"{job.kind} on {show_name(job.dataset)}"


def _architecture(job: Job) -> str:
    return show_model(Train.model_validate(job.recipe).model)


def _board_url(board: Board, **more: str) -> str:
    return "/?" + urlencode({"dataset": board.dataset, "norm": board.norm, "eps": repr(board.eps), **more})


def _fields(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The recipe in the words of its overrides: ("threat.eps", "8/255")."""
    return [(path, _field(path, value)) for path, value in _leaves(recipe, "")]


def _leaves(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _field(path: str, value: Any) -> str:
    if path.endswith(".eps") and isinstance(value, float):
        return show_pixels(value)
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _asset(name: str) -> str:
    """The address of a static file; it changes with the content, so that no browser shows an old one."""
    digest = hashlib.sha256((_WEB / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:8]}"


_templates.env.filters.update(
    pixels=show_pixels,
    dataset=show_name,
    percent=_percent,
    count=_count,
    duration=_duration,
    ago=_ago,
    when=_when,
    title_of=_title,
    architecture=_architecture,
    fields=_fields,
)
_templates.env.globals.update(asset=_asset, board_url=_board_url)
