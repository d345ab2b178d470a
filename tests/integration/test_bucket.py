"""The bucket store against a real S3 server: the promises of the folder store, and a cache of bounded size."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer
from sqlalchemy import Engine, select, update

from service import files, jobs
from service.app import create_app
from service.artifacts import MissingFileError, StoreError, store_for
from service.collect import collect
from service.db import migrate, now, reading, writing
from service.settings import Settings
from service.space import FullError
from service.state import State
from service.store_bucket import BucketStore
from service.tables import Artifact

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def settings(settings: Settings, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    boto3.client("s3").create_bucket(Bucket=bucket)
    return settings.model_copy(update={"store": f"s3://{bucket}/some/prefix/"})


@pytest.fixture
def store(settings: Settings) -> BucketStore:
    store = store_for(settings)
    assert isinstance(store, BucketStore)
    return store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path, CONTENT)


def write(folder: Path, content: bytes) -> Path:
    (folder / "source").write_bytes(content)
    return folder / "source"


def cached(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.data_dir / "cache").rglob("*") if path.is_file())


def test_what_is_put_in_comes_out(store: BucketStore, source: Path) -> None:
    store.check()
    assert not store.has(SHA256)
    assert store.put(source) == SHA256
    assert store.put(source, expected=SHA256) == SHA256
    store.take(source, SHA256)
    stored = store.stat(SHA256)
    assert stored is not None
    assert (stored.sha256, stored.size) == (SHA256, len(CONTENT))
    assert abs(stored.modified - time.time()) < 10
    assert b"".join(store.read(SHA256)) == CONTENT
    assert b"".join(store.read(SHA256, 7, 1000)) == CONTENT[7:1000]
    assert list(store.listing()) == [stored]
    store.delete(SHA256)
    store.delete(SHA256)
    assert list(store.listing()) == []
    for ask in (store.fetch, lambda sha256: list(store.read(sha256))):
        with pytest.raises(MissingFileError, match=f"no file with sha256 {SHA256} is stored in bucket"):
            ask(SHA256)
    with pytest.raises(ValueError, match=f"has sha256 {SHA256}, expected"):
        store.put(source, expected="a" * 64)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        store.has("../" + SHA256)


def test_what_is_fetched_is_verified_and_kept(store: BucketStore, settings: Settings, source: Path) -> None:
    store.put(source)
    assert store.fetch(SHA256).read_bytes() == CONTENT
    assert cached(settings) == [SHA256]
    store.fetch(SHA256).write_bytes(b"damaged")
    assert store.fetch(SHA256).read_bytes() == CONTENT
    s3, bucket = boto3.client("s3"), settings.store.split("/")[2]
    s3.delete_object(Bucket=bucket, Key=f"some/prefix/{SHA256}")
    assert store.fetch(SHA256).read_bytes() == CONTENT  # not asked for again
    store.delete(SHA256)
    assert cached(settings) == []
    s3.put_object(Bucket=bucket, Key=f"some/prefix/{SHA256}", Body=b"something else")
    with pytest.raises(ValueError, match=f"expected {SHA256}; it was damaged"):
        store.fetch(SHA256)
    assert cached(settings) == []
    s3.put_object(Bucket=bucket, Key="some/prefix/README", Body=b"not ours")
    s3.put_object(Bucket=bucket, Key=f"other/{SHA256}", Body=b"not ours")
    assert [stored.size for stored in store.listing()] == [len(b"something else")]


def test_the_cache_forgets_what_was_not_used_for_longest(settings: Settings, tmp_path: Path) -> None:
    store = BucketStore(settings, cache_bytes=25)
    names = [store.put(write(tmp_path, b"ten bytes" + digit)) for digit in (b"0", b"1", b"2", b"3")]
    ages = {names[0]: 7200, names[1]: 10800, names[2]: 60}
    for name, age in ages.items():
        _age(store.fetch(name), age)
    assert cached(settings) == sorted(names[:1] + names[2:3])  # the third had no room beside both others
    store.fetch(names[0])
    _age(store.fetch(names[2]), 7200)
    store.fetch(names[3])
    assert cached(settings) == sorted([names[0], names[3]])
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    with pytest.raises(FullError):
        BucketStore(full).fetch(names[1])
    assert cached(settings) == sorted([names[0], names[3]])  # they are in use


def _age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_uploads_to_the_bucket_that_were_interrupted_are_aborted(store: BucketStore, settings: Settings) -> None:
    s3, bucket = boto3.client("s3"), settings.store.split("/")[2]
    begun = s3.create_multipart_upload(Bucket=bucket, Key=f"some/prefix/{SHA256}")
    s3.upload_part(
        Bucket=bucket, Key=f"some/prefix/{SHA256}", UploadId=begun["UploadId"], PartNumber=1, Body=bytes(2**20)
    )
    s3.create_multipart_upload(Bucket=bucket, Key="others/file")
    later = time.time() + 10**9  # the test server says that all of them began in a fixed year
    assert list(store.tidy(0, dry_run=False)) == []
    for dry_run in (True, False):
        assert list(store.tidy(later, dry_run=dry_run)) == [(f"some/prefix/{SHA256}", 2**20)]
    assert list(store.tidy(later, dry_run=False)) == []


def test_a_bucket_that_is_away_is_said_in_a_sentence(
    settings: Settings, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = BucketStore(settings.model_copy(update={"store": "s3://no-such-bucket"}))
    for ask in (nowhere.check, lambda: nowhere.put(source), lambda: list(nowhere.listing())):
        with pytest.raises(StoreError, match="bucket no-such-bucket did not do its part: "):
            ask()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="Could not connect"):
        BucketStore(settings).has(SHA256)


def test_a_download_that_breaks_goes_on_where_it_was(store: BucketStore, source: Path) -> None:
    store.put(source)

    class Breaking(BucketStore):
        breaks = 3

        def _get(self, sha256: str, start: int, stop: int | None) -> Any:
            body = super()._get(sha256, start, stop)
            return _Broken(body) if self._try() else body

        def _try(self) -> bool:
            self.breaks -= 1
            return self.breaks >= 0

    breaking = Breaking(store._settings)
    assert b"".join(breaking.read(SHA256)) == CONTENT
    breaking.breaks = 10**6
    with pytest.raises(StoreError, match="did not do its part"):
        list(_without_progress(breaking))


def _without_progress(store: BucketStore) -> Iterator[bytes]:
    _Broken.first = 0
    try:
        yield from store.read(SHA256)
    finally:
        _Broken.first = 1000


class _Broken:
    """A body whose connection breaks after some bytes."""

    first = 1000

    def __init__(self, body: Any) -> None:
        self._left, self._body = self.first, body

    def read(self, size: int) -> bytes:
        if not self._left:
            self._body.close()
            raise ReadTimeoutError(endpoint_url="http://127.0.0.1")
        self._left, piece = 0, self._body.read(self._left)
        return bytes(piece)


# --- the service ------------------------------------------------------------------------------------------


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    state: State = app.state.dkl
    migrate(state.db)
    with TestClient(app) as client:
        yield client


def upload(client: TestClient, content: bytes) -> dict[str, Any]:
    about = {"name": "model", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    begun = client.post("/api/v1/uploads", json=about).json()
    if begun["finished"]:
        return begun
    return client.patch(f"/api/v1/uploads/{begun['id']}", content=content, headers={"Upload-Offset": "0"}).json()


def test_an_upload_comes_into_the_bucket_and_a_download_out_of_it(
    client: TestClient, settings: Settings, store: BucketStore
) -> None:
    assert upload(client, CONTENT)["finished"]
    assert b"".join(store.read(SHA256)) == CONTENT
    assert list(settings.uploads_dir.iterdir()) == []
    model = {"kind": "cnn", "width": 8}
    recipe = {"kind": "import", "upload": SHA256, "dataset": "digits", "model": model}
    job = client.post("/api/v1/jobs", json={"recipe": recipe})
    assert job.status_code == 201
    state: State = client.app.state.dkl  # type: ignore[attr-defined]
    with writing(state.db) as session:
        row = session.get_one(jobs.Job, job.json()["id"])
        row.status, row.result = "succeeded", {"checkpoint_sha256": SHA256}
    url = f"/api/v1/jobs/{job.json()['id']}/checkpoint"
    assert client.get(url).content == CONTENT
    part = client.get(url, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, CONTENT[1000:2000])
    assert cached(settings) == []  # downloads are passed on


def test_garbage_in_the_bucket_is_collected_and_what_comes_meanwhile_is_there(
    client: TestClient, settings: Settings, store: BucketStore, source: Path
) -> None:
    db: Engine = client.app.state.dkl.db  # type: ignore[attr-defined]
    eager = settings.model_copy(
        update={"keep_garbage_seconds": 1e-3}
    )  # what the bucket has is a second old, or two
    files.keep(db, store, source, key_id=None)
    with writing(db) as session:
        session.execute(update(Artifact).values(created_at=now() - 100))
    time.sleep(1.1)
    assert [(found.name, found.size) for found in collect(db, store, eager, dry_run=True)] == [
        (SHA256, len(CONTENT))
    ]

    class Overtaken(BucketStore):
        def delete(self, sha256: str) -> None:
            writer.start()
            time.sleep(0.2)
            super().delete(sha256)

    writer = threading.Thread(target=files.keep, args=(db, store, source), kwargs={"key_id": None})
    assert [found.name for found in collect(db, Overtaken(settings), eager)] == [SHA256]
    writer.join()
    assert b"".join(store.read(SHA256)) == CONTENT
    with reading(db) as session:
        assert session.scalars(select(Artifact.sha256)).all() == [SHA256]
