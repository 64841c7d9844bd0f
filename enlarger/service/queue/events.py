"""What happened to each job, numbered and kept for a while, so that who comes late or returns misses nothing."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from enlarger.service.jobs import Event

Kind = Literal["queued", "started", "progress", "preview", "succeeded", "failed", "canceled"]
KEPT = 1024  # events of one job
ENDED = 32  # jobs that have ended, whose events can still be replayed one by one


class Board:
    """The events of one job. Each carries all that is known of its standing, so that none depends on another."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._count = 0
        self._closed = False
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        return self._closed or (bool(self._ring) and self._ring[-1].last)

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        """Add an event, and wake those who wait for it; nothing comes after the last."""
        if self.over:
            return
        self._count += 1
        self._ring.append(Event(self._count, kind, data))
        self._wake()

    def close(self) -> None:
        """No more events: the service stops, and the job goes on with the next one."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int = 0) -> AsyncGenerator[Event]:
        """The events after a number, then those to come; from the first, where this process never gave that number."""
        seen = after if after <= self._count else 0
        while True:
            news = self._news
            for event in [event for event in self._ring if event.number > seen]:
                seen = event.number
                yield event
            if self.over and self._count <= seen:
                return
            if self._count <= seen:
                await news.wait()


class Boards:
    """The boards of the jobs that wait or run, and of the last that ended."""

    def __init__(self) -> None:
        self._boards: dict[str, Board] = {}
        self._ended: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._boards)

    def find(self, id: str) -> Board | None:
        return self._boards.get(id)

    def publish(self, id: str, kind: Kind, data: Mapping[str, Any]) -> None:
        board = self._boards.setdefault(id, Board())
        if board.over:
            return
        board.publish(kind, data)
        if board.over:
            self._ended.append(id)
            if len(self._ended) > ENDED:
                self._boards.pop(self._ended.popleft(), None)

    def forget(self, id: str) -> None:
        board = self._boards.pop(id, None)
        if board is not None:
            board.close()
        if id in self._ended:
            self._ended.remove(id)

    def close(self) -> None:
        for board in self._boards.values():
            board.close()
