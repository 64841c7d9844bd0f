"""How much is logged, and whether progress is shown, as diffusers.utils.logging has it."""

import logging
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING, Handler, Logger

from enlarger.diffusers.call.progress import is_progress_bar_enabled, show_progress_bars

__all__ = ["CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "WARN", "WARNING", "is_progress_bar_enabled"]

_library = logging.getLogger("enlarger")
_default_handler = logging.StreamHandler()


def get_logger(name: str | None = None) -> Logger:
    """A logger of that name, the package's own without one."""
    return _library if name is None else logging.getLogger(name)


def get_verbosity() -> int:
    """The level of the package's logger."""
    return _library.getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Log what is of a level or above, on the error stream if nothing else was chosen."""
    if not _library.handlers:
        enable_default_handler()
    _library.setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Log everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Log what is done too."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Log warnings and errors."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Log errors alone."""
    set_verbosity(ERROR)


def enable_default_handler() -> None:
    """Log to the error stream."""
    add_handler(_default_handler)


def disable_default_handler() -> None:
    """Undo `enable_default_handler`."""
    remove_handler(_default_handler)


def add_handler(handler: Handler) -> None:
    """Log to a handler too."""
    _library.addHandler(handler)


def remove_handler(handler: Handler) -> None:
    """Undo `add_handler`."""
    _library.removeHandler(handler)


def enable_propagation() -> None:
    """Have the root logger see the package's messages too, as it does anyway."""
    _library.propagate = True


def disable_propagation() -> None:
    """Keep the package's messages from the root logger."""
    _library.propagate = False


def enable_explicit_format() -> None:
    """Have each line name the level, the place and the time."""
    _format("[%(levelname)s|%(filename)s:%(lineno)s] %(asctime)s >> %(message)s")


def reset_format() -> None:
    """Undo `enable_explicit_format`."""
    _format(None)


def enable_progress_bar() -> None:
    """Show progress, as is usual."""
    show_progress_bars(True)


def disable_progress_bar() -> None:
    """Show no progress in any pipeline."""
    show_progress_bars(False)


def _format(pattern: str | None) -> None:
    for handler in _library.handlers:
        handler.setFormatter(None if pattern is None else logging.Formatter(pattern))
