"""What enlarger raises: each error says what was found, what was expected and what to do."""

from collections.abc import Sequence

MAX_LISTED = 10  # names that an error lists


class EnlargerError(Exception):
    """The base of all errors that enlarger raises on purpose."""


class InputError(EnlargerError):
    """A picture or an argument that cannot be used."""


class CheckpointError(EnlargerError):
    """A file or folder of weights that is not what it should be."""


class Unsupported(EnlargerError):
    """A request that is understood but that this model or this build cannot fulfil."""


class Cancelled(EnlargerError):
    """Raised by a watcher to stop a run; it passes through to the caller unchanged."""


class ServiceError(EnlargerError):
    """A service that cannot be reached, or that refused or failed: its HTTP status and code, where it gave them."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NonFinite(EnlargerError):
    """A network produced NaN or infinity; no picture is made of it. `sigma` is the noise level where that happened."""

    def __init__(self, message: str, sigma: float | None = None) -> None:
        super().__init__(message)
        self.sigma = sigma


class OutOfMemory(EnlargerError, MemoryError):
    """Memory ran out, in the smallest tiles too: what was computed, and what it takes."""


def list_names(names: Sequence[str]) -> str:
    """The first ten of these names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
