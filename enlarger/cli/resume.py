"""Telling a result that an earlier run of the same command made from any other file of its name."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from enlarger import __version__
from enlarger.image.decode import open_image
from enlarger.image.digest import file_sha256
from enlarger.image.metadata import EXIF_DIRECTORY, IMAGE_UNIQUE_ID

Fingerprint = Callable[[Path, int], str]  # of an input, and the number of its result
FilesBeside = Callable[[Path], Sequence[Path]]  # what a result is made of beside its input, such as a depth map


def nothing_beside(source: Path) -> Sequence[Path]:
    """A result is made of its input alone."""
    return ()


def fingerprint_of_run(request: Any, *settings: object, beside: FilesBeside = nothing_beside) -> Fingerprint:
    """What the results of a run carry: 32 hexadecimal digits of the bytes of the input and of what is used `beside` it,
    of all options, and of their number."""
    text = _describe_run(request, *settings)

    def fingerprint(source: Path, number: int) -> str:
        digests = " ".join(file_sha256(path) for path in (source, *beside(source)))
        return _digest(f"{digests} {number} {text}")

    return fingerprint


def fingerprint_of_request(request: Any, *settings: object) -> Fingerprint:
    """The same of results that are made of a request alone."""
    text = _describe_run(request, *settings)
    return lambda _, number: _digest(f"{number} {text}")


def run_name(request: Any, *settings: object) -> str:
    """By what runs with the same options are known: 32 hexadecimal digits."""
    return _digest(_describe_run(request, *settings))


def _describe_run(request: Any, *settings: object) -> str:
    """All options as text, and the version."""
    options = {item.name: getattr(request, item.name) for item in fields(request) if item.name != "image"}
    return json.dumps([__version__, options, settings], default=repr, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def carries(path: Path, fingerprint: str) -> bool:
    """Whether a file is a whole picture that says that it was made so."""
    try:
        with open_image(path, any_size=True) as (image, _):
            return image.getexif().get_ifd(EXIF_DIRECTORY).get(IMAGE_UNIQUE_ID) == fingerprint
    except Exception:  # noqa: BLE001 - readers raise anything on files that are no picture of ours
        return False
