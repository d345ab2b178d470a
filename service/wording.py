"""Numbers, times and documents in words, as pages and terminals show them."""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from dkl.documents import show_pixels


def percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}"


def count(number: float) -> str:
    return f"{number:,.0f}"


def many(number: float) -> str:
    """Exact as far as it is short: "98,304", "1.31 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return count(number)


def duration(seconds: float) -> str:
    """The two largest units: "3 min 20 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (unit, size), (smaller, part) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def ago(at: float) -> str:
    return since(time.time() - at)  # for the eye only: what is kept is in the database's time


def since(seconds: float) -> str:
    """How long ago something was, in the largest unit."""
    if seconds < 1:
        return "just now"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def nth(number: int) -> str:
    """The number as a place: 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def when(at: float, layout: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    return datetime.fromtimestamp(at, UTC).strftime(layout)


def fields(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The recipe in the words of its overrides: ("threat.eps", "8/255")."""
    return [(path, _field(path, value)) for path, value in _leaves(recipe, "")]


def _leaves(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


_PIXELS = (".eps", ".step_sizes", "curve")
"""How the paths of differences of pixels end."""


def _field(path: str, value: Any) -> str:
    if isinstance(value, list | tuple) and not any(isinstance(one, Mapping) for one in value):
        return ", ".join(_field(path, one) for one in value) or "none"
    if path.endswith(_PIXELS) and isinstance(value, float):
        return show_pixels(value)
    return value if isinstance(value, str) else json.dumps(value)
