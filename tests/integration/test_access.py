"""Who gets in: keys, scopes, sessions, other sites, host names, and how often and how much one may ask."""

import atexit
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import uvicorn
from fastapi.routing import RouteContext, iter_route_contexts
from itsdangerous import TimestampSigner
from sqlalchemy import Engine
from starlette.testclient import TestClient

from service import audit, jobs, keys, sessions
from service.app import MAX_BODY_BYTES, create_app
from service.callers import COMMAND_LINE, SCOPES, Caller, Scope
from service.cli import app as command_line
from service.client import Client, ServiceError
from service.db import connect, migrate
from service.embedded import StartError, embedded
from service.keys import KeyRequest
from service.openapi import scopes_of
from service.settings import Settings
from service.settings import settings as process_settings

HEALTH = {"/livez", "/readyz"}
"""No key, no limit, any name: orchestrators ask them."""
HTML = {"Accept": "text/html"}
ABSENT = "0123456789ab"


class Service:
    """An app in this process, as a browser on this machine or anybody with a key meets it."""

    def __init__(self, settings: Settings, **changes: object) -> None:
        self.settings = settings.model_copy(update={"anonymous": "", "allowed_hosts": (), **changes})
        if not self.settings.database_url:
            self.settings.data_dir.mkdir(parents=True, exist_ok=True)
            shutil.copy(_migrated(), self.settings.data_dir / "ledger.sqlite")
        self.app = create_app(self.settings)
        self.db: Engine = self.app.state.dkl.db
        migrate(self.db)  # nothing to do in the copy

    def client(self, key: str = "", address: str = "10.0.0.9", **headers: str) -> TestClient:
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        return TestClient(
            self.app, base_url="http://127.0.0.1:8000", headers={**bearer, **headers}, follow_redirects=False,
            client=(address, 50000),
        )  # fmt: skip

    def key(self, scope: str, name: str = "anna") -> str:
        return keys.create(self.db, self.settings, KeyRequest(name=name, scope=scope), caller=COMMAND_LINE)[1]  # type: ignore[arg-type]

    def signed_in(self, scope: str, **options: str) -> TestClient:
        browser = self.client(**options)
        assert browser.post("/signin", data={"key": self.key(scope)}).status_code == 303
        return browser

    def audited(self) -> list[str]:
        return [entry.action for entry in audit.recent(self.db)]


@cache
def _migrated() -> Path:
    """An empty database that is copied: quicker than migrating one per test."""
    path = Path(tempfile.mkdtemp()) / "ledger.sqlite"
    db = connect(f"sqlite:///{path}")
    migrate(db)
    db.dispose()
    atexit.register(shutil.rmtree, path.parent)
    return path


Make = Callable[..., Service]


@pytest.fixture
def make(settings: Settings) -> Iterator[Make]:
    made: list[Service] = []

    def start(**changes: object) -> Service:
        made.append(Service(settings, **changes))
        return made[-1]

    yield start
    for service in made:
        service.db.dispose()


@pytest.fixture
def service(make: Make) -> Service:
    return make()


@pytest.fixture
def on_both(make: Make, database_url: str) -> Service:
    return make(database_url=database_url)


def routes(service: Service) -> list[RouteContext]:
    return [route for route in iter_route_contexts(service.app.routes) if route.path != "/static"]


# --- every route is behind the door -----------------------------------------------------------------------


def test_every_route_asks_for_exactly_one_scope(service: Service) -> None:
    found = {f"{sorted(route.methods or ())} {route.path}": scopes_of(route) for route in routes(service)}
    without = {path for path, scopes in found.items() if len(scopes) != 1}
    assert {path.split("] ")[1] for path in without} <= HEALTH, "use service.access.needs in them"
    assert len(found) - len(without) > 20


