"""A study as a table in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from service.wording import duration

Study = Mapping[str, Any]
"""GET /api/v1/studies/NAME."""
Row = Mapping[str, Any]


def study_table(found: Study, rows: Sequence[Row]) -> Table:
    """Published beside measured, accuracies in percent; fits into 80 columns."""
    same_data = found["dataset"] == found["published_dataset"]
    table = Table(
        title=f"{found['title']}: {found['table_title']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", min_width=11)
    for heading in ("published", "clean", "robust", "95 %", "difference" if same_data else "ahead", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row["method"]), *_cells(row, same_data))
    return table


def study_words(found: Study, rows: Sequence[Row]) -> list[str]:
    """What one should know who reads the table, a paragraph each."""
    images = ", ".join(sorted({str(row["images"]) for row in rows if row["images"]}))
    same_data = found["dataset"] == found["published_dataset"]
    last = (
        "difference: robust accuracy, measured less published"
        if same_data
        else f"ahead: of {found['reference']} in robust accuracy, published/measured; published on "
        f"{found['published_dataset']}, measured on {found['dataset']}"
    )
    return [
        f"In percent; published: clean/AutoAttack; robust: on {images or 'no'} images; time: of training, or how "
        f"far it is; {last}.",
        f"It can say: {found['can_say']}",
        f"It cannot say: {found['cannot_say']}",
    ]


def _cells(row: Row, same_data: bool) -> Iterator[str]:
    printed, interval = row["published"], row["robust_interval"]
    yield f"{_percent(printed['clean_accuracy'])}/{_percent(printed['robust_accuracy'])}" if printed else ""
    if row["robust_accuracy"] is None:
        yield from ("", "", "")
    else:
        yield from (_percent(row["clean_accuracy"]), f"[bold]{_percent(row['robust_accuracy'])}")
        yield f"{100 * interval[0]:.1f}..{100 * interval[1]:.1f}"
    here = row["robust_difference"] if same_data else row["measured_lead"]
    yield _points(here) if same_data else f"{_points(row['published_lead'])}/{_points(here)}"
    seconds = row["training"] and row["training"]["seconds"]
    yield row["state"] if row["robust_accuracy"] is None or seconds is None else duration(seconds)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _points(difference: float | None) -> str:
    return "" if difference is None else f"{100 * difference:+.2f}"
