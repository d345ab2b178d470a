"""How the service bears load: readers, submitters and watchers at once, on one machine.

    python benchmarks/load.py                     # SQLite, as `dklbench up` has it; three minutes
    python benchmarks/load.py --quick             # the same with shorter phases, within a minute
    python benchmarks/load.py --database URL      # on an empty PostgreSQL database

One API process on an empty data directory, without workers. The ledger is filled past it: 10,000 succeeded
evaluations of 1,000 models on one board, and 40 jobs that run and say something every second, one fact and one
progress each. 200 event streams follow these, five each, all the time.

Then, one phase after the other, four clients submit jobs, read a random page of the leaderboard as JSON, and read
it as a page of HTML, as fast as they are answered; in the last phase they do all three in turn. Times are what a
client waits, on connections that stay open. All of it shares the machine: the API process, the clients, and who
writes for the jobs.

Memory is the resident set of the API process: after a phase of everything that is not counted, and at the end. A
fact is late by the time from its transaction to its arrival, on one clock.

The last line is one JSON object; `streams_complete` counts the streams that had every fact of their job exactly
once and in order, `errors` every answer that was not a success.
"""

import argparse
import asyncio
import json
import platform
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import psutil
from sqlalchemy import Engine, insert, select

from dkl.catalog import resolve
from dkl.events import Epoch, Progress
from dkl.recipes import fingerprint
from service import claims, jobs
from service.db import connect, migrate, reading, writing
from service.settings import Settings
from service.tables import Job, JobEvent

ROWS, MODELS = 10_000, 1_000
RUNNING, STREAMS_EACH = 40, 5
CLIENTS = 4
LEASE = 3600.0


# --- what is there before ---------------------------------------------------------------------------------


def fill(db: Engine) -> None:
    """Trainings and evaluations that have succeeded, as the ledger has them."""
    chance = random.Random(0)
    training = resolve("ikl-at-digits", {})
    common = {
        "status": "succeeded",
        "attempt": 1,
        "revision": 40,
        "created_at": time.time() - 7200,
        "started_at": time.time() - 7100,
        "dataset": "digits",
        "norm": "Linf",
        "eps": 0.2,
        "clean_accuracy": 0.95,
    }
    models = [
        common
        | {
            "id": secrets.token_hex(6),
            "kind": "train",
            "name": "ikl-at-digits",
            "recipe": training.model_copy(update={"seed": number}).model_dump(mode="json"),
            "fingerprint": secrets.token_hex(32),
            "result": {"kind": "train", "checkpoint_sha256": secrets.token_hex(32), "clean_accuracy": 0.95},
            "finished_at": time.time() - 7000,
        }
        for number in range(MODELS)
    ]
    evaluations = [common | _evaluation(number, chance.choice(models), chance) for number in range(ROWS)]
    with writing(db) as session:
        session.execute(insert(Job), models)
        for start in range(0, ROWS, 1000):
            session.execute(insert(Job), evaluations[start : start + 1000])


