"""A job's events as the lines of a log: when, who, and what happened in a sentence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dkl.documents import show_pixels
from service.wording import count, duration, percent, when

if TYPE_CHECKING:  # a client that follows a log has no database
    from sqlalchemy import Engine

    from service.tables import JobEvent

_PAGE = 1000
"""Events that are in memory at once while a whole log is written."""


class Said(NamedTuple):
    """An event that came from somewhere else than the ledger's table."""

    id: int
    at: float
    attempt: int
    kind: str
    payload: dict[str, Any]


class Line(NamedTuple):
    event: int
    """Its id; an event with warnings has several lines."""
    at: float
    who: str
    """A worker, or whoever changed the job; empty where that is not known."""
    text: str

    def __str__(self) -> str:
        return "  ".join(part for part in (when(self.at), self.who, self.text) if part)


def lines(events: "Iterable[JobEvent | Said]", workers: dict[int, str] | None = None) -> Iterator[Line]:
    """What the events say, in their order. `workers`, by attempt, carries over who is who where `events` are one
    part of several."""
    workers = {} if workers is None else workers
    for event in events:
        said = event.payload
        if event.kind == "joined" or (event.kind == "status" and said["status"] == "running"):
            workers[event.attempt] = said["worker" if event.kind == "joined" else "actor"]
        who = said["actor"] if event.kind == "status" else workers.get(event.attempt, "")
        for text in _texts(event):
            yield Line(event.id, event.at, _plain(who), _plain(text))


def written(db: "Engine", job_id: str) -> Iterator[str]:
    """The whole log as text, a part at a time."""
    from sqlalchemy import select

    from service.db import reading
    from service.tables import JobEvent

    said = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id).limit(_PAGE)
    workers: dict[int, str] = {}
    after = 0
    while True:
        with reading(db) as session:
            events = session.scalars(said.where(JobEvent.id > after)).all()
        if not events:
            return
        yield "".join(f"{line}\n" for line in lines(events, workers))
        after = events[-1].id


def _plain(text: str) -> str:
    """In one line, and without what would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# --- in words ---------------------------------------------------------------------------------------------


def _texts(event: "JobEvent | Said") -> Sequence[str]:
    said = event.payload
    match event.kind:
        case "status":
            attempt = f", attempt {event.attempt}" if said["status"] == "running" and event.attempt > 1 else ""
            return [f"{said['status']}{attempt}{_because(said)}"]
        case "started":
            return [_started(said)]
        case "joined":
            return [f"joined, attempt {event.attempt}"]
        case "left":
            return [f"left{_because(said)}"]
        case "adjusted":
            return [f"adjusted: {said['sentence']}"]
        case "epoch":
            return [_epoch(said)]
        case "batch":
            return [_batch(said), *(f"warning: {warning}" for warning in said.get("warnings", ()))]
        case "corruption":
            return [_corruption(said)]
        case "finished":
            result = said["result"]
            return [_result(result), *(f"warning: {warning}" for warning in result.get("warnings", ()))]
    return [event.kind]


def _because(said: Mapping[str, Any]) -> str:
    return f": {said['reason']}" if said.get("reason") else ""


def _started(said: Mapping[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in (said.get("versions") or {}).items()]
    commit = [f"commit {_short(said['commit'])}"] if said.get("commit") else []
    of = f": {', '.join(versions + commit)}" if versions or commit else ""
    return f"{'resumes' if said['resumed'] else 'begins'} on {said['device']}{of}"


def _short(commit: str) -> str:
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _epoch(said: Mapping[str, Any]) -> str:
    accuracies = [
        f"{name} {percent(said[field])} %"
        for field, name in (
            ("clean_accuracy", "clean"),
            ("adversarial_accuracy", "adversarial"),
            ("validation_accuracy", "held out"),
            ("validation_robust_accuracy", "held out under PGD"),
        )
        if said.get(field) is not None
    ]
    speed = [f"{count(said['images_per_second'])} images/s"] if said.get("images_per_second") else []
    rest = [f"loss {said['loss']:.4f}", *accuracies, f"lr {said['lr']:.3g}", *speed, duration(said["seconds"])]
    return f"epoch {said['epoch']} of {said['epochs']}: {', '.join(rest)}"


def _batch(said: Mapping[str, Any]) -> str:
    name, phase, eps = said["name"], said.get("phase"), said.get("eps")
    what = [name] if phase in {None, name} else [name, phase]
    at = f" at {show_pixels(eps)}" if eps else ""
    part = f", batch {said['batch'] + 1} of {said['batches']}" if said.get("batches", 1) > 1 else ""
    stand = said["standing"].count("1")
    images = len(said["standing"])
    fell = f"{count(images - stand)} of {count(images)} images {'wrong' if name == 'clean' else 'broken'}"
    return f"{', '.join(what)}{at}{part}: {fell}, {count(stand)} stand, {duration(said['seconds'])}"


def _corruption(said: Mapping[str, Any]) -> str:
    name, severity = said["corruption"].replace("_", " "), said["severity"]
    what = f"{name}, severity {severity}" if severity else name
    return f"{what}: accuracy {percent(said['accuracy'])} % on {count(said['images'])} images"


def _result(result: Mapping[str, Any]) -> str:
    accuracies = [
        f"{name} {percent(result[field])} %"
        for field, name in (
            ("clean_accuracy", "clean"),
            ("robust_accuracy", "robust"),
            ("corruption_accuracy", "corrupted"),
        )
        if result.get(field) is not None
    ]
    images = [f"{count(result['images'])} test images"] if result.get("images") else []
    epoch = [f"weights of epoch {result['selected_epoch']}"] if result.get("selected_epoch") else []
    parameters = [f"{count(result['parameters'])} parameters"] if result.get("parameters") else []
    file = [f"checkpoint {result['checkpoint_sha256'][:12]}"] if result.get("checkpoint_sha256") else []
    took = [duration(result["seconds"])] if result.get("seconds") is not None else []
    return f"result: {', '.join([*accuracies, *images, *epoch, *parameters, *file, *took])}"
