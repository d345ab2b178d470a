"""How the form of a job is arranged: what has to be said first, the rest folded away in sections."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from service.web.draft import Draft
from service.web.form_fields import Field, in_use

_SECTIONS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "train": {
        "Data": frozenset({"images", "generated", "augmentation", "second_view"}),
        "Attack": frozenset({"threat", "attack", "awp"}),
        "Optimiser and schedule": frozenset({"batch_size", "optimizer", "averaging"}),
        "Choice of the epoch": frozenset({"validation", "select"}),
    },
    "distill": {
        "Data": frozenset({"images", "augmentation"}),
        "Robustness": frozenset({"threat", "attack", "clean_weight"}),
        "Optimiser and schedule": frozenset({"batch_size", "optimizer", "averaging"}),
        "Choice of the epoch": frozenset({"validation", "select"}),
    },
    "evaluate": {
        "Data": frozenset({"images", "sample"}),
        "Attack": frozenset({"suite", "policy", "engine", "curve"}),
    },
    "corruptions": {"Data": frozenset({"source", "corruptions", "severities", "images"})},
    "import": {"Data": frozenset({"entry"})},
}
"""By kind, where the optional fields of a recipe are; those that are named nowhere are in a last section."""
_LAST = "Run"


class Section(NamedTuple):
    """Fields that are folded away together."""

    title: str
    fields: list[Field]
    brief: str
    """What stands in them, in a line."""
    open: bool


def arranged(draft: Draft, wrong: Collection[str]) -> dict[str, Any]:
    """All fields of the page. Sections in which something is changed, or is `wrong` by name, are open."""
    fields = draft.recipe_fields()
    rest = [field for field in fields if not field.required]
    parts: dict[str, list[Field]] = {}
    for title, names in _SECTIONS.get(draft.kind, {}).items():
        parts[title] = [field for field in rest if field.label in names]
        rest = [field for field in rest if field.label not in names]
    parts[_LAST] = rest
    return {
        "main": [field for field in fields if field.required],
        "sections": [_section(title, some, wrong) for title, some in parts.items() if some],
        "then": draft.then_fields(),
        "asked": _section("Scheduling", [*draft.asked_fields()], wrong),
    }


def _section(title: str, fields: list[Field], wrong: Collection[str]) -> Section:
    used = [*in_use(fields)]
    said = ((field.label, field.text if field.on else "off") for field in used)
    brief = ", ".join(f"{label} {text}" for label, text in said if text)
    return Section(title, fields, brief, any(field.changed or field.name in wrong for field in used))
