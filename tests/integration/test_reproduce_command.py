"""`dklbench reproduce` with a real service and real training, on a few packed images of CIFAR-10."""

import json
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, Command
from processes import BIN, Start, ends, free_port, wait_until
from serving import served
from sqlalchemy import select

from dkl.catalog.studies import study
from service import claims
from service.client import Client
from service.db import connect, reading
from service.settings import Settings
from service.settings import settings as chosen
from service.tables import Job

PACKED = Path(__file__).parent.parent / "data"


@pytest.fixture
def reproduce(dklbench: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, for which no service answers unless the test sets DKLBENCH_URL."""
    monkeypatch.setenv("DKLBENCH_URL", f"http://127.0.0.1:{free_port()}")

    def run(*words: str) -> Answer:
        chosen.cache_clear()
        return dklbench("reproduce", *words)

    return run


@pytest.fixture
def cifar10(settings: Settings) -> None:
    settings.datasets_dir.mkdir(parents=True)
    for file in PACKED.glob("cifar10_*.npz"):
        shutil.copy(file, settings.datasets_dir)


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in found["rows"]}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["9"], "there is no study '9-tiny'; there are 2-smoke, 2-tiny"),
        (["2", "--budget", "huge"], "there is no study '2-huge'"),
        (["2", "--plot", "table.gif"], "found the suffix '.gif'; the picture is an SVG, name FILE.svg"),
        (["2", "--plot", "no/table.svg"], "there is no folder no; make it, or name another"),
        (["2", "--url", "http://127.0.0.1:9"], "no service answers at http://127.0.0.1:9"),
        (["2", "--up", "--url", "http://127.0.0.1:9"], "no service answers at http://127.0.0.1:9"),
        (["2", "--up", "--url", "localhost:8000"], "'localhost:8000' is no address of a service"),
        (["2", "--up", "--only", "nothing"], "no row is called 'nothing'; there are 'AT-AWP', 'LBGAT, beta 6'"),
        (["2", "--up", "--only", "dm-at, 50m generated"], "'DM-AT, 50M generated' is left out of this study."),
    ],
)
def test_mistakes_get_a_sentence(reproduce: Command, words: list[str], sentence: str) -> None:
    ended = reproduce(*words)
    assert ended.returncode != 0
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_without_the_data_set_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """It cannot be downloaded either: the proxy is nobody. In a process of its own, as a process remembers its
    first proxy."""
    monkeypatch.setenv("DKLBENCH_URL", f"http://127.0.0.1:{free_port()}")
    for proxy in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    command = [str(BIN / "dklbench"), "reproduce", "3", "--budget", "smoke", "--up"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert f"cifar10 is not in {settings.datasets_dir} and could not be downloaded" in ended.stderr
    assert "put cifar10_train.npz and cifar10_test.npz there" in ended.stderr
    assert not (settings.data_dir / "ledger.sqlite").exists()


@pytest.mark.usefixtures("cifar10")
def test_a_finished_row_is_not_run_again(
    reproduce: Command, start_embedded: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, client = start_embedded()
    monkeypatch.setenv("DKLBENCH_URL", client.url)
    only = ("3", "--budget", "smoke", "--only", "trades", "--plot", str(tmp_path / "table.svg"))
    first = reproduce(*only, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    trades = rows(found)["TRADES"]
    assert (trades["state"], trades["images"], found["finished"]) == ("succeeded", 8, 1)
    assert 0 <= trades["robust_accuracy"] <= trades["clean_accuracy"] <= 1
    assert trades["robust_difference"] == pytest.approx(trades["robust_accuracy"] - 0.5308)
    assert {row["state"] for method, row in rows(found).items() if method != "TRADES"} == {"missing"}
    assert "<svg" in (tmp_path / "table.svg").read_text()
    jobs = [job.document for job in client.jobs()]
    assert len(jobs) == 2
    second = reproduce(*only)
    assert second.returncode == 0, second.stderr
    assert [job.document for job in client.jobs()] == jobs
    assert "Table 3, smoke budget: CIFAR-10, Linf 8/255" in second.stdout
    assert "84.92/53.08" in second.stdout
    assert f"to share: {client.url}/studies/3-smoke" in second.stdout
    refused = reproduce("3", "--budget", "smoke", "--only", "nothing")
    assert refused.returncode == 1
    assert "no row is called 'nothing'; there are 'PGD-AT', 'LBGAT, beta 0'" in refused.stderr
    assert [job.document for job in client.jobs()] == jobs


def test_what_fails_is_told_with_its_reason_and_taken_up_again(
    settings: Settings, reproduce: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test is the worker, which has no luck; there is none else."""
    words = ("3", "--budget", "smoke", "--only", "TRADES", "--only", "MART")
    with served(settings) as (client, db):
        monkeypatch.setenv("DKLBENCH_URL", client.url)
        ended = []
        for _ in range(2):
            command = threading.Thread(target=lambda: ended.append(reproduce(*words)))
            command.start()
            for reason in ("loss is nan", "loss is inf"):
                wait_until(lambda: client.jobs(kind="train", status="queued"), what="a training")
                training = client.jobs(kind="train", status="queued")[-1]
                claim = claims.claim(db, training.id, worker="box/a", lease_seconds=60)
                assert claim is not None
                claims.fail(db, claim, reason)
            command.join(60)
        trainings, evaluations = client.jobs(kind="train"), client.jobs(kind="evaluate")
    for one in ended:
        assert one.returncode == 1
        assert re.search(
            "error: (TRADES: loss is .*; MART: loss is|MART: loss is .*; TRADES: loss is)", one.stderr
        )
        assert re.search(r"TRADES .* failed", one.stdout)
        assert f"watch it at {client.url}/studies/3-smoke" in one.stderr
    assert len(ended) == len(trainings) == len(evaluations) == 2
    assert {job.status for job in (*trainings, *evaluations)} == {"failed"}


def test_a_key_that_may_not_submit_ends_it(
    settings: Settings, reproduce: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(settings.model_copy(update={"anonymous": "leaderboard"})) as (client, _):
        monkeypatch.setenv("DKLBENCH_URL", client.url)
        ended = reproduce("3", "--budget", "smoke")
    assert ended.returncode == 4
    assert "key" in ended.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10", "here")
def test_a_service_of_its_own_ends_with_ctrl_c_and_goes_on_with_the_next_command(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("DKLBENCH_URL", f"http://127.0.0.1:{free_port()}")
    words = [str(BIN / "dklbench"), "reproduce", "3", "--budget", "smoke", "--only", "PGD-AT", "--up", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "watch it at" in line:
            break
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert "interrupted; the same command goes on from here" in complaints
    assert "Traceback" not in complaints
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert rows(json.loads(ended.stdout))["PGD-AT"]["state"] == "succeeded"
    engine = connect(settings.database)
    with reading(engine) as session:
        assert sorted(session.scalars(select(Job.kind))) == ["evaluate", "train"]
    engine.dispose()


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10")
def test_after_an_interrupt_and_a_cancel_it_goes_on(
    start_embedded: Start, monkeypatch: pytest.MonkeyPatch, reproduce: Command
) -> None:
    _, client = start_embedded()
    monkeypatch.setenv("DKLBENCH_URL", client.url)
    words = ("3", "--budget", "smoke", "--only", "PGD-AT")
    process = subprocess.Popen([str(BIN / "dklbench"), "reproduce", *words], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(client.jobs()) == 2, what="its jobs")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "the same command goes on from here" in process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130
    training = client.jobs(kind="train")[0]
    evaluation = client.jobs(kind="evaluate")[0]
    evaluation.cancel()
    ends(client, training.id)
    ends(client, evaluation.id, "canceled")
    ended = reproduce(*words, "--json")
    assert ended.returncode == 0, ended.stderr
    row = rows(json.loads(ended.stdout))["PGD-AT"]
    assert (row["training"]["id"], row["evaluation"]["id"]) == (training.id, evaluation.id)
    assert len(client.jobs()) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10", "here")
@pytest.mark.parametrize("table", ["2", "3"])
def test_every_method_of_a_table_trains_and_is_judged(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a service of its own, which leaves its ledger in the data folder."""
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("DKLBENCH_URL", url)
    command = [str(BIN / "dklbench"), "reproduce", table, "--budget", "smoke", "--up", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["finished"] == len(study(f"{table}-smoke").rows) == len(found["rows"])
    assert all(row["images"] == 8 and row["training"]["seconds"] > 0 for row in found["rows"])
    with Client(url) as client, pytest.raises(Exception, match="no service answers"):
        client.study(f"{table}-smoke")  # it ended with the command
