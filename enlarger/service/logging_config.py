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

LOGGER = logging.getLogger("enlarger.service")
RECORD_FIELDS = "enlarger_fields"
QUIET_LOGGERS = ("uvicorn.error", "asyncio")  # they report trouble, and little else above this level


def log_event(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Log one event. `fields` are numbers and short names, never what a client wrote."""
    LOGGER.log(level, event, exc_info=error, extra={RECORD_FIELDS: fields})


class JsonFormatter(logging.Formatter):
    """A record as JSON, all of it escaped to ASCII so that nothing in it can begin a line of its own.

    Of an exception it has the type and the places in the code; its text, which may repeat what a client sent, only
    where `include_error_text` is set.
    """

    def __init__(self, include_error_text: bool = False) -> None:
        super().__init__()
        self.include_error_text = include_error_text

    def format(self, record: logging.LogRecord) -> str:
        timestamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": timestamp, "level": record.levelname.lower(), "event": record.getMessage()}
        if record.name != LOGGER.name:
            entry["logger"] = record.name
        entry |= getattr(record, RECORD_FIELDS, {})
        if record.exc_info and record.exc_info[1] is not None:
            entry |= self._error_fields(*record.exc_info[1:])
        return json.dumps(entry, default=str)

    def _error_fields(self, error: BaseException, tb: TracebackType | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"error": type(error).__name__}
        if not isinstance(error, CancelledError):
            frames = traceback.extract_tb(tb)
            fields["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return fields | ({"text": str(error)} if self.include_error_text else {})


def configure_logging(settings: Settings) -> None:
    """Send everything that is logged in this process to standard error, ours from the level of the settings on."""
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter, "include_error_text": settings.log_level == "debug"}},
            "handlers": {"errors": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": "WARNING", "handlers": ["errors"]},
            "loggers": {"enlarger": {"level": level}} | {name: {"level": "WARNING"} for name in QUIET_LOGGERS},
        }
    )
    logging.captureWarnings(True)
