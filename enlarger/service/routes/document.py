"""The OpenAPI document: FastAPI's, with what is true of this service instead of what FastAPI takes for granted."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from enlarger.service.routes.answers import Error
from enlarger.service.routes.openapi import KEPT, SCHEMAS, Schema, without_null
from enlarger.service.settings import Bounds

TEXT = "^[^\\u0000]*$"  # what a prompt may hold
COUNTED = ("n",)
STEPS = ("num_inference_steps", "steps")
PROMPTS = ("prompt", "negative_prompt")


def describe(app: FastAPI) -> None:
    """Let the application serve our document."""
    cache: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not cache:
            cache.update(document_of(app))
        return cache

    app.openapi = document


def document_of(app: FastAPI) -> dict[str, Any]:
    """The document of an application. Faults of values are 400 here, never FastAPI's 422."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in found["paths"].values():
        for operation in path.values():
            _correct(operation, app.state.service.settings.bounds)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    error = Error.model_json_schema(ref_template=SCHEMAS + "/{model}")
    schemas.update(error.pop("$defs"), Error=error)
    return _restored(found)


def _correct(operation: Schema, bounds: Bounds) -> None:
    """One operation as it is."""
    operation["responses"].pop("422", None)
    operation["parameters"] = [without_null(one) for one in operation.get("parameters", ())]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        _say_bounds(content["schema"]["properties"], bounds)
    if "security" in operation:
        operation["security"].append({})  # a service without keys asks for none


def _say_bounds(properties: Schema, bounds: Bounds) -> None:
    """Say the limits that the settings set."""
    said = {name: {"maximum": bounds.count} for name in COUNTED}
    said |= {name: {"maximum": bounds.steps} for name in STEPS}
    said |= {name: {"maxLength": bounds.prompt, "pattern": TEXT} for name in PROMPTS}
    for name in said.keys() & properties.keys():
        properties[name] = properties[name] | said[name]


def _restored(part: Any) -> Any:
    """The document with the examples that were kept as text."""
    if isinstance(part, dict):
        found: dict[str, Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return {name: _restored(value) for name, value in found.items()}
    if isinstance(part, list):
        items: list[Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return [_restored(item) for item in items]
    return json.loads(part.removeprefix(KEPT)) if isinstance(part, str) and part.startswith(KEPT) else part
