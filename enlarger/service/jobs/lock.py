"""One service to a data folder: a lock that the server holds, and one that its workers hold with it."""

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError

LOCK_TIMEOUT = 10.0  # seconds that the workers of a server that is gone are given to end


@dataclass(frozen=True)
class DataFolderLock:
    """The locks of a folder. `workers_fd` is handed to the workers: it is free when the last of them has ended too."""

    path: Path
    server_fd: int
    workers_fd: int

    def is_lost(self) -> bool:
        """Whether the folder is gone, or another one has taken its place."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.server_fd))
        except OSError:
            return True

    def release(self) -> None:
        os.close(self.workers_fd)
        os.close(self.server_fd)


async def acquire(data: Path, timeout: float = LOCK_TIMEOUT) -> DataFolderLock:
    """Lock a data folder. Raises InputError if a server uses it, and after `timeout` seconds if old workers do."""
    server_fd = _open_lock_file(data / "server.lock")
    try:
        _lock_server(data, server_fd)
        workers_fd = _open_lock_file(data / "lock")
    except BaseException:
        os.close(server_fd)
        raise
    try:
        await _wait_for_workers(data, workers_fd, timeout)
    except BaseException:
        os.close(workers_fd)
        os.close(server_fd)
        raise
    return DataFolderLock(data / "server.lock", server_fd, workers_fd)


def _lock_server(data: Path, fd: int) -> None:
    if not _try_lock(fd):
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        raise InputError(
            f"{data} is in use by another service (process {holder or 'unknown'}); stop that one, or give another data "
            "folder"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


async def _wait_for_workers(data: Path, fd: int, timeout: float) -> None:
    """Wait until the last worker of an earlier server has let go."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not _try_lock(fd):
        if asyncio.get_running_loop().time() > deadline:
            raise InputError(f"{data}: worker processes of an earlier service still use it; end them, then start again")
        await asyncio.sleep(0.05)


def _open_lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the data folder") from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
