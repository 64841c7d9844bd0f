"""What an engine keeps on disk: folders that are whole or not there, and together not larger than a bound."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import EnlargerError
from enlarger.strict_json import is_object, parse_json

MOST_BYTES = 16 * 2**30  # of all entries together; those that were not used for longest go first
CONTENTS = "contents.json"  # of an entry: the sha256 of each of its files
UNFINISHED = "unfinished-"  # what the names of folders begin with that are being written
FORGOTTEN = 24 * 3600  # seconds after which such a folder is taken for that of a process which is gone


class DamagedEntry(EnlargerError):
    """An entry whose files are not those that were written."""


@dataclass(frozen=True)
class Entries:
    """A folder of entries by key. Processes may share it."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def find(self, key: str) -> Path | None:
        """The entry's folder; None if there is none. Raises DamagedEntry, after dropping it, for other files in it."""
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            contents = parse_json((entry / CONTENTS).read_text())
            is_whole = is_object(contents) and all(file_digest(entry / name) == sha for name, sha in contents.items())
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            self.drop(key)
            raise DamagedEntry(f"{entry}: its files are not as they were written")
        os.utime(entry)
        return entry

    def add(self, key: str, write: Callable[[Path], None]) -> Path:
        """The folder of an entry that `write` fills; it appears when all of it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished, entry = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder)), self.folder / key
        try:
            write(unfinished)
            contents = {path.name: file_digest(path) for path in sorted(unfinished.iterdir())}
            (unfinished / CONTENTS).write_text(json.dumps(contents))
            try:
                unfinished.rename(entry)
            except OSError:
                if not entry.is_dir():  # another process has been faster
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._prune(entry)
        return entry

    def drop(self, key: str) -> None:
        """Take an entry away."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _prune(self, newest: Path) -> None:
        """Drop what is over the bound, but not the newest entry, and what killed processes left."""
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            used = path.stat().st_mtime
            if path.name.startswith(UNFINISHED):
                if used < time.time() - FORGOTTEN:
                    shutil.rmtree(path, ignore_errors=True)
            elif path != newest and path.is_dir():
                entries.append((used, folder_bytes(path), path))
        total = folder_bytes(newest) + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.most_bytes:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= size


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """The size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
