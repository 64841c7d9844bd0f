"""What the client does, action by action, without doing it: generators that yield actions and are sent the replies.

`client.py` runs them. A job that was accepted is not lost with its connection: its state is requested again until the
service answers.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from enlarger.client import endpoints
from enlarger.client.endpoints import HttpRequest
from enlarger.client.images import decode_image
from enlarger.client.responses import (
    HttpResponse,
    Job,
    NoResponse,
    Progress,
    Result,
    error_from_json,
    error_from_response,
    job_from_json,
    result_from_json,
)
from enlarger.errors import Cancelled, EnlargerError, ServiceError
from enlarger.strict_json import Json

POLL_SECONDS = 1.0  # between two requests for a job's state where events do not come through
UNREACHABLE_SECONDS = 60.0  # without an answer until an accepted job is given up
MAX_BACKOFF = 5.0
MAX_SILENT_STREAMS = 2  # streams in a row without an event, until the job is polled instead
BUSY_STATUSES = (429, 503)
CANCEL_SECONDS = 5.0  # seconds to cancel a job on the way out

Watch = Callable[[Progress], None]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Send:
    """Send a call; the reply is an HttpResponse or NoResponse."""

    request: HttpRequest
    timeout: float | None = None  # at most; None: as long as it takes


@dataclass(frozen=True)
class OpenStream:
    """Send a call whose answer is a stream of events; the reply is an HttpResponse without its body, or NoResponse."""

    request: HttpRequest


@dataclass(frozen=True)
class ReadStream:
    """Wait for the stream; the reply is some of its bytes, None at its end, or NoResponse."""


@dataclass(frozen=True)
class Sleep:
    """Wait so many seconds; the reply is None."""

    seconds: float


@dataclass(frozen=True)
class Compute:
    """Compute something that may take a while; the reply is what the function gives."""

    function: Callable[[], object]


Action = Send | OpenStream | ReadStream | Sleep | Compute
JobProtocol = Generator[Action, Any, Kind]


@dataclass(frozen=True)
class RetryPolicy:
    """How long a call may take, and how often it is sent again."""

    timeout: float | None  # seconds
    retries: int
    started: float
    clock: Callable[[], float] = time.monotonic

    def check_deadline(self, pause: float = 0.0) -> None:
        """Raise ServiceError if the time is over, or would be after a pause."""
        if self.timeout is not None and self.clock() + pause - self.started > self.timeout:
            raise ServiceError(f"no result within {self.timeout:g} seconds; give a larger timeout", code="timeout")


def ignore(progress: Progress) -> None:
    """Watch nothing."""


def send_with_retries(
    request: HttpRequest, retry_policy: RetryPolicy, watch: Watch = ignore, undo: HttpRequest | None = None
) -> JobProtocol[HttpResponse]:
    """Send a call until it is answered for good: busy services are waited for, broken connections tried again. Where it
    ends without such an answer `undo` is sent, since the service may have heard it all the same."""
    failures, is_refused = 0, False
    try:
        while True:
            reply = yield Send(request)
            if isinstance(reply, HttpResponse) and reply.status < 400:
                return reply
            delay = _retry_delay(reply, failures, retry_policy.retries)
            if delay is None:
                is_refused = isinstance(reply, HttpResponse)
                raise _to_error(reply)
            try:
                retry_policy.check_deadline(delay)
            except ServiceError:
                raise _to_error(reply) from None  # what the service says is of more use than that time is over
            is_busy = isinstance(reply, HttpResponse) and reply.status in BUSY_STATUSES
            failures += 0 if is_busy else 1
            if is_busy:
                watch(Progress("waiting for the service", 0, 1))
            yield Sleep(delay)
    except BaseException:
        if undo is not None and not is_refused:
            yield Send(undo, CANCEL_SECONDS)
        raise


def send_until_answered(request: HttpRequest, retry_policy: RetryPolicy) -> JobProtocol[HttpResponse]:
    """Send a call whose refusals are answers too; only broken connections are tried again."""
    failures = 0
    while not isinstance(reply := (yield Send(request)), HttpResponse):
        if failures >= retry_policy.retries:
            raise _to_error(reply)
        yield Sleep(_backoff(failures))
        failures += 1
    return reply


def run_task(
    make_request: Callable[[], HttpRequest], key: str, retry_policy: RetryPolicy, watch: Watch
) -> JobProtocol[Result]:
    """Have pictures made. Whatever ends this early cancels the job at the service, by its key until its id is known."""
    request = yield Compute(make_request)
    undo = endpoints.cancel_request(key)
    response = yield from send_with_retries(endpoints.as_async_job(request, key), retry_policy, watch, undo)
    data = response.json()
    if "data" in data:  # a server that does not know jobs
        return (yield from _fetch_result(data, retry_policy))
    return (yield from wait_for_result(job_from_json(data), retry_policy, watch, cancel_on_exit=True))


def wait_for_result(
    job: Job, retry_policy: RetryPolicy, watch: Watch, *, cancel_on_exit: bool = False
) -> JobProtocol[Result]:
    """Wait for a job and fetch its pictures."""
    try:
        job = yield from _follow_job(job, retry_policy, watch)
    except BaseException:
        if cancel_on_exit:
            yield Send(endpoints.cancel(job.id), CANCEL_SECONDS)
        raise
    if job.status == "canceled" and job.error is None:
        raise Cancelled(f"job {job.id} was canceled")
    if job.error is not None:
        raise error_from_json(job.error)
    if job.result is None:
        raise ServiceError(f"job {job.id} {job.status} without a result")
    return (yield from _fetch_result(job.result, retry_policy))


def _follow_job(job: Job, retry_policy: RetryPolicy, watch: Watch) -> JobProtocol[Job]:
    """The job when it is over: by its events, and by polling where these do not come."""
    silent_streams, last_event_id = 0, None
    while not job.is_finished:
        watch(job.current_progress)
        retry_policy.check_deadline()
        if silent_streams < MAX_SILENT_STREAMS:
            updated, last_event_id = yield from _read_events(job, last_event_id, retry_policy, watch)
            silent_streams, job = (silent_streams + 1, job) if updated is None else (0, updated)
        else:
            yield Sleep(POLL_SECONDS)
        if not job.is_finished:
            job = yield from _poll_job(job.id, retry_policy)
    return job


def _read_events(
    job: Job, last_event_id: str | None, retry_policy: RetryPolicy, watch: Watch
) -> JobProtocol[tuple[Job | None, str | None]]:
    """What a stream of events makes of a job, and the last event's number; no job if no event came."""
    reply = yield OpenStream(endpoints.events(job.id, last_event_id))
    if not _is_stream(reply):
        return None, last_event_id
    updated: Job | None = None
    buffer = b""
    while isinstance(chunk := (yield ReadStream()), bytes):
        retry_policy.check_deadline()
        *events, buffer = (buffer + chunk.replace(b"\r", b"")).split(b"\n\n")
        for event in map(_parse_event, events):
            if "data" not in event:
                continue  # a keep-alive
            last_event_id = event.get("id", last_event_id)
            updated = (job if updated is None else updated).with_update(
                HttpResponse(200, {}, event["data"].encode()).json()
            )
            if updated.is_finished:
                return updated, last_event_id
            watch(updated.current_progress)
    return updated, last_event_id


