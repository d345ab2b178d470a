"""`dklbench keys`: made, listed and revoked directly in the database. Whoever may read that owns the service."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.options import Json, database
from service.terminal import console, note, say, show_json

if TYPE_CHECKING:
    from service.tables import ApiKey

app = typer.Typer()
group = typer.Typer(
    no_args_is_help=True, help="API keys of the service whose database this machine's settings name."
)
app.add_typer(group, name="keys")
_GIB = 2**30


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[
        str, typer.Option(help="read, submit (which includes read) or admin (everything).")
    ] = "submit",
    max_running: Annotated[int | None, typer.Option(help="Its jobs that run at the same time.")] = None,
    max_storage: Annotated[
        float | None, typer.Option(metavar="GIB", help="Files that it may cause to be kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once. Only the key goes to standard output."""
    from pydantic import ValidationError

    from dkl.explain import explain
    from service import keys
    from service.callers import COMMAND_LINE
    from service.settings import settings

    size = None if max_storage is None else int(max_storage * _GIB)
    document = {"name": name, "scope": scope, "max_running": max_running, "max_storage": size}
    try:
        wanted = keys.KeyRequest.model_validate(document)
    except ValidationError as error:
        raise ValueError("; ".join(map(str, explain(error.errors(), document, keys.KeyRequest)))) from None
    with database() as db:
        row, text = keys.create(db, settings(), wanted, caller=COMMAND_LINE)
    if as_json:
        show_json({**_document(row), "key": text})
    else:
        print(text)
    note(
        f"Key {row.id} of {escape(row.name)}, scope {row.scope}. Keep it: nobody can show it again. The command "
        "line takes it from DKLBENCH_KEY, a browser at /signin."
    )


def _document(row: "ApiKey") -> dict[str, Any]:
    """A key as GET /api/v1/keys has it."""
    names = ("id", "name", "scope", "max_running", "max_storage", "created_at", "used_at", "revoked_at")
    return {name: getattr(row, name) for name in names}


@group.command(name="list")
def list_keys(as_json: Json = False) -> None:
    """List the keys, usable ones first. None of them can be shown."""
    from service import keys
    from service.wording import ago, when

    table = Table("id", "name", "scope", "running", "storage", "created", "used", box=None, header_style="dim")
    with database() as db:
        found = keys.every(db)
    if as_json:
        show_json({"keys": [_document(row) for row in found]})
        return
    for row in found:
        table.add_row(
            row.id,
            escape(row.name),
            row.scope if row.revoked_at is None else f"revoked {when(row.revoked_at, '%Y-%m-%d')}",
            "any" if row.max_running is None else str(row.max_running),
            "any" if row.max_storage is None else f"{row.max_storage / _GIB:.4g} GiB",
            when(row.created_at, "%Y-%m-%d"),
            "never" if row.used_at is None else ago(row.used_at),
        )
    console.print(table if found else "There are no keys. Make one with: dklbench keys create NAME --scope admin")


@group.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="A key's id, see `dklbench keys list`.")],
    as_json: Json = False,
) -> None:
    """End a key at once, and the browser sessions that began with it."""
    from service import keys
    from service.callers import COMMAND_LINE

    with database() as db:
        row = keys.revoke(db, key_id, caller=COMMAND_LINE)
    if as_json:
        show_json(_document(row))
    else:
        say(f"key {row.id} of {escape(row.name)} is revoked")
