"""What the client does, step by step, without doing it: generators that say what to send and are told what came.

`client.py` runs them, on threads or on an event loop. A job that was accepted is not lost with its connection: it is
asked for again until the service answers.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from enlarger.client import calls
from enlarger.client.calls import Call
from enlarger.client.pictures import picture_of
from enlarger.client.replies import Answer, Job, Lost, Progress, Result, error_of, failure_of, job_of, result_of
from enlarger.errors import Cancelled, EnlargerError, ServiceError

POLL = 1.0  # seconds between two questions where events do not come through
LOST_SECONDS = 60.0  # without an answer until an accepted job is given up
LONGEST_PAUSE = 5.0
DEAF = 2  # streams in a row that told nothing, until the job is asked for instead
BUSY = (429, 503)
GOODBYE = 5.0  # seconds to cancel a job on the way out

Watch = Callable[[Progress], None]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Send:
    """Send a call; the reply is an Answer or Lost."""

    call: Call
    seconds: float | None = None  # at most; None: as long as it takes


@dataclass(frozen=True)
class Listen:
    """Send a call whose answer is a stream of events; the reply is an Answer without its body, or Lost."""

    call: Call


@dataclass(frozen=True)
class Next:
    """Wait for the stream; the reply is some of its bytes, None at its end, or Lost."""


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds; the reply is None."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Compute something that may take a while; the reply is what the function gives."""

    function: Callable[[], Any]


Action = Send | Listen | Next | Pause | Work
Steps = Generator[Action, Any, Kind]


@dataclass(frozen=True)
class Patience:
    """How long a call may take, and how often it is sent again."""

    timeout: float | None  # seconds
    retries: int
    begun: float
    clock: Callable[[], float] = time.monotonic

    def check(self, ahead: float = 0.0) -> None:
        """Raise ServiceError if the time is over, or would be after a pause."""
        if self.timeout is not None and self.clock() + ahead - self.begun > self.timeout:
            raise ServiceError(f"no result within {self.timeout:g} seconds; give a larger timeout", code="timeout")


def ignore(progress: Progress) -> None:
    """Watch nothing."""


def asked(call: Call, patience: Patience, watch: Watch = ignore) -> Steps[Answer]:
    """Send a call until it is answered for good: busy services are waited for, broken connections tried again."""
    failures = 0
    while True:
        reply = yield Send(call)
        if isinstance(reply, Answer) and reply.status < 400:
            return reply
        wait = _wait(reply, failures, patience.retries)
        if wait is None:
            raise _error(reply)
        try:
            patience.check(wait)
        except ServiceError:
            raise _error(reply) from None  # what the service says is of more use than that time is over
        busy = isinstance(reply, Answer) and reply.status in BUSY
        failures += 0 if busy else 1
        if busy:
            watch(Progress("waiting for the service", 0, 1))
        yield Pause(wait)


def once(call: Call, patience: Patience) -> Steps[Answer]:
    """Send a call whose refusals are answers too; only broken connections are tried again."""
    failures = 0
    while not isinstance(reply := (yield Send(call)), Answer):
        if failures >= patience.retries:
            raise _error(reply)
        yield Pause(_backoff(failures))
        failures += 1
    return reply


def made(make: Callable[[], Call], key: str, patience: Patience, watch: Watch) -> Steps[Result]:
    """Have pictures made. Whatever ends this early cancels the job at the service."""
    call = yield Work(make)
    answer = yield from asked(calls.later(call, key), patience, watch)
    found = answer.json()
    if "data" in found:  # a server that does not know jobs
        return (yield from _fetched(found, patience))
    return (yield from finished(job_of(found), patience, watch, cancels=True))


def finished(job: Job, patience: Patience, watch: Watch, *, cancels: bool = False) -> Steps[Result]:
    """Wait for a job and fetch its pictures."""
    try:
        job = yield from _followed(job, patience, watch)
    except BaseException:
        if cancels:
            yield Send(calls.cancel(job.id), GOODBYE)
        raise
    if job.status == "canceled" and job.error is None:
        raise Cancelled(f"job {job.id} was canceled")
    if job.error is not None:
        raise failure_of(job.error)
    if job.result is None:
        raise ServiceError(f"job {job.id} {job.status} without a result")
    return (yield from _fetched(job.result, patience))


