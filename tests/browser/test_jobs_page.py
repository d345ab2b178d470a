"""The list of jobs and the page of one job in a browser, live."""

import re
from collections.abc import Callable

import pytest
import story
from playwright.sync_api import Locator, Page, expect

from dkl.events import Finished, TrainResult
from service import jobs
from service.db import Job

NewPage = Callable[..., Page]
DONE = Finished(
    result=TrainResult(checkpoint_sha256=story.SHA256, parameters=10, epochs=10, clean_accuracy=0.93, seconds=13)
)


# --- the list ---------------------------------------------------------------------------------------------


def test_jobs_list_follows_the_ledger(site: story.Site, page: Page, running: tuple[Job, jobs.Claim]) -> None:
    job, claim = running
    waiting = jobs.create(site.db, story.resolve("autoattack-digits-linf", {"model.job": job.id}))
    page.goto(f"{site.url}/jobs")
    row, waits = (page.locator(f"tr[data-job='{known.id}']") for known in (job, waiting))
    expect(row.locator(".chip")).to_have_text("running")
    expect(row).to_contain_text("20 % · epoch 3 of 10 · 10 s left")
    expect(row.locator("progress")).to_have_js_property("value", 0.2)
    expect(row.locator("time")).to_have_attribute("title", re.compile(r"^\d{4}-\d\d-\d\d .* UTC$"))
    expect(waits).to_contain_text("waits for ikl-at-digits")
    jobs.append(site.db, claim, story.progress(5, 10, "epoch 6 of 10"))
    expect(row).to_contain_text("50 % · epoch 6 of 10")
    jobs.finish(site.db, claim, DONE)
    expect(row.locator(".chip")).to_have_text("succeeded")
    expect(row).to_contain_text("93.00")
    expect(waits).to_contain_text("waits for a worker")
    jobs.cancel(site.db, waiting.id)
    expect(waits.locator(".chip")).to_have_text("canceled")


def test_no_jobs_yet(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/jobs")
    expect(page.get_by_text("dklbench submit ikl-at-digits")).to_be_visible()
    page.get_by_text("or with curl").click()
    expect(page.get_by_text(f"curl {empty_site.url}/api/v1/jobs")).to_be_visible()


# --- one job, live ----------------------------------------------------------------------------------------


def curve(page: Page, *, epochs: int) -> Locator:
    return page.get_by_role("img", name=f"Loss and accuracies of {epochs} epochs")


def test_training_is_followed_without_reloading(
    site: story.Site, page: Page, running: tuple[Job, jobs.Claim]
) -> None:
    job, claim = running
    page.goto(f"{site.url}/jobs/{job.id}")
    page.evaluate("window.sameDocument = true")
    state, doing = page.locator("#state"), page.locator("#doing")
    expect(state).to_have_text("running")
    expect(doing).to_contain_text("20 % · epoch 3 of 10 · 10 s left")
    expect(doing).to_contain_text("5,120 images per second on gpu-box:4711")
    expect(page.locator("#curve canvas")).to_be_visible()
    expect(curve(page, epochs=2)).to_be_visible()
    page.get_by_text("Table of epochs").click()
    expect(page.locator("#epochs tr")).to_have_count(2)

    before = page.locator("#curve canvas").screenshot()
    for number in range(3, 9):
        jobs.append(site.db, claim, story.epoch(number, 10))
    jobs.append(site.db, claim, story.progress(8, 10, "epoch 9 of 10"))
    expect(doing).to_contain_text("80 % · epoch 9 of 10")
    expect(doing.locator("progress")).to_have_js_property("value", 0.8)
    expect(page.locator("#epochs tr")).to_have_count(8)
    expect(curve(page, epochs=8)).to_be_visible()
    assert page.locator("#curve canvas").screenshot() != before

    jobs.finish(site.db, claim, DONE)
    expect(state.locator(".chip")).to_have_text("succeeded")
    expect(page.locator("#result")).to_contain_text("93.00 %")
    expect(page.locator("#history li").last).to_contain_text("succeeded by gpu-box:4711")
    expect(page.locator("#epochs")).to_be_visible()  # what was opened stays open
    expect(page.locator("#cancel form")).to_have_count(0)
    expect(page).to_have_title("ikl-at-digits · succeeded · dkl-bench")
    assert page.evaluate("window.sameDocument")


def test_a_finished_training_shows_its_curve(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.name == "natural-digits" and job.result)
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(curve(page, epochs=15)).to_be_visible()
    expect(page.locator("#curve canvas")).to_be_visible()
    expect(page.locator("#curve")).not_to_contain_text("adversarial accuracy")
    expect(page.locator("#children")).to_contain_text("robust 7.00 %")


def test_a_broken_stream_goes_on(site: story.Site, new_page: NewPage, running: tuple[Job, jobs.Claim]) -> None:
    job, claim = running
    page = new_page(expected="Failed to load resource")
    page.route("**/events", lambda route: route.fulfill(status=503), times=1)
    page.goto(f"{site.url}/jobs/{job.id}")
    jobs.append(site.db, claim, story.epoch(3, 10))
    expect(curve(page, epochs=3)).to_be_visible()


def test_the_waterfall_falls_chunk_by_chunk(site: story.Site, page: Page) -> None:
    model = jobs.create(site.db, story.resolve("ikl-at-digits", {"seed": 11}))
    jobs.finish(site.db, story.start(site.db, model), DONE)
    job = jobs.create(site.db, story.resolve("autoattack-digits-linf", {"model.job": model.id}))
    claim = story.start(site.db, job)
    names = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("#waterfall")).to_contain_text("No chunk of test images is done yet.")
    jobs.append(site.db, claim, story.chunk(0, 2, 40, [1, 0.5, 0.5, 0.5, 0], names))
    expect(page.locator("#waterfall")).to_contain_text("first 40 test images, 1 of 2 chunks")
    standing = page.locator("#waterfall table.waterfall tbody b")
    assert (standing.first.inner_text(), standing.last.inner_text()) == ("100.00", "0.00")
    jobs.append(site.db, claim, story.chunk(1, 2, 40, [1, 1, 1, 1, 1], names))
    expect(page.locator("#waterfall")).to_contain_text("first 80 test images, 2 of 2 chunks")
    assert standing.last.inner_text() == "50.00"