_ENTRY = ("", "/model_info", "/row.csv", "/row.tex", "/citation.bib", "/flags.csv")
OPEN_PATHS = {
    *("/", "/leaderboard/scatter.svg", "/leaderboard/best.svg"),
    *("/entries/{entry}", "/entries/{entry}/radii.svg", "/entries/{entry}/pictures/{row}/{which}.png"),
    *("/compare", "/compare/curves.svg"),
    *("/distillation", "/distillation.svg"),
    *("/studies", "/studies/{name}", "/studies/{name}.svg", "/api/v1/studies", "/api/v1/studies/{name}"),
    *("/docs", "/docs/{name:path}"),
    *("/signin", "/signout", "/api/docs", "/api/openapi.json"),
    *("/api/v1/leaderboard", "/api/v1/leaderboard.csv", "/api/v1/leaderboard.tex", "/api/v1/model_info"),
    *(f"/api/v1/entries/{{entry}}{part}" for part in _ENTRY),
    *("/api/v1/compare", "/api/v1/distillation", "/api/v1/distillation.csv"),
    *("/api/v1/recipes", "/api/v1/recipes/{name}"),
}
"""What whoever may see the leaderboard may see, or anybody."""


def test_what_needs_which_scope(service: Service) -> None:
    """Those that anybody may reach are listed here; everything else needs read at least."""
    open_paths = {route.path for route in routes(service) if scopes_of(route) in (["nothing"], ["leaderboard"])}
    assert open_paths == OPEN_PATHS
    writing = {route.path: scopes_of(route) for route in routes(service) if "GET" not in (route.methods or ())}
    assert {path for path, scopes in writing.items() if scopes in (["read"], ["leaderboard"])} == set()


@pytest.mark.parametrize("mine", SCOPES)
def test_scopes_hold_on_every_route(service: Service, mine: Scope) -> None:
    """With each scope, every route answers 401 or 403 exactly where it needs more."""
    client = service.client(service.key(mine)) if mine in ("read", "submit", "admin") else None
    if client is None:
        service = Service(service.settings, anonymous=mine)
        client = service.client()
    for route in routes(service):
        for scope in scopes_of(route):
            method = next(iter(route.methods or ()))
            if route.path in ("/signin", "/signout") or "/events" in (route.path or ""):
                continue
            path = re.sub(r"\{[^}]*\}", ABSENT, route.path or "")
            answer = client.request(method, path)
            allowed = SCOPES.index(mine) >= SCOPES.index(scope)
            assert (answer.status_code not in (401, 403)) == allowed, (method, path, scope, answer.text[:300])
            if not allowed:
                assert scope in answer.json()["detail"]
    service.db.dispose()


@pytest.mark.parametrize(
    ("anonymous", "board", "jobs_list", "submission"),
    [
        ("nothing", 401, 401, 401),
        ("leaderboard", 200, 401, 401),
        ("read", 200, 200, 401),
        ("submit", 200, 200, 422),
        ("", 200, 401, 401),  # not embedded, or not on this machine alone
    ],
)
def test_what_one_may_do_without_a_key(
    make: Make, anonymous: str, board: int, jobs_list: int, submission: int
) -> None:
    client = make(anonymous=anonymous).client()
    assert client.get("/api/v1/leaderboard").status_code == board
    assert client.get("/api/v1/jobs").status_code == jobs_list
    assert client.post("/api/v1/jobs", json={}).status_code == submission
    assert client.get("/api/v1/keys").status_code == 401


# --- keys that do not fit ---------------------------------------------------------------------------------


