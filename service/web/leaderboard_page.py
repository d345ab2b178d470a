"""The leaderboard: its page, and its two pictures as files."""

from hashlib import sha256
from itertools import groupby
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup

from dkl.datasets import show_name
from dkl.documents import show_pixels
from service import leaderboard
from service.access import needs
from service.leaderboard import Found, NothingThereError, Question
from service.rows import Board, Row
from service.standings import Standing, Standings, standings
from service.state import state_of
from service.web import charts, scatter
from service.web.best import best_over_time
from service.web.templating import templates

router = APIRouter(include_in_schema=False)
Asked = Annotated[Question, Query()]
_PAGE, _SCATTER, _BEST = "/", "/leaderboard/scatter.svg", "/leaderboard/best.svg"


@router.get(_PAGE, dependencies=[needs("leaderboard")])
def leaderboard_page(request: Request, question: Asked) -> Response:
    known = standings(state_of(request).db)
    found = leaderboard.search(known, question)
    here = Address(question, found.board if found else None)
    tag = _tag(request, known.mark, here.to())
    if request.headers.get("if-none-match", "").removeprefix("W/") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    if found is None:
        context = {"tabs": _tabs(known, None), "found": None, "here": here, "asked": question}
        return templates.TemplateResponse(request, "leaderboard.html", context, 404)
    pages = max(1, -(-len(found.places) // question.limit))
    exists = question.page <= pages
    context = _context(known, found, question) | {"pages": pages, "exists": exists, "tag": tag}
    headers = {"ETag": tag} if exists else {}
    if "hx-request" in request.headers and exists and here.to() != _query(request):
        headers["HX-Push-Url"] = here.to()  # of a form, without its empty fields
    return templates.TemplateResponse(request, "leaderboard.html", context, 200 if exists else 404, headers)


@router.get(_SCATTER, dependencies=[needs("leaderboard")])
def scatter_file(request: Request, question: Asked) -> Response:
    picture = scatter.scatter(_found(request, question))
    if picture is None:
        raise NothingThereError("no row matches, so there is nothing to draw; ask for less")
    return scatter.svg_file(picture, "clean-against-robust.svg")


@router.get(_BEST, dependencies=[needs("leaderboard")])
def best_file(request: Request, question: Asked) -> Response:
    chart = best_over_time(_found(request, question))
    if chart is None:
        raise NothingThereError("no row that matches has a date, so there is nothing to draw; ask for less")
    return charts.svg_file(chart, "best-over-time.svg")


def _found(request: Request, question: Question) -> Found:
    found = leaderboard.search(standings(state_of(request).db), question)
    if found is None:
        raise NothingThereError("there is no such board; the leaderboard shows the known ones")
    return found


# --- addresses --------------------------------------------------------------------------------------------


_DEFAULTS = {name: field.default for name, field in Question.model_fields.items()}


class Address:
    """Where a question about a board is answered: only what differs from what one gets anyway."""

    def __init__(self, question: Question, board: Board | None) -> None:
        asked = question.model_dump(exclude_defaults=True)
        if board is not None:
            asked |= {"dataset": board.dataset, "threat_model": board.threat_model, "eps": board.eps}
        self._asked = asked

    def to(self, path: str = _PAGE, **changes: Any) -> str:
        asked = _DEFAULTS | self._asked | changes
        pairs = [(name, _text(value)) for name, value in asked.items() if value != _DEFAULTS[name]]
        return path + ("?" + urlencode(pairs, safe="/:") if pairs else "")


def _plain(board: Board) -> str:
    """Where a board is, as one finds it."""
    return Address(Question(), board).to()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _eps(value) if isinstance(value, float) else str(value)


def _eps(value: float) -> str:
    """As readers write it, "8/255", where nothing is lost by it."""
    text = show_pixels(value)
    over, _, under = text.partition("/")
    return text if abs(float(over) / float(under or 1) - value) < 1e-9 else repr(value)


def _query(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _tag(request: Request, mark: str, address: str) -> str:
    """Changes with whatever the page depends on: the boards, the question, and who reads."""
    caller = request.state.caller
    parts = (mark, address, str(request.base_url), str((caller.key_id, caller.name, caller.scope)))
    return f'"{sha256(chr(10).join(parts).encode()).hexdigest()[:24]}"'


# --- what the page shows ----------------------------------------------------------------------------------


class Tab(NamedTuple):
    title: str
    address: str
    """Of a data set: that of its busiest board."""
    rows: int
    current: bool


class Tabs(NamedTuple):
    datasets: list[Tab]
    threats: list[Tab]
    """Boards of the data set that is shown."""


def _tabs(known: Standings, shown: Board | None) -> Tabs:
    """In an order that no new result changes."""
    datasets = []
    for dataset, some in groupby(sorted(known.boards, key=_order), key=lambda board: board.dataset):
        boards = list(some)
        busiest = max(boards, key=lambda board: known.sizes[board])
        rows, current = sum(known.sizes[board] for board in boards), bool(shown and shown.dataset == dataset)
        datasets.append(Tab(show_name(dataset), _plain(busiest), rows, current))
    boards = [board for board in sorted(known.boards, key=_order) if shown and board.dataset == shown.dataset]
    threats = [Tab(board.threat, _plain(board), known.sizes[board], board == shown) for board in boards]
    return Tabs(datasets, threats)


def _order(board: Board) -> tuple[str, str, int, float]:
    threats = ("Linf", "L2", "L1", "corruptions")
    return show_name(board.dataset).casefold(), board.dataset, threats.index(board.threat_model), board.eps or 0.0


def _context(known: Standings, found: Found, question: Question) -> dict[str, Any]:
    standing = found.standing
    first = (question.page - 1) * question.limit
    return {
        "found": found,
        "board": found.board,
        "tabs": _tabs(known, found.board),
        "asked": question,
        "rows": [standing.shown(place) for place in found.places[first : first + question.limit]],
        "leader": standing.shown(standing.leader),
        "measured": _best_measured(standing),
        "tied": len(standing.rows) - standing.ties.count(None),
        "families": standing.families,
        "here": Address(question, found.board),
        "whole": _plain(found.board),
        "pictures": _pictures(found, question),
    }


class Pictures(NamedTuple):
    """As HTML; empty where there is nothing to draw."""

    scatter: Markup
    best: Markup


def _pictures(found: Found, question: Question) -> Pictures:
    """Those of a whole board are drawn once, until it changes: they show every row, in whatever order."""
    if len(found.places) < len(found.standing.rows):
        return _drawn(found, Address(question, found.board))
    if found.standing not in _whole:
        _whole[found.standing] = _drawn(found, Address(Question(), found.board))
    return _whole[found.standing]


def _drawn(found: Found, here: Address) -> Pictures:
    picture, chart = scatter.scatter(found), best_over_time(found)
    draw = templates.get_template("_pictures.html").render
    return Pictures(
        Markup(draw(which="scatter", scatter=picture, export=here.to(_SCATTER, page=1)) if picture else ""),
        Markup(draw(which="best", best=chart, export=here.to(_BEST, page=1)) if chart else ""),
    )


_whole: WeakKeyDictionary[Standing, Pictures] = WeakKeyDictionary()


def _best_measured(standing: Standing) -> Row | None:
    return next((standing.shown(p) for p, row in enumerate(standing.rows) if row.source == "measured"), None)
