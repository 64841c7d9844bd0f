"""What a run tells: results on standard output; progress, notes and errors on standard error."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from enlarger.opening import one_line


class Stage(Protocol):
    """What of progress is shown; here or at a service, where torch is not needed."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    input: Path
    outputs: tuple[Path, ...] = ()
    size: tuple[int, int] | None = None  # width, height
    seconds: float | None = None
    seed: int | None = None  # of the first picture; the others count on
    model: str | None = None
    consistency: float | None = None  # largest 8-bit difference of the halved result to the input
    notes: tuple[str, ...] = ()
    error: str | None = None
    prompt: str | None = None  # where that is the input
    changed: int | None = None  # pixels of the first picture that differ from the input
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom of these
    coverage: float | None = None  # of the mask, in percent

    def json(self) -> str:
        """One line of JSON; what is not known is left out."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(known | {"input": str(self.input), "outputs": [str(path) for path in self.outputs]})


class Report:
    """Tells how a run of `total` files goes: a bar with stage and time left, or plain lines without a terminal."""

    def __init__(self, total: int, *, json_lines: bool = False) -> None:
        self.total = total
        self.begun = 0
        self.json_lines = json_lines
        self.console = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            disable=not self.console.is_terminal,
        )
        self.files = self.bar.add_task("all files", total=total, visible=total > 1)
        self.stage = self.bar.add_task("", visible=False)

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line on standard error, above the bar."""
        self.console.print(one_line(text))

    def begin(self, name: str) -> Callable[[Stage], None]:
        """Start on a file; what is returned watches its progress."""
        self.begun += 1
        where = f"{one_line(name)} ({self.begun}/{self.total})" if self.total > 1 else one_line(name)
        shown = ""

        def watch(progress: Stage) -> None:
            nonlocal shown
            if progress.stage != shown:
                shown = progress.stage
                self.show(f"{where}: {shown}", progress.total)
            self.bar.update(self.stage, completed=progress.done, total=progress.total)

        return watch

    def show(self, stage: str, total: int = 1) -> None:
        """A new stage: the bar starts again, or a plain line."""
        if self.bar.disable:
            self.say(stage)
        self.bar.reset(self.stage, description=stage, total=total, visible=True)

    def end(self, outcome: Outcome) -> None:
        """Report what became of a file."""
        for note in outcome.notes:
            self.say(f"{outcome.input}: note: {note}")
        if outcome.error is not None:
            self.say(f"error: {_about(outcome)}")
        elif outcome.size is not None:
            width, height = outcome.size
            self.say(f"{outcome.input}: {width} x {height} in {outcome.seconds:.1f} s{_changed(outcome)}")
        lines = [outcome.json()] if self.json_lines else [str(path) for path in outcome.outputs]
        for line in lines:
            print(line, flush=True)
        self.bar.advance(self.files)

    def close(self, outcomes: list[Outcome]) -> None:
        """The list of failures, if there was more than one file."""
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed and len(outcomes) > 1:
            self.say(f"{len(failed)} of {len(outcomes)} files failed:")
            for outcome in failed:
                self.say(f"- {_about(outcome)}")


def _changed(outcome: Outcome) -> str:
    """How much of a picture was changed, where that is known."""
    if outcome.changed is None:
        return ""
    where = "" if outcome.box is None else f" within {','.join(map(str, outcome.box))}"
    return f"; the mask covers {outcome.coverage:g} %, {outcome.changed} pixels changed{where}"


def _about(outcome: Outcome) -> str:
    """The error, beginning with the input's name exactly once."""
    error = outcome.error or ""
    return error if error.startswith(f"{outcome.input}: ") else f"{outcome.input}: {error}"
