"""Published rows on a real database: imported, replaced, taken out; beside measured ones; and taken along."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import EPOCH, JUDGED, TRAINED
from sqlalchemy import Engine, event
from starlette.testclient import TestClient
from typer.testing import CliRunner

from dkl.catalog import RECIPES, resolve
from dkl.events import Finished
from dkl.flags import Flags, pack
from service import audit, cli, client, commands_robustbench, jobs, keys
from service.app import create_app
from service.callers import COMMAND_LINE
from service.claims import append, claim, finish
from service.imported import bring
from service.in_print import packaged_documents
from service.leaderboard import entry
from service.model_info import ModelInfo
from service.model_info_folder import read_dir, write_dir
from service.reported import packaged, reported
from service.settings import Settings

NEW = {
    "dataset": "cifar10",
    "threat_model": "Linf",
    "key": "Doe2026Best",
    "name": "The best &amp; the rest",
    "authors": "Jane Doe",
    "venue": "arXiv,<br>Jan 2026",
    "link": "https://arxiv.org/abs/2601.00001",
    "architecture": "WideResNet-94-16",
    "eps": "8/255",
    "additional_data": False,
    "number_forward_passes": 1,
    "clean_acc": "94.00",
    "autoattack_acc": "75.00",
    "external": None,
    "unreliable": False,
    "reported": "75.10",
    "footnote": "One<br>two",
}
ENTRY = "robustbench-cifar10-Linf-Doe2026Best"
PACKAGED = "robustbench-cifar10-Linf-Standard"


@pytest.fixture
def http(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    """Asks as an admin."""
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    wanted = keys.KeyRequest(name="anna", scope="admin")
    _, text = keys.create(db, app.state.dkl.settings, wanted, caller=COMMAND_LINE)
    with TestClient(app, headers={"Authorization": f"Bearer {text}"}) as client:
        yield client


def post(http: TestClient, *documents: Mapping[str, Any]) -> dict[str, Any]:
    response = http.post("/api/v1/reported", json=list(documents))
    assert response.status_code == 200, response.text
    return response.json()


def board(http: TestClient, **query: object) -> list[dict[str, Any]]:
    asked = {"dataset": "cifar10", "threat_model": "Linf", "eps": 8 / 255, "limit": 1000, **query}
    return http.get("/api/v1/leaderboard", params=asked).json()["rows"]


def ended(db: Engine, name: str, overrides: Mapping[str, Any], finished: Finished) -> str:
    job = jobs.create(db, resolve(name, overrides), name=name)
    taken = claim(db, job.id, worker="w", lease_seconds=60)
    assert taken is not None
    append(db, taken, EPOCH)
    finish(db, taken, finished)
    return job.id


def judged(**changes: object) -> Finished:
    return Finished(result=JUDGED.result.model_copy(update=changes))


# --- importing ----------------------------------------------------------------------------------------------


def test_an_imported_row_is_on_its_board_at_once(http: TestClient) -> None:
    before = board(http)
    assert post(http, NEW) == {"added": [ENTRY], "changed": [], "unchanged": []}
    after = board(http)
    assert len(after) == len(before) + 1
    assert (after[0]["entry"], after[0]["rank"], after[0]["robust_accuracy"]) == (ENTRY, 1, 0.75)
    assert (after[0]["title"], after[0]["venue"], after[0]["year"]) == (
        "The best & the rest",
        "arXiv, Jan 2026",
        2026,
    )
    assert after[0]["note"] == "One. two."
    assert after[1]["rank"] == 2


def test_the_same_again_changes_nothing_and_another_one_replaces_it(http: TestClient, db: Engine) -> None:
    post(http, NEW)
    known = reported(db)
    assert post(http, NEW) == {"added": [], "changed": [], "unchanged": [ENTRY]}
    assert reported(db) is known  # not even read again
    assert post(http, {**NEW, "autoattack_acc": "74.00"}) == {"added": [], "changed": [ENTRY], "unchanged": []}
    assert [row["robust_accuracy"] for row in board(http) if row["entry"] == ENTRY] == [0.74]
    assert [row["entry"] for row in http.get("/api/v1/reported").json()] == [ENTRY]


def test_all_are_imported_or_none(http: TestClient) -> None:
    wrong = {**NEW, "key": "Wrong", "clean_acc": "194.00"}
    response = http.post("/api/v1/reported", json=[NEW, wrong])
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "1.clean_acc"
    assert http.get("/api/v1/reported").json() == []
    many = [{**NEW, "key": f"K{n}"} for n in range(1001)]
    assert http.post("/api/v1/reported", json=many).status_code == 422
    assert len(post(http, *many[:1000])["added"]) == 1000


def test_of_two_with_one_name_the_last_counts(http: TestClient) -> None:
    assert post(http, NEW, {**NEW, "autoattack_acc": "70"})["added"] == [ENTRY]
    assert http.get(f"/api/v1/entries/{ENTRY}").json()["robust_accuracy"] == 0.7


def test_an_imported_row_takes_a_packaged_one_s_place_until_it_is_taken_out(http: TestClient) -> None:
    size = len(board(http))
    newer = packaged().documents[PACKAGED].stored() | {"clean_acc": "95.00"}
    assert post(http, newer)["added"] == [PACKAGED]
    assert http.get(f"/api/v1/entries/{PACKAGED}").json()["clean_accuracy"] == 0.95
    assert len(board(http)) == size
    taken = http.delete(f"/api/v1/reported/{PACKAGED}")
    assert taken.json()["document"]["clean_acc"] == "95.00"
    assert http.get(f"/api/v1/entries/{PACKAGED}").json()["clean_accuracy"] == 0.9478
    assert http.delete(f"/api/v1/reported/{PACKAGED}").status_code == 404


def test_a_link_to_a_number_survives_an_import_that_brings_it_too(http: TestClient, db: Engine) -> None:
    paper = "paper-cifar10-Linf-ikl-at-wrn-34-10-8520-5762"
    same = {**NEW, "clean_acc": "85.20", "autoattack_acc": "57.62", "architecture": "WideResNet-34-10"}
    assert entry(db, paper).entry == paper
    post(http, same)
    assert entry(db, paper).entry == ENTRY
    assert entry(db, paper).recipe == "ikl-at-cifar10-wrn-34-10-autoaug"


def test_imports_are_audited(http: TestClient, db: Engine) -> None:
    post(http, NEW)
    post(http, NEW)
    http.delete(f"/api/v1/reported/{ENTRY}")
    deleted, brought = [e for e in audit.recent(db) if e.action.startswith("reported.")]
    assert (brought.action, brought.detail) == ("reported.import", {"added": 1, "changed": 0, "entries": [ENTRY]})
    assert (deleted.action, deleted.object) == ("reported.delete", ENTRY)
    assert deleted.actor == brought.actor
    assert brought.actor.startswith("anna")


def test_only_admins_import(http: TestClient, db: Engine, settings: Settings) -> None:
    _, text = keys.create(
        db, http.app.state.dkl.settings, keys.KeyRequest(name="bob", scope="submit"), caller=COMMAND_LINE
    )
    bob = {"Authorization": f"Bearer {text}"}
    assert http.post("/api/v1/reported", json=[NEW], headers=bob).status_code == 403
    assert http.delete(f"/api/v1/reported/{ENTRY}", headers=bob).status_code == 403
    assert http.get("/api/v1/reported", headers=bob).status_code == 200


def test_a_look_at_the_board_costs_one_small_query_more(db: Engine) -> None:
    bring(db, packaged_documents(), caller=COMMAND_LINE)
    reported(db)
    asked: list[str] = []
    event.listen(db, "before_cursor_execute", lambda *args: asked.append(args[2]))
    reported(db)
    reads = [sql for sql in asked if "reported_rows" in sql]
    assert len(reads) == 1
    assert "document" not in reads[0]


def test_the_pages_of_the_imported_rows(http: TestClient) -> None:
    post(http, NEW, {**NEW, "key": "B"}, {**NEW, "key": "C"})
    first = http.get("/api/v1/reported", params={"limit": 2}).json()
    rest = http.get("/api/v1/reported", params={"after": first[-1]["entry"]}).json()
    assert [row["document"]["key"] for row in first + rest] == ["B", "C", "Doe2026Best"]


# --- beside what is measured --------------------------------------------------------------------------------


def measured_of(
    db: Engine, name: str, overrides: Mapping[str, Any] | None = None, **judging: Any
) -> dict[str, Any]:
    """The row of an evaluation of the named training."""
    training = ended(db, name, overrides or {}, TRAINED)
    recipe = RECIPES[name].recipe
    judge = {"cifar10": "autoattack-cifar10-linf", "cifar100": "autoattack-cifar100-linf"}[recipe.dataset]
    job = ended(db, judge, {"model.job": training, **judging}, judged(robust_accuracy=0.5))
    return entry(db, job).model_dump()


def test_a_training_as_published_stands_beside_its_number(db: Engine) -> None:
    row = measured_of(db, "ikl-at-cifar100-wrn-34-10", {"seed": 7})
    assert row["published_entry"] == "robustbench-cifar100-Linf-Cui2023Decoupled_WRN-34-10"
    assert row["published_accuracy"] == 0.3191
    assert entry(db, row["published_entry"]).recipe == "ikl-at-cifar100-wrn-34-10"


@pytest.mark.parametrize(
    ("overrides", "judging"), [({"epochs": 3}, {}), ({}, {"threat.eps": "4/255"}), ({}, {"threat.norm": "L2"})]
)
def test_another_training_or_threat_has_no_number(
    db: Engine, overrides: dict[str, Any], judging: dict[str, Any]
) -> None:
    row = measured_of(db, "ikl-at-cifar100-wrn-34-10", overrides, **judging)
    assert (row["published_entry"], row["published_accuracy"]) == (None, None)


@pytest.mark.parametrize(
    ("zoo", "judge", "eps", "published"),
    [
        ("cifar10/Linf/Cui2023Decoupled_WRN-28-10", "autoattack-cifar10-linf", "8/255", 0.6773),
        ("cifar10/Linf/Cui2023Decoupled_WRN-28-10", "autoattack-cifar10-linf", "4/255", None),
        ("cifar10/Linf/Zhang2019Theoretically", "autoattack-cifar10-linf", 0.031, 0.5308),
        ("cifar10/Linf/Zhang2019Theoretically", "autoattack-cifar10-linf", "8/255", None),
        ("cifar10/L2/Wang2023Better_WRN-28-10", "autoattack-cifar10-l2", 0.5, 0.8368),
        ("cifar10/corruptions/Hendrycks2020AugMix_WRN", "autoattack-cifar10-linf", "8/255", None),
    ],
)
def test_a_model_of_the_zoo_stands_beside_robustbench_s_number(
    db: Engine, zoo: str, judge: str, eps: object, published: float | None
) -> None:
    job = ended(db, judge, {"model": {"zoo": zoo}, "threat.eps": eps}, judged(robust_accuracy=0.5))
    row = entry(db, job)
    assert row.published_accuracy == published
    assert row.published_entry == (f"robustbench-{zoo.replace('/', '-')}" if published else None)


# --- taken along --------------------------------------------------------------------------------------------


def measured_entry(db: Engine, **changes: object) -> str:
    """A measured row on RobustBench's board of CIFAR-10, Linf."""
    flags = Flags(data_sha256="d" * 64, clean=pack([True, True]), robust=pack([True, False]))
    result = judged(images=2, flags=flags, **changes)
    return ended(
        db, "autoattack-cifar10-linf", {"model": {"zoo": "cifar10/Linf/Cui2023Decoupled_WRN-28-10"}}, result
    )


