"""The documents in a browser, at the service and as the site of `make docs`: contents, anchors, searching."""

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import story
from docs_site import build
from playwright.sync_api import Browser, Page, expect

NewPage = Callable[..., Page]


def test_from_the_list_to_a_section(site: story.Site, page: Page) -> None:
    page.goto(f"{site.url}/docs")
    page.get_by_role("heading", name="How a model is judged").get_by_role("link").click()
    expect(page).to_have_title("How a model is judged · dkl-bench")
    page.get_by_role("navigation", name="Documents and sections").get_by_role("link", name="What is kept").click()
    expect(page).to_have_url(re.compile("/docs/evaluation#what-is-kept$"))
    expect(page.locator("#what-is-kept")).to_be_in_viewport()


def test_searching_without_javascript(site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{site.url}/docs/training")
    page.get_by_role("searchbox").fill("Philox")
    page.get_by_role("searchbox").press("Enter")
    hit = page.locator(".hits li").filter(has_text="The attacks")
    expect(hit.locator("mark")).to_have_text("Philox")
    hit.get_by_role("link").click()
    expect(page.locator("#the-attacks")).to_be_in_viewport()


def test_wide_tables_scroll_by_themselves(site: story.Site, new_page: NewPage) -> None:
    page = new_page(viewport={"width": 390, "height": 844})
    for name in ("training", "operations", "recipes", "rest-api", "extending/attack", "evaluation"):
        page.goto(f"{site.url}/docs/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some((n) => n.scrollWidth > n.clientWidth)")


def test_the_picture_is_drawn_for_the_colours_of_the_page(site: story.Site, new_page: NewPage) -> None:
    """Its style sheet is inside of it, and the service's content security policy lets it be."""
    corner = (
        "async () => { const image = document.querySelector('img[src$=\"concepts.svg\"]'); await image.decode();"
        "const canvas = document.createElement('canvas'); canvas.width = 732; canvas.height = 392;"
        "const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 732, 392);"
        "return context.getImageData(230, 200, 1, 1).data[0]; }"
    )
    for scheme, low, high in (("light", 250, 255), ("dark", 0, 60)):
        page = new_page(color_scheme=scheme)
        page.goto(f"{site.url}/docs/concepts")
        assert low <= page.evaluate(corner) <= high


# --- the site -----------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing: what is asked for is no news."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def find(page: Page, words: str, title: str) -> None:
    """Search the site for `words` and go to the section called `title`."""
    page.get_by_role("button", name="Search").first.click()
    page.get_by_role("combobox", name="Search").fill(words)
    expect(page.get_by_text(title, exact=True).first).to_be_visible()
    page.get_by_role("combobox", name="Search").press("Enter")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 390),
        pytest.param("dark", 1280, marks=pytest.mark.long),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("light", 1280), ("dark", 390))),
    ],
)
def test_the_site_is_read_in_every_size_and_colour(
    address: str, folder: Path, new_page: NewPage, scheme: str, width: int
) -> None:
    page = new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    for name in ("index", "numbers", "recipes", "rest-api", "operations", "extending/attack"):
        page.goto(f"{address}/{name}.html")
        expect(page.locator("article h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        broken = "[...document.images].filter((image) => image.complete && !image.naturalWidth).length"
        assert page.evaluate(broken) == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (sum(ground) > 600) == (scheme == "light")


def test_the_site_is_searched(address: str, page: Page) -> None:
    page.goto(f"{address}/index.html")
    find(page, "hypergeometric", "Audited evaluations")
    expect(page).to_have_url(re.compile(r"numbers\.html.*#audited-evaluations$"))
    expect(page.locator("#audited-evaluations")).to_be_in_viewport()


def test_the_site_is_read_and_searched_without_a_server(folder: Path, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: message.type in {"error", "warning"} and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.goto((folder / "index.html").as_uri())
    find(page, "hypergeometric", "Audited evaluations")
    expect(page.locator("#audited-evaluations")).to_be_in_viewport()
    context.close()
    assert complaints == []
