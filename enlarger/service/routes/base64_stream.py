"""Files inside JSON, base64, sent in chunks: a large picture is never whole in memory."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from enlarger.service.problems import problem_error

CHUNK_SIZE = 3 << 14  # bytes of a file at a time, which a client that does not read holds; three are four in base64


def placeholder(nonce: str, index: int) -> str:
    """Text that stands in JSON for the base64 of a file; `nonce` is `new_nonce`'s, so that nobody can write one."""
    return f"[file {nonce} {index}]"


def new_nonce() -> str:
    return secrets.token_hex(16)


def encode_json(reply: Mapping[str, Any]) -> bytes:
    """JSON as it is sent."""
    return json.dumps(reply, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def file_sizes(files: Sequence[Path]) -> list[int]:
    """Bytes of each file. Raises ProblemError if one is gone."""
    try:
        return [file.stat().st_size for file in files]
    except OSError as error:
        raise problem_error(404, "job_not_found", "the pictures of this job have expired; ask for them anew") from error


def content_length(text: bytes, nonce: str, sizes: Sequence[int]) -> int:
    """Bytes of the text with every placeholder filled."""
    placeholder_bytes = sum(len(placeholder(nonce, index)) for index in range(len(sizes)))
    return len(text) - placeholder_bytes + sum(4 * -(-size // 3) for size in sizes)


async def fill_placeholders(text: bytes, nonce: str, files: Sequence[Path]) -> AsyncGenerator[bytes]:
    """The text with each placeholder replaced by its file."""
    rest = text
    for index, file in enumerate(files):
        before, _, rest = rest.partition(placeholder(nonce, index).encode())
        yield before
        async for chunk in read_chunks(file):
            yield base64.b64encode(chunk)
    yield rest


async def read_chunks(file: Path) -> AsyncGenerator[bytes]:
    """A file, read beside the event loop. All chunks but the last have `CHUNK_SIZE` bytes."""
    stream: BinaryIO = await asyncio.to_thread(file.open, "rb")
    try:
        while chunk := await asyncio.to_thread(stream.read, CHUNK_SIZE):
            yield chunk
    finally:
        stream.close()
