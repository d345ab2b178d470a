"""The site that `make docs` builds: every link and anchor leads somewhere, every page is in the navigation, and
nothing is loaded from another host."""

import hashlib
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from docs_site import ROOT, build

from service.web.document_sources import HOME, paths

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""What a browser fetches by itself."""


class Link(NamedTuple):
    tag: str
    target: str


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[Link] = []
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        attribute = _LOADS.get(tag, "href")
        if target := given.get(attribute):
            self.links.append(Link(tag, target))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}


def test_every_document_is_a_page_and_every_page_is_in_the_navigation(
    folder: Path, pages: dict[Path, Page]
) -> None:
    assert {path.relative_to(folder).with_suffix("").as_posix() for path in pages} == set(paths())
    home = folder / f"{HOME}.html"
    reached = {(home.parent / link.target).resolve() for link in pages[home].links if link.tag == "a"}
    assert {path.resolve() for path in pages} <= reached


def test_every_link_and_every_anchor_leads_somewhere(folder: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), path
        for link in page.links:
            target = urlsplit(link.target)
            if target.scheme or target.netloc:
                continue
            there = (path.parent / unquote(target.path)).resolve() if target.path else path
            found = there.is_file() and there.is_relative_to(folder)
            if found and target.fragment and there in pages:
                found = unquote(target.fragment) in pages[there].ids
            if not found:
                broken.append((path.name, link.target))
    assert broken == []


def test_nothing_is_loaded_from_another_host(folder: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            if link.tag in _LOADS:
                assert not urlsplit(link.target).netloc, (path.name, link)
            else:
                assert urlsplit(link.target).scheme in {"", "https"}, (path.name, link)
    for sheet in folder.rglob("*.css"):
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet


def test_what_is_vendored_is_unchanged() -> None:
    scripts = ROOT / "docs_theme" / "assets" / "javascripts"
    entries = tomllib.loads((scripts / "vendor.lock").read_text())["file"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in scripts.iterdir()}
    del found["vendor.lock"]
    assert found == {entry["file"]: entry["sha256"] for entry in entries}
