"""What jobs leave behind, put side by side: their events as streams told them, their results without the times."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import numpy as np

from dkl.evidence import read_evidence

_OF_THE_RUN = {
    *("seconds", "seconds_per_iteration", "evidence_sha256", "fingerprint", "host", "worker", "workers"),
    *("attempts", "provenance"),
}
"""Fields of a result that two runs of one question need not share. The evidence names the parent job, so that its
arrays are compared instead of the file."""


class Reader:
    """Follows the events of one job to their end, through every interruption, as a browser does."""

    def __init__(self, url: str, job_id: str) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []
        """Ids and payloads in the order in which they came."""
        self.ended = False
        self.connections = 0
        self._url = f"{url}/api/v1/jobs/{job_id}/events"
        self._thread = Thread(target=self._follow, name=f"events of {job_id}", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _follow(self) -> None:
        last = "0"
        with httpx2.Client(timeout=20) as http:  # a living stream says something every 15 seconds
            while not self.ended:
                try:
                    with http.stream("GET", self._url, headers={"Last-Event-ID": last}) as response:
                        response.raise_for_status()
                        self.connections += 1
                        for event in httpx2.EventSource(response):
                            if event.event not in {"progress", "end"}:  # these two are of the moment
                                last = event.id
                                payload: dict[str, Any] = json.loads(event.data)
                                self.seen.append((int(event.id), payload))
                            self.ended = self.ended or event.event == "end"
                except (httpx2.HTTPError, OSError, ValueError):
                    time.sleep(0.5)


def lost(told: Sequence[tuple[int, Mapping[str, Any]]], written: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the events that a stream told, against those in the ledger; one sentence each."""
    ids = [number for number, _ in told]
    faults = [f"event {number} was never told" for number in written.keys() - set(ids)]
    faults += [f"event {number} was told and is not in the ledger" for number in set(ids) - written.keys()]
    faults += [f"event {b} was told after {a}" for a, b in pairwise(ids) if b <= a]
    faults += [
        f"event {number} was told otherwise than it is in the ledger"
        for number, payload in told
        if number in written and {k: payload[k] for k in payload if k not in {"attempt", "at"}} != written[number]
    ]
    return faults


def essence(result: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """The result without what is of the run; job ids are replaced by what `names` calls them."""
    text = json.dumps(_without(result))
    for job_id, title in names.items():
        text = text.replace(job_id, title)
    return json.loads(text)


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items() if key not in _OF_THE_RUN}
    return [_without(item) for item in value] if isinstance(value, list | tuple) else value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two documents differ, as paths with both values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{path}[{i}]")]
    return [] if a == b else [f"{path or 'result'}: {_short(a)} became {_short(b)}"]


def _short(value: object) -> str:
    return "a document" if isinstance(value, Mapping) else repr(value)[:200]


def unlike_evidence(a: Path, b: Path) -> list[str]:
    """Names of the evidence's arrays that differ; what attacked which images, and every adversarial pixel."""
    one, other = read_evidence(a), read_evidence(b)
    arrays = [field.name for field in fields(one) if field.name != "about"]
    unlike = [name for name in arrays if not _equal(getattr(one, name), getattr(other, name))]
    return unlike + (["data_sha256"] if one.about.data_sha256 != other.about.data_sha256 else [])


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:  # arrays that older evidence does not have
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
