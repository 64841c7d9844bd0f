"""What a task will take before it runs, stage by stage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from enlarger.memory_size import format_bytes
from enlarger.strict_json import Json


@dataclass(frozen=True)
class Stage:
    """A part of the work. `peak` is what the process holds at most in it, weights included."""

    name: str
    peak: int  # bytes
    calls: int | None = 0  # of a network, for all pictures of the request; None: the solver decides
    tiles: int = 1  # of each call: windows of a diffusion network, tiles of the others
    tile: int | None = None  # their side, in latents of windows, in pixels of tiles; None: whole
    gflop: float = 0.0
    seconds: float | None = None  # None: not estimated


@dataclass(frozen=True)
class Plan:
    """The stages of a task in order; `str` makes them a table."""

    task: str
    model: str
    device: str
    precision: str
    what: str  # the picture and what becomes of it
    memory: str | float | None  # the bound, as it was given
    process: int  # bytes that the process takes without a model
    weights: int  # bytes
    stages: tuple[Stage, ...]

    @property
    def peak(self) -> int:
        """The most memory in bytes: of the process on a CPU, of the device elsewhere."""
        return max(stage.peak for stage in self.stages)

    @property
    def network_calls(self) -> int | None:
        """Calls of diffusion networks; all windows and both branches of a guidance are one; None: not known."""
        counts = [stage.calls for stage in self.stages if "network calls" in stage.name]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def seconds(self) -> float | None:
        """The time of all stages; None where one is not estimated."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    def as_json(self) -> Json:
        """For programs: the fields, and what follows from them."""
        return asdict(self) | {"peak": self.peak, "network_calls": self.network_calls, "seconds": self.seconds}

    def __str__(self) -> str:
        header = ("stage", "calls", "tiles", "memory", "time")
        rows = [
            header,
            *((s.name, _calls(s), _tiles(s), format_bytes(s.peak), _seconds(s.seconds)) for s in self.stages),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        table = [_line(row, widths) for row in rows]
        bound = (
            ""
            if self.memory is None
            else f", {self.memory if isinstance(self.memory, str) else f'{self.memory:g} GiB'} allowed"
        )
        calls = (
            "as many network calls as the solver needs"
            if self.network_calls is None
            else f"{self.network_calls} network calls"
        )
        last = f"peak memory {format_bytes(self.peak)}{bound}; {calls}; {_seconds(self.seconds)}"
        first = f"{self.task} {self.what} with {self.model} on {self.device} in {self.precision}"
        return "\n".join([first, *table, last])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def _calls(stage: Stage) -> str:
    return "?" if stage.calls is None else str(stage.calls) if stage.calls else "-"


def _tiles(stage: Stage) -> str:
    return (
        "-"
        if not stage.calls and stage.tile is None
        else "whole"
        if stage.tile is None
        else f"{stage.tiles} of {stage.tile}"
    )


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.3g} min"
