"""Each request counted and logged once its answer is over, whatever became of it."""

import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.logging_config import log_event
from enlarger.service.metrics import OTHER_LABEL, Metrics
from enlarger.service.middleware.asgi import (
    IMAGE_ROUTES,
    request_state,
)
from enlarger.service.problems import Problem

PROBE_PATHS = frozenset({"/healthz", "/readyz", "/health", "/metrics"})  # asked every few seconds
REJECTED_STATUSES = frozenset(
    {401, 403, 408, 413, 415, 429, 431, 503}
)  # statuses of what is refused to protect the service


def access_log(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Counts and logs each request once its answer is over, whatever became of it."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started_at, record = time.perf_counter(), ResponseRecord()

        async def receive_and_record() -> Message:
            message = await receive()
            record.client_disconnected = record.client_disconnected or (
                message["type"] == "http.disconnect" and not record.is_complete
            )
            return message

        async def send_and_record(message: Message) -> None:
            record.add(message)
            await send(message)

        try:
            await app(scope, receive_and_record, send_and_record)
        finally:
            seconds = (record.completed_at or time.perf_counter()) - started_at
            route, (status, code) = route_template(scope), record.outcome()
            count_request(metrics, route, status, seconds, code)
            _log_request(scope, route, status, seconds, code)

    return middleware


def record_refusal(metrics: Metrics, request_id: str, problem: Problem) -> None:
    """Count and log an answer to what never became a request."""
    count_request(metrics, OTHER_LABEL, problem.status, None, problem.code)
    log_event("request", id=request_id, method=None, route=OTHER_LABEL, status=problem.status, code=problem.code)


def count_request(metrics: Metrics, route: str, status: int, seconds: float | None, code: str | None = None) -> None:
    """An answer is over. `route` is the template of a path, `code` that of an error body; without `seconds` nothing
    that takes time was done."""
    metrics.requests.labels(route, str(status)).inc()
    if seconds is not None:
        metrics.request_seconds.labels(route).observe(seconds)
    reason = OTHER_LABEL if code is None else code
    if status >= 400:
        metrics.request_failures.labels(reason).inc()
    if status in REJECTED_STATUSES and route not in PROBE_PATHS:
        metrics.requests_rejected.labels(reason).inc()


class ResponseRecord:
    """What went back to a client."""

    def __init__(self) -> None:
        self.status = 0
        self.code: str | None = None
        self.is_complete = False
        self.completed_at: float | None = None  # when the answer was whole; what is read after it does not count
        self.client_disconnected = False

    def add(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if self.status >= 400 and self.code is None:
                self.code = error_code(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
            self.completed_at = time.perf_counter() if self.is_complete else None

    def outcome(self) -> tuple[int, str | None]:
        """Status and code; 499 where the client did not wait for the end."""
        if self.client_disconnected:
            return 499, "client_closed"
        return (self.status, self.code) if self.is_complete else (500, "internal")


def error_code(body: bytes) -> str | None:
    """The code of an error body; None if it is something else."""
    try:
        code: Any = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


def route_template(scope: Scope) -> str:
    """The template of the route that a request went to; never the path itself."""
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return scope["path"] if scope["path"] in IMAGE_ROUTES else OTHER_LABEL


def _log_request(scope: Scope, route: str, status: int, seconds: float, code: str | None) -> None:
    level = logging.DEBUG if route in PROBE_PATHS else logging.INFO
    fields: dict[str, Any] = {"id": request_state(scope).get("request_id"), "method": scope["method"], "route": route}
    fields |= {"status": status, "seconds": round(seconds, 4)}
    log_event("request", level, None, **fields, **({} if code is None else {"code": code}))
