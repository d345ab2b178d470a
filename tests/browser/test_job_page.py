"""The page of one job: its log, going on with it, its curves as files, and where it leads."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import story
from playwright.sync_api import Page, expect

from dkl.architectures import CNN
from dkl.events import Finished
from dkl.imports import Import
from dkl.recipes import Train
from service import claims, jobs
from service.db import clock, writing
from service.tables import Job, Upload

NewPage = Callable[..., Page]
RECIPE = story.resolve("ikl-at-digits", {"epochs": 2})
assert isinstance(RECIPE, Train)


# --- the log ----------------------------------------------------------------------------------------------


def test_the_log_grows_while_one_looks(site: story.Site, page: Page, running: tuple[Job, claims.Claim]) -> None:
    job, claim = running
    page.goto(f"{site.url}/jobs/{job.id}")
    log = page.get_by_role("log")
    expect(log.locator("p").first).to_contain_text(re.compile(r"^\d\d-\d\d \d\d:\d\d:\d\d anonymous queued$"))
    expect(log.locator("p")).to_have_count(5)
    log.locator("p").first.evaluate("line => line.dataset.untouched = 'yes'")
    for number in range(3, 60):
        claims.append(site.db, claim, story.epoch(number, 60))
    expect(log.locator("p").last).to_contain_text("gpu-box:4711 epoch 59 of 60: loss")
    expect(log.locator("p")).to_have_count(62)
    expect(log.locator("p").first).to_have_attribute("data-untouched", "yes")
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 8  # it follows
    log.evaluate("e => { e.scrollTop = 40 }")
    claims.append(site.db, claim, story.ADJUSTED)
    expect(log.locator("p").last).to_contain_text("adjusted: a batch of 128 images")
    assert log.evaluate("e => e.scrollTop") == 40  # but not while one reads

    with page.expect_download() as download:
        page.get_by_role("link", name="Download the log").click()
    assert download.value.suggested_filename == f"{job.id}.log"
    assert Path(download.value.path()).read_text().count("\n") == 63


def test_of_a_long_log_the_last_lines_are_there(empty_site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    job = story.trained(empty_site.db, "natural-digits", epochs=250)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.get_by_role("log").locator("p")).to_have_count(200)
    expect(page.get_by_role("log").locator("p").last).to_contain_text("gpu-box:4711 succeeded")
    expect(page.get_by_text("The last 200 of 255 lines.")).to_be_visible()


# --- going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("javascript", [True, False])
def test_resuming(empty_site: story.Site, new_page: NewPage, javascript: bool) -> None:
    page = new_page(java_script_enabled=javascript)
    db = empty_site.db
    training = jobs.create(db, story.resolve("ikl-at-digits", {"epochs": 10}), name="ikl-at-digits")
    waiting = jobs.create(db, story.resolve("autoattack-digits-linf", {"model.job": training.id}))
    claim = story.start(db, training)
    claims.append(db, claim, story.epoch(1, 10))
    claims.fail(db, claim, "loss is nan at epoch 2, batch 40")
    page.goto(f"{empty_site.url}/jobs/{waiting.id}")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)  # there is nothing to judge
    page.locator("#cancel").get_by_role("link", name="ikl-at-digits").click()
    expect(page.locator("h1")).to_have_text("ikl-at-digits")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#state .chip")).to_have_text("queued")
    expect(page.locator("#history li").last).to_contain_text("resumed")
    assert page.url == f"{empty_site.url}/jobs/{training.id}"
    assert jobs.get(db, waiting.id).status == "queued"
    expect(page.get_by_role("button", name=re.compile("Resume|Run again"))).to_have_count(0)
    story.start(db, training)
    if not javascript:
        page.reload()
    expect(page.locator("#state .chip")).to_have_text("running")
    answer = page.request.post(f"{empty_site.url}/jobs/{training.id}/resume", headers={"Accept": "text/html"})
    assert answer.status == 409
    assert "only what has ended is resumed" in answer.text()


def test_what_has_succeeded_is_not_resumed(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.status == "succeeded")
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.get_by_role("button", name="Run again")).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)


# --- curves as files --------------------------------------------------------------------------------------


def test_without_javascript_the_curves_are_pictures(site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    job = next(job for job in jobs.recent(site.db) if job.name == "ikl-at-digits" and job.result)
    page.goto(f"{site.url}/jobs/{job.id}")
    pictures = page.locator(".still img")
    expect(pictures).to_have_count(5)
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") > 0
    expect(page.locator("#curve canvas")).to_have_count(0)
    links = page.locator("#curve-files a")
    assert links.all_inner_texts() == ["accuracy", "loss", "learning rate", "radius", "speed"]
    with page.expect_download() as download:
        links.nth(1).click()
    assert download.value.suggested_filename == f"{job.id}-loss.svg"
    drawn = Path(download.value.path()).read_text()
    assert drawn.startswith("<svg ")
    assert "soft ce" in drawn


def test_a_training_that_begins_gets_its_files(
    site: story.Site, page: Page, running: tuple[Job, claims.Claim]
) -> None:
    job = jobs.create(site.db, story.resolve("natural-digits", {"seed": 11}), name="natural-digits")
    claim = story.start(site.db, job)
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("#curve-files a")).to_have_count(0)
    claims.append(site.db, claim, story.epoch(1, 15, adversarial=False))
    expect(page.locator("#curve-files a")).to_have_text(["accuracy", "loss", "learning rate", "speed"])
    claims.fail(site.db, claim, "the test is over")


# --- where it leads ---------------------------------------------------------------------------------------


def test_ranked_evaluations_lead_to_their_entries(site: story.Site, page: Page) -> None:
    found = jobs.recent(site.db)
    ranked = next(job for job in found if job.robust_accuracy == 0.71)
    screened = next(job for job in found if job.robust_accuracy == 0.73)
    page.goto(f"{site.url}/jobs/{ranked.id}")
    expect(page.get_by_role("link", name="Its entry")).to_have_attribute("href", f"/entries/{ranked.id}")
    page.goto(f"{site.url}/jobs/{screened.id}")
    expect(page.get_by_role("link", name="Its entry")).to_have_count(0)
    page.goto(f"{site.url}/jobs/{ranked.parent_id}")
    links = [link.get_attribute("href") for link in page.locator("#children a", has_text="entry").all()]
    assert f"/entries/{ranked.id}" in links
    assert f"/entries/{screened.id}" not in links


@pytest.mark.parametrize("of", ["evaluations", "trainings"])
def test_runs_of_a_recipe_are_compared(empty_site: story.Site, page: Page, of: str) -> None:
    db = empty_site.db
    model = story.trained(db, "ikl-at-digits", epochs=2)
    first = story.judged(db, model, robust=0.6)
    page.goto(f"{empty_site.url}/jobs/{(first if of == 'evaluations' else model).id}")
    expect(page.get_by_role("link", name="Compare runs")).to_have_count(0)
    again = jobs.rerun(db, model.id)
    claims.finish(db, story.start(db, again), Finished(result=story.training_result(RECIPE, 0.9)))
    second = story.judged(db, again if of == "trainings" else model, robust=0.61)
    with writing(db) as session:
        if of == "evaluations":
            session.get_one(Job, second.id).rerun_of = first.id
    page.reload()
    compare = page.get_by_role("link", name="Compare runs")
    expect(compare).to_have_attribute("href", f"/compare?entry={first.id}&entry={second.id}")


def test_an_import_shows_its_upload(empty_site: story.Site, page: Page) -> None:
    db = empty_site.db
    recipe = Import(upload="c" * 64, dataset="digits", model=CNN(width=4))
    job = jobs.create(db, recipe)
    page.goto(f"{empty_site.url}/jobs/{job.id}")
    expect(page.locator("#upload")).to_contain_text("c" * 64)
    with writing(db) as session:
        at = clock(session)
        about = {"name": "<b>weights</b>.pt", "size": 3 * 2**20, "sha256": "c" * 64}
        session.add(Upload(id="1" * 32, key_id=None, created_at=at, touched_at=at, finished_at=at, **about))
    page.reload()
    expect(page.locator("#upload")).to_contain_text("<b>weights</b>.pt")
    expect(page.locator("#upload")).to_contain_text("3.0 MiB, arrived")
