"""`dklbench submit`, `watch`, `log`, `jobs`, `cancel`, `resume-job`, `rerun` and `replay`: jobs of a running
service."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import completion
from service.options import JobId, Json, JsonLines, Overrides, Recipe, Url, Watch, client_of
from service.terminal import console, note, say, show_json

if TYPE_CHECKING:
    from service.client import Job, JobFailed

app = typer.Typer()


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    url: Url = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", help="Stop an evaluation once its model cannot be among its board's best K."),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="An evaluation of the model that this makes, or a distillation from it, queued with it; with "
            'changes to it in quotes: "RECIPE images=100".',
            autocompletion=completion.recipes,
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Default: the service's first.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher ones first.")] = 0,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that its worker must have.")] = 0,
    gpu_memory: Annotated[float, typer.Option(min=0, metavar="GIB", help="That each of them must have.")] = 0.0,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="An https address to tell when it has ended.")
    ] = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Queue a job. An evaluation needs its model, a distillation its teacher: model.job=ID or
    teacher.job=ID of a training job."""
    from dkl.catalog import named, parse_overrides

    named(recipe)  # what else may be wrong the service says; a name is misspelt more often than anything
    changes = parse_overrides(overrides or [])
    with client_of(url) as client:
        job = client.submit(
            recipe, changes, top_k=top, queue=queue, priority=priority, gpus=gpus, gpu_memory=gpu_memory,
            webhook=webhook, then=[next_words(words) for words in then or []],
        )  # fmt: skip
        queued = [job, *job.then]
        for one in queued:
            say_queued(one, as_json=as_json)
        if top is not None:
            below = job.document["recipe"]["stop_below"]
            (note if as_json else say)(
                f"its board has fewer than {top} rows, so nothing stops it"
                if below is None
                else f"it stops once its robust accuracy is certain to be below {below:.2%}"
            )
        finish(queued, watch=watch, as_json=as_json)


def next_words(words: str) -> tuple[str, dict[str, Any]]:
    """What --then says: a recipe's name, then changes to it, which hold no spaces."""
    from dkl.catalog import named, parse_overrides

    name, *overrides = words.split() or [""]
    named(name)
    return name, parse_overrides(overrides)


def say_queued(job: "Job", *, as_json: bool) -> None:
    what = f", {job.title}," if job.parent_id or job.document["rerun_of"] else ""
    (note if as_json else say)(f"job [bold]{job.id}[/]{what} is queued: {job.url}")


def finish(queued: "Sequence[Job]", *, watch: bool, as_json: bool) -> None:
    """Draw the jobs until they end, if that is wanted; print the first one as JSON, if that is, with the others as
    its `then`. JobFailed where one of them did not succeed."""
    failed = draw(queued, as_json=as_json) if watch else None
    if as_json:
        first, *then = [job.document for job in queued]
        show_json({**first, "then": then})
    if failed:
        raise failed


def draw(jobs: "Sequence[Job]", *, as_json: bool) -> "JobFailed | None":
    """Draw the jobs' progress, one after the other, until they end; what to raise where one did not succeed."""
    from service.client import JobFailed
    from service.terminal_bars import Bars

    with Bars(epochs=True, quiet=as_json) as bars:
        waiting = [(bars.add(job.title), job) for job in jobs]
        for bar, job in waiting:
            try:
                bars.follow(bar, job.watch())
            except KeyboardInterrupt:
                note(f"the job goes on; see it again with: dklbench watch {job.id}")
                raise
    return next((JobFailed(job) for job in jobs if job.status != "succeeded"), None)


@app.command(name="watch")
def watch_job(job_id: JobId, url: Url = None, as_json: JsonLines = False) -> None:
    """Draw a job's progress until it ends. Exit code 1 if it does not succeed."""
    from service.client import JobFailed

    with client_of(url) as client:
        job = client.job(job_id)
        if not as_json:
            finish([job], watch=True, as_json=False)
            return
        for event in job.watch():
            show_json({"id": event.id, "kind": event.kind, "data": event.data})
        if job.status != "succeeded":
            raise JobFailed(job)


@app.command(name="log")
def show_log(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
    url: Url = None,
    as_json: JsonLines = False,
) -> None:
    """Print what a job has said, a line per event."""
    with client_of(url) as client:
        job = client.job(job_id)
        if follow or as_json:
            _tell(job, follow=follow, as_json=as_json)
            return
        for part in job.log():
            print(part, end="", flush=True)


def _tell(job: "Job", *, follow: bool, as_json: bool) -> None:
    """The job's log line by line, until it ends or, without `follow`, until now."""
    until = None if follow else sum(part.count("\n") for part in job.log())
    for line in islice(_lines(job), until):
        if as_json:
            show_json({"event": line.event, "at": line.at, "who": line.who, "says": line.text})
        else:
            print(line, flush=True)


def _lines(job: "Job") -> Iterator[Any]:
    """Of the job's log, until it ends."""
    from service.web.joblog import Said, lines

    return lines(Said(e.id, e.data["at"], e.data["attempt"], e.kind, e.data) for e in job.watch() if e.id)


@app.command()
def cancel(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """End a job."""
    with client_of(url) as client:
        job = client.job(job_id).cancel()
    _say(job, f"job {job.id} is {job.status}", as_json=as_json)


@app.command()
def resume_job(job_id: JobId, url: Url = None, watch: Watch = False, as_json: Json = False) -> None:
    """Let a job that failed or was canceled go on."""
    with client_of(url) as client:
        job = client.job(job_id).resume()
        (note if as_json else say)(f"job {job.id} is {job.status} again")
        finish([job], watch=watch, as_json=as_json)


@app.command()
def rerun(job_id: JobId, url: Url = None, watch: Watch = False, as_json: Json = False) -> None:
    """Run an ended job again, as a new one."""
    with client_of(url) as client:
        job = client.job(job_id).rerun()
        say_queued(job, as_json=as_json)
        finish([job], watch=watch, as_json=as_json)


def _say(job: "Job", sentence: str, *, as_json: bool) -> None:
    if as_json:
        show_json(job.document)
    else:
        say(sentence)


@app.command()
def replay(
    job_id: JobId,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="JOB",
            help="Compare with this run of it instead of starting a new one.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run a finished job again and compare what it finds. Exit code 0 only if the result is the same."""
    from service.replay import replay, shown

    with client_of(url) as client:

        def follow(job: "Job") -> None:
            if run is None:
                say_queued(job, as_json=as_json)
                (note if as_json else say)(f"to compare later: dklbench replay {job_id} --run {job.id}")
            draw([job], as_json=as_json)

        report = replay(client, job_id, run=run, follow=follow)
    if as_json:
        show_json(report.document())
    else:
        console.print(shown(report))
    if not report.same:
        raise typer.Exit(1)


@app.command()
def jobs(
    status: Annotated[
        str | None, typer.Option(help="queued, running, cancelling, succeeded, failed or canceled.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="train, distill, import, evaluate or corruptions.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="So many.")] = 100,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the newest jobs."""
    from service.terminal_tables import jobs_table

    with client_of(url) as client:
        found = [job.document for job in client.jobs(status=status, kind=kind, limit=limit)]
    if as_json:
        show_json({"jobs": found})
    elif found:
        console.print(jobs_table(found))
    else:
        say(
            "there are no such jobs"
            if status or kind
            else "there are no jobs yet; queue one with: dklbench submit"
        )