def _parse_event(text: bytes) -> dict[str, str]:
    """The fields of one event; comments are none."""
    fields: dict[str, str] = {}
    for line in text.decode(errors="replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name:
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    return fields


def _poll_job(id: str, retry_policy: RetryPolicy) -> JobProtocol[Job]:
    """A job's state, requested until the service answers; it may be restarting just now."""
    lost_since, pause = retry_policy.clock(), 0.25
    while True:
        reply = yield Send(endpoints.job(id))
        if isinstance(reply, HttpResponse) and reply.status == 200:
            return job_from_json(reply.json())
        is_unreachable = retry_policy.clock() - lost_since > UNREACHABLE_SECONDS
        if is_unreachable or (
            isinstance(reply, HttpResponse) and reply.status < 500 and reply.status not in BUSY_STATUSES
        ):
            raise _to_error(reply)
        retry_policy.check_deadline()
        pause = min(pause * 2, MAX_BACKOFF)
        yield Sleep(pause)


def _fetch_result(payload: Json, retry_policy: RetryPolicy) -> JobProtocol[Result]:
    """The pictures of a result, from their addresses."""
    files: list[bytes] = []
    for item in payload["data"]:
        response = yield from send_with_retries(endpoints.content(item["url"]), retry_policy)
        files.append(response.body)
    try:
        images = yield Compute(lambda: tuple(decode_image(content) for content in files))
    except Exception as error:  # decoders raise anything
        raise ServiceError(f"what the service sent cannot be read as a picture ({error})") from error
    return result_from_json(payload, images, tuple(files))


def _retry_delay(reply: HttpResponse | NoResponse, failures: int, retries: int) -> float | None:
    """Seconds until a call may be sent again; None if that is of no use."""
    backoff = _backoff(failures)
    if isinstance(reply, NoResponse):
        return backoff if failures < retries else None
    if reply.status in BUSY_STATUSES and _should_retry(reply):
        return _parse_retry_after(reply.headers.get("retry-after"))
    if reply.status == 408 or reply.status >= 500:
        return backoff if _should_retry(reply) and failures < retries else None
    return None


def _backoff(failures: int) -> float:
    return min(0.5 * 2**failures, MAX_BACKOFF)


def _should_retry(response: HttpResponse) -> bool:
    return response.headers.get("x-should-retry", "").lower() != "false"


def _parse_retry_after(text: str | None) -> float:
    """Retry-After in seconds; a date, or nothing, is a second."""
    try:
        return max(float(text or "1"), 0.0)
    except ValueError:
        return 1.0


def _is_stream(reply: object) -> bool:
    return (
        isinstance(reply, HttpResponse)
        and reply.status == 200
        and reply.headers.get("content-type", "").startswith("text/event-stream")
    )


def _to_error(reply: HttpResponse | NoResponse) -> EnlargerError:
    if isinstance(reply, HttpResponse):
        return error_from_response(reply)
    return ServiceError(
        f"{reply.reason}; is the service running (`enlarger serve`), and is its address right?", code="unreachable"
    )
