"""The OpenAPI document, with what each operation needs: a key always, or only where the settings say so."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts

from service.access import Needs, anonymous_scope
from service.callers import SCOPES, Scope


class Documented(FastAPI):
    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        free = SCOPES.index(anonymous_scope(self.state.dkl.settings))
        for route in iter_route_contexts(self.routes):
            for method, operation in document["paths"].get(route.path_format, {}).items():
                if method.upper() in (route.methods or ()) and (scopes := scopes_of(route)):
                    operation["x-scope"] = scopes[0]
                    _answer_errors_in_json(operation["responses"])
                    operation["security"] = [{"API key": []}]
                    if SCOPES.index(scopes[0]) <= free:
                        operation["security"].append({})  # or none
        return document


def _answer_errors_in_json(responses: dict[str, Any]) -> None:
    """What goes wrong is told in JSON, also where what goes well is a file or a stream."""
    for status, answer in responses.items():
        if status >= "400":
            answer["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def scopes_of(route: RouteContext) -> list[Scope]:
    """The scopes that a route asks for; the house's rule is that it is exactly one."""
    dependant: Dependant | None = getattr(route, "dependant", None)
    return list(dict.fromkeys(_scopes(dependant))) if dependant else []


def _scopes(dependant: Dependant) -> Iterator[Scope]:
    for needed in dependant.dependencies:
        if isinstance(needed.call, Needs):
            yield needed.call.scope
        yield from _scopes(needed)
