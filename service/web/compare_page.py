"""Entries of the leaderboards side by side: choosing them, their comparison, and its curves as files."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Engine

from service.access import needs
from service.comparisons import comparison_of, listed
from service.contenders import FEWEST, MOST, ComparisonError, Contender, EntryName, contenders
from service.leaderboard import UnknownEntryError
from service.leaderboard import entry as find_entry
from service.learning_curves import learning_curves
from service.rows import Board, Row
from service.significance import LEVEL
from service.standings import standings
from service.state import state_of
from service.web import comparison as show
from service.web.charts import svg_file
from service.web.survivors import survivors
from service.web.templating import templates, wants_html

router = APIRouter(include_in_schema=False)
Entries = Annotated[list[EntryName], Query(default_factory=list)]
_SUGGESTIONS = 300
"""So many entries a form offers while one types."""


@router.get("/compare", dependencies=[needs("leaderboard")])
def compare_page(request: Request, entry: Entries, sort: show.Order = "class") -> Response:
    names = [name for name in map(str.strip, entry) if name]  # a form sends what was left empty, too
    if len(names) < FEWEST:
        return _choose(request, names)
    try:
        group = contenders(state_of(request).db, names)
    except (ComparisonError, UnknownEntryError) as error:
        if not wants_html(request):
            raise
        return _choose(request, names, str(error), 404 if isinstance(error, UnknownEntryError) else 422)
    return _compare(request, group, sort)


@router.get("/compare/curves.svg", dependencies=[needs("leaderboard")])
def compared_curves(request: Request, entry: Entries, of: show.CurveKind = "robust") -> Response:
    """One of the comparison's charts, on its own."""
    db = state_of(request).db
    group = contenders(db, entry)
    chart = show.curve_chart(of, learning_curves(db, group), {one.label: one.row.name for one in group})
    if chart is None:
        raise UnknownEntryError("none of these entries has such a curve; only models that were trained here have")
    return svg_file(chart, f"{of}-curves.svg")


def _compare(request: Request, group: Sequence[Contender], sort: show.Order) -> Response:
    state = state_of(request)
    compared = comparison_of(group, learning_curves(state.db, group))
    entries = [one.row.entry for one in group]
    context = {
        "compared": compared,
        "entries": entries,
        "by_label": {one.label: one for one in group},
        "lower_known": any(one.row.best_known_accuracy < one.row.robust_accuracy for one in group),
        "level": LEVEL,
        "sort": sort,
        "verdict": show.verdict(compared),
        "pair_tables": show.pair_tables(compared.tests),
        "unpaired": show.reasons(compared),
        "class_tables": show.class_tables(compared.classes, sort),
        "charts": show.charts(compared, entries),
        "survivors": survivors(state.artifacts, group),
        "suggestions": _suggestions(state.db, group[0].row.board) if len(group) < MOST else [],
        "address": show.address,
        "listed": listed,
        "signed": show.signed,
        "show_p": show.show_p,
    }
    return templates.TemplateResponse(request, "compare.html", context)


def _choose(request: Request, names: Sequence[str], refusal: str = "", status: int = 200) -> Response:
    """The form; with what was asked for, and what is wrong with it."""
    db = state_of(request).db
    board = _board(db, names)
    context = {
        "names": list(names[:MOST]),
        "refusal": refusal,
        "board": board,
        "suggestions": _suggestions(db, board),
        "fewest": FEWEST,
        "most": MOST,
    }
    return templates.TemplateResponse(request, "compare_choose.html", context, status)


def _board(db: Engine, names: Sequence[str]) -> Board | None:
    """Of the first entry, if there is one."""
    try:
        return find_entry(db, names[0]).board if names else None
    except UnknownEntryError:
        return None


def _suggestions(db: Engine, board: Board | None) -> list[Row]:
    """The best of a board; without one, of each."""
    known = standings(db)
    boards = known.boards if board is None else [board]
    each = max(1, _SUGGESTIONS // max(1, len(boards)))
    return [row for one in boards for row in known.of(one).rows[:each]]
