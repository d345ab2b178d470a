"""What distillation reaches: published results and those of this service, board by board.

A board is about one data set; accuracies are compared between methods that distil the same teacher into the same
student, so that is what a rank is among. Students that were made robust are not here: the leaderboard ranks them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, computed_field, model_validator
from sqlalchemy import Engine

from dkl.datasets import show_name
from service.distilled import Distilled, distilled

_FILE = Path(__file__).parent / "data" / "distillation.json"
UNDISTILLED = "no distillation"
"""The method of a row whose student learnt without a teacher."""

Sort = Literal[
    "accuracy", "-accuracy", "gain", "-gain", "method", "-method", "teacher", "-teacher", "student", "-student",
    "seconds_per_iteration", "-seconds_per_iteration", "many", "-many", "medium", "-medium", "few", "-few",
]  # fmt: skip


class UnknownBoardError(LookupError):
    """There is no such board; the message says which there are."""


class DistillationBoard(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """In addresses: "cifar100-same"."""
    title: str
    dataset: str
    metric: Literal["top-1 accuracy", "mean intersection over union"]
    """What `accuracy` is on this board."""
    note: str | None = None


class PrintedIn(BaseModel):
    """Where a number is printed."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    short: str
    citation: str
    url: str
    protocol: str | None = None
    """What holds for all of its numbers: "mean of 3 trials"."""


class DistillationRow(BaseModel):
    """One result: what a method made of a student. Accuracies are fractions in [0, 1]."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rank: int | None = None
    """By accuracy among the rows of its board with the same teacher and student; equal accuracies share a rank.
    Absent where there is no other, or nothing was distilled."""
    method: str
    teacher: str | None
    """Absent where there is none."""
    student: str
    accuracy: float
    """The board's metric."""
    spread: float | None = None
    """Plus or minus, as it is printed."""
    many: float | None = None
    """Accuracy on classes with more than 100 training images; of long-tailed data."""
    medium: float | None = None
    """On those with 20 to 100."""
    few: float | None = None
    """On those with fewer than 20."""
    teacher_accuracy: float | None = None
    """Of the teacher alone."""
    student_accuracy: float | None = None
    """Of the student, trained without a teacher."""
    seconds_per_iteration: float | None = None
    extra_parameters: int | Literal["some"] | None = None
    """Learnt beside the student's own; "some" where the source does not count them."""
    source: Literal["measured", "published"] = "published"
    printed: list[PrintedIn] = []
    """Everywhere that this number is printed; of a published row."""
    job_id: str | None = None
    """Of a measured row: the job that distilled."""
    finished_at: float | None = None
    note: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gain(self) -> float | None:
        """Accuracy over that of the student alone."""
        return None if self.student_accuracy is None else round(self.accuracy - self.student_accuracy, 7)

    @property
    def pair(self) -> tuple[str | None, str]:
        return self.teacher, self.student


class LeftOut(BaseModel):
    """A published number that is no row."""

    dataset: str
    teacher: str
    student: str
    method: str
    accuracy: float
    reason: str


class Question(BaseModel):
    """What a reader may ask for, as query parameters; an empty one is as good as none."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    board: Annotated[str, Field(max_length=100)] | None = None
    """By its name; the first one where nothing is said."""
    teacher: Annotated[str, Field(max_length=100)] | None = None
    student: Annotated[str, Field(max_length=100)] | None = None
    method: Annotated[str, Field(max_length=100)] | None = None
    sort: Sort = "-accuracy"
    """A column; with a minus in front from high to low. Rows without a value come last."""
    search: Annotated[str, Field(max_length=100)] = ""
    """Looked for in methods, networks, sources and notes."""
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Which rows, from 1; beyond the last page there are none."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """Rows of a page."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, asked: Any) -> Any:
        return {name: value for name, value in asked.items() if value != ""} if isinstance(asked, dict) else asked


