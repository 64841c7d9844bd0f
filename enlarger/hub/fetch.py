"""Fetching one file: resumed where it stopped, checked against its digest, and under its name only when whole."""

import errno
import hashlib
import http.client
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from enlarger.errors import CheckpointError
from enlarger.hub.transport import HubClient, Response, TransientError, describe_error
from enlarger.image.atomic_write import atomic_write, move_into_place

CHUNK_SIZE = 1 << 18  # bytes at a time
MIN_PROGRESS = 1 << 16  # bytes between two failures that set the count of failures back
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
RETRY_ADVICE = "it may just have changed; run the same command again, or try --mirror."
SAFE_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # a path inside its folder, on every system
HEX_DIGITS = frozenset("0123456789abcdef")
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

WatchBytes = Callable[[int], None]  # the bytes of the file that are there


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it: `sha256` of large ones, the git blob id of the others.

    Raises ValueError for what could lead out of a folder.
    """

    path: str  # in the repository, with /
    size: int
    sha256: str | None = None
    git: str | None = None

    def __post_init__(self) -> None:
        digests = ((self.sha256, 64), (self.git, 40))
        is_valid = all(text is None or (len(text) == length and set(text) <= HEX_DIGITS) for text, length in digests)
        if not is_valid or not SAFE_PATH.fullmatch(self.path) or self.size < 0:
            raise ValueError(f"{self.path!r} is no path, size and digest of a file")

    @property
    def content_key(self) -> str:
        """A name for the unfinished file that another content does not share."""
        return self.sha256 or self.git or hashlib.sha256(f"{self.path} {self.size}".encode()).hexdigest()


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try again without progress, and how long to wait before the second try; it doubles each time."""

    max_tries: int = 5
    backoff: float = 0.5  # seconds
    max_wait: float = 60.0

    def sleep(self, failures: int, retry_after: float | None) -> None:
        """Wait before try number `failures` + 1, or as long as the server requests."""
        wait = self.backoff * 2 ** (failures - 2) if failures > 1 else 0.0
        time.sleep(min(wait if retry_after is None else max(wait, retry_after), self.max_wait))


def fetch(
    client: HubClient,
    url: str,
    remote: RemoteFile,
    target: Path,
    partial_dir: Path,
    watch: WatchBytes,
    retry_policy: RetryPolicy,
) -> str:
    """Make `target`, and give its sha256. `partial_dir` is the folder of unfinished files, on the same disk.

    Raises CheckpointError saying what went wrong; what has come stays for the next run, but for a full disk.
    """
    partial_file = partial_dir / f"{remote.content_key}.part"
    try:
        partial_dir.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        _download_all(client, url, remote, partial_file, watch, retry_policy)
        digest = _verify(remote, partial_file)
        if digest is None:  # damaged on the way, or what was resumed was not what it seemed: once more from the start
            _download_all(client, url, remote, partial_file, watch, retry_policy)
            digest = _verify(remote, partial_file)
        if digest is None:
            raise CheckpointError(
                f"{remote.path}: what came twice differs from what is published or listed; try another --mirror, or "
                "again later."
            )
        _commit_file(partial_file, target)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise CheckpointError(f"{target}: cannot be written ({error.strerror or error}).") from error
        _remove_partial(partial_file)
        raise CheckpointError(
            f"{remote.path}: the disk is full; free {remote.size:,} bytes, or give another place by ENLARGER_HOME or "
            "--to."
        ) from error
    return digest


def _download_all(
    client: HubClient, url: str, remote: RemoteFile, partial_file: Path, watch: WatchBytes, retry_policy: RetryPolicy
) -> None:
    """Try until all bytes are in the partial file."""
    failures, before = 0, size_of(partial_file)
    while before != remote.size or not partial_file.exists():
        try:
            _download_rest(client, url, remote, partial_file, watch)
            raise TransientError("the connection ended early")
        except TransientError as error:
            received = size_of(partial_file)
            if received == remote.size and partial_file.exists():
                return
            failures = 1 if received - before >= MIN_PROGRESS else failures + 1
            if failures > retry_policy.max_tries:
                raise CheckpointError(
                    f"{remote.path}: {error}; {received:,} of {remote.size:,} bytes are kept, the same command goes "
                    "on there."
                ) from error
            before = received
            retry_policy.sleep(failures, error.retry_after)


