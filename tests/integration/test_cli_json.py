"""`--json` of every command that prints a result: one object, or one per line, and nothing else is printed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import Command
from processes import Start, ends

from service import cli
from service.client import Client
from service.settings import settings as chosen

TINY = ["epochs=1", "model.width=2"]
QUICK = ["images=8", 'suite=[{"kind": "apgd-ce", "steps": 2}]']
Run = Callable[..., Any]
WITHOUT = {"up", "demo", "serve", "migrate", "worker-health"}
"""They print no result: they serve, or only their exit code counts."""


@pytest.fixture
def ask(dklbench: Command) -> Run:
    """Runs a command with --json; returns what it printed, parsed line by line where `lines`."""

    def run(*words: object, lines: bool = False, code: int = 0) -> Any:
        answer = dklbench(*words, "--json")
        assert answer.returncode == code, answer.stderr
        documents = [json.loads(line) for line in answer.stdout.splitlines()]
        assert lines or len(documents) == (code in {0, 1}), answer.stdout
        return documents if lines or not documents else documents[0]

    return run


@pytest.mark.long
def test_jobs_and_results(
    start_embedded: Start, ask: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = start_embedded()
    on = ["--url", client.url]
    trained = ask("submit", "natural-digits", *TINY, "--then", " ".join(["autoattack-digits-linf", QUICK[0]]), *on)
    assert (trained["status"], [job["name"] for job in trained["then"]]) == ("queued", ["autoattack-digits-linf"])
    events = ask("watch", trained["id"], *on, lines=True)
    assert [event["kind"] for event in events if event["kind"] in {"epoch", "finished", "end"}] == [
        *("epoch", "finished", "end")
    ]
    said = ask("log", trained["id"], *on, lines=True)
    assert [line["says"].split()[0] for line in said][-1] == "succeeded"
    assert {line["event"] for line in said} <= {event["id"] for event in events}

    client.job(trained["id"]).download("checkpoint", tmp_path / "model.safetensors")
    judged = ask("evaluate", tmp_path / "model.safetensors", *QUICK, *on)
    assert judged["entry"]["rank"] in {1, 2}
    assert judged["entry"]["robust_accuracy"] == judged["job"]["result"]["robust_accuracy"]
    assert judged["url"] == f"{client.url}/entries/{judged['job']['id']}"
    taken = ask("upload", tmp_path / "model.safetensors", "--watch", *on)
    assert (taken["kind"], taken["status"]) == ("import", "succeeded")
    _evidence(ask, judged["job"]["id"], on, tmp_path)
    _ended(client, ask, trained["id"], on, monkeypatch)
    assert ask("export", "robustbench", tmp_path / "out", *on)["files"] == 0


def _evidence(ask: Run, judged: str, on: list[str], tmp_path: Path) -> None:
    kept = ask("evidence", judged, "--out", tmp_path / "a.safetensors", *on)
    assert kept["file"] == str(tmp_path / "a.safetensors")
    proved = ask("verify", judged, *on)
    assert (proved["ok"], proved["faults"], proved["recorded"], proved["images"]) == (True, 0, True, 8)
    assert proved["evidence_sha256"] == kept["sha256"]
    compared = ask("compare", kept["file"], kept["file"])
    assert (compared["images"], compared["clean"]["difference"], compared["robust"][0]["only_a"]) == (8, 0, 0)
    again = ask("replay", judged, *on)
    assert (again["verdict"], again["same"]) == ("identical", True)


def _ended(client: Client, ask: Run, trained: str, on: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    again = ask("rerun", trained, *on)
    assert (again["rerun_of"], again["status"]) == (trained, "queued")
    endless = client.submit("natural-digits", {"epochs": 100_000}).id
    assert ask("cancel", endless, *on)["status"] in {"canceled", "cancelling"}
    ends(client, endless, "canceled")
    assert ask("resume-job", endless, *on)["status"] == "queued"
    client.job(endless).cancel()
    found = ask("jobs", "--kind", "train", "--limit", 2, *on)["jobs"]
    assert [job["id"] for job in found] == [endless, again["id"]]
    assert ask("leaderboard", "--dataset", "digits", *on)["total"] >= 2
    (worker,) = ask("workers", *on)["workers"]
    ask("drain", worker["name"], *on, code=4)
    monkeypatch.setenv("DKLBENCH_KEY", ask("keys", "create", "me", "--scope", "admin")["key"])
    chosen.cache_clear()
    assert ask("drain", worker["name"], *on)["draining"] is True
    assert ask("resume", worker["name"], *on)["draining"] is False


def test_without_a_service(ask: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ask("recipes", "trades-digits")["recipes"][0]
    assert (recipe["name"], recipe["kind"], recipe["recipe"]["dataset"]) == ("trades-digits", "train", "digits")
    [printed] = ask("recipes", "las-awp-cifar10-wrn-34-10")["recipes"]
    assert printed["published"]["robust_accuracy"] == 0.5552
    assert [other["robust_accuracy"] for other in printed["also"]] == [0.5552, 0.5626]
    ran = ask("run", "natural-digits", *TINY)
    assert ran["result"]["epochs"] == 1
    assert Path(ran["checkpoint"]).is_file()
    key = ask("keys", "create", "anna", "--scope", "read")
    assert key["key"].startswith("dkl_")
    assert [row["id"] for row in ask("keys", "list")["keys"]] == [key["id"]]
    assert ask("keys", "revoke", key["id"])["revoked_at"] is not None
    assert ask("gc", "--dry-run") == {"dry_run": True, "size": 0, "things": []}


def test_backups(ask: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("keys", "create", "anna", "--scope", "read")
    made = ask("backup", tmp_path / "kept")
    assert (made["folder"], made["rows"]["api_keys"], made["stored_files"]) == (str(tmp_path / "kept"), 1, 0)
    assert (made["missing"], made["has_secret"]) == ([], False)
    assert ask("backup", tmp_path / "kept", "--check") == {**made, "ok": True, "faults": []}
    monkeypatch.setenv("DKLBENCH_DATA_DIR", str(tmp_path / "elsewhere"))
    chosen.cache_clear()
    assert ask("restore", tmp_path / "kept") == made
    assert [row["name"] for row in ask("keys", "list")["keys"]] == ["anna"]


def test_every_command_that_prints_a_result_has_it() -> None:
    commands = typer.main.get_command(cli.app)
    assert {name for name in _names(commands) if "--json" not in _options(commands, name)} == WITHOUT


def _names(group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from (f"{name} {inner}" for inner in _names(command))
        else:
            yield name


def _options(group: Any, name: str) -> set[str]:
    for word in name.split():
        group = group.commands[word]
    return {option for parameter in group.params for option in parameter.opts}
