"""What tells files apart: the SHA-256 of their bytes. Without torch."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

FILES_REMEMBERED = 4096


def file_sha256(path: str | Path) -> str:
    """64 hexadecimal digits; a file is read once as long as the system says that it is as it was.

    Raises OSError for what cannot be read.
    """
    about = os.stat(path)
    return _file_sha256(os.path.abspath(path), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(FILES_REMEMBERED)
def _file_sha256(path: str, *_as_it_was: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
