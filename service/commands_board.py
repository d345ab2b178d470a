"""`dklbench leaderboard`."""

from typing import Annotated

import typer

from service import completion
from service.options import Json, Url, client_of
from service.terminal import console, say, show_json

app = typer.Typer()


@app.command()
def leaderboard(
    dataset: Annotated[
        str | None, typer.Option(help="digits, cifar10, ...", autocompletion=completion.datasets)
    ] = None,
    threat_model: Annotated[
        str | None, typer.Option(help="Linf, L2, L1 or corruptions.", autocompletion=completion.threat_models)
    ] = None,
    search: Annotated[str | None, typer.Option(help="In names, papers, architectures, ...")] = None,
    page: Annotated[int, typer.Option(min=1, help="Of fifty rows each.")] = 1,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the ranking."""
    from service.terminal_tables import leaderboard_table

    asked = {"dataset": dataset, "threat_model": threat_model, "search": search, "page": page}
    query = {name: value for name, value in asked.items() if value}
    with client_of(url) as client:
        found = client.leaderboard(**query).document
    if as_json:
        show_json(found)
        return
    console.print(leaderboard_table(found))
    if found["board"] is None and found["boards"]:
        say(f"there are results on: {', '.join(board['title'] for board in found['boards'])}")
