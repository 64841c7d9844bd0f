"""The OpenAPI document: FastAPI's, with what it cannot know: bodies read by hand, errors, streams, examples, limits."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel
from starlette.responses import Response

from enlarger.service.routes.response_models import Error, JobReply
from enlarger.service.settings import Bounds

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

BEARER_AUTH = HTTPBearer(auto_error=False, scheme_name="bearer", description="a key of the service")
API_KEY_AUTH = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key", description="a key of the service")

FILE_SCHEMA: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
ERROR_DESCRIPTIONS = {
    400: "the request cannot be understood, or asks for what cannot be done; `param` names the field",
    401: "no key, or a wrong one",
    403: "the request comes from another web page, or names a host that this service is not",
    404: "there is no such thing, or it has expired",
    408: "the request took too long to arrive",
    413: "the body is too large",
    415: "the body has another Content-Type or Content-Encoding than those listed",
    429: "too much is waiting, or this key has too many jobs; come back after `Retry-After` seconds",
    431: "the headers are too large",
    499: "the job was canceled while its client waited",
    500: "the service or the model failed; asking again gives the same",
    503: "not ready yet, or about to end; come back after `Retry-After` seconds",
}
ERROR_EXAMPLES = {
    400: ("invalid_request_error", "invalid_value", "n", "n is 0, expected greater than or equal to 1"),
    401: ("authentication_error", "invalid_api_key", None, "the key is wrong; send Authorization: Bearer and a key"),
    403: ("permission_error", "origin_not_allowed", None, "the request comes from another web page"),
    404: ("invalid_request_error", "model_not_found", "model", "there is no model 'x'; there are bundled"),
    408: ("timeout_error", "request_timeout", None, "the body took more than 120 seconds"),
    413: ("invalid_request_error", "payload_too_large", None, "the body has more than 67,108,864 bytes"),
    415: ("invalid_request_error", "unsupported_media_type", None, "found Content-Type 'text/plain'"),
    429: ("rate_limit_error", "queue_full", None, "16 jobs wait already"),
    431: ("invalid_request_error", "headers_too_large", None, "the headers have 40,000 bytes; expected 32,768 at most"),
    499: ("client_closed", "canceled", None, "the job was canceled before it was done; ask for it anew"),
    500: ("server_error", "out_of_memory", None, "the device has too little memory for this"),
    503: ("unavailable_error", "model_loading", None, "the models are being read"),
}
RESPONSE_HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": {"description": "names this request in the log", "schema": {"type": "string"}},
}
RETRY_HEADERS: Mapping[str, Schema] = {
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}},
}
JOB_HEADERS: Mapping[str, Schema] = {
    "Location": {"description": "the job", "schema": {"type": "string"}, "required": True},
    "Preference-Applied": {"schema": {"type": "string", "const": "respond-async"}, "required": True},
}
REQUEST_HEADERS: list[Schema] = [
    {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async` answers 202 at once, with a job to ask for",
        "schema": {"type": "string"},
        "example": "respond-async",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "the same key gives the same job again, so that a request can be repeated",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
]
TEXT_PATTERN = "^[^\\u0000]*$"  # what a prompt may hold
COUNT_FIELDS = ("n",)
STEPS_FIELDS = ("num_inference_steps", "steps")
PROMPT_FIELDS = ("prompt", "negative_prompt")
SCHEMAS_REF = "#/components/schemas"
RAW_JSON_PREFIX = "json:"
READ_STATUSES = (400, 401, 403, 431, 500, 503)
BODY_STATUSES = (*READ_STATUSES, 408, 413)
IMAGE_STATUSES = (*BODY_STATUSES, 404, 415, 429, 499)


def raw_example(example: object) -> str:
    """An example as text: FastAPI drops the nulls of what is not."""
    return RAW_JSON_PREFIX + json.dumps(example)


def ok_response(model_type: type[BaseModel], description: str, example: object) -> Schema:
    """One documented success, with its example."""
    content = {"application/json": {"example": raw_example(example)}}
    return {"model": model_type, "description": description, "headers": dict(RESPONSE_HEADERS), "content": content}


def error_response(status: int) -> Schema:
    """One documented error."""
    type_, code, param, message = ERROR_EXAMPLES[status]
    example = raw_example({"error": {"message": message, "type": type_, "param": param, "code": code}})
    headers = {**RESPONSE_HEADERS, **(RETRY_HEADERS if status in (429, 503) else {})}
    return {
        "description": ERROR_DESCRIPTIONS[status],
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": f"{SCHEMAS_REF}/Error"}, "example": example}},
    }


def error_responses(*statuses: int) -> Responses:
    """The documented errors of a route."""
    return {status: error_response(status) for status in sorted(set(statuses))}


def event_stream_content(example: str, *event_names: str) -> Schema:
    """The content of an answer that is server-sent events; the schema is that of one event."""
    properties: Schema = {
        "event": {"type": "string", "enum": list(event_names)},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
    }
    schema = {"type": "object", "properties": properties, "required": ["event", "data"]}
    return {"text/event-stream": {"schema": schema, "example": example}}


def image_responses(
    model_type: type[BaseModel], example: object, stream: str | None = None, event_prefix: str = ""
) -> Responses:
    """What a route answers that makes pictures, and streams events of such names."""
    content: Schema = {"application/json": {"example": raw_example(example)}}
    if stream is not None:
        content |= event_stream_content(
            stream, *(f"{event_prefix}.{name}" for name in ("partial_image", "completed")), "error"
        )
    return {
        200: {
            "model": model_type,
            "description": "the pictures",
            "headers": dict(RESPONSE_HEADERS),
            "content": content,
        },
        202: {
            "model": JobReply,
            "description": "the job, with `Prefer: respond-async`",
            "headers": {**RESPONSE_HEADERS, **JOB_HEADERS},
        },
        **error_responses(*IMAGE_STATUSES),
    }


def form_body(
    model_type: type[BaseModel], example: object, files: Mapping[str, str], required_files: tuple[str, ...]
) -> Schema:
    """A multipart body: a model's fields, and files with what they are."""
    schema = without_null(inline_schema(model_type))
    file_schemas = {name: FILE_SCHEMA | {"description": help} for name, help in files.items()}
    schema["properties"] = file_schemas | schema["properties"]
    schema["required"] = [*required_files, *schema.get("required", [])]
    return {"multipart/form-data": {"schema": schema, "example": raw_example(example)}}


