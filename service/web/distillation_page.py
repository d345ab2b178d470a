"""The distillation boards: their page, and its picture as a file."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request, Response

from service.access import needs
from service.distillation import (
    UNDISTILLED,
    DistillationBoard,
    DistillationRow,
    Question,
    boards,
    find,
    left_out,
    matching,
)
from service.state import state_of
from service.web.dots import DotPlot, Lane, Mark, Reference, dot_plot, svg_file
from service.web.templating import templates

router = APIRouter(include_in_schema=False, dependencies=[needs("leaderboard")])
OURS = frozenset({"IKL-KD", "GKL-KD"})
"""The methods of the papers that this project is about."""
_OPTIONAL = ("gain", "seconds_per_iteration", "extra_parameters", "many", "medium", "few")


@router.get("/distillation")
def distillation_page(request: Request, question: Annotated[Question, Query()]) -> Response:
    db = state_of(request).db
    found = find(db, question)
    everything = boards(db)[found.board]
    exists = question.page <= max(1, found.pages)
    _, rows = matching(db, question)
    context = {
        "found": found,
        "asked": question,
        "exists": exists,
        "columns": {name for name in _OPTIONAL if any(getattr(row, name) is not None for row in everything)},
        "pair": _pair(rows),
        "teachers": _names(row.teacher for row in everything),
        "students": _names(row.student for row in everything),
        "methods": _names(row.method for row in everything),
        "picture": picture(found.board, rows),
        "left_out": [one for one in left_out() if one.dataset == found.board.dataset],
        "query": urlencode(_set(question)),
        "address": _Address(found.board, question),
    }
    return templates.TemplateResponse(request, "distillation.html", context, 200 if exists else 404)


@router.get("/distillation.svg")
def distillation_picture(request: Request, question: Annotated[Question, Query()]) -> Response:
    board, rows = matching(state_of(request).db, question)
    plot = picture(board, rows)
    if plot is None:
        raise HTTPException(404, "no row that matches can be drawn; ask for less, or for one teacher and student")
    return svg_file(plot, f"distillation-{board.name}.svg")


class _Address:
    """Addresses of the page, like the one that was asked for but for what is given."""

    def __init__(self, board: DistillationBoard, question: Question) -> None:
        self._here = {"board": board.name, **_set(question)}

    def __call__(self, **changes: str | int) -> str:
        kept = {name: value for name, value in self._here.items() if name != "page"}
        return "/distillation?" + urlencode({name: value for name, value in {**kept, **changes}.items() if value})


def _set(question: Question) -> dict[str, str | int]:
    """What was asked for, without what would be so anyway."""
    asked: dict[str, str | int] = question.model_dump(exclude_defaults=True)
    return asked


def _names(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value}, key=str.casefold)


def _pair(rows: Sequence[DistillationRow]) -> tuple[str | None, str] | None:
    """The teacher and the student that all rows are about; None where there are several."""
    pairs = {row.pair for row in rows if row.method != UNDISTILLED}
    return pairs.pop() if len(pairs) == 1 else None


# --- the picture ------------------------------------------------------------------------------------------


def picture(board: DistillationBoard, rows: Sequence[DistillationRow]) -> DotPlot | None:
    """Accuracies by method where all rows have one teacher and student; else what methods gain over students."""
    distilled = [row for row in rows if row.method != UNDISTILLED]
    pair = _pair(rows)
    return _accuracies(board, distilled, _name(*pair)) if pair else _gains(board, distilled)


def _accuracies(board: DistillationBoard, rows: Sequence[DistillationRow], pair: str) -> DotPlot | None:
    marks: dict[str, list[Mark]] = defaultdict(list)
    for row in rows:
        marks[row.method].append(Mark(100 * row.accuracy, _printed(row)))
    alone = {
        "student alone": next((row.student_accuracy for row in rows if row.student_accuracy is not None), None),
        "teacher alone": next((row.teacher_accuracy for row in rows if row.teacher_accuracy is not None), None),
    }
    references = [
        Reference(100 * value, f"{who} {100 * value:.2f}") for who, value in alone.items() if value is not None
    ]
    title = f"{board.metric.capitalize()}, {pair}"
    return dot_plot(title, _lanes(marks), x_label=board.metric, unit="%", references=references)


def _gains(board: DistillationBoard, rows: Sequence[DistillationRow]) -> DotPlot | None:
    marks: dict[str, list[Mark]] = defaultdict(list)
    for row in rows:
        if row.gain is not None:
            marks[row.method].append(Mark(100 * row.gain, f"{_name(*row.pair)} ({_printed(row)})"))
    title = f"Gain over the student alone, {board.title}"
    nothing = [Reference(0.0, "student alone")]
    return dot_plot(title, _lanes(marks), x_label="gain", unit="points", references=nothing)


def _lanes(marks: Mapping[str, Sequence[Mark]]) -> list[Lane]:
    """The best method first, by the mean over its marks."""
    best = sorted(marks, key=lambda method: fmean(mark.value for mark in marks[method]), reverse=True)
    return [Lane(method, marks[method], stands_out=method in OURS) for method in best]


def _name(teacher: str | None, student: str) -> str:
    return f"{teacher} to {student}" if teacher else student


def _printed(row: DistillationRow) -> str:
    return ", ".join(source.short for source in row.printed) or row.source
