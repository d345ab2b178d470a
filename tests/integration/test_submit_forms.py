"""The pages on which jobs are submitted, as a browser without scripts uses them."""

import hashlib
import html
import json
import random
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

from dkl.catalog import RECIPES, parse_overrides, resolve
from dkl.recipes import fingerprint
from service import jobs, keys, registry
from service.app import create_app
from service.callers import COMMAND_LINE
from service.db import migrate, writing
from service.keys import KeyRequest
from service.registry import Description
from service.settings import Settings
from service.submission import JobRequest
from service.tables import ApiKey, Artifact, Job

HTML = {"Accept": "text/html"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
WORKER = Description("gpu-box:4711", "gpu-box", 4711, "NVIDIA H200", 1, 139.8, 1, {}, ("gpu",))
Sent = dict[str, list[str]]


class Sending(HTMLParser):
    """What a browser sends of a page's form when nobody touches it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sent: Sent = {}
        self._area = self._select = ""
        self._option: tuple[str | None, bool] | None = None
        self._text = ""
        self.feed(page[page.index('<form id="draft"') : page.index("</form>", page.index('<form id="draft"'))])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        match tag:
            case "input" if given["type"] != "checkbox" or "checked" in given:
                self.sent.setdefault(given["name"], []).append(given["value"])
            case "select":
                self._select = given["name"]
            case "option" if self._select:
                self._option, self._text = (given.get("value"), "selected" in given), ""
            case "textarea":
                self._area, self._text = given["name"], ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        match tag:
            case "option" if self._option:
                value, selected = self._option
                if selected or self._select not in self.sent:
                    self.sent[self._select] = [self._text.strip() if value is None else value]
                self._option = None
            case "select":
                self._select = ""
            case "textarea":
                self.sent[self._area] = [self._text]


class Browser:
    """Somebody in front of the pages of one service."""

    def __init__(self, settings: Settings, key: str = "", **changes: Any) -> None:
        self.settings = settings.model_copy(update=changes)
        app = create_app(self.settings)
        self.state = app.state.dkl
        self.db: Engine = self.state.db
        migrate(self.db)
        self.http = TestClient(app, headers=HTML, follow_redirects=False)

    def sign_in(self, scope: str, **limits: int) -> None:
        wanted = KeyRequest(name="anna", scope=scope, **limits)  # type: ignore[arg-type]
        _, text = keys.create(self.db, self.settings, wanted, caller=COMMAND_LINE)
        assert self.http.post("/signin", data={"key": text}).status_code == 303

    def page(self, address: str, status: int = 200) -> str:
        answer = self.http.get(address)
        assert answer.status_code == status, answer.text
        return answer.text

    def send(self, address: str, sent: Sent, status: int) -> str:
        answer = self.http.post(address, data=sent)
        assert answer.status_code == status, answer.text
        return answer.text

    def submit(self, sent: Sent, query: str) -> Job:
        answer = self.http.post(f"/submit{query}", data=sent)
        assert answer.status_code == 303, answer.text
        return jobs.get(self.db, answer.headers["location"].removeprefix("/jobs/"))


@pytest.fixture
def browser(settings: Settings) -> Iterator[Browser]:
    one = Browser(settings)
    yield one
    one.db.dispose()


@pytest.fixture
def on_both(settings: Settings, database_url: str) -> Iterator[Browser]:
    one = Browser(settings, database_url=database_url)
    yield one
    one.db.dispose()


def part(page: str, name: str) -> str:
    """The text of the element with this id, which holds no other."""
    found = re.search(rf'id="{name}">(.*?)</', page, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def typed(page: str, **values: str | None) -> Sent:
    """What is sent after somebody types this; None: clears a box."""
    sent = Sending(page).sent
    for name, value in values.items():
        sent.pop(name, None)
        if value is not None:
            sent[name] = [value]
    return sent


def faults(page: str) -> dict[str, str]:
    """By field, as they stand at the fields."""
    found = re.findall(r'<p class="fault" id="e-([^"]+)">([^<]+)</p>', page)
    return {name: html.unescape(text) for name, text in found}


# --- choosing ---------------------------------------------------------------------------------------------


def test_all_recipes_are_listed_with_what_is_in_print(browser: Browser) -> None:
    page = browser.page("/submit")
    assert set(re.findall(r'href="/submit\?recipe=([^"]+)"', page)) == set(RECIPES)
    assert "57.09" in page
    assert "Handwritten digits, training" in page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("search=mart+cifar10+resnet-18", {"mart-cifar10-resnet-18"}),
        ("kind=corruptions", {"corruptions-cifar10", "corruptions-cifar100", "corruptions-digits"}),
        ("kind=evaluate&dataset=digits", {"autoattack-digits-linf"}),
        ("search=there+is+none", set()),
    ],
)
def test_recipes_are_searched(browser: Browser, query: str, expected: set[str]) -> None:
    page = browser.page(f"/submit?{query}")
    assert set(re.findall(r'href="/submit\?recipe=([^"]+)"', page)) == expected


def test_what_a_recipe_took_here_is_said(on_both: Browser) -> None:
    job = finished(on_both, "natural-digits", seed=7)
    changed = finished(on_both, "ikl-at-digits", epochs=2)
    page = on_both.page("/submit?dataset=digits")
    assert f'href="/jobs/{job.id}"' in page
    assert f'href="/jobs/{changed.id}"' not in page


def finished(browser: Browser, name: str, **overrides: Any) -> Job:
    """A training that has ended after a minute."""
    job = jobs.create(browser.db, resolve(name, overrides), name=name)
    with writing(browser.db) as session:
        row = session.get_one(Job, job.id)
        row.status, row.started_at, row.finished_at = "succeeded", row.created_at, row.created_at + 60
        row.clean_accuracy, row.result = 0.95, {"checkpoint_sha256": "a" * 64}
    return jobs.get(browser.db, job.id)


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/submit?recipe=ikl-at-digit", 404, "did you mean ikl-at-digits"),
        ("/submit?recipe=" + "x" * 300, 422, "recipe"),
        ("/submit?kind=luck", 422, "kind"),
        ("/submit?search=" + "x" * 101, 422, "search"),
        ("/submit?recipe=ikl-at-digits&epochs=0", 422, "must be greater than or equal to 1"),
        ("/submit?recipe=ikl-at-digits&a..b=1", 422, "is no change to a recipe"),
        ("/submit?recipe=ikl-at-digits&epochs=" + "[" * 3000, 422, ""),
        ("/submit?recipe=ikl-at-digits&epochs=" + "1" * 5000, 422, ""),
        ("/submit?recipe=autoattack-digits-linf&model.luck=1", 422, "say which model to judge"),
        ("/submit/upload?upload=short", 422, "upload"),
        ("/submit/check", 405, ""),
    ],
)
def test_bad_addresses_are_pages(browser: Browser, address: str, status: int, sentence: str) -> None:
    page = browser.page(address, status)
    assert sentence in html.unescape(page)
    assert f"<title>{status}" in page


# --- the form ---------------------------------------------------------------------------------------------


def fields(document: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a recipe with its kind, or its type: all that a form's layout depends on."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield (f"{path}.{name}", value) if name == "kind" else (f"{path}.{name}", type(value).__name__)
            yield from fields(value, f"{path}.{name}")
    elif isinstance(document, list):
        for value in document:
            yield from fields(value, f"{path}[]")


def with_something_new() -> Iterator[str]:
    """Recipes that together have every field with every kind and type of value that any recipe has."""
    seen: set[tuple[str, str]] = set()
    for name, entry in RECIPES.items():
        model = {f"{entry.needs}.timm": "resnet18.a1_in1k"} if entry.needs else {}
        new = set(fields(resolve(name, model).model_dump(mode="json"))) - seen
        if new:
            seen |= new
            yield name


def ready_as_it_is(browser: Browser, name: str) -> None:
    """What the page's own form sends makes the very recipe that the page is about."""
    page = browser.page(f"/submit?recipe={name}")
    field = RECIPES[name].needs
    model = {f"{field}.is": "timm", f"{field}.timm.timm": "resnet18.a1_in1k"} if field else {}
    checked = browser.send(f"/submit/check?recipe={name}", typed(page, **model), 200)
    asked = {f"{field}.timm": "resnet18.a1_in1k"} if field else {}
    assert part(checked, "fingerprint") == fingerprint(resolve(name, asked)), (name, faults(checked))
    assert json.loads(part(checked, "changes") or "{}") == asked


@pytest.mark.long
def test_recipes_of_every_form_are_ready_as_they_are(browser: Browser) -> None:
    names = list(with_something_new())
    assert 20 < len(names) < len(RECIPES) / 2
    for name in names:
        ready_as_it_is(browser, name)


@pytest.mark.slow
def test_every_recipe_is_ready_as_it_is(browser: Browser) -> None:
    """The others differ from those of test_recipes_of_every_form_are_ready_as_they_are in values alone."""
    for name in RECIPES:
        ready_as_it_is(browser, name)


def test_the_address_changes_fields(browser: Browser) -> None:
    page = browser.page("/submit?recipe=ikl-at-digits&epochs=2&threat.eps=4/255&awp=null")
    assert json.loads(part(page, "changes")) == {"epochs": 2, "threat.eps": "4/255", "awp": None}
    sent = Sending(page).sent
    assert (sent["epochs"], sent["threat.eps"]) == (["2"], ["4/255"])
    assert "awp?" not in sent
    model = "0123456789ab"
    judged = Sending(browser.page(f"/submit?recipe=autoattack-digits-linf&model.job={model}")).sent
    assert judged["model.job.job"] == [model]


def test_what_is_shown_asks_for_the_same_as_the_form(browser: Browser) -> None:
    page = browser.page("/submit?recipe=ikl-at-digits")
    then = "then:autoattack-digits-linf"
    sent = typed(
        page,
        **{"epochs": "2", "objective.kind": "trades", "attack.loss": "kl", "job:priority": "-5", "job:gpus": "2"},
        **{f"{then}?": "true", f"{then}.changes": "images=10 curve=[0.1,0.15]", "threat.eps": "0.25"},
        **{"job:webhook": "https://example.org/it's?a=b&c"},
    )
    checked = browser.send("/submit/check?recipe=ikl-at-digits", sent, 200)
    job = browser.submit(sent, "?recipe=ikl-at-digits")

    assert job.name == "ikl-at-digits"
    assert part(checked, "fingerprint") == job.fingerprint
    assert json.loads(part(checked, "whole")) == job.recipe
    words = shlex.split(part(checked, "command").replace("\\\n", " "))
    overrides = words[3 : words.index("--priority")]
    assert fingerprint(resolve(words[2], parse_overrides(overrides))) == job.fingerprint
    sent_by_curl = shlex.split(part(checked, "curl").replace("\\\n", " "))
    request = JobRequest.model_validate_json(sent_by_curl[sent_by_curl.index("-d") + 1])
    assert (request.priority, request.gpus, request.webhook) == (job.priority, job.gpus, job.webhook) == (
        -5, 2, "https://example.org/it's?a=b&c",
    )  # fmt: skip
    again = browser.http.post("/api/v1/jobs", json=request.model_dump(mode="json")).json()
    assert again["fingerprint"] == job.fingerprint
    [judge] = jobs.children(browser.db, job.id)
    assert (judge.recipe["images"], judge.recipe["curve"], judge.name) == (
        10,
        [0.1, 0.15],
        "autoattack-digits-linf",
    )
    assert again["then"][0]["recipe"] | {"model": 0} == judge.recipe | {"model": 0}


def test_an_evaluation_is_given_its_model_from_a_list(on_both: Browser) -> None:
    browser = on_both
    other = jobs.create(browser.db, resolve("pgd-at-cifar10-resnet-18", {}), name="other")
    job = finished(browser, "natural-digits")
    page = browser.page("/submit?recipe=autoattack-digits-linf")
    assert f'<option value="{job.id}">natural-digits, Handwritten digits, clean 95.00 %' in page
    assert page.index(job.id) < page.index(other.id)  # of this data set, so first
    assert "Still to say" in page
    assert faults(page) == {}  # nobody has typed anything
    unsaid = browser.send("/submit?recipe=autoattack-digits-linf", typed(page), 422)
    assert faults(unsaid) == {"model.job.job": "is missing"}
    gone = browser.send("/submit?recipe=autoattack-digits-linf", typed(page, **{"model.job.job": "0" * 12}), 422)
    assert faults(gone)["model.job.job"].startswith("there is no job")


def test_the_best_of_a_board_end_an_evaluation_early(browser: Browser) -> None:
    page = browser.page("/submit?recipe=autoattack-cifar10-linf")
    sent = typed(
        page, **{"model.is": "zoo", "model.zoo.zoo": "cifar10/Linf/Wang2023Better_WRN-28-10", "job:top_k": "3"}
    )
    checked = browser.send("/submit/check?recipe=autoattack-cifar10-linf", sent, 200)
    job = browser.submit(sent, "?recipe=autoattack-cifar10-linf")
    assert json.loads(part(checked, "whole")) == job.recipe
    twice = typed(browser.page("/submit?recipe=autoattack-cifar10-linf"), **{"stop_below": "0.5"})
    both = browser.send("/submit?recipe=autoattack-cifar10-linf", {**sent, **{"stop_below": ["0.5"]}}, 422)
    assert twice["stop_below"] == ["0.5"]
    assert "stop_below 0.5 already" in faults(both)["job:top_k"]


def test_what_was_asked_before_and_what_it_would_wait_for_is_said(on_both: Browser) -> None:
    browser = on_both
    job = finished(browser, "natural-digits")
    page = browser.page("/submit?recipe=natural-digits")
    assert f'href="/jobs/{job.id}"' in page
    assert "no worker is alive" in page
    registry.arrive(browser.db, WORKER)
    page = browser.page("/submit?recipe=natural-digits&seed=1")
    assert "It would wait" not in page
    assert job.id not in page
    many = browser.send("/submit/check?recipe=natural-digits", typed(page, **{"job:gpus": "8"}), 200)
    assert "no living worker has 8 GPUs" in many


# --- what is wrong ----------------------------------------------------------------------------------------


def test_faults_stand_at_their_fields_and_nothing_typed_is_lost(browser: Browser) -> None:
    page = browser.page("/submit?recipe=trades-digits")
    wrong = typed(
        page,
        **{"epochs": "", "threat.eps": "8", "objective.trades.beta": "much", "batch_size": "1.5"},
        **{"job:priority": "1000", "job:webhook": "http://localhost", "then:autoattack-digits-linf?": "true"},
        **{"then:autoattack-digits-linf.changes": "images=0 luck", "optimizer.schedule.kind": "steps"},
        **{"optimizer.schedule.steps.epochs": "3, 5", "validation?": "true", "validation.images": "7"},
    )
    back = browser.send("/submit?recipe=trades-digits", wrong, 422)
    found = faults(back)
    assert found.keys() == {
        *("epochs", "threat", "objective.trades.beta", "batch_size", "job:priority"),
        "then:autoattack-digits-linf",
    }
    assert found["epochs"] == "is missing"
    assert found["batch_size"] == "must be a whole number, found 1.5"
    assert "did you mean '8/255'?" in found["threat"]
    again = Sending(back).sent
    for name, values in wrong.items():
        assert [value.strip() for value in again[name]] == values, name
    assert jobs.recent(browser.db) == []


def test_what_only_the_service_can_refuse_comes_back_too(browser: Browser) -> None:
    page = browser.page("/submit?recipe=natural-digits")
    hook = browser.send("/submit?recipe=natural-digits", typed(page, **{"job:webhook": "http://10.0.0.1/"}), 422)
    assert "https" in faults(hook)["job:webhook"]
    queue = browser.send("/submit?recipe=natural-digits", typed(page, **{"job:queue": "luck"}), 422)
    assert faults(queue)["job:queue"].startswith("there is no queue 'luck'")
    natural = typed(page, **{"attack?": "true"})
    assert "natural training takes no attack" in browser.send("/submit?recipe=natural-digits", natural, 422)


def test_too_many_jobs_and_too_many_bytes_are_sentences_on_the_form(settings: Settings) -> None:
    browser = Browser(settings, max_queued=1)
    sent = typed(browser.page("/submit?recipe=natural-digits"), epochs="3")
    browser.submit(sent, "?recipe=natural-digits")
    full = browser.send("/submit?recipe=natural-digits", sent, 429)
    assert "1 of your jobs wait already and 1 may" in full
    assert Sending(full).sent["epochs"] == ["3"]
    browser.sign_in("submit", max_storage=1)
    with writing(browser.db) as session:
        key = session.scalars(select(ApiKey)).one()
        session.add(Artifact(sha256="a" * 64, size=5, key_id=key.id, created_at=0.0))
    quota = browser.send("/submit?recipe=natural-digits", sent, 413)
    assert "of the 1 bytes that it may" in quota
    browser.db.dispose()


@pytest.mark.parametrize("place", ["epochs", "threat.eps", "dataset", "job:webhook", "model.kind", "optimizer.lr"])
def test_hostile_values_stay_text(browser: Browser, place: str) -> None:
    page = browser.page("/submit?recipe=ikl-at-digits")
    for action in ("/submit/check", "/submit"):
        back = browser.send(
            f"{action}?recipe=ikl-at-digits", typed(page, **{place: HOSTILE}), 200 if "check" in action else 422
        )
        assert "<script>alert" not in back
        assert "<img" not in back
    assert "<script>alert" not in browser.page(f"/submit?search={HOSTILE}")


def test_unreadable_forms_are_refused(browser: Browser) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", **HTML}
    for body, status in (
        (b"epochs=" + b"1" * 2**20, 413),
        (b"&".join(b"a=1" for _ in range(5000)), 400),
        (b"\xff\xfe=\x00", 400),
        (b'epochs=%ED%A0%80&seed=%00&threat.eps="%5Cud800"', 422),
        (b"{}", 422),
        (b"", 422),
    ):
        answer = browser.http.post("/submit?recipe=ikl-at-digits", content=body, headers=form)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), body[
            :50
        ]
    assert browser.http.post("/submit?recipe=luck", content=b"", headers=form).status_code == 422


