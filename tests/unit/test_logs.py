"""Lines of the log: one event each, readable by programs or people, without secrets, and nobody else's words."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars

from service import logs
from service.settings import Settings

KEY = "dkl_0a1b2c3d4e5f_Zk3vXq9LmT0aB-cD_eFgHiJkLmNoPqRsTuVwXyZ0123_9f8e7d6c"
Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configures the logs of this process, gives what they write, and puts everything back."""
    names = (None, "uvicorn", "uvicorn.error", "uvicorn.access", *logs._QUIET)
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]

    def to(log_format: str = "json", level: int = logging.INFO, **changes: object) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        logging.getLogger().handlers.clear()  # pytest's, or they would be closed
        logs.configure(settings.model_copy(update={"log_format": log_format, **changes}), level)
        return written

    yield to
    logging.captureWarnings(False)
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def lines(written: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_what_is_bound_around_it(configure: Configure) -> None:
    written = configure()
    with bound_contextvars(job_id="0123456789ab", attempt=2):
        logging.getLogger("workers.run").warning("stopping job %s", "0123456789ab")
    logging.getLogger("service.observed").info("answered", extra={"status": 200, "ms": 1.5, "secretive": "no"})
    first, second = lines(written)
    assert list(first)[:4] == ["time", "level", "logger", "event"]
    assert (first["level"], first["logger"]) == ("warning", "workers.run")
    assert first["event"] == "stopping job 0123456789ab"
    assert (first["job_id"], first["attempt"]) == ("0123456789ab", 2)
    assert (second["status"], second["ms"]) == (200, 1.5)
    assert not {"job_id", "secretive"} & set(second)


def test_every_logger_of_the_process_writes_the_same(configure: Configure) -> None:
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.addHandler(logging.StreamHandler(io.StringIO()))  # its own configuration came first
    uvicorn.propagate = False
    written = configure()
    logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\x1b[1mstarted"})
    logging.getLogger("uvicorn.access").info("GET /api/v1/jobs?token=abc 200")
    logging.getLogger("celery.worker").info("ready")
    logging.getLogger("httpx2").info("HTTP Request: GET ...")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert [line["logger"] for line in lines(written)] == ["uvicorn.error", "celery.worker", "py.warnings"]
    assert "color_message" not in written.getvalue()


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        (f"refused {KEY}", "Zk3vXq9LmT0aB"),
        (f"Authorization: Bearer {KEY}", "Zk3vXq9LmT0aB"),
        ("headers: {'authorization': 'Basic YW5uYTpodW50ZXIy'}", "YW5uYTpodW50ZXIy"),
        ("[(b'authorization', b'Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln')]", "eyJhbGci"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln was refused", "eyJhbGci"),
        ("Cookie: session=ImFubmEi.aB3d; theme=dark", "ImFubmEi"),
        ("{'set-cookie': 'session=ImFubmEi.aB3d; HttpOnly'}", "ImFubmEi"),
        ("cannot connect to postgresql://dklbench:hunter2@db/dklbench", "hunter2"),
        ("cannot connect to redis://:p%40ss:w0rd@redis:6379/0", "w0rd"),
        ("postgresql://u:pa@ss@db/x", "ss@db"),
        ("connection failed: host=db password=hunter2 user=x", "hunter2"),
        ("POSTGRES_PASSWORD=hunter2", "hunter2"),
        ('{"password": "hunter2", "user": "x"}', "hunter2"),
        ("DKLBENCH_SECRET_KEY=5f4dcc3b5aa765d61d8327deb882cf99", "5f4dcc3b"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("GET /hook?token=c2VjcmV0 failed", "c2VjcmV0"),
        ("the secret is whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD=", "C2FVsBQI"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_looks_like_a_secret_is_taken_out(
    configure: Configure, log_format: str, said: str, secret: str
) -> None:
    written = configure(log_format)
    logging.getLogger("x").info("%s", said)
    try:
        raise ValueError(said)
    except ValueError:
        logging.getLogger("x").exception("failed")
    with bound_contextvars(note=said):
        logging.getLogger("x").info("bound")
    assert secret not in written.getvalue()
    assert written.getvalue().count("[redacted]") >= 3


def test_the_id_of_a_key_stays(configure: Configure) -> None:
    written = configure()
    logging.getLogger("x").info("refused %s", KEY)
    assert lines(written)[0]["event"] == "refused dkl_0a1b2c3d4e5f_[redacted]"


def test_the_processes_own_secrets_are_taken_out_wherever_they_are(configure: Configure) -> None:
    secret = "correct horse battery staple (it is long)"
    written = configure(
        secret_key=SecretStr(secret),
        database_url="postgresql://u:Tr0ub4dor&3@db/x",
        broker_url="redis://:gr33n-r4bbit@redis/0",
    )
    logging.getLogger("x").info("first %s, then Tr0ub4dor&3, then gr33n-r4bbit", secret)
    assert lines(written)[0]["event"] == "first [redacted], then [redacted], then [redacted]"


def test_ordinary_sentences_stay_as_they_are(configure: Configure) -> None:
    sentence = "took back job 0123456789ab: its worker gpu-host:17 went silent; see http://127.0.0.1:8000/jobs"
    written = configure()
    logging.getLogger("x").info(sentence)
    assert lines(written)[0]["event"] == sentence


FORGED = "anna\n2026-01-01T00:00:00Z info service.access signed in as admin\r\x1b[2K\x85\u2028\u202eabc\x00"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_somebody_sends_cannot_forge_a_line(configure: Configure, log_format: str) -> None:
    written = configure(log_format)
    logging.getLogger("x").info("no such name: %s", FORGED)
    with bound_contextvars(name=FORGED):
        logging.getLogger("x").info("bound")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("x").exception("failed")
    text = written.getvalue()
    assert not set(text) & set("\r\x1b\x85\u2028\u202e\x00")
    # splitlines() knows every line end there is; of ours only the indented lines of a traceback continue one.
    begun = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(begun) == 3
    assert not any(line.startswith("2026-01-01") for line in text.splitlines())


def test_text_is_for_people(configure: Configure) -> None:
    written = configure("text")
    with bound_contextvars(request_id="abc"):
        logging.getLogger("service.observed").info("answered", extra={"route": "/a b", "status": 200})
    line = written.getvalue().rstrip("\n")
    assert line.split(" ", 1)[1] == 'info service.observed answered request_id=abc route="/a b" status=200'


def test_the_level_is_the_callers_choice(configure: Configure) -> None:
    written = configure(level=logging.WARNING)
    logging.getLogger("x").info("quiet")
    assert written.getvalue() == ""
