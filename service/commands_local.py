"""`dklbench recipes`, `run`, `evaluate` and `convert`: what needs no service."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from dkl.architectures import Model
from dkl.catalog import RECIPES
from dkl.datasets import check_name
from dkl.explain import explain
from dkl.local import Judged, LocalRun, prepare, teacher_called
from service import terminal
from service.client import Event
from service.options import Device, Overrides, Recipe
from service.settings import settings
from service.terminal import console

app = typer.Typer()

Workdir = Annotated[Path | None, typer.Option(help="Where it keeps its state and result.")]
CheckpointFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The checkpoint to judge.")]


@app.command()
def recipes(
    part: Annotated[
        str, typer.Argument(metavar="PART", help="Only those with this in their name: cifar100, -at-, ...")
    ] = "",
) -> None:
    """List the named recipes, with what papers report for them."""
    found = {name: entry for name, entry in RECIPES.items() if part.casefold() in name}
    if not found:
        raise ValueError(f"no recipe has {part!r} in its name; `dklbench recipes` lists all {len(RECIPES)}")
    console.print(terminal.recipes_table(found))


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workdir: Workdir = None,
    checkpoint: CheckpointFile = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Whom a distillation learns from: a checkpoint, MODULE:NAME, or a model of the zoo or of timm.",
        ),
    ] = None,
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the training curve: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Run a recipe here and now, without the service. Run it again to go on where it was interrupted."""
    local = prepare(
        recipe,
        overrides or [],
        judged=Judged(checkpoint),
        teacher=teacher_called(teacher),
        workdir=workdir,
        plot=plot,
    )
    _run_here(local, device)


@app.command()
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="An evaluation's name, which --zoo can do without, then changes to it such as images=100.",
            metavar="RECIPE PATH=VALUE",
        ),
    ] = None,
    checkpoint: CheckpointFile = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="A function that returns an nn.Module, x in [0, 1] -> logits."),
    ] = None,
    zoo: Annotated[
        str | None, typer.Option(metavar="DATASET/THREAT/NAME", help="A model of RobustBench's zoo.")
    ] = None,
    timm: Annotated[str | None, typer.Option(metavar="NAME", help="A pretrained model of timm.")] = None,
    workdir: Workdir = None,
    device: Device = "auto",
) -> None:
    """Judge a model here and now, without the service: one of --checkpoint, --model, --zoo, --timm."""
    given = words or []
    recipe, changes = (given[0], given[1:]) if given and "=" not in given[0] else (None, given)
    judged = Judged(checkpoint, model, zoo, timm)
    _run_here(prepare(recipe, changes, judged=judged, workdir=workdir), device)


def _run_here(local: LocalRun, device: str) -> None:
    events = local.events(device=device, data_dir=settings().datasets_dir)
    with terminal.Bars(epochs=True) as bars:
        bars.follow(bars.add(local.name), (Event(e.kind, e.model_dump(mode="json")) for e in events))
    if (checkpoint := local.workdir / "model.safetensors").exists():
        console.print(f"the checkpoint is {checkpoint}", soft_wrap=True)
    if local.plot is not None:
        console.print(f"the training curve is {local.plot}", soft_wrap=True)
    console.print(f"everything it left is in {local.workdir}", soft_wrap=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Weights of others: .pt, .pth, .safetensors.", metavar="FILE")],
    target: Annotated[Path, typer.Argument(help="The checkpoint to write.", metavar="OUT.safetensors")],
    architecture: Annotated[
        str, typer.Option(help='As recipes have it: {"kind": "wide-resnet", "depth": 34, "width": 10}.')
    ],
    dataset: Annotated[str, typer.Option(help="What it was trained on: cifar10, npz:mine, ...")],
    entry: Annotated[str | None, typer.Option(help="The state dict to take, if the file holds several.")] = None,
) -> None:
    """Make a checkpoint of weights that other code saved. Nothing in the file is run."""
    network, trained_on = _architecture(architecture), check_name(dataset)
    from dkl.foreign import convert as convert_weights  # torch: seconds that a mistyped word should not cost

    sha256, notes = convert_weights(source, target, architecture=network, dataset=trained_on, entry=entry)
    console.print(f"{target} is a checkpoint with sha256 {sha256}", soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _architecture(text: str) -> Model:
    """The architecture that --architecture describes; ValueError with a sentence where it is none."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'--architecture is not JSON ({error}); write such as \'{{"kind": "resnet"}}\'') from None
    try:
        return TypeAdapter(Model).validate_python(document)
    except ValidationError as error:
        faults = explain(error.errors(include_url=False), document, Model)
        raise ValueError("; ".join(f"--architecture: {fault}" for fault in faults)) from None
