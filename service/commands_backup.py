"""`dklbench backup` and `restore`: everything that an installation keeps, in a folder and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from service.terminal import console

if TYPE_CHECKING:  # imported where it is needed: no other command waits for it
    from sqlalchemy import Engine

    from service.backup_parts import Manifest, Report

app = typer.Typer()
_TITLES = {"rows": "ledger", "files": "stored files", "bytes": "stored files"}


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A folder: new, empty, or with an earlier backup, to renew it.")],
    with_secret: Annotated[
        bool,
        typer.Option("--with-secret", help="Put the secret of the data folder in: whoever has it owns every key."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Make none; read the one that is there, and say what is damaged.")
    ] = False,
) -> None:
    """Copy the ledger and every stored file into a folder, while the service runs."""
    if check:
        if with_secret:
            raise ValueError("--check makes no backup, so --with-secret has nothing to add to it; leave one out")
        _check(target)
        return
    from service.artifacts import store_for
    from service.backup import backup
    from service.backup_check import summary
    from service.callers import COMMAND_LINE
    from service.settings import settings

    chosen = settings()
    with _database(must_exist=True) as db, _bars() as report:
        manifest = backup(
            db, store_for(chosen), chosen, target, caller=COMMAND_LINE, with_secret=with_secret, report=report
        )
    console.print(f"{target} has {summary(manifest)}", soft_wrap=True, markup=False)
    _warn(manifest)
    if manifest.secret is None:
        where = "DKLBENCH_SECRET_KEY" if chosen.secret_key.get_secret_value() else str(chosen.data_dir / "secret")
        console.print(
            f"[yellow]The secret is not in it:[/] without {escape(where)}, every API key and webhook signature is "
            "void after a restore. Keep it in a safe place of its own"
            + ("." if chosen.secret_key.get_secret_value() else ", or add --with-secret."),
            soft_wrap=True,
        )


@app.command()
def restore(
    target: Annotated[Path, typer.Argument(help="The folder of a backup.")],
) -> None:
    """Fill this installation, which must be empty and not running, with a backup."""
    from service.artifacts import store_for
    from service.backup_check import summary
    from service.callers import COMMAND_LINE
    from service.restore import restore
    from service.settings import settings

    chosen = settings()
    with _database() as db, _bars() as report:
        manifest = restore(db, store_for(chosen), chosen, target, caller=COMMAND_LINE, report=report)
    console.print(f"restored: {summary(manifest)}", soft_wrap=True, markup=False)
    _warn(manifest)
    has_own = (chosen.data_dir / "secret").exists() or chosen.secret_key.get_secret_value()
    if manifest.tables["api_keys"].rows and manifest.secret is None and not has_own:
        console.print(
            "[yellow]The backup has no secret:[/] set DKLBENCH_SECRET_KEY to the old one before the first start, "
            "or every API key is void.",
            soft_wrap=True,
        )
    console.print("Data sets of your own are in no backup: copy them into the datasets folder.", soft_wrap=True)


def _check(target: Path) -> None:
    from service.backup_check import check, summary

    with _bars() as report:
        manifest, faults = check(target, report)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"the backup in {target} is damaged: {'; '.join(faults[:10])}{more}")
    console.print(f"[green]good:[/] {escape(summary(manifest))}", soft_wrap=True)
    _warn(manifest)


def _warn(manifest: "Manifest") -> None:
    if manifest.missing:
        console.print(
            f"[yellow]warning:[/] {len(manifest.missing)} stored files that the ledger counts on were lost or "
            f"damaged when it was made, and are not in it: {', '.join(manifest.missing[:5])}",
            soft_wrap=True,
        )


@contextmanager
def _database(*, must_exist: bool = False) -> Iterator["Engine"]:
    """The database of the settings, as it is: a backup is made before a migration."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, OperationalError

    from service import db
    from service.settings import settings

    try:
        url = make_url(settings().database)
        if must_exist and url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise ValueError(f"there is no ledger at {url.database}; check DKLBENCH_DATA_DIR")
        engine = db.connect(settings().database)
    except ArgumentError:
        raise ValueError("DKLBENCH_DATABASE_URL must read like postgresql://user:password@host/name") from None
    try:
        yield engine
    except OperationalError as error:
        what = str(error.orig).partition("\n")[0]
        raise ConnectionError(f"the database did not answer ({what}); try again when it does") from None
    finally:
        engine.dispose()


@contextmanager
def _bars() -> Iterator["Report"]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(compact=True), console=console) as progress:
        bars = {what: progress.add_task(title, total=None, visible=False) for what, title in _TITLES.items()}

        def report(what: str, done: int, total: int) -> None:
            progress.update(bars[what], completed=done, total=total or None, visible=True)

        yield report
