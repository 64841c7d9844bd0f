"""Reading what came: a form's fields and files, or a JSON object, checked against a body's model."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from enlarger.service.dependencies import get_owner, get_service
from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.settings import Bounds
from enlarger.service.uploads.form_body import invalid_form
from enlarger.service.uploads.messages import Dialect, ParseRequest
from enlarger.strict_json import short_repr

BodyFormat = Literal["json", "multipart", "urlencoded"]
FORM_TYPES: Mapping[str, BodyFormat] = {
    "multipart/form-data": "multipart",
    "application/x-www-form-urlencoded": "urlencoded",
}
MAX_BOUNDARY_BYTES = 70  # RFC 2046, 5.1.1
PROMPT_FIELDS = ("prompt", "negative_prompt")
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_INVALID_TEXT = re.compile("[\0\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,5})?")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class RequestBody:
    """What a request brought: text and numbers by name, and files by the name of their field."""

    values: Mapping[str, Any]
    files: Mapping[str, tuple[Path, ...]]
    is_form: bool


@asynccontextmanager
async def read_body(
    request: Request, *, allow_form: bool, allow_json: bool, dialect: Dialect = "openai"
) -> AsyncGenerator[RequestBody]:
    """The body of a request; its files are there until the block ends. Raises ProblemError if it cannot be read."""
    content_type = request.headers.get("content-type", "")
    body_format = _body_format(content_type.partition(";")[0].strip().lower(), allow_form, allow_json)
    boundary = _boundary(content_type) if body_format == "multipart" else ""
    service, owner = get_service(request), get_owner(request)
    try:
        async with service.bodies.receive(request.stream(), owner) as body:
            parse_request = _parse_request(body, body_format, boundary, service.settings.bounds)
            parse_request = replace(parse_request, dialect=dialect)
            parsed = await service.decoder.parse_body(parse_request, owner)
            body.unlink()
            files: dict[str, tuple[Path, ...]] = {}
            for file in parsed.files:
                name = file.name.removesuffix("[]")  # `image[]` is another way to write `image`
                files[name] = (*files.get(name, ()), Path(file.path))
            yield RequestBody(parsed.values, files, body_format != "json")
    except ClientDisconnect as error:
        raise problem_error(499, "client_closed", "the client went away before its request had arrived") from error


def _body_format(media_type: str, allow_form: bool, allow_json: bool) -> BodyFormat:
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if allow_json and is_json:
        return "json"
    if allow_form and media_type in FORM_TYPES:
        return FORM_TYPES[media_type]
    expected = " or ".join((["multipart/form-data"] * allow_form) + (["application/json"] * allow_json))
    raise problem_error(
        415, "unsupported_media_type", f"found Content-Type {short_repr(media_type)}, expected {expected}"
    )


def _boundary(content_type: str) -> str:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        expected = f"expected one of 1 to {MAX_BOUNDARY_BYTES} characters"
        raise invalid_form(f"its Content-Type names no boundary, or one too long; {expected}")
    return boundary.decode("latin-1")


def _parse_request(path: Path, body_format: BodyFormat, boundary: str, bounds: Bounds) -> ParseRequest:
    return ParseRequest(
        body_format,
        source=str(path),
        out=str(path),
        boundary=boundary,
        max_fields=bounds.form_fields,
        max_text_bytes=bounds.json_body,
        max_image_bytes=bounds.image,
        max_mask_bytes=bounds.mask,
        seconds=bounds.decode_seconds,
    )


def validate_body(model_type: type[Model], request_body: RequestBody) -> Model:
    """The values as a body. Raises ProblemError, naming the first field that is wrong."""
    values = coerce_form_values(model_type, request_body.values) if request_body.is_form else request_body.values
    for name, value in values.items():
        check_text(name, name)
        if isinstance(value, str):
            check_text(value, name)
    try:
        return model_type.model_validate(values)
    except ValidationError as error:
        raise ProblemError(problem_from_validation(error.errors())) from error


def coerce_form_values(model_type: type[BaseModel], values: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a form as what the fields take; a text that is no such thing stays one, and is refused later."""
    field_types = {name: _accepted_types(item.annotation) for name, item in model_type.model_fields.items()}
    return {name: _coerce(text, field_types.get(name, {str})) for name, text in values.items()}


def _accepted_types(annotation: Any) -> set[Any]:
    """The plain types that a field takes."""
    if get_origin(annotation) is Literal:
        return {str}
    parts = get_args(annotation)
    return set[Any]().union(*(_accepted_types(part) for part in parts)) if parts else {annotation}


def _coerce(text: str, types: set[Any]) -> Any:
    if str in types:
        return text
    if bool in types and text.lower() in BOOLEANS and (text.isalpha() or types <= {bool, NoneType}):
        return BOOLEANS[text.lower()]
    if int in types and _INTEGER.fullmatch(text):
        return int(text)
    if float in types and _NUMBER.fullmatch(text):
        return float(text)
    return text


def check_text(text: str, name: str) -> None:
    """Raises ProblemError for a text that is no text: half of a surrogate pair, or NUL."""
    match = _INVALID_TEXT.search(text)
    if match is not None:
        code = "invalid_prompt" if name in PROMPT_FIELDS else "invalid_value"
        invalid = "NUL" if match[0] == "\0" else f"half a surrogate pair, U+{ord(match[0]):04X}"
        raise problem_error(400, code, f"{short_repr(name)} holds {invalid}, expected text", printable(name))


def printable(name: str) -> str:
    """A name from outside, as it can stand in any answer."""
    return name[:100].encode("utf-8", "backslashreplace").decode()


def problem_from_validation(errors: Any) -> Problem:
    """The problem of pydantic's first error: what was found, what was expected."""
    first = errors[0]
    location = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header", "bool", "float")]
    name = printable(".".join(location)) or None
    if first["type"] == "missing":
        return Problem(400, "missing_parameter", f"{name} is missing; it is required", name)
    expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    alternatives = [
        error["msg"] for error in errors[1:] if error["loc"][:1] == first["loc"][:1] and len(error["loc"]) > 1
    ]
    suffix = "".join(
        f", or {text.removeprefix('Input should be ')}" for text in alternatives if text.startswith("Input should")
    )
    return Problem(400, "invalid_value", f"{name} is {short_repr(first['input'])}, {expected}{suffix}", name)
