"""Whether the values of a dataclass are of the types that its fields state, in a person's words. Without torch."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from enlarger.errors import InputError

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path", NoneType: ""}
NUMBERS: dict[object, type] = {int: Integral, float: Real}


def check_types(owner: Any) -> None:
    """Raise InputError for a value of another type than its field's; numbers of numpy and torch become Python's."""
    kind = cast("type[object]", type(owner))
    hints = _hints(kind)
    for item in fields(owner):
        if hints[item.name] is Any:
            continue
        value = plain(getattr(owner, item.name))
        object.__setattr__(owner, item.name, value)
        check_type(item.name, value, hints[item.name])


def check_type(name: str, value: object, hint: object) -> None:
    """Raise InputError for a value that is not what a type says; of a list the item at fault is named."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(_is_plainly(value, kind) for kind in kinds):
        return None
    lists = [kind for kind in kinds if get_origin(kind) in (Sequence, tuple)]
    if lists and is_list(value):
        return _check_items(name, cast("Sequence[object]", value), lists[0])
    words = [word for kind in kinds if (word := _words(kind))]
    raise InputError(f"{name} is {value!r}, expected {' or '.join(words)}")


def is_list(value: object) -> bool:
    """Whether it is a list or a tuple, or counts as one; text does not."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's numbers and lists; anything else as it is."""
    if is_list(value):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_plainly(value: object, kind: Any) -> bool:
    """Whether a value is of a type that is no list."""
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    return kind is Any or (isinstance(kind, type) and get_origin(kind) is None and isinstance(value, kind))


def _check_items(name: str, values: Sequence[object], kind: Any) -> None:
    inner = get_args(kind)
    is_fixed = get_origin(kind) is tuple and inner[-1] is not Ellipsis  # one type for each item
    if is_fixed and len(values) != len(inner):
        raise InputError(f"{name} is {values!r}, expected {_words(kind)}")
    for value, each in zip(values, inner if is_fixed else inner[:1] * len(values), strict=True):
        check_type(name, value, each)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis:
        return f"({', '.join(map(_words, get_args(kind)))})"
    if get_origin(kind) in (Sequence, tuple):
        inner = get_args(kind)[0]
        return "a list" if inner in WORDS else f"a list of {_words(inner)}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))
