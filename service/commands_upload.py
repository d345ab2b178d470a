"""`dklbench upload` and `dklbench evaluate`: models that a service takes in and judges."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from service import completion
from service.commands_client import draw, finish, say_queued
from service.options import Architecture, Dataset, Entry, Json, Url, Watch, architecture_of, client_of
from service.terminal import note, say, show_json, transfer

if TYPE_CHECKING:
    from service.client import Client, Job

app = typer.Typer()


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="Weights: .safetensors, or what torch.save wrote.", metavar="FILE")],
    architecture: Architecture = None,
    dataset: Dataset = None,
    entry: Entry = None,
    url: Url = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Send weights to the service, which checks them and makes a checkpoint of them. Nothing in them is run.

    The file is taken as it is: a checkpoint of ours, a state dict, or what a training script keeps one in.
    """
    network = architecture_of(architecture) if architecture else None
    with client_of(url) as client:
        with transfer(f"sending {escape(file.name)}") as arrived:
            job = client.upload(file, architecture=network, dataset=dataset, entry=entry, on_progress=arrived)
        say_queued(job, as_json=as_json)
        finish([job], watch=watch, as_json=as_json)


@app.command()
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Weights: .safetensors, or what torch.save wrote; then changes to the recipe such as images=100.",
            metavar="FILE PATH=VALUE...",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="By which recipe; default: AutoAttack for the data set of the model.",
            autocompletion=completion.evaluations,
        ),
    ] = None,
    architecture: Architecture = None,
    dataset: Dataset = None,
    entry: Entry = None,
    zoo: Annotated[
        str | None,
        typer.Option(metavar="DATASET/THREAT/NAME", help="Instead of FILE, a model of RobustBench's zoo."),
    ] = None,
    timm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of FILE, a pretrained model of timm.")
    ] = None,
    torchvision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of FILE, a pretrained model of torchvision.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Judge a model through the service: send it, attack it, say where it stands.

    A file of weights is sent and checked as by `dklbench upload`. Without a service `dklbench run` judges.
    """
    from dkl.catalog import RECIPES, parse_overrides

    given = list(words or [])
    has_file = bool(given) and ("=" not in given[0] or Path(given[0]).is_file())
    public = {"zoo": zoo, "timm": timm, "torchvision": torchvision}
    source = {kind: name for kind, name in public.items() if name is not None}
    if len(source) + has_file != 1:
        raise ValueError(
            "say which model to judge, in one way: FILE, --zoo DATASET/THREAT/NAME, --timm NAME or --torchvision "
            "NAME"
        )
    file = Path(given.pop(0)) if has_file else None
    if file and not file.is_file() and str(file) in RECIPES:
        raise ValueError(
            f"{file} is a recipe: give the model's file, and --recipe {file}; or judge it here and now with: "
            f"dklbench run {file} --checkpoint FILE"
        )
    changes = parse_overrides(given)
    with client_of(url) as client:
        if file is None:
            queued = [_of_the_public(client, recipe, changes, source)]
        else:
            network = architecture_of(architecture) if architecture else None
            with transfer(f"sending {escape(file.name)}") as arrived:
                judged = client.evaluate(
                    file, recipe, changes, architecture=network, dataset=dataset, entry=entry, on_progress=arrived
                )
            queued = [client.job(judged.parent_id or ""), judged]
        for job in queued:
            say_queued(job, as_json=as_json)
        failed = draw(queued, as_json=as_json)
        _say_outcome(client, queued[-1], as_json=as_json)
    if failed:
        raise failed


def _of_the_public(client: "Client", recipe: str | None, changes: dict[str, Any], source: dict[str, str]) -> "Job":
    """The evaluation of a published model."""
    from service.client_weights import judge_of_the_zoo, require_judge

    [(kind, model)] = source.items()
    if recipe is None and kind != "zoo":
        raise ValueError(f"say by which recipe to judge {model}, such as: --recipe autoattack-cifar10-linf")
    name = recipe or judge_of_the_zoo(model)
    require_judge(name)
    return client.submit(name, {"model": source, **changes})


def _say_outcome(client: "Client", job: "Job", *, as_json: bool) -> None:
    """The numbers of an ended evaluation with their intervals, its place and its page."""
    from service.client import ServiceError

    row, why, total = None, "", 0
    if job.status == "succeeded":
        try:
            row = client.entry(job.id)
            board = row["board"]
            asked = {name: board[name] for name in ("dataset", "threat_model", "eps") if board[name] is not None}
            total = client.leaderboard(**asked, limit=1).total
        except ServiceError as error:
            why = str(error)
    url = f"{client.url}/entries/{job.id}"
    if as_json:
        show_json({"job": job.document, "entry": row, "rows": total, "url": url if row else None})
    elif row:
        robust = "accuracy, corrupted" if row["board"]["eps"] is None else "robust accuracy"
        say(f"clean accuracy      {_interval(row['clean_accuracy'], row['clean_interval'])}")
        say(f"{robust:20}{_interval(row['robust_accuracy'], row['robust_interval'])}")
        say(f"judged by           {escape(row['suite'])}, {row['images']} images")
        say(f"place               {row['rank']} of {total} on {escape(row['board']['title'])}")
        say(f"entry               {url}")
    elif why:
        note(f"it has no place on the leaderboard: {escape(why)}")


def _interval(accuracy: float, interval: list[float] | None) -> str:
    bounds = f" (95 %: {interval[0]:.2%} to {interval[1]:.2%})" if interval else ""
    return f"[bold]{accuracy:.2%}[/]{bounds}"
