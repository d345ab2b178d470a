"""The distillation boards as JSON and as CSV."""

import csv
import io
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.access import needs
from service.distillation import Distillation, DistillationRow, Question, find, matching
from service.problems import ANSWERS, Problem
from service.state import state_of

router = APIRouter(
    prefix="/api/v1",
    responses={**ANSWERS, 404: {"model": Problem, "description": "There is no such board"}},
    dependencies=[needs("leaderboard")],
)
_CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "One line per row"}
}
_COLUMNS = [
    *("rank", "method", "teacher", "student", "accuracy", "spread", "gain", "many", "medium", "few"),
    *(
        "teacher_accuracy",
        "student_accuracy",
        "seconds_per_iteration",
        "extra_parameters",
        "source",
        "job_id",
        "note",
    ),
]


@router.get("/distillation")
def get_distillation(request: Request, question: Annotated[Question, Query()]) -> Distillation:
    """Results of knowledge distillation on one board: what each method makes of a student, beside what student and
    teacher reach alone. Accuracies are fractions; the board says which metric they are."""
    return find(state_of(request).db, question)


@router.get("/distillation.csv", responses=_CSV, response_class=Response)
def get_distillation_csv(request: Request, question: Annotated[Question, Query()]) -> Response:
    """The same as a table: every row that matches, on all pages together."""
    board, rows = matching(state_of(request).db, question)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["board", "dataset", "metric", *_COLUMNS, "printed_in", "urls"])
    writer.writerows([board.name, board.dataset, board.metric, *_cells(row)] for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="distillation-{board.name}.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


def _cells(row: DistillationRow) -> list[object]:
    citations = "; ".join(printed.citation for printed in row.printed)
    return [*(getattr(row, name) for name in _COLUMNS), citations, " ".join(p.url for p in row.printed)]
