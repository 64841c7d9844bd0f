"""Reading what came: a form's fields and files, or a JSON object, checked against a body's model."""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.settings import Bounds
from enlarger.strict_json import reject_duplicate_keys, short_repr

MAX_FORM_FILES = 17  # of a form; more than one picture is refused too, with a better text
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
PROMPT_FIELDS = ("prompt", "negative_prompt")
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_INVALID_TEXT = re.compile("[\0\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,5})?")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class RequestBody:
    """What a request brought: text and numbers by name, and files by name."""

    values: Mapping[str, Any]
    files: Mapping[str, tuple[UploadFile, ...]]
    is_form: bool


@asynccontextmanager
async def read_body(
    request: Request, bounds: Bounds, *, allow_form: bool, allow_json: bool
) -> AsyncGenerator[RequestBody]:
    """The body of a request; its files are open until the block ends. Raises ProblemError if it cannot be read."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if allow_json and (
            media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
        ):
            yield RequestBody(_parse_json_object(await request.body()), {}, False)
        elif allow_form and media_type in FORM_TYPES:
            limits = {
                "max_files": MAX_FORM_FILES,
                "max_fields": bounds.form_fields,
                "max_part_size": 4 * bounds.prompt + 1024,
            }
            async with request.form(**limits) as form:
                yield _parse_form(form)
        else:
            expected = " or ".join((["multipart/form-data"] * allow_form) + (["application/json"] * allow_json))
            raise problem_error(
                415, "unsupported_media_type", f"found Content-Type {short_repr(media_type)}, expected {expected}"
            )
    except ClientDisconnect as error:
        raise problem_error(499, "client_closed", "the client went away before its request had arrived") from error
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise problem_error(400, "invalid_form", f"the form cannot be read: {error.detail}") from error


def _parse_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        value = json.loads(body, object_pairs_hook=reject_duplicate_keys, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise problem_error(400, "invalid_json", f"the body is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise problem_error(400, "invalid_json", f"the body is a JSON {type(value).__name__}, expected an object")
    return cast("dict[str, Any]", value)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _parse_form(form: FormData) -> RequestBody:
    """The fields of a form; `image[]` is another way to write `image`."""
    values: dict[str, Any] = {}
    files: dict[str, tuple[UploadFile, ...]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            key = name.removesuffix("[]")
            files[key] = (*files.get(key, ()), value)
        elif name in values:
            raise problem_error(
                400, "invalid_value", f"{short_repr(name)} is there twice; give it once", printable(name)
            )
        else:
            values[name] = value
    return RequestBody(values, files, True)


def validate_body(model_type: type[Model], request_body: RequestBody) -> Model:
    """The values as a body. Raises ProblemError, naming the first field that is wrong."""
    values = coerce_form_values(model_type, request_body.values) if request_body.is_form else request_body.values
    for name, value in values.items():
        _check_text(name, name)
        if isinstance(value, str):
            _check_text(value, name)
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


def _check_text(text: str, name: str) -> None:
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
