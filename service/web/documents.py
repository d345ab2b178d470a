"""The documents in docs/, as pages: headings to jump to, links between them, and searching."""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from service.web import document_sources as sources

REPOSITORY_ONLY = "only in the repository"


class UnknownDocumentError(LookupError):
    """There is no such document or picture; the message says which there are."""


class Section(NamedTuple):
    """A heading, with the text below it up to the next one."""

    anchor: str
    level: int
    """1 for the document's title."""
    title: str
    text: str


class Document(NamedTuple):
    name: str
    """In addresses: "extending/attack" is docs/extending/attack.md."""
    title: str
    html: str
    """Without the title."""
    sections: list[Section]
    """The first one has the title and what stands before all other headings."""

    @property
    def about(self) -> str:
        """What it begins with, up to the end of a sentence."""
        first = next((section.text for section in self.sections if section.text), "")
        return re.split(r"(?<=[.?!])\s", first, maxsplit=1)[0]


class Hit(NamedTuple):
    """A section in which something was found, and where."""

    document: Document
    section: Section
    before: str
    found: str
    after: str


class Library:
    """All documents, read when the first of them is asked for."""

    def __init__(self, openapi: Callable[[], Mapping[str, Any]]) -> None:
        """`openapi` returns the OpenAPI document, which one of the documents is made from."""
        self._openapi = openapi

    @cached_property
    def documents(self) -> dict[str, Document]:
        """Every document by its name, in the order to read them in."""
        paths = {name: path for name, path in sources.paths().items() if name != sources.HOME}
        return {
            name: _read(name, sources.markdown(path, self._openapi), known=paths) for name, path in paths.items()
        }

    @cached_property
    def groups(self) -> dict[str, list[Document]]:
        """The documents by what they are for."""
        left = dict(self.documents)
        groups = {
            title: [left.pop(name) for name in names if name in left] for title, names in sources.CONTENTS.items()
        }
        return {title: group for title, group in (groups | {"More": [*left.values()]}).items() if group}

    def document(self, name: str) -> Document:
        """The document of this name; UnknownDocumentError where there is none."""
        if name not in self.documents:
            raise UnknownDocumentError(f"there is no document {name!r}; there are {', '.join(self.documents)}")
        return self.documents[name]

    def search(self, text: str, *, around: int = 90) -> list[Hit]:
        """The sections that contain `text`, with the first place and up to `around` letters before and after."""
        needle = " ".join(text.split())
        if not needle:
            return []
        return [
            hit
            for each in self.documents.values()
            for section in each.sections
            if (hit := _hit(each, section, needle, around))
        ]


def _hit(document: Document, section: Section, needle: str, around: int) -> Hit | None:
    text = section.text if needle.casefold() in section.text.casefold() else section.title
    match = re.search(re.escape(needle), text, re.IGNORECASE)
    if match is None:
        return None
    before, after = text[: match.start()], text[match.end() :]
    if len(before) > around:
        before = "… " + before[-around:].partition(" ")[2]
    if len(after) > around:
        after = after[:around].rpartition(" ")[0] + " …"
    return Hit(document, section, before, match[0], after)


# --- from Markdown ----------------------------------------------------------------------------------------


def _read(name: str, text: str, known: Container[str]) -> Document:
    tokens = _MARKDOWN.parse(text)
    _name_headings(tokens)
    _follow_links(tokens, name, known)
    sections = list(_sections(tokens))
    shown = tokens[3:] if tokens and tokens[0].tag == "h1" else tokens
    html = str(_MARKDOWN.renderer.render(shown, _MARKDOWN.options, {}))
    return Document(name, sections[0].title, html, sections)


def _name_headings(tokens: Sequence[Token]) -> None:
    """Anchors as on GitHub: "Is it well?" is #is-it-well, and #is-it-well-1 the second time."""
    used: dict[str, int] = {}
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            anchor = re.sub(r"[^\w\- ]", "", _text([inline]).strip().lower()).replace(" ", "-")
            used[anchor] = used.get(anchor, -1) + 1
            heading.attrSet("id", f"{anchor}-{used[anchor]}" if used[anchor] else anchor)


def _follow_links(tokens: Sequence[Token], name: str, known: Container[str]) -> None:
    """Documents and pictures get their addresses; other files of the repository are not here, and no links."""
    for token in _inside(tokens):
        if token.type == "link_open":
            _follow(token, name, known)
        elif token.type == "image":
            source = str(token.attrGet("src"))
            if not urlsplit(source).scheme:
                token.attrSet("src", f"/docs/{sources.beside(name, source)}")
            token.attrSet("loading", "lazy")


def _follow(link: Token, name: str, known: Container[str]) -> None:
    target = urlsplit(str(link.attrGet("href")))
    if target.scheme or target.netloc or not target.path:
        return
    leads_to = sources.beside(name, target.path)
    other = re.sub(r"\.(md|ipynb)$", "", leads_to)
    fragment = f"#{target.fragment}" if target.fragment else ""
    if other == sources.HOME:
        link.attrSet("href", "/docs")
    elif other != leads_to and other in known:
        link.attrSet("href", f"/docs/{other}{fragment}")
    else:
        del link.attrs["href"]
        link.attrSet("title", f"{leads_to.removeprefix('../')}, {REPOSITORY_ONLY}")


def _sections(tokens: Sequence[Token]) -> Iterator[Section]:
    starts = [place for place, token in enumerate(tokens) if token.type == "heading_open"]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        heading, inline = tokens[start : start + 2]
        text = " ".join(_text(tokens[start + 3 : end]).split())
        yield Section(str(heading.attrGet("id")), int(heading.tag[1]), _text([inline]).strip(), text)


def _text(tokens: Sequence[Token]) -> str:
    """What is read, without marks; parts that stand apart are apart."""
    parts = []
    for token in _inside(tokens):
        if token.type in {"text", "code_inline", "fence", "code_block"}:
            parts.append(token.content)
        elif token.type in {"softbreak", "hardbreak"} or token.block:
            parts.append(" ")
    return "".join(parts)


def _inside(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _inside(token.children or ())


class _Renderer(RendererHTML):
    """HTML in a document is no HTML here: comments are left out, all else is shown as it is written."""

    def html_block(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        content = tokens[place].content
        return "" if content.lstrip().startswith("<!--") else f"<pre><code>{escape(content)}</code></pre>\n"

    def html_inline(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        content = tokens[place].content
        return "" if content.startswith("<!--") else escape(content)

    def table_open(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'

    def table_close(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def heading_close(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        anchor = tokens[place - 2].attrGet("id")
        title = escape(_text([tokens[place - 1]]).strip())
        return f' <a class="here" href="#{anchor}" aria-label="Link to: {title}">#</a></{tokens[place].tag}>\n'

    def th_open(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return f'<th scope="col"{_alignment(tokens[place])}>'

    def td_open(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return f"<td{_alignment(tokens[place])}>"

    def fence(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return f'<pre tabindex="0"><code>{escape(tokens[place].content)}</code></pre>\n'

    def code_block(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        return self.fence(tokens, place, options, env)


def _alignment(cell: Token) -> str:
    """A class for what Markdown would put into a style, which our pages do not have."""
    return ' class="n"' if cell.attrGet("style") == "text-align:right" else ""


_MARKDOWN = MarkdownIt("commonmark", renderer_cls=_Renderer).enable(["table", "strikethrough"])
