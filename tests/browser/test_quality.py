"""What every page promises, however it is read: with a keyboard, aloud, on paper, on a phone, without scripts."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx2
import pages
import pytest
import story
from fastapi.routing import iter_route_contexts
from pages import PAGES, Place
from playwright.sync_api import Browser, Page, Response, expect
from pydantic import BaseModel

from service.app import create_app
from service.settings import Settings

NewPage = Callable[..., Page]
HERE = Path(__file__).parent
AXE = (HERE.parent / "data" / "axe" / "axe-core-4.14.1.min.js").read_text()
PROMISES = (HERE / "promises.js").read_text()
NARROW = (
    "label",
    "select-name",
    "button-name",
    "link-name",
    "scrollable-region-focusable",
    "aria-required-children",
)
"""Rules of axe-core for what a narrow screen shows in another way."""
SCRIPT = "<script>document.title='owned'</script>"
MACHINES = ("/livez", "/readyz", "/metrics")
"""What only programs ask."""
BAD = [
    *("", "nan", "-inf", "-1", "0", "1000000000", "1" + "0" * 40, "0x10", "None", "[]", "{}", "*", "%", "_"),
    *(SCRIPT, "\"'><img src=x onerror=alert(1)>", "'; DROP TABLE jobs; --", "../../../etc/passwd", "{{7*7}}"),
    *("\x00", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "\u202e\U0001f600", "x" * 10_240),
]
"""Values for any parameter of any address."""
WORST = ["nan", SCRIPT, "'; DROP TABLE jobs; --", "\x00", "x" * 10_240]


@pytest.fixture(scope="module")
def ids(site: story.Site) -> Iterator[dict[str, str]]:
    with pages.told(site) as told:
        yield told


@pytest.fixture(scope="module")
def session(site: story.Site, browser: Browser) -> Any:
    """What a browser keeps of an admin who has signed in."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/signin")
    page.get_by_label("API key").fill(pages.admin_key(site))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site.url}/")
    kept = context.storage_state()
    context.close()
    return kept


Open = Callable[..., tuple[Page, Response]]


@pytest.fixture
def open_place(site: story.Site, ids: dict[str, str], session: Any, new_page: NewPage) -> Open:
    """Opens a page of the list; whether it is as it should be, the test says."""

    def open_(place: Place, **options: Any) -> tuple[Page, Response]:
        expected = "Failed to load resource" if place.status >= 400 else "\0"
        page = new_page(expected=expected, storage_state=session if place.admin else None, **options)
        answer = page.goto(site.url + place.address.format(**ids))
        assert answer is not None
        assert answer.status == place.status, page.locator("main").inner_text()[:300]
        page.evaluate("document.getAnimations().forEach((animation) => animation.cancel())")
        return page, answer

    return open_


def _parameters(*, pages: bool) -> list[tuple[str, list[str], list[str]]]:
    """Path, names in the path, and names in the query of every page; or of everything else that can be read."""
    app = create_app(Settings(database_url="sqlite://", broker_url="", data_dir=Path("/nonexistent")))
    app.state.dkl.db.dispose()
    found = []
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        is_page = "." not in route.path_format and not route.path_format.startswith(("/api/v1", *MACHINES))
        if dependant and "GET" in (route.methods or ()) and is_page == pages:
            query: list[str] = []
            for field in dependant.query_params:
                kind = field.field_info.annotation
                is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
                query += kind.model_fields if is_model else [field.alias]
            found.append((route.path_format, [field.alias for field in dependant.path_params], query))
    return found


MOST = [pytest.param(name, marks=[pytest.mark.slow] if place.again else []) for name, place in PAGES.items()]
FIRST = ("leaderboard", "entry, measured", "jobs", "job, running", "submit", "distillation", "documents", "keys")
"""A page of every kind."""


# --- each page ------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_list() -> None:
    addresses = [urlsplit(place.address).path for place in PAGES.values()]
    patterns = {path: re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) for path, _, _ in _parameters(pages=True)}
    assert [p for p, pattern in patterns.items() if not any(re.fullmatch(pattern, a) for a in addresses)] == []


