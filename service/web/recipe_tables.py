"""All named recipes as Markdown: what each trains, what is in print for it and where, and what is doubtful."""

from collections.abc import Iterable
from itertools import groupby

from dkl.catalog import RECIPES, Named, Published, PublishedAccuracy
from dkl.documents import show_pixels
from service.web.catalogue import Row, place_of, row_of, title_of
from service.web.markdown import cell, link


def recipe_tables() -> str:
    """A section for each data set and kind of recipe, in the order of the form that submits them."""
    rows = sorted((row_of(name, entry) for name, entry in RECIPES.items()), key=place_of)
    return "\n\n".join(_section([*some]) for _, some in groupby(rows, place_of))


def _section(rows: list[Row]) -> str:
    counted = "1 recipe" if len(rows) == 1 else f"{len(rows)} recipes"
    head = "| recipe | trains | threat model | in print | about |\n| --- | --- | --- | --- | --- |"
    lines = "\n".join(_line(each) for each in rows)
    return f"## {title_of(rows[0])}\n\n{counted}.\n\n{head}\n{lines}"


def _line(each: Row) -> str:
    needs = f"Needs a {each.entry.needs}. " if each.entry.needs else ""
    parts = [
        f"`{each.name}`",
        cell(each.network),
        cell(each.threat or "none"),
        _in_print(each.entry) or "none",
        cell(needs + each.entry.about),
    ]
    return f"| {' | '.join(parts)} |"


def _in_print(entry: Named) -> str:
    """The numbers, the same ones once, each with all the places where it is printed."""
    numbers: dict[str, dict[tuple[str, str], None]] = {}
    for one in _printed(entry):
        numbers.setdefault(_number(one), {})[one.source, one.url] = None
    return "; ".join(
        f"{number} ({', '.join(link(cell(source), url) for source, url in places)})"
        for number, places in numbers.items()
    )


def _printed(entry: Named) -> Iterable[Published | PublishedAccuracy]:
    return (*([entry.published] if entry.published else []), *entry.also)


def _number(one: Published | PublishedAccuracy) -> str:
    if isinstance(one, Published):
        at = "" if one.eps is None else f" at {show_pixels(one.eps)}"
        return f"clean {one.clean_accuracy:.2%}, **robust {one.robust_accuracy:.2%}**{at}"
    more = [
        ("teacher", one.teacher_accuracy),
        ("alone", one.student_accuracy),
        ("many", one.many_accuracy),
        ("medium", one.medium_accuracy),
        ("few", one.few_accuracy),
    ]
    told = "".join(f", {name} {value:.2%}" for name, value in more if value is not None)
    return f"**accuracy {one.accuracy:.2%}**{told}"
