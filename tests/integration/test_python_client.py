"""The Python client against a real service: its document's examples, and what it does when things go wrong."""

import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from processes import Start, free_port, wait_until
from samples import EPOCH, JUDGED, TRAIN, TRAINED
from serving import served
from sqlalchemy import Engine

from dkl.events import EvaluateResult, TrainResult
from dkl.recipes import fingerprint
from service import claims
from service.client import Client, JobFailed, NoServiceError, NotAllowedError, ServiceError
from service.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-client.md"


@pytest.mark.long
def test_the_documents_examples_run(
    start_embedded: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, client = start_embedded()
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 9
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("http://127.0.0.1:8000", client.url), str(DOCUMENT), "exec"), names)
    names["client"].__exit__()
    said = capsys.readouterr().out
    assert isinstance(names["training"].result, TrainResult)
    assert isinstance(names["judging"].result, EvaluateResult)
    assert "did you mean ikl-at-digits" in said
    assert re.search(r"job \w+ \(ikl-at-digits\) was canceled: canceled", said)
    assert (tmp_path / "model.safetensors").is_file()


# --- whether there is a service -----------------------------------------------------------------------------


class Stranger(BaseHTTPRequestHandler):
    """Some other web server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"It works!")

    def log_message(self, *_: object) -> None:
        pass


def test_another_web_server_is_no_service(settings: Settings) -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as nobody:
        assert not nobody.answers()
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as stranger:
            assert not stranger.answers()
        server.shutdown()
        thread.join()
    with served(settings) as (client, _):
        assert client.answers()


def test_no_proxy_stands_before_a_service_on_this_machine(settings: Settings) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    code = "import sys; from service.client import Client; print(Client(sys.argv[1]).jobs())"
    with served(settings) as (client, _):
        asked = [sys.executable, "-c", code, client.url]
        ended = subprocess.run(asked, env=proxies, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


# --- without a worker -------------------------------------------------------------------------------------


def claimed(db: Engine, job_id: str) -> claims.Claim:
    claim = claims.claim(db, job_id, worker="box/a", lease_seconds=60)
    assert claim is not None
    return claim


def test_a_recipe_is_a_name_a_document_or_an_object(settings: Settings) -> None:
    with served(settings) as (client, _):
        by_name = client.submit("natural-digits")
        by_document = client.submit(TRAIN.model_dump(mode="json"))
        by_object = client.submit(TRAIN)
        asked = {job.document["fingerprint"] for job in (by_name, by_document, by_object)}
        assert asked == {fingerprint(TRAIN)}
        assert (by_name.title, by_object.title) == ("natural-digits", "train")
        with pytest.raises(ValueError, match="overrides go with a recipe's name"):
            client.submit(TRAIN, {"epochs": 2})


def test_the_handle_follows_the_events(settings: Settings) -> None:
    with served(settings) as (client, db):
        job = client.submit("natural-digits")
        claim = claimed(db, job.id)
        claims.append(db, claim, EPOCH)
        claims.finish(db, claim, TRAINED)
        seen = [(event.kind, job.status) for event in job.watch()]
        assert seen[0] == ("status", "queued")
        assert ("epoch", "running") in seen
        assert seen[-1] == ("end", "succeeded")
        assert job.result == TRAINED.result
        assert job.wait() is job


def test_what_fails_is_raised_with_its_reason(settings: Settings) -> None:
    with served(settings) as (client, db):
        job = client.submit("natural-digits")
        claims.fail(db, claimed(db, job.id), "loss is nan")
        with pytest.raises(JobFailed, match=rf"job {job.id} \(natural-digits\) has failed: loss is nan") as raised:
            job.wait()
        assert raised.value.job is job
        assert job.resume().status == "queued"
        assert job.cancel().status == "canceled"
        with pytest.raises(JobFailed, match="was canceled"):
            job.wait()


def test_a_result_of_another_version_is_said_to_be(settings: Settings) -> None:
    with served(settings) as (client, db):
        job = client.submit("natural-digits")
        assert job.result is None
        claims.finish(db, claimed(db, job.id), TRAINED)
        job.refresh().document["result"]["a_newer_field"] = 1
        assert job.result == TRAINED.result
        del job.document["result"]["clean_accuracy"]
        with pytest.raises(ServiceError, match=r"another version of dkl-bench \(1 fields"):
            _ = job.result


def test_rows_are_typed_and_know_their_board(settings: Settings) -> None:
    with served(settings) as (client, db):
        model = client.submit("natural-digits", then=[("autoattack-digits-linf", {"images": 2})])
        claims.finish(db, claimed(db, model.id), TRAINED)
        claims.finish(db, claimed(db, model.then[0].id), JUDGED)
        ranking = client.leaderboard(dataset="digits")
        assert [(row.entry, row.rank) for row in ranking.rows] == [(model.then[0].id, 1)]
        assert ranking.rows[0].board == ranking.board
        assert client.entry(model.then[0].id)["board"]["dataset"] == "digits"
        assert client.leaderboard(dataset="npz:none").board is None


def test_a_service_that_restarts_is_waited_for(settings: Settings) -> None:
    port = free_port()
    seen: list[str] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        with served(settings, port) as (_, db):
            job = client.submit("natural-digits")
            claim = claimed(db, job.id)
            claims.append(db, claim, EPOCH)
            watching = threading.Thread(
                target=lambda: seen.extend(event.kind for event in job.watch()), daemon=True
            )
            watching.start()
            wait_until(lambda: "epoch" in seen, 20, "the first event")
        time.sleep(0.6)  # somebody asks, and nobody answers
        with served(settings, port) as (_, db):
            claims.finish(db, claim, TRAINED)
            watching.join(20)
    assert (job.status, seen.count("epoch"), seen[-1]) == ("succeeded", 1, "end")


def test_nobody_there_is_said_at_once(settings: Settings) -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client:
        for ask in (client.workers, lambda: client.job("0123456789ab"), client.leaderboard):
            with pytest.raises(NoServiceError, match="start one with: dklbench up"):
                ask()
        with served(settings, port):
            job = client.submit("natural-digits")
        for follow in (lambda: list(job.watch()), lambda: list(job.log()), job.wait, job.refresh):
            with pytest.raises(NoServiceError):
                follow()


def test_an_address_or_an_id_that_is_none(settings: Settings) -> None:
    with pytest.raises(ServiceError, match=r"'bench\.example\.org' is no address of a service"):
        Client("bench.example.org")
    with pytest.raises(ServiceError, match="the API key has letters that no key has"):
        Client("http://127.0.0.1:9", "schlüssel")
    with served(settings) as (client, _):
        for wrong in ("nothing", "../workers", "a?b", ""):
            with pytest.raises(ServiceError) as refused:
                client.job(wrong)
            assert not isinstance(refused.value, NoServiceError)


def test_without_a_key_what_may_not_be_done_is_its_own_error(settings: Settings) -> None:
    with (
        served(settings.model_copy(update={"anonymous": "leaderboard"})) as (client, _),
        pytest.raises(NotAllowedError, match="DKLBENCH_KEY"),
    ):
        client.submit("natural-digits")