def on_digits(db: Engine) -> str:
    """A measured row of a board that RobustBench does not have, without verdicts per image."""
    training = ended(db, "natural-digits", {}, TRAINED)
    return ended(db, "autoattack-digits-linf", {"model.job": training}, JUDGED)


def test_an_entry_is_to_be_had_in_every_form(http: TestClient, db: Engine) -> None:
    job = measured_entry(db)
    at = f"/api/v1/entries/{job}"
    whole = http.get(at).json()
    assert (whole["board"]["dataset"], whole["entry"], whole["rank"] > 0) == ("cifar10", job, True)
    document = http.get(f"{at}/model_info")
    assert document.json()["autoattack_acc"] == "50.00"
    assert document.json()["link"] == f"http://testserver/entries/{job}"
    (line,) = csv.DictReader(io.StringIO(http.get(f"{at}/row.csv").text, newline=""))
    assert (line["entry"], line["published_accuracy"]) == (job, "0.6773")
    assert r" & 50.00 & " in http.get(f"{at}/row.tex").text
    assert http.get(f"{at}/flags.csv").text.splitlines() == ["row,position,clean,robust", "0,0,1,1", "1,1,1,0"]
    cited = http.get(f"{at}/citation.bib").text
    assert f"@misc{{dklbench-{job}," in cited
    assert "@inproceedings{Cui2024Decoupled," in cited
    assert "torch 2.11.0" in cited
    for form, kind in {
        "row.csv": "text/csv",
        "row.tex": "application/x-tex",
        "citation.bib": "application/x-bibtex",
    }.items():
        answer = http.get(f"{at}/{form}")
        assert answer.headers["Content-Type"].startswith(kind)
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{job}.{form.rpartition(".")[2]}"'


