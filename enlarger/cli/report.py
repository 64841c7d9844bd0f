"""What a run prints: results on standard output; progress, notes and errors on standard error."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from enlarger.cli.inputs import PassedOver
from enlarger.cli.terminal import print_lines
from enlarger.errors import list_names
from enlarger.image.decode import one_line


class StageProgress(Protocol):
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

    input: Path | str  # a text where it lies behind a URI
    outputs: tuple[Path | str, ...] = ()
    size: tuple[int, int] | None = None  # width, height
    seconds: float | None = None
    seed: int | None = None  # of the first picture; the others count on
    model: str | None = None
    consistency: float | None = None  # largest 8-bit difference of the halved result to the input
    notes: tuple[str, ...] = ()
    error: str | None = None
    skipped: str | None = None  # why nothing was to be done
    prompt: str | None = None  # where that is the input
    changed: int | None = None  # pixels of the first picture that differ from the input
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom of these
    coverage: float | None = None  # of the mask, in percent

    def to_json_line(self) -> str:
        """One line of JSON; what is not known is left out."""
        given_fields = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(given_fields | {"input": str(self.input), "outputs": [str(path) for path in self.outputs]})


class Report:
    """Shows the progress of a run over `total` files: a bar with the time left in a terminal, and a line for each."""

    def __init__(
        self,
        total: int,
        *,
        json_lines: bool = False,
        passed_over: Sequence[PassedOver] = (),
        quiet: bool = False,
        log_stages: bool = False,
    ) -> None:
        self.total, self.quiet = total, quiet
        self.log_stages = log_stages  # a plain line for each stage where there is no terminal
        self.passed_over = passed_over
        self.num_started = 0
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
            disable=quiet or not self.console.is_terminal,
        )
        self.files_task = self.bar.add_task("all files", total=total, visible=total > 1)
        self.stage_task = self.bar.add_task("", visible=False)

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def expect(self, total: int | None, rate: float | None = None) -> None:
        """How many files there will be, as far as it is known by now, and how many are done in a second."""
        described = "all files" if rate is None else f"all files, {rate:.3g} a second"
        self.bar.update(self.files_task, total=total, description=described, visible=True)

    def message(self, text: str, *, is_error: bool = False) -> None:
        """One line on standard error, above the bar; where all is to be quiet, errors alone."""
        if is_error or not self.quiet:
            self.console.print(one_line(text))

    def start_file(self, name: str) -> Callable[[StageProgress], None]:
        """Start on a file; what is returned watches its progress."""
        self.num_started += 1
        label = f"{one_line(name)} ({self.num_started}/{self.total})" if self.total > 1 else one_line(name)
        current_stage = ""

        def watch(progress: StageProgress) -> None:
            nonlocal current_stage
            if progress.stage != current_stage:
                current_stage = progress.stage
                self.start_stage(f"{label}: {current_stage}", progress.total)
            self.bar.update(self.stage_task, completed=progress.done, total=progress.total)

        return watch

    def start_stage(self, stage: str, total: int = 1) -> None:
        """A new stage: the bar starts again. Without a terminal nothing is said unless stages are logged: there a
        picture has one line."""
        if self.log_stages and self.bar.disable:
            self.message(stage)
        self.bar.reset(self.stage_task, description=one_line(stage), total=total, visible=True)

    def finish_file(self, outcome: Outcome) -> None:
        """Report what became of a file."""
        for note in outcome.notes:
            self.message(f"{outcome.input}: note: {note}")
        if outcome.error is not None:
            self.message(f"error: {_describe_error(outcome)}", is_error=True)
        elif outcome.skipped is not None:
            self.message(f"{outcome.input}: skipped: {outcome.skipped}")
        elif outcome.size is not None:
            width, height = outcome.size
            self.message(f"{outcome.input}: {width} x {height} in {outcome.seconds:.1f} s{_describe_changes(outcome)}")
        written = () if outcome.skipped is not None or self.quiet else outcome.outputs
        lines = [outcome.to_json_line()] if self.json_lines else [str(path) for path in written]
        print_lines(lines)
        self.bar.advance(self.files_task)

    def summarize(self, outcomes: list[Outcome]) -> None:
        """What of the folders was not taken, and the list of failures, if there was more than one file."""
        for reason in dict.fromkeys(found.reason for found in self.passed_over):
            names = [str(found.path) for found in self.passed_over if found.reason == reason]
            self.message(f"passed over {len(names)}, {reason}: {list_names(names)}")
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed and len(outcomes) > 1:
            self.message(f"{len(failed)} of {len(outcomes)} files failed:", is_error=True)
            for outcome in failed:
                self.message(f"- {_describe_error(outcome)}", is_error=True)


def _describe_changes(outcome: Outcome) -> str:
    """How much of a picture was changed, where that is known."""
    if outcome.changed is None:
        return ""
    where = "" if outcome.box is None else f" within {','.join(map(str, outcome.box))}"
    return f"; the mask covers {outcome.coverage:g} %, {outcome.changed} pixels changed{where}"


def _describe_error(outcome: Outcome) -> str:
    """The error, beginning with the input's name exactly once."""
    error = outcome.error or ""
    return error if error.startswith(f"{outcome.input}: ") else f"{outcome.input}: {error}"