def _evaluation(number: int, model: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    recipe = resolve("autoattack-digits-linf", {"model.job": model["id"], "seed": number})
    robust = chance.randrange(9500) / 10_000
    stage = {"phase": "suite", "eps": 0.2, "attacked": 95, "accuracy": robust, "forwards": 98_000, "seconds": 3.7}
    result = {
        "kind": "evaluate",
        "images": 100,
        "clean_accuracy": 0.95,
        "clean_interval": [0.888, 0.978],
        "robust_accuracy": robust,
        "robust_interval": [max(0.0, robust - 0.1), min(1.0, robust + 0.1)],
        "curve": [{"eps": 0.2, "robust_accuracy": robust, "robust_interval": [0.0, 1.0]}],
        "stages": [stage | {"name": name} for name in ("clean", "apgd-ce", "apgd-t", "fab-t", "square")],
        "class_robust_accuracy": [robust] * 10,
        "protocol": "AutoAttack standard",
        "engine": "dkl-bench 0.1.0",
        "stopped_early": False,
        "checkpoint_sha256": model["result"]["checkpoint_sha256"],
        "architecture": f"CNN-{chance.choice((16, 32, 64))}",
        "evidence_sha256": secrets.token_hex(32),
        "provenance": {"recipe": recipe.model_dump(mode="json"), "versions": {"torch": "2.11.0"}},
    }
    return {
        "id": secrets.token_hex(6),
        "kind": "evaluate",
        "name": "autoattack-digits-linf",
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": fingerprint(recipe),
        "parent_id": model["id"],
        "result": result,
        "robust_accuracy": robust,
        "finished_at": time.time() - 7000 + number / 10,
    }


# --- jobs that run ----------------------------------------------------------------------------------------


class Speakers:
    """Jobs that run, and say a fact and their progress every second until they are told to stop."""

    def __init__(self, db: Engine) -> None:
        self._db = db
        self._stop = Event()
        self._claims = [self._start(number) for number in range(RUNNING)]
        self.job_ids = [claim.job_id for claim in self._claims]
        self._thread = Thread(target=self._speak, name="speakers", daemon=True)
        self._thread.start()

    def _start(self, number: int) -> claims.Claim:
        job = jobs.create(self._db, resolve("ikl-at-digits", {"epochs": 100_000, "seed": 10**6 + number}))
        claim = claims.claim(self._db, job.id, worker=f"speaker {number}", lease_seconds=LEASE)
        assert claim is not None
        return claim

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _speak(self) -> None:
        epoch = 0
        while not self._stop.is_set():
            epoch += 1
            began = time.monotonic()
            for place, claim in enumerate(self._claims):
                claims.append(self._db, claim, _epoch(epoch))
                progress = Progress(phase=f"epoch {epoch}", done=epoch, total=100_000, rate=5120, eta_seconds=1)
                claims.append(self._db, claim, progress)
                self._stop.wait(max(0.0, began + (place + 1) / RUNNING - time.monotonic()))


def _epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number,
        epochs=100_000,
        loss=1.5,
        terms={"natural": 0.7, "wmse": 0.4, "soft_ce": 0.4},
        clean_accuracy=0.9,
        adversarial_accuracy=0.5,
        validation_accuracy=None,
        validation_robust_accuracy=None,
        eps=0.2,
        lr=0.1,
        images_per_second=5120.0,
        seconds=1.0,
        eta_seconds=1.0,
    )


# --- streams ----------------------------------------------------------------------------------------------


@dataclass
class Stream:
    job_id: str
    ids: list[int] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """Seconds from a fact's transaction to its arrival; of facts that came while it listened."""


