"""`dklbench gc`: what nothing needs any more, removed."""

from typing import Annotated

import typer
from rich.markup import escape

from service.options import Json, database
from service.terminal import busy, say, show_json

app = typer.Typer()


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove stored files, uploads and work folders that nothing needs. The service does so every hour."""
    from dataclasses import asdict

    from service import collect
    from service.artifacts import store_for
    from service.callers import COMMAND_LINE
    from service.settings import settings
    from service.space import show_bytes

    chosen = settings()
    store = store_for(chosen)
    with database() as db, busy("looking for what nothing needs"):
        if dry_run:
            found = list(collect.collect(db, store, chosen, dry_run=True))
        else:
            found = collect.collect_as(db, store, chosen, COMMAND_LINE)
    size = sum(garbage.size for garbage in found)
    if as_json:
        show_json({"dry_run": dry_run, "size": size, "things": [asdict(garbage) for garbage in found]})
        return
    for garbage in found:
        say(f"{garbage.what} {escape(garbage.name)}, {show_bytes(garbage.size)}: {escape(garbage.why)}")
    say(f"{len(found)} things, {show_bytes(size)} {'would be' if dry_run else 'were'} freed")
