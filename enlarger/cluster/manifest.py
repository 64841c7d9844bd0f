"""What became of every picture of a batch, kept in its output folder as JSON lines."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.cluster.storage import Storage
from enlarger.errors import InputError
from enlarger.strict_json import Json, is_object

NAME = "enlarger-manifest.jsonl"
PARTS = "enlarger-manifest.parts"  # a folder of what was added since; each part is whole
ROWS_PER_PART = 1000
SECONDS_PER_PART = 5.0


@dataclass
class Manifest:
    """A row for every picture, by its `key`; the last one counts.

    Rows are kept in parts, as object stores cannot add to a file; `close` makes one file of them. What a killed run had
    not written yet is found again by the results that it made.
    """

    storage: Storage
    folder: Path
    rows: list[str] = field(default_factory=list[str])
    written: float = field(default_factory=time.monotonic)

    def add(self, row: Json) -> None:
        """Note a row, and write those that wait if they are many or old."""
        self.rows.append(json.dumps(row))
        if len(self.rows) >= ROWS_PER_PART or time.monotonic() - self.written >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Raises OSError."""
        if self.rows:
            name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}.jsonl"
            self.storage.put(self.folder / PARTS / name, _encode(self.rows))
        self.rows, self.written = [], time.monotonic()

    def compact(self) -> None:
        """Make one file of all, with one row for each key, in the order in which they came. Raises OSError."""
        self.flush()
        parts = self._parts()
        if parts:
            self._merge(parts)
        if self.storage.is_folder(self.folder / PARTS):
            self.storage.remove_folder(self.folder / PARTS)

    def _merge(self, parts: list[Path]) -> None:
        last = {hash(_key(line)): number for number, line in enumerate(self._lines(parts))}
        kept = [line for number, line in enumerate(self._lines(parts)) if last[hash(_key(line))] == number]
        self.storage.put(self.folder / NAME, _encode(kept))
        for part in parts:
            self.storage.remove(part)

    def done(self, run: str) -> dict[str, str]:
        """The version of the input of each key that is done, by the same command. Raises InputError for a file that is
        no manifest."""
        rows = map(_parse, self._lines([]))
        return {str(row["key"]): str(row.get("version")) for row in rows if _is_done(row, run)}

    def _parts(self) -> list[Path]:
        return self.storage.files(self.folder / PARTS)

    def _lines(self, parts: list[Path]) -> Iterator[str]:
        """The lines of the manifest and of parts."""
        whole = self.folder / NAME
        first = [whole] if self.storage.states([whole])[whole].exists else []
        for path in (*first, *parts):
            text = self.storage.read(path).decode("utf-8", "replace")
            yield from (line for line in text.split("\n") if line.strip())


def _is_done(row: Json, run: str) -> bool:
    return row.get("status") == "done" and row.get("run") == run


def _key(line: str) -> str:
    return str(_parse(line).get("key"))


def _parse(line: str) -> Json:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{NAME} in the output folder is no manifest ({error}); move it away") from error
    if not is_object(row):
        raise InputError(f"{NAME} in the output folder is no manifest (found no object in a line); move it away")
    return row


def _encode(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
