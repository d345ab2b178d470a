"""`dklbench recipes`, `run` and `convert`: what needs no service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from service import completion
from service.options import Device, Entry, Json, Overrides, Recipe, architecture_of
from service.terminal import busy, console, note, say, show_json

if TYPE_CHECKING:
    from dkl.architectures import Model
    from dkl.local import LocalRun

app = typer.Typer()


@app.command()
def recipes(
    part: Annotated[
        str, typer.Argument(metavar="PART", help="Only those with this in their name: cifar100, -at-, ...")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the named recipes, with what papers report for them; of one with exactly this name, say all."""
    from dataclasses import asdict

    from dkl.catalog import RECIPES
    from service.terminal_tables import recipe_words, recipes_table

    found = {name: entry for name, entry in RECIPES.items() if part.casefold() in name}
    if not found:
        raise ValueError(f"no recipe has {part!r} in its name; `dklbench recipes` lists all {len(RECIPES)}")
    if not as_json and part in RECIPES:
        for line in recipe_words(part, RECIPES[part]):
            say(line)
        if others := [name for name in found if name != part]:
            say(f"others with this in their name: {', '.join(others)}")
        return
    if not as_json:
        console.print(recipes_table(found))
        return
    documents = [
        {
            "name": name,
            "kind": entry.recipe.kind,
            "about": entry.about,
            "needs": [entry.needs] if entry.needs else [],
            "published": asdict(entry.published) if entry.published else None,
            "also": [asdict(other) for other in entry.also],
            "recipe": entry.recipe.model_dump(mode="json"),
        }
        for name, entry in found.items()
    ]
    show_json({"recipes": documents})


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Judge this checkpoint.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="Judge what this function returns: an nn.Module, x in [0, 1] -> logits."
        ),
    ] = None,
    zoo: Annotated[
        str | None, typer.Option(metavar="DATASET/THREAT/NAME", help="Judge a model of RobustBench's zoo.")
    ] = None,
    timm: Annotated[str | None, typer.Option(metavar="NAME", help="Judge a pretrained model of timm.")] = None,
    torchvision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge a pretrained model of torchvision.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Whom a distillation learns from: a checkpoint, MODULE:NAME, or a model of the zoo, timm or "
            "torchvision.",
        ),
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Where it keeps its state and result; default: runs/RECIPE-FINGERPRINT.")
    ] = None,
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the training curve: .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe here and now, without a service. Run it again to go on where it was interrupted.

    An evaluation judges one of --checkpoint, --model, --zoo, --timm, --torchvision.
    """
    from dkl.local import InterruptedRunError, Judged, prepare, teacher_called

    local = prepare(
        recipe,
        overrides or [],
        judged=Judged(checkpoint, model, zoo, timm, torchvision),
        teacher=teacher_called(teacher),
        workdir=workdir,
        plot=plot,
    )
    try:
        result = _followed(local, device, quiet=as_json)
    except InterruptedRunError as error:
        note(escape(str(error)))
        raise typer.Exit(130) from None
    left = local.workdir / "model.safetensors"
    trained = left if left.exists() else None
    if as_json:
        files = {"workdir": local.workdir, "checkpoint": trained, "plot": local.plot}
        show_json({"name": local.name, **{k: v and str(v) for k, v in files.items()}, "result": result})
        return
    if trained:
        say(f"the checkpoint is {escape(str(trained))}")
    if local.plot is not None:
        say(f"the training curve is {escape(str(local.plot))}")
    say(f"everything it left is in {escape(str(local.workdir))}")


def _followed(local: "LocalRun", device: str, *, quiet: bool) -> dict[str, Any] | None:
    """The result of the run, which is drawn meanwhile."""
    from service.client import Event
    from service.settings import settings
    from service.terminal_bars import Bars

    result = None
    with Bars(epochs=True, quiet=quiet) as bars:
        bar = bars.add(local.name)
        for said in local.events(device=device, data_dir=settings().datasets_dir):
            event = Event(said.kind, said.model_dump(mode="json"))
            bars.follow(bar, [event])
            result = event.data["result"] if event.kind == "finished" else result
    return result


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Weights of others: .pt, .pth, .safetensors.", metavar="FILE")],
    target: Annotated[Path, typer.Argument(help="The checkpoint to write.", metavar="OUT.safetensors")],
    architecture: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help='The network, with its size in quotes: "wide-resnet depth=34 width=10"; or as recipes have it: '
            '{"kind": "wide-resnet", ...}.',
            autocompletion=completion.architectures,
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(help="What it was trained on: cifar10, npz:mine, ...", autocompletion=completion.datasets),
    ],
    entry: Entry = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of weights that other code saved. Nothing in the file is run."""
    from dkl.datasets import check_name

    network, trained_on = _architecture(architecture), check_name(dataset)
    from dkl.foreign import convert as convert_weights  # torch: seconds that a mistyped word should not cost

    with busy(f"converting {escape(source.name)}"):
        sha256, notes = convert_weights(source, target, architecture=network, dataset=trained_on, entry=entry)
    if as_json:
        show_json({"file": str(target), "sha256": sha256, "notes": list(notes)})
        return
    say(f"{escape(str(target))} is a checkpoint with sha256 {sha256}")
    for remark in notes:
        say(f"[yellow]note:[/] {escape(remark)}")


def _architecture(text: str) -> "Model":
    """The architecture that --architecture describes; ValueError with a sentence where it is none."""
    from pydantic import TypeAdapter, ValidationError

    from dkl.architectures import Model
    from dkl.explain import explain

    document = architecture_of(text)
    try:
        return TypeAdapter(Model).validate_python(document)
    except ValidationError as error:
        faults = explain(error.errors(include_url=False), document, Model)
        raise ValueError("; ".join(f"--architecture: {fault}" for fault in faults)) from None