def test_what_an_entry_lacks_is_told(http: TestClient, db: Engine) -> None:
    old = on_digits(db)
    assert "holds no verdicts per image" in http.get(f"/api/v1/entries/{old}/flags.csv").json()["detail"]
    published = http.get(f"/api/v1/entries/{PACKAGED}/flags.csv")
    assert (published.status_code, "published elsewhere" in published.json()["detail"]) == (404, True)
    for form in ("", "/model_info", "/row.csv", "/row.tex", "/citation.bib", "/flags.csv"):
        answer = http.get(f"/api/v1/entries/no%22such%0d%0aentry{form}")
        assert answer.status_code == 404, form
        assert "no leaderboard has an entry" in answer.json()["detail"]


def test_a_board_is_to_be_had_whole(http: TestClient, db: Engine) -> None:
    job = measured_entry(db)
    asked = {"dataset": "cifar10", "threat_model": "Linf", "eps": 8 / 255, "limit": 1, "page": 3}
    answer = http.get("/api/v1/leaderboard.csv", params=asked)
    lines = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [line["entry"] for line in lines] == [row["entry"] for row in board(http)]
    assert {line["source"] for line in lines} == {"measured", "published"}
    assert answer.headers["Content-Disposition"] == (
        'attachment; filename="leaderboard-CIFAR-10-Linf-eps-8-255.csv"'
    )
    alone = http.get("/api/v1/leaderboard.csv", params={**asked, "source": "measured"})
    assert [line["entry"] for line in csv.DictReader(io.StringIO(alone.text, newline=""))] == [job]
    table = http.get("/api/v1/leaderboard.tex", params={**asked, "search": "DAJAT"}).text
    assert table.count(r" \\") == 1 + len(board(http, search="DAJAT"))
    assert http.get("/api/v1/leaderboard.csv", params={"dataset": "nothing"}).text.count("\n") == 1
    assert http.get("/api/v1/leaderboard.tex", params={"sort": "nothing"}).status_code == 422


