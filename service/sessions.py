"""Who signed in with a browser: a signed cookie that names the key. The key itself stays out of the browser."""

import hashlib

from fastapi import Request, Response
from itsdangerous import BadSignature, TimestampSigner

from service.secret import secret_for
from service.settings import Settings

COOKIE = "dklbench_session"
_SECONDS = 30 * 86400


def begin(request: Request, response: Response, settings: Settings, key_id: str) -> None:
    """Sign the browser in, for a month or until the key is revoked."""
    response.set_cookie(
        COOKIE,
        _signer(settings).sign(key_id).decode(),
        max_age=_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or settings.url.startswith("https:"),
    )


def end(response: Response) -> None:
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def key_id_of(request: Request, settings: Settings) -> str | None:
    """The id of the key that the browser signed in with; None where it did not, or too long ago."""
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        return None
    try:
        return _signer(settings).unsign(cookie, max_age=_SECONDS).decode()
    except BadSignature:  # an old one, of another service on this host, or forged: nobody is signed in
        return None


def _signer(settings: Settings) -> TimestampSigner:
    return TimestampSigner(
        secret_for(settings, "sessions"), salt=COOKIE, key_derivation="hmac", digest_method=hashlib.sha256
    )