def test_a_finished_evaluation_says_what_was_found(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.robust_accuracy == 0.71)
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("#result")).to_contain_text("95 % interval 61.5 to 79.0")
    expect(page.locator("#result")).to_contain_text(story.SHA256)
    rows = page.locator("table.waterfall tbody tr")
    assert rows.locator("th").all_inner_texts() == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    expect(page.locator(".classes tr")).to_have_count(10)
    expect(page.locator(".recipe")).to_contain_text("threat.eps")
    page.get_by_text("as JSON").click()
    expect(page.get_by_text('"chunk_size": 512')).to_be_visible()
    page.get_by_role("link", name="ikl-at-digits").first.click()
    expect(page.locator("h1")).to_have_text("ikl-at-digits")


# --- cancelling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("javascript", [True, False])
def test_cancelling(
    site: story.Site, new_page: NewPage, running: tuple[Job, jobs.Claim], javascript: bool
) -> None:
    job, claim = running
    page = new_page(java_script_enabled=javascript)
    page.goto(f"{site.url}/jobs/{job.id}")
    page.get_by_text("Cancel this job").click()
    if javascript:  # news does not close what was opened
        jobs.append(site.db, claim, story.progress(4, 10, "epoch 5 of 10"))
        expect(page.locator("#doing")).to_contain_text("epoch 5 of 10")
    page.get_by_role("button", name="Cancel it").click()
    expect(page.locator("#state")).to_contain_text("cancelling")
    assert page.url == f"{site.url}/jobs/{job.id}"
    expect(page.get_by_role("button", name="Cancel it")).to_have_count(0)
    jobs.stopped(site.db, claim)
    if not javascript:
        page.reload()
    expect(page.locator("#state .chip")).to_have_text("canceled")


def test_another_site_cannot_cancel(site: story.Site, new_page: NewPage, running: tuple[Job, jobs.Claim]) -> None:
    job, _ = running
    page = new_page(expected="403")
    page.set_extra_http_headers({"Sec-Fetch-Site": "cross-site"})
    answer = page.request.post(
        f"{site.url}/jobs/{job.id}/cancel", headers={"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status == 403
    assert "another site asked" in answer.text()
    assert jobs.get(site.db, job.id).status == "running"


def test_cancelling_too_late_is_explained(site: story.Site, page: Page) -> None:
    job = next(job for job in jobs.recent(site.db) if job.status == "succeeded")
    answer = page.request.post(f"{site.url}/jobs/{job.id}/cancel", headers={"Accept": "text/html"})
    assert answer.status == 409
    assert "nothing left to cancel" in answer.text()
