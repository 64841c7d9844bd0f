"""Callbacks of the pipelines, on top of the watchers of our tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusers.progress import Bar
from enlarger.diffusion.sample import Step
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.errors import Unsupported
from enlarger.tasks.parts import Progress, Watch

Call = Callable[[int, Tensor, Tensor], Tensor]  # step, timestep, latents in; the latents to go on with out


class Interrupted(Exception):
    """Ends a run whose callback asked for that; carries the latents so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("interrupted")
        self.latents = latents


@dataclass(frozen=True, eq=False)
class Reporter:
    """Shows each step to callbacks in the coordinates that diffusers' scheduler would have.

    Called once per whole step: where diffusers' Heun and PNDM call `callback_on_step_end` after each of their halves,
    only the second half is reported. A callback may change the latents, in place or by returning others.
    """

    sampler: Sampler
    course: Course
    dtype: torch.dtype
    bar: Bar
    calls: Sequence[Call]
    interrupted: Callable[[], bool] = lambda: False

    def watch(self) -> Watch:
        """The watcher of one run."""
        stops = step_times(self.sampler, self.course)

        def see(progress: Progress) -> None:
            if progress.step is None:
                return
            for call in self.calls:
                self._show(progress.step, call, *stops[progress.done - 1])
            self.bar.update()
            if self.interrupted():
                raise Interrupted(progress.step.x * self._scale(progress.step))

        return see

    def _show(self, step: Step, call: Call, index: int, time: Tensor) -> None:
        scale = self._scale(step)
        latents = (step.x * scale).to(self.dtype)
        before = latents.clone()
        after = call(index, time.to(latents.device), latents)
        if after.shape != before.shape:
            raise ArgumentError(f"the callback returned latents {tuple(after.shape)}, expected {tuple(before.shape)}")
        if not torch.equal(after, before):
            step.x.copy_(after.float() / scale)

    def _scale(self, step: Step) -> float:
        """Outside, DDIM's and PNDM's latents have unit variance."""
        return (float(step.sigma) ** 2 + 1) ** -0.5 if self.sampler.preserving else 1.0


def step_times(sampler: Sampler, course: Course) -> list[tuple[int, Tensor]]:
    """The step index and the timestep that diffusers' scheduler reports with each of our steps."""
    count, integer = course.steps, sampler.preserving
    times = list(course.times)
    times = [time.round().long() if integer else time.float() for time in times]
    if sampler.solver == "heun" and count > 1:
        times = [*times[1:], times[-1]]  # reported after the second call, made at the next time
    if sampler.solver == "plms" and count > 1:
        return list(enumerate([times[1], *times[1:]], start=1))  # its list holds the second time twice
    return list(enumerate(times))


def every(callback: Callable[[int, Any, Tensor], None], steps: int) -> Call:
    """`callback(step, timestep, latents)` at each step whose number is a multiple of `steps`."""

    def call(index: int, time: Tensor, latents: Tensor) -> Tensor:
        if index % steps == 0:
            callback(index, time, latents)
        return latents

    return call


def on_step_end(pipe: Any, callback: Callable[..., Any], names: Sequence[str], embeds: dict[str, Any]) -> Call:
    """`callback(pipe, step, timestep, tensors)`, which returns a dictionary of tensors, or {}."""
    known = ["latents", *embeds]
    odd = [name for name in names if name not in known]
    if odd:
        raise ArgumentError(f"`callback_on_step_end_tensor_inputs` has {odd}, expected some of {known}")

    def call(index: int, time: Tensor, latents: Tensor) -> Tensor:
        given = {**embeds, "latents": latents}
        found = callback(pipe, index, time, {name: given[name] for name in names})
        if not isinstance(found, dict):
            raise ArgumentError(f"`callback_on_step_end` returned {type(found)}, expected the dictionary of tensors")
        returned: dict[str, Any] = {**given, **found}
        for name, value in embeds.items():
            if returned[name] is not value:
                raise Unsupported(
                    f"`callback_on_step_end` replaced {name}; prompts are fixed for a run here. To guide only part of "
                    "the way, use the interval of enlarger.diffusion.guidance.Guidance"
                )
        return returned["latents"]

    return call
