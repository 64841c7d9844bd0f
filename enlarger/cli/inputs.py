"""Which pictures a run reads: the files that are named and those found in folders; what is passed over is told."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Disk(Protocol):
    """Where folders are searched."""

    def is_folder(self, path: Path) -> bool: ...
    def is_link(self, path: Path) -> bool: ...
    def walk(self, folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]: ...
    def missing_reason(self, path: Path) -> str | None: ...


class LocalDisk:
    """The disks of this machine."""

    def is_folder(self, path: Path) -> bool:
        return os.path.isdir(path)  # unlike Path.is_dir it raises for no name

    def is_link(self, path: Path) -> bool:
        return os.path.islink(path)

    def walk(self, folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        return os.walk(folder, onerror=on_error)

    def missing_reason(self, path: Path) -> str | None:
        return missing_reason(path)


LOCAL_DISK = LocalDisk()


def find_inputs(paths: Sequence[Path], recursive: bool) -> tuple[list[InputFile], list[PassedOver]]:
    """The files to read, each once, in the order given, and what was left out."""
    files: dict[str, InputFile] = {}
    passed_over: list[PassedOver] = []
    for path in paths:
        for found in search(path, recursive):
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


def search(path: Path, recursive: bool, disk: Disk = LOCAL_DISK) -> Iterator[InputFile | PassedOver]:
    """A file, or what lies in a folder, one folder after another and each in the order of its names."""
    if not disk.is_folder(path):
        yield InputFile(path, is_named_by_user=True, error=disk.missing_reason(path))
        return
    errors: list[OSError] = []
    has_pictures = False
    for folder, folders, files in disk.walk(path, errors.append):
        reasons = {name: _folder_reason(Path(folder, name), recursive, disk) for name in sorted(folders)}
        yield from (PassedOver(Path(folder, name), reason) for name, reason in reasons.items() if reason is not None)
        folders[:] = [name for name, reason in reasons.items() if recursive and reason is None]
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


def _folder_reason(path: Path, recursive: bool, disk: Disk) -> str | None:
    """Why a folder in a folder is not searched; None if it is."""
    if path.name.startswith("."):
        return HIDDEN
    if disk.is_link(path):
        return LINKED_FOLDER
    return None if recursive else SUBFOLDER
