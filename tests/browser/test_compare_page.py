"""Entries side by side in a browser: with and without scripts, coming and going, narrow and dark."""

import re
from collections.abc import Callable
from urllib.parse import urlencode

import numpy as np
import pairs
import pytest
import story
from playwright.sync_api import Page, expect

PUBLISHED = "robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10"
NewPage = Callable[..., Page]


@pytest.fixture(scope="module")
def site(site_of_module: story.Site) -> story.Site:
    return site_of_module


@pytest.fixture(scope="module")
def entries(site: story.Site, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six models on the same 40 images; the first stands on 20 of them, the others on five each."""
    folder, made = tmp_path_factory.mktemp("evidence"), []
    for number in range(6):
        model = story.trained(
            site.db, "ikl-at-digits", epochs=4, overrides={"seed": 20 + number, "validation": {"images": 100}}
        )
        standing = np.arange(40) < 20 if number == 0 else pairs.standing(40, *range(number, 40, 8))
        made.append(
            pairs.judged(site.db, model, np.ones(40, bool), standing, evidence=(site.artifacts, folder)).id
        )
    return made


def address(site: story.Site, *entries: str, **more: str) -> str:
    return f"{site.url}/compare?{urlencode([*(('entry', entry) for entry in entries), *more.items()])}"


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_two_measured_entries(site: story.Site, new_page: NewPage, entries: list[str], scripts: bool) -> None:
    page = new_page(java_script_enabled=scripts)
    page.goto(address(site, *entries[:2]))
    expect(page).to_have_title("ikl-at-digits against ikl-at-digits · dkl-bench")
    expect(page.locator(".verdict")).to_contain_text("The paired test sets A apart from B.")
    robust = page.get_by_role("row", name=re.compile("^Robust 50.00 % best"))
    expect(robust.locator(".best")).to_have_count(1)
    expect(robust.locator(".best")).to_have_css("font-weight", "700")
    difference = page.locator(".tests tbody").first.get_by_role("row").nth(1)
    expect(difference).to_contain_text("+37.50")
    expect(difference).to_contain_text("< 0.001")
    expect(page.get_by_role("region", name="Training, fields that differ").get_by_role("row")).to_have_count(2)
    page.get_by_text("Same in all:").first.click()
    expect(page.locator("#same-training dl")).to_contain_text("epochs")
    page.get_by_role("link", name="largest difference first").click()
    expect(page).to_have_url(re.compile("sort=-difference#classes$"))
    expect(page.locator("th[aria-sort]")).to_have_count(2)


def test_entries_come_and_go(site: story.Site, page: Page, entries: list[str]) -> None:
    page.goto(f"{site.url}/compare")
    page.get_by_label("A Entry").fill(entries[0])
    page.get_by_label("B Entry").fill(entries[1])
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".head thead th")).to_have_count(2)
    page.get_by_text("Add another entry").click()
    page.get_by_label("Entry", exact=True).fill(entries[2])
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("3 entries compared")
    page.get_by_role("link", name="Remove A, ikl-at-digits").click()
    expect(page.locator(".head thead th")).to_have_count(2)
    assert page.url == address(site, *entries[1:3])
    page.get_by_role("link", name="Remove B, ikl-at-digits").click()
    expect(page.get_by_role("status").filter(has_text="Name another one")).to_be_visible()
    expect(page.get_by_label("A Entry")).to_have_value(entries[1])
    page.go_back()
    expect(page.locator(".head thead th")).to_have_count(2)


def test_a_refusal_keeps_what_was_typed(site: story.Site, new_page: NewPage, entries: list[str]) -> None:
    page = new_page(expected="status of 4")
    page.goto(f"{site.url}/compare?entry={entries[0]}")
    page.get_by_label("B Entry").fill("<b>nothing</b>")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("No leaderboard has an entry '<b>nothing</b>'")
    expect(page.get_by_label("A Entry")).to_have_value(entries[0])
    page.get_by_label("B Entry").fill(entries[0])
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("is named twice")


def test_images_are_loaded_and_curves_are_files(site: story.Site, page: Page, entries: list[str]) -> None:
    page.goto(address(site, *entries[:3]))
    images = page.locator(".survivors .pictures img")
    expect(images.first).to_be_visible()
    images.first.scroll_into_view_if_needed()
    expect(images.first).to_have_js_property("naturalWidth", 8)
    expect(page.locator(".charts .line-chart")).to_have_count(5)
    export = page.locator("#curves figcaption a").first.get_attribute("href")
    answer = page.request.get(f"{site.url}{export}")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "B ikl-at-digits" in answer.text()


def test_measured_beside_published(site: story.Site, page: Page, entries: list[str]) -> None:
    page.goto(address(site, entries[0], PUBLISHED))
    expect(page.locator(".caution").first).to_contain_text("different data sets")
    expect(page.locator(".head .mark")).to_have_count(0)
    expect(page.locator("#differences")).to_have_count(0)
    expect(page.get_by_role("region", name="Training, fields that differ")).to_contain_text("dataset")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_six_entries_fit_a_telephone(site: story.Site, new_page: NewPage, entries: list[str], scheme: str) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(address(site, *entries))
    assert overflow(page) == 0
    for region in page.get_by_role("region").all():
        assert region.bounding_box()["width"] <= 390  # type: ignore[index]
    head = page.get_by_role("region", name="The entries")
    label = head.get_by_role("rowheader", name="Robust")
    left = label.bounding_box()["x"]  # type: ignore[index]
    head.evaluate("region => { region.scrollLeft = 400 }")
    assert label.bounding_box()["x"] == left  # type: ignore[index]
    expect(head.get_by_role("columnheader").nth(5)).to_contain_text("F")
    assert page.locator("body").evaluate("body => getComputedStyle(body.parentElement).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 27)"
    )
