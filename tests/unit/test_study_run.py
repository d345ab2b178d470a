"""What `dklbench reproduce` asks of a service: every row once, whatever it finds and whatever goes wrong."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from service import study_run
from service.client_http import NoServiceError, NotAllowedError, ServiceError
from service.study_run import StudyRun

Document = dict[str, Any]


class Service:
    """Stands in for a client of a service: rows of a study, and what was asked for them, in words.

    `script` holds what happens at each look, before it; `refusals` what asking raises, by its first word and row.
    """

    def __init__(self, *rows: Document) -> None:
        self.rows = {row["recipe"]: row for row in rows}
        self.asked: list[str] = []
        self.script: list[Callable[[], object]] = []
        self.refusals: dict[str, list[Exception]] = {}
        self._numbers = count()

    def study(self, name: str) -> Document:
        assert name == "2-tiny"
        if self.script:
            self.script.pop(0)()
        return {"rows": [_seen(row) for row in self.rows.values()]}

    def submit(self, recipe: str, overrides: Document, then: list[Any] | None = None) -> None:
        if recipe == "judge":
            training = overrides["model.job"]
            row = next(row for row in self.rows.values() if row["training"] and row["training"]["id"] == training)
            self._ask("judge", row)
            row["evaluation"] = self._job("queued")
            return
        row = self.rows[recipe]
        self._ask("train", row)
        assert then == [("judge", {"images": 8})]
        assert overrides == {"epochs": 1}
        row |= {"training": self._job("queued"), "evaluation": self._job("queued")}

    def job(self, job_id: str) -> "Handle":
        return Handle(self, job_id)

    def resume(self, job_id: str) -> None:
        row, kind = next(
            (row, kind)
            for row in self.rows.values()
            for kind in ("training", "evaluation")
            if row[kind] and row[kind]["id"] == job_id
        )
        self._ask(f"resume-{kind}", row)
        row[kind]["status"] = "queued"
        if kind == "training" and row["evaluation"] and row["evaluation"]["status"] == "failed":
            row["evaluation"]["status"] = "queued"

    def end(self) -> None:
        """Everything that waits succeeds."""
        for row in self.rows.values():
            for kind in ("training", "evaluation"):
                if row[kind] and row[kind]["status"] in {"queued", "running"}:
                    row[kind]["status"] = "succeeded"

    def _ask(self, what: str, row: Document) -> None:
        self.asked.append(f"{what} {row['recipe']}")
        if refusals := self.refusals.get(self.asked[-1]):
            raise refusals.pop(0)

    def _job(self, status: str) -> Document:
        return {"id": f"new-{next(self._numbers)}", "status": status}


class Handle:
    def __init__(self, service: Service, job_id: str) -> None:
        self.service, self.id = service, job_id

    def resume(self) -> None:
        self.service.resume(self.id)


def row(recipe: str = "a", training: str | None = None, evaluation: str | None = None) -> Document:
    """A row whose jobs have these states."""
    return {
        "method": recipe.upper(),
        "recipe": recipe,
        "overrides": {"epochs": 1},
        "judge": "judge",
        "judge_overrides": {"images": 8},
        "training": training and {"id": f"{recipe}-training", "status": training},
        "evaluation": evaluation and {"id": f"{recipe}-evaluation", "status": evaluation},
    }


def _seen(row: Document) -> Document:
    """As the service tells it, a copy."""
    status = {kind: row[kind]["status"] if row[kind] else None for kind in ("training", "evaluation")}
    match status["training"], status["evaluation"]:
        case None, _:
            state = "missing"
        case "queued", _:
            state = "queued"
        case (("running" | "cancelling"), _):
            state = "training"
        case "succeeded", None:
            state = "trained"
        case "succeeded", ("queued" | "running"):
            state = "judging"
        case "succeeded", ended:
            state = str(ended)
        case ended, _:
            state = str(ended)
    jobs = {kind: dict(row[kind]) if row[kind] else None for kind in ("training", "evaluation")}
    return {**row, **jobs, "state": state}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "_POLL_SECONDS", 0.0)


def followed(service: Service, *only: str, looks: int = 20) -> tuple[StudyRun, list[str]]:
    """The run, and the states at its end; jobs succeed at the last looks of the script."""
    run = StudyRun(service, "2-tiny", list(only))  # type: ignore[arg-type]
    states: list[str] = []
    for number, found in enumerate(run.follow()):
        states = [one["state"] for one in study_run.chosen(found, only)]
        assert number < looks, "it does not end"
        if number >= 2 and not service.script:
            service.end()
    return run, states


@pytest.mark.parametrize(
    ("training", "evaluation", "asked"),
    [
        (None, None, ["train a"]),
        ("succeeded", "succeeded", []),
        ("queued", "queued", []),
        ("running", "queued", []),
        ("succeeded", "running", []),
        ("running", None, ["judge a"]),
        ("succeeded", None, ["judge a"]),
        ("failed", "failed", ["resume-training a"]),
        ("canceled", "failed", ["resume-training a"]),
        ("failed", "canceled", ["resume-training a", "resume-evaluation a"]),
        ("canceled", None, ["resume-training a", "judge a"]),
        ("succeeded", "failed", ["resume-evaluation a"]),
        ("succeeded", "canceled", ["resume-evaluation a"]),
    ],
)
def test_each_row_gets_what_it_lacks_and_no_more(
    training: str | None, evaluation: str | None, asked: list[str]
) -> None:
    service = Service(row("a", training, evaluation))
    run, states = followed(service)
    assert service.asked == asked
    assert states == ["succeeded"]
    assert (run.refused, run.notes) == ({}, [])


def test_only_the_chosen_rows_run() -> None:
    service = Service(row("a"), row("b"), row("c"))
    followed(service, "B", "c")
    assert service.asked == ["train b", "train c"]


@pytest.mark.parametrize("status", [403, 422])
def test_what_cannot_be_resumed_is_submitted_anew(status: int) -> None:
    service = Service(row("a", "failed", "failed"), row("b", "succeeded", "failed"))
    kind = NotAllowedError if status == 403 else ServiceError
    for asked in ("resume-training a", "resume-evaluation b"):
        service.refusals[asked] = [kind("no", status)]
    run, states = followed(service)
    assert service.asked == ["resume-training a", "train a", "resume-evaluation b", "judge b"]
    assert states == ["succeeded", "succeeded"]
    assert run.notes == [f"job {job} cannot be resumed (no); it is submitted anew"
                         for job in ("a-training", "b-evaluation")]  # fmt: skip


def test_what_somebody_else_has_just_resumed_is_left_to_them() -> None:
    service = Service(row("a", "failed", "failed"))
    service.refusals["resume-training a"] = [ServiceError("job is queued; only what has ended is resumed", 409)]
    service.script = [lambda: None, lambda: None, lambda: service.rows["a"]["training"].update(status="queued"),
                      lambda: service.rows["a"]["evaluation"].update(status="queued")]  # fmt: skip
    _, states = followed(service)
    assert (service.asked, states) == (["resume-training a"], ["succeeded"])


def test_a_second_command_at_the_same_time_submits_nothing_twice() -> None:
    service = Service(row("a"), row("b"))
    other = Service._job

    def submitted() -> None:
        """By the other command, between the look at all rows and the one at this row."""
        service.rows["a"] |= {"training": other(service, "queued"), "evaluation": other(service, "queued")}

    service.script = [lambda: None, submitted]
    followed(service)
    assert service.asked == ["train b"]


def test_what_fails_again_is_left_as_it_is() -> None:
    service = Service(row("a", "failed", "failed"), row("b", "succeeded", "failed"))

    def fail() -> None:
        for one in service.rows.values():
            one["evaluation"]["status"] = "failed"
        service.rows["a"]["training"]["status"] = "failed"

    service.script = [*[lambda: None] * 3, fail]
    _, states = followed(service)
    assert service.asked == ["resume-training a", "resume-evaluation b"]
    assert states == ["failed", "failed"]


def test_one_that_is_being_canceled_is_waited_for_and_then_left() -> None:
    service = Service(row("a", "cancelling"))
    service.script = [lambda: None, lambda: service.rows["a"]["training"].update(status="canceled")]
    assert followed(service)[1] == ["canceled"]
    assert service.asked == []
    assert followed(service)[1] == ["succeeded"]  # the next command takes it up
    assert service.asked == ["resume-training a", "judge a"]


def test_a_model_that_comes_without_an_evaluation_is_judged_once() -> None:
    service = Service(row("a", "running", "queued"))

    def by_hand() -> None:
        service.rows["a"] |= {"training": {"id": "by-hand", "status": "succeeded"}, "evaluation": None}

    service.script = [lambda: None, by_hand]
    assert followed(service)[1] == ["succeeded"]
    assert service.asked == ["judge a"]


@pytest.mark.parametrize("evaluation", [None, "failed"])
def test_a_model_whose_files_are_gone_is_trained_anew(evaluation: str | None) -> None:
    service = Service(row("a", "succeeded", evaluation))
    gone = "model.job: the files of job a-training were given up"
    service.refusals = {asked: [ServiceError(gone, 422)] for asked in ("resume-evaluation a", "judge a")}
    run, states = followed(service)
    assert service.asked[-2:] == ["judge a", "train a"]
    assert states == ["succeeded"]
    assert run.notes[-1] == f"A is trained anew: {gone}"


def test_a_refused_row_does_not_stop_the_others() -> None:
    service = Service(row("a"), row("b"))
    service.refusals["train a"] = [ServiceError("no such data set here", 422)]
    run, states = followed(service)
    assert (service.asked, states) == (["train a", "train b"], ["missing", "succeeded"])
    assert run.refused == {"a": "no such data set here"}


def test_a_key_that_does_not_suffice_ends_it() -> None:
    service = Service(row("a"), row("b"))
    service.refusals["train a"] = [NotAllowedError("needs scope submit", 403)]
    with pytest.raises(NotAllowedError, match="needs scope submit"):
        followed(service)
    assert service.asked == ["train a"]


def away(error: Exception) -> Callable[[], object]:
    def answer() -> None:
        raise error

    return answer


@pytest.mark.parametrize("error", [NoServiceError("gone"), ServiceError("the service answered 502", 502)])
def test_a_service_that_restarts_is_waited_for(error: Exception) -> None:
    service = Service(row("a", "failed", "failed"), row("b"))
    service.refusals = {"resume-training a": [error], "train b": [error, error]}
    service.script = [lambda: None, *[away(error)] * 3]
    run, states = followed(service)
    assert states == ["succeeded", "succeeded"]
    assert service.asked.count("resume-training a") == 2
    assert service.asked.count("train b") == 3
    assert (run.refused, run.notes) == ({}, [])


def test_a_service_that_never_answered_is_not_waited_for() -> None:
    service = Service(row("a"))
    service.script = [away(NoServiceError("nobody"))]
    with pytest.raises(NoServiceError, match="nobody"):
        followed(service)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "_PATIENCE_SECONDS", 0.0)
    service = Service(row("a", "running", "queued"))
    service.script = [lambda: None, away(NoServiceError("gone"))]
    with pytest.raises(NoServiceError, match="gone"):
        followed(service)


def test_room_in_the_queue_is_waited_for_as_long_as_something_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "_PATIENCE_SECONDS", -1.0)
    full = ServiceError("1000 of your jobs wait already", 429)
    service = Service(row("a", "running", "queued"), row("b"))
    service.refusals["train b"] = [full, full]
    assert followed(service)[1] == ["succeeded", "succeeded"]
    assert service.asked == ["train b"] * 3
    idle = Service(row("a"))
    idle.refusals["train a"] = [full]
    run, _ = followed(idle)
    assert run.refused == {"a": "1000 of your jobs wait already"}
