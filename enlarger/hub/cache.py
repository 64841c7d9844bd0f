"""The copies on this disk: where they lie, what was recorded of them, and whether they are whole."""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enlarger.errors import CheckpointError, InputError
from enlarger.hub.fetch import Wanted, digests, write_whole
from enlarger.hub.names import Source, read_book
from enlarger.jsonfile import read_json

RECORD = ".enlarger.json"  # in each copy: what was pulled
REFS = "refs.json"  # in each model's folder: the commit that a revision was, last time
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+?))?(-\d{5}-of-\d{5})?\.safetensors"  # variant, shard
)
PARTS = ".parts"  # beside the copies: unfinished files


def home() -> Path:
    """Where everything lies: ENLARGER_HOME, or `enlarger` in the platform's folder for caches."""
    given = os.environ.get("ENLARGER_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "enlarger"
    name, usual = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    return Path(os.environ.get(name) or Path.home() / usual) / "enlarger"


def model_folder(repository: str) -> Path:
    """The folder of all revisions of a repository."""
    return home() / "models" / repository.replace("/", "--")


@dataclass(frozen=True)
class Copy:
    """A pulled folder and its record. `files` holds all that was asked for, there or not."""

    folder: Path
    repository: str
    revision: str  # a commit
    endpoint: str
    files: Mapping[str, Wanted] = field(default_factory=dict[str, Wanted])

    def missing(self) -> list[str]:
        """Files that are not there, or not as long as they should be. No file is read."""
        return [path for path, wanted in self.files.items() if _size(self.folder / path) != wanted.size]

    def broken(self) -> dict[str, str]:
        """Every file that is not what was pulled, and why. All bytes are read."""
        found = {path: why for path, wanted in self.files.items() if (why := _fault(self.folder / path, wanted))}
        return dict(sorted(found.items()))

    def save(self) -> None:
        """Write the record."""
        about = {key: value for key, value in asdict(self).items() if key not in ("folder", "files")}
        files = {path: _entry(wanted) for path, wanted in sorted(self.files.items())}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / RECORD, (json.dumps(about | {"files": files}, indent=1) + "\n").encode())


def _entry(wanted: Wanted) -> dict[str, Any]:
    return {key: value for key, value in asdict(wanted).items() if value is not None and key != "path"}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _fault(path: Path, wanted: Wanted) -> str | None:
    size = _size(path)
    if size is None:
        return "missing"
    if size != wanted.size:
        return f"{size:,} bytes, expected {wanted.size:,}"
    try:
        sha256, git = digests(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if wanted.sha256 is None:
        return None if wanted.git in (None, git) else f"changed: git id {git}, expected {wanted.git}"
    return None if sha256 == wanted.sha256 else f"changed: sha256 {sha256}, expected {wanted.sha256}"


def read_copy(folder: Path) -> Copy | None:
    """The record of a folder; None if it has none."""
    path = folder / RECORD
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        files = {str(name): Wanted(str(name), **entry) for name, entry in found["files"].items()}
        return Copy(folder, str(found["repository"]), str(found["revision"]), str(found["endpoint"]), files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged record ({error!r}); delete {folder} and pull it again.") from error


def copies() -> Iterator[Copy]:
    """All copies in the cache."""
    for path in sorted(home().glob(f"models/*/*/{RECORD}")):
        copy = read_copy(path.parent)
        if copy is not None:
            yield copy


def commit_of(repository: str, revision: str) -> str | None:
    """The commit that a revision was when it was pulled last; a commit is itself."""
    if is_commit(revision):
        return revision
    path = model_folder(repository) / REFS
    return read_json(path).get(revision) if path.is_file() else None


def save_ref(repository: str, revision: str, commit: str) -> None:
    """Remember which commit a revision was."""
    path = model_folder(repository) / REFS
    refs = read_json(path) if path.is_file() else {}
    if not is_commit(revision) and refs.get(revision) != commit:
        write_whole(path, json.dumps(refs | {revision: commit}).encode())


def is_commit(revision: str) -> bool:
    """Whether this is a whole commit id, which stands for the same files forever."""
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def find_copy(source: Source, revision: str | None = None) -> Copy | None:
    """The copy of what a name stands for: of its revision, or else the newest there is."""
    for repository in source.repositories:
        commit = commit_of(repository, source.revision if revision is None else revision)
        copy = None if commit is None else read_copy(model_folder(repository) / commit)
        if copy is None and revision is None:
            records = sorted(model_folder(repository).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
            copy = read_copy(records[-1].parent) if records else None
        if copy is not None:
            return copy
    return None


def resolve(name_or_path: str | Path) -> Path:
    """The folder or file to load: an existing path, or the copy of an alias or of owner/repository in the cache.

    Nothing is downloaded. Raises CheckpointError, saying how to get it.
    """
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if os.path.exists(path):  # unlike Path.exists it raises for no name
        return path
    try:
        source = read_book(home()).find(name)
    except InputError as error:
        raise CheckpointError(f"{name}: no such file or folder, and {error}.") from error
    copy = find_copy(source)
    if copy is None:
        raise CheckpointError(f"{name}: no such path, and not in the cache; fetch it once: enlarger pull {name}")
    missing = copy.missing()
    if missing:
        raise CheckpointError(
            f"{copy.folder}: {len(missing)} of {len(copy.files)} files are missing or cut short, {missing[0]} first; "
            f"fetch them: {repair_command(copy)}"
        )
    return copy.folder


def only_variant(folder: Path) -> str | None:
    """The variant that a pulled folder's weights are of; None if plain weights are there, or no record."""
    copy = read_copy(folder)
    matches = [WEIGHTS.fullmatch(Path(path).name) for path in (copy.files if copy is not None else ())]
    found = {match[1] for match in matches if match is not None}
    return next(iter(found)) if len(found) == 1 else None


def repair_command(copy: Copy) -> str:
    """The command that fetches what is broken in a copy, and nothing else."""
    inside = copy.folder == model_folder(copy.repository) / copy.revision
    words = [f"enlarger pull {copy.repository} --revision {copy.revision} --repair"]
    words += [] if inside else [f"--to {_quoted(copy.folder)}"]
    words += [] if copy.endpoint == read_book(home()).endpoint else [f"--mirror {copy.endpoint}"]
    return " ".join(words)


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)
