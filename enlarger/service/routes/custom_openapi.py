"""The OpenAPI document: FastAPI's, with what is true of this service instead of what FastAPI takes for granted."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from enlarger.service.routes.openapi import RAW_JSON_PREFIX, SCHEMAS_REF, Schema, without_null
from enlarger.service.routes.response_models import Error
from enlarger.service.settings import Bounds

TEXT_PATTERN = "^[^\\u0000]*$"  # what a prompt may hold
COUNT_FIELDS = ("n",)
STEPS_FIELDS = ("num_inference_steps", "steps")
PROMPT_FIELDS = ("prompt", "negative_prompt")


def install_openapi(app: FastAPI) -> None:
    """Let the application serve our document."""
    cache: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not cache:
            cache.update(build_openapi(app))
        return cache

    app.openapi = openapi


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """The document of an application. Faults of values are 400 here, never FastAPI's 422."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            _fix_operation(operation, app.state.service.settings.bounds)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    error = Error.model_json_schema(ref_template=SCHEMAS_REF + "/{model}")
    schemas.update(error.pop("$defs"), Error=error)
    return _restore_examples(document)


def _fix_operation(operation: Schema, bounds: Bounds) -> None:
    """One operation as it is."""
    operation["responses"].pop("422", None)
    operation["parameters"] = [without_null(one) for one in operation.get("parameters", ())]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        _add_limits(content["schema"]["properties"], bounds)
    if "security" in operation:
        operation["security"].append({})  # a service without keys asks for none


def _add_limits(properties: Schema, bounds: Bounds) -> None:
    """Say the limits that the settings set."""
    limits = {name: {"maximum": bounds.count} for name in COUNT_FIELDS}
    limits |= {name: {"maximum": bounds.steps} for name in STEPS_FIELDS}
    limits |= {name: {"maxLength": bounds.prompt, "pattern": TEXT_PATTERN} for name in PROMPT_FIELDS}
    for name in limits.keys() & properties.keys():
        properties[name] = properties[name] | limits[name]


def _restore_examples(part: Any) -> Any:
    """The document with the examples that were kept as text."""
    if isinstance(part, dict):
        mapping: dict[str, Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return {name: _restore_examples(value) for name, value in mapping.items()}
    if isinstance(part, list):
        items: list[Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return [_restore_examples(item) for item in items]
    return (
        json.loads(part.removeprefix(RAW_JSON_PREFIX))
        if isinstance(part, str) and part.startswith(RAW_JSON_PREFIX)
        else part
    )
