"""The page of a comparison and its interface: what they say, what they refuse, and what they cost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pytest
from browser import story
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from dkl.paired import Pairs
from service.app import create_app
from service.comparisons import Comparison
from service.db import migrate
from service.settings import Settings

N = 60
LEFT = "robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10"
RIGHT = "robustbench-cifar10-Linf-Wang2023Better_WRN-28-10"


@pytest.fixture
def app(settings: Settings, database_url: str) -> Iterator[FastAPI]:
    app = create_app(settings.model_copy(update={"database_url": database_url, "anonymous": ""}))
    migrate(app.state.dkl.db)
    yield app
    app.state.dkl.db.dispose()


@pytest.fixture
def browser(app: FastAPI) -> TestClient:
    return TestClient(app, headers={"Accept": "text/html"})


@pytest.fixture
def entries(app: FastAPI, tmp_path: Path) -> list[str]:
    """Three models on the same 60 images: the first stands on 0 to 29, the second on 1 to 14, being wrong about 0,
    and the third on 0 to 14 and 50."""
    state = app.state.dkl
    flags = [pairs.standing(N, *rows) for rows in (range(30), range(1, 15), (*range(15), 50))]
    recipes = [("ikl-at-digits", {}), ("natural-digits", {}), ("ikl-at-digits", {"seed": 5})]
    made = []
    for (name, changes), robust in zip(recipes, flags, strict=True):
        model = story.trained(state.db, name, epochs=3, overrides=changes)
        clean = ~pairs.standing(N, 0) if name == "natural-digits" else np.ones(N, bool)
        made.append(pairs.judged(state.db, model, clean, robust, evidence=(state.artifacts, tmp_path)).id)
    return made


def ask(client: TestClient, *names: str, path: str = "/compare", **more: str) -> Any:
    return client.get(path, params=[("entry", name) for name in names] + list(more.items()))


def test_the_interface_and_the_page_say_the_same(browser: TestClient, entries: list[str]) -> None:
    answer = ask(browser, *entries, path="/api/v1/compare")
    assert answer.status_code == 200
    found = Comparison.model_validate(answer.json() | {"entries": []})
    expected = Pairs(both=14, only_a=16, only_b=0, neither=30)
    first = found.tests[0].robust
    assert first is not None
    assert (first.difference, first.interval, first.p_value) == (
        expected.difference, expected.interval(), expected.p_value(),
    )  # fmt: skip
    assert [e["label"] for e in answer.json()["entries"]] == ["A", "B", "C"]
    assert answer.json()["entries"][0]["board"]["title"] == "Handwritten digits, Linf, eps 0.2"
    assert found.best.robust == ["A"]
    assert (found.shared[0].stands_alone, found.shared[0].falls_alone) == ([15, 0, 1], [0, 1, 0])
    assert {"seed", "objective.kind"} <= {field.field for field in found.training.different}
    assert [len(curve.epochs) for curve in found.curves] == [3, 3, 3]
    page = ask(browser, *entries).text
    assert "A has the highest robust accuracy, 50.00 %. The paired test sets A apart from B and C." in page
    assert "+26.67" in page
    assert "alone stands on 15 images" in page
    assert 'href="/compare/curves.svg?entry=' in page


def test_images_are_shown_with_what_the_others_took_them_for(browser: TestClient, entries: list[str]) -> None:
    page = ask(browser, *entries).text
    section = page[page.index("Images that only one of them survives") :]
    assert section.count("<img") == 12 + 1 + 1  # of the 15 of A, of the one of C, of the one that B alone loses
    images = [part[: part.index("</li>")] for part in section.split("<li>")[1:]]
    assert f"/entries/{entries[0]}/pictures/15/clean.png?v=" in images[0]
    assert "<b>5</b>" in images[0]
    assert [f"{label}</abbr>: 7</p>" in images[0] for label in "ABC"] == [False, True, True]  # under attack
    assert f"/entries/{entries[0]}/pictures/0/clean.png?v=" in images[-1]
    assert "<b>0</b>" in images[-1]
    assert 'B</abbr>: 1<span title="Wrong without any attack">, clean</span></p>' in images[-1]


def test_where_evidence_is_gone_the_rest_is_shown(app: FastAPI, browser: TestClient, entries: list[str]) -> None:
    state = app.state.dkl
    for stored in list(state.artifacts.listing()):
        state.artifacts.delete(stored.sha256)
    answer = ask(browser, *entries)
    assert answer.status_code == 200
    assert "The evidence of A, B and C is not stored any more" in answer.text
    assert "No picture of them is stored" in answer.text
    assert "alone stands on 15 images" in answer.text  # which the flags in the results tell


def test_older_evaluations_are_shown_without_a_paired_test(
    app: FastAPI, browser: TestClient, tmp_path: Path
) -> None:
    state = app.state.dkl
    model = story.trained(state.db, "ikl-at-digits", epochs=3)
    some = [
        pairs.judged(
            state.db, model, np.ones(N, bool), np.arange(N) < k, flags=False, evidence=(state.artifacts, tmp_path)
        ).id
        for k in (30, 10)
    ]
    page = ask(browser, *some).text
    assert "A and B are older than verdicts per image in results: judge again to have them." in page
    assert "alone stands on 20 images" in page  # which the evidence tells
    assert "Without a paired test, the 95 % interval sets A apart from B." in page
    assert "Training loss: A, B ikl-at-digits" in page  # one training, one curve


def test_published_entries_and_other_boards(browser: TestClient, entries: list[str]) -> None:
    both = ask(browser, LEFT, RIGHT).text
    assert "A and B are published: which of the images are classified correctly is not known here." in both
    assert "Attack after attack" not in both
    assert "Training curves" not in both
    mixed = ask(browser, entries[0], LEFT)
    assert mixed.status_code == 200
    assert "The entries are about different data sets" in mixed.text
    assert 'id="differences"' not in mixed.text


@pytest.mark.parametrize("order", ["class", "-difference"])
def test_classes_are_sorted_as_the_address_says(browser: TestClient, entries: list[str], order: str) -> None:
    page = ask(browser, *entries, sort=order).text
    table = page[page.index("Robust accuracy class by class") :]
    names = [part[: part.index("<")] for part in table.split('<th role="rowheader" scope="row">')[1:11]]
    assert names == list("0123456789" if order == "class" else "0567891234")  # 2 of 6 apart in 0 and from 5 on


def test_curves_as_files(browser: TestClient, entries: list[str]) -> None:
    answer = ask(browser, *entries, path="/compare/curves.svg", of="loss")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "C ikl-at-digits" in answer.text
    assert (
        ask(browser, *entries, path="/compare/curves.svg", of="clean").status_code == 404
    )  # nothing was held out
    assert ask(browser, LEFT, RIGHT, path="/compare/curves.svg").status_code == 404
    assert ask(browser, *entries, path="/compare/curves.svg", of="luck").status_code == 422
    assert ask(browser, LEFT, path="/compare/curves.svg").status_code == 422


def test_entries_are_chosen_in_a_form(browser: TestClient, entries: list[str]) -> None:
    empty = browser.get("/compare")
    assert empty.status_code == 200
    assert empty.text.count('name="entry"') == 6
    assert f'<option value="{LEFT}">' in empty.text
    assert f'<option value="{entries[0]}">' in empty.text
    one = ask(browser, entries[0], "", " ")
    assert one.status_code == 200
    assert "Name another one" in one.text
    assert f'value="{entries[0]}"' in one.text
    assert f'<option value="{LEFT}">' not in one.text  # of another board
    assert ask(browser, entries[0], "", entries[1], "").status_code == 200
    assert "against" in ask(browser, entries[0], "", entries[1], "").text


@pytest.mark.parametrize(
    ("names", "status", "says"),
    [
        ([LEFT, LEFT], 422, "named twice"),
        ([LEFT, "nothing"], 404, "No leaderboard has an entry &#39;nothing&#39;"),
        (["<script>alert(1)</script>", LEFT], 404, "&lt;script&gt;"),
        (["a", "b", "c", "d", "e", "f", "g"], 422, "2 to 6 entries, found 7"),
        (["\x00", "%"], 404, "No leaderboard"),
        (["x" * 201, LEFT], 422, "200"),
    ],
)
def test_what_is_no_comparison_is_refused_with_what_would_do(
    browser: TestClient, names: list[str], status: int, says: str
) -> None:
    page = ask(browser, *names)
    assert page.status_code == status
    assert page.headers["content-type"].startswith("text/html")
    assert says in page.text
    assert "<script>alert" not in page.text
    answer = browser.get("/api/v1/compare", params=[("entry", name) for name in names])
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_a_program_gets_json_and_a_bad_order_is_refused(app: FastAPI, browser: TestClient) -> None:
    program = TestClient(app)
    assert program.get("/compare?entry=a&entry=b").json()["detail"].startswith("no leaderboard has an entry 'a'")
    assert program.get("/api/v1/compare").status_code == 422
    assert program.get(f"/api/v1/compare?entry={LEFT}").status_code == 422
    assert ask(browser, LEFT, RIGHT, sort="luck").status_code == 422


def test_six_entries_cost_as_many_queries_as_two(app: FastAPI, browser: TestClient, entries: list[str]) -> None:
    said: list[str] = []
    event.listen(app.state.dkl.db, "before_cursor_execute", lambda *args: said.append(args[2]))
    ask(browser, *entries)  # boards are made at the first look
    counts = []
    for some in (entries[:2], [*entries, LEFT, RIGHT]):
        said.clear()
        assert ask(browser, *some).status_code == 200
        counts.append(len(said))
    assert counts[0] == counts[1] <= 12, said


def test_who_may_read_the_board_may_compare(app: FastAPI) -> None:
    assert TestClient(app).get(f"/api/v1/compare?entry={LEFT}&entry={RIGHT}").status_code == 200
