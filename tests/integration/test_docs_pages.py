"""The documents as pages: what Markdown becomes, links, pictures, searching, and what is not served."""

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.db import connect, migrate
from service.settings import Settings
from service.web import document_sources
from service.web.document_sources import FOLDER, HOME, paths
from service.web.documents import Library

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"),
        database_url="",
        broker_url="",
        anonymous="submit",
        requests_per_minute=100_000,
    )
    db = connect(settings.database)
    migrate(db)
    db.dispose()
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=HTML) as client:
        yield client


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents of the test's own."""
    monkeypatch.setattr(document_sources, "FOLDER", tmp_path)
    return tmp_path


DOCUMENTS = {name: path for name, path in paths().items() if name != HOME}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if link := given.get("href") or given.get("src"):
            self.links.append(link)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_a_page_with_all_it_says(client: TestClient, name: str) -> None:
    response = client.get(f"/docs/{name}")
    assert response.status_code == 200
    page = Page(response.text)
    assert len(set(page.ids)) == len(page.ids)
    plain = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", response.text)))
    text = document_sources.markdown(DOCUMENTS[name], client.app.openapi)
    prose = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        assert re.sub(r"[`*]", "", heading) in plain
    assert response.text.count("<table>") == len(re.findall(r"^\|[ :|-]*-[ :|-]*\|$", prose, re.MULTILINE))
    assert "&lt;!--" not in response.text
    assert "style=" not in response.text
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif link.startswith("/docs"):
            there = client.get(link)
            assert there.status_code == 200, link
            if "#" in link and there.headers["content-type"].startswith("text/html"):
                assert link.partition("#")[2] in Page(there.text).ids, link
        else:
            assert link.startswith(("/", "https://", "data:image/png;base64,")), link


def test_the_list_leads_to_every_document(client: TestClient) -> None:
    links = Page(client.get("/docs").text).links
    for name in DOCUMENTS:
        assert f"/docs/{name}" in links


def test_pictures_are_served(client: TestClient) -> None:
    response = client.get("/docs/leaderboard.png")
    assert response.headers["content-type"] == "image/png"
    assert response.content == (FOLDER / "leaderboard.png").read_bytes()
    drawn = client.get("/docs/concepts.svg")
    assert drawn.headers["content-type"] == "image/svg+xml"
    assert "default-src 'self'" in drawn.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "nothing",
            "nothing.png",
            "leaderboard",
            "evaluation.md",
            "evaluation%00",
            "%00.png",
            "..%2ficon.png",
            "index",
            "nothing.svg",
        ),
        *("..%2fREADME", "%2e%2e/README", "../docs/../README", "..%5cREADME", ".%2fevaluation"),
        *("..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"),
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    response = client.get(f"/docs/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_markdown_becomes_html_and_html_stays_text(shelf: Path) -> None:
    (shelf / "far").mkdir()
    (shelf / "far" / "other.md").write_text("# Other\n\n## Far away\n\n[back](../one.md), [up](../index.md)\n")
    (shelf / "index.md").write_text("# Home\n")
    (shelf / "one.md").write_text(
        "# One & all\n\nIt begins here. It goes on.\n\n## Is it *well*?\n\n<script>alert(1)</script>\n\n"
        "A <b onclick='x'>bold</b> word, [there](far/other.md#far-away), [here](#is-it-well),\n"
        "[out](https://example.org/), [code](../tests/conftest.py), [bad](javascript:alert(1)),\n"
        "![seen](far/seen.png)\n\n## Is it well?\n\n"
        "<!-- kept for a program -->\n| a | b |\n| :-- | --: |\n| `x` | 1 |\n\n"
        "    code & more\n\n```sh\nrun <it>\n```\n"
    )
    library = Library(dict)
    one = library.document("one")
    assert (one.title, one.about) == ("One & all", "It begins here.")
    assert [(section.level, section.anchor, section.title) for section in one.sections] == [
        (1, "one--all", "One & all"),
        (2, "is-it-well", "Is it well?"),
        (2, "is-it-well-1", "Is it well?"),
    ]
    assert "<h1" not in one.html
    assert "<script" not in one.html
    assert "<b onclick" not in one.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in one.html
    assert "kept for a program" not in one.html
    assert '<h2 id="is-it-well">Is it <em>well</em>? <a class="here" href="#is-it-well"' in one.html
    for link in (
        'href="/docs/far/other#far-away"',
        'href="#is-it-well"',
        'href="https://example.org/"',
        'src="/docs/far/seen.png"',
    ):
        assert link in one.html
    assert "javascript:" not in one.html.replace("[bad](javascript:alert(1))", "")
    assert '<a title="tests/conftest.py, only in the repository">code</a>' in one.html
    assert '<th scope="col" class="n">b</th>' in one.html
    assert '<td class="n">1</td>' in one.html
    assert "run &lt;it&gt;" in one.html
    assert "code &amp; more" in one.html
    other = library.document("far/other").html
    assert 'href="/docs/one"' in other
    assert 'href="/docs"' in other
    assert list(library.documents) == ["far/other", "one"]
    assert list(library.groups) == ["More"]


def test_searching_finds_sections_with_words_around(shelf: Path) -> None:
    (shelf / "one.md").write_text(
        "# One\n\n" + "before " * 40 + "the needle's eye" + " after" * 40 + "\n\n## Needles\n\nno more\n"
    )
    search = Library(dict).search
    first, second = search("NEEDLE", around=20)
    assert (first.section.anchor, first.found) == ("one", "needle")
    assert (first.before, first.after) == ("… before before the ", "'s eye after after …")
    assert (second.section.anchor, second.before, second.found, second.after) == ("needles", "", "Needle", "s")
    assert search("needle's   eye")[0].found == "needle's eye"
    assert search("   ") == search("nowhere") == []


def test_the_page_of_what_was_found(client: TestClient) -> None:
    found = client.get("/docs", params={"search": "Philox"})
    assert "<mark>Philox</mark>" in found.text
    assert 'href="/docs/evaluation#the-attacks"' in found.text
    hostile = client.get("/docs", params={"search": "<script>alert(1)</script>"})
    assert "<script>alert" not in hostile.text
    assert "No document has" in hostile.text
    assert client.get("/docs", params={"search": "x" * 101}).status_code == 422
