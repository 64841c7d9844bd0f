"""How a request wants its answer: now or later, once or as a stream, and whose it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from enlarger.jsonfile import shown
from enlarger.service.core import owner_of
from enlarger.service.faults import refuse
from enlarger.service.jobs import Job
from enlarger.service.queue.claims import Claim
from enlarger.service.routes.asks import Wish

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Order:
    """What a request's headers say."""

    owner: str
    key: str | None = None  # Idempotency-Key
    later: bool = False  # Prefer: respond-async
    stream: bool = False
    claim: Claim | None = None  # the place in the queue that the guard took for it

    @property
    def attached(self) -> bool:
        """Whether the job ends with its connection. One with a key can be asked for again, and so goes on."""
        return not self.later and self.key is None


def order_of(request: Request, stream: bool = False) -> Order:
    """The order of a request; one for a stream is answered as such, whatever it prefers. Raises Refused for a key that
    is none."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        expected = "expected 1 to 255 visible ASCII characters"
        raise refuse(400, "invalid_value", f"Idempotency-Key is {shown(key)}, {expected}", "Idempotency-Key")
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    later = any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)
    claim = getattr(request.state, "claim", None)
    return Order(owner_of(request), key, later and not stream, stream, claim)


def check_same(job: Job, wishes: Sequence[Wish], seeded: bool) -> Job:
    """The earlier job of a key. Raises Refused if the request is not the earlier one."""
    asked = (job.ask.task, _options(job.ask.options, seeded), job.ask.output)
    if all(asked != (wish.task, _options(wish.options, seeded), wish.output) for wish in wishes):
        message = "this Idempotency-Key was used for another request; use a new key for each"
        raise refuse(400, "idempotency_key_reused", message, "Idempotency-Key")
    return job


def _options(options: Mapping[str, Any], seeded: bool) -> dict[str, Any]:
    """The options, without a seed that was drawn."""
    return {name: value for name, value in options.items() if seeded or name != "seed"}
