"""A form made from the JSON schema of a document: which fields there are, what stands in them, what was typed.

A document that is being filled in is plain JSON and need not be valid: `Form.read` makes it of what a browser
posts, `Form.show` makes fields of it, so what was typed stands in them again. Which fields there are, and what may
stand in them, is in the schema alone.

A field's name in HTML is its path with the alternatives in it, objective.trades.beta, so that all alternatives of
a union can be on the page at once. A `?` behind the name of a part says whether there is one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from dkl.recipes import RECIPE
from service.web.form_fields import Field, Member, Widget

Posted = Mapping[str, Sequence[str]]
"""What a browser sends: every value, by name."""
Schema = Mapping[str, Any]
ABSENT: Final = object()
"""What stands in a field that the document does not have."""
_SHORT = 6
"""Characters of a decimal that is easier to read than a fraction."""
_EXACT = 2**53
"""Whole numbers below are the same as floats."""


class _Shape(NamedTuple):
    schema: Schema
    """Behind references, without null."""
    widget: Widget
    nullable: bool


class Form:
    """The fields of the documents that `schema` describes; names and paths begin with `prefix`.

    Alternatives of unions that are named in `without` are not offered.
    """

    def __init__(self, schema: Schema, *, prefix: str = "", without: Collection[str] = ()) -> None:
        self._definitions: Mapping[str, Schema] = schema.get("$defs", {})
        self._top = self._behind(schema)
        self._prefix = prefix
        self._without = without

    def read(self, posted: Posted) -> dict[str, Any]:
        """The document that was typed. What was left empty is null in it, or "" where it may not be null."""
        return self._read_part(self._top, self._prefix, posted)

    def show(self, document: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Field, ...]:
        """The fields with what `document` has in them, beside what `base` has."""
        return self._show_part(self._top, self._prefix, self._prefix, document, base)

    # --- shapes -------------------------------------------------------------------------------------------

    def _behind(self, schema: Schema) -> Schema:
        """The definition that a reference leads to, with what is said beside the reference."""
        while "$ref" in schema:
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self._definitions[schema["$ref"].rpartition("/")[2]], **beside}
        return schema

    def _shape(self, schema: Schema) -> _Shape:
        schema = self._behind(schema)
        some = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
        nullable = len(some) < len(schema.get("anyOf", ()))
        if nullable and len(some) == 1:
            said = {key: schema[key] for key in ("description", "default") if key in schema}
            schema = {**self._behind(some[0]), **said}
        if nullable and schema.get("type") == "boolean":
            schema = {**schema, "enum": [True, False]}
        return _Shape(schema, _widget(schema), nullable)

    def _alternatives(self, union: Schema) -> dict[str, Schema]:
        """The members of a union by what they are chosen with: the value of the field that tells them apart, which
        they are without here; the one field that only they have; or, of what is no document, the value itself."""
        found: dict[str, Schema] = {}
        if told := union.get("discriminator"):
            for tag, reference in told["mapping"].items():
                member = self._behind({"$ref": reference})
                others = {key: one for key, one in member["properties"].items() if key != told["propertyName"]}
                found[tag] = {**member, "properties": others}
        else:
            for member in map(self._behind, union["oneOf"]):
                if "enum" in member:
                    found |= {_text(value): {"const": value} for value in member["enum"]}
                else:
                    found[member.get("required", ["json"])[0]] = member
        return {tag: member for tag, member in found.items() if tag not in self._without}

    # --- reading ------------------------------------------------------------------------------------------

    def _read_part(self, part: Schema, name: str, posted: Posted) -> dict[str, Any]:
        return {key: self._read(one, f"{name}{key}", posted) for key, one in part["properties"].items()}

    def _read(self, schema: Schema, name: str, posted: Posted) -> Any:
        schema, widget, nullable = self._shape(schema)
        typed = posted.get(name, [""])[-1].strip()
        match widget:
            case "fixed":
                return schema["const"]
            case "part" | "union" if nullable and not posted.get(f"{name}?"):
                return None
            case "part":
                return self._read_part(schema, f"{name}.", posted)
            case "union":
                return self._read_union(schema, name, posted)
            case "switch":
                return bool(typed)
            case "boxes":
                return [_named(text, schema["items"]) for text in posted.get(name, ())]
            case _ if not typed and nullable:
                return None
            case "list":
                texts = [text.strip() for text in typed.strip("[]").split(",") if text.strip()]
                return [_typed(text, _widget(schema["items"])) for text in texts]
            case _ if not typed:
                return ""
            case "choice":
                return _named(typed, schema)
        return _typed(typed, widget)

    def _read_union(self, union: Schema, name: str, posted: Posted) -> Any:
        key = _key(union)
        chosen = posted.get(f"{name}.{key}", [""])[-1]
        member = self._alternatives(union).get(chosen)
        if member is None:
            return {key: chosen}
        inside = f"{name}.{chosen}"
        if "properties" not in member:
            return self._read(member, inside, posted)
        document = self._read_part(member, f"{inside}.", posted)
        return {key: chosen, **document} if "discriminator" in union else document

    # --- showing ------------------------------------------------------------------------------------------

    def _show_part(self, part: Schema, name: str, path: str, document: Any, base: Any) -> tuple[Field, ...]:
        document, base = (value if isinstance(value, Mapping) else {} for value in (document, base))
        fields = []
        for key, schema in part["properties"].items():
            shape = self._shape(schema)
            if shape.widget != "fixed":
                usual = shape.schema.get("default", None if shape.nullable else ABSENT)
                values = document.get(key, usual), base.get(key, usual)
                fields.append(self._show(shape, f"{name}{key}", f"{path}{key}", *values))
        return tuple(fields)

    def _show(self, shape: _Shape, name: str, path: str, value: Any, base: Any) -> Field:
        schema, widget, nullable = shape
        more: dict[str, Any] = {}
        match widget:
            case "part":
                fields = self._show_part(schema, f"{name}.", f"{path}.", value, base)
                more = {"text": "", "base": "", "members": (Member("", "", fields, chosen=True),)}
            case "union":
                more = self._show_union(schema, name, path, value, base)
            case "boxes":
                first = base if isinstance(base, list) else []
                choices = map(_text, [*first, *schema["items"]["enum"]])
                more = {"choices": tuple(dict.fromkeys(choices))}
            case "choice":
                more = {"choices": tuple(map(_text, schema["enum"]))}
            case "number":
                more = _limits(schema)
            case "json":
                more = {"example": _example(schema)}
        return Field(
            **{"text": _text(value, widget), "base": _text(base, widget), **more},
            name=name,
            path=path,
            about=_told(schema),
            widget=widget,
            required="default" not in schema,
            nullable=nullable,
            on=value is not None or widget not in _PARTS,
            base_on=base is not None or widget not in _PARTS,
        )

    def _show_union(self, union: Schema, name: str, path: str, value: Any, base: Any) -> dict[str, Any]:
        alternatives, key = self._alternatives(union), _key(union)
        chosen, was = (_tag(alternatives, key, one) for one in (value, base))
        members = []
        for tag, member in alternatives.items():
            inside = (value if tag == chosen else ABSENT), (base if tag == was else ABSENT)
            fields: tuple[Field, ...] = ()
            if "properties" in member:
                fields = self._show_part(member, f"{name}.{tag}.", f"{path}.", *inside)
            elif "const" not in member:
                fields = (self._show(self._shape(member), f"{name}.{tag}", path, *inside),)
            members.append(Member(tag, _told(member), fields, tag == chosen))
        return {"text": chosen, "base": was, "choices": tuple(alternatives), "key": key, "members": tuple(members)}


_PARTS = frozenset({"part", "union"})


@cache
def recipe_form(kind: str) -> Form:
    """The form of recipes of this kind. Functions as models are left out: a service calls none."""
    schema = RECIPE.json_schema()
    return Form(
        {"$ref": schema["discriminator"]["mapping"][kind], "$defs": schema["$defs"]}, without=("function",)
    )


# --- of one value -----------------------------------------------------------------------------------------


def _widget(schema: Schema) -> Widget:
    match schema:
        case {"const": _}:
            return "fixed"
        case {"enum": _}:
            return "choice"
        case {"type": "boolean"}:
            return "switch"
        case {"type": "integer" | "number"}:
            return "number"
        case {"type": "string"}:
            return "text"
        case {"anyOf": [{"type": "number"}, {"type": "string"}]}:
            return "pixels"
        case {"properties": _}:
            return "part"
        case {"oneOf": _}:
            return "union"
        case {"type": "array", "items": {"enum": _}}:
            return "boxes"
        case {"type": "array", "items": items} if _widget(items) in {"number", "pixels", "text"}:
            return "list"
    return "json"


def _told(schema: Schema) -> str:
    return str(schema.get("description", "")).replace("`", "")


def _key(union: Schema) -> str:
    """What the select that chooses an alternative is called, behind the union's name."""
    return str(union.get("discriminator", {}).get("propertyName", "is"))


