"""The page of workers in a browser: what each is at, and who may drain it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import story
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import update

from service import claims, jobs, keys, registry
from service.callers import COMMAND_LINE
from service.db import writing
from service.registry import Description, Use
from service.settings import Settings
from service.tables import Worker

NewPage = Callable[..., Page]
VERSIONS = {"python": "3.11.9", "dkl-bench": "0.1.0", "torch": "2.11.0", "numpy": "2.3.1", "driver": "580.95.05"}
BUSY = Description("gpu-box/gpu0", "gpu-box", 4711, "NVIDIA H200", 1, 139.8, 1, VERSIONS, queues=("gpu", "urgent"))
IDLE = Description(
    *("celery@node7.example.org/312", "node7.example.org", 312, "2 x NVIDIA A100-SXM4-80GB"),
    *(2, 79.3, 2, VERSIONS, ("gpu",)),
)
LOST = Description("old-box/cpu", "old-box", 99, "x86_64", 0, 0.0, 8, VERSIONS, queues=("gpu",))


def hire(site: story.Site) -> claims.Claim:
    """Three workers: one trains, one is idle, one went silent an hour ago."""
    for description, use in ((BUSY, Use(0.97, 61.2)), (IDLE, Use(0.0, 0.9)), (LOST, Use())):
        registry.arrive(site.db, description)
        registry.beat(site.db, description, use)
    with writing(site.db) as session:
        session.execute(update(Worker).where(Worker.name == LOST.name).values(beat_at=Worker.beat_at - 3600))
    job = jobs.create(site.db, story.resolve("ikl-at-digits", {"epochs": 10}), name="ikl-at-digits")
    claim = claims.claim(site.db, job.id, worker=BUSY.name, lease_seconds=3600)
    assert claim is not None
    claims.append(site.db, claim, story.STARTED, story.epoch(1, 10), story.progress(2, 10, "epoch 3 of 10"))
    return claim


def row(page: Page, worker: Description) -> Locator:
    return page.locator(f"tr[data-worker='{worker.name}']")


@pytest.mark.long
def test_it_follows_the_workers(empty_site: story.Site, page: Page) -> None:
    claim = hire(empty_site)
    page.goto(f"{empty_site.url}/workers")
    page.evaluate("window.sameDocument = true")
    names = [BUSY.name, IDLE.name, LOST.name]
    order = page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.dataset.worker)")
    assert order == sorted(names[:2]) + names[2:]
    expect(row(page, BUSY).locator(".chip")).to_have_text("working")
    expect(row(page, BUSY)).to_contain_text("20 % · epoch 3 of 10")
    expect(row(page, BUSY).locator(".use")).to_contain_text(re.compile(r"97 %\s+61.2 of 140 GiB"))
    expect(row(page, IDLE).locator(".chip")).to_have_text("idle")
    expect(row(page, IDLE)).to_contain_text("2 GPUs, 79 GiB each")
    expect(row(page, LOST).locator(".chip")).to_have_text("silent")
    expect(row(page, LOST)).to_contain_text("1 h ago")
    expect(page.locator(".queues li").first).to_have_text("queue gpu: 0 jobs wait, 2 workers take from it")
    claims.finish(empty_site.db, claim, story.Finished(result=story.training_result(claim.recipe, 0.93)))
    expect(row(page, BUSY).locator(".chip")).to_have_text("idle")
    registry.drain(empty_site.db, BUSY.name, caller=COMMAND_LINE)
    expect(row(page, BUSY).locator(".chip")).to_have_text("draining")
    expect(row(page, BUSY)).to_contain_text("may be stopped")
    assert page.evaluate("window.sameDocument")


def test_its_job_is_one_click_away(empty_site: story.Site, page: Page) -> None:
    claim = hire(empty_site)
    page.goto(f"{empty_site.url}/jobs")
    page.get_by_role("navigation").get_by_role("link", name="Workers").click()
    row(page, BUSY).get_by_role("link", name="ikl-at-digits").click()
    assert page.url == f"{empty_site.url}/jobs/{claim.job_id}"


def test_without_workers_it_says_how_to_start_one(empty_site: story.Site, page: Page) -> None:
    jobs.create(empty_site.db, story.resolve("natural-digits", {}))
    page.goto(f"{empty_site.url}/workers")
    expect(page.locator(".empty pre")).to_have_text("dklbench up")
    expect(page.locator(".queues .alone")).to_have_text("queue gpu: 1 job waits, no worker takes from it")


@pytest.mark.parametrize("javascript", [True, False])
def test_an_admin_drains_and_resumes(
    empty_site: story.Site, new_page: NewPage, tmp_path: Path, javascript: bool
) -> None:
    hire(empty_site)
    page = new_page(java_script_enabled=javascript)
    page.goto(f"{empty_site.url}/workers")
    expect(row(page, IDLE)).to_be_visible()
    expect(page.get_by_role("button", name="Drain")).to_have_count(0)
    sign_in(empty_site, page, Settings(data_dir=tmp_path))
    page.goto(f"{empty_site.url}/workers")
    row(page, IDLE).get_by_role("button", name="Drain").click()
    expect(row(page, IDLE).locator(".chip")).to_have_text("draining")
    assert registry.is_draining(empty_site.db, IDLE.name)
    row(page, IDLE).get_by_role("button", name="Resume").click()
    expect(row(page, IDLE).locator(".chip")).to_have_text("idle")
    assert not registry.is_draining(empty_site.db, IDLE.name)


def sign_in(site: story.Site, page: Page, settings: Settings) -> None:
    wanted = keys.KeyRequest(name="boss", scope="admin")
    _, text = keys.create(site.db, settings, wanted, caller=COMMAND_LINE)
    page.goto(f"{site.url}/signin")
    page.get_by_label("API key").fill(text)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(empty_site: story.Site, new_page: NewPage, scheme: str) -> None:
    hire(empty_site)
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(f"{empty_site.url}/workers")
    expect(row(page, LOST)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    long = replace(IDLE, name="x" * 200, queues=("a-queue-with-a-name-that-is-rather-long", "another"))
    registry.arrive(empty_site.db, long)
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
