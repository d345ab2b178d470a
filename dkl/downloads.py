"""Fetching files of weights: whole and as they were the first time, or not at all.

Beside FILE lies FILE.sha256, written when the file first came; whatever lies there later must agree with it.
"""

import hashlib
import http.client
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from dkl.files import replacing

_CHUNK = 1 << 20
_SILENCE_SECONDS = 30
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
"""torch.hub's way to name a file after the beginning of its sha256: resnet50-0676ba61.pth."""


class DownloadError(ValueError):
    """The file could not be had, or is not what it was; nothing was left behind."""


class NotThereError(DownloadError):
    """The server answers that it has no such file."""


def fetched(path: Path, url: str) -> str:
    """The sha256 (hex) of the file at `path`, which is fetched from `url` if it is not there.

    A file that was put there by hand is taken as it is, and its sha256 is recorded. Raises DownloadError.
    """
    record = path.with_name(path.name + ".sha256")
    expected = record.read_text().split()[0] if record.exists() else None
    if path.exists():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if expected not in {None, found}:
            raise DownloadError(
                f"{path} has sha256 {found}, and had {expected} when it first came; delete it to fetch it again"
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _fetch(path, url, expected)
    if expected is None:
        with replacing(record) as file:
            file.write(f"{found}  {path.name}\n".encode())
    return found


def _fetch(path: Path, url: str, expected: str | None) -> str:
    named = _HASH_IN_NAME.search(urlsplit(url).path.rpartition("/")[2])
    expected = expected or (named[1] if named else "")
    digest = hashlib.sha256()
    with replacing(path) as file:
        for chunk in _body(url, path):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        _require_weights(Path(file.name), url)
        if not digest.hexdigest().startswith(expected):
            raise DownloadError(
                f"{url} sent a file with sha256 {digest.hexdigest()}, expected {expected}; it has "
                f"changed; ask its publisher, then delete {path.name}.sha256 if the new one is meant"
            )
    return digest.hexdigest()


def _body(url: str, path: Path) -> Iterator[bytes]:
    """The answer's bytes, all of them, unless it is a web page."""
    host = urlsplit(url).hostname
    by_hand = f"or put the file there yourself: {path}"
    try:
        with urlopen(Request(url, headers={"User-Agent": "dkl-bench"}), timeout=_SILENCE_SECONDS) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise DownloadError(
                    f"{url} sent a web page instead of a file (a quota, or a question); try again later {by_hand}"
                )
            announced, received = answer.headers["Content-Length"], 0
            while chunk := answer.read(_CHUNK):
                received += len(chunk)
                yield chunk
            if announced is not None and received != int(announced):
                raise DownloadError(f"{host} sent {received} of {announced} bytes of {url}; try again {by_hand}")
    except HTTPError as error:
        kind = NotThereError if error.code == 404 else DownloadError
        raise kind(f"{url} answers {error.code} {error.reason}; try again later {by_hand}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"cannot fetch {url} ({reason}); run it once where there is a network {by_hand}"
        ) from error


def _require_weights(path: Path, url: str) -> None:
    """DownloadError unless this begins, and for a zip archive ends, as files of weights do."""
    with path.open("rb") as file:
        start = file.read(512)
    is_zip, is_pickle = start.startswith(b"PK\x03\x04"), start.startswith(b"\x80\x02")
    is_safetensors = start[8:9] == b"{" and len(start) > 9
    if not (is_zip or is_pickle or is_safetensors) or (is_zip and not zipfile.is_zipfile(path)):
        kind = "a web page" if start.lstrip().lower().startswith((b"<!doctype", b"<html")) else "no whole file"
        raise DownloadError(
            f"{url} sent {kind} instead of weights ({path.stat().st_size} bytes); try again later, or put "
            "the file there yourself"
        )
