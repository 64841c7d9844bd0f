"""Reading JSON files that others wrote."""

import json
from pathlib import Path
from typing import Any, cast

from enlarger.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError`, naming the file, for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); is the folder complete?") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: found a JSON {type(found).__name__}, expected an object.")
    return cast("dict[str, Any]", found)
