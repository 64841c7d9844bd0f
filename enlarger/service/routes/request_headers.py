"""How a request wants its answer: now or later, once or as a stream, and whose it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from enlarger.service.dependencies import get_owner
from enlarger.service.jobs.job import Job
from enlarger.service.jobs.reservations import Reservation
from enlarger.service.problems import problem_error
from enlarger.service.routes.parsed_request import ParsedRequest
from enlarger.strict_json import short_repr

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class RequestHeaders:
    """What a request's headers say."""

    owner: str
    idempotency_key: str | None = None  # Idempotency-Key
    respond_async: bool = False  # Prefer: respond-async
    stream: bool = False
    reservation: Reservation | None = None  # the place in the queue that the middleware took for it

    @property
    def attached(self) -> bool:
        """Whether the job ends with its connection. One with a key can be asked for again, and so goes on."""
        return not self.respond_async and self.idempotency_key is None


def read_request_headers(request: Request, stream: bool = False) -> RequestHeaders:
    """The headers of a request; one for a stream is answered as such, whatever it prefers. Raises ProblemError for a
    key that is none."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        expected = "expected 1 to 255 visible ASCII characters"
        raise problem_error(
            400, "invalid_value", f"Idempotency-Key is {short_repr(key)}, {expected}", "Idempotency-Key"
        )
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    respond_async = any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)
    reservation = getattr(request.state, "reservation", None)
    return RequestHeaders(get_owner(request), key, respond_async and not stream, stream, reservation)


def check_same_request(job: Job, candidates: Sequence[ParsedRequest], has_seed: bool) -> Job:
    """The earlier job of a key. Raises ProblemError if the request is not the earlier one."""
    earlier = (job.spec.task, _comparable_options(job.spec.options, has_seed), job.spec.output)
    if all(
        earlier != (parsed.task, _comparable_options(parsed.options, has_seed), parsed.output) for parsed in candidates
    ):
        message = "this Idempotency-Key was used for another request; use a new key for each"
        raise problem_error(400, "idempotency_key_reused", message, "Idempotency-Key")
    return job


def _comparable_options(options: Mapping[str, Any], has_seed: bool) -> dict[str, Any]:
    """The options, without a seed that was drawn."""
    return {name: value for name, value in options.items() if has_seed or name != "seed"}
