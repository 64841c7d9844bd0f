"""The same call of our pipeline and of diffusers', each with its own generators of the same seeds."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import enlarger.diffusers as ours_room


def load_pipelines(ours: Any, name: str, folder: Path, **theirs_only: Any) -> tuple[Any, Any]:
    """Our pipeline and diffusers' of that name, read from a folder."""
    pipes = ours.from_pretrained(folder), getattr(diffusers, name).from_pretrained(folder, **theirs_only)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


def scheduler_swapper(pipes: tuple[Any, Any]) -> Iterator[Callable[..., None]]:
    """A fixture's body: a function that swaps the schedulers of both until the test ends."""
    before = [pipe.scheduler for pipe in pipes]

    def swap(name: str, **changes: Any) -> None:
        for room, pipe, scheduler in zip((ours_room.schedulers, diffusers), pipes, before, strict=True):
            pipe.scheduler = getattr(room, name).from_config(scheduler.config, **changes)

    yield swap
    for pipe, scheduler in zip(pipes, before, strict=True):
        pipe.scheduler = scheduler


def run_both(pipes: Sequence[Any], seed: int | list[int] = 0, **call: Any) -> tuple[Any, Any]:
    """The pictures of both."""
    options: dict[str, Any] = {"output_type": "np", "num_inference_steps": 5, **call}
    if "prompt_embeds" not in options:
        options.setdefault("prompt", "a cat")

    def run(pipe: Any) -> Any:
        seeds = seed if isinstance(seed, list) else [seed]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe(generator=generators if isinstance(seed, list) else generators[0], **options).images

    found, expected = (run(pipe) for pipe in pipes)
    return found, expected
