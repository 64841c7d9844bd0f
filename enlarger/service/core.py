"""What the routes are given: the settings, and the four things that do the work."""

from dataclasses import dataclass

from fastapi import Request

from enlarger.service.edge.metrics import Metrics
from enlarger.service.pictures.decode import Decoder
from enlarger.service.pictures.fetch import Fetcher
from enlarger.service.queue.queue import Queue
from enlarger.service.settings import Settings


@dataclass(frozen=True)
class Service:
    """One running service."""

    settings: Settings
    queue: Queue
    decoder: Decoder
    fetcher: Fetcher
    metrics: Metrics


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return request.app.state.service


def owner_of(request: Request) -> str:
    """Who sent a request: a hash of the key, or "" where there are no keys."""
    return getattr(request.state, "owner", "")
