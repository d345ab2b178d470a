"""The `dklbench` command."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from dkl.catalog import RECIPES, parse_overrides
from dkl.datasets import check_name
from dkl.explain import explain
from dkl.local import InterruptedRunError, Judged, LocalRun, prepare
from dkl.recipes import Model
from service import terminal
from service.client import Client, Event, ServiceError
from service.demo import DemoError, tell_the_story
from service.settings import Settings, settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adversarial robustness benchmarking: train, attack, rank.",
)
console = terminal.console

Recipe = Annotated[str, typer.Argument(help="A recipe's name, see `dklbench recipes`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it, such as epochs=2 threat.eps=4/255.", metavar="PATH=VALUE..."),
]
Url = Annotated[str | None, typer.Option(help="The service to talk to; default: DKLBENCH_URL, or this machine's.")]
JobId = Annotated[str, typer.Argument(help="A job's id, see `dklbench jobs`.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
EvidenceFile = Annotated[Path, typer.Argument(help="An evidence.safetensors that an evaluation left.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.")]
Workdir = Annotated[Path | None, typer.Option(help="Where it keeps its state and result.")]
CheckpointFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The checkpoint to judge.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def main() -> None:
    """Entry point: every expected error is one sentence on stderr, and exit code 1."""
    from service.embedded import StartError

    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except InterruptedRunError as error:
        stderr.print(escape(str(error)))
        raise SystemExit(130) from None
    except (ServiceError, StartError, DemoError, ValueError, OSError, FloatingPointError) as error:
        stderr.print(f"[red]error:[/] {escape(str(error))}")
        raise SystemExit(1) from None


# --- the service ------------------------------------------------------------------------------------------


@app.command()
def up(host: Host = None, port: Port = None) -> None:
    """Serve this machine: web pages, REST interface and a worker per GPU, until Ctrl-C."""
    from service.embedded import embedded

    chosen = _settings(host, port)
    with embedded(chosen) as server:
        console.print(f"dkl-bench at [bold]{_url(chosen)}[/], data in {chosen.data_dir}; Ctrl-C stops")
        server.run()


@app.command()
def demo(
    host: Host = None,
    port: Port = None,
    exit: Annotated[bool, typer.Option("--exit", help="Stop when the story is told.")] = False,
) -> None:
    """Train a natural and an adversarially trained model on digits, attack both, and show the ranking."""
    from service.embedded import free_port

    chosen = _settings(host, port)
    if port is None:
        chosen = chosen.model_copy(update={"port": free_port(chosen)})
    with _served(chosen):
        url = _url(chosen)
        console.print(f"Two small models learn handwritten digits, one of them adversarially; watch at {url}/jobs")
        with Client(url) as client:
            tell_the_story(client)
        console.print(f"The leaderboard: [bold]{url}[/]" + ("" if exit else "   (Ctrl-C stops)"))
        while not exit:
            time.sleep(3600)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema. `up` does it by itself."""
    from service import db

    db.migrate(db.connect(settings().database))


def _settings(host: str | None, port: int | None) -> Settings:
    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    return settings().model_copy(update=given)


def _url(chosen: Settings) -> str:
    host = "127.0.0.1" if chosen.host in {"0.0.0.0", "::"} else chosen.host
    return f"http://{host}:{chosen.port}"


@contextmanager
def _served(chosen: Settings) -> Iterator[None]:
    """The embedded service in the background."""
    from service.embedded import embedded

    with embedded(chosen) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise ServiceError("the server did not start; its message is above")
                time.sleep(0.05)
            yield
        except KeyboardInterrupt:
            console.print("stopping; what is unfinished resumes at the next start")
        finally:
            server.stop()
            thread.join()


# --- its clients ------------------------------------------------------------------------------------------


def _client(url: str | None) -> Client:
    return Client(url or settings().url)


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    url: Url = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", help="Stop an evaluation once its model cannot be among its board's best K."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and draw its progress.")] = False,
) -> None:
    """Queue a job. An evaluation needs its model: model.job=ID of a training job."""
    with _client(url) as client:
        job = client.submit(recipe, parse_overrides(overrides or []), top_k=top)
        console.print(f"job [bold]{job['id']}[/] is queued: {client.url}/jobs/{job['id']}")
        if top is not None:
            below = job["recipe"]["stop_below"]
            console.print(
                f"its board has fewer than {top} rows, so nothing stops it"
                if below is None
                else f"it stops once its robust accuracy is certain to be below {below:.2%}"
            )
        if watch:
            _watch(client, job)


