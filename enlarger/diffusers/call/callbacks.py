"""Callbacks of the pipelines, on top of the watchers of our tasks."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError, check_callback_steps
from enlarger.diffusers.call.progress import ProgressBar
from enlarger.diffusers.call.run import Run
from enlarger.diffusers.types import OlderCallback, OnStepEnd
from enlarger.diffusion.sample import OnStep, Step


class Interrupted(Exception):
    """Ends a run whose callback asked for that; carries the latents so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("interrupted")
        self.latents = latents


@dataclass(frozen=True, eq=False)
class Listeners:
    """Who is called in a run: `on_end` after every call of the network, `older` after steps
    whose number `every` divides.

    `tensors` are what `on_end` may see and replace beside the latents, by name; `names` are those it wants. What it
    replaces is in `replaced`.
    """

    pipe: object = None
    on_end: OnStepEnd | None = None
    names: Sequence[str] = ()
    tensors: Mapping[str, Tensor | None] = field(default_factory=dict[str, Tensor | None])
    older: OlderCallback | None = None
    every: int = 1
    replaced: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

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
        changed: dict[str, Tensor] = dict(found)  # pyright: ignore[reportUnknownArgumentType] - a callback's
        after = changed.pop("latents", latents)
        self.replaced.update({name: value for name, value in changed.items() if value is not given.get(name)})
        return after


def listeners(
    pipe: object,
    on_end: OnStepEnd | None,
    names: Sequence[str],
    tensors: Mapping[str, Tensor | None],
    older: Mapping[str, Any],
) -> Listeners:
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

    def on_step(self) -> OnStep:
        """What shows the callbacks each step of one run, and gives the latents that they want to go on from."""
        run, count, indices = self.run, len(self.run.timesteps), itertools.count()

        def show(step: Step) -> Tensor:
            index, timestep = (i := next(indices)), run.timesteps[i]
            x, scale = step.x, run.scale(index + 1)
            x = self._called(x, scale, lambda latents: self.heard.call(index, timestep, latents))
            if index == count - 1 or (index + 1 > run.warmup and (index + 1) % run.scheduler.order == 0):
                self.bar.update()
                older = self.heard.older
                if older is not None and index % self.heard.every == 0:
                    x = self._called(x, scale, _ignoring(older, index // run.scheduler.order, timestep))
            if self.interrupted():
                raise Interrupted(x * scale)
            return x

        return show

    def _called(self, x: Tensor, scale: float, callback: Callable[[Tensor], Tensor | None]) -> Tensor:
        """The latents after a callback, which may return others or change those it is given."""
        with torch.inference_mode(False):  # so that writing into them is counted
            shown = (x * scale).to(self.dtype)
        written = shown._version
        after = callback(shown)
        after = shown if after is None else after
        if after.shape != x.shape:
            raise ArgumentError(f"the callback returned latents {tuple(after.shape)}, expected {tuple(x.shape)}")
        is_unchanged = after is shown and shown._version == written
        return x if is_unchanged else after.to(x) / scale


def _ignoring(older: OlderCallback, index: int, timestep: Tensor) -> Callable[[Tensor], None]:
    """The older callback, which may write into the latents; what it returns is nothing, as in diffusers."""

    def call(latents: Tensor) -> None:
        older(index, timestep, latents)

    return call
