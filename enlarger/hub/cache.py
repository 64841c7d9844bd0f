"""The snapshots on this disk: where they are, what was recorded of them, and whether they are complete."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from enlarger.errors import CheckpointError, InputError
from enlarger.hub.aliases import RepoSource, is_commit, read_alias_table
from enlarger.hub.fetch import RemoteFile, digests, write_small_file
from enlarger.hub.huggingface_cache import HuggingFaceSnapshot, find_huggingface_snapshot, is_huggingface_snapshot
from enlarger.strict_json import Json, read_json

RECORD_FILE = ".enlarger.json"  # in each snapshot: what was pulled
REFS_FILE = "refs.json"  # in each model's folder: the commit that a revision was, last time
WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+?))?(-\d{5}-of-\d{5})?\.safetensors"  # variant, shard
)
MODEL_SUFFIXES = (".json", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PARTIAL_DIR = ".parts"  # beside the snapshots: unfinished files


def cache_dir() -> Path:
    """Where everything lies: ENLARGER_HOME, or `enlarger` in the platform's folder for caches."""
    configured = os.environ.get("ENLARGER_HOME")
    if configured:
        return Path(configured).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "enlarger"
    name, default_folder = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    return Path(os.environ.get(name) or Path.home() / default_folder) / "enlarger"


def repo_folder(repository: str) -> Path:
    """The folder of all revisions of a repository."""
    return cache_dir() / "models" / repository.replace("/", "--")


@dataclass(frozen=True)
class LocalSnapshot:
    """A pulled folder and its record. `files` holds all that was requested, there or not."""

    folder: Path
    repository: str
    revision: str  # a commit
    endpoint: str
    files: Mapping[str, RemoteFile] = field(default_factory=dict[str, RemoteFile])

    def missing_files(self) -> list[str]:
        """Files that are not there, or not as long as they should be. No file is read."""
        return [path for path, remote in self.files.items() if _size(self.folder / path) != remote.size]

    def damaged_files(self) -> dict[str, str]:
        """Every file that is not what was pulled, and why. All bytes are read."""
        damaged = {
            path: reason for path, remote in self.files.items() if (reason := _file_problem(self.folder / path, remote))
        }
        return dict(sorted(damaged.items()))

    def save(self) -> None:
        """Write the record."""
        metadata = {key: value for key, value in asdict(self).items() if key not in ("folder", "files")}
        files = {path: _file_record(remote) for path, remote in sorted(self.files.items())}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_small_file(self.folder / RECORD_FILE, (json.dumps(metadata | {"files": files}, indent=1) + "\n").encode())