def _download_rest(client: HubClient, url: str, remote: RemoteFile, partial_file: Path, watch: WatchBytes) -> None:
    """Request what is missing and append it. Returns when the answer ends; raises TransientError if it breaks off."""
    received = size_of(partial_file)
    if received > remote.size:
        _remove_partial(partial_file)
        received = 0
    etag = _read_etag(partial_file) if received else None
    headers = {"Range": f"bytes={received}-"} if received else {}
    if etag is not None:
        headers["If-Range"] = etag
    with client.open(url, headers) as response:
        start = _resume_offset(response, remote, partial_file, received, etag)
        if start == 0:
            _remove_partial(partial_file)
        _write_etag(partial_file, response.headers.get("ETag"))
        _append_body(response, partial_file, start, remote, watch)


def _resume_offset(response: Response, remote: RemoteFile, partial_file: Path, received: int, etag: str | None) -> int:
    """Where the answer's bytes belong: at `received`, or at 0 if the server sends the whole file."""
    if response.status == 200:
        length = response.headers.get("Content-Length")
        if length is not None and length != str(remote.size):
            raise CheckpointError(
                f"{remote.path}: the server offers {length} bytes, the hub lists {remote.size}: {RETRY_ADVICE}"
            )
        return 0
    if response.status == 206 and received:
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        is_same_file = etag is None or response.headers.get("ETag", etag) == etag
        if match is not None and is_same_file and (int(match[1]), int(match[2])) == (received, remote.size):
            return received
    if response.status in (206, 416):  # not the requested range, or none: the file is another one now
        _remove_partial(partial_file)
        raise TransientError("the server has no such part of the file")
    if response.status == 429 or response.status >= 500:
        retry_after = response.headers.get("Retry-After", "")
        raise TransientError(
            f"the server answers {response.status}", float(retry_after) if retry_after.isdecimal() else None
        )
    raise CheckpointError(f"{remote.path}: the server answers {response.status}; {RETRY_ADVICE}")


def _append_body(response: Response, partial_file: Path, start: int, remote: RemoteFile, watch: WatchBytes) -> None:
    """Write what comes as it comes, so that a killed process loses nothing that came."""
    with partial_file.open("ab", buffering=0) as file:
        while start < remote.size:
            try:
                chunk = response.read1(min(CHUNK_SIZE, remote.size - start))
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(describe_error(error)) from error
            if not chunk:
                return
            _write_all(file, chunk)
            start += len(chunk)
            watch(start)


def _write_all(file: FileIO, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _verify(remote: RemoteFile, partial_file: Path) -> str | None:
    """The sha256 of what lies on the disk; None, and the partial file is gone, if it is not what was listed."""
    sha256, blob_id = digests(partial_file)
    if (remote.sha256 or sha256) == sha256 and (remote.git or blob_id) == blob_id:
        return sha256
    _remove_partial(partial_file)
    return None


def digests(path: Path) -> tuple[str, str]:
    """sha256 and git's blob id of a file."""
    sha256, blob_id = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob_id.update(chunk)
    return sha256.hexdigest(), blob_id.hexdigest()


def _commit_file(partial_file: Path, target: Path) -> None:
    """Give a whole file its name, so that a crash leaves the old state or the new one."""
    with partial_file.open("rb") as file:
        os.fsync(file.fileno())
    move_into_place(partial_file, target)
    _remove_partial(partial_file)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def write_small_file(path: Path, data: bytes) -> None:
    """Write a file of the cache in one step. Raises CheckpointError."""
    try:
        with atomic_write(path, single_writer=True) as stream:
            stream.write(data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _etag_file(partial_file: Path) -> Path:
    return partial_file.with_suffix(".etag")


def _read_etag(partial_file: Path) -> str | None:
    try:
        return _etag_file(partial_file).read_text() or None
    except (OSError, UnicodeDecodeError):
        return None


def _write_etag(partial_file: Path, etag: str | None) -> None:
    """Store a strong validator for the next run; a weak one promises nothing about bytes."""
    if etag is not None and not etag.startswith("W/") and etag.isprintable():
        _etag_file(partial_file).write_text(etag)


def _remove_partial(partial_file: Path) -> None:
    partial_file.unlink(missing_ok=True)
    _etag_file(partial_file).unlink(missing_ok=True)
