"""The fields of a form, as a page shows them, and what is wrong with what stands in them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dkl.explain import Fault

Widget = Literal["fixed", "choice", "switch", "number", "pixels", "text", "list", "boxes", "json", "part", "union"]


@dataclass(frozen=True)
class Field:
    """One field, with what stands in it."""

    name: str
    """In HTML."""
    path: str
    """In the document: "objective.beta"."""
    about: str
    widget: Widget
    text: str
    """Of a switch "true" or "false", of boxes the ticked ones, of a union the chosen alternative."""
    base: str
    """What would stand in it if nobody had changed anything."""
    required: bool
    nullable: bool
    """It may be left empty; a part or a union may be switched off."""
    on: bool = True
    base_on: bool = True
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False
    """Only whole numbers will do."""
    example: str = ""
    key: str = ""
    """Behind a union's name, what the select that chooses its alternative is called."""
    members: tuple["Member", ...] = ()
    """A part has one, a union one for each alternative."""

    @property
    def label(self) -> str:
        return self.path.replace(":", ".").rpartition(".")[2]

    @property
    def changed(self) -> bool:
        return self.on != self.base_on or (self.on and self.text != self.base)

    @property
    def ticked(self) -> list[str]:
        return self.text.split(", ") if self.text else []


class Member(NamedTuple):
    """The fields of a part, or of one alternative of a union."""

    tag: str
    about: str
    fields: tuple[Field, ...]
    chosen: bool


def in_use(fields: Iterable[Field]) -> Iterator[Field]:
    """`fields` and those inside them, without what is switched off or of an alternative that is not chosen."""
    for field in fields:
        yield field
        for member in field.members:
            if field.on and member.chosen:
                yield from in_use(member.fields)


def at_fields(fields: Iterable[Field], faults: Iterable[Fault]) -> dict[str, list[str]]:
    """What is wrong by the name of the field where it belongs; under "" what belongs to none of them.

    A fault in the middle of what is one field here, "suite.0.steps", belongs to that field and says where in it.
    """
    names = {field.path: field.name for field in in_use(fields)}
    found: dict[str, list[str]] = {}
    for fault in faults:
        place = fault.field
        while place and place not in names:
            place = place.rpartition(".")[0]
        inside = fault.field.removeprefix(place).lstrip(".")
        message = f"{inside}: {fault.message}" if inside else fault.message
        found.setdefault(names.get(place, ""), []).append(message)
    return found
