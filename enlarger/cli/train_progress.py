"""How a training is shown: a bar in a terminal, a line now and then elsewhere."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from enlarger.train.data.entries import describe_skipped
from enlarger.train.run import TrainingProgress, TrainingWatch, no_watch

LINE_EVERY = 60.0  # seconds, where there is no terminal


@contextmanager
def training_progress(*, quiet: bool) -> Generator[TrainingWatch]:
    """What is told of each step: loss, rate, memory and the time that is left, on standard error.

    Pictures of the data that could not be read are named at the end.
    """
    console = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if quiet:
        yield no_watch
        return
    skipped: Mapping[str, str] = {}
    with _bar(console) if console.is_terminal else nullcontext(_lines(console)) as show:

        def watch(progress: TrainingProgress) -> None:
            nonlocal skipped
            skipped = progress.skipped
            show(progress)

        yield watch
    if skipped:
        console.print(describe_skipped(skipped))


@contextmanager
def _bar(console: Console) -> Generator[TrainingWatch]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("loading", total=None)

        def watch(progress: TrainingProgress) -> None:
            bar.update(task, description=describe(progress), completed=progress.step, total=progress.steps)

        yield watch


def _lines(console: Console) -> TrainingWatch:
    """A line for the first step, the last, and one a minute."""
    first: tuple[int, float] | None = None
    said = 0.0

    def watch(progress: TrainingProgress) -> None:
        nonlocal first, said
        now = monotonic()
        is_due = first is None or now - said >= LINE_EVERY or progress.step == progress.steps
        first = (progress.step, now) if first is None else first
        if is_due:
            said, done = now, progress.step - first[0]
            left = f", {(now - first[1]) / done * (progress.steps - progress.step):.0f} s left" if done else ""
            console.print(f"step {progress.step} of {progress.steps}: {describe(progress)}{left}")

    return watch


def describe(progress: TrainingProgress) -> str:
    """Loss, rate, memory, and pictures that could not be read."""
    skipped = f", {len(progress.skipped)} pictures left out" if progress.skipped else ""
    return f"loss {progress.loss:.4f}, rate {progress.rate:.2g}, {progress.memory / 2**30:.1f} GiB{skipped}"
