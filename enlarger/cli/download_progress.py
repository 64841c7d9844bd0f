"""What a download prints on standard error: bars with bytes, speed and time left, or plain lines without a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from enlarger.cli.terminal import printable


class DownloadProgress:
    """The progress of a pull, shown on a terminal or printed."""

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
        self.total_task = self.bar.add_task("all files", visible=False)
        self.finished_bytes = 0  # bytes of finished files

    def __enter__(self) -> "DownloadProgress":
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

    def message(self, text: str) -> None:
        """Lines above the bars."""
        for line in text.splitlines():
            self.console.print(printable(line))

    def set_total(self, size: int) -> None:
        """So many bytes are missing."""
        if size:
            self.message(f"fetching {_format_bytes(size)}")
        self.bar.update(self.total_task, total=size, visible=size > 0)

    def start_file(self, path: str, size: int) -> Callable[[int], None]:
        """A file begins; what is returned is called with the bytes of it that are there."""
        if self.bar.disable:
            self.message(f"{path}: {_format_bytes(size)}")
        offset = self.finished_bytes
        self.finished_bytes += size
        task = self.bar.add_task(printable(path), total=size)

        def watch(received: int) -> None:
            self.bar.update(task, completed=received, visible=received < size)
            self.bar.update(self.total_task, completed=offset + received)

        return watch


def _format_bytes(size: int) -> str:
    """A size to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
