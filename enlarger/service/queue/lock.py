"""One service to a data folder: a lock that the server holds, and one that its workers hold with it."""

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError

PATIENCE = 10.0  # seconds that the workers of a server that is gone are given to end


@dataclass(frozen=True)
class Lock:
    """The locks of a folder. `shared` is handed to the workers: it is free when the last of them has ended too."""

    server: int
    shared: int

    def release(self) -> None:
        os.close(self.shared)
        os.close(self.server)


async def take(data: Path, patience: float = PATIENCE) -> Lock:
    """Lock a data folder. Raises InputError at once if a server uses it, and after `patience` if old workers do."""
    server = _opened(data / "server.lock")
    try:
        _own(data, server)
        shared = _opened(data / "lock")
    except BaseException:
        os.close(server)
        raise
    try:
        await _follow(data, shared, patience)
    except BaseException:
        os.close(shared)
        os.close(server)
        raise
    return Lock(server, shared)


def _own(data: Path, file: int) -> None:
    if not _locked(file):
        holder = os.pread(file, 32, 0).decode("ascii", "replace").strip()
        raise InputError(
            f"{data} is in use by another service (process {holder or 'unknown'}); stop that one, or give another data "
            "folder"
        )
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)


async def _follow(data: Path, file: int, patience: float) -> None:
    """Wait until the last worker of an earlier server has let go."""
    end = asyncio.get_running_loop().time() + patience
    while not _locked(file):
        if asyncio.get_running_loop().time() > end:
            raise InputError(f"{data}: worker processes of an earlier service still use it; end them, then start again")
        await asyncio.sleep(0.05)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the data folder") from error


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