def _followed(job: Job, patience: Patience, watch: Watch) -> Steps[Job]:
    """The job when it is over: by its events, and by asking where these do not come."""
    deaf, after = 0, None
    while not job.over:
        watch(job.now)
        patience.check()
        if deaf < DEAF:
            told, after = yield from _listened(job, after, patience, watch)
            deaf, job = (deaf + 1, job) if told is None else (0, told)
        else:
            yield Pause(POLL)
        if not job.over:
            job = yield from _looked_up(job.id, patience)
    return job


def _listened(job: Job, after: str | None, patience: Patience, watch: Watch) -> Steps[tuple[Job | None, str | None]]:
    """What a stream of events makes of a job, and the last event's number; no job if the stream told nothing."""
    reply = yield Listen(calls.events(job.id, after))
    if not _is_stream(reply):
        return None, after
    told: Job | None = None
    rest = b""
    while isinstance(piece := (yield Next()), bytes):
        patience.check()
        *events, rest = (rest + piece.replace(b"\r", b"")).split(b"\n\n")
        for event in map(_event, events):
            if "data" not in event:
                continue  # a sign of life
            after = event.get("id", after)
            told = (job if told is None else told).changed(Answer(200, {}, event["data"].encode()).json())
            if told.over:
                return told, after
            watch(told.now)
    return told, after


def _event(text: bytes) -> dict[str, str]:
    """The fields of one event; comments are none."""
    found: dict[str, str] = {}
    for line in text.decode(errors="replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name:
            found[name] = f"{found[name]}\n{value}" if name == "data" and name in found else value
    return found


def _looked_up(id: str, patience: Patience) -> Steps[Job]:
    """Where a job stands, asked until the service answers; it may be starting again just now."""
    lost_since, pause = patience.clock(), 0.25
    while True:
        reply = yield Send(calls.job(id))
        if isinstance(reply, Answer) and reply.status == 200:
            return job_of(reply.json())
        gone = patience.clock() - lost_since > LOST_SECONDS
        if gone or (isinstance(reply, Answer) and reply.status < 500 and reply.status not in BUSY):
            raise _error(reply)
        patience.check()
        pause = min(pause * 2, LONGEST_PAUSE)
        yield Pause(pause)


def _fetched(found: Any, patience: Patience) -> Steps[Result]:
    """The pictures of a result, from their addresses."""
    files: list[bytes] = []
    for item in found["data"]:
        answer = yield from asked(calls.content(item["url"]), patience)
        files.append(answer.body)
    try:
        images = yield Work(lambda: tuple(picture_of(data) for data in files))
    except Exception as error:  # decoders raise anything
        raise ServiceError(f"what the service sent cannot be read as a picture ({error})") from error
    return result_of(found, images, tuple(files))


def _wait(reply: Answer | Lost, failures: int, retries: int) -> float | None:
    """Seconds until a call may be sent again; None if that is of no use."""
    backoff = _backoff(failures)
    if isinstance(reply, Lost):
        return backoff if failures < retries else None
    if reply.status in BUSY and _repeat(reply):
        return _seconds(reply.headers.get("retry-after"))
    if reply.status == 408 or reply.status >= 500:
        return backoff if _repeat(reply) and failures < retries else None
    return None


def _backoff(failures: int) -> float:
    return min(0.5 * 2**failures, LONGEST_PAUSE)


def _repeat(answer: Answer) -> bool:
    return answer.headers.get("x-should-retry", "").lower() != "false"


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; a date, or nothing, is a second."""
    try:
        return max(float(text or "1"), 0.0)
    except ValueError:
        return 1.0


def _is_stream(reply: Any) -> bool:
    return (
        isinstance(reply, Answer)
        and reply.status == 200
        and reply.headers.get("content-type", "").startswith("text/event-stream")
    )


def _error(reply: Answer | Lost) -> EnlargerError:
    if isinstance(reply, Answer):
        return error_of(reply)
    return ServiceError(
        f"{reply.reason}; is the service running (`enlarger serve`), and is its address right?", code="unreachable"
    )
