"""Fetching weights from a server that is slow, rude, or wrong: a whole file or none."""

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from dkl.downloads import DownloadError, NotThereError, fetched


def weights(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.full((1000,), float(seed))}, buffer)
    return buffer.getvalue()


WEIGHTS = weights()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class Answer:
    """What the server says next, and how often it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.kind = 200, WEIGHTS, "application/octet-stream"
        self.announced: int | None = len(WEIGHTS)
        self.asked = 0


@pytest.fixture
def answer() -> Answer:
    return Answer()


@pytest.fixture
def at(answer: Answer) -> Iterator[Callable[[str], str]]:
    """The address of a file on a server of our own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.asked += 1
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            if answer.announced is not None:
                self.send_header("Content-Length", str(answer.announced))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_its_sha256_kept(
    answer: Answer, at: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "cifar10" / "model.pt"
    assert fetched(path, at("model.pt")) == SHA256
    assert path.read_bytes() == WEIGHTS
    assert (tmp_path / "cifar10" / "model.pt.sha256").read_text() == f"{SHA256}  model.pt\n"
    assert fetched(path, at("model.pt")) == SHA256
    assert answer.asked == 1
    assert names(path.parent) == ["model.pt", "model.pt.sha256"]


def test_a_file_that_was_put_there_needs_no_server(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(WEIGHTS)
    assert fetched(path, "http://127.0.0.1:9/model.pt") == SHA256
    assert names(tmp_path) == ["model.pt", "model.pt.sha256"]


def test_a_file_that_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(WEIGHTS)
    fetched(path, "http://127.0.0.1:9/model.pt")
    path.write_bytes(WEIGHTS[:-1])
    with pytest.raises(DownloadError, match=f"and had {SHA256} when it first came; delete it to fetch it again"):
        fetched(path, "http://127.0.0.1:9/model.pt")


def test_a_file_that_changed_on_the_server_is_refused(
    answer: Answer, at: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    fetched(path, at("model.pt"))
    path.unlink()
    answer.body = weights(seed=1)
    answer.announced = len(answer.body)
    with pytest.raises(DownloadError, match=f"expected {SHA256}; it has changed"):
        fetched(path, at("model.pt"))
    assert names(tmp_path) == ["model.pt.sha256"]


def test_a_sha256_in_the_name_is_believed(at: Callable[[str], str], tmp_path: Path) -> None:
    assert fetched(tmp_path / "good.pt", at(f"resnet50-{SHA256[:8]}.pth")) == SHA256
    with pytest.raises(DownloadError, match="expected 0123abcd; it has changed"):
        fetched(tmp_path / "bad.pt", at("resnet50-0123abcd.pth"))
    assert names(tmp_path) == ["good.pt", "good.pt.sha256"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"kind": "text/html; charset=utf-8", "body": b"<html>Quota exceeded"},
            "sent a web page instead of a file",
        ),
        ({"body": b"<!DOCTYPE html><title>Virus scan"}, "sent a web page instead of weights"),
        ({"body": b"no weights"}, "sent no whole file instead of weights"),
        ({"body": WEIGHTS[:-100]}, "sent no whole file instead of weights"),
        ({"body": b""}, "sent no whole file instead of weights"),
        ({"body": WEIGHTS[:500], "announced": len(WEIGHTS)}, rf"sent 500 of {len(WEIGHTS)} bytes"),
        ({"status": 404, "body": b"gone"}, "answers 404 Not Found"),
        ({"status": 500, "body": b"oh"}, "answers 500 Internal Server Error"),
    ],
)
def test_anything_else_is_refused_and_leaves_nothing(
    wrong: dict[str, object], sentence: str, answer: Answer, at: Callable[[str], str], tmp_path: Path
) -> None:
    vars(answer).update(wrong)
    answer.announced = answer.announced if "announced" in wrong else len(answer.body)
    kind = NotThereError if answer.status == 404 else DownloadError
    with pytest.raises(kind, match=sentence):
        fetched(tmp_path / "model.pt", at("model.pt"))
    assert names(tmp_path) == []


def test_without_a_network_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"cannot fetch .* run it once where there is a network or put the file"
    ):
        fetched(tmp_path / "model.pt", "http://127.0.0.1:9/model.pt")
    assert names(tmp_path) == []
