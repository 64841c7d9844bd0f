"""What the pipelines return: an object that is read by name, by position, or like a dictionary."""

from collections.abc import Iterator, MutableMapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


class Output(MutableMapping[str, Any]):
    """What is read by name, by position, or like a dictionary; all three leave out what is None, as in diffusers."""

    def _held(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self._held().values())

    def copy(self) -> Self:
        """Another of the same values."""
        return copy(self)

    def __getitem__(self, key: int | slice | str) -> Any:
        return self._held()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: object) -> None:
        setattr(self, key, value)

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{type(self).__name__} keeps its {key}; set it to None")

    def __iter__(self) -> Iterator[str]:
        return iter(self._held())

    def __len__(self) -> int:
        return len(self._held())

    __eq__ = object.__eq__  # tensors have no truth
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType] - as objects have it


@dataclass(eq=False)
class PipelineOutput(Output):
    """The pictures, and which of them the safety checker flagged; None if it was not asked."""

    images: Any  # list of PIL images, array (B, H, W, 3) or tensor (B, C, H, W)
    nsfw_content_detected: list[bool] | None = None


def make_output(images: Any, return_dict: bool, as_tuple: tuple[Any, ...]) -> Any:
    return PipelineOutput(images) if return_dict else as_tuple


@dataclass(eq=False)
class SchedulerOutput(Output):
    """The latents after a step, and the denoised estimate it came from where the scheduler gives it."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    denoised: Tensor | None = None  # of LCM, with the noisy latents mixed in


@dataclass(eq=False)
class ModelOutput(Output):
    """What a model returns under diffusers' names; those it does not have are None."""

    sample: Tensor | None = None
    latent_dist: Any = None
    latents: Tensor | None = None


@dataclass(eq=False)
class TextOutput(Output):
    """What a text encoder returns under transformers' names."""

    text_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


ImagePipelineOutput = StableDiffusionPipelineOutput = StableDiffusionXLPipelineOutput = PipelineOutput
