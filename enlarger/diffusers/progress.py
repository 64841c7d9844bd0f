"""A plain progress bar on the error stream, with the few settings that it understands."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from enlarger.diffusers.arguments import ArgumentError
from enlarger.errors import Unsupported

WIDTH = 20  # characters


@dataclass(frozen=True)
class BarSettings:
    """`disable` shows nothing, `desc` stands in front, `leave` keeps the finished bar."""

    disable: bool = False
    desc: str = ""
    leave: bool = True


def bar_settings(settings: dict[str, Any]) -> BarSettings:
    """Settings by tqdm's names; those that this bar does not have raise."""
    unknown = sorted(set(settings) - set(BarSettings.__dataclass_fields__))
    if unknown:
        raise Unsupported(f"the progress bar has no {', '.join(unknown)}; it has disable, desc and leave")
    return BarSettings(**{name: value for name, value in settings.items() if value is not None})


class Bar:
    """Counts `update`s up to `total`, as a context; or walks an iterable and counts its items."""

    def __init__(self, settings: BarSettings, iterable: Iterable[Any] | None = None, total: int | None = None) -> None:
        if iterable is None and total is None:
            raise ArgumentError("the progress bar needs `total` or `iterable`")
        self.settings, self.iterable = settings, iterable
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.done, self.start = 0, time.monotonic()

    def update(self, count: int = 1) -> None:
        self.done += count
        self._show()

    def close(self) -> None:
        if not self.settings.disable:
            sys.stderr.write("\n" if self.settings.leave else "\r\x1b[K")
            sys.stderr.flush()

    def _show(self) -> None:
        if self.settings.disable:
            return
        seconds = time.monotonic() - self.start
        name = f"{self.settings.desc}: " if self.settings.desc else ""
        text = f"{self.done}, {seconds:.0f} s"
        if self.total:
            filled = "#" * (WIDTH * min(self.done, self.total) // self.total)
            left = seconds / self.done * max(0, self.total - self.done) if self.done else 0.0
            text = f"[{filled:<{WIDTH}}] {self.done}/{self.total}, {seconds:.0f} s, {left:.0f} s left"
        sys.stderr.write(f"\r{name}{text}")
        sys.stderr.flush()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __enter__(self) -> "Bar":
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
