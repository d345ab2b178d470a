"""Text as parts of Markdown: what is written into generated documents."""

import re


def cell(text: str) -> str:
    """`text` for a cell of a table: on one line, and shown as it is."""
    return re.sub(r"([\\|<*_`\[\]])", r"\\\1", " ".join(text.split()))


def link(shown: str, url: str) -> str:
    """A link; `shown` is Markdown."""
    return f"[{shown}]({url.replace('(', '%28').replace(')', '%29')})"
