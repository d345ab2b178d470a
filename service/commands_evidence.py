"""`dklbench evidence`, `verify` and `compare`: what proves an evaluation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.markup import escape

from service.options import Device, JobId, Json, Url, client_of
from service.terminal import console, note, say, show_json, transfer

app = typer.Typer()

EvidenceFile = Annotated[Path, typer.Argument(help="An evidence.safetensors that an evaluation left.")]


@app.command()
def evidence(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: JOB-evidence.safetensors.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download the evidence of an evaluation."""
    with client_of(url) as client:
        job = client.job(job_id)
        target = out or Path(f"{job.id}-evidence.safetensors")
        with transfer("fetching its evidence") as arrived:
            sha256 = job.download("evidence", target, arrived)
    if as_json:
        show_json({"job": job.id, "file": str(target), "sha256": sha256})
    else:
        say(f"{escape(str(target))} is the evidence of job {job.id}")


@app.command()
def verify(
    entry: Annotated[
        Path,
        typer.Argument(
            help="A measured entry of the leaderboard, which is the id of its evaluation; or an "
            "evidence.safetensors.",
            metavar="ENTRY|FILE",
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model that was judged; default: the job's.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies; default: the service's.")] = None,
    device: Device = "auto",
    report: Annotated[
        bool,
        typer.Option(
            " /--no-report", help="Do not tell the service what came out for its entry.", show_default=False
        ),
    ] = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Prove an evaluation: check every image of its evidence with the model. Exit code 1 if a claim fails.

    What came out for an entry is told to the service, which shows it beside the result.
    """
    from service.evidence import prove
    from service.settings import settings

    job_id = _job_id(entry)
    with _files(entry, job_id, checkpoint, url) as (file, model):
        proof = prove(file, checkpoint=model, data_dir=data_dir or settings().datasets_dir, device=device)
    if not as_json:
        console.print(proof.shown)
    recorded = bool(job_id and report and _report(job_id, proof.outcome, url, as_json=as_json))
    if as_json:
        claims = {"clean_accuracy": proof.clean_accuracy, "robust_accuracy": proof.robust_accuracy}
        show_json({"job": job_id, "ok": proof.ok, **claims, **proof.outcome, "recorded": recorded})
    if not proof.ok:
        raise typer.Exit(1)


def _job_id(entry: Path) -> str | None:
    """The evaluation that `entry` names; None where it is a file."""
    name = str(entry)
    if entry.exists() or entry.suffix == ".safetensors" or len(entry.parts) > 1:
        return None
    if not re.fullmatch("[0-9a-f]{12}", name):
        raise ValueError(
            f"{name} is no file and no evaluation's id; published results have no evidence here, only those that "
            "were measured here do, which `dklbench jobs --kind evaluate` lists"
        )
    return name


@contextmanager
def _files(
    entry: Path, job_id: str | None, checkpoint: Path | None, url: str | None
) -> Iterator[tuple[Path, Path]]:
    """Evidence and checkpoint as files; those of a job are downloaded, and removed at the end."""
    if job_id is None:
        if checkpoint is None:
            raise ValueError(f"say which model {entry} is about with --checkpoint FILE")
        yield entry, checkpoint
        return
    with TemporaryDirectory() as folder:
        downloaded = Path(folder) / "evidence.safetensors"
        with client_of(url) as client:
            job = client.job(job_id)
            with transfer("fetching its evidence") as arrived:
                job.download("evidence", downloaded, arrived)
            if checkpoint is None:
                checkpoint = Path(folder) / "model.safetensors"
                with transfer("fetching its model") as arrived:
                    job.download("checkpoint", checkpoint, arrived)
        yield downloaded, checkpoint


def _report(job_id: str, outcome: dict[str, Any], url: str | None, *, as_json: bool) -> bool:
    """Tell the service; whoever may not, or cannot, has proved it all the same. Whether it is recorded."""
    from service.client import ServiceError

    tell = note if as_json else say
    try:
        with client_of(url) as client:
            client.report_verification(job_id, outcome)
    except ServiceError as error:
        tell(f"[dim]the outcome was not recorded: {escape(str(error))}")
        return False
    tell(f"[dim]the outcome is recorded with job {job_id}")
    return True


@app.command()
def compare(a: EvidenceFile, b: EvidenceFile, as_json: Json = False) -> None:
    """Compare two models image by image, from the evidence of their evaluations on the same images."""
    from service.evidence import comparison

    found = comparison(a, b)
    if as_json:
        show_json(found.document)
    else:
        console.print(found.shown)
