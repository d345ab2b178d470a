"""Uploads through the REST interface: in parts, resumed, verified, limited, and nobody else's."""

import asyncio
import errno
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import select

from service import client_files, files, jobs, keys, uploads
from service.app import create_app
from service.callers import COMMAND_LINE
from service.client import Client, ServiceError
from service.db import migrate, now, reading, writing
from service.keys import KeyRequest
from service.settings import Settings
from service.state import State
from service.tables import Artifact, AuditEvent, Upload

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
IMPORT = {
    "recipe": {"kind": "import", "upload": SHA256, "dataset": "digits", "model": {"kind": "cnn", "width": 8}}
}
Headers = dict[str, str]


class Service:
    """The application in this process, and keys to it."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.settings = settings
        app = create_app(settings)
        self.state: State = app.state.dkl
        migrate(self.state.db)
        self.http = stack.enter_context(TestClient(app))

    def key(self, name: str, scope: str = "submit", **limits: int) -> Headers:
        wanted = KeyRequest(name=name, scope=scope, **limits)  # type: ignore[arg-type]
        _, text = keys.create(self.state.db, self.settings, wanted, caller=COMMAND_LINE)
        return {"Authorization": f"Bearer {text}"}

    def begin(self, content: bytes = CONTENT, headers: Headers | None = None, **changes: Any) -> Any:
        about = {"name": "a model", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
        return self.http.post("/api/v1/uploads", json=about, headers=headers)

    def send(self, upload: dict[str, Any], part: bytes, offset: int, headers: Headers | None = None) -> Any:
        own = {"Upload-Offset": str(offset)} | (headers or {})
        return self.http.patch(f"/api/v1/uploads/{upload['id']}", content=part, headers=own)

    def upload(self, content: bytes = CONTENT, headers: Headers | None = None) -> dict[str, Any]:
        begun = self.begin(content, headers).json()
        finished = begun if begun["finished"] else self.send(begun, content, 0, headers).json()
        assert finished["finished"], finished
        return finished


Serve = Callable[..., Service]


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda **changes: Service(settings.model_copy(update=changes), stack)


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


# --- the way of a file ------------------------------------------------------------------------------------


def test_a_file_in_three_parts(service: Service) -> None:
    begun = service.begin()
    assert begun.status_code == 201
    upload = begun.json()
    assert (upload["received"], upload["finished"], upload["finished_at"]) == (0, False, None)
    for start, stop in ((0, 1), (1, 2_000_000)):
        sent = service.send(upload, CONTENT[start:stop], start)
        assert (sent.status_code, sent.json()["received"], sent.json()["finished"]) == (200, stop, False)
        assert service.http.get(f"/api/v1/uploads/{upload['id']}").json() == sent.json()
    finished = service.send(upload, CONTENT[2_000_000:], 2_000_000).json()
    assert (finished["received"], finished["finished"]) == (len(CONTENT), True)
    assert service.state.artifacts.fetch(SHA256).read_bytes() == CONTENT
    assert list(service.settings.uploads_dir.iterdir()) == []
    with reading(service.state.db) as session:
        artifact = session.get_one(Artifact, SHA256)
        actions = session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert (artifact.size, artifact.key_id) == (len(CONTENT), None)
    assert actions == ["upload.begin", "upload.finish"]
    as_it_is = {"name": "autoattack-digits-linf", "overrides": {"model.checkpoint": SHA256}}
    refused = service.http.post("/api/v1/jobs", json=as_it_is)
    assert (refused.status_code, "nobody has looked into it yet" in refused.json()["detail"]) == (422, True)
    assert service.http.post("/api/v1/jobs", json=IMPORT).status_code == 201


def test_a_part_at_the_wrong_place_is_told_the_right_one(service: Service) -> None:
    upload = service.begin().json()
    service.send(upload, CONTENT[:1000], 0)
    for offset in (0, 999, 1001, len(CONTENT)):
        refused = service.send(upload, CONTENT[offset:], offset)
        assert (refused.status_code, refused.headers["Upload-Offset"]) == (409, "1000")
        assert (
            f"begins at byte {offset}, and 1000 have arrived; go on with Upload-Offset: 1000"
            in refused.json()["detail"]
        )
    missing = service.http.patch(f"/api/v1/uploads/{upload['id']}", content=b"x")
    assert missing.status_code == 422
    assert service.send(upload, CONTENT[1000:], 1000).json()["finished"]
    over = service.send(upload, b"", len(CONTENT))
    assert (over.status_code, over.headers["Upload-Offset"]) == (409, str(len(CONTENT)))
    assert "is finished; there is nothing left to send" in over.json()["detail"]


def test_a_part_that_is_too_long_is_not_kept(service: Service) -> None:
    upload = service.begin().json()
    service.send(upload, CONTENT[:1000], 0)
    refused = service.send(upload, CONTENT[1000:] + b"more", 1000)
    assert refused.status_code == 413
    assert f"was announced with {len(CONTENT)} bytes, and this part goes on after them" in refused.json()["detail"]
    assert service.http.get(f"/api/v1/uploads/{upload['id']}").json()["received"] == 1000


def test_what_is_not_what_was_announced_is_discarded(service: Service) -> None:
    upload = service.begin().json()
    damaged = CONTENT[:-1] + b"!"
    refused = service.send(upload, damaged, 0)
    assert refused.status_code == 422
    found = hashlib.sha256(damaged).hexdigest()
    assert refused.json()["detail"].startswith(
        f"'a model' arrived with sha256 {found}, and {SHA256} was announced"
    )
    assert service.http.get(f"/api/v1/uploads/{upload['id']}").status_code == 404
    assert list(service.settings.uploads_dir.iterdir()) == []
    assert list(service.state.artifacts.listing()) == []


def test_bytes_damaged_on_the_disk_between_parts_are_noticed(service: Service) -> None:
    upload = service.begin().json()
    service.send(upload, CONTENT[:1000], 0)
    path = service.settings.uploads_dir / upload["id"]
    path.write_bytes(b"!" + path.read_bytes()[1:])
    assert service.send(upload, CONTENT[1000:], 1000).status_code == 422


def test_an_upload_is_gone_on_with_after_everything_was_forgotten(serve: Serve) -> None:
    first = serve()
    upload = first.begin().json()
    first.send(upload, CONTENT[:1000], 0)
    second = serve()  # another process, as it were
    again = second.begin().json()
    assert (again["id"], again["received"]) == (upload["id"], 1000)
    assert second.send(again, CONTENT[1000:], 1000).json()["finished"]
    third = second.begin().json()
    assert (third["id"], third["finished"]) == (upload["id"], True)


def test_an_upload_that_has_arrived_but_was_not_stored_is_finished_by_an_empty_part(service: Service) -> None:
    upload = service.begin().json()
    service.send(upload, CONTENT[:1000], 0)
    with (service.settings.uploads_dir / upload["id"]).open("ab") as file:
        file.write(CONTENT[1000:])  # the service was killed while it verified the file
    assert service.http.get(f"/api/v1/uploads/{upload['id']}").json()["finished"] is False
    assert service.send(upload, b"", len(CONTENT)).json()["finished"]


def test_deleting(service: Service) -> None:
    unfinished = service.begin().json()
    service.send(unfinished, CONTENT[:10], 0)
    url = f"/api/v1/uploads/{unfinished['id']}"
    with uploads.locked(service.settings.uploads_dir / unfinished["id"]):
        busy = service.http.delete(url)
        assert busy.status_code == 409
        assert "another request writes to upload" in busy.json()["detail"]
        assert service.send(unfinished, CONTENT[10:], 10).status_code == 409
    assert service.http.delete(url).status_code == 204
    assert service.http.delete(url).status_code == 404
    assert list(service.settings.uploads_dir.iterdir()) == []
    finished = service.upload()
    _settle(service)
    assert service.http.delete(f"/api/v1/uploads/{finished['id']}").status_code == 204
    assert not service.state.artifacts.has(SHA256)


def _settle(service: Service) -> None:
    """As if what is stored had come a while ago."""
    with writing(service.state.db) as session:
        for artifact in session.scalars(select(Artifact)):
            artifact.created_at = session.scalar(select(now())) - 1000
    for stored in service.state.artifacts.listing():
        os.utime(service.state.artifacts.fetch(stored.sha256), (time.time() - 1000,) * 2)


# --- limits -----------------------------------------------------------------------------------------------


def test_limits_are_said_in_sentences(serve: Serve) -> None:
    service = serve(max_upload_bytes=10_000)
    refused = service.begin(size=10_001)
    assert refused.status_code == 413
    assert refused.json()["detail"] == "'a model' has 9.8 KiB; at most 9.8 KiB are taken in here"
    assert service.begin(size=10_000).status_code == 201
    full = serve(min_free_bytes=2**60).begin()
    assert full.status_code == 507
    assert "free some with dklbench gc or delete files of jobs" in full.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 0}, "size"),
        ({"size": -1}, "size"),
        ({"sha256": "../../etc/passwd"}, "sha256"),
        ({"sha256": SHA256.upper()}, "sha256"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_bad_announcements(service: Service, changes: dict[str, Any], sentence: str) -> None:
    refused = service.begin(**changes)
    assert refused.status_code == 422
    assert sentence in refused.json()["detail"]


@pytest.mark.parametrize("name", ["0" * 32, "x", "..%2F..%2Fledger.sqlite", "0" * 31 + "%0A", "%00"])
def test_unknown_uploads(service: Service, name: str) -> None:
    for ask in (service.http.get, service.http.delete):
        assert ask(f"/api/v1/uploads/{name}").status_code == 404
    patch = service.http.patch(f"/api/v1/uploads/{name}", content=b"x", headers={"Upload-Offset": "0"})
    assert patch.status_code == 404
    assert not service.settings.uploads_dir.exists()


def test_room_that_was_promised_is_not_promised_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2**30 + 10_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    first = service.begin(b"x" * 6000).json()
    refused = service.begin(b"y" * 6000)
    assert refused.status_code == 507
    service.send(first, b"x" * 4000, 0)
    free -= 4000
    assert service.begin(b"y" * 6000).status_code == 507
    assert service.begin(b"z" * 3000).status_code == 201
    free -= 6000
    late = service.send(first, b"x" * 2000, 4000)  # something else has filled the disk
    assert late.status_code == 507
    free += 6000
    assert service.send(first, b"x" * 2000, 4000).json()["finished"]


def test_a_full_disk_keeps_what_has_arrived(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = service.begin().json()
    write = os.write

    def full(file: int, data: Any) -> int:
        if os.fstat(file).st_size + len(data) > 3_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with TestClient(service.http.app, raise_server_exceptions=False) as http:
            pieces = iter([CONTENT[start : start + 2**20] for start in range(0, len(CONTENT), 2**20)])
            refused = http.patch(f"/api/v1/uploads/{upload['id']}", content=pieces, headers={"Upload-Offset": "0"})
    assert refused.status_code == 507
    assert "is full; go on when there is room" in refused.json()["detail"]
    arrived = service.http.get(f"/api/v1/uploads/{upload['id']}").json()["received"]
    assert service.send(upload, CONTENT[arrived:], arrived).json()["finished"]


def test_a_key_stores_what_it_may_and_sees_what_it_is(service: Service) -> None:
    anna, bert = service.key("anna", max_storage=len(CONTENT) + 100), service.key("bert")
    finished = service.upload(headers=anna)
    refused = service.begin(b"x" * 101, anna)
    assert refused.status_code == 413
    assert refused.json()["detail"].startswith(
        "this key stores 4.9 MiB of the 4.9 MiB that it may, and 101 bytes more"
    )
    assert service.begin(b"x" * 60, anna).status_code == 201
    assert service.begin(b"y" * 60, anna).status_code == 413  # what is announced counts
    service.upload(b"other", headers=bert)

    storage = service.http.get("/api/v1/storage", headers=anna).json()
    assert (storage["used"], storage["limit"]) == (len(CONTENT) + 60, len(CONTENT) + 100)
    assert storage["free_disk"] > 0
    assert storage["files"] == [{"sha256": SHA256, "size": len(CONTENT), "jobs": []}]
    assert storage["used"] == sum(file["size"] for file in storage["files"]) + sum(
        upload["size"] for upload in storage["uploads"] if not upload["finished"]
    )
    assert storage["keys"] == []
    admin = service.http.get("/api/v1/storage", headers=service.key("root", "admin")).json()
    assert {key["name"]: key["used"] for key in admin["keys"]} == {"anna": storage["used"], "bert": 5, "root": 0}
    assert service.http.get("/api/v1/storage", headers=service.key("carl", "read")).json()["used"] == 0

    _settle(service)
    assert service.http.delete(f"/api/v1/uploads/{finished['id']}", headers=anna).status_code == 204
    assert service.begin(b"y" * 60, anna).status_code == 201


# --- other people -----------------------------------------------------------------------------------------


def test_an_upload_is_its_owners_alone(service: Service) -> None:
    anna, bert = service.key("anna"), service.key("bert")
    upload = service.begin(headers=anna).json()
    url = f"/api/v1/uploads/{upload['id']}"
    assert service.http.get(url, headers=bert).status_code == 404
    assert service.send(upload, CONTENT, 0, bert).status_code == 404
    assert service.http.delete(url, headers=bert).status_code == 404
    assert service.http.get(url).status_code == 404
    assert service.begin(headers=bert).json()["id"] != upload["id"]
    assert service.http.get(url, headers=service.key("root", "admin")).status_code == 200
    reader = service.key("reader", "read")
    assert service.begin(headers=reader).status_code == 403


def test_a_sha256_alone_opens_nothing(service: Service) -> None:
    """Content of others has to be brought, byte for byte, until a job of theirs has shown it to everybody."""
    anna, bert = service.key("anna"), service.key("bert")
    service.upload(headers=anna)
    assert service.begin(headers=anna).json()["finished"]  # no byte was sent
    begun = service.begin(headers=bert).json()
    assert (begun["finished"], begun["received"]) == (False, 0)
    assert service.send(begun, CONTENT, 0, bert).json()["finished"]
    with reading(service.state.db) as session:
        assert session.get_one(Artifact, SHA256).key_id is not None
        owners = [upload.key_id for upload in session.scalars(select(Upload).order_by(Upload.created_at))]
        assert session.get_one(Artifact, SHA256).key_id == owners[0]
        assert files.storage_of(session, owners[1]) == 0  # the first one has it on the account
    wrong = service.begin(headers=anna, size=5)
    assert wrong.status_code == 422
    assert f"has {len(CONTENT)} bytes, and 5 were announced" in wrong.json()["detail"]


def test_freeing_a_jobs_files(service: Service) -> None:
    anna, bert = service.key("anna"), service.key("bert")
    service.upload(headers=anna)
    job = service.http.post("/api/v1/jobs", json=IMPORT, headers=anna).json()
    url = f"/api/v1/jobs/{job['id']}"
    busy = service.http.delete(f"{url}/files", headers=anna)
    assert busy.status_code == 409
    assert "is queued and needs its files; cancel it" in busy.json()["detail"]
    with writing(service.state.db) as session:
        row = session.get_one(jobs.Job, job["id"])
        row.status, row.result = "succeeded", {"checkpoint_sha256": SHA256}
    assert service.http.delete(f"{url}/files", headers=bert).status_code == 403
    assert service.http.delete("/api/v1/jobs/000000000000/files", headers=anna).status_code == 404
    with writing(service.state.db) as session:
        session.delete(session.scalars(select(Upload)).one())
    _settle(service)
    freed = service.http.delete(f"{url}/files", headers=anna).json()
    assert freed == {"freed": len(CONTENT), "later": 0, "needed_by": {}}
    gone = service.http.get(f"{url}/checkpoint", headers=anna)
    assert gone.status_code == 404
    assert "is no longer stored here" in gone.json()["detail"]
    assert service.http.get(url, headers=anna).json()["result"] == {"checkpoint_sha256": SHA256}


def test_ranges_of_a_download(service: Service) -> None:
    size = len(CONTENT)
    service.upload()
    job = service.http.post("/api/v1/jobs", json={"name": "natural-digits"}).json()
    with writing(service.state.db) as session:
        row = session.get_one(jobs.Job, job["id"])
        row.status, row.result = "succeeded", {"checkpoint_sha256": SHA256}
    url = f"/api/v1/jobs/{job['id']}/checkpoint"
    for asked, start, stop in (
        ("bytes=5-9", 5, 10),
        ("bytes=-7", size - 7, size),
        ("bytes=1000000-", 1_000_000, size),
        (f"bytes={size - 1}-{10**9}", size - 1, size),
    ):
        part = service.http.get(url, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, CONTENT[start:stop]), asked
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["Content-Length"] == str(stop - start)
        other = service.http.get(url, headers={"Range": asked, "If-Range": '"another"'})
        assert (other.status_code, other.content) == (200, CONTENT), asked
    for asked in (f"bytes={size}-", "bytes=-0", "bytes=" + "9" * 5000 + "-"):
        nothing = service.http.get(url, headers={"Range": asked})
        assert (nothing.status_code, nothing.content) == (416, b""), asked
        assert nothing.headers["Content-Range"] == f"bytes */{size}"
    for asked in ("bytes=0-", "bytes=9-5", "bytes=0-1,4-5", "bytes=-", "bytes", "lines=1-2"):
        whole = service.http.get(url, headers={"Range": asked})
        assert (whole.status_code, whole.content) == (200, CONTENT), asked


# --- a real server ----------------------------------------------------------------------------------------


@contextmanager
def served(settings: Settings, port: int = 0) -> Iterator[tuple[str, Service]]:
    with ExitStack() as stack:
        service = Service(settings, stack)
        server = uvicorn.Server(uvicorn.Config(service.http.app, log_level="warning", lifespan="off"))
        listener = socket.create_server(("127.0.0.1", port))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_files, "PART_BYTES", 2**20)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    return tmp_path / "model.safetensors"


@pytest.mark.usefixtures("quick")
def test_the_client_uploads_and_says_how_far_it_is(settings: Settings, model: Path) -> None:
    with served(settings) as (url, service), Client(url) as client:
        heard: list[tuple[int, int]] = []
        finished = client.send(model, lambda *progress: heard.append(progress))
        assert finished == SHA256
        assert [there for there, _ in heard] == [*range(0, len(CONTENT), 2**20), len(CONTENT)]
        assert {size for _, size in heard} == {len(CONTENT)}
        assert service.state.artifacts.fetch(SHA256).read_bytes() == CONTENT
        heard.clear()
        client.send(model, lambda *progress: heard.append(progress))
        assert heard == [(len(CONTENT), len(CONTENT))]
        model.write_bytes(b"")
        with pytest.raises(ServiceError, match="size"):
            client.send(model)


@pytest.mark.usefixtures("quick")
def test_the_client_survives_a_service_that_restarts(settings: Settings, model: Path) -> None:
    port = _free_port()
    done: list[Any] = []
    halfway = threading.Event()

    def heard(there: int, size: int) -> None:
        if there > size / 2:
            halfway.set()
            time.sleep(0.3)

    def upload() -> None:
        with Client(f"http://127.0.0.1:{port}") as client:
            done.append(client.send(model, heard))

    sender = threading.Thread(target=upload)
    with served(settings, port):
        sender.start()
        halfway.wait(20)
    time.sleep(0.2)
    with served(settings, port) as (_, service):
        sender.join(30)
        assert done == [SHA256]
        assert service.state.artifacts.fetch(SHA256).read_bytes() == CONTENT


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_part_that_breaks_off_is_kept_as_far_as_it_came(settings: Settings) -> None:
    with served(settings) as (url, service):
        upload = service.begin().json()
        host, port = httpx2.URL(url).host, httpx2.URL(url).port
        with socket.create_connection((host, port)) as connection:
            head = f"PATCH /api/v1/uploads/{upload['id']} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpload-Offset: 0\r\n"
            connection.sendall(f"{head}Content-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:1_500_000])
            time.sleep(0.3)
            second = service.send(upload, CONTENT, 0)  # meanwhile
            assert second.status_code == 409
            assert "another request writes to upload" in second.json()["detail"]
        path = f"/api/v1/uploads/{upload['id']}"
        deadline = time.monotonic() + 5
        while service.http.get(path).json()["received"] < 1_500_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.http.get(path).json()["received"] == 1_500_000
        sent = service.send(upload, CONTENT[1_500_000:], 1_500_000)
        while sent.status_code == 409 and time.monotonic() < deadline:  # the first one lets go of it
            sent = service.send(upload, CONTENT[1_500_000:], 1_500_000)
        assert sent.json()["finished"]
