"""Reading JSON files that others wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from reprlib import Repr
from stat import S_ISREG
from typing import Any, cast

from enlarger.errors import CheckpointError

Json = dict[str, Any]
LARGEST = 64 << 20  # bytes; the largest tokenizers have a tenth of it
SHOWN = 80  # characters of a strange value


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises `CheckpointError`, naming the file, for anything else."""
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode) or state.st_size > LARGEST:
            raise CheckpointError(f"{path}: found no file, or one of {state.st_size:,} bytes, expected a file of JSON.")
        found = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); is the folder complete?") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: found a JSON {type(found).__name__}, expected an object.")
    return cast("Json", found)


def unique(pairs: Sequence[tuple[str, Any]]) -> Json:
    """An object whose names differ, as a hook of `json.loads`. Raises ValueError for one that names a thing twice."""
    found: Json = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is there twice")
        found[name] = value
    return found


def shown(found: Any) -> str:
    """Anything out of a file, short and printable, for a message."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = SHOWN
    return short.repr(found)


def shown_name(name: str) -> str:
    """A name out of a file as it is, where it is an ordinary one, else as `shown`."""
    return name if name.isidentifier() and len(name) < SHOWN else shown(name)
