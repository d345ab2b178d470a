"""The page of an entry in a browser: its images load, narrow down and turn, with and without JavaScript."""

import re
from collections.abc import Callable
from pathlib import Path

import exhibits
import pytest
import story
from exhibits import Shown
from playwright.sync_api import Page, expect

from service.tables import Job

NewPage = Callable[..., Page]


@pytest.fixture
def judged(empty_site: story.Site, tmp_path: Path) -> Job:
    """A measured entry with images to look at, in colour."""
    model = story.trained(empty_site.db, "ikl-at-digits", epochs=1)
    shown = Shown(images=60, clean=50, robust=20, shape=(3, 16, 16), pictures=60)
    recipe = story.resolve("autoattack-cifar10-linf", {"model.job": model.id})
    sha256 = exhibits.store(empty_site.artifacts, recipe, shown, tmp_path)
    return story.judged(
        empty_site.db, model, "autoattack-cifar10-linf", clean=50 / 60, robust=20 / 60, images=60,
        evidence_sha256=sha256, warnings=(story.WARNING,),
    )  # fmt: skip


def broken_images(page: Page) -> list[str]:
    """Addresses of pictures that the browser could not show."""
    found: list[str] = page.evaluate(_BROKEN)
    return found


_BROKEN = """() => Promise.all([...document.images].map((image) => {
  image.loading = "eager"
  return image.decode().then(() => null, () => image.src)
})).then((found) => found.filter(Boolean))"""


def seen(page: Page) -> list[str]:
    """The gallery's images by their labels and numbers."""
    return page.locator(".gallery li > p:first-child").all_inner_texts()


def test_the_gallery_shows_clean_adversarial_and_difference(
    empty_site: story.Site, page: Page, judged: Job
) -> None:
    page.goto(f"{empty_site.url}/entries/{judged.id}")
    expect(page.locator("h1")).to_have_text("ikl-at-digits")
    expect(page.locator(".marks")).to_contain_text(re.compile(r"Rank \d+ of \d+"))
    expect(page.locator("#warnings")).to_contain_text(story.WARNING)
    expect(page.locator(".gallery li")).to_have_count(12)
    expect(page.locator(".gallery img")).to_have_count(36)
    assert broken_images(page) == []
    sizes = page.evaluate("[...new Set([...document.images].map((i) => `${i.naturalWidth} ${i.width >= 80}`))]")
    assert sizes == ["16 true"]  # enlarged by the browser, pixel by pixel
    assert page.locator(".gallery img").first.evaluate("(i) => getComputedStyle(i).imageRendering") == "pixelated"
    first = page.locator(".gallery li").first
    expect(first).to_contain_text("broken by apgd-ce")
    expect(first).to_contain_text("difference \N{MULTIPLICATION SIGN} 15.9")
    expect(first.locator("figcaption b")).to_have_text(["airplane", "automobile"])


def test_choosing_replaces_the_gallery_only_and_can_be_bookmarked(
    empty_site: story.Site, page: Page, new_page: NewPage, judged: Job
) -> None:
    page.goto(f"{empty_site.url}/entries/{judged.id}")
    page.evaluate("document.querySelector('h1').dataset.untouched = 'yes'")
    everything = seen(page)
    page.get_by_label("Broken by").select_option("fab-t")
    expect(page.locator("#gallery [aria-live]")).to_have_text("12 images")
    expect(page.locator(".gallery li").first).to_contain_text("broken by fab-t")
    chosen = seen(page)
    assert chosen != everything
    assert page.locator("h1").get_attribute("data-untouched") == "yes"
    assert broken_images(page) == []
    other = new_page()
    other.goto(page.url)
    assert seen(other) == chosen
    page.go_back()
    expect(page.locator("#gallery [aria-live]")).to_have_text("60 images")
    assert seen(page) == everything


@pytest.mark.parametrize("javascript", [True, False])
def test_the_gallery_turns_and_the_confusion_switches(
    empty_site: story.Site, new_page: NewPage, judged: Job, javascript: bool
) -> None:
    page = new_page(java_script_enabled=javascript)
    page.goto(f"{empty_site.url}/entries/{judged.id}")
    before = seen(page)
    page.get_by_role("link", name="Next").click()
    expect(page.locator(".pager")).to_contain_text("page 2 of 5")
    assert not set(seen(page)) & set(before)
    page.get_by_label("Class", exact=True).select_option("3")
    if not javascript:
        page.get_by_role("button", name="Show").click()
    expect(page.locator("#gallery [aria-live]")).to_have_text("6 images")
    assert all(label.startswith("cat") for label in seen(page))
    expect(page.locator("#confusion")).to_contain_text("40 of 60 images")
    page.get_by_role("link", name="without an attack").click()
    expect(page.locator("#confusion")).to_contain_text("10 of 60 images")
    expect(page.locator("#gallery [aria-live]")).to_have_text("6 images")
    expect(page.locator(".confusion tbody tr")).to_have_count(10)


def test_files_are_taken_along(empty_site: story.Site, page: Page, judged: Job) -> None:
    page.goto(f"{empty_site.url}/entries/{judged.id}")
    with page.expect_download() as download:
        page.locator("#downloads").get_by_role("link", name="Evidence").click()
    assert download.value.suggested_filename == f"{judged.id}-evidence.safetensors"
    assert Path(download.value.path()).stat().st_size > 10_000


def test_a_published_entry_leads_to_its_paper_and_its_board(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/entries/robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10")
    expect(page.locator(".chip")).to_have_text("published")
    paper = page.get_by_role("link", name="Decoupled Kullback-Leibler Divergence Loss", exact=True)
    expect(paper).to_have_attribute("href", re.compile("^https://arxiv.org/"))
    page.locator(".crumb").get_by_role("link", name="CIFAR-10, Linf, eps 8/255").click()
    expect(page.locator("h1")).to_have_text("CIFAR-10, Linf, eps 8/255")


@pytest.mark.parametrize("width", [320, pytest.param(390, marks=pytest.mark.slow), 768])
def test_narrow_screens_scroll_the_matrix_and_not_the_page(
    empty_site: story.Site, new_page: NewPage, judged: Job, width: int
) -> None:
    page = new_page(viewport={"width": width, "height": 800})
    page.goto(f"{empty_site.url}/entries/{judged.id}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert broken_images(page) == []
