"""`dklbench backup` and `restore`: everything that an installation keeps, in a folder and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from service.options import Json
from service.terminal import notes, say, show_json

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
    as_json: Json = False,
) -> None:
    """Copy the ledger and every stored file into a folder, while the service runs."""
    if check:
        if with_secret:
            raise ValueError("--check makes no backup, so --with-secret has nothing to add to it; leave one out")
        _check(target, as_json=as_json)
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
    if as_json:
        show_json(_document(target, manifest))
        return
    say(f"{escape(str(target))} has {escape(summary(manifest))}")
    _warn(manifest)
    if manifest.secret is None:
        where = "DKLBENCH_SECRET_KEY" if chosen.secret_key.get_secret_value() else str(chosen.data_dir / "secret")
        say(
            f"[yellow]The secret is not in it:[/] without {escape(where)}, every API key and webhook signature is "
            "void after a restore. Keep it in a safe place of its own"
            + ("." if chosen.secret_key.get_secret_value() else ", or add --with-secret.")
        )


@app.command()
def restore(
    target: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    as_json: Json = False,
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
    if as_json:
        show_json(_document(target, manifest))
        return
    say(f"restored: {escape(summary(manifest))}")
    _warn(manifest)
    has_own = (chosen.data_dir / "secret").exists() or chosen.secret_key.get_secret_value()
    if manifest.tables["api_keys"].rows and manifest.secret is None and not has_own:
        say(
            "[yellow]The backup has no secret:[/] set DKLBENCH_SECRET_KEY to the old one before the first start, "
            "or every API key is void."
        )
    say("Data sets of your own are in no backup: copy them into the datasets folder.")


def _check(target: Path, *, as_json: bool) -> None:
    from service.backup_check import check, summary

    with _bars() as report:
        manifest, faults = check(target, report)
    if as_json:
        show_json({**_document(target, manifest), "ok": not faults, "faults": faults})
        raise typer.Exit(1 if faults else 0)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"the backup in {target} is damaged: {'; '.join(faults[:10])}{more}")
    say(f"[green]good:[/] {escape(summary(manifest))}")
    _warn(manifest)


def _document(target: Path, manifest: "Manifest") -> dict[str, Any]:
    """What is in the backup, for programs."""
    return {
        "folder": str(target),
        "made_at": manifest.made_at,
        "version": manifest.version,
        "schema": manifest.revision,
        "database": manifest.database,
        "rows": {table: part.rows for table, part in manifest.tables.items()},
        "stored_files": manifest.files.rows,
        "stored_bytes": manifest.stored_bytes,
        "missing": list(manifest.missing),
        "has_secret": manifest.secret is not None,
    }


def _warn(manifest: "Manifest") -> None:
    if manifest.missing:
        say(
            f"[yellow]warning:[/] {len(manifest.missing)} stored files that the ledger counts on were lost or "
            f"damaged when it was made, and are not in it: {', '.join(manifest.missing[:5])}"
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
    with Progress(
        *columns, TimeRemainingColumn(compact=True), console=notes, disable=not notes.is_terminal
    ) as progress:
        bars = {what: progress.add_task(title, total=None, visible=False) for what, title in _TITLES.items()}

        def report(what: str, done: int, total: int) -> None:
            progress.update(bars[what], completed=done, total=total or None, visible=True)

        yield report
