"""Checking what a pipeline is called with: a wrong argument is a ValueError, as in diffusers, and an InputError."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from enlarger.diffusion.noise import Noise, PerSampleGenerators, SharedGenerator
from enlarger.errors import CheckpointError, InputError, Unsupported

log = logging.getLogger(__name__)
Prompt = str | list[str]
Generators = torch.Generator | list[torch.Generator]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ArgumentError(InputError, ValueError):
    """A wrong argument of a pipeline."""


class UnfitFile(CheckpointError, ValueError):
    """A file that does not fit, a ValueError as in diffusers."""


class MissingFile(CheckpointError, OSError, ValueError):
    """A file or folder that is not there, an OSError or a ValueError as in diffusers."""


class NoAccelerator(Unsupported, RuntimeError):
    """There is nothing to offload to, a RuntimeError as in diffusers."""


P = ParamSpec("P")
R = TypeVar("R")


def with_value_errors(call: Callable[P, R]) -> Callable[P, R]:
    """Have a call raise as ValueErrors too what our tasks refuse, as diffusers does."""

    @wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except InputError as error:
            if isinstance(error, ValueError):
                raise
            raise ArgumentError(str(error)) from error
        except CheckpointError as error:
            if isinstance(error, ValueError):
                raise
            raise UnfitFile(str(error)) from error

    return run


def check_prompts(prompt: Any, negative: Any, embeds: Tensor | None, negative_embeds: Tensor | None) -> None:
    """Exactly one form of the prompt, at most one of the negative prompt, and equal shapes."""
    if (prompt is None) == (embeds is None):
        found = "neither" if prompt is None else "both"
        raise ArgumentError(f"found {found} of `prompt` and `prompt_embeds`, expected one of them")
    for name, value in (("prompt", prompt), ("negative_prompt", negative)):
        if value is not None and not isinstance(value, str | list):
            raise ArgumentError(f"`{name}` has to be of type `str` or `list` but is {type(value)}")
    if negative is not None and negative_embeds is not None:
        raise ArgumentError("found both `negative_prompt` and `negative_prompt_embeds`, expected at most one of them")
    if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
        shapes = f"{tuple(embeds.shape)} and {tuple(negative_embeds.shape)}"
        raise ArgumentError(f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape, found {shapes}")


def check_pooled(which: str, embeds: Tensor | None, pooled: Tensor | None) -> None:
    """Token features and pooled ones come together."""
    if (embeds is None) != (pooled is None):
        have, lack = f"{which}prompt_embeds", f"{which.removesuffix('_')}{'_' if which else ''}pooled_prompt_embeds"
        have, lack = (lack, have) if embeds is None else (have, lack)
        raise ArgumentError(f"If `{have}` are provided, `{lack}` also have to be passed, of the same text encoder")


def check_callback_steps(steps: object) -> None:
    if not isinstance(steps, Integral) or int(steps) <= 0:
        raise ArgumentError(f"`callback_steps` has to be a positive integer but is {steps} of type {type(steps)}")


def check_output_type(output_type: str | None) -> str:
    """The type; "np" and a line in the log for what is none, as in diffusers."""
    if output_type in OUTPUT_TYPES:
        return str(output_type)
    log.warning("output_type %r is not one of %s; makes arrays, 'np'", output_type, ", ".join(OUTPUT_TYPES))
    return "np"


def images_per_prompt(count: int | None) -> int:
    """How many pictures each prompt becomes."""
    if count is not None and count < 1:
        raise ArgumentError(f"`num_images_per_prompt` is {count}, expected 1 or more")
    return 1 if count is None else count


def reject_unsupported(options: Mapping[str, object], advice: Mapping[str, str]) -> None:
    """Raise Unsupported for the first of the options that is given, with its advice."""
    for name, value in options.items():
        if value is not None:
            raise Unsupported(f"{name} is not available here; {advice[name]}")


def as_list(prompt: Prompt) -> list[str]:
    return [prompt] if isinstance(prompt, str) else prompt


def batch_size_of(prompt: Prompt | None, embeds: Tensor | None) -> int:
    """How many prompts there are."""
    if prompt is not None:
        if not prompt and not isinstance(prompt, str):
            raise ArgumentError("`prompt` is an empty list, expected at least one prompt")
        return len(as_list(prompt))
    assert embeds is not None, "check_prompts comes first"
    return len(embeds)


def negative_prompts_for(prompt: Prompt | None, negative: Prompt | None, count: int) -> list[str]:
    """One negative prompt per prompt; None is empty. Beside embeddings a single one stands for all."""
    if negative is None:
        return [""] * count
    if prompt is not None and type(prompt) is not type(negative):
        raise TypeError(
            f"`negative_prompt` should be the same type as `prompt`, found {type(negative)} and {type(prompt)}"
        )
    if isinstance(negative, str):
        return [negative] * count
    if len(negative) != count:
        raise ArgumentError(f"`negative_prompt` has batch size {len(negative)}, `prompt` has {count}; give as many")
    return negative


def noise_from_generator(generator: Generators | None, count: int) -> Noise:
    """One generator, or none, draws whole batches; of a list each draws one image."""
    if not isinstance(generator, Sequence):
        return SharedGenerator(generator)
    if len(generator) == 1:
        return SharedGenerator(generator[0])
    if len(generator) != count:
        raise ArgumentError(f"found a list of {len(generator)} generators for a batch of {count}; give one or {count}")
    return PerSampleGenerators(tuple(generator))


def check_latents(latents: Tensor | None, shape: tuple[int, ...]) -> None:
    if latents is not None and tuple(latents.shape) != shape:
        raise ArgumentError(f"Unexpected latents shape, found {tuple(latents.shape)}, expected {shape}")
