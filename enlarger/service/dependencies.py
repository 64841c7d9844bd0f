"""What the routes are given: the settings, and the five things that do the work."""

from dataclasses import dataclass

from fastapi import Request

from enlarger.service.jobs.manager import JobManager
from enlarger.service.metrics import Metrics
from enlarger.service.settings import Settings
from enlarger.service.uploads.body_spool import BodySpool
from enlarger.service.uploads.decoder_pool import DecoderPool
from enlarger.service.uploads.fetch import UrlFetcher


@dataclass(frozen=True)
class Service:
    """One running service."""

    settings: Settings
    jobs: JobManager
    bodies: BodySpool
    decoder: DecoderPool
    fetcher: UrlFetcher
    metrics: Metrics


def get_service(request: Request) -> Service:
    """The service that a request came to."""
    return request.app.state.service


def get_owner(request: Request) -> str:
    """Who sent a request: a hash of the key, or "" where there are no keys."""
    return getattr(request.state, "owner", "")
