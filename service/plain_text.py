"""What a reader of HTML sees, as plain text. Nothing of the HTML is kept, so nothing of it can do harm."""

from html.parser import HTMLParser

_MATHS = {
    r"\ell_{\infty}": "Linf",
    r"\ell_\infty": "Linf",
    r"\ell_2": "L2",
    r"\varepsilon": "eps",
    r"\(": "",
    r"\)": "",
}


class _Text(HTMLParser):
    """Collects what a reader of the HTML sees, and where its links lead."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._unseen: list[str] = []
        """Open elements whose content nobody sees."""
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "style"}:
            self._unseen.append(tag)
        elif tag == "a":
            self._links.append(dict(attrs).get("href") or "")
        else:
            self.pieces.append("\n" if tag in {"br", "p", "div", "li"} else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            self._unseen.remove(tag)
        elif tag == "a" and self._links:
            target = self._links.pop()
            self.pieces.append(f" ({target})" if target.startswith("https://") else "")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.pieces.append(data.replace("\n", " "))


def plain_text(text: str) -> str:
    """What a reader of an HTML fragment sees, in one line, links with their addresses behind them in brackets."""
    parser = _Text()
    parser.feed(text)
    parser.close()
    plain = "".join(parser.pieces)
    for maths, word in _MATHS.items():
        plain = plain.replace(maths, word)
    lines = [line for line in map(_clean, plain.split("\n")) if line]
    ended = [line if line.endswith((".", ",", ":", ";", "?", "!")) else f"{line}." for line in lines[:-1]]
    return " ".join([*ended, *lines[-1:]])


def _clean(line: str) -> str:
    """Single spaces, and nothing that cannot be printed."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in line).split())
