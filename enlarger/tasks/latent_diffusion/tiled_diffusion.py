"""A run in the windows that were chosen for it: a progress that counts them, and smaller ones where memory runs out."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from enlarger.diffusion.noise import generators_of
from enlarger.diffusion.sample import OnStep, Step
from enlarger.diffusion.sampler import trace_steps
from enlarger.diffusion.windows import Windows
from enlarger.runtime.smaller_tiles import Tiling, halve_tile, tile_attempts
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan
from enlarger.tasks.planning.network_costs import diffusion_cost
from enlarger.tasks.planning.room import NetworkShape, windows_of_side
from enlarger.tasks.results.result import Progress, ProgressCallback, report_steps

TRAINED_SIDE = 128  # latents along a side of the pictures that the upscalers were trained on


@dataclass(frozen=True, eq=False)
class WindowedRun:
    """A run on latents of `size` (h, w) by a plan whose windows are chosen, and what sees its steps."""

    plan: SamplingPlan
    on_step: OnStep
    size: tuple[int, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of its windows."""
        return note_windows(self.plan.windows, self.size)


def window_attempts(
    plan: SamplingPlan, shape: NetworkShape, size: tuple[int, int], rows: int, watch: ProgressCallback
) -> Iterator[AbstractContextManager[WindowedRun]]:
    """`for attempt in window_attempts(...)`, `with attempt as run:` a sampling of `rows` latents by the run's plan.

    Where memory runs out, it is sampled again with the same noise in smaller windows, as `tile_attempts` says.
    """
    generators, windows = generators_of(plan.noise), plan.windows
    states = [generator.get_state() for generator in generators]

    @contextmanager
    def run(attempt: AbstractContextManager[int | None]) -> Generator[WindowedRun]:
        with attempt as side:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            is_first = side == (None if windows is None else windows.side)
            cut = windows if is_first or side is None else windows_of_side(side, shape.multiple)
            yield WindowedRun(*report_plan(watch, replace(plan, windows=cut), size), size)

    def smaller(side: int | None) -> int | None:
        half = halve_tile(max(size), shape.multiple)(side)
        return half if half is not None and half >= shape.least_side else None

    def need(side: int | None) -> int:
        seen = size if side is None else (min(side, size[0]), min(side, size[1]))
        return diffusion_cost(shape.network, seen, rows).peak

    tiling = Tiling("denoising", None if windows is None else windows.side, "latents", smaller, need)
    for attempt in tile_attempts(tiling):
        yield run(attempt)


def note_windows(windows: Windows | None, size: tuple[int, int]) -> tuple[str, ...]:
    """What to say of a run in windows."""
    if windows is None:
        return ()
    return (
        f"denoised in {windows.count(size)} overlapping windows of {windows.side} latents: the result depends a "
        "little on where they lie",
    )


def report_plan(watch: ProgressCallback, plan: SamplingPlan, size: tuple[int, int]) -> tuple[SamplingPlan, OnStep]:
    """The plan and the callback of its steps, both telling `watch` how far it is: in windows where there are any."""
    windows = plan.windows
    if windows is None:
        return plan, report_steps(watch, plan.sigma_schedule.steps)
    steps = trace_steps(plan.solver, plan.sigma_schedule.sigmas)
    calls = plan.sigma_schedule.steps if steps is None else sum(len(called) for _, called in steps)
    total, done = calls * windows.count(size), 0

    def on_window() -> None:
        nonlocal done
        done += 1
        watch(Progress("denoise", done, max(total, done)))

    def on_step(step: Step) -> Tensor:
        watch(Progress("denoise", done, max(total, done), step))
        return step.x

    return replace(plan, windows=replace(windows, on_window=on_window)), on_step
