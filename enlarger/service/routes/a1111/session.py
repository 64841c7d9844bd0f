"""What AUTOMATIC1111's API remembers between requests: the options of each key, and its jobs."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from enlarger.service.dependencies import get_owner


@dataclass(eq=False)
class Session:
    """One key's, or everybody's where there are no keys."""

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    jobs: list[str] = field(default_factory=list[str])  # those that have not been answered


class Sessions:
    """All of them, by owner."""

    def __init__(self) -> None:
        self._sessions: defaultdict[str, Session] = defaultdict(Session)

    def get(self, request: Request) -> Session:
        return self._sessions[get_owner(request)]


def get_session(request: Request) -> Session:
    """The session of whoever sent a request."""
    sessions: Sessions = request.app.state.a1111
    return sessions.get(request)
