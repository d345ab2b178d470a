"""A store that is a bucket: Amazon S3, or anything that speaks its protocol.

Address and credentials are boto3's own business: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... or the machine's role.
What a worker reads is downloaded once, verified, and kept in a folder of bounded size.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.artifacts import (
    BLOCK,
    MissingFileError,
    Stored,
    StoreError,
    blocks,
    checked,
    is_sha256,
    require_digest,
    sha256_of,
)
from service.settings import Settings
from service.space import enough_space, require_space
from service.store_folder import FolderStore

try:
    import boto3
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
except ImportError as error:
    raise ValueError("a bucket as the store needs boto3; install it with: pip install 'dkl-bench[s3]'") from error

_ADDRESS = re.compile(r"s3://(?P<bucket>[^/]+)/?(?P<prefix>.*?)/?")
_CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 4})
_PARTS = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=64 * 2**20, max_concurrency=4)
_CACHE_BYTES = 64 * 2**30
_IN_USE_SECONDS = 3600
"""What was fetched since is not removed to make room: somebody may be about to open it."""
_TRIES = 4


class BucketStore:
    """Objects prefix/sha256. An object appears when all of it has arrived, so writing is atomic by nature."""

    def __init__(self, settings: Settings, *, cache_bytes: int = _CACHE_BYTES) -> None:
        address = _ADDRESS.fullmatch(settings.store)
        if address is None:
            raise ValueError(f"store must be s3://bucket/prefix, or empty for a folder; found {settings.store!r}")
        self._bucket = address["bucket"]
        self._prefix = f"{address['prefix']}/" if address["prefix"] else ""
        self._settings = settings
        self._cache = FolderStore(settings.data_dir / "cache")
        self._cache_bytes = cache_bytes
        self._s3: Any = boto3.client("s3", config=_CONFIG)

    def stat(self, sha256: str) -> Stored | None:
        with self._asking():
            try:
                found = self._s3.head_object(**self._object(sha256))
            except ClientError as error:
                if _is_absence(error):
                    return None
                raise
        return Stored(sha256, found["ContentLength"], found["LastModified"].timestamp())

    def has(self, sha256: str) -> bool:
        return self.stat(sha256) is not None

    def put(self, source: Path, *, expected: str | None = None) -> str:
        sha256 = require_digest(sha256_of(blocks(source)), expected)
        self.take(source, sha256)
        return sha256

    def take(self, source: Path, sha256: str) -> None:
        if not self.has(sha256):
            with self._asking():
                self._s3.upload_file(str(source), self._bucket, self._key(sha256), Config=_PARTS)

    def fetch(self, sha256: str) -> Path:
        path = self._cache.path(sha256)
        if not self._cache.has(sha256) or sha256_of(self._cache.read(sha256)) != sha256:
            stored = self.stat(sha256)
            if stored is None:
                raise self._missing(sha256)
            self._make_room(stored.size)
            self._cache.write(self.read(sha256), expected=sha256)
        os.utime(path)  # it was used just now
        return path

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        tries = 0
        while stop is None or start < stop:
            try:
                body = self._get(sha256, start, stop)
                while block := body.read(BLOCK):
                    start += len(block)
                    tries = 0
                    yield block
                return
            except (HTTPClientError, IncompleteReadError) as error:  # the stream broke: go on where it did
                tries += 1
                if tries == _TRIES:
                    raise self._trouble(error) from error

    def delete(self, sha256: str) -> None:
        with self._asking():
            self._s3.delete_object(**self._object(sha256))
        self._cache.delete(sha256)

    def listing(self) -> Iterator[Stored]:
        with self._asking():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"].removeprefix(self._prefix)
                    if is_sha256(name):
                        yield Stored(name, found["Size"], found["LastModified"].timestamp())

    def tidy(self, before: float, *, dry_run: bool) -> Iterator[tuple[str, int]]:
        yield from self._cache.tidy(before, dry_run=dry_run)
        with self._asking():
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for page in pages:
                for begun in page.get("Uploads", ()):
                    if begun["Initiated"].timestamp() < before:
                        object_ = {"Bucket": self._bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
                        parts = self._s3.get_paginator("list_parts").paginate(**object_)
                        size = sum(part["Size"] for page in parts for part in page.get("Parts", ()))
                        if not dry_run:
                            self._s3.abort_multipart_upload(**object_)
                        yield begun["Key"], size

    def check(self) -> None:
        with self._asking():
            self._s3.head_bucket(Bucket=self._bucket)

    def _key(self, sha256: str) -> str:
        return self._prefix + checked(sha256)

    def _object(self, sha256: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(sha256)}

    def _get(self, sha256: str, start: int, stop: int | None) -> Any:
        wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
        with self._asking():
            try:
                return self._s3.get_object(**self._object(sha256), Range=wanted)["Body"]
            except ClientError as error:
                if _is_absence(error):
                    raise self._missing(sha256) from None
                raise

    def _make_room(self, nbytes: int) -> None:
        """Remove what was not used for longest from the cache, until `nbytes` more fit."""
        cached = list(self._cache.listing())
        total = sum(entry.size for entry in cached)
        for entry in sorted(cached, key=lambda entry: entry.modified):
            full = total + nbytes > self._cache_bytes or not enough_space(self._settings, nbytes)
            if not full or entry.modified > time.time() - _IN_USE_SECONDS:
                break
            self._cache.delete(entry.sha256)
            total -= entry.size
        require_space(self._settings, nbytes)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise self._trouble(error) from error

    def _missing(self, sha256: str) -> MissingFileError:
        return MissingFileError(f"no file with sha256 {sha256} is stored in bucket {self._bucket}")

    def _trouble(self, error: Exception) -> StoreError:
        return StoreError(f"bucket {self._bucket} did not do its part: {error}")


def _is_absence(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in {"404", "NoSuchKey", "NotFound"}
