"""`dklbench reproduce`: the rows of a paper's table, trained and judged at one budget, published beside measured.

What is in the ledger already is not run again: the service says of every row how far it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service.options import Json, Url, client_of
from service.terminal import console, note, notes, say, show_json

if TYPE_CHECKING:  # no other command waits for these
    from service.client import Client
    from service.settings import Settings
    from service.study_run import StudyRun
    from service.study_table import Row, Study

app = typer.Typer()


@app.command()
def reproduce(
    table: Annotated[int, typer.Argument(help="Of the IKL-AT paper: 2 (CIFAR-100) or 3 (CIFAR-10).")],
    budget: Annotated[
        str,
        typer.Option(
            help="tiny: within an hour on two CPU cores. small: for one GPU. full: as published. smoke: minutes, "
            "to see that everything runs.",
        ),
    ] = "tiny",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="This row alone, by method or recipe; repeatable."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the rows into this SVG file at the end.")
    ] = None,
    as_json: Json = False,
    up: Annotated[
        bool, typer.Option("--up", help="Where no service answers, be one meanwhile, as `dklbench up` is.")
    ] = False,
    url: Url = None,
) -> None:
    """Run a table of the paper, and further rivals, at one budget, and print published beside measured.
    Rows that are finished are not run again; Ctrl-C and a second call go on where the first one was."""
    from service.client_http import NoServiceError

    asked = study_name(table, budget)
    _require_rows(asked, only or [])
    _require_svg(plot)
    run = partial(_reproduce, name=asked, only=only or [], plot=plot, as_json=as_json)
    try:
        with client_of(url) as client:
            if not up or url is not None:
                run(client)
                return
            if client.answers():
                try:
                    run(client)
                    return
                except NoServiceError as error:
                    note(f"{escape(str(error))}; going on without it")
        with _own_service(asked) as own:
            run(own, is_ours=True)
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None


def study_name(table: int, budget: str) -> str:
    """TABLE-BUDGET; ValueError where there is no such study."""
    from dkl.catalog.studies import UnknownStudyError, study

    try:
        return study(f"{table}-{budget}").name
    except UnknownStudyError as error:
        raise ValueError(str(error)) from None


def _require_rows(name: str, only: Sequence[str]) -> None:
    """ValueError for a name that no row has."""
    from dkl.catalog.studies import study

    asked = study(name)
    known = {word for one in asked.rows for word in (one.row.method.casefold(), one.row.recipe)}
    for word in only:
        if word.casefold() in known:
            continue
        for missing in asked.left_out:
            if word.casefold() in {missing.row.method.casefold(), missing.row.recipe}:
                raise ValueError(f"--only: {missing.row.method!r} is left out of this study. {missing.reason}")
        methods = ", ".join(repr(one.row.method) for one in asked.rows)
        raise ValueError(f"--only: no row is called {word!r}; there are {methods}")


# --- the service --------------------------------------------------------------------------------------------


@contextmanager
def _own_service(name: str) -> Iterator["Client"]:
    """A client of a service that runs as long as the context."""
    import logging

    from dkl.catalog.studies import study
    from service import logs
    from service.client import Client
    from service.commands_service import served
    from service.embedded import free_port
    from service.settings import settings

    chosen = settings().model_copy(update={"host": "127.0.0.1"})
    chosen = chosen.model_copy(update={"port": free_port(chosen)})
    _require_data(chosen, study(name).dataset)
    logs.configure(chosen, level=logging.WARNING)
    address = f"http://127.0.0.1:{chosen.port}"
    with served(chosen), Client(address, chosen.key.get_secret_value()) as client:
        note(f"no service answered, so this is one: {address}, data in {escape(str(chosen.data_dir))}")
        yield client


def _require_data(chosen: "Settings", dataset: str) -> None:
    """DatasetError, which says where to put it, before forty jobs say so; downloads it where that is possible."""
    from dkl.datasets import load

    chosen.datasets_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        load(dataset, split, chosen.datasets_dir)


# --- running ------------------------------------------------------------------------------------------------


def _reproduce(
    client: "Client", name: str, only: Sequence[str], plot: Path | None, as_json: bool, is_ours: bool = False
) -> None:
    from service.client_http import ServiceError
    from service.study_run import StudyRun, chosen
    from service.study_table import study_table, study_words

    run = StudyRun(client, name, only)
    note(f"watch it at {escape(client.url)}/studies/{name}")
    found = _followed(run, name, only)
    rows = chosen(found, only)
    sentences = _failures(client, run, rows)
    if as_json:
        show_json(found)
    else:
        console.print(study_table(found, rows), *map(escape, study_words(found, rows)), sep="\n")
        where = "to look at it again, or to share it: dklbench up, and there" if is_ours else "to share:"
        say(f"{where} {'' if is_ours else escape(client.url)}/studies/{name}")
    if plot is not None:
        _draw(found, plot)
    if sentences:
        raise ServiceError("; ".join(sentences))


def _followed(run: "StudyRun", name: str, only: Sequence[str]) -> "Study":
    """Draw what goes on until every chosen row has ended; the study as it is then."""
    from service.study_run import chosen

    columns = (
        *(TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn()),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal, redirect_stdout=False) as bars:
        bar = bars.add_task(f"table {name}", total=None, state="")
        of_rows: dict[str, TaskID] = {}
        for found in run.follow():
            rows = chosen(found, only)
            while run.notes:
                note(escape(run.notes.pop(0)))
            for row in rows:
                _show(bars, of_rows, row)
            ended = sum(run.has_ended(row) for row in rows)
            bars.update(bar, total=len(rows), completed=ended, state=_so_far(rows, ended))
        return found


def _so_far(rows: "Sequence[Row]", ended: int) -> str:
    at_work = any(row["state"] in {"training", "judging"} for row in rows)
    waits = "" if at_work or ended == len(rows) else "; waiting for a worker"
    return f"{ended} of {len(rows)} rows{waits}"


def _failures(client: "Client", run: "StudyRun", rows: "Sequence[Row]") -> list[str]:
    """What stopped rows, each reason once."""
    from service.study_run import LOST

    reasons: dict[str, list[str]] = {}
    for row in rows:
        reason = run.refused.get(row["recipe"])
        if reason is None and row["state"] in LOST:
            job = next(job for job in (row["training"], row["evaluation"]) if job["status"] in LOST)
            reason = client.job(job["id"]).reason or row["state"]
        if reason is not None:
            reasons.setdefault(reason, []).append(row["method"])
    return [f"{', '.join(methods)}: {reason}" for reason, methods in reasons.items()]


# --- showing ------------------------------------------------------------------------------------------------


def _show(bars: Progress, of_rows: dict[str, TaskID], row: "Row") -> None:
    """A bar for every row that is at work; a line that stays for every row that ends while one looks on."""
    from service.study_run import OVER

    name, state = row["recipe"], row["state"]
    if state in {"training", "judging"}:
        job = row["training"] if state == "training" else row["evaluation"]
        progress = job["progress"] or {"done": 0, "total": None, "phase": "starting"}
        if name not in of_rows:
            of_rows[name] = bars.add_task(f"  {row['method']}", total=None, state="")
        bars.update(
            of_rows[name],
            completed=progress["done"],
            total=progress["total"] or None,
            state=f"{state}, {progress['phase']}",
        )
    elif name in of_rows and state not in OVER:  # its worker has gone, and another will take it up
        bars.update(of_rows[name], state=state)
    elif name in of_rows:
        bars.remove_task(of_rows.pop(name))
        robust = row["robust_accuracy"]
        came_to = state if robust is None else f"{row['clean_accuracy']:.1%} clean, [bold]{robust:.1%} robust"
        bars.console.print(f"{row['method']}: {came_to}")


def _require_svg(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".svg":
        raise ValueError(f"--plot {path}: found the suffix {path.suffix!r}; the picture is an SVG, name FILE.svg")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot {path}: there is no folder {path.parent}; make it, or name another")


def _draw(found: "Study", path: Path) -> None:
    from dkl.files import replacing
    from service.study_views import StudyView
    from service.web.dots import svg_text
    from service.web.study_chart import picture

    plot = picture(StudyView.model_validate(found))
    if plot is None:
        note("no row is judged, so there is nothing to draw")
        return
    with replacing(path) as file:
        file.write(svg_text(plot).encode())
    note(f"the picture is {escape(str(path))}")
