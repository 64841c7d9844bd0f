"""Which windows a picture is denoised in, and a progress that counts them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from enlarger.diffusion.sample import OnStep, Step
from enlarger.diffusion.sampler import trace_steps
from enlarger.diffusion.windows import Windows
from enlarger.requests import DEFAULT_MEMORY, GenerateRequest, RefineRequest, UpscaleRequest
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan
from enlarger.tasks.results.result import Progress, ProgressCallback, report_steps

MAPS = 24  # as wide as the first stage: what a diffusion network holds at once, of each branch of a guidance
TRAINED_SIDE = 128  # latents along a side of the pictures that the upscalers were trained on


@dataclass(frozen=True)
class NetworkShape:
    """What sets the windows of a diffusion network."""

    channels: int  # of its first stage
    dtype: torch.dtype
    trained_side: int  # latents along a side of the pictures it was trained on
    multiple: int  # of which its sides must be

    def affordable_side(self, gibibytes: float, count: int) -> int:
        """The largest side of a window in which `count` pictures, both branches of each, fit."""
        num_bytes = 2 * count * MAPS * self.channels * self.dtype.itemsize
        return max(2, int((gibibytes * 2**30 / num_bytes) ** 0.5) // self.multiple) * self.multiple


TiledRequest = UpscaleRequest | RefineRequest | GenerateRequest


def choose_windows(request: TiledRequest, shape: NetworkShape, size: tuple[int, int], count: int = 1) -> Windows | None:
    """The windows for `count` latents of `size` (h, w); None: whole.

    Where the request asks for tiles they have the size that the network was trained on, if the request's memory allows;
    where it does not say, what does not fit the memory is cut into the largest windows that do.
    """
    side = shape.affordable_side(DEFAULT_MEMORY if request.memory is None else request.memory, count)
    if request.tile:
        side = min(side, max(2, shape.trained_side // shape.multiple) * shape.multiple)
    if request.tile is False or max(size) <= side:
        return None
    return Windows(side, max(shape.multiple, side // 4 // shape.multiple * shape.multiple), shape.multiple)


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
