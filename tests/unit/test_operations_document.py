"""docs/operations.md says what is: every setting, every metric, commands that exist, examples that work."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy import Engine
from standardwebhooks import Webhook

from service import cli, logs, metrics
from service.settings import Settings
from service.webhooks import RETRY_SECONDS

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "operations.md"
TEXT = DOCUMENT.read_text()


def settings_table() -> str:
    """As the document should have it."""
    rows = []
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"DKLBENCH_{name.upper()}"
        about = " ".join((field.description or "").split())
        rows.append(f"| `{variable}` | {_shown(field.default)} | {about} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    match default:
        case Path():
            return "a folder of this user's"
        case SecretStr() | "" | None | ():
            return ""
        case tuple():
            return f"`{','.join(default)}`"
        case int() if default >= 2**30 and default % 2**30 == 0:
            return f"`{default}` ({default // 2**30} GiB)"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def test_every_setting_is_in_the_table() -> None:
    between = re.search(r"<!-- settings: .*? -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    assert between is not None
    _, _, *rows = between[1].rstrip("\n").split("\n")
    assert "\n".join(rows) == settings_table(), f"put this into {DOCUMENT}:\n{settings_table()}"


def test_every_metric_is_in_the_table(db: Engine, settings: Settings) -> None:
    documented = dict(re.findall(r"^\| `(dklbench_\w+)`(?: \*)? \| ([\w, ]*) ?\|", TEXT, re.MULTILINE))
    registry = CollectorRegistry()
    metrics.Requests(registry)
    families = [*registry.collect(), *metrics._Ledger(settings, db).collect()]
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert documented.keys() == names


def test_every_field_of_the_log_is_in_the_table() -> None:
    section = TEXT[TEXT.index("## Logs") : TEXT.index("## Webhooks")]
    for field in (*logs.FIELDS, "time", "level", "logger", "event", "request_id", "job_id", "exception"):
        assert f"`{field}`" in section


def test_the_commands_exist() -> None:
    known = typer.main.get_command(cli.app)
    for words in re.findall(r"dklbench ([a-z][a-z-]+)(?: ([a-z-]+))?", TEXT):
        command = known.commands.get(words[0])  # type: ignore[attr-defined]
        assert command is not None, words
        if hasattr(command, "commands"):
            assert words[1] in command.commands


def test_the_receiver_of_the_example_believes_us_and_nobody_else() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    secret, at, body = "whsec_" + "A" * 43 + "=", datetime.now(UTC), '{"type": "job.failed"}'
    headers = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("1", at, body),
    }
    assert names["read"](secret, headers, body.encode()) == {"type": "job.failed"}
    assert names["read"](secret, headers, b'{"type": "job.succeeded"}') is None


def test_the_pauses_are_as_said() -> None:
    minutes = [seconds // 60 for seconds in RETRY_SECONDS]
    assert minutes[:3] == [1, 5, 15]
    assert [each // 60 for each in minutes[3:]] == [1, 3, 6, 12]
    assert "after 1, 5 and 15 minutes and 1, 3, 6 and 12 hours" in " ".join(TEXT.split())
