"""The distillation boards in a browser: choosing, sorting, searching, addresses; with and without JavaScript."""

import re
from collections.abc import Callable

import pytest
import story
from playwright.sync_api import Page, expect

NewPage = Callable[..., Page]
ROWS = "table.kd tbody tr"


def numbers(page: Page, column: str = "robust b") -> list[float]:
    return [float(text.replace("\u2212", "-")) for text in page.locator(f"{ROWS} td.{column}").all_inner_texts()]


def test_a_board_shows_its_rows_and_what_methods_gain(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/distillation")
    expect(page).to_have_title("Distillation, CIFAR-100, same family · dkl-bench")
    expect(page.locator(ROWS)).to_have_count(50)
    assert numbers(page) == sorted(numbers(page), reverse=True)
    row = page.locator(ROWS).filter(has_text="IKL-KD").filter(has_text="ResNet8x4")
    expect(row).to_contain_text("76.59")
    expect(row.locator(".teacher")).to_contain_text("79.42")
    expect(row.locator(".gain")).to_have_text(re.compile(r"\+4\.09"))
    expect(row.get_by_role("link", name="IKL paper, Table 13")).to_have_attribute("href", re.compile("arxiv"))
    expect(page.get_by_role("img", name="Gain over the student alone")).to_be_visible()
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_text("page 2 of 3")).to_be_visible()
    page.go_back()
    expect(page.get_by_text("page 1 of 3")).to_be_visible()


def test_choosing_a_pair_draws_its_accuracies(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/distillation?board=imagenet")
    page.get_by_label("Teacher", exact=True).select_option("ResNet50")
    page.get_by_label("Student", exact=True).select_option("MobileNet-V1")
    expect(page).to_have_url(re.compile("teacher=ResNet50&student=MobileNet-V1"))
    picture = page.get_by_role("img", name="Top-1 accuracy, ResNet50 to MobileNet-V1")
    expect(picture).to_contain_text("teacher alone 76.16")
    expect(picture).to_contain_text("student alone 68.87")
    expect(picture.locator("circle")).to_have_count(page.locator(ROWS).count())
    page.get_by_text("Table", exact=True).click()
    expect(page.locator("figure table")).to_contain_text("72.84 %")


def test_sorting_searching_and_going_back(site: story.Site, page: Page, new_page: NewPage) -> None:
    page.goto(f"{site.url}/distillation?board=cifar100-different")
    page.get_by_role("link", name="Gain").click()
    expect(page.locator("th.gain")).to_have_attribute("aria-sort", "descending")
    assert numbers(page, "gain span:first-child") == sorted(numbers(page, "gain span:first-child"), reverse=True)
    page.get_by_role("searchbox").press_sequentially("mdistiller", delay=30)
    expect(page.locator(ROWS)).to_have_count(11)
    other = new_page()
    other.goto(page.url)
    assert numbers(other) == numbers(page)
    page.get_by_role("link", name="ImageNet-LT").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Distillation, ImageNet-LT")
    expect(page.get_by_role("searchbox")).to_have_value("")
    page.go_back()
    expect(page.locator(ROWS)).to_have_count(11)


@pytest.mark.parametrize("width", [390, 1280])
def test_works_without_javascript(site: story.Site, new_page: NewPage, width: int) -> None:
    page = new_page(java_script_enabled=False, viewport={"width": width, "height": 844})
    page.goto(f"{site.url}/distillation?board=imagenet")
    page.locator("#student").select_option("ResNet18")
    page.locator("#method").select_option("KD")
    with page.expect_navigation():
        page.get_by_role("button", name="Show").click()
    assert {text.split("\n")[0] for text in page.locator(f"{ROWS} th").all_inner_texts()} == {"KD"}
    with page.expect_navigation():
        page.locator("thead").get_by_role("link", name="Top-1").click()
    expect(page.locator("th.robust")).to_have_attribute("aria-sort", "ascending")
    assert numbers(page) == sorted(numbers(page))
    assert "student=ResNet18" in page.url


def test_nothing_found_leads_back(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/distillation?search=nothing-is-called-so")
    page.get_by_role("link", name="Show all of this board").click()
    expect(page.locator(ROWS).first).to_be_visible()
