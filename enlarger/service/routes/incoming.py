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

from enlarger.jsonfile import shown, unique
from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.settings import Bounds

FILES = 17  # of a form; more than one picture is refused too, with better words
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
PROMPTS = ("prompt", "negative_prompt")
TRUTH = {"true": True, "false": False, "1": True, "0": False}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,5})?")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Incoming:
    """What a request brought: text and numbers by name, and files by name."""

    values: Mapping[str, Any]
    files: Mapping[str, tuple[UploadFile, ...]]
    form: bool


@asynccontextmanager
async def incoming(request: Request, bounds: Bounds, *, forms: bool, objects: bool) -> AsyncGenerator[Incoming]:
    """The body of a request. Its files are open until the end of the block. Raises Refused for what cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if objects and (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
            yield Incoming(_object(await request.body()), {}, False)
        elif forms and kind in FORMS:
            limits = {"max_files": FILES, "max_fields": bounds.form_fields, "max_part_size": 4 * bounds.prompt + 1024}
            async with request.form(**limits) as form:
                yield _form(form)
        else:
            expected = " or ".join((["multipart/form-data"] * forms) + (["application/json"] * objects))
            raise refuse(415, "unsupported_media_type", f"found Content-Type {shown(kind)}, expected {expected}")
    except ClientDisconnect as error:
        raise refuse(499, "client_closed", "the client went away before its request had arrived") from error
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise refuse(400, "invalid_form", f"the form cannot be read: {error.detail}") from error


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        found = json.loads(body, object_pairs_hook=unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refuse(400, "invalid_json", f"the body is not valid JSON: {why}") from error
    if not isinstance(found, dict):
        raise refuse(400, "invalid_json", f"the body is a JSON {type(found).__name__}, expected an object")
    return cast("dict[str, Any]", found)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _form(form: FormData) -> Incoming:
    """The fields of a form; `image[]` is another way to write `image`."""
    values: dict[str, Any] = {}
    files: dict[str, tuple[UploadFile, ...]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            key = name.removesuffix("[]")
            files[key] = (*files.get(key, ()), value)
        elif name in values:
            raise refuse(400, "invalid_value", f"{shown(name)} is there twice; give it once", printable(name))
        else:
            values[name] = value
    return Incoming(values, files, True)


def body_of(kind: type[Model], found: Incoming) -> Model:
    """The values as a body. Raises Refused, naming the first field that is wrong."""
    values = from_texts(kind, found.values) if found.form else found.values
    for name, value in values.items():
        _check_text(name, name)
        if isinstance(value, str):
            _check_text(value, name)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Refused(fault_of_errors(error.errors())) from error


def from_texts(kind: type[BaseModel], values: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a form as what the fields take; a text that is no such thing stays one, and is refused later."""
    kinds = {name: _kinds(item.annotation) for name, item in kind.model_fields.items()}
    return {name: _from_text(text, kinds.get(name, {str})) for name, text in values.items()}


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field takes."""
    if get_origin(annotation) is Literal:
        return {str}
    parts = get_args(annotation)
    return set[Any]().union(*(_kinds(part) for part in parts)) if parts else {annotation}


def _from_text(text: str, kinds: set[Any]) -> Any:
    if str in kinds:
        return text
    if bool in kinds and text.lower() in TRUTH and (text.isalpha() or kinds <= {bool, NoneType}):
        return TRUTH[text.lower()]
    if int in kinds and _WHOLE.fullmatch(text):
        return int(text)
    if float in kinds and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _check_text(text: str, name: str) -> None:
    """Raises Refused for a text that is no text: half of a surrogate pair, or NUL."""
    bad = _NO_TEXT.search(text)
    if bad is not None:
        code = "invalid_prompt" if name in PROMPTS else "invalid_value"
        found = "NUL" if bad[0] == "\0" else f"half a surrogate pair, U+{ord(bad[0]):04X}"
        raise refuse(400, code, f"{shown(name)} holds {found}, expected text", printable(name))


def printable(name: str) -> str:
    """A name from outside, as it can stand in any answer."""
    return name[:100].encode("utf-8", "backslashreplace").decode()


def fault_of_errors(errors: Any) -> Fault:
    """The fault of pydantic's first error: what was found, what was expected."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header", "bool", "float")]
    name = printable(".".join(place)) or None
    if first["type"] == "missing":
        return Fault(400, "missing_parameter", f"{name} is missing; it is required", name)
    wish = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    also = [error["msg"] for error in errors[1:] if error["loc"][:1] == first["loc"][:1] and len(error["loc"]) > 1]
    more = "".join(f", or {text.removeprefix('Input should be ')}" for text in also if text.startswith("Input should"))
    return Fault(400, "invalid_value", f"{name} is {shown(first['input'])}, {wish}{more}", name)
