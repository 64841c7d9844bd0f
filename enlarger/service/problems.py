"""What the service answers when it cannot do what was asked: OpenAI's error body, a status and a code for each case."""

import json
from dataclasses import dataclass
from typing import Any

from enlarger.errors import Cancelled, CheckpointError, EnlargerError, InputError, NonFinite, Unsupported

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed",
    500: "server_error",
    503: "unavailable_error",
}


@dataclass(frozen=True)
class Problem:
    """One refusal: an HTTP status, a code that programs read, a message that people read."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None  # seconds; only for 429 and 503

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        type_ = ERROR_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": type_, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What clients read besides: when to come back, and not to repeat what fails in the same way each time."""
        if self.retry_after is not None:
            return {"Retry-After": str(max(1, round(self.retry_after)))}
        return {"X-Should-Retry": "false"} if self.status >= 500 else {}

    def encode(self) -> bytes:
        """The body as it is sent."""
        return json.dumps(self.body()).encode()


CANCELED = Problem(499, "canceled", "the job was canceled")
DRAINING = Problem(503, "draining", "the service is stopping; ask again in a moment", retry_after=5)
CLOSED = Problem(503, "draining", "an operator lets no more jobs in for now; ask again later", retry_after=30)
MODELS_LOADING = Problem(503, "model_loading", "the models are being read; ask again in a moment", retry_after=2)
FOLDER_LOST = Problem(500, "storage_failed", "the data folder of the service was deleted or replaced; start it again")
NO_WORKER = Problem(503, "no_worker", "no worker process can be started; the log of the service says why")


def wait_timeout(seconds: float) -> Problem:
    """A connection has waited for its pictures for as long as it may."""
    text = f"the pictures were not done within {seconds:g} seconds; ask for less, or with Prefer: respond-async"
    return Problem(503, "wait_timeout", text)


class ProblemError(Exception):
    """Raised anywhere below a route; becomes the answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_error(
    status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
) -> ProblemError:
    """The exception of a problem, to be raised."""
    return ProblemError(Problem(status, code, message, param, retry_after))


def problem_from_exception(error: BaseException) -> Problem:
    """The problem of what a task raised; the message of an error that is not ours says nothing of what is inside."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, Cancelled):
        return CANCELED
    if isinstance(error, InputError):
        return Problem(400, "invalid_value", str(error))
    if isinstance(error, Unsupported):
        return Problem(400, "unsupported", str(error))
    if isinstance(error, NonFinite):
        return Problem(500, "non_finite_output", str(error))
    if isinstance(error, CheckpointError):
        return Problem(500, "model_unusable", str(error))
    if isinstance(error, EnlargerError):
        return Problem(500, "internal", str(error))
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return Problem(500, "out_of_memory", "the device has too little memory for this; ask for a smaller picture")
    return Problem(500, "internal", f"unexpected {type(error).__name__}; the log of the service says where")
