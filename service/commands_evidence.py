"""`dklbench evidence`, `verify` and `compare`: what proves an evaluation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from service.options import Device, JobId, Url, client_of
from service.settings import settings
from service.terminal import console

app = typer.Typer()

EvidenceFile = Annotated[Path, typer.Argument(help="An evidence.safetensors that an evaluation left.")]


@app.command()
def evidence(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: JOB-evidence.safetensors.")] = None,
    url: Url = None,
) -> None:
    """Download the evidence of an evaluation."""
    target = out or Path(f"{job_id}-evidence.safetensors")
    with client_of(url) as client:
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
    with TemporaryDirectory() as folder, client_of(url) as client:
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
