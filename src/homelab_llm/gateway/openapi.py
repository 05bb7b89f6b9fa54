"""OpenAPI: the routes and the fields of their bodies as a document. Built when first asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from homelab_llm.gateway.routes import Route

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "hint": {"type": "string"},
                "retryable": {"type": "boolean"},
                "facts": {"type": "object"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of ``routes``."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in route.methods:
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "homelab-llm", "version": version},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation_id(route: Route, method: str) -> str:
    """Its own for each operation: two routes may share a handler."""
    words = route.path.replace("{id}", "id").replace(".", "_").strip("/").split("/")
    return "_".join(filter(None, (*words, method.lower())))


def _operation(route: Route, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route, method),
        "responses": {
            str(route.status): {"description": "done"},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": says, "schema": {"type": "string"}} for name, says in route.query
    ]
    if "{id}" in route.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": route.body.schema()}},
        }
    if route.access != "open":
        operation["security"] = [{}, {"key": []}] if route.access == "inference" else [{"key": []}]
    return operation
