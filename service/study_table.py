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
    """Published beside measured, accuracies in percent; fits into 90 columns."""
    same_data = found["dataset"] == found["published_dataset"]
    table = Table(
        title=f"{found['title']}: {found['table_title']}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("method", min_width=12)
    for heading in ("published", "clean", "robust", "95 %", "difference" if same_data else "ahead", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row["method"]), *_cells(row, same_data))
    images = ", ".join(sorted({str(row["images"]) for row in rows if row["images"]}))
    captions = [
        f"in percent, robust on {images or 'no'} images; published: clean / AutoAttack; time: of training",
        "difference: robust accuracy, measured less published"
        if same_data
        else f"published on {found['published_dataset']}, measured on {found['dataset']}; ahead: of "
        f"{found['reference']} in robust accuracy, published / measured",
        f"it can say: {found['can_say']}",
        f"it cannot say: {found['cannot_say']}",
    ]
    table.caption = "\n".join(map(escape, captions))
    table.caption_justify = "left"
    return table


def _cells(row: Row, same_data: bool) -> Iterator[str]:
    printed, interval = row["published"], row["robust_interval"]
    yield f"{_percent(printed['clean_accuracy'])} / {_percent(printed['robust_accuracy'])}" if printed else ""
    if row["robust_accuracy"] is None:
        yield from (row["state"], "", "")
    else:
        yield from (_percent(row["clean_accuracy"]), f"[bold]{_percent(row['robust_accuracy'])}")
        yield f"{_percent(interval[0])}..{_percent(interval[1])}"
    here = row["robust_difference"] if same_data else row["measured_lead"]
    yield _points(here) if same_data else f"{_points(row['published_lead'])} / {_points(here)}"
    seconds = row["training"] and row["training"]["seconds"]
    yield "" if seconds is None else duration(seconds)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _points(difference: float | None) -> str:
    return "" if difference is None else f"{100 * difference:+.2f}"
