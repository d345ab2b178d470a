"""The documents in a browser: contents, anchors, searching."""

import re
from collections.abc import Callable

import story
from playwright.sync_api import Page, expect

NewPage = Callable[..., Page]


def test_from_the_list_to_a_section(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/docs")
    page.get_by_role("link", name="How a model is judged").click()
    expect(page).to_have_title("How a model is judged · dkl-bench")
    page.get_by_role("navigation", name="Documents and sections").get_by_role("link", name="What is kept").click()
    expect(page).to_have_url(re.compile("/docs/evaluation#what-is-kept$"))
    expect(page.locator("#what-is-kept")).to_be_in_viewport()


def test_searching_without_javascript(site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{site.url}/docs/training")
    page.get_by_role("searchbox").fill("pg_dump")
    page.get_by_role("searchbox").press("Enter")
    hit = page.locator(".hits li").filter(has_text="Backup")
    expect(hit.locator("mark")).to_have_text("pg_dump")
    hit.get_by_role("link").click()
    expect(page.locator("#backup")).to_be_in_viewport()


def test_wide_tables_scroll_by_themselves(site: story.Site, new_page: NewPage) -> None:
    page = new_page(viewport={"width": 390, "height": 844})
    for name in ("training", "operations", "evaluation"):
        page.goto(f"{site.url}/docs/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some((n) => n.scrollWidth > n.clientWidth)")
