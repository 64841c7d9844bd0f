"""A JSON body within bounds: how many things are in it, and how deep, is counted before anything is built of it."""

import json
import re
from typing import Any

from enlarger.service.problems import ProblemError, problem_error
from enlarger.strict_json import is_object, reject_duplicate_keys

MAX_ITEMS = 1000  # texts, commas and brackets
MAX_DEPTH = 16
MAX_ESCAPED_QUOTES = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MARK = re.compile(rb'["\[\]{},]')


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body in UTF-8. Raises ProblemError, at the first thing that is wrong."""
    try:
        check_shape(body)
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=reject_duplicate_keys, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise invalid_json(str(error)) from error
    if not is_object(value):
        raise problem_error(400, "invalid_json", f"the body is a JSON {type(value).__name__}, expected an object")
    return value


def invalid_json(reason: str) -> ProblemError:
    return problem_error(400, "invalid_json", f"the body is not valid JSON: {reason[:200]}")


def check_shape(body: bytes) -> None:
    """Raises ValueError for too many items, too deep a nesting, or a byte order mark."""
    if body.startswith(BYTE_ORDER_MARK):
        raise ValueError("it begins with a byte order mark; send plain UTF-8")
    position = depth = num_items = 0
    while (mark := _MARK.search(body, position)) is not None:
        position, num_items = mark.end(), num_items + 1
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested too deeply; expected {MAX_DEPTH} levels at most")
        if num_items > MAX_ITEMS:
            raise ValueError(f"there is too much in it; expected {MAX_ITEMS} texts, commas and brackets at most")
        if mark[0] == b'"':
            position = _string_end(body, position)


def _string_end(body: bytes, position: int) -> int:
    """Where the text ends that begins at a position."""
    for _ in range(MAX_ESCAPED_QUOTES):
        quote = body.find(b'"', position)
        if quote < 0:
            return len(body)
        before = quote
        while body[before - 1] == ord("\\"):
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        position = quote + 1
    raise ValueError(f"a text has too many quotes in it; expected {MAX_ESCAPED_QUOTES} at most")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