@pytest.mark.parametrize("name", FIRST)
def test_pages_keep_the_promises(open_place: Open, name: str) -> None:
    require_promises(open_place, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [one for one in MOST if one.values[0] not in FIRST])
def test_every_page_keeps_the_promises(open_place: Open, name: str) -> None:
    require_promises(open_place, name)


def require_promises(open_place: Open, name: str) -> None:
    page, answer = open_place(PAGES[name])
    broken = [*_headers(answer), *page.evaluate(PROMISES), *_violations(page)]
    broken += _with_a_keyboard(page)
    page.emulate_media(color_scheme="dark")
    broken += [f"dark: {sentence}" for sentence in _violations(page, "color-contrast")]
    page.emulate_media(color_scheme="light")
    broken += _sideways(page, 390)
    broken += [f"narrow: {sentence}" for sentence in _violations(page, *NARROW)]
    broken += _on_paper(page)
    assert broken == [], "\n" + "\n".join(broken)


def _headers(answer: Response) -> list[str]:
    policy = answer.headers.get("content-security-policy", "")
    lax = "unsafe" in policy or "*" in policy or "http:" in policy or "https:" in policy
    return [f"a lax policy: {policy}"] if lax or "default-src 'self'" not in policy else []


def _violations(page: Page, *rules: str) -> list[str]:
    """What axe-core calls serious or critical; all rules, or these."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = list(rules)
    found = page.evaluate("(options) => axe.run(document, options)", options)["violations"]
    return [
        f"axe {violation['id']} ({violation['impact']}): "
        + " | ".join(f"{node['html'][:160]} {node['failureSummary']}" for node in violation["nodes"][:3])
        for violation in found
        if violation["impact"] in {"serious", "critical"}
    ]


def _with_a_keyboard(page: Page) -> list[str]:
    """The skip link leads to the content, and whatever has the focus shows it."""
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.locator(".skip").focus()
    broken = [] if page.locator(".skip").bounding_box()["x"] >= 0 else ["the skip link is not seen"]  # type: ignore[index]
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    if page.evaluate(_LEFT_OUT):
        broken.append("the skip link does not lead to the content")
    for _ in range(8):
        if said := page.evaluate(_UNSEEN_FOCUS):
            broken.append(f"the focus is not seen on {said}")
        page.keyboard.press("Tab")
    return broken


# Whether the content has something to stop at, and the focus is not there.
_LEFT_OUT = """() => {
  const main = document.querySelector("main")
  const stops = [...main.querySelectorAll("a, button, input, summary, select")].filter((n) => n.checkVisibility())
  return stops.length > 0 && !main.contains(document.activeElement)
}"""
_UNSEEN_FOCUS = """() => {
  const node = document.activeElement
  if (node === document.body) return ""
  const style = getComputedStyle(node)
  const seen = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== "none"
  return seen ? "" : node.outerHTML.slice(0, 120)
}"""


def _sideways(page: Page, width: int) -> list[str]:
    if page.viewport_size != {"width": width, "height": 844}:
        page.set_viewport_size({"width": width, "height": 844})
        page.evaluate(_TWO_FRAMES)  # what scripts draw follows the size in the next one
    found: int = page.evaluate("document.documentElement.scrollWidth")
    if found <= width:
        return []
    wide = page.evaluate(_WIDEST, width)
    return [f"scrolls sideways: {found} at {width} pixels, for {wide}"]


_TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_WIDEST = """(width) => {
  const clipped = (node) => node.parentElement?.closest(".scroll, pre, nav, details:not([open]), .unseen")
  const wide = (node) => !clipped(node) && node.getBoundingClientRect().right > width + 0.5
  return [...document.body.querySelectorAll("*")].filter(wide).slice(-2).map((n) => n.outerHTML.slice(0, 120))
}"""


def _on_paper(page: Page) -> list[str]:
    """The content, without what one clicks on; on A4, which is 718 pixels wide, if need be at 2/3 of the size."""
    page.emulate_media(media="print")
    broken = _sideways(page, 1077)
    if page.locator("header nav").first.is_visible():
        broken.append("the navigation is printed")
    if not page.locator("h1").is_visible():
        broken.append("the heading is not printed")
    page.emulate_media(media="screen")
    return broken


@pytest.mark.parametrize("name", MOST)
def test_every_page_is_there_without_javascript(open_place: Open, name: str) -> None:
    page, _ = open_place(PAGES[name], java_script_enabled=False, viewport={"width": 390, "height": 844})
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("main")).not_to_be_empty()
    assert page.locator("main").inner_text().count(" ") > 8
    assert page.locator("[hidden]:not(#stale)").count() == 0
    assert _sideways(page, 390) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
@pytest.mark.parametrize("name", PAGES)
def test_at_every_width_in_light_and_dark(open_place: Open, name: str, width: int, scheme: str) -> None:
    page, _ = open_place(PAGES[name], viewport={"width": width, "height": 844}, color_scheme=scheme)
    broken = [*_violations(page), *_sideways(page, width)]
    assert broken == [], "\n" + "\n".join(broken)


def test_the_policy_is_kept(site: story.Site, browser: Browser) -> None:
    """Inline code, inline style, frames and everything from elsewhere: the browser refuses all of it."""
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(site.url)
    page.evaluate(_INTRUDE)
    page.wait_for_function("window.refused.length >= 6")
    assert set(page.evaluate("window.refused")) == {
        "script-src-elem", "script-src-attr", "style-src-attr", "img-src", "connect-src", "frame-src",
    }  # fmt: skip
    assert page.title() != "owned"
    assert any("Content Security Policy" in text for text in refused)
    context.close()


_INTRUDE = """() => {
  window.refused = []
  document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.effectiveDirective))
  const script = document.createElement("script")
  script.textContent = "document.title = 'owned'"
  const main = document.querySelector("main")
  main.append(script)
  main.insertAdjacentHTML("beforeend", `<p style="color: red"></p><iframe src="http://example.org/"></iframe>
    <img src="http://example.org/x.png"><button onclick="document.title = 'owned'"></button>`)
  main.querySelector("button[onclick]").click()
  fetch("http://example.org/").catch(() => {})
}"""


# --- links ----------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The addresses that a page leads to, and the ids that one can be led to on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        for name in ("href", "src", "hx-get"):
            if (link := given.get(name)) and tag != "base":
                self.links.append(link)


@pytest.fixture
def http(site: story.Site, session: Any) -> Iterator[httpx2.Client]:
    """A browser without a window, signed in as an admin."""
    cookies = {cookie["name"]: cookie["value"] for cookie in session["cookies"]}
    with httpx2.Client(base_url=site.url, headers={"Accept": "text/html"}, cookies=cookies, timeout=60) as client:
        yield client


@pytest.mark.long
def test_links_lead_somewhere(http: httpx2.Client, ids: dict[str, str]) -> None:
    """One link of every shape: what differs by an id, or by the value of a parameter, is taken for the same."""
    assert _dangling(http, ids, _shape) == []


@pytest.mark.slow
def test_all_links_lead_somewhere(http: httpx2.Client, ids: dict[str, str]) -> None:
    assert _dangling(http, ids, lambda link: link) == []


def _dangling(http: httpx2.Client, ids: dict[str, str], shape: Callable[[str], Any]) -> list[str]:
    seen: set[Any] = set()
    broken = []
    for name, place in PAGES.items():
        for link in Links(http.get(place.address.format(**ids)).text).links:
            inside = link.startswith("/") and not link.startswith("//") and not link.endswith("/events")
            if inside and shape(link) not in seen:
                seen.add(shape(link))
                answer = http.get(link, follow_redirects=True)
                fragment = urlsplit(link).fragment
                if answer.status_code != 200 or (fragment and fragment not in Links(answer.text).ids):
                    broken.append(f"{name}: {link} answers {answer.status_code}")
            elif not inside and not re.match(r"https?://|#|mailto:|data:", link) and not link.endswith("/events"):
                broken.append(f"{name}: {link} leads nowhere")
    return broken


def _shape(link: str) -> Any:
    parts = urlsplit(link)
    path = re.sub(r"(?<=/)([0-9a-f]{12}|robustbench-.*|paper-.*|\d+)(?=/|$)", "*", parts.path)
    return path, tuple(name for name, _ in parse_qsl(parts.query)), bool(parts.fragment)


# --- bad addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "/?dataset=cifar10&page=1000000000",
        "/?page=0",
        "/?sort=luck",
        "/?eps=nan",
        "/?eps=-1",
        "/?threat_model=L7",
        f"/?search={'x' * 10_240}",
        "/entries/nothing",
        "/entries/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/compare?entry=nothing&entry=nobody",
        "/compare?entry=nothing" + "&entry=nothing" * 20,
        "/jobs/000000000000",
        "/jobs/<script>",
        "/submit?recipe=nothing",
        "/distillation?board=nothing",
        "/distillation?sort=luck",
        "/distillation?page=1000000000",
        f"/distillation?search={'x' * 10_240}",
        "/docs/nothing",
        "/docs/..%2f..%2fREADME",
        "/docs/%2e%2e/README.md",
        "/docs/evaluation.md.png",
        f"/docs?search={'x' * 10_240}",
        "/audit?before=0",
        "/audit?before=soon",
        "/nowhere",
        "/" + "x" * 10_240,
    ],
)
def test_a_bad_address_gets_a_page_that_says_so(http: httpx2.Client, address: str) -> None:
    answer = http.get(address)
    assert answer.status_code in {404, 422}, answer.text[:500]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.count("<h1") == 1
    assert len(answer.text) < 60_000
    assert 'href="/"' in answer.text


@pytest.mark.parametrize("address", [f"/?search={SCRIPT}", f"/jobs/{SCRIPT}", f"/?sort={SCRIPT}", f"/{SCRIPT}"])
def test_what_stands_in_an_address_is_never_run(site: story.Site, new_page: NewPage, address: str) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(site.url + address)
    assert page.title() != "owned"
    assert page.locator("main script").count() == 0


@pytest.mark.parametrize("values", [WORST, pytest.param(BAD, marks=pytest.mark.slow)], ids=["worst", "all"])
@pytest.mark.parametrize(("path", "within", "query"), _parameters(pages=True))
def test_no_value_of_any_parameter_of_a_page_is_too_much(
    http: httpx2.Client, ids: dict[str, str], path: str, within: list[str], query: list[str], values: list[str]
) -> None:
    assert _overwhelmed(http, ids, path, within, query, values) == []


@pytest.mark.slow
@pytest.mark.parametrize(("path", "within", "query"), _parameters(pages=False))
def test_no_value_of_any_parameter_of_anything_else_is_too_much(
    http: httpx2.Client, ids: dict[str, str], path: str, within: list[str], query: list[str]
) -> None:
    assert _overwhelmed(http, ids, path, within, query, BAD) == []


def _overwhelmed(
    http: httpx2.Client, ids: dict[str, str], path: str, within: list[str], query: list[str], values: list[str]
) -> list[str]:
    """The addresses at which a bad value does worse than being refused."""
    known = {
        "job_id": ids["training"],
        "entry": ids["measured"],
        "name": "evaluation",
        "row": "0",
        "which": "clean",
    }
    good = {name: known.get(name, "nothing") for name in within}
    addresses = [f"{path.format(**good)}?{name}={quote(bad)}" for name in query for bad in values]
    for name in within:
        addresses += [path.format(**{**good, name: quote(bad, safe="")}) for bad in values if bad]
    broken = []
    for address in addresses:
        answer = http.get(address)
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        if answer.status_code >= 500 or (is_page and SCRIPT in answer.text):
            broken.append(f"{address[:200]} answers {answer.status_code}")
    return broken
