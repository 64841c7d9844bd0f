"""Callbacks of the pipelines, on top of the watchers of our tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError, check_callback_steps
from enlarger.diffusers.progress import ProgressBar
from enlarger.diffusers.running import Run
from enlarger.diffusion.sample import Step
from enlarger.tasks.result import Progress, ProgressCallback


class Interrupted(Exception):
    """Ends a run whose callback asked for that; carries the latents so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("interrupted")
        self.latents = latents


@dataclass(frozen=True, eq=False)
class Listeners:
    """Who is called in a run: `on_end` after every call of the network, `older` after steps whose number `every` divides.

    `tensors` are what `on_end` may see and replace beside the latents, by name; `names` are those it wants. What it
    replaces is in `replaced`.
    """

    pipe: Any = None
    on_end: Callable[..., Any] | None = None
    names: Sequence[str] = ()
    tensors: Mapping[str, Any] = field(default_factory=dict[str, Any])
    older: Callable[[int, Any, Tensor], None] | None = None
    every: int = 1
    replaced: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> "Listeners":
        """Itself, if all names are known."""
        known = ["latents", *self.tensors]
        if odd := [name for name in self.names if name not in known]:
            raise ArgumentError(f"`callback_on_step_end_tensor_inputs` has {odd}, expected some of {known}")
        return self

    def call(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """What `on_end` makes of the latents."""
        if self.on_end is None:
            return latents
        given = {**self.tensors, **self.replaced, "latents": latents}
        found = self.on_end(self.pipe, index, timestep, {name: given[name] for name in self.names})
        if not isinstance(found, Mapping):
            raise ArgumentError(f"`callback_on_step_end` returned {type(found)}, expected the dictionary of tensors")
        changed: dict[str, Any] = dict(found)  # pyright: ignore[reportUnknownArgumentType] - a callback's
        after = changed.pop("latents", latents)
        self.replaced.update({name: value for name, value in changed.items() if value is not given.get(name)})
        return after


def listeners(
    pipe: Any, on_end: Callable[..., Any] | None, names: Sequence[str], tensors: Mapping[str, Any],
    older: Mapping[str, Any],
) -> Listeners:  # fmt: skip
    """The callbacks of a call: the one after every step, or diffusers' class of several, and the older ones."""
    unknown = sorted(set(older) - {"callback", "callback_steps"})
    if unknown:
        raise TypeError(f"{type(pipe).__name__} got unexpected arguments {', '.join(unknown)}")
    steps = older.get("callback_steps")
    if steps is not None:
        check_callback_steps(steps)
    names = getattr(on_end, "tensor_inputs", names)
    made = Listeners(pipe, on_end, names, tensors, older.get("callback"), 1 if steps is None else steps)
    return made.check()


@dataclass(frozen=True, eq=False)
class CallbackRunner:
    """Shows each call of the network to callbacks, counted and in the coordinates of diffusers' scheduler."""

    run: Run
    dtype: torch.dtype
    bar: ProgressBar
    heard: Listeners = Listeners()
    interrupted: Callable[[], bool] = lambda: False

    def watch(self) -> ProgressCallback:
        """The watcher of one run."""
        run, count = self.run, len(self.run.timesteps)

        def see(progress: Progress) -> None:
            if progress.step is None:
                return
            index = progress.done - 1
            latents = self._show(progress.step, index)
            if index == count - 1 or (index + 1 > run.warmup and (index + 1) % run.scheduler.order == 0):
                self.bar.update()
                if self.heard.older is not None and index % self.heard.every == 0:
                    self.heard.older(index // run.scheduler.order, run.timesteps[index], latents)
                    self._take(progress.step, latents, index)
            if self.interrupted():
                raise Interrupted(progress.step.x * run.scale(index + 1))

        return see

    def _show(self, step: Step, index: int) -> Tensor:
        latents = (step.x * self.run.scale(index + 1)).to(self.dtype)
        if self.heard.on_end is None:
            return latents
        after = self.heard.call(index, self.run.timesteps[index], latents.clone())
        return latents if torch.equal(after, latents) else self._take(step, after, index)

    def _take(self, step: Step, latents: Tensor, index: int) -> Tensor:
        """Go on from these latents."""
        if latents.shape != step.x.shape:
            raise ArgumentError(f"the callback returned latents {tuple(latents.shape)}, expected {tuple(step.x.shape)}")
        if not torch.equal((step.x * self.run.scale(index + 1)).to(self.dtype), latents):
            step.x.copy_(latents.float() / self.run.scale(index + 1))
        return latents
