"""What all pages share: the templates, what they call, and the page of an error."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from pydantic import TypeAdapter, ValidationError

from dkl.architectures import Model, show_model
from dkl.datasets import show_name
from dkl.documents import show_pixels
from dkl.explain import Fault
from service import wording
from service.measured import show_suite, why_unranked
from service.rows import Board
from service.tables import Job

_WEB = Path(__file__).parent
templates = Jinja2Templates(directory=_WEB / "templates")
templates.env.trim_blocks = templates.env.lstrip_blocks = True
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


def wants_html(request: Request) -> bool:
    """Whether a browser asked for a page, rather than a program for data."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, status: int, sentence: str, faults: Sequence[Fault] = ()) -> Response:
    context = {"status": status, "sentence": sentence, "faults": faults}
    return templates.TemplateResponse(request, "error.html", context, status)


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


def _board(job: Job) -> Board:
    return Board(dataset=job.dataset, threat_model=job.norm or "corruptions", eps=job.eps)


def _board_url(board: Board, **more: str | int) -> str:
    eps = None if board.eps is None else repr(board.eps)
    asked = {"dataset": board.dataset, "threat_model": board.threat_model, "eps": eps, **more}
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
    board=_board,
    suite_of=show_suite,
    hedge=_hedge,
    unranked=why_unranked,
    architecture=_architecture,
    fields=wording.fields,
)
templates.env.globals.update(asset=_asset, board_url=_board_url)
