"""What holds for every page: errors, hostile names, narrow screens, dark rooms, readers without JavaScript."""

from collections.abc import Callable

import pytest
import story
from playwright.sync_api import Page, expect

from service import claims, jobs

NewPage = Callable[..., Page]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def addresses(site: story.Site) -> dict[str, str]:
    newest = jobs.recent(site.db)
    # The first one: other tests of this process may have trained more on the same site.
    training = next(job for job in reversed(newest) if job.kind == "train" and job.clean_accuracy == 0.95)
    judged = {job.robust_accuracy: job for job in newest if job.kind == "evaluate"}
    return {
        "board": f"{site.url}/?dataset=digits",
        "published": f"{site.url}/?dataset=cifar10",
        "jobs": f"{site.url}/jobs",
        "workers": f"{site.url}/workers",
        "training": f"{site.url}/jobs/{training.id}",
        "judged": f"{site.url}/jobs/{judged[0.71].id}",
        "screened": f"{site.url}/jobs/{judged[0.73].id}",
        "stopped": f"{site.url}/jobs/{judged[0.55].id}",
        "audited": f"{site.url}/jobs/{judged[0.65].id}",
        "interface": f"{site.url}/api/docs",
    }


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


@pytest.mark.parametrize("width", [320, 380, 768, 1280])
def test_no_page_scrolls_sideways(addresses: dict[str, str], new_page: NewPage, width: int) -> None:
    page = new_page(viewport={"width": width, "height": 800})
    for name, address in addresses.items():
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(addresses: dict[str, str], new_page: NewPage, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    for address in addresses.values():
        page.goto(address)
        page.evaluate("document.getAnimations().forEach((animation) => animation.cancel())")
        assert page.evaluate(_FAINT) == []
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 27)"}[scheme]


# Texts with a contrast under 4.5 (WCAG AA) against what is behind them.
_FAINT = """() => {
  const light = (rgb) => rgb.map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number)
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor)
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3)
    }
    return [255, 255, 255]
  }
  const faint = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement
    if (!walker.currentNode.data.trim() || node.closest("svg, .arrow, script") || !node.checkVisibility()) continue
    const [a, b] = [light(numbers(getComputedStyle(node).color).slice(0, 3)), light(behind(node))]
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`)
  }
  return faint
}"""


def test_everything_is_there_without_javascript(addresses: dict[str, str], new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(addresses["training"])
    expect(page.locator("#result")).to_contain_text("95.00 %")
    page.get_by_text("Table of epochs").click()
    expect(page.locator("#epochs tr")).to_have_count(30)
    page.goto(addresses["jobs"])
    page.get_by_role("link", name="ikl-at-digits").first.click()
    expect(page.locator("#history")).to_contain_text("queued by anonymous")


def test_pages_hold_no_inline_code_or_style(addresses: dict[str, str], new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    for address in addresses.values():
        answer = page.goto(address)
        assert answer is not None
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert page.locator("[style], style, script:not([src])").count() == 0
        for attribute in page.locator("script, link").all():
            source = attribute.get_attribute("src") or attribute.get_attribute("href")
            assert source is not None
            assert source.startswith("/static/")


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