def test_boards_as_robustbench_s_files(http: TestClient, db: Engine) -> None:
    job = measured_entry(db)
    elsewhere = ended(
        db, "autoattack-digits-linf", {"model.job": ended(db, "natural-digits", {}, TRAINED)}, JUDGED
    )
    own = http.get("/api/v1/model_info").json()
    assert [row["entry"] for row in own["entries"]] == [job]
    assert [(row["entry"], "no board" in row["why"]) for row in own["left_out"]] == [(elsewhere, True)]
    published = http.get("/api/v1/model_info", params={"source": "published"}).json()
    found = {row["entry"]: ModelInfo.model_validate(row["document"]) for row in published["entries"]}
    assert {name: found[name] for name in packaged().documents} == packaged().documents
    assert {row["entry"].split("-")[1] for row in published["left_out"]} == {"cifar100", "svhn", "tinyimagenet"}
    both = http.get("/api/v1/model_info", params={"source": "all"}).json()
    assert len(both["entries"]) == len(found) + 1


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def dklbench(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """The commands, talking to the application in this process."""

    class Here(client.Client):
        def __init__(self) -> None:
            super().__init__("http://testserver")
            self._connection.http = http  # type: ignore[assignment]

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(commands_robustbench, "client_of", lambda url: Here())
    monkeypatch.setattr(commands_robustbench.console, "width", 200)
    return CliRunner()


def test_a_folder_goes_in_and_out_again(dklbench: CliRunner, db: Engine, tmp_path: Path) -> None:
    job = measured_entry(db)
    source, target = tmp_path / "model_info", tmp_path / "out"
    write_dir(source, [ModelInfo.model_validate(NEW), *packaged_documents()])
    (source / "cifar10" / "Linf" / "Broken.json").write_text("{")
    result = dklbench.invoke(cli.app, ["import", "robustbench", str(source)])
    assert result.exit_code == 1, result.output  # one was refused, and the others are in
    assert "cifar10/Linf/Broken.json" in result.output
    assert "no JSON document" in result.output
    assert "237 added, 0 changed, 0 unchanged" in result.output
    (source / "cifar10" / "Linf" / "Broken.json").unlink()
    again = dklbench.invoke(cli.app, ["import", "robustbench", str(source)])
    assert (again.exit_code, "0 added, 0 changed, 237 unchanged" in again.output) == (0, True)
    dklbench.invoke(cli.app, ["export", "robustbench", str(target), "--source", "all"])
    written = {info.entry: info for info in read_dir(target).entries}
    assert written[ENTRY] == ModelInfo.model_validate(NEW)
    assert all(written[info.entry] == info for info in packaged_documents())
    (mine,) = (info for name, info in written.items() if job in name)
    assert mine.autoattack_acc == 50.0
    raw = json.loads((target / "cifar10" / "Linf" / "Doe2026Best.json").read_text())
    assert raw["name"] == "The best &amp; the rest"


def test_an_export_is_of_the_measured_rows_and_says_what_it_leaves_out(
    dklbench: CliRunner, db: Engine, tmp_path: Path
) -> None:
    measured_entry(db)
    on_digits(db)
    result = dklbench.invoke(cli.app, ["export", "robustbench", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"files written to {tmp_path}: 1" in result.output
    assert "RobustBench has no board for Handwritten digits" in result.output
    assert len(list(tmp_path.rglob("*.json"))) == 1
