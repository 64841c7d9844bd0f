"""How many requests of each key are under way: a key whose clients do not read its answers holds no more than these."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from enlarger.service.problems import problem_error


class OpenRequests:
    """The requests under way, by owner; those without a key are bounded as connections alone."""

    def __init__(self, max_per_key: int) -> None:
        self.max_per_key = max_per_key
        self._counts: Counter[str] = Counter()

    @contextmanager
    def count(self, owner: str) -> Generator[None]:
        """Count a request until its answer is over. Raises ProblemError 429 where its key has too many."""
        if owner and self._counts[owner] >= self.max_per_key:
            message = f"{self.max_per_key} requests of this key are under way, which is all that may; let one end first"
            raise problem_error(429, "rate_limit_exceeded", message, retry_after=1)
        self._counts[owner] += 1
        try:
            yield
        finally:
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]
