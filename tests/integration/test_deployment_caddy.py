"""Caddy itself, with deploy/Caddyfile: events pass as they come, uploads while they are sent, and the headers."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from processes import BIN, Processes, free_port, wait_until

CADDYFILE = Path(__file__).parent.parent.parent / "deploy" / "Caddyfile"
PART = 2**20


class Upstream(ThreadingHTTPServer):
    """In the service's place: says what it was sent, and when."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first_part, self.go_on = threading.Event(), threading.Event()
        self.headers: dict[str, str] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: one\n\n")
        if self.path == "/events":
            self.server.go_on.wait(60)
            self.wfile.write(b"data: two\n\n")

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        self.rfile.read(PART)
        self.server.first_part.set()
        self.rfile.read(size - PART)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Caddy writes the log."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture
def site(processes: Processes, upstream: Upstream, tmp_path: Path) -> Iterator[httpx2.Client]:
    """Without TLS: a certificate would have to come from somewhere."""
    program = shutil.which("caddy", path=f"{BIN}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no Caddy here: apt-get install caddy")
    config = tmp_path / "Caddyfile"
    config.write_text("{\n\tadmin off\n}\n" + CADDYFILE.read_text())  # its port may be taken
    address = f"http://127.0.0.1:{free_port()}"
    processes.start(
        program, "run", "--adapter", "caddyfile", "--config", str(config),
        environment={
            "SITE": address,
            "UPSTREAM": f"127.0.0.1:{upstream.server_port}",
            "HOME": str(tmp_path),
            "XDG_DATA_HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        },
    )  # fmt: skip
    with httpx2.Client(base_url=address, timeout=30) as client:
        wait_until(lambda: listens(client), 30, "Caddy")
        yield client


def listens(client: httpx2.Client) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((client.base_url.host, client.base_url.port or 80)) == 0


def test_headers(site: httpx2.Client, upstream: Upstream) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher", "X-Request-ID": "mine"}
    answer = site.get("/", headers=forged)
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert upstream.headers["x-forwarded-for"] == "127.0.0.1"
    assert upstream.headers["x-forwarded-proto"] == "http"
    assert upstream.headers["host"] == f"{site.base_url.host}:{site.base_url.port}"
    assert len(upstream.headers["x-request-id"]) == 36


def test_events_pass_as_they_come(site: httpx2.Client, upstream: Upstream) -> None:
    with site.stream("GET", "/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: one"  # the upstream has not ended, and will not before it is told
        upstream.go_on.set()
        assert list(lines)[1] == "data: two"


def test_uploads_pass_while_they_are_sent(site: httpx2.Client, upstream: Upstream) -> None:
    """Of any size: a proxy that collects the body first would have to keep gigabytes."""

    def body() -> Iterator[bytes]:
        for number in range(64):
            yield bytes(PART)
            if number == 16:
                assert upstream.first_part.wait(30), "nothing has arrived although 16 MiB were sent"

    answer = site.put("/upload", content=body(), headers={"Content-Length": str(64 * PART)})
    assert answer.status_code == 204