class Streams:
    """Open event streams, in a thread with a loop of its own."""

    def __init__(self, port: int, job_ids: list[str]) -> None:
        self.all = [Stream(job_id) for job_id in job_ids for _ in range(STREAMS_EACH)]
        self.began = time.time()
        self._port = port
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, name="streams", daemon=True).start()
        self._tasks = [asyncio.run_coroutine_threadsafe(self._follow(stream), self._loop) for stream in self.all]

    def running(self) -> int:
        return sum(not task.done() for task in self._tasks)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _follow(self, stream: Stream) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with closing(writer):
            await self._read(stream, reader, writer)

    async def _read(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ask = f"GET /api/v1/jobs/{stream.job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        writer.write(ask.encode())
        number, data = 0, b""
        while line := await reader.readline():
            if line.startswith(b"id: "):
                number = int(line[4:])
            elif line.startswith(b"data: "):
                data = line[6:]
            elif line == b"\n":
                if number:  # progress has none
                    self._note(stream, number, json.loads(data))
                number, data = 0, b""

    def _note(self, stream: Stream, number: int, data: dict[str, Any]) -> None:
        stream.ids.append(number)
        if data["at"] > self.began:
            stream.late.append(time.time() - data["at"])


# --- clients ----------------------------------------------------------------------------------------------


@dataclass
class Measured:
    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    took: float = 0.0

    def numbers(self, name: str) -> dict[str, float]:
        p95 = statistics.quantiles(self.seconds, n=20)[-1]
        return {
            f"{name}_p50_ms": round(1000 * statistics.median(self.seconds), 1),
            f"{name}_p95_ms": round(1000 * p95, 1),
            f"{name}_per_second": round(len(self.seconds) / self.took, 1),
        }


Ask = Callable[[httpx2.Client, random.Random], httpx2.Response]


def submit(http: httpx2.Client, chance: random.Random) -> httpx2.Response:
    body = {"name": "ikl-at-digits", "overrides": {"seed": chance.randrange(2**31)}}
    return http.post("/api/v1/jobs", json=body)


def read_json(http: httpx2.Client, chance: random.Random) -> httpx2.Response:
    return http.get("/api/v1/leaderboard", params=_question(chance))


def read_page(http: httpx2.Client, chance: random.Random) -> httpx2.Response:
    return http.get("/", params=_question(chance), headers={"Accept": "text/html"})


def _question(chance: random.Random) -> dict[str, Any]:
    sort = chance.choice(("-robust_accuracy", "clean_accuracy", "name"))
    search = chance.choice(("", "", "cnn-16"))
    return {"dataset": "digits", "sort": sort, "search": search, "page": chance.randrange(1, 11)}


def phase(url: str, asks: dict[str, Ask], seconds: float) -> dict[str, Measured]:
    """Every client asks all of `asks` in turn, again and again, for so long and at least once."""
    began = time.monotonic()

    def client(number: int) -> dict[str, Measured]:
        chance = random.Random(number)
        measured = {name: Measured() for name in asks}
        with httpx2.Client(base_url=url, timeout=60) as http:
            while True:
                for name, ask in asks.items():
                    asked = time.monotonic()
                    response = ask(http, chance)
                    measured[name].seconds.append(time.monotonic() - asked)
                    measured[name].errors += not response.is_success
                if time.monotonic() > began + seconds:
                    return measured

    with ThreadPoolExecutor(CLIENTS) as pool:
        each = list(pool.map(client, range(CLIENTS)))
    took = time.monotonic() - began
    return {
        name: Measured([s for one in each for s in one[name].seconds], sum(one[name].errors for one in each), took)
        for name in asks
    }


# --- all of it --------------------------------------------------------------------------------------------


@contextmanager
def served(settings: Settings, port: int) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "uvicorn", "service.app:create_app", "--factory", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", "2"],
        env={**settings.as_environment(), "OMP_NUM_THREADS": "1"},
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as http:
            for _ in range(300):
                try:
                    http.get("/api/v1/recipes")
                    break
                except httpx2.TransportError:
                    time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def measure(folder: Path, database: str, seconds: float) -> dict[str, Any]:
    port = _free_port()
    settings = Settings(
        data_dir=folder,
        database_url=database,
        broker_url="",
        anonymous="submit",
        max_queued=1_000_000,
        requests_per_minute=100_000_000,
    )
    db = connect(settings.database)
    migrate(db)
    fill(db)
    speakers = Speakers(db)
    numbers: dict[str, Any] = {"rows": ROWS, "streams": RUNNING * STREAMS_EACH}
    url = f"http://127.0.0.1:{port}"
    errors = 0
    with served(settings, port) as process:
        began = time.monotonic()
        first = phase(url, {"first": read_json}, 0)["first"]
        numbers["first_read_ms"] = round(1000 * max(first.seconds), 1)
        streams = Streams(port, speakers.job_ids)
        phase(url, PHASES["mixed"], seconds)  # connections, threads and their caches are there from now on
        before = _megabytes(process)
        print(f"{before:.0f} MB after {time.monotonic() - began:.0f} s, warm", flush=True)
        for name, asks in PHASES.items():
            for what, measured in phase(url, asks, seconds).items():
                found = measured.numbers(what if name != "mixed" else f"mixed_{what}")
                errors += measured.errors
                numbers |= found
                print(f"{name:12} {found}  {_megabytes(process):.0f} MB", flush=True)
        alive = streams.running()
        speakers.stop()
        time.sleep(3)  # what was said last arrives
        numbers |= {"rss_before_mb": round(before), "rss_after_mb": round(_megabytes(process))}
        streams.close()
    numbers |= _streams(db, streams) | {"streams_alive": alive, "errors": errors}
    db.dispose()
    return numbers


PHASES: dict[str, dict[str, Ask]] = {
    "submissions": {"submissions": submit},
    "json": {"json": read_json},
    "html": {"html": read_page},
    "mixed": {"submissions": submit, "json": read_json, "html": read_page},
}


def _streams(db: Engine, streams: Streams) -> dict[str, Any]:
    written: dict[str, list[int]] = {}
    with reading(db) as session:
        mine = select(JobEvent.job_id, JobEvent.id).where(JobEvent.job_id.in_({s.job_id for s in streams.all}))
        for row in session.execute(mine.order_by(JobEvent.id)):
            written.setdefault(row.job_id, []).append(row.id)
    late = [seconds for stream in streams.all for seconds in stream.late]
    return {
        "streams_complete": sum(stream.ids == written[stream.job_id] for stream in streams.all),
        "facts_delivered": sum(len(stream.ids) for stream in streams.all),
        "facts_expected": sum(len(written[stream.job_id]) for stream in streams.all),
        "late_p50_ms": round(1000 * statistics.median(late)),
        "late_p95_ms": round(1000 * statistics.quantiles(late, n=20)[-1]),
    }


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter phases, within a minute")
    parser.add_argument("--seconds", type=float, help="of a phase; default: 30, with --quick 6")
    parser.add_argument("--database", default="", help="an empty PostgreSQL database; default: a SQLite file")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (6 if arguments.quick else 30)
    packages = ("dkl-bench", "fastapi", "uvicorn", "sqlalchemy", "pydantic")
    print(f"{psutil.cpu_count()} processors, Python {platform.python_version()}; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        numbers = measure(Path(folder), arguments.database, seconds)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
