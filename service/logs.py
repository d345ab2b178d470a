"""What our processes log: one line per event, as JSON or for people, with the ids of its request and its job.

Modules say `logging.getLogger(__name__)` as everywhere; `configure` makes every logger of the process, uvicorn's
and Celery's too, write the same lines to stderr. What holds for a while is bound around it, and is on every line:

    with structlog.contextvars.bound_contextvars(job_id=claim.job_id): ...

No secret gets into a line, and nobody can forge one by what they send.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any

from sqlalchemy import make_url
from structlog.contextvars import merge_contextvars
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict, Processor

from service.settings import Settings

FIELDS = ("method", "route", "status", "ms", "key", "address")
"""What a line may say beside its sentence, given as `extra` of the logging call."""
REDACTED = "[redacted]"
_QUIET = ("alembic", "boto3", "botocore", "httpcore2", "httpx2", "kombu", "s3transfer", "urllib3")


def configure(settings: Settings, level: int = logging.INFO) -> None:
    """Make all loggers of this process write our lines, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = name != "uvicorn.access"  # service/observed.py says it, and more
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _formatter(settings: Settings) -> logging.Formatter:
    said: list[Processor] = [
        merge_contextvars,
        add_logger_name,
        add_log_level,
        TimeStamper(fmt="iso", utc=True, key="time"),
        ExtraAdder(allow=FIELDS),
    ]
    written: list[Processor] = [
        ProcessorFormatter.remove_processors_meta,
        format_exc_info,
        Redaction(_own_secrets(settings)),
        _in_order,
        JSONRenderer() if settings.log_format == "json" else _for_people,
    ]
    return ProcessorFormatter(foreign_pre_chain=said, processors=written)


def _in_order(logger: Any, method: str, event: EventDict) -> EventDict:
    first = ("time", "level", "logger", "event")
    return {name: event[name] for name in (*first, *event) if name in event}


# --- no secrets -------------------------------------------------------------------------------------------


class Redaction:
    """A processor that takes out what looks like a secret, and the process's own secrets wherever they turn up."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        known = sorted((re.escape(text) for text in own if text), key=len, reverse=True)
        self._own = re.compile("|".join(known)) if known else None

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        return {name: self.clean(value) if isinstance(value, str) else value for name, value in event.items()}

    def clean(self, text: str) -> str:
        if self._own:
            text = self._own.sub(REDACTED, text)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return text


_SECRETS: list[tuple[re.Pattern[str], str]] = [
    # An API key keeps its id, so that one can tell which it was.
    (re.compile(r"\b(dkl_[0-9a-f]{12})_[A-Za-z0-9_-]+"), rf"\1_{REDACTED}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=]+"), f"whsec_{REDACTED}"),
    (re.compile(r"(?i)\b((?:set-)?cookie\b[\"']?\s*[:=,]\s*b?[\"']?)[^\"'\r\n]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(authorization\b[\"']?\s*[:=,]\s*b?[\"']?)[^\"'\r\n]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{REDACTED}"),
    # postgresql://user:password@host, redis://:password@host
    (re.compile(r"(://[^\s/:@]*:)[^\s/]+(?=@)"), rf"\1{REDACTED}"),
    (
        re.compile(
            r"(?i)\b((?:\w*_)?(?:password|passwd|secret(?:_?(?:access_?)?key)?|api_?key|token)[\"']?\s*[=:]\s*[\"']?)"
            r"[^\s\"',;&)}\]]+"
        ),
        rf"\1{REDACTED}",
    ),
]


def _own_secrets(settings: Settings) -> list[str]:
    """The secrets that this process was given: long ones literally, wherever they turn up."""
    passwords = [make_url(url).password for url in (settings.database_url, settings.broker_url) if url]
    given = [settings.secret_key.get_secret_value(), *passwords]
    return [text for text in given if text and len(text) >= 8]


# --- for people -------------------------------------------------------------------------------------------

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends and what reverses the direction of writing."""


def one_line(text: str) -> str:
    """The text, with every character written out that could end the line or change what a terminal shows."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _for_people(logger: Any, method: str, event: EventDict) -> str:
    trace = event.pop("exception", None)
    head = [str(event.pop(name, "")) for name in ("time", "level", "logger", "event")]
    line = " ".join(map(one_line, head)) + "".join(f" {name}={_quoted(value)}" for name, value in event.items())
    if trace:  # indented: only lines of ours begin with a time
        line += "".join("\n    " + one_line(part) for part in trace.split("\n"))
    return line


def _quoted(value: object) -> str:
    text = one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if set(' "=') & set(text) else text
