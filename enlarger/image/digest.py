"""What tells files apart: the SHA-256 of their bytes. Without torch."""

import hashlib
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """64 hexadecimal digits. Raises OSError for what cannot be read."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
