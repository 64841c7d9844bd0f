"""What FastAPI cannot know of our routes: bodies that are read by hand, errors, streams, examples."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from enlarger.service.routes.answers import JobReply

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description="a key of the service")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key", description="a key of the service")

FILE: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
TEXTS = {
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
EXAMPLES = {
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
HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": {"description": "names this request in the log", "schema": {"type": "string"}},
}
RETRY: Mapping[str, Schema] = {
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}},
}
JOB_HEADERS: Mapping[str, Schema] = {
    "Location": {"description": "the job", "schema": {"type": "string"}, "required": True},
    "Preference-Applied": {"schema": {"type": "string", "const": "respond-async"}, "required": True},
}
ORDER: list[Schema] = [
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
SCHEMAS = "#/components/schemas"
KEPT = "json:"
READING = (400, 401, 403, 431, 500, 503)
REFUSALS = (*READING, 408, 413)
MAKING = (*REFUSALS, 404, 415, 429, 499)


def kept(example: Any) -> str:
    """An example as text: FastAPI drops the nulls of what is not."""
    return KEPT + json.dumps(example)


def one(kind: type[BaseModel], description: str, example: Any) -> dict[str, Any]:
    """One documented success, with its example."""
    content = {"application/json": {"example": kept(example)}}
    return {"model": kind, "description": description, "headers": dict(HEADERS), "content": content}


def error(status: int) -> dict[str, Any]:
    """One documented error."""
    type_, code, param, message = EXAMPLES[status]
    example = kept({"error": {"message": message, "type": type_, "param": param, "code": code}})
    headers = {**HEADERS, **(RETRY if status in (429, 503) else {})}
    return {
        "description": TEXTS[status],
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": f"{SCHEMAS}/Error"}, "example": example}},
    }


def errors(*statuses: int) -> Responses:
    """The documented errors of a route."""
    return {status: error(status) for status in sorted(set(statuses))}


def event_stream(example: str, *kinds: str) -> dict[str, Any]:
    """The content of an answer that is server-sent events; the schema is that of one event."""
    properties: Schema = {
        "event": {"type": "string", "enum": list(kinds)},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
    }
    schema = {"type": "object", "properties": properties, "required": ["event", "data"]}
    return {"text/event-stream": {"schema": schema, "example": example}}


def making(kind: type[BaseModel], example: Any, stream: str | None = None, events: str = "") -> Responses:
    """What a route answers that makes pictures, and streams events of such names."""
    content: dict[str, Any] = {"application/json": {"example": kept(example)}}
    if stream is not None:
        content |= event_stream(stream, *(f"{events}.{name}" for name in ("partial_image", "completed")), "error")
    return {
        200: {"model": kind, "description": "the pictures", "headers": dict(HEADERS), "content": content},
        202: {
            "model": JobReply,
            "description": "the job, with `Prefer: respond-async`",
            "headers": {**HEADERS, **JOB_HEADERS},
        },
        **errors(*MAKING),
    }


def form(kind: type[BaseModel], example: Any, files: Mapping[str, str], needed: tuple[str, ...]) -> Schema:
    """A multipart body: a model's fields, and files with what they are."""
    schema = without_null(plain(kind))
    pictures = {name: FILE | {"description": help} for name, help in files.items()}
    schema["properties"] = pictures | schema["properties"]
    schema["required"] = [*needed, *schema.get("required", [])]
    return {"multipart/form-data": {"schema": schema, "example": kept(example)}}


def plain(kind: type[BaseModel]) -> Schema:
    """A model's schema, whole."""
    schema = kind.model_json_schema(ref_template="{model}")
    known = schema.pop("$defs", {})
    return _inlined(schema, known)


def without_null(part: Any) -> Any:
    """The schema of what is sent as text: what may be absent cannot be null."""
    if isinstance(part, list):
        items: list[Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return [without_null(item) for item in items if item not in (None, {"type": "null"})]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {**part}  # pyright: ignore[reportUnknownVariableType]  JSON
    if found.get("default", 0) is None:
        del found["default"]
    found = {name: without_null(value) for name, value in found.items()}
    if len(found.get("anyOf", ())) == 1:
        found |= found.pop("anyOf")[0]
    return found


def _inlined(part: Any, known: Mapping[str, Any]) -> Any:
    """The schema with its references replaced by what they name."""
    if isinstance(part, dict):
        found: dict[str, Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        if "$ref" in found:
            return _inlined(known[found["$ref"]], known)
        return {name: _inlined(value, known) for name, value in found.items()}
    if isinstance(part, list):
        items: list[Any] = part  # pyright: ignore[reportUnknownVariableType]  JSON
        return [_inlined(item, known) for item in items]
    return part


def body(*contents: Schema) -> Schema:
    """The request body of a route, for `openapi_extra`, with the headers that all such routes read."""
    merged = {kind: value for content in contents for kind, value in content.items()}
    return {"requestBody": {"required": True, "content": merged}, "parameters": ORDER}


def json_body(kind: type[BaseModel], example: Any) -> Schema:
    """A JSON body."""
    return {"application/json": {"schema": plain(kind), "example": kept(example)}}


def picture(*kinds: str) -> dict[str, Any]:
    """The content of an answer that is a picture."""
    return {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}
