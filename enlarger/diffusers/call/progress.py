"""A plain progress bar on the error stream, with the few settings that it understands."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from enlarger.diffusers.call.arguments import ArgumentError

log = logging.getLogger(__name__)
_shown = [True]  # whether any bar is
BAR_WIDTH = 20  # characters


def show_progress_bars(shown: bool) -> None:
    """Whether bars are shown at all, whatever the pipelines' settings."""
    _shown[0] = shown


def is_progress_bar_enabled() -> bool:
    """Whether bars are shown where a pipeline does not say otherwise."""
    return _shown[0]


@dataclass(frozen=True)
class ProgressBarConfig:
    """`disable` shows nothing, `desc` stands in front, `leave` keeps the finished bar."""

    disable: bool = False
    desc: str = ""
    leave: bool = True


def progress_bar_config(settings: dict[str, Any]) -> ProgressBarConfig:
    """Settings by tqdm's names; those that this bar does not have are named in the log."""
    known = ProgressBarConfig.__dataclass_fields__
    if unknown := sorted(set(settings) - set(known)):
        log.warning("the progress bar has no %s; it has disable, desc and leave", ", ".join(unknown))
    return ProgressBarConfig(**{name: value for name, value in settings.items() if name in known and value is not None})


class ProgressBar:
    """Counts `update`s up to `total`, as a context; or walks an iterable and counts its items."""

    def __init__(
        self, config: ProgressBarConfig, iterable: Iterable[Any] | None = None, total: int | None = None
    ) -> None:
        if iterable is None and total is None:
            raise ArgumentError("the progress bar needs `total` or `iterable`")
        self.config, self.iterable = config, iterable
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.completed, self.started = 0, time.monotonic()

    @property
    def _is_hidden(self) -> bool:
        return self.config.disable or not is_progress_bar_enabled()

    def update(self, count: int = 1) -> None:
        self.completed += count
        self._show()

    def close(self) -> None:
        if not self._is_hidden:
            sys.stderr.write("\n" if self.config.leave else "\r\x1b[K")
            sys.stderr.flush()

    def _show(self) -> None:
        if self._is_hidden:
            return
        seconds = time.monotonic() - self.started
        name = f"{self.config.desc}: " if self.config.desc else ""
        text = f"{self.completed}, {seconds:.0f} s"
        if self.total:
            filled = "#" * (BAR_WIDTH * min(self.completed, self.total) // self.total)
            remaining = seconds / self.completed * max(0, self.total - self.completed) if self.completed else 0.0
            text = f"[{filled:<{BAR_WIDTH}}] {self.completed}/{self.total}, {seconds:.0f} s, {remaining:.0f} s left"
        sys.stderr.write(f"\r{name}{text}")
        sys.stderr.flush()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __enter__(self) -> "ProgressBar":
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
