"""Errors, hostile names, readers without JavaScript, the description of the interface.

What holds for every page is in test_quality.py.
"""

from collections.abc import Callable

import pytest
import story
from playwright.sync_api import Page, expect

from service import claims, jobs

NewPage = Callable[..., Page]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/nowhere", 404, "there is nothing at /nowhere"),
        ("/jobs/000000000000", 404, "there is no job"),
        ("/?sort=luck", 422, "sort"),
        ("/?eps=-1", 422, "eps"),
    ],
)
def test_errors_are_pages_with_a_way_back(
    site: story.Site, new_page: NewPage, path: str, status: int, sentence: str
) -> None:
    page = new_page(expected="Failed to load resource")
    answer = page.goto(site.url + path)
    assert answer is not None
    assert answer.status == status
    expect(page.locator("main")).to_contain_text(sentence)
    page.get_by_role("link", name="To the leaderboard").click()
    expect(page.locator("table.board")).to_be_visible()


def test_hostile_names_and_reasons_are_text(site: story.Site, page: Page) -> None:
    job = jobs.create(site.db, story.resolve("natural-digits", {"seed": 5}), name=HOSTILE)
    claim = story.start(site.db, job)
    page.goto(f"{site.url}/jobs/{job.id}")
    claims.append(site.db, claim, story.progress(1, 2, HOSTILE))
    expect(page.locator("#doing")).to_contain_text(HOSTILE)
    claims.fail(site.db, claim, f"it said {HOSTILE}")
    expect(page.locator("#state")).to_contain_text(f"it said {HOSTILE}")
    expect(page.locator("h1")).to_have_text(HOSTILE)
    page.goto(f"{site.url}/jobs")
    expect(page.locator(f"tr[data-job='{job.id}']")).to_contain_text(HOSTILE)
    page.goto(f"{site.url}/?search={HOSTILE}")
    expect(page.locator(".empty")).to_contain_text(HOSTILE)
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 27)")])
def test_the_paper_has_the_colour_of_the_scheme(
    site: story.Site, new_page: NewPage, scheme: str, paper: str
) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(site.url)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == paper


def test_everything_is_there_without_javascript(site: story.Site, new_page: NewPage) -> None:
    # The first one: other tests of this process may have trained more on the same site.
    newest = jobs.recent(site.db)
    training = next(job for job in reversed(newest) if job.kind == "train" and job.clean_accuracy == 0.95)
    page = new_page(java_script_enabled=False)
    page.goto(f"{site.url}/jobs/{training.id}")
    expect(page.locator("#result")).to_contain_text("95.00 %")
    page.get_by_text("Table of epochs").click()
    expect(page.locator("#epochs tr")).to_have_count(30)
    page.goto(f"{site.url}/jobs")
    page.get_by_role("link", name="ikl-at-digits").first.click()
    expect(page.locator("#history")).to_contain_text("queued by anonymous")


def test_the_interface_is_described_and_its_links_lead_somewhere(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/api/docs")
    described = page.request.get(f"{site.url}/api/openapi.json").json()
    headings = page.locator("h2").all_inner_texts()
    for path, operations in described["paths"].items():
        is_for_machines = path in {"/livez", "/readyz", "/metrics"}
        assert is_for_machines or {f"{method.upper()} {path}" for method in operations} <= set(headings)
    dangling = "a => a.map(e => e.getAttribute('href')).filter(h => h[0] === '#' && !document.querySelector(h))"
    assert page.locator("a").evaluate_all(dangling) == []
    page.get_by_role("link", name="JobRequest").first.click()
    expect(page.locator("#JobRequest")).to_be_in_viewport()