def test_without_a_key_the_answer_says_what_to_do(service: Service) -> None:
    answer = service.client().post("/api/v1/jobs", json={"name": "natural-digits"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json() == {
        "detail": "this needs an API key with scope submit: send it as Authorization: Bearer KEY, or sign in at "
        "/signin; whoever runs the service makes one with: dklbench keys create",
        "errors": [],
    }


def test_wrong_keys_are_refused_even_where_none_is_needed(on_both: Service) -> None:
    key = on_both.key("read")
    revoked = on_both.key("read", "old")
    keys.revoke(on_both.db, revoked.split("_")[1], caller=COMMAND_LINE)
    for wrong, word in (("x", "not an API key"), (key[:-9] + "0_" + key[-8:], "not"), (revoked, "was revoked")):
        answer = on_both.client(wrong).get("/api/v1/leaderboard")
        assert answer.status_code == 401
        assert word in answer.json()["detail"]
        assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert on_both.client(key).get("/api/v1/jobs").status_code == 200
    assert on_both.audited().count("key.refuse") == 3
    assert key not in str([entry.detail for entry in audit.recent(on_both.db)])


def test_a_scope_that_does_not_suffice_is_named(service: Service) -> None:
    answer = service.client(service.key("read")).post("/api/v1/jobs", json={"name": "natural-digits"})
    assert answer.status_code == 403
    assert re.search(
        r"needs an API key with scope submit; anna \(\w{12}\) has scope read", answer.json()["detail"]
    )
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="submit"'


def test_a_job_is_hidden_from_those_who_may_not_read_it(service: Service) -> None:
    """Not even whether it exists."""
    for path in ("", "/events", "/evidence", "/checkpoint"):
        assert service.client().get(f"/api/v1/jobs/{ABSENT}{path}").status_code == 401
        assert service.client(service.key("read")).get(f"/api/v1/jobs/{ABSENT}{path}").status_code == 404


def test_only_its_owner_ends_a_job(on_both: Service) -> None:
    owner, other, admin = (on_both.client(on_both.key(scope)) for scope in ("submit", "submit", "admin"))
    for ender, status in ((owner, 200), (other, 403), (admin, 200)):
        job_id = owner.post("/api/v1/jobs", json={"name": "natural-digits"}).json()["id"]
        answer = ender.post(f"/api/v1/jobs/{job_id}/cancel")
        assert answer.status_code == status, answer.text
    assert "another key" in other.post(f"/api/v1/jobs/{job_id}/cancel").json()["detail"]


def test_what_was_submitted_without_a_key_is_everybodys(make: Make) -> None:
    service = make(anonymous="submit")
    job_id = service.client().post("/api/v1/jobs", json={"name": "natural-digits"}).json()["id"]
    assert service.client(service.key("submit")).post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200


def test_the_history_names_who_asked(service: Service) -> None:
    key = service.key("submit")
    job_id = service.client(key).post("/api/v1/jobs", json={"name": "natural-digits"}).json()["id"]
    created = next(entry for entry in audit.recent(service.db) if entry.action == "job.create")
    assert (created.actor, created.object) == (f"anna ({key.split('_')[1]})", job_id)
    assert created.address == "10.0.0.9"
    assert created.request_id
    assert jobs.get(service.db, job_id).key_id == key.split("_")[1]


# --- sessions ---------------------------------------------------------------------------------------------


def test_a_browser_signs_in_and_comes_back_to_where_it_was(on_both: Service) -> None:
    browser = on_both.client(**HTML)
    refused = browser.get("/jobs?status=failed")
    assert refused.status_code == 303
    assert refused.headers["location"] == "/signin?next=%2Fjobs%3Fstatus%3Dfailed"
    form = browser.get(refused.headers["location"])
    assert form.status_code == 200
    assert 'value="/jobs?status=failed"' in form.text
    entered = browser.post("/signin", data={"key": f" {on_both.key('read')}\n", "next": "/jobs?status=failed"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/jobs?status=failed")
    assert browser.get("/jobs").status_code == 200
    assert browser.get("/api/v1/jobs").status_code == 200
    assert browser.get("/keys").status_code == 403
    browser.post("/signout")
    assert browser.get("/jobs").status_code == 303


def test_the_cookie_is_signed_and_kept_from_scripts_and_other_sites(service: Service) -> None:
    key = service.key("read")
    cookie = service.client().post("/signin", data={"key": key}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=2592000"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert key[17:60] not in cookie


def test_over_https_the_cookie_stays_there(make: Make) -> None:
    service = make(url="https://bench.example.org")
    assert "; Secure" in service.client().post("/signin", data={"key": service.key("read")}).headers["set-cookie"]


def test_a_revoked_key_signs_its_browsers_out(service: Service) -> None:
    browser = service.signed_in("read")
    assert browser.get("/api/v1/jobs").status_code == 200
    keys.revoke(service.db, keys.every(service.db)[0].id, caller=COMMAND_LINE)
    assert browser.get("/api/v1/jobs").status_code == 401
    assert browser.get("/api/v1/leaderboard").status_code == 200  # nobody, but not refused


@pytest.mark.parametrize("forgery", ["plain", "other secret", "old", "not text"])
def test_forged_cookies_are_nobodys(service: Service, forgery: str) -> None:
    key_id = service.key("admin").split("_")[1]
    genuine = service.signed_in("admin").cookies[sessions.COOKIE]
    cookie = {
        "plain": key_id,
        "other secret": TimestampSigner("guess", salt=sessions.COOKIE, key_derivation="hmac")
        .sign(key_id)
        .decode(),
        "old": ".".join((genuine.split(".")[0], "AAAAAA", genuine.split(".")[2])),
        "not text": "%ff.\x7f",
    }[forgery]
    browser = service.client(Cookie=f"{sessions.COOKIE}={cookie}")
    assert browser.get("/api/v1/keys").status_code == 401
    assert browser.get("/").status_code == 200


def test_a_session_ends_after_a_month(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = service.signed_in("read")
    assert browser.get("/api/v1/jobs").status_code == 200
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 86400)
    cookie = browser.cookies[sessions.COOKIE]
    assert service.client(Cookie=f"{sessions.COOKIE}={cookie}").get("/api/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "",
        "x",
    ],
)
def test_signing_in_leads_nowhere_else(service: Service, place: str) -> None:
    answer = service.client().post("/signin", data={"key": service.key("read"), "next": place})
    assert answer.headers["location"] == "/"
    assert 'name="next" value="/"' in service.client(**HTML).get("/signin", params={"next": place}).text


def test_a_wrong_key_is_told_and_not_repeated(service: Service) -> None:
    answer = service.client(**HTML).post("/signin", data={"key": "dkl_typo&lt;"})
    assert answer.status_code == 401
    assert "this is not an API key" in answer.text
    assert "dkl_typo" not in answer.text
    assert sessions.COOKIE not in answer.headers.get("set-cookie", "")


def test_a_form_that_is_none(service: Service) -> None:
    assert service.client().post("/signin", content=b"\xff\xfe=%00").status_code == 400
    assert service.client().post("/signin", content="&".join(f"a{i}=1" for i in range(99))).status_code == 400


def test_a_page_that_reloads_itself_is_told_and_not_sent_away(service: Service) -> None:
    assert service.client(**{"Accept": "text/html", "HX-Request": "true"}).get("/jobs").status_code == 401


# --- other sites ------------------------------------------------------------------------------------------

ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:9000"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://["},
]
HERE = [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_other_sites_change_nothing(make: Make, headers: dict[str, str]) -> None:
    service = make(anonymous="submit")
    for browser in (service.client(), service.signed_in("admin")):
        for path in ("/api/v1/jobs", "/signin", "/signout", "/keys", "/api/v1/keys"):
            answer = browser.post(path, headers=headers)
            assert answer.status_code == 403, path
            assert "another site asked for this" in answer.json()["detail"]
        assert browser.get("/api/v1/jobs", headers=headers).status_code == 200
    assert jobs.recent(service.db) == []


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_a_key_in_the_header_comes_from_no_browser(service: Service, headers: dict[str, str]) -> None:
    client = service.client(service.key("submit"))
    assert client.post("/api/v1/jobs", json={"name": "natural-digits"}, headers=headers).status_code == 201


@pytest.mark.parametrize("headers", HERE)
def test_our_own_pages_may(make: Make, headers: dict[str, str]) -> None:
    client = make(anonymous="submit").client()
    assert client.post("/api/v1/jobs", json={"name": "natural-digits"}, headers=headers).status_code == 201


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5:8000", 200),  # an address cannot be rebound
        ("bench.example.org", 200),  # of the settings' url
        ("a.lab.example.org", 200),
        ("evil.example", 421),
        ("lab.example.org", 421),
        ("evil-lab.example.org", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("bench.example.org@evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_names_of_the_service(make: Make, host: str, status: int) -> None:
    service = make(url="https://bench.example.org:8443/", allowed_hosts=("*.lab.example.org",))
    answer = service.client(Host=host).get("/api/v1/leaderboard")
    assert answer.status_code == status
    if status == 421:
        assert "DKLBENCH_ALLOWED_HOSTS" in answer.json()["detail"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_health_is_answered_under_any_name_and_without_limit(make: Make) -> None:
    service = make(anonymous="nothing", requests_per_minute=1)
    paths = HEALTH & {route.path for route in routes(service)}
    assert paths
    for path in [*paths] * 3:
        assert service.client(Host="service.internal").get(path).status_code in (200, 503)


# --- how often --------------------------------------------------------------------------------------------


def test_too_many_requests_have_to_wait(make: Make) -> None:
    service = make(requests_per_minute=3)
    stranger = service.client()
    assert [stranger.get("/api/v1/leaderboard").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = stranger.get("/api/v1/leaderboard")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["detail"] == f"too many requests; try again in {refused.headers['Retry-After']} s"
    assert stranger.get("/static/dkl.css").status_code == 200
    assert service.client(address="10.0.0.10").get("/api/v1/leaderboard").status_code == 200
    anna, bert = (service.client(service.key("read", name)) for name in ("anna", "bert"))
    assert [anna.get("/api/v1/jobs").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert bert.get("/api/v1/jobs").status_code == 200  # from the same address, with a count of its own


def test_wrong_keys_are_counted_and_right_ones_pass(service: Service) -> None:
    guesses = [service.client(keys._new()).get("/api/v1/jobs").status_code for _ in range(12)]
    assert guesses == [401] * 10 + [429] * 2
    assert service.client().post("/signin", data={"key": "guess"}).status_code == 429
    assert service.client(keys._new(), address="10.0.0.10").get("/api/v1/jobs").status_code == 401
    assert service.client(service.key("read")).get("/api/v1/jobs").status_code == 200


def test_nobody_fills_the_audit_log_from_outside(service: Service) -> None:
    for number in range(80):
        service.client("guess", address=f"10.0.1.{number}").get("/api/v1/jobs")
    assert service.audited().count("key.refuse") == 60


def test_without_redis_the_service_answers(make: Make) -> None:
    service = make(broker_url="redis://127.0.0.1:1/0", requests_per_minute=2)
    assert [service.client().get("/api/v1/leaderboard").status_code for _ in range(3)] == [200, 200, 429]


# --- how much ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/keys"])
def test_large_bodies_are_refused(service: Service, announced: bool, path: str) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    content = body if announced else (body[i : i + 2**16] for i in range(0, len(body), 2**16))
    answer = service.client(service.key("admin")).post(
        path, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("the body is larger than 1048576 bytes")
    assert "Content-Security-Policy" in answer.headers


def test_a_form_is_limited_too(service: Service) -> None:
    pieces = (b"a" * 2**16 for _ in range(17))
    answer = service.client(**HTML).post("/signin", content=pieces)
    assert answer.status_code == 413
    assert "the body is larger" in answer.text


def test_a_whole_mebibyte_is_taken(service: Service) -> None:
    client = service.client(service.key("submit"), **{"Content-Type": "application/json"})
    document = b'{"name": "natural-digits"}'
    body = document + b" " * (MAX_BODY_BYTES - len(document))
    assert client.post("/api/v1/jobs", content=body).status_code == 201


# --- the admin's interface --------------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked(on_both: Service) -> None:
    admin = on_both.client(on_both.key("admin", "root"))
    body = {"name": "anna", "scope": "submit", "max_running": 2, "max_storage": 2**40}
    made = admin.post("/api/v1/keys", json=body)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    new = made.json()
    assert {name: new[name] for name in body} == body
    assert on_both.client(new["key"]).get("/api/v1/jobs").status_code == 200
    listed = admin.get("/api/v1/keys").json()
    assert {row["name"] for row in listed} == {"root", "anna"}
    assert all("key" not in row and "digest" not in row for row in listed)
    assert admin.post(f"/api/v1/keys/{new['id']}/revoke").json()["revoked_at"] > 0
    assert on_both.client(new["key"]).get("/api/v1/jobs").status_code == 401
    assert admin.post("/api/v1/keys/nobody/revoke").status_code == 404
    assert admin.post("/api/v1/keys", json={"name": "x", "scope": "root"}).status_code == 422
    entries = admin.get("/api/v1/audit", params={"limit": 3}).json()
    assert [entry["action"] for entry in entries] == ["key.refuse", "key.revoke", "key.create"]
    assert [entry["id"] for entry in admin.get("/api/v1/audit", params={"before": entries[0]["id"]}).json()] == [
        entry["id"] for entry in entries[1:]
    ] + [1]
    assert new["key"] not in admin.get("/api/v1/audit").text


def test_the_pages_of_the_admin(service: Service) -> None:
    admin = service.signed_in("admin", **HTML)
    made = admin.post("/keys", data={"name": "<b>ci", "scope": "submit", "max_running": "", "max_storage": "0.5"})
    assert made.status_code == 200
    assert made.headers["Cache-Control"] == "no-store"
    key = re.search(r"dkl_[\w-]{65}", made.text)
    assert key is not None
    assert keys.recognised(service.db, service.settings, key[0]).max_storage == 2**29
    again = admin.get("/keys")
    assert key[0] not in again.text
    assert "&lt;b&gt;ci" in again.text
    assert "<b>ci" not in again.text
    assert admin.get("/audit").text.count("key.create") == 2
    bad = admin.post("/keys", data={"name": "x", "scope": "submit", "max_running": "0", "max_storage": "much"})
    assert bad.status_code == 422
    assert "max_running: " in bad.text
    assert "max_storage: " in bad.text


def test_the_audit_page_turns(service: Service) -> None:
    for number in range(103):
        keys.create(service.db, service.settings, KeyRequest(name=f"n{number}", scope="read"), caller=COMMAND_LINE)
    admin = service.signed_in("admin", **HTML)
    newest = admin.get("/audit").text
    assert "n102" in newest
    assert newest.count("data-event=") == 100
    older = admin.get(re.findall(r'href="(/audit\?before=\d+)"', newest)[0]).text
    assert re.findall(r"name (n\d+)", older) == ["n3", "n2", "n1", "n0"]


def test_headers(service: Service) -> None:
    for path in ("/", "/api/v1/recipes", "/nothing", "/static/dkl.css", "/signin"):
        headers = service.client().get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "camera=()" in headers["Permissions-Policy"]
    assert service.client().get("/").headers["Cache-Control"] == "private, no-cache"
    assert service.signed_in("admin").get("/keys").headers["Cache-Control"] == "no-store"


def test_the_document_says_what_each_operation_needs(service: Service) -> None:
    document = service.client().get("/api/openapi.json").json()
    assert document["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        if not path.startswith("/api/v1/"):
            continue
        for method, operation in operations.items():
            here = f"{method} {path}"
            assert {"401", "403", "413", "421", "429", "503"} <= operation["responses"].keys(), here
            assert {"API key": []} in operation["security"], here
            assert ({} in operation["security"]) == (operation["x-scope"] == "leaderboard"), here
            for status, answer in operation["responses"].items():
                if status >= "400":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, here


# --- on the command line ----------------------------------------------------------------------------------


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    process_settings.cache_clear()
    yield monkeypatch
    process_settings.cache_clear()


def dklbench(*arguments: str) -> None:
    command_line(arguments, standalone_mode=False)


def test_keys_on_the_command_line(
    settings: Settings, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dklbench("keys", "list")
    assert "There are no keys" in capsys.readouterr().out
    dklbench("keys", "create", "anna [b]", "--scope", "admin", "--max-storage", "0.5")
    printed = capsys.readouterr()
    db = connect(settings.database)
    row = keys.recognised(db, settings, printed.out.strip())  # nothing else goes to standard output
    assert (row.name, row.scope, row.max_storage, row.created_by) == ("anna [b]", "admin", 2**29, "command line")
    assert row.id in printed.err
    assert printed.out.strip() not in printed.err
    dklbench("keys", "list")
    listed = capsys.readouterr().out
    assert row.id in listed
    assert "anna [b]" in listed
    dklbench("keys", "revoke", row.id)
    assert not keys.somebody_may(db, "admin")
    with pytest.raises(ValueError, match="there is no key 'nobody'"):
        dklbench("keys", "revoke", "nobody")
    with pytest.raises(ValueError, match="scope: "):
        dklbench("keys", "create", "anna", "--scope", "root")
    db.dispose()


def test_others_are_let_in_only_with_a_key(settings: Settings, environment: pytest.MonkeyPatch) -> None:
    reachable = settings.model_copy(update={"host": "0.0.0.0", "port": 0, "anonymous": "submit"})
    with pytest.raises(StartError, match="dklbench keys create NAME --scope admin"), embedded(reachable):
        pass
    db = connect(settings.database)
    keys.create(db, settings, KeyRequest(name="anna", scope="read"), caller=COMMAND_LINE)
    with pytest.raises(StartError, match="it has no API key yet"), embedded(reachable):
        pass
    keys.create(db, settings, KeyRequest(name="anna", scope="submit"), caller=COMMAND_LINE)
    db.dispose()
    with embedded(reachable.model_copy(update={"anonymous": ""})) as server:
        assert server.config.app.state.dkl.settings.anonymous == "leaderboard"


@pytest.mark.parametrize(
    ("changes", "scope"),
    [
        ({}, "submit"),
        ({"host": "localhost"}, "submit"),
        ({"anonymous": "nothing"}, "nothing"),
        ({"allowed_hosts": ("bench.example.org",)}, "leaderboard"),  # behind a proxy, evidently
    ],
)
def test_on_one_machine_no_key_is_needed(settings: Settings, changes: dict, scope: str) -> None:
    alone = settings.model_copy(update={"port": 0, "anonymous": "", "allowed_hosts": (), **changes})
    with embedded(alone) as server:
        assert server.config.app.state.dkl.settings.anonymous == scope


def test_the_client_sends_its_key_and_says_which_one_it_needs(settings: Settings, tmp_path: Path) -> None:
    service = Service(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServiceError, match=r"scope read.*DKLBENCH_KEY"):
            client.jobs()
        with Client(url, service.key("read")) as client:
            assert client.jobs() == []
            with pytest.raises(ServiceError, match=r"scope submit.*has scope read; .*DKLBENCH_KEY"):
                client.submit("natural-digits")
        server.should_exit = True
        thread.join(10)


def test_a_caller_may_what_its_scope_includes() -> None:
    for mine in SCOPES:
        caller = Caller("anna", mine)
        assert [caller.may(scope) for scope in SCOPES] == [
            SCOPES.index(mine) >= SCOPES.index(scope) for scope in SCOPES
        ]
