"""The REST interface as Markdown, from its OpenAPI document: operations by subject, then what they exchange."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.web.markdown import cell, link

Schema = Mapping[str, Any]
_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "maxLength": "length ≤",
}
_OPEN = {"nothing": "no key", "leaderboard": "whatever the leaderboard needs: usually no key"}


def api_reference(document: Schema) -> str:
    """A section for each subject (/api/v1/SUBJECT), and one for every document of the components."""
    subjects: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        subject = path.split("/")[3].partition(".")[0] if path.startswith("/api/v1/") else "health and metrics"
        subjects.setdefault(subject, []).extend(
            _operation(method, path, operation) for method, operation in operations.items()
        )
    sections = [f"## {subject}\n\n" + "\n\n".join(texts) for subject, texts in subjects.items()]
    schemas = document["components"]["schemas"]
    documents = [_document(name, schema) for name, schema in sorted(schemas.items())]
    return "\n\n".join([*sections, "## Documents", *documents])


def _operation(method: str, path: str, operation: Schema) -> str:
    parts = [f"### `{method.upper()} {path}`", cell(operation.get("description") or operation["summary"])]
    if scope := operation.get("x-scope"):
        parts.append(f"Needs {_OPEN.get(scope, f'a key with scope {scope}')}.")
    if parameters := operation.get("parameters"):
        rows = [(p["name"], p["schema"], p.get("required", False), _about(p)) for p in parameters]
        parts.append(_table("parameter", rows))
    if body := operation.get("requestBody"):
        parts.append(f"Body: {' or '.join(_content(body['content']))}.")
    told = operation["responses"]
    good = [_answer(status, answer) for status, answer in told.items() if status < "400"]
    bad = sorted(status for status in told if status >= "400")
    refusals = f" Refusals: {', '.join(f'`{status}`' for status in bad)}." if bad else ""
    parts.append(f"Answers {', '.join(good)}.{refusals}")
    return "\n\n".join(parts)


def _answer(status: str, answer: Schema) -> str:
    return " ".join([f"`{status}`", " or ".join(_content(answer.get("content", {})))]).strip()


def _about(parameter: Schema) -> str:
    places = {"path": "In the path.", "header": "A header."}
    return str(parameter.get("description") or places.get(parameter["in"], ""))


def _content(content: Schema) -> Iterator[str]:
    for kind, told in content.items():
        schema = told.get("schema")
        yield _type(schema) if schema and kind == "application/json" else f"`{kind}`"


def _document(name: str, schema: Schema) -> str:
    parts = [f"### {name}"]
    if about := schema.get("description"):
        parts.append(cell(about))
    if properties := schema.get("properties"):
        required = schema.get("required", ())
        rows = [
            (field, told, field in required, told.get("description", "")) for field, told in properties.items()
        ]
        parts.append(_table("field", rows))
    else:
        parts.append(_type(schema))
    return "\n\n".join(parts)


def _table(what: str, rows: Sequence[tuple[str, Schema, bool, str]]) -> str:
    lines = [f"| {what} | type | | |", "| --- | --- | --- | --- |"]
    for name, schema, required, about in rows:
        lines.append(
            f"| `{name}` | {_type(schema)}{_limits(schema)} | {_need(schema, required)} | {cell(about)} |"
        )
    return "\n".join(lines)


def _need(schema: Schema, required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "" if default is None else f"default {_code(default)}"


def _limits(schema: Schema) -> str:
    return "".join(f" {sign} {schema[key]}" for key, sign in _LIMITS.items() if key in schema)


def _type(schema: Schema) -> str:
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return link(name, f"#{name.lower()}")
        case {"anyOf": parts} | {"oneOf": parts}:
            return " or ".join(_type(part) for part in parts)
        case {"const": value}:
            return _code(value)
        case {"enum": values}:
            return ", ".join(_code(value) for value in values)
        case {"type": "array", "prefixItems": parts}:
            return f"list of {len(parts)}: {', '.join(_type(part) for part in parts)}"
        case {"type": "array", "items": item}:
            return f"list of {_type(item)}"
        case {"type": kind, "pattern": pattern}:
            return f"{kind} {_code(pattern, text=True)}"
        case {"type": kind}:
            return str(kind)
        case _:
            return "any JSON"


def _code(value: Any, *, text: bool = False) -> str:
    written = str(value) if text else json.dumps(value)
    return f"`{written}`".replace("|", r"\|")