def inline_schema(model_type: type[BaseModel]) -> Schema:
    """A model's schema, whole: with what its references name instead of them."""
    schema = model_type.model_json_schema(ref_template="{model}")
    definitions = schema.pop("$defs", {})
    return map_objects(schema, lambda part: definitions[part["$ref"]] if "$ref" in part else part)


def without_null(schema: Schema) -> Schema:
    """The schema of what is sent as text: what may be absent cannot be null."""
    return map_objects(schema, _without_null)


def _without_null(part: Schema) -> Schema:
    kept = {name: value for name, value in part.items() if name != "default" or value is not None}
    kept |= {
        name: [item for item in value if item not in (None, {"type": "null"})]
        for name, value in kept.items()
        if isinstance(value, list)
    }
    return kept | kept.pop("anyOf")[0] if len(kept.get("anyOf", ())) == 1 else kept


def map_objects(document: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """A JSON document with each object in it changed, the innermost first."""
    return json.loads(json.dumps(document), object_hook=change)


def request_body(*contents: Schema) -> Schema:
    """The request body of a route, for `openapi_extra`, with the headers that all such routes read."""
    content_by_type = {kind: value for content in contents for kind, value in content.items()}
    return {"requestBody": {"required": True, "content": content_by_type}, "parameters": REQUEST_HEADERS}


def json_body(model_type: type[BaseModel], example: object) -> Schema:
    """A JSON body."""
    return {"application/json": {"schema": inline_schema(model_type), "example": raw_example(example)}}


def image_content(*media_types: str) -> Schema:
    """The content of an answer that is a picture."""
    return {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}}


def install_openapi(app: FastAPI) -> None:
    """Let the application serve our document, which is encoded once: it is large, and anybody may ask for it often."""
    cache: Schema = {}
    encoded: list[bytes] = []

    def openapi() -> Schema:
        if not cache:
            cache.update(build_openapi(app))
        return cache

    async def serve(request: Request) -> Response:
        if not encoded:
            encoded.append(json.dumps(openapi(), ensure_ascii=False, separators=(",", ":")).encode())
        return Response(encoded[0], media_type="application/json")

    app.openapi = openapi
    app.add_route("/openapi.json", serve, include_in_schema=False)


def build_openapi(app: FastAPI) -> Schema:
    """The document of an application. Invalid values are 400 here, never FastAPI's 422."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            _fix_operation(operation, app.state.service.settings.bounds)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    error = Error.model_json_schema(ref_template=SCHEMAS_REF + "/{model}")
    schemas.update(error.pop("$defs"), Error=error)
    return map_objects(document, _restore_examples)


def _fix_operation(operation: Schema, bounds: Bounds) -> None:
    """One operation as it is."""
    operation["responses"].pop("422", None)
    operation["parameters"] = [without_null(one) for one in operation.get("parameters", ())]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        _add_limits(content["schema"]["properties"], bounds)
    if "security" in operation:
        operation["security"].append({})  # a service without keys needs none


def _add_limits(properties: Schema, bounds: Bounds) -> None:
    """Say the limits that the settings set."""
    limits = {name: {"maximum": bounds.count} for name in COUNT_FIELDS}
    limits |= {name: {"maximum": bounds.steps} for name in STEPS_FIELDS}
    limits |= {name: {"maxLength": bounds.prompt, "pattern": TEXT_PATTERN} for name in PROMPT_FIELDS}
    for name in limits.keys() & properties.keys():
        properties[name] = properties[name] | limits[name]


def _restore_examples(part: Schema) -> Schema:
    """An object of the document with the examples that were written as text."""
    return {
        name: json.loads(value.removeprefix(RAW_JSON_PREFIX))
        if isinstance(value, str) and value.startswith(RAW_JSON_PREFIX)
        else value
        for name, value in part.items()
    }
