"""Writing a file whole or not at all. Without torch."""

import os
import platform
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_OWN_PARTS = f".enlarger-{platform.node()[:40].replace('-', '_')}-{os.getpid()}"  # how its unfinished files begin


@contextmanager
def atomic_write(
    path: Path, *, overwrite: bool = True, durable: bool = True, single_writer: bool = False
) -> Generator[BinaryIO]:
    """A stream whose bytes take the name `path` when the block ends, and vanish if it fails: never a part of them.

    `durable` waits until the disk has them, name included. With `single_writer`, where only one process writes the file
    at a time, what a killed process left is written over by the next. Raises OSError; without `overwrite`
    FileExistsError if the file exists by then.
    """
    temporary = path.with_name(f".{path.name}.part" if single_writer else f"{_OWN_PARTS}-{uuid.uuid4().hex}.part")
    try:
        with temporary.open("w+b" if single_writer else "x+b") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        move_into_place(temporary, path, overwrite=overwrite, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Delete what killed processes of this machine left of files that they were writing to a folder."""
    own_machine = _OWN_PARTS.rpartition("-")[0]
    for part in folder.glob(f"{own_machine}-*-*.part"):
        process = part.name.removeprefix(f"{own_machine}-").partition("-")[0]
        if process.isdecimal() and not _is_running(int(process)):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # a signal would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def move_into_place(temporary: Path, path: Path, *, overwrite: bool = True, durable: bool = True) -> None:
    """Give a whole file its name in one step; without `overwrite` by a hard link, which fails if the name is taken."""
    if overwrite or not _link(temporary, path):
        os.replace(temporary, path)
    if durable and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _link(temporary: Path, path: Path) -> bool:
    """Whether the file now has its name too. Raises FileExistsError; False on a file system without hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(str(path)) from None
        return False
    return True
