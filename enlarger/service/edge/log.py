"""The log: one JSON object per line on standard error. Prompts, file names, keys and query strings stay out of it."""

import json
import logging
import logging.config
import traceback
from asyncio import CancelledError
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from enlarger.service.settings import Settings

LOG = logging.getLogger("enlarger.service")
FIELDS = "enlarger_fields"
QUIET = ("uvicorn.error", "asyncio")  # they report trouble, and little else above this level


def say(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Write one line. `fields` are numbers and short names, never what a client wrote."""
    LOG.log(level, event, exc_info=error, extra={FIELDS: fields})


class Lines(logging.Formatter):
    """A record as JSON, all of it escaped to ASCII so that nothing in it can begin a line of its own.

    Of an exception it tells the type and the places in the code; its text, which may repeat what a client sent, only
    where `texts` is set.
    """

    def __init__(self, texts: bool = False) -> None:
        super().__init__()
        self.texts = texts

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        if record.name != LOG.name:
            line["logger"] = record.name
        line |= getattr(record, FIELDS, {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= self._told(*record.exc_info[1:])
        return json.dumps(line, default=str)

    def _told(self, error: BaseException, places: TracebackType | None) -> dict[str, Any]:
        told: dict[str, Any] = {"error": type(error).__name__}
        if not isinstance(error, CancelledError):
            frames = traceback.extract_tb(places)
            told["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return told | ({"text": str(error)} if self.texts else {})


def configure(settings: Settings) -> None:
    """Send everything that is logged in this process to standard error, ours from the level of the settings on."""
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": Lines, "texts": settings.log_level == "debug"}},
            "handlers": {"errors": {"class": "logging.StreamHandler", "formatter": "lines"}},
            "root": {"level": "WARNING", "handlers": ["errors"]},
            "loggers": {"enlarger": {"level": level}} | {name: {"level": "WARNING"} for name in QUIET},
        }
    )
    logging.captureWarnings(True)
