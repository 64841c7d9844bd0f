"""Callbacks of the pipelines, on top of the watchers of our tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusers.progress import ProgressBar
from enlarger.diffusion.sample import OnStep, Step
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.errors import Unsupported

StepCallback = Callable[[int, Tensor, Tensor], Tensor]  # step, timestep, latents in; the latents to go on with out


class Interrupted(Exception):
    """Ends a run whose callback asked for that; carries the latents so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("interrupted")
        self.latents = latents


@dataclass(frozen=True, eq=False)
class CallbackRunner:
    """Shows each step to callbacks in the coordinates that diffusers' scheduler would have.

    Called once per whole step: where diffusers' Heun and PNDM call `callback_on_step_end` after each of their halves,
    only the second half is reported. A callback may change the latents, in place or by returning others.
    """

    sampler: Sampler
    sigma_schedule: SigmaSchedule
    dtype: torch.dtype
    bar: ProgressBar
    callbacks: Sequence[StepCallback]
    is_interrupted: Callable[[], bool] = lambda: False

    def on_step(self) -> OnStep:
        """What shows the callbacks each step of one run, and gives the latents that they want to go on from."""
        reported_steps = iter(step_timesteps(self.sampler, self.sigma_schedule))

        def run_callbacks(step: Step) -> Tensor:
            scale, x = self._latent_scale(step), step.x
            index, timestep = next(reported_steps)
            for callback in self.callbacks:
                x = self._run_callback(callback, x, scale, index, timestep)
            self.bar.update()
            if self.is_interrupted():
                raise Interrupted(x * scale)
            return x

        return run_callbacks

    def _run_callback(self, callback: StepCallback, x: Tensor, scale: float, index: int, timestep: Tensor) -> Tensor:
        latents = (x * scale).to(self.dtype)
        original = latents.clone()
        replaced = callback(index, timestep.to(latents.device), latents)
        if replaced.shape != original.shape:
            raise ArgumentError(
                f"the callback returned latents {tuple(replaced.shape)}, expected {tuple(original.shape)}"
            )
        return x if torch.equal(replaced, original) else replaced.to(x) / scale

    def _latent_scale(self, step: Step) -> float:
        """Outside, DDIM's and PNDM's latents have unit variance."""
        return (float(step.sigma) ** 2 + 1) ** -0.5 if self.sampler.variance_preserving else 1.0


def step_timesteps(sampler: Sampler, sigma_schedule: SigmaSchedule) -> list[tuple[int, Tensor]]:
    """The step index and the timestep that diffusers' scheduler reports with each of our steps."""
    num_steps, is_integer = sigma_schedule.steps, sampler.variance_preserving
    timesteps = list(sigma_schedule.timesteps)
    timesteps = [time.round().long() if is_integer else time.float() for time in timesteps]
    if sampler.solver == "heun" and num_steps > 1:
        timesteps = [*timesteps[1:], timesteps[-1]]  # reported after the second call, made at the next time
    if sampler.solver == "plms" and num_steps > 1:
        return list(enumerate([timesteps[1], *timesteps[1:]], start=1))  # its list holds the second time twice
    return list(enumerate(timesteps))


def every_n_steps(callback: Callable[[int, Any, Tensor], None], steps: int) -> StepCallback:
    """`callback(step, timestep, latents)` at each step whose number is a multiple of `steps`."""

    def step_callback(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        if index % steps == 0:
            callback(index, timestep, latents)
        return latents

    return step_callback


def on_step_end(
    pipe: Any, callback: Callable[..., Any], tensor_inputs: Sequence[str], embeds: dict[str, Any]
) -> StepCallback:
    """`callback(pipe, step, timestep, tensors)`, which returns a dictionary of tensors, or {}."""
    available = ["latents", *embeds]
    unknown = [name for name in tensor_inputs if name not in available]
    if unknown:
        raise ArgumentError(f"`callback_on_step_end_tensor_inputs` has {unknown}, expected some of {available}")

    def step_callback(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        tensors = {**embeds, "latents": latents}
        outputs = callback(pipe, index, timestep, {name: tensors[name] for name in tensor_inputs})
        if not isinstance(outputs, dict):
            raise ArgumentError(f"`callback_on_step_end` returned {type(outputs)}, expected the dictionary of tensors")
        returned: dict[str, Any] = {**tensors, **outputs}
        for name, value in embeds.items():
            if returned[name] is not value:
                raise Unsupported(
                    f"`callback_on_step_end` replaced {name}; prompts are fixed for a run here. To guide only part of "
                    "the way, use the interval of enlarger.diffusion.guidance.Guidance"
                )
        return returned["latents"]

    return step_callback
