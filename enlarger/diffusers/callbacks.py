"""Callbacks that end guidance in the midst of a run, as diffusers.callbacks has them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.config import SchedulerConfig
from enlarger.diffusers.unsupported import missing

Tensors = dict[str, Any]


class PipelineCallback:
    """The base of callbacks that act once: after a share of the network's calls, or after the call of an index."""

    tensor_inputs: ClassVar[Sequence[str]] = ()

    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None) -> None:
        if (cutoff_step_ratio is None) == (cutoff_step_index is None):
            raise ArgumentError("found both or none of cutoff_step_ratio and cutoff_step_index, expected one of them")
        if cutoff_step_ratio is not None and not 0 <= cutoff_step_ratio <= 1:
            raise ArgumentError(f"cutoff_step_ratio is {cutoff_step_ratio}, expected a number from 0 to 1")
        stated = {"cutoff_step_ratio": cutoff_step_ratio, "cutoff_step_index": cutoff_step_index}
        self.config = SchedulerConfig(type(self).__name__, stated, {})

    def cutoff_step(self, pipeline: Any) -> int:
        """The call of the network after which it acts."""
        index: int | None = self.config["cutoff_step_index"]
        return int(pipeline.num_timesteps * self.config["cutoff_step_ratio"]) if index is None else index

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Tensor, callback_kwargs: Tensors) -> Tensors:
        """What the callback does, for subclasses to define; it gives the tensors back."""
        raise NotImplementedError(f"{type(self).__name__} has no callback_fn; define one")

    def __call__(self, pipeline: Any, step_index: int, timestep: Tensor, callback_kwargs: Tensors) -> Tensors:
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)


class MultiPipelineCallbacks:
    """Several callbacks, one after another."""

    def __init__(self, callbacks: Sequence[PipelineCallback]) -> None:
        self.callbacks = callbacks

    @property
    def tensor_inputs(self) -> list[str]:
        return [name for callback in self.callbacks for name in callback.tensor_inputs]

    def __call__(self, pipeline: Any, step_index: int, timestep: Tensor, callback_kwargs: Tensors) -> Tensors:
        for callback in self.callbacks:
            callback_kwargs = callback(pipeline, step_index, timestep, callback_kwargs)
        return callback_kwargs


class SDCFGCutoffCallback(PipelineCallback):
    """No guidance from a step on: the prompts alone go on."""

    tensor_inputs: ClassVar[Sequence[str]] = ("prompt_embeds",)

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Tensor, callback_kwargs: Tensors) -> Tensors:
        """Halve what the network is told, and set the guidance scale to 0."""
        if step_index != self.cutoff_step(pipeline):
            return callback_kwargs
        pipeline._guidance_scale = 0.0
        halved: Mapping[str, Any] = {name: callback_kwargs[name].chunk(2)[-1] for name in self.tensor_inputs}
        return {**callback_kwargs, **halved}


class SDXLCFGCutoffCallback(SDCFGCutoffCallback):
    """The same for SDXL, whose network is told pooled text and sizes too."""

    tensor_inputs: ClassVar[Sequence[str]] = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def __getattr__(name: str) -> object:
    """One sentence for the names of diffusers that are not here."""
    raise missing(name, __name__)
