"""What happened to each job, numbered, and held for a while for clients that come late or return."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from enlarger.service.jobs.job import EventKind, JobEvent

MAX_EVENTS = 1024  # events of one job
MAX_FINISHED_LOGS = 32  # jobs that have ended, whose events can still be replayed one by one


class EventLog:
    """The events of one job. Each has the job's whole progress, so that none depends on another."""

    def __init__(self) -> None:
        self._events: deque[JobEvent] = deque(maxlen=MAX_EVENTS)
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self._closed or (bool(self._events) and self._events[-1].is_last)

    def publish(self, kind: EventKind, data: Mapping[str, Any]) -> JobEvent | None:
        """Add an event, and wake those who wait for it; None where the last has been: nothing comes after it."""
        if self.is_closed:
            return None
        self._count += 1
        event = JobEvent(self._count, kind, data)
        self._events.append(event)
        self._wake()
        return event

    def close(self) -> None:
        """No more events: the service stops, and the job goes on with the next one."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def subscribe(self, after: int = 0) -> AsyncGenerator[JobEvent]:
        """The events after a number, then those to come; from the first, where this process never gave that number."""
        last_number = after if after <= self._count else 0
        while True:
            changed = self._changed
            for event in [event for event in self._events if event.number > last_number]:
                last_number = event.number
                yield event
            if self.is_closed and self._count <= last_number:
                return
            if self._count <= last_number:
                await changed.wait()


class EventFeed:
    """The events of all jobs, for one watcher; of each job and kind it holds the newest alone."""

    def __init__(self) -> None:
        self._unread: dict[tuple[str, EventKind], JobEvent] = {}
        self._is_closed = False
        self._changed = asyncio.Event()

    def add(self, id: str, event: JobEvent) -> None:
        self._unread.pop((id, event.kind), None)
        self._unread[id, event.kind] = event
        self._changed.set()

    def close(self) -> None:
        self._is_closed = True
        self._changed.set()

    async def events(self) -> AsyncGenerator[tuple[str, JobEvent]]:
        """Each with the `id` of its job, until the feed is closed."""
        while self._unread or not self._is_closed:
            await self._changed.wait()
            self._changed.clear()
            while self._unread:
                key = next(iter(self._unread))
                yield key[0], self._unread.pop(key)


class EventLogs:
    """The event logs of the jobs that wait or run, and of the last that ended."""

    def __init__(self) -> None:
        self._logs: dict[str, EventLog] = {}
        self._feeds: set[EventFeed] = set()
        self._finished_ids: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._logs)

    def find(self, id: str) -> EventLog | None:
        return self._logs.get(id)

    def publish(self, id: str, kind: EventKind, data: Mapping[str, Any]) -> None:
        event_log = self._logs.setdefault(id, EventLog())
        event = event_log.publish(kind, data)
        if event is None:
            return
        for feed in self._feeds:
            feed.add(id, event)
        if event_log.is_closed:
            self._finished_ids.append(id)
            if len(self._finished_ids) > MAX_FINISHED_LOGS:
                self._logs.pop(self._finished_ids.popleft(), None)

    @contextmanager
    def feed(self) -> Generator[EventFeed]:
        """What happens to all jobs from now on."""
        feed = EventFeed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    def remove(self, id: str) -> None:
        event_log = self._logs.pop(id, None)
        if event_log is not None:
            event_log.close()
        if id in self._finished_ids:
            self._finished_ids.remove(id)

    def close(self) -> None:
        for log in (*self._logs.values(), *self._feeds):
            log.close()
