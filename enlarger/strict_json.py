"""Reading JSON files that others wrote."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from reprlib import Repr
from stat import S_ISREG
from typing import Any, TypeGuard

from enlarger.errors import CheckpointError

Json = dict[str, Any]
MAX_BYTES = 64 << 20  # bytes; the largest tokenizers have a tenth of it
MAX_VALUES = 500_000  # values in one document, at up to 200 bytes of memory each; the largest tokenizers have a third
MAX_SHOWN_LENGTH = 80  # characters of a strange value


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises `CheckpointError`, naming the file, for anything else."""
    try:
        file_stat = path.stat()
        if not S_ISREG(file_stat.st_mode) or file_stat.st_size > MAX_BYTES:
            raise CheckpointError(
                f"{path}: found no file, or one of {file_stat.st_size:,} bytes, expected a file of JSON."
            )
        data = parse_json(path.read_bytes(), reject_duplicate_keys)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); is the folder complete?") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch the file again.") from error
    if not is_object(data):
        raise CheckpointError(f"{path}: found a JSON {type(data).__name__}, expected an object.")
    return data


def is_object(value: object) -> TypeGuard[Json]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[object]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def parse_json(
    document: bytes | str,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    max_values: int = MAX_VALUES,
) -> Any:
    """What a document of others holds. Raises ValueError where it is no JSON, or has more values than any file needs.

    A byte of JSON may take 26 of memory, so values are counted, by what separates them, before any is made.
    """
    separators = (b",", b"[", b"{", b":") if isinstance(document, bytes) else (",", "[", "{", ":")
    values = sum(document.count(each) for each in separators)  # pyright: ignore[reportArgumentType] - of one type
    if values > max_values:
        raise ValueError(f"about {values:,} values, expected at most {max_values:,}")
    return json.loads(document, object_pairs_hook=pairs_hook)


def reject_duplicate_keys(pairs: Sequence[tuple[str, Any]]) -> Json:
    """An object whose names differ, as a hook of `json.loads`. Raises ValueError for one that names a thing twice."""
    result: Json = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{short_repr(name)} is there twice")
        result[name] = value
    return result


def short_repr(value: object) -> str:
    """Anything out of a file, short and printable, for a message."""
    formatter = Repr()
    formatter.maxstring = formatter.maxother = formatter.maxlong = MAX_SHOWN_LENGTH
    return formatter.repr(value)


def printable_name(name: str) -> str:
    """A name out of a file as it is, where it is an ordinary one, else as `short_repr`."""
    return name if name.replace(".", "_").isidentifier() and len(name) < MAX_SHOWN_LENGTH else short_repr(name)