def _file_record(remote: RemoteFile) -> Json:
    return {key: value for key, value in asdict(remote).items() if value is not None and key != "path"}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _file_problem(path: Path, remote: RemoteFile) -> str | None:
    size = _size(path)
    if size is None:
        return "missing"
    if size != remote.size:
        return f"{size:,} bytes, expected {remote.size:,}"
    try:
        sha256, blob_id = digests(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if remote.sha256 is None:
        return None if remote.git in (None, blob_id) else f"changed: git id {blob_id}, expected {remote.git}"
    return None if sha256 == remote.sha256 else f"changed: sha256 {sha256}, expected {remote.sha256}"


def read_snapshot(folder: Path) -> LocalSnapshot | None:
    """The record of a folder; None if it has none."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        files = {str(name): RemoteFile(str(name), **entry) for name, entry in record["files"].items()}
        return LocalSnapshot(folder, str(record["repository"]), str(record["revision"]), str(record["endpoint"]), files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged record ({error!r}); delete {folder} and pull it again.") from error


def local_snapshots() -> Iterator[LocalSnapshot]:
    """All snapshots in the cache."""
    for path in sorted(cache_dir().glob(f"models/*/*/{RECORD_FILE}")):
        snapshot = read_snapshot(path.parent)
        if snapshot is not None:
            yield snapshot


def resolve_commit(repository: str, revision: str) -> str | None:
    """The commit that a revision was when it was pulled last; a commit is itself."""
    if is_commit(revision):
        return revision
    path = repo_folder(repository) / REFS_FILE
    return read_json(path).get(revision) if path.is_file() else None


def save_ref(repository: str, revision: str, commit: str) -> None:
    """Remember which commit a revision was."""
    path = repo_folder(repository) / REFS_FILE
    refs = read_json(path) if path.is_file() else {}
    if not is_commit(revision) and refs.get(revision) != commit:
        write_small_file(path, json.dumps(refs | {revision: commit}).encode())


def find_snapshot(source: RepoSource, revision: str | None = None) -> LocalSnapshot | None:
    """The snapshot that a name stands for: of its revision, or else the newest there is."""
    for repository in source.repositories:
        commit = resolve_commit(repository, source.revision if revision is None else revision)
        snapshot = None if commit is None else read_snapshot(repo_folder(repository) / commit)
        if snapshot is None and revision is None:
            record_files = sorted(
                repo_folder(repository).glob(f"*/{RECORD_FILE}"), key=lambda path: path.stat().st_mtime
            )
            snapshot = read_snapshot(record_files[-1].parent) if record_files else None
        if snapshot is not None:
            return snapshot
    return None


def resolve(name_or_path: str | Path) -> Path:
    """The folder or file to load: an existing path, or the snapshot of an alias or of owner/repository in a cache.

    A folder that holds nothing of a model, such as results of a run, hides none. What was pulled comes before what lies
    in the cache of Hugging Face's libraries. Nothing is downloaded. Raises CheckpointError, saying how to get it.
    """
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if not os.path.exists(path):  # unlike Path.exists it raises for no name
        return _resolve_name(name)
    if holds_no_model(path):
        with suppress(CheckpointError):
            return _resolve_name(name)
    return path


def holds_no_model(path: Path) -> bool:
    """Whether it is a folder without configurations and weights, in it and in its folders."""
    if not path.is_dir():
        return False
    entries = (entry for pattern in ("*", "*/*") for entry in path.glob(pattern))
    return not any(entry.suffix in MODEL_SUFFIXES for entry in entries)


def _resolve_name(name: str) -> Path:
    try:
        source = read_alias_table(cache_dir()).lookup(name)
    except InputError as error:
        raise CheckpointError(f"{name}: no such file or folder, and {error}.") from error
    snapshot = find_snapshot(source)
    if snapshot is None:
        return _resolve_huggingface(name, find_huggingface_snapshot(source))
    missing = snapshot.missing_files()
    if missing:
        raise CheckpointError(
            f"{snapshot.folder}: {len(missing)} of {len(snapshot.files)} files are missing or cut short, "
            f"{missing[0]} first; "
            f"fetch them: {repair_command(snapshot)}"
        )
    return snapshot.folder


def _resolve_huggingface(name: str, snapshot: HuggingFaceSnapshot | None) -> Path:
    if snapshot is None:
        raise CheckpointError(f"{name}: no such path, and not in the cache; fetch it once: enlarger pull {name}")
    missing = snapshot.missing_files()
    if missing:
        raise CheckpointError(
            f"{snapshot.folder}: found {len(missing)} links to files that are not there, {missing[0]} first; fetch the "
            f"model: enlarger pull {name}"
        )
    return snapshot.folder


def weight_variants(paths: Iterable[str]) -> set[str | None]:
    """The variants that files of weights are of, None for plain ones; other files are of none."""
    matches = (WEIGHT_FILE.fullmatch(path.rpartition("/")[2]) for path in paths)
    return {match[1] for match in matches if match is not None}


def snapshot_variant(folder: Path) -> str | None:
    """The variant that the weights of a folder in a cache are of; None if plain weights are there, or no record."""
    snapshot = read_snapshot(folder)
    if snapshot is None and is_huggingface_snapshot(folder):
        variants = weight_variants(path.name for path in folder.rglob("*.safetensors"))
    else:
        variants = weight_variants(() if snapshot is None else snapshot.files)
    return next(iter(variants)) if len(variants) == 1 else None


def repair_command(snapshot: LocalSnapshot) -> str:
    """The command that fetches what is broken in a snapshot, and nothing else."""
    is_in_cache = snapshot.folder == repo_folder(snapshot.repository) / snapshot.revision
    command = [f"enlarger pull {snapshot.repository} --revision {snapshot.revision} --repair"]
    command += [] if is_in_cache else [f"--to {_quoted(snapshot.folder)}"]
    command += [] if snapshot.endpoint == read_alias_table(cache_dir()).endpoint else [f"--mirror {snapshot.endpoint}"]
    return " ".join(command)


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)
