"""How fast the leaderboard's first page is when its board is long, and how much it weighs.

    python benchmarks/board.py                    # SQLite, 10,000 measured rows on one board
    python benchmarks/board.py --rows 1000        # fewer
    python benchmarks/board.py --database URL     # on an empty PostgreSQL database

One API process on an empty data directory, as `dklbench up` has it. The ledger holds evaluations on the 10,000
test images of CIFAR-10, beside all that is published about it; every row has its flags per image, so that all of
them are compared with the leader. Requests follow each other on one connection that stays open, as a browser asks.

`first_ms` is the very first request of a process: it reads all rows. `changed_ms` is the first one after another
evaluation has come in, which works out ranks and ties again. Of each page: milliseconds that a client waits, and
the weight of its HTML as it is sent, compressed. `again` is the first page asked for by who has it already, as an
open page does every ten seconds. `page_with_assets_kb` is what a first visit loads: HTML, style sheets, scripts.

The last line is one JSON object.
"""

import argparse
import base64
import json
import platform
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sqlalchemy import Engine, insert

from dkl.catalog import resolve
from dkl.intervals import wilson_interval
from dkl.recipes import fingerprint
from service.db import connect, migrate, writing
from service.settings import Settings
from service.tables import Job

IMAGES = 10_000
PAGES = {
    "first": "/?dataset=cifar10&threat_model=Linf",
    "sorted": "/?dataset=cifar10&threat_model=Linf&sort=name",
    "searched": "/?dataset=cifar10&threat_model=Linf&search=wrn-28&source=measured",
    "last": "/?dataset=cifar10&threat_model=Linf&page=200",
    "scatter_svg": "/leaderboard/scatter.svg?dataset=cifar10&threat_model=Linf",
    "json": "/api/v1/leaderboard?dataset=cifar10&threat_model=Linf",
}
_HTML = {"Accept": "text/html", "Accept-Encoding": "gzip"}
_PLACES = np.random.default_rng(0).random(IMAGES)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=10_000)
    options.add_argument("--requests", type=int, default=200, help="of each page")
    options.add_argument("--database", default="", help="SQLAlchemy URL; absent: SQLite")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder), database_url=asked.database, broker_url="", requests_per_minute=10**6
        )
        db = connect(settings.database)
        migrate(db)
        fill(db, asked.rows)
        port = _free_port()
        process = serve(settings, port)
        try:
            found = measure(f"http://127.0.0.1:{port}", db, asked.requests)
        finally:
            process.terminate()
            process.wait(20)
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps({"rows": asked.rows, "database": db.dialect.name, **found, **machine}))


# --- what there is ----------------------------------------------------------------------------------------


def fill(db: Engine, rows: int) -> None:
    for start in range(0, rows, 500):
        with writing(db) as session:
            session.execute(insert(Job), [evaluation(number) for number in range(start, min(rows, start + 500))])


def evaluation(number: int) -> dict[str, Any]:
    """A succeeded one; models fall on much the same images, and differ by chance."""
    recipe = resolve("autoattack-cifar10-linf", {"model": {"checkpoint": secrets.token_hex(32)}, "seed": number})
    chance = np.random.default_rng(number)
    standing = 0.9 * _PLACES + 0.1 * chance.random(IMAGES) < 0.3 + 0.5 * chance.random()
    robust = float(standing.mean())
    result = {
        "kind": "evaluate",
        "images": IMAGES,
        "clean_accuracy": 0.8 + 0.15 * chance.random(),
        "clean_interval": [0.84, 0.86],
        "robust_accuracy": robust,
        "robust_interval": wilson_interval(robust * IMAGES, IMAGES),
        "protocol": "AutoAttack standard",
        "engine": "dkl-bench 0.1.0",
        "stopped_early": False,
        "warnings": [],
        "checkpoint_sha256": recipe.model_dump()["model"]["checkpoint"],
        "architecture": ("WideResNet-28-10", "WideResNet-34-10", "PreActResNet-18", "ResNet-50")[number % 4],
        "flags": {"data_sha256": "d" * 64, "clean": "", "robust": _packed(standing)},
    }
    finished = 1.7e9 + 3600.0 * number
    return {
        "id": f"{number:012x}",
        "kind": "evaluate",
        "name": "autoattack-cifar10-linf",
        "status": "succeeded",
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": fingerprint(recipe),
        "dataset": "cifar10",
        "norm": "Linf",
        "eps": 8 / 255,
        "clean_accuracy": result["clean_accuracy"],
        "robust_accuracy": robust,
        "result": result,
        "created_at": finished - 60,
        "started_at": finished - 50,
        "finished_at": finished,
    }


def _packed(flags: Any) -> str:
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


# --- who asks ---------------------------------------------------------------------------------------------


def serve(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log"]
    return subprocess.Popen(command, env=settings.as_environment())


def measure(url: str, db: Engine, requests: int) -> dict[str, Any]:
    with httpx2.Client(base_url=url, headers=_HTML, timeout=600) as client:
        _wait_for(client)
        first = _milliseconds(lambda: _get(client, PAGES["first"]))
        fill_one_more(db)
        changed = _milliseconds(lambda: _get(client, PAGES["first"]))
        pages = {name: timed(client, path, requests) for name, path in PAGES.items()}
        tag = {"If-None-Match": _get(client, PAGES["first"]).headers["etag"]}
        pages["again"] = timed(client, PAGES["first"], requests, tag)
        weight = weight_with_assets(client)
    return {"first_ms": first, "changed_ms": changed, "pages": pages, "page_with_assets_kb": weight}


def fill_one_more(db: Engine) -> None:
    with writing(db) as session:
        session.execute(insert(Job), [evaluation(10**6)])


def timed(
    client: httpx2.Client, path: str, requests: int, headers: dict[str, str] | None = None
) -> dict[str, float]:
    waits = [_milliseconds(lambda: _get(client, path, headers)) for _ in range(requests)]
    p95 = statistics.quantiles(waits, n=20)[-1]
    weight = _weight(client, path, headers)
    return {"p50_ms": statistics.median(waits), "p95_ms": round(p95, 1), "kb": weight}


def weight_with_assets(client: httpx2.Client) -> float:
    html = _get(client, PAGES["first"]).text
    assets = re.findall(r'(?:href|src)="(/static/[^"]+)"', html)
    return round(sum(_weight(client, path) for path in [PAGES["first"], *assets]), 1)


def _get(client: httpx2.Client, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    response = client.get(path, headers=headers)
    assert response.status_code == (304 if headers else 200), response
    return response


def _weight(client: httpx2.Client, path: str, headers: dict[str, str] | None = None) -> float:
    """Of the body as it is sent, in units of 1000 bytes."""
    with client.stream("GET", path, headers=headers) as response:
        return round(sum(map(len, response.iter_raw())) / 1000, 1)


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round(1000 * (time.perf_counter() - began), 1)


def _wait_for(client: httpx2.Client) -> None:
    for _ in range(300):
        try:
            client.get("/static/icon.svg")
            return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise SystemExit("the service did not start")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
