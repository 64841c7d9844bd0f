"""Bodies under way: each in a folder of its own, all within one budget of bytes, and each key's within its own."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from pathlib import Path

from enlarger.service.jobs.job import new_job_id
from enlarger.service.problems import problem_error
from enlarger.service.settings import Settings

BODY_NAME = "body"


class BodySpool:
    """Where bodies are received."""

    def __init__(self, settings: Settings) -> None:
        self._folder, self._bounds = settings.data / "spool", settings.bounds
        self._num_bytes: Counter[str] = Counter()  # by owner

    @property
    def num_bytes(self) -> int:
        """Bytes of all bodies under way."""
        return self._num_bytes.total()

    @asynccontextmanager
    async def receive(self, chunks: AsyncIterable[bytes], owner: str) -> AsyncGenerator[Path]:
        """Receive a body, which counts until the end of the block; the files that it is taken apart into lie beside it.

        Raises ProblemError, 429 `rate_limit_exceeded` or 503 `unavailable`, where too many bytes are under way.
        """
        folder, size = self._folder / new_job_id(), 0
        folder.mkdir(parents=True)
        try:
            with (folder / BODY_NAME).open("xb") as file:
                async for chunk in chunks:
                    self._check_room(owner, len(chunk))
                    self._num_bytes[owner] += len(chunk)
                    size += len(chunk)
                    await asyncio.to_thread(file.write, chunk)
            yield folder / BODY_NAME
        finally:
            self._num_bytes[owner] -= size
            self._num_bytes = +self._num_bytes
            shutil.rmtree(folder, ignore_errors=True)

    def _check_room(self, owner: str, size: int) -> None:
        if owner and self._num_bytes[owner] + size > self._bounds.bodies_per_key:
            message = f"bodies of {self._bounds.bodies_per_key} bytes of this key are under way, which is all that may"
            raise problem_error(429, "rate_limit_exceeded", f"{message}; let one end first", retry_after=1)
        if self.num_bytes + size > self._bounds.bodies:
            message = (
                f"bodies of {self._bounds.bodies} bytes are under way, which is all that may; come back in a moment"
            )
            raise problem_error(503, "unavailable", message, retry_after=1)
