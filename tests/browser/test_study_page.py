"""The page of a study: published beside measured, the jobs of each row, the picture, and the commands."""

import re
from collections.abc import Callable

import httpx2
import pytest
import story
from playwright.sync_api import Page, expect
from test_quality import NARROW, PROMISES, _sideways, _violations

from dkl.catalog.studies import study

NewPage = Callable[..., Page]
MEASURED = {"IKL-AT": (0.372, 0.214), "TRADES": (0.409, 0.167), "MART": (0.35, 0.18)}


def fill(site: story.Site, name: str) -> None:
    """Three rows that are trained and judged, one that trains, one that failed."""
    planned = {one.row.method: one for one in study(name).rows}
    for method, (clean, robust) in MEASURED.items():
        plan = planned[method]
        job = story.trained(
            site.db, plan.row.recipe, epochs=plan.recipe.epochs, accuracy=clean, overrides=dict(plan.overrides)
        )
        story.judged(
            site.db, job, plan.judge.recipe, clean=clean, robust=robust,
            **{"images": 300, "overrides": dict(plan.judge.overrides)},
        )  # fmt: skip
    running = planned["ACAT"]
    claim = story.start(site.db, story.jobs.create(site.db, running.recipe, name=running.row.recipe))
    story.claims.append(site.db, claim, story.progress(2, 8, "epoch 3 of 8"))
    failed = planned["DAJAT"]
    claim = story.start(site.db, story.jobs.create(site.db, failed.recipe, name=failed.row.recipe))
    story.claims.fail(site.db, claim, "/secret/place is full")


def test_published_beside_measured(empty_site: story.Site, page: Page) -> None:
    fill(empty_site, "3-tiny")
    page.goto(f"{empty_site.url}/studies")
    expect(page.get_by_text("3 of 17 rows measured")).to_be_visible()
    page.get_by_role("link", name="Table 3, tiny budget").click()
    expect(page).to_have_title("Table 3, tiny budget · dkl-bench")
    trades = page.locator("tr[data-recipe='trades-cifar10-wrn-34-10']")
    expect(trades.locator(".published")).to_contain_text("84.92 / 53.08")
    expect(trades.locator(".clean")).to_contain_text("40.90")
    expect(trades.locator(".robust")).to_contain_text("16.70")
    expect(trades.locator(".robust")).to_contain_text("300 images")
    expect(trades.locator(".difference")).to_contain_text("\u221244.02 / \u221236.38")
    expect(trades.locator(".lead-over")).to_contain_text("\u22124.01 / \u22124.70")
    expect(page.locator("tr[data-recipe^='acat']")).to_contain_text(re.compile("training.*25 %", re.S))
    failed = page.locator("tr[data-recipe^='dajat']")
    expect(failed.locator(".chip")).to_have_text("failed")
    expect(page.locator("body")).not_to_contain_text("/secret/place")
    expect(page.get_by_text("What it cannot say.")).to_be_visible()
    expect(page.get_by_text("DM-AT, 20M generated")).to_be_visible()
    picture = page.get_by_role("img", name="Table 3, tiny budget: robust accuracy")
    assert picture.locator("circle.hollow").count() == sum(
        one.published is not None for one in study("3-tiny").rows
    )
    assert picture.locator("circle:not(.hollow)").count() == 3
    trades.get_by_role("link", name="evaluation").click()
    expect(page).to_have_url(re.compile("/jobs/[0-9a-f]{12}$"))


def test_other_data_are_not_subtracted(empty_site: story.Site, page: Page) -> None:
    fill(empty_site, "2-tiny")
    page.goto(f"{empty_site.url}/studies/2-tiny")
    expect(
        page.get_by_text("The published numbers are of CIFAR-100, the measured ones of CIFAR-10")
    ).to_be_visible()
    assert page.locator("td.difference").count() == 0
    expect(page.get_by_role("img", name="Table 2, tiny budget: ahead of IKL-AT")).to_be_visible()


def test_the_command_of_a_row_is_the_row(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/studies/2-tiny")
    page.locator("#recipe-lbgat-cifar100-wrn-34-10-beta6 summary").click()
    command = page.locator("#recipe-lbgat-cifar100-wrn-34-10-beta6 code")
    expect(command).to_contain_text("dklbench submit lbgat-cifar100-wrn-34-10-beta6")
    expect(command).to_contain_text("images=2000")
    expect(command).to_contain_text("--then 'autoattack-cifar10-linf images=300 policy=audited'")


@pytest.mark.long
def test_it_changes_while_jobs_run(empty_site: story.Site, page: Page) -> None:
    fill(empty_site, "3-tiny")
    page.goto(f"{empty_site.url}/studies/3-tiny")
    expect(page.get_by_text("3 of 17 rows are trained and judged")).to_be_visible()
    plan = next(one for one in study("3-tiny").rows if one.row.method == "PGD-AT")
    job = story.trained(
        empty_site.db, plan.row.recipe, epochs=plan.recipe.epochs, accuracy=0.4, overrides=dict(plan.overrides)
    )
    story.judged(
        empty_site.db, job, plan.judge.recipe, clean=0.4, robust=0.15, images=300,
        overrides=dict(plan.judge.overrides),
    )  # fmt: skip
    expect(page.get_by_text("4 of 17 rows are trained and judged")).to_be_visible(timeout=15_000)


@pytest.mark.parametrize("name", ["2-tiny", pytest.param("3-tiny", marks=pytest.mark.slow)])
def test_a_filled_page_keeps_the_promises(empty_site: story.Site, new_page: NewPage, name: str) -> None:
    fill(empty_site, name)
    page = new_page()
    page.goto(f"{empty_site.url}/studies/{name}")
    broken = [*page.evaluate(PROMISES), *_violations(page)]
    page.emulate_media(color_scheme="dark")
    broken += _violations(page, "color-contrast")
    for width in (320, 390, 768):
        broken += _sideways(page, width)
    broken += _violations(page, *NARROW)
    assert broken == []


def test_the_picture_is_a_file_and_the_interface_has_it_all(empty_site: story.Site) -> None:
    nothing = httpx2.get(f"{empty_site.url}/studies/3-tiny.svg")
    assert nothing.status_code == 404
    assert "no row of this study is judged yet" in nothing.json()["detail"]
    fill(empty_site, "3-tiny")
    drawn = httpx2.get(f"{empty_site.url}/studies/3-tiny.svg")
    assert drawn.headers["content-type"] == "image/svg+xml"
    assert "<style>" in drawn.text
    found = httpx2.get(f"{empty_site.url}/api/v1/studies/3-tiny").json()
    assert found["finished"] == len(MEASURED)
    assert "reason" not in found["rows"][0]
    assert [one["name"] for one in httpx2.get(f"{empty_site.url}/api/v1/studies").json()][:2] == [
        "2-smoke",
        "2-tiny",
    ]
    unknown = httpx2.get(f"{empty_site.url}/api/v1/studies/2-huge")
    assert unknown.status_code == 404
    assert unknown.json()["detail"].startswith("there is no study '2-huge'; there are 2-smoke")
