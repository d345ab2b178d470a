"""`dklbench gc`: what nothing needs any more, removed."""

from typing import Annotated

import typer

from service.options import database
from service.settings import settings
from service.terminal import console

app = typer.Typer()


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove stored files, uploads and work folders that nothing needs. The service does so every hour."""
    from service import collect
    from service.artifacts import store_for
    from service.callers import COMMAND_LINE
    from service.space import show_bytes

    chosen = settings()
    store = store_for(chosen)
    with database() as db:
        if dry_run:
            found = list(collect.collect(db, store, chosen, dry_run=True))
        else:
            found = collect.collect_as(db, store, chosen, COMMAND_LINE)
    for garbage in found:
        console.print(f"{garbage.what} {garbage.name}, {show_bytes(garbage.size)}: {garbage.why}", soft_wrap=True)
    total = show_bytes(sum(garbage.size for garbage in found))
    console.print(f"{len(found)} things, {total} {'would be' if dry_run else 'were'} freed")
