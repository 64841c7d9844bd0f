"""What a download tells on standard error: bars with bytes, speed and time left, or plain lines without a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class Told:
    """Hears of a pull, and shows it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.all = self.bar.add_task("all files", visible=False)
        self.done = 0  # bytes of finished files

    def __enter__(self) -> "Told":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Without bars, to ask a question."""
        self.bar.stop()
        yield
        self.bar.start()

    def say(self, text: str) -> None:
        """Lines above the bars."""
        self.console.print(text)

    def total(self, size: int) -> None:
        """So many bytes are missing."""
        if size:
            self.say(f"fetching {_bytes(size)}")
        self.bar.update(self.all, total=size, visible=size > 0)

    def file(self, path: str, size: int) -> Callable[[int], None]:
        """A file begins; what is returned hears how many bytes of it are there."""
        if self.bar.disable:
            self.say(f"{path}: {_bytes(size)}")
        begun = self.done
        self.done += size
        task = self.bar.add_task(path, total=size)

        def watch(there: int) -> None:
            self.bar.update(task, completed=there, visible=there < size)
            self.bar.update(self.all, completed=begun + there)

        return watch


def _bytes(size: int) -> str:
    """A size to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
