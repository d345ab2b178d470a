"""A real server on a free port, a headless Chromium, and pages that must stay clean."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import story
import uvicorn
from databases import copy_sqlite
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from service import claims, jobs
from service.app import create_app
from service.moves import TERMINAL
from service.settings import Settings
from service.tables import Job

CHROMIUM = os.environ.get("DKLBENCH_CHROMIUM", "/usr/bin/chromium")
_ARGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def _serve(folder: Path, template: Path) -> Iterator[story.Site]:
    settings = Settings(
        data_dir=folder,
        broker_url="",
        database_url="",
        device="cpu",
        anonymous="submit",
        requests_per_minute=100_000,
    )
    copy_sqlite(template, settings.database)
    app = create_app(settings)
    state = app.state.dkl
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.started
        yield story.Site(f"http://127.0.0.1:{listener.getsockname()[1]}", state.db, state.artifacts)
        state.streams.close()
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[story.Site]:
    """A service with a short history: two measured models on digits, the published ones, and one failure.

    One of the models was also judged in the other ways: screened, stopped early, audited at several radii.
    """
    serving = _serve(tmp_path_factory.mktemp("site"), sqlite_template)
    site = next(serving)
    natural = story.trained(site.db, "natural-digits", epochs=15, accuracy=0.98)
    robust = story.trained(site.db, "ikl-at-digits")
    story.judged(site.db, natural, clean=0.98, robust=0.07)
    story.judged(site.db, robust, clean=0.95, robust=0.71)
    story.judged(site.db, robust, robust=0.73, overrides={"policy": "screen"}, warnings=(story.WARNING,))
    story.judged(site.db, robust, robust=0.55, overrides={"stop_below": 0.71}, stopped_early=True)
    story.judged(
        site.db, robust, robust=0.65, overrides={"policy": "audited", "threat.eps": 0.1, "curve": [0.02, 0.05]},
        could_still_break=0.04, notes=(story.NOTE,), precision="float16",
    )  # fmt: skip
    broken = jobs.create(site.db, story.resolve("natural-digits", {"seed": 3}), name="natural-digits")
    claims.fail(site.db, story.start(site.db, broken), "loss is nan at epoch 12, batch 40")
    yield site
    assert next(serving, None) is None


@pytest.fixture(scope="module")
def site_of_module(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[story.Site]:
    """A service for one file of tests, which may fill it."""
    yield from _serve(tmp_path_factory.mktemp("site"), sqlite_template)


@pytest.fixture
def empty_site(tmp_path: Path, sqlite_template: Path) -> Iterator[story.Site]:
    yield from _serve(tmp_path, sqlite_template)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: install one or set DKLBENCH_CHROMIUM to its path")
    expect.set_options(timeout=10_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGS)
        yield browser
        browser.close()


NewPage = Callable[..., Page]


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """Opens a page in a context of its own. At the end: nothing was logged, blocked, or fetched elsewhere."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    hosts: set[str] = set()

    def open_page(*, expected: str = "\0", **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in {"error", "warning"} and expected not in message.text
                else None
            ),
        )
        page.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert hosts <= {"127.0.0.1"}


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


@pytest.fixture
def running(site: story.Site) -> Iterator[tuple[Job, claims.Claim]]:
    """A training job in its third epoch of ten."""
    recipe = story.resolve("ikl-at-digits", {"epochs": 10, "seed": 7})
    job = jobs.create(site.db, recipe, name="ikl-at-digits")
    claim = story.start(site.db, job)
    for number in (1, 2):
        claims.append(site.db, claim, story.epoch(number, 10))
    claims.append(site.db, claim, story.progress(2, 10, "epoch 3 of 10"))
    yield job, claim
    if jobs.get(site.db, job.id).status not in TERMINAL:
        claims.fail(site.db, claim, "the test is over")