@app.command(name="watch")
def watch_job(job_id: JobId, url: Url = None) -> None:
    """Draw a job's progress until it ends."""
    with _client(url) as client:
        _watch(client, client.job(job_id))


def _watch(client: Client, job: dict[str, Any]) -> None:
    with terminal.Bars() as bars:
        status = bars.follow(bars.add(job["name"] or job["kind"]), client.watch(job["id"]))
    if status != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: JobId, url: Url = None) -> None:
    """End a job."""
    with _client(url) as client:
        console.print(f"job {job_id} is {client.cancel(job_id)['status']}")


@app.command()
def jobs(url: Url = None) -> None:
    """List the newest jobs."""
    with _client(url) as client:
        console.print(terminal.jobs_table(client.jobs()))


@app.command()
def leaderboard(
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, ...")] = None,
    norm: Annotated[str | None, typer.Option(help="Linf, L2 or L1.")] = None,
    url: Url = None,
) -> None:
    """Show the ranking."""
    query = {name: value for name, value in {"dataset": dataset, "norm": norm}.items() if value}
    with _client(url) as client:
        console.print(terminal.leaderboard_table(client.leaderboard(**query)))


# --- without a service ------------------------------------------------------------------------------------


@app.command()
def recipes() -> None:
    """List the named recipes."""
    console.print(
        terminal.recipes_table(
            [
                {"name": name, "about": entry.about, "recipe": entry.recipe.model_dump(mode="json")}
                for name, entry in RECIPES.items()
            ]
        )
    )


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workdir: Workdir = None,
    checkpoint: CheckpointFile = None,
    device: Device = "auto",
) -> None:
    """Run a recipe here and now, without the service. Run it again to go on where it was interrupted."""
    _run_here(prepare(recipe, overrides or [], judged=Judged(checkpoint), workdir=workdir), device)


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
    with terminal.Bars() as bars:
        bars.follow(bars.add(local.name), (Event(e.kind, e.model_dump(mode="json")) for e in events))
    console.print(f"everything it left is in {local.workdir}")


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

    sha256 = convert_weights(source, target, architecture=network, dataset=trained_on, entry=entry)
    console.print(f"{target} is a checkpoint with sha256 {sha256}")


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


# --- evidence ---------------------------------------------------------------------------------------------


@app.command()
def evidence(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: JOB-evidence.safetensors.")] = None,
    url: Url = None,
) -> None:
    """Download the evidence of an evaluation."""
    target = out or Path(f"{job_id}-evidence.safetensors")
    with _client(url) as client:
        client.download(job_id, "evidence", target)
    console.print(f"{target} is the evidence of job {job_id}")


@app.command()
def verify(
    evidence: Annotated[
        Path,
        typer.Argument(help="An evidence.safetensors, or the id of the job that left it.", metavar="FILE|JOB"),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model that was judged; default: the job's.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies; default: the service's.")] = None,
    device: Device = "auto",
    url: Url = None,
) -> None:
    """Prove an evaluation: check every image of its evidence with the model. Exit code 1 if a claim fails."""
    from service.evidence import prove

    with _files(evidence, checkpoint, url) as (file, model):
        proved = prove(file, checkpoint=model, data_dir=data_dir or settings().datasets_dir, device=device)
    if not proved:
        raise typer.Exit(1)


@contextmanager
def _files(evidence: Path, checkpoint: Path | None, url: str | None) -> Iterator[tuple[Path, Path]]:
    """Evidence and checkpoint as files; those of a job are downloaded, and removed at the end."""
    if evidence.exists() or not re.fullmatch("[0-9a-f]{12}", str(evidence)):
        if checkpoint is None:
            raise ValueError(f"say which model {evidence} is about with --checkpoint FILE")
        yield evidence, checkpoint
        return
    with TemporaryDirectory() as folder, _client(url) as client:
        downloaded = Path(folder) / "evidence.safetensors"
        client.download(str(evidence), "evidence", downloaded)
        if checkpoint is None:
            checkpoint = Path(folder) / "model.safetensors"
            client.download(str(evidence), "checkpoint", checkpoint)
        yield downloaded, checkpoint


@app.command()
def compare(a: EvidenceFile, b: EvidenceFile) -> None:
    """Compare two models image by image, from the evidence of their evaluations on the same images."""
    from service.evidence import comparison

    console.print(comparison(a, b))