ODD = [
    *(
        "",
        "nan",
        "-inf",
        "1e999",
        "-1",
        "0x10",
        "null",
        "true",
        "[]",
        "{}",
        '[{"kind": "x"}]',
        "[[1]]",
        "[NaN]",
        "8/0",
    ),
    *("\x00", "\u202e", '"\\ud800"', "[" * 5000, "1" * 5000, '{"a":' * 3000, "x" * 10_000, "a\nb", "%", HOSTILE),
]


@pytest.mark.parametrize(
    "name", ["dm-at-cifar10-wrn-28-10-1m", "autoattack-digits-linf", "corruptions-digits", ""]
)
def test_whatever_is_typed_gets_an_answer(browser: Browser, name: str) -> None:
    chance = random.Random(1)
    query = f"?recipe={name}" if name else ""
    sent = Sending(browser.page(f"/submit{query}" if name else "/submit/upload")).sent
    for _ in range(15):
        some = chance.sample(sorted({*sent, "awp?", "second_view?", "model.job.preprocessing?", "entry"}), 6)
        odd = {field: [chance.choice(ODD) for _ in range(chance.randint(1, 2))] for field in some}
        assert browser.http.post(f"/submit{query}", data={**sent, **odd}).status_code in {303, 422}, odd


def test_htmx_gets_the_panel_alone(browser: Browser) -> None:
    sent = typed(browser.page("/submit?recipe=ikl-at-digits"), epochs="0")
    answer = browser.http.post("/submit/check?recipe=ikl-at-digits", data=sent, headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert answer.text.strip().startswith('<section id="outcome"')
    assert 'data-field="epochs"' in answer.text


# --- who may ----------------------------------------------------------------------------------------------


def test_submitting_needs_the_scope(settings: Settings) -> None:
    browser = Browser(settings, anonymous="read")
    for path in ("/submit", "/submit?recipe=ikl-at-digits", "/submit/upload"):
        answer = browser.http.get(path)
        assert (answer.status_code, answer.headers["location"][:13]) == (303, "/signin?next=")
    assert browser.http.post("/submit?recipe=natural-digits", data={}).status_code == 401
    browser.sign_in("read")
    assert browser.http.get("/submit").status_code == 403
    assert browser.http.post("/submit/check?recipe=natural-digits", data={}).status_code == 403
    browser.sign_in("submit")
    page = browser.page("/submit?recipe=natural-digits")
    assert "Authorization: Bearer $DKLBENCH_KEY" in part(page, "curl")
    elsewhere = {"Origin": "https://evil.example"}
    answer = browser.http.post("/submit?recipe=natural-digits", data=typed(page), headers=elsewhere)
    assert (answer.status_code, jobs.recent(browser.db)) == (403, [])
    assert browser.submit(typed(page), "?recipe=natural-digits").key_id is not None
    browser.db.dispose()


# --- uploads ----------------------------------------------------------------------------------------------


def test_an_upload_is_taken_in(browser: Browser) -> None:
    content = b"weights"
    sha256 = hashlib.sha256(content).hexdigest()
    about = {"name": HOSTILE, "size": len(content), "sha256": sha256}
    upload = browser.http.post("/api/v1/uploads", json=about).json()
    begun = browser.page("/submit/upload")
    assert "0 bytes of 7 bytes have arrived" in begun
    browser.http.patch(f"/api/v1/uploads/{upload['id']}", content=content, headers={"Upload-Offset": "0"})

    page = browser.page(f"/submit/upload?upload={sha256}")
    assert "have arrived" not in page
    assert "<script>alert" not in page
    unsaid = browser.send("/submit", typed(page), 422)
    assert faults(unsaid) == {"dataset": "is missing"}
    then = {"then:autoattack-digits-linf?": "true", "then:autoattack-digits-linf.changes": ""}
    sent = typed(unsaid, dataset="digits", **{"model.kind": "cnn", "model.cnn.width": "8"}, **then)
    assert sent["upload"] == [sha256]
    checked = browser.send("/submit/check", sent, 200)
    assert shlex.split(part(checked, "command").replace("\\\n", " ")) == [
        *("dklbench", "evaluate", "FILE", "--recipe", "autoattack-digits-linf", "--dataset", "digits"),
        *("--architecture", '{"kind": "cnn", "width": 8}', "--url", "http://testserver"),
    ]
    job = browser.submit(sent, "")
    assert (job.kind, job.name, job.recipe["upload"], job.dataset) == ("import", None, sha256, "digits")
    assert [child.name for child in jobs.children(browser.db, job.id)] == ["autoattack-digits-linf"]


def test_an_upload_that_is_not_there_is_a_fault(browser: Browser) -> None:
    page = browser.page(f"/submit/upload?upload={'0' * 64}")
    back = browser.send("/submit", typed(page, dataset="digits"), 422)
    assert "no file with sha256" in faults(back)["upload"]
    assert Sending(back).sent["upload"] == ["0" * 64]
