"""The bar that the public functions show while they work: in terminals and notebooks, unless somebody watches."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from enlarger.tasks.results.result import Progress, ProgressCallback, no_progress

NOTEBOOK_SHELL = "ZMQInteractiveShell"  # IPython's, where its output is shown by a page


@contextmanager
def progress_bar(watch: ProgressCallback, show: bool | None) -> Generator[ProgressCallback]:
    """What is told of progress during the block: `watch`, or a bar where nobody watches.

    `show` None shows the bar in notebooks and in terminals, True anywhere, False nowhere.
    """
    in_notebook = _is_notebook()
    if watch is not no_progress or show is False or not (show or in_notebook or sys.stderr.isatty()):
        yield watch
    elif in_notebook:
        yield from _notebook_bar()
    else:
        yield from _terminal_bar()


def _terminal_bar() -> Generator[ProgressCallback]:
    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def watch(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task)
            bar.update(task, description=stage, completed=progress.done, total=progress.total)

        yield watch


def _notebook_bar() -> Generator[ProgressCallback]:
    """One line of text that is replaced as the work goes on, and gone at its end."""
    display: Any = import_module("IPython.display")
    handle = display.display({"text/plain": ""}, raw=True, display_id=True)

    def watch(progress: Progress) -> None:
        text = f"{progress.stage} {progress.done}/{progress.total}"
        html = f'<progress max="{progress.total}" value="{progress.done}"></progress> {progress.stage}'
        handle.update({"text/plain": text, "text/html": html}, raw=True)

    try:
        yield watch
    finally:
        handle.update({"text/plain": ""}, raw=True)


def _is_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == NOTEBOOK_SHELL