class Distillation(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    boards: list[DistillationBoard]
    board: DistillationBoard
    """The one whose rows follow."""
    rows: list[DistillationRow]
    """Those of the page that was asked for."""
    total: int
    """Rows that match, on all pages together."""
    pages: int


def find(db: Engine, question: Question) -> Distillation:
    """A page of the rows that match; UnknownBoardError where there is no such board."""
    known = boards(db)
    board = _board_of(known, question)
    rows = _matching(known[board], question)
    first = (question.page - 1) * question.limit
    return Distillation(
        boards=list(known),
        board=board,
        rows=rows[first : first + question.limit],
        total=len(rows),
        pages=-(-len(rows) // question.limit),
    )


def matching(db: Engine, question: Question) -> tuple[DistillationBoard, list[DistillationRow]]:
    """The rows of every page, in the order that was asked for; UnknownBoardError where there is no such board."""
    known = boards(db)
    board = _board_of(known, question)
    return board, _matching(known[board], question)


def boards(db: Engine) -> Mapping[DistillationBoard, Sequence[DistillationRow]]:
    """Every row of every board, ranked: the published boards first."""
    published, students = _published().boards, [one for one in distilled(db) if one.norm is None]
    if not students:
        return published
    rows = {board: list(known) for board, known in published.items()}
    for student in students:
        board, row = _measured(student)
        rows.setdefault(board, []).append(row)
    return {board: _ranked(some) for board, some in rows.items()}


def _board_of(known: Mapping[DistillationBoard, object], question: Question) -> DistillationBoard:
    by_name = {board.name: board for board in known}
    name = question.board or next(iter(by_name))
    if name not in by_name:
        raise UnknownBoardError(f"there is no distillation board {name!r}; there are {', '.join(by_name)}")
    return by_name[name]


def _matching(everything: Sequence[DistillationRow], question: Question) -> list[DistillationRow]:
    rows = [row for row in everything if _matches(row, question)]
    column = question.sort.removeprefix("-")
    known = [row for row in rows if getattr(row, column) is not None]
    known.sort(key=_key(column), reverse=question.sort.startswith("-"))
    return known + [row for row in rows if getattr(row, column) is None]


def left_out() -> Sequence[LeftOut]:
    """Published numbers that are on no board, with the reason."""
    return _published().left_out


def _key(column: str) -> Callable[[DistillationRow], Any]:
    """Of a row that has a value there; names in the order of a dictionary."""

    def key(row: DistillationRow) -> Any:
        value = getattr(row, column)
        return value.casefold() if isinstance(value, str) else value

    return key


def _matches(row: DistillationRow, question: Question) -> bool:
    needle = question.search.casefold().strip()
    return (
        question.teacher in {None, row.teacher}
        and question.student in {None, row.student}
        and question.method in {None, row.method}
        and (not needle or needle in _text(row))
    )


def _text(row: DistillationRow) -> str:
    printed = (f"{source.short} {source.citation}" for source in row.printed)
    return " ".join([row.method, row.teacher or "", row.student, row.note or "", *printed]).casefold()


# --- what was measured here -------------------------------------------------------------------------------


def _measured(student: Distilled) -> tuple[DistillationBoard, DistillationRow]:
    """The row of a student and its board: that of its teacher and student, or of its data set, or a new one."""
    title = show_name(student.dataset).partition(", 2")[0]  # without the side of pictures
    candidates = [board for board in _published().boards if board.dataset == title and "top-1" in board.metric]
    pair = (_plain(student.teacher), _plain(student.student))
    board = next((board for board in candidates if pair in _pairs(board)), next(iter(candidates), None))
    if board is None:
        board = DistillationBoard(name=student.dataset, title=title, dataset=title, metric="top-1 accuracy")
        printed = None
    else:
        printed = _pairs(board).get(pair)
    published = student.published_accuracy
    return board, DistillationRow(
        method=student.method,
        teacher=printed.teacher if printed else student.teacher,
        student=printed.student if printed else student.student,
        accuracy=student.accuracy,
        many=student.many,
        medium=student.medium,
        few=student.few,
        teacher_accuracy=student.teacher_accuracy,
        student_accuracy=printed.student_accuracy if printed else None,
        seconds_per_iteration=student.seconds_per_iteration,
        extra_parameters=student.extra_parameters,
        source="measured",
        job_id=student.job_id,
        finished_at=student.finished_at,
        note=None if published is None else f"published for the same recipe: {100 * published:.2f} %",
    )


@cache
def _pairs(board: DistillationBoard) -> dict[tuple[str, str], DistillationRow]:
    """A published row of each teacher and student."""
    rows = _published().boards.get(board, [])
    return {(_plain(row.teacher), _plain(row.student)): row for row in rows if row.teacher is not None}


def _plain(name: str | None) -> str:
    """A network's name without what papers spell differently: "ShuffleNet-V1" and "ShuffleV1" are one."""
    return re.sub(r"[^a-z0-9]", "", (name or "").casefold()).replace("shufflenet", "shuffle")


# --- what comes with the package --------------------------------------------------------------------------


class _Line(BaseModel):
    """A row of data/distillation.json, with names of sources; accuracies in percent, as printed."""

    model_config = ConfigDict(extra="forbid")

    teacher: str | None = None
    student: str
    method: str
    accuracy: float
    spread: float | None = None
    many: float | None = None
    medium: float | None = None
    few: float | None = None
    teacher_accuracy: float | None = None
    student_accuracy: float | None = None
    seconds_per_iteration: float | None = None
    extra_parameters: int | Literal["some"] | None = None
    sources: list[str]
    note: str | None = None


class _Lines(DistillationBoard):
    rows: list[_Line]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    about: str
    beside: int
    """Numbers of the sources that are no rows but stand beside them: teachers and students alone."""
    sources: dict[str, PrintedIn]
    left_out: list[LeftOut]
    boards: list[_Lines]


class _Published(NamedTuple):
    boards: dict[DistillationBoard, list[DistillationRow]]
    left_out: list[LeftOut]


_PERCENT = ("accuracy", "spread", "many", "medium", "few", "teacher_accuracy", "student_accuracy")


@cache
def _published() -> _Published:
    file = TypeAdapter(_File).validate_json(_FILE.read_bytes())
    boards = {
        DistillationBoard.model_validate(lines.model_dump(exclude={"rows"})): _ranked(
            [_row(line, file.sources) for line in lines.rows]
        )
        for lines in file.boards
    }
    lost = [one.model_copy(update={"accuracy": _fraction(one.accuracy)}) for one in file.left_out]
    return _Published(boards, lost)


def _row(line: _Line, sources: dict[str, PrintedIn]) -> DistillationRow:
    fractions = {name: _fraction(getattr(line, name)) for name in _PERCENT}
    return DistillationRow(
        **line.model_dump(exclude={"sources", *_PERCENT}),
        **fractions,
        printed=[sources[name] for name in line.sources],
    )


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 7)


def _ranked(rows: list[DistillationRow]) -> list[DistillationRow]:
    """The rows with their ranks, of which equal accuracies to two decimals of a percent share one."""
    pairs: dict[tuple[str | None, str], list[float]] = {}
    for row in rows:
        if row.method != UNDISTILLED:
            pairs.setdefault(row.pair, []).append(round(row.accuracy, 4))

    def rank(row: DistillationRow) -> int | None:
        others = pairs.get(row.pair, [])
        if row.method == UNDISTILLED or len(others) < 2:
            return None
        return 1 + sum(other > round(row.accuracy, 4) for other in others)

    return [row.model_copy(update={"rank": rank(row)}) for row in rows]
