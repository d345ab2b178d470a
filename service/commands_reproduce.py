"""`dklbench reproduce`: the rows of a paper's table, trained and judged at one budget, published beside measured.

What is in the ledger already is not run again: the service says of every row how far it is.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service.options import Json, Url, client_of
from service.terminal import console, note, notes, say, show_json

if TYPE_CHECKING:  # no other command waits for these
    from service.client import Client
    from service.settings import Settings
    from service.study_table import Row, Study

app = typer.Typer()
_LOST = frozenset({"failed", "canceled"})
_OVER = _LOST | {"succeeded"}
_POLL_SECONDS = 1.0


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
    """Run every method of a table of the paper at one budget, and print published beside measured.
    Rows that are finished are not run again; Ctrl-C and a second call go on where the first one was."""
    from dkl.catalog.studies import study
    from service.client import ServiceError
    from service.study_table import study_table, study_words

    asked = study_name(table, budget)
    _require_svg(plot)
    with _service(url, study(asked).dataset, up=up) as client:
        try:
            found = _run(client, asked, only or [])
        except KeyboardInterrupt:
            note("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
        if plot is not None:
            _draw(found, plot)
        if as_json:
            show_json(found)
        else:
            rows = _chosen(found, only or [])
            console.print(study_table(found, rows), *map(escape, study_words(found, rows)), sep="\n")
            say(f"to share: {client.url}/studies/{asked}")
        if sentences := _failures(client, _chosen(found, only or [])):
            raise ServiceError("; ".join(sentences))


def study_name(table: int, budget: str) -> str:
    """TABLE-BUDGET; ValueError where there is no such study."""
    from dkl.catalog.studies import UnknownStudyError, study

    try:
        return study(f"{table}-{budget}").name
    except UnknownStudyError as error:
        raise ValueError(str(error)) from None


# --- the service --------------------------------------------------------------------------------------------


@contextmanager
def _service(url: str | None, dataset: str, *, up: bool) -> Iterator["Client"]:
    """A client of the service that answers, or, with `up`, of one that runs as long as the context."""
    from service.settings import settings

    if not up or _answers(url or settings().url):
        with client_of(url) as client:
            yield client
        return
    import logging

    from service import logs
    from service.client import Client
    from service.commands_service import served
    from service.embedded import free_port

    chosen = settings().model_copy(update={"host": "127.0.0.1"})
    chosen = chosen.model_copy(update={"port": free_port(chosen)})
    _require_data(chosen, dataset)
    logs.configure(chosen, level=logging.WARNING)
    address = f"http://127.0.0.1:{chosen.port}"
    with served(chosen), Client(address, chosen.key.get_secret_value()) as client:
        note(f"no service answered, so this is one: {address}, data in {escape(str(chosen.data_dir))}")
        yield client


def _answers(url: str) -> bool:
    import httpx2

    try:
        httpx2.get(f"{url.rstrip('/')}/livez", timeout=3)
    except httpx2.TransportError:
        return False
    return True


def _require_data(chosen: "Settings", dataset: str) -> None:
    """DatasetError, which says where to put it, before forty jobs say so; downloads it where that is possible."""
    from dkl.datasets import load

    chosen.datasets_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        load(dataset, split, chosen.datasets_dir)


# --- running ------------------------------------------------------------------------------------------------


def _run(client: "Client", name: str, only: Sequence[str]) -> "Study":
    """Submit what is missing, and draw what goes on until every chosen row has ended; the study as it is then."""
    found = client.study(name)
    for row in _chosen(found, only):
        _go_on(client, row)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn()),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal, redirect_stdout=False) as bars:
        bar = bars.add_task(f"table {name}", total=len(_chosen(found, only)), state="")
        of_rows: dict[str, TaskID] = {}
        while True:
            found = client.study(name)
            rows = _chosen(found, only)
            for row in rows:
                _show(bars, of_rows, row)
            ended = [row for row in rows if row["state"] in _OVER]
            bars.update(bar, completed=len(ended), state=f"{len(ended)} of {len(rows)} rows")
            if len(ended) == len(rows):
                return found
            time.sleep(_POLL_SECONDS)


def _go_on(client: "Client", row: "Row") -> None:
    """See to it that the row is trained and judged: queue what nobody has, take up what has failed or was
    canceled. This is all that a study ever asks the service to do."""
    training, evaluation = row["training"], row["evaluation"]
    judge, changes = row["judge"], row["judge_overrides"]
    if training is None or (training["status"] in _LOST and not _resumed(client, training)):
        client.submit(row["recipe"], row["overrides"], then=[(judge, changes)])
        return
    # An evaluation that failed with its training has been resumed with it.
    waits_again = training["status"] in _LOST and evaluation is not None and evaluation["status"] == "failed"
    lost = evaluation is not None and evaluation["status"] in _LOST and not waits_again
    if evaluation is None or (lost and not _resumed(client, evaluation)):
        client.submit(judge, {**changes, "model.job": training["id"]})


def _resumed(client: "Client", job: Mapping[str, Any]) -> bool:
    """Whether the job goes on; not where its files are gone, or it is somebody else's."""
    from service.client import ServiceError

    try:
        client.job(job["id"]).resume()
    except ServiceError as error:
        note(f"job {job['id']} cannot be resumed ({escape(str(error))}); it is submitted anew")
        return False
    return True


def _chosen(found: "Study", only: Sequence[str]) -> "list[Row]":
    """The rows to run; ValueError for a name that none has."""
    names = {word.casefold() for word in only}
    known = {name for row in found["rows"] for name in (row["method"].casefold(), row["recipe"])}
    if unknown := names - known:
        methods = ", ".join(repr(row["method"]) for row in found["rows"])
        raise ValueError(f"--only: no row is called {sorted(unknown)[0]!r}; there are {methods}")
    return [row for row in found["rows"] if not names or names & {row["method"].casefold(), row["recipe"]}]


def _failures(client: "Client", rows: "Sequence[Row]") -> list[str]:
    """What stopped rows, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["state"] in _LOST:
            job = next(
                job for job in (row["training"], row["evaluation"]) if job["status"] in _OVER - {"succeeded"}
            )
            reason = client.job(job["id"]).reason or row["state"]
            reasons.setdefault(reason, []).append(row["method"])
    return [f"{', '.join(methods)}: {reason}" for reason, methods in reasons.items()]


# --- showing ------------------------------------------------------------------------------------------------


def _show(bars: Progress, of_rows: dict[str, TaskID], row: "Row") -> None:
    """A bar for every row that is at work; a line that stays for every row that ends while one looks on."""
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
