"""Runs the rows of a study through a service: queues what nobody has, takes up what was lost, and waits, patiently
where the service restarts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.client import Client
from service.client_http import NoServiceError, NotAllowedError, ServiceError
from service.study_table import Row, Study

LOST = frozenset({"failed", "canceled"})
"""States of rows, and of jobs, that came to nothing."""
OVER = LOST | {"succeeded"}
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
"""So long a service that has answered before may be away, and a job may find no room in an idle one."""
_PASSING = frozenset({429, 502, 503, 504})
_TOO_LATE, _REFUSED, _NOT_YOURS = 409, 422, 403


def chosen(found: Study, only: Sequence[str]) -> list[Row]:
    """The rows with these names, methods' or recipes'; all of them without any."""
    names = {word.casefold() for word in only}
    return [row for row in found["rows"] if not names or names & {row["method"].casefold(), row["recipe"]}]


class StudyRun:
    """What one command does for a study. A row is taken up once: what then fails again is left to the next command
    and to who reads its reason."""

    def __init__(self, client: Client, name: str, only: Sequence[str]) -> None:
        self.refused: dict[str, str] = {}
        """By recipe: why the service would not run a row."""
        self.notes: list[str] = []
        """What one should hear of, since the last look at it."""
        self._client, self._name, self._only = client, name, only
        self._taken: set[str] = set()
        self._judged: set[str] = set()
        self._waiting: dict[str, float] = {}
        self._heard_at = float("-inf")

    def follow(self) -> Iterator[Study]:
        """The study, once a second, until each of its chosen rows has ended or been refused.

        NoServiceError where nobody has answered for a minute, or from the beginning.
        """
        while True:
            found = self._look()
            rows = chosen(found, self._only)
            busy = any(row["state"] in {"queued", "training", "judging"} for row in rows)
            acted = [self._take_up(row, busy) for row in rows]
            yield found
            if not any(acted) and all(self.has_ended(row) for row in rows):
                return
            time.sleep(_POLL_SECONDS)

    def has_ended(self, row: Row) -> bool:
        return row["recipe"] in self.refused or (row["state"] in OVER and row["recipe"] in self._taken)

    def _look(self) -> Study:
        while True:
            try:
                found = self._client.study(self._name)
            except ServiceError as error:
                if not _passes(error) or time.monotonic() - self._heard_at > _PATIENCE_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                self._heard_at = time.monotonic()
                return found

    # --- one row ----------------------------------------------------------------------------------------------

    def _take_up(self, row: Row, busy: bool) -> bool:
        """See to it that the row is trained and judged; whether the service was asked for something, so that the
        row is no longer as it was found."""
        recipe = row["recipe"]
        is_left = row["state"] == "trained" and row["training"]["id"] not in self._judged
        if recipe in self.refused or (recipe in self._taken and not is_left):
            return False
        wanting = _is_wanting(row)
        try:
            # Looked at once more: a second command may be at it, or this one was before its service went away.
            if wanting and _is_wanting(again := self._again(recipe)):
                self._go_on(again)
        except NotAllowedError:
            raise
        except ServiceError as error:
            now = time.monotonic()
            self._waiting[recipe] = since = now if busy else self._waiting.get(recipe, now)
            if not _passes(error) or (not busy and now - since > _PATIENCE_SECONDS):
                self.refused[recipe] = str(error)
            return True
        self._waiting.pop(recipe, None)
        self._taken.add(recipe)
        if is_left:
            self._judged.add(row["training"]["id"])
        return wanting

    def _again(self, recipe: str) -> Row:
        return next(row for row in self._client.study(self._name)["rows"] if row["recipe"] == recipe)

    def _go_on(self, row: Row) -> None:
        """Queue what nobody has, take up what has failed or was canceled. This is all that a study ever asks the
        service to do."""
        training, evaluation = row["training"], row["evaluation"]
        if training is None or (training["status"] in LOST and not self._resumed(training)):
            self._submit(row)
            return
        # An evaluation that failed with its training has been resumed with it.
        waits_again = training["status"] in LOST and evaluation is not None and evaluation["status"] == "failed"
        lost = evaluation is not None and evaluation["status"] in LOST and not waits_again
        if evaluation is None or (lost and not self._resumed(evaluation)):
            self._judge(row)

    def _submit(self, row: Row) -> None:
        self._client.submit(row["recipe"], row["overrides"], then=[(row["judge"], row["judge_overrides"])])

    def _judge(self, row: Row) -> None:
        try:
            self._client.submit(row["judge"], {**row["judge_overrides"], "model.job": row["training"]["id"]})
        except ServiceError as error:
            if error.status != _REFUSED:
                raise
            self.notes.append(f"{row['method']} is trained anew: {error}")  # its model was given up
            self._submit(row)

    def _resumed(self, job: Mapping[str, Any]) -> bool:
        """Whether the job goes on; not where what it needs is gone, or it is somebody else's."""
        try:
            self._client.job(job["id"]).resume()
        except ServiceError as error:
            if error.status == _TOO_LATE:  # somebody was faster
                return True
            if error.status not in {_REFUSED, _NOT_YOURS}:
                raise
            self.notes.append(f"job {job['id']} cannot be resumed ({error}); it is submitted anew")
            return False
        return True


def _is_wanting(row: Row) -> bool:
    """Whether there is something to do for the row. What is about to be canceled has first to be so."""
    training, evaluation = row["training"], row["evaluation"]
    if training is None or training["status"] in LOST:
        return True
    return training["status"] != "cancelling" and (evaluation is None or evaluation["status"] in LOST)


def _passes(error: ServiceError) -> bool:
    return isinstance(error, NoServiceError) or error.status in _PASSING
