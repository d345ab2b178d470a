"""The service's secret: from the settings, or made once and kept in the data directory. One subkey per purpose."""

import hashlib
import hmac
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Literal

from service.settings import Settings

Purpose = Literal["api keys", "sessions", "webhooks"]
_LEAST = 32
"""Characters of a secret; 32 hex digits hold 128 bits."""


@cache
def secret_for(settings: Settings, purpose: Purpose) -> bytes:
    """32 bytes that differ for every purpose, so that what one use gives away is worth nothing to another."""
    root = settings.secret_key.get_secret_value().encode() or _kept(settings.data_dir / "secret")
    if len(root) < _LEAST:
        raise ValueError(
            f"the secret has {len(root)} characters, expected at least {_LEAST}; set DKLBENCH_SECRET_KEY to what "
            f"`openssl rand -hex 32` prints (without it, {settings.data_dir / 'secret'} is used)"
        )
    return hmac.digest(root, f"dkl-bench {purpose}".encode(), hashlib.sha256)


def _kept(path: Path) -> bytes:
    """What the file holds; of several processes that find none, one makes it and the others read that one's."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".secret.{secrets.token_hex(8)}.tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_hex(32).encode())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # unlike a rename it never replaces, and nobody ever sees half a file
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_bytes()
