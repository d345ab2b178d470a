"""The leaderboard in a browser: order, sorting, searching, boards, addresses; with and without JavaScript."""

import re
from collections.abc import Callable

import pytest
import story
from playwright.sync_api import Page, expect

ROBUST = "td.robust b"


def models(page: Page) -> list[str]:
    return page.locator("tbody th.model > a").all_inner_texts()


def test_best_model_comes_first_with_its_interval_and_bar(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/?dataset=digits")
    expect(page).to_have_title(re.compile(r"^Handwritten digits, Linf, eps \S+ · dkl-bench$"))
    assert models(page) == ["ikl-at-digits", "natural-digits"]
    assert page.locator(ROBUST).all_inner_texts() == ["71.00", "7.00"]
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("61.5 to 79.0")
    expect(first.locator("svg .whisker")).to_have_count(1)
    expect(first.locator(".chip")).to_have_text("measured")
    expect(first.locator("th.model > a")).to_have_attribute("href", re.compile(r"^/jobs/[0-9a-f]{12}$"))
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    expect(page.locator(".scatter > svg .dot")).to_have_count(2)


def test_published_rows_name_their_source(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/?dataset=cifar100")
    row = page.locator("tr.published").filter(has=page.get_by_text("ikl-at-cifar100-wrn-34-10", exact=True))
    expect(row.locator(".chip")).to_have_text("published")
    expect(row).to_contain_text("Cui et al.")
    expect(row.locator("th.model > a")).to_have_attribute("href", re.compile("^https://arxiv.org/"))


def test_sorting_replaces_the_board_only_and_can_be_bookmarked(
    site: story.Site, page: Page, new_page: Callable[..., Page]
) -> None:
    page.goto(f"{site.url}/?dataset=digits")
    page.evaluate("document.querySelector('header.top').dataset.untouched = 'yes'")
    page.get_by_role("link", name="Clean").click()
    expect(page.locator("th.clean[aria-sort]")).to_have_attribute("aria-sort", "descending")
    assert models(page) == ["natural-digits", "ikl-at-digits"]
    assert page.locator("td.rank").all_inner_texts() == ["2", "1"]
    page.get_by_role("link", name="Clean").click()
    expect(page.locator("th.clean[aria-sort]")).to_have_attribute("aria-sort", "ascending")
    assert models(page) == ["ikl-at-digits", "natural-digits"]
    assert page.locator("header.top").get_attribute("data-untouched") == "yes"
    assert "sort=clean_accuracy" in page.url

    other = new_page()
    other.goto(page.url)
    assert models(other) == models(page)

    page.go_back()
    expect(page.locator("th.clean[aria-sort]")).to_have_attribute("aria-sort", "descending")
    assert models(page) == ["natural-digits", "ikl-at-digits"]


def test_search_filters_while_typing_and_keeps_the_cursor(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/?dataset=digits&sort=name")
    box = page.get_by_role("searchbox")
    box.press_sequentially("natur", delay=60)
    expect(page.locator("tbody tr")).to_have_count(1)
    assert models(page) == ["natural-digits"]
    expect(page).to_have_url(re.compile("sort=name&search=natur$"))
    expect(box).to_be_focused()
    expect(box).to_have_value("natur")
    box.press_sequentially("al-nothing")
    expect(page.get_by_text("No model matches")).to_be_visible()
    page.get_by_role("link", name="Show all of them").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(box).to_have_value("")


def test_boards_keep_nothing_but_the_board(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/?dataset=digits&sort=name&search=natural")
    page.get_by_role("navigation", name="Boards").get_by_role("link", name="CIFAR-100 Linf, eps 8/255").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("CIFAR-100, Linf, eps 8/255")
    assert re.fullmatch(r".*/\?dataset=cifar100&threat_model=Linf&eps=0\.0313725\d*", page.url)
    expect(page.locator(".tabs [aria-current]")).to_contain_text("CIFAR-100")
    expect(page.get_by_role("searchbox")).to_have_value("")


@pytest.mark.parametrize("sort", ["name", "-name", "clean_accuracy", "-clean_accuracy", "robust_accuracy"])
def test_works_without_javascript(site: story.Site, new_page: Callable[..., Page], sort: str) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{site.url}/?dataset=digits")
    column = {"name": "Model", "clean_accuracy": "Clean", "robust_accuracy": "Robust"}[sort.removeprefix("-")]
    direction = "descending" if sort.startswith("-") else "ascending"
    heading = page.get_by_role("columnheader", name=column).and_(page.locator("th:has(a)"))
    for _ in range(2):
        if heading.get_attribute("aria-sort") != direction:
            heading.get_by_role("link").click()
    assert heading.get_attribute("aria-sort") == direction
    page.get_by_role("searchbox").fill("IKL-at")
    page.get_by_role("button", name="Search").click()
    assert models(page) == ["ikl-at-digits"]
    assert f"sort={sort}" in page.url


def test_refreshes_itself_when_results_arrive(empty_site: story.Site, page: Page) -> None:
    model = story.trained(empty_site.db, "ikl-at-digits", epochs=1)
    story.judged(empty_site.db, model, robust=0.5)
    page.clock.install()
    page.goto(f"{empty_site.url}/?dataset=digits")
    expect(page.locator(ROBUST)).to_have_text(["50.00"])
    box = page.get_by_role("searchbox")
    box.focus()
    story.judged(empty_site.db, model, robust=0.6)
    page.clock.run_for(10_500)
    expect(page.locator(ROBUST)).to_have_text(["60.00", "50.00"])
    expect(box).to_be_focused()
    assert page.url == f"{empty_site.url}/?dataset=digits"


def test_says_when_the_service_is_gone_and_keeps_the_board(
    site: story.Site, new_page: Callable[..., Page]
) -> None:
    page = new_page(expected="Failed to load resource")
    page.clock.install()
    page.goto(f"{site.url}/?dataset=digits")
    page.route("**/*", lambda route: route.fulfill(status=503, body="<h1>gone</h1>", content_type="text/html"))
    page.clock.run_for(10_500)
    expect(page.get_by_text("The service does not answer")).to_be_visible()
    assert len(models(page)) == 2
    page.unroute("**/*")
    page.clock.run_for(10_500)
    expect(page.get_by_text("The service does not answer")).to_be_hidden()


def test_an_unknown_board_offers_the_known_ones(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/?dataset=imagenet")
    expect(page.get_by_text("There is no such board")).to_be_visible()
    page.get_by_role("link", name="the busiest").click()
    expect(page.locator("tbody tr").first).to_be_visible()


@pytest.mark.parametrize("results", [1, 60])
def test_the_picture_works_for_few_and_many(empty_site: story.Site, page: Page, results: int) -> None:
    model = story.trained(empty_site.db, "ikl-at-digits", epochs=1)
    for place in range(results):
        story.judged(empty_site.db, model, clean=0.9, robust=place / 100)
    page.goto(f"{empty_site.url}/?dataset=digits")
    expect(page.locator(".scatter > svg .dot")).to_have_count(results)
    frame = page.locator(".scatter > svg").bounding_box()
    assert frame is not None
    for dot in page.locator(".scatter > svg .dot").all():
        box = dot.bounding_box()
        assert box is not None
        assert frame["x"] <= box["x"] <= frame["x"] + frame["width"]
        assert frame["y"] <= box["y"] <= frame["y"] + frame["height"]


def test_a_page_nobody_looks_at_asks_for_nothing(site: story.Site, page: Page) -> None:
    page.clock.install()
    page.goto(f"{site.url}/?dataset=digits")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.clock.run_for(60_000)
    assert [address for address in asked if "icon" not in address] == []
    with page.expect_request("**/?dataset=digits"):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