def _tag(alternatives: Mapping[str, Schema], key: str, value: Any) -> str:
    """The alternative that `value` is of, or that shows what is there; the first where nothing is."""
    if value is ABSENT or value is None:
        return next(iter(alternatives))
    if isinstance(value, Mapping):
        told = value.get(key)
        found = [tag for tag in alternatives if tag == told or (told is None and tag in value)]
    else:
        found = [tag for tag, member in alternatives.items() if member.get("const", ABSENT) == value]
    found += [tag for tag, member in alternatives.items() if not {"const", "properties"} & member.keys()]
    return next(iter([*found, *alternatives]))


def _limits(number: Schema) -> dict[str, Any]:
    return {
        "minimum": number.get("minimum", number.get("exclusiveMinimum")),
        "maximum": number.get("maximum", number.get("exclusiveMaximum")),
        "whole": number["type"] == "integer",
    }


def _example(schema: Schema) -> str:
    """A list of what it may be made of."""
    kinds = schema.get("items", {}).get("discriminator", {}).get("mapping", {})
    return json.dumps([{"kind": kind} for kind in kinds]) if kinds else ""


def _typed(text: str, widget: Widget) -> Any:
    """The value that was typed, or the text itself, which the validation then finds fault with."""
    if widget == "text":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _named(text: str, schema: Schema) -> Any:
    """The value of the enumeration that reads so; the text where none does."""
    return next((value for value in schema["enum"] if _text(value) == text), text)


def _text(value: Any, widget: Widget = "text") -> str:
    """`value` as one would type it."""
    if value is ABSENT or value is None:
        return ""
    if isinstance(value, list) and widget in {"list", "boxes"}:
        return ", ".join(_text(one, "pixels" if isinstance(one, float) else "text") for one in value)
    if isinstance(value, float) and widget == "pixels":
        value = fraction(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, indent=2 if widget == "json" else None)


def fraction(pixels: float) -> float | str:
    """Exactly `pixels`, as "8/255" where that is easier to read than a decimal."""
    levels = round(255 * pixels) if 0 < pixels <= 1 else 0
    is_long = len(json.dumps(pixels)) > _SHORT
    return f"{levels}/255" if levels and levels / 255 == pixels and is_long else pixels
