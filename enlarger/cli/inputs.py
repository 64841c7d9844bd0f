"""Which pictures a run reads: the files that are named and those found in folders; what is passed over is told."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.image.decode import OPTIONAL_FORMATS
from enlarger.image.encode import SUFFIXES

IMAGE_SUFFIXES = frozenset(
    {*SUFFIXES, *OPTIONAL_FORMATS, ".gif", ".avifs"}
)  # taken from a folder; a file named by the user may be any
OTHER_KIND = "of a kind that is not read"
LINKED_FOLDER = "a linked folder in a folder, which is not searched; name it to have it searched"
SUBFOLDER = "a folder in a folder, which --recursive searches"
HIDDEN = "hidden"


@dataclass(frozen=True)
class InputFile:
    """A file to enlarge, and where it lies in the folder that the user named."""

    path: Path
    subfolder: Path = Path()
    is_named_by_user: bool = False  # by the user, not found in a folder
    error: str | None = None


@dataclass(frozen=True)
class PassedOver:
    """What lies in a folder and is not taken."""

    path: Path
    reason: str


def find_inputs(paths: Sequence[Path], recursive: bool) -> tuple[list[InputFile], list[PassedOver]]:
    """The files to read, each once, in the order given, and what was left out."""
    files: dict[str, InputFile] = {}
    passed_over: list[PassedOver] = []
    for path in paths:
        for found in _search(path, recursive):
            if isinstance(found, InputFile):
                files.setdefault(os.path.abspath(found.path), found)
            else:
                passed_over.append(found)
    return list(files.values()), passed_over


def missing_reason(path: Path) -> str | None:
    """Why a name is that of no file, as a message; None if there is one."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return too_long(path)
        if isinstance(error, OSError) and error.errno == errno.EACCES:
            return "cannot be read (Permission denied); check its permissions"
        return "no such file or folder"
    return None


def too_long(path: Path) -> str:
    """What is to be said of a name that the disk does not take."""
    longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
    size = len(os.fsencode(longest))
    return f"the name {longest[:20]}... is too long for the disk ({size} bytes; most take 255); choose a shorter one"


def _search(path: Path, recursive: bool) -> Iterator[InputFile | PassedOver]:
    if not os.path.isdir(path):  # unlike Path.is_dir it raises for no name
        yield InputFile(path, is_named_by_user=True, error=missing_reason(path))
        return
    errors: list[OSError] = []
    has_pictures = False
    for folder, folders, files in os.walk(path, onerror=errors.append):
        yield from _passed_over_folders(Path(folder), folders, recursive)
        folders[:] = [
            name for name in sorted(folders) if recursive and _folder_reason(Path(folder, name), True) is None
        ]
        for name in sorted(files):
            found = _take(Path(folder, name), Path(folder).relative_to(path))
            has_pictures = has_pictures or isinstance(found, InputFile)
            yield found
    for error in errors:
        yield InputFile(Path(error.filename), error=f"cannot be read ({error.strerror}); check its permissions")
    if not has_pictures and not errors:
        advice = "" if recursive else "; --recursive searches the folders in it"
        yield InputFile(path, is_named_by_user=True, error=f"no pictures in this folder{advice}")


def _take(path: Path, subfolder: Path) -> InputFile | PassedOver:
    if path.name.startswith("."):
        return PassedOver(path, HIDDEN)
    return InputFile(path, subfolder) if path.suffix.lower() in IMAGE_SUFFIXES else PassedOver(path, OTHER_KIND)


def _passed_over_folders(folder: Path, names: Iterable[str], recursive: bool) -> Iterator[PassedOver]:
    for name in sorted(names):
        reason = _folder_reason(folder / name, recursive)
        if reason is not None:
            yield PassedOver(folder / name, reason)


def _folder_reason(path: Path, recursive: bool) -> str | None:
    """Why a folder in a folder is not searched; None if it is."""
    if path.name.startswith("."):
        return HIDDEN
    if os.path.islink(path):
        return LINKED_FOLDER
    return None if recursive else SUBFOLDER
