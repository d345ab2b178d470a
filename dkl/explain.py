"""What is wrong with a document, in sentences: what was found, where, and what would do. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from dkl.recipes import RECIPE, Recipe


class Fault(NamedTuple):
    """One thing to change."""

    field: str
    """Path in the document: "threat.eps"; empty for the document as a whole."""
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidRecipeError(ValueError):
    """A document that is no recipe; the message is a sentence, `faults` are its parts."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


def read_recipe(document: Mapping[str, Any]) -> Recipe:
    """The recipe that `document` describes, or InvalidRecipeError."""
    try:
        return RECIPE.validate_python(document)
    except ValidationError as error:
        raise InvalidRecipeError(explain(error.errors(include_url=False), document)) from None


def explain(errors: Sequence[Any], document: Any, expected: Any = Recipe) -> list[Fault]:
    """Pydantic's errors about `document`, which should have been an `expected`."""
    return [Fault(".".join(map(str, _steps(e, document))), _sentence(e, document, expected)) for e in errors]


def _steps(error: Any, document: Any) -> list[str | int]:
    """The error's location without the names of union members, which are no part of the document."""
    steps: list[str | int] = []
    place, kind_passed = document, False
    for step in error["loc"]:
        if isinstance(place, dict) and place.get("kind") == step and not kind_passed:
            kind_passed = True  # a union's member; a field may have the same name and comes after it
        elif (isinstance(place, dict) and step in place) or (
            isinstance(place, list | tuple) and isinstance(step, int)
        ):
            steps.append(step)
            place, kind_passed = place[step], False
    return [*steps, error["loc"][-1]] if error["type"] == "missing" else steps


def _sentence(error: Any, document: Any, expected: Any) -> str:
    message: str = error["msg"].removeprefix("Value error, ")
    steps = _steps(error, document)
    match error["type"]:
        case "missing":
            return "is missing" + _meaning(_class_at(steps[:-1], document, expected), steps[-1])
        case "extra_forbidden":
            here = _class_at(steps[:-1], document, expected)
            known = f"; the fields are {', '.join(sorted(here.model_fields))}" if here else "; leave it out"
            return "is no field here" + known
        case "model_source" | "value_error":
            return message
        case "json_invalid":
            return f"the body is not valid JSON: {error['ctx']['error']}, at character {error['loc'][-1]}"
        case "model_attributes_type" | "model_type" | "dict_type":
            return f'must be a JSON object such as {{"name": "ikl-at-digits"}}, found {_short(error["input"])}'
        case "union_tag_invalid":
            return f"kind must be {error['ctx']['expected_tags']}, found {error['ctx']['tag']!r}"
        case "union_tag_not_found":
            return f"needs a field {error['ctx']['discriminator']} that says what it is"
        case "int_type" | "int_from_float":
            message = "must be a whole number"
        case "float_type":
            message = "must be a number"
        case _:
            message = message.replace("Input should be", "must be")
    return f"{message}, found {_short(error.get('input'))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _meaning(here: type[BaseModel] | None, field: str | int) -> str:
    description = here.model_fields[str(field)].description if here and field in here.model_fields else None
    return f": {description}" if description else ""


def _class_at(steps: Sequence[str | int], document: Any, expected: Any) -> type[BaseModel] | None:
    """The class that the document has at this place, where it says so."""
    here, place = _member(expected, document), document
    for step in steps:
        place = place[step]
        annotation = here.model_fields[step].annotation if here and step in here.model_fields else None
        here = _member(annotation, place)
    return here


def _member(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The class among `annotation`'s that `value` claims to be by its kind."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        claimed = value.get("kind") if isinstance(value, dict) else None
        return annotation if kind is None or claimed in get_args(kind.annotation) else None
    members = [member for argument in get_args(annotation) if (member := _member(argument, value))]
    given = set(value) if isinstance(value, dict) else set()
    return max(members, key=lambda member: len(given & set(member.model_fields)), default=None)
