"""Fetching one file: resumed where it stopped, checked against its digest, and under its name only when whole."""

import errno
import hashlib
import http.client
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from enlarger.errors import CheckpointError
from enlarger.hub.transport import Client, Cut, Response, explain

CHUNK = 1 << 18  # bytes at a time
PROGRESS = 1 << 16  # so many bytes between two failures, and the patience is fresh
FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "it may just have changed; run the same command again, or try --mirror."
SAFE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # a path inside its folder, on every system
HEX = frozenset("0123456789abcdef")
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

Watch = Callable[[int], None]  # the bytes of the file that are there


@dataclass(frozen=True)
class Wanted:
    """A file as the hub lists it: `sha256` of large ones, the git blob id of the others.

    Raises ValueError for what could lead out of a folder.
    """

    path: str  # in the repository, with /
    size: int
    sha256: str | None = None
    git: str | None = None

    def __post_init__(self) -> None:
        hexes = ((self.sha256, 64), (self.git, 40))
        good = all(text is None or (len(text) == length and set(text) <= HEX) for text, length in hexes)
        if not good or not SAFE.fullmatch(self.path) or self.size < 0:
            raise ValueError(f"{self.path!r} is no path, size and digest of a file")

    @property
    def key(self) -> str:
        """A name for the unfinished file that another content does not share."""
        return self.sha256 or self.git or hashlib.sha256(f"{self.path} {self.size}".encode()).hexdigest()


@dataclass(frozen=True)
class Patience:
    """How often to try again without progress, and how long to wait before the second try; it doubles each time."""

    tries: int = 5
    wait: float = 0.5  # seconds
    longest: float = 60.0

    def pause(self, failures: int, asked: float | None) -> None:
        """Wait before try number `failures` + 1, or as long as the server asks."""
        wait = self.wait * 2 ** (failures - 2) if failures > 1 else 0.0
        time.sleep(min(wait if asked is None else max(wait, asked), self.longest))


def fetch(client: Client, url: str, wanted: Wanted, target: Path, parts: Path, watch: Watch, patience: Patience) -> str:
    """Make `target`, and give its sha256. `parts` is the folder of unfinished files, on the same disk.

    Raises CheckpointError saying what went wrong; what has come stays for the next run, but for a full disk.
    """
    part = parts / f"{wanted.key}.part"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        _complete(client, url, wanted, part, watch, patience)
        digest = _verified(wanted, part)
        if digest is None:  # damaged on the way, or what was resumed was not what it seemed: once more from the start
            _complete(client, url, wanted, part, watch, patience)
            digest = _verified(wanted, part)
        if digest is None:
            raise CheckpointError(f"{wanted.path}: what came twice differs from the hub's listing; run it again later.")
        _settle(part, target)
    except OSError as error:
        if error.errno not in FULL:
            raise CheckpointError(f"{target}: cannot be written ({error.strerror or error}).") from error
        _remove(part)
        raise CheckpointError(
            f"{wanted.path}: the disk is full; free {wanted.size:,} bytes, or give another place by ENLARGER_HOME or "
            "--to."
        ) from error
    return digest


def _complete(client: Client, url: str, wanted: Wanted, part: Path, watch: Watch, patience: Patience) -> None:
    """Try until all bytes are in the part."""
    failures, before = 0, size_of(part)
    while before != wanted.size or not part.exists():
        try:
            _more(client, url, wanted, part, watch)
            raise Cut("the connection ended early")
        except Cut as cut:
            have = size_of(part)
            if have == wanted.size and part.exists():
                return
            failures = 1 if have - before >= PROGRESS else failures + 1
            if failures > patience.tries:
                raise CheckpointError(
                    f"{wanted.path}: {cut}; {have:,} of {wanted.size:,} bytes are kept, the same command goes on there."
                ) from cut
            before = have
            patience.pause(failures, cut.wait)


def _more(client: Client, url: str, wanted: Wanted, part: Path, watch: Watch) -> None:
    """Ask for what is missing and append it. Returns when the answer ends, Cut if it breaks off."""
    have = size_of(part)
    if have > wanted.size:
        _remove(part)
        have = 0
    etag = _read_etag(part) if have else None
    headers = {"Range": f"bytes={have}-"} if have else {}
    if etag is not None:
        headers["If-Range"] = etag
    with client.open(url, headers) as response:
        start = _start(response, wanted, part, have, etag)
        if start == 0:
            _remove(part)
        _write_etag(part, response.headers.get("ETag"))
        _append(response, part, start, wanted, watch)


def _start(response: Response, wanted: Wanted, part: Path, have: int, etag: str | None) -> int:
    """Where the answer's bytes belong: at `have`, or at 0 if the server sends the whole file."""
    if response.status == 200:
        length = response.headers.get("Content-Length")
        if length is not None and length != str(wanted.size):
            raise CheckpointError(
                f"{wanted.path}: the server offers {length} bytes, the hub lists {wanted.size}: {AGAIN}"
            )
        return 0
    if response.status == 206 and have:
        match = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        same = etag is None or response.headers.get("ETag", etag) == etag
        if match is not None and same and (int(match[1]), int(match[2])) == (have, wanted.size):
            return have
    if response.status in (206, 416):  # not the part that was asked for, or none: the file is another one now
        _remove(part)
        raise Cut("the server has no such part of the file")
    if response.status == 429 or response.status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise Cut(f"the server answers {response.status}", float(wait) if wait.isdecimal() else None)
    raise CheckpointError(f"{wanted.path}: the server answers {response.status}; {AGAIN}")


def _append(response: Response, part: Path, start: int, wanted: Wanted, watch: Watch) -> None:
    """Write what comes as it comes, so that a killed process loses nothing that came."""
    with part.open("ab", buffering=0) as file:
        while start < wanted.size:
            try:
                chunk = response.read1(min(CHUNK, wanted.size - start))
            except (OSError, http.client.HTTPException) as error:
                raise Cut(explain(error)) from error
            if not chunk:
                return
            _write(file, chunk)
            start += len(chunk)
            watch(start)


def _write(file: FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _verified(wanted: Wanted, part: Path) -> str | None:
    """The sha256 of what lies on the disk; None, and the part is gone, if it is not what was wanted."""
    sha256, git = digests(part)
    if (wanted.sha256 or sha256) == sha256 and (wanted.git or git) == git:
        return sha256
    _remove(part)
    return None


def digests(path: Path) -> tuple[str, str]:
    """sha256 and git's blob id of a file."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()


def _settle(part: Path, target: Path) -> None:
    """Give a whole file its name, so that a crash leaves the old state or the new one."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    _remove(part)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def write_whole(path: Path, data: bytes) -> None:
    """A small file, in one step: the old content or the new."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        _settle(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _etag_file(part: Path) -> Path:
    return part.with_suffix(".etag")


def _read_etag(part: Path) -> str | None:
    try:
        return _etag_file(part).read_text() or None
    except (OSError, UnicodeDecodeError):
        return None


def _write_etag(part: Path, etag: str | None) -> None:
    """Keep a strong validator for the next run; a weak one promises nothing about bytes."""
    if etag is not None and not etag.startswith("W/") and etag.isprintable():
        _etag_file(part).write_text(etag)


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)
