"""What a task gives: progress while it works, then pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from enlarger.diffusion.sample import OnStep, Step
from enlarger.tasks.inputs import Latents, join_latents


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a stage of the work is; `step` holds the latents while denoising."""

    stage: str
    done: int
    total: int
    step: Step | None = None


ProgressCallback = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """Watch nothing."""


def report_steps(watch: ProgressCallback, total: int, stage: str = "denoise") -> OnStep:
    """What reports each step of a run of `total` to `watch`, and changes none."""
    done = 0

    def report(step: Step) -> Tensor:
        nonlocal done
        done += 1
        watch(Progress(stage, done, max(total, done), step))
        return step.x

    return report


@dataclass(frozen=True)
class Result:
    """The pictures made, the seed of each, and what is to be known of them."""

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...] = ()
    consistency: float | None = None  # largest difference of the reduced copy to the input, in 8-bit steps
    latents: Latents | None = None  # of the pictures in order; None where they differ in size, or were never latents
    flagged: tuple[bool, ...] | None = None  # by the checkpoint's safety checker; None: it has none, see `notes`

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]


def join_results(results: Sequence[Result]) -> Result:
    """One result of several that the same model made."""
    consistencies = [result.consistency for result in results if result.consistency is not None]
    return Result(
        tuple(image for result in results for image in result.images),
        tuple(seed for result in results for seed in result.seeds),
        results[0].model,
        tuple(dict.fromkeys(note for result in results for note in result.notes)),
        max(consistencies, default=None),
        join_latents([result.latents for result in results]),
        join_flags([result.flagged for result in results]),
    )


def join_flags(flags: Sequence[tuple[bool, ...] | None]) -> tuple[bool, ...] | None:
    """What a safety checker said of all pictures; None if it was not asked of some."""
    checked = [each for each in flags if each is not None]
    return tuple(flag for each in checked for flag in each) if len(checked) == len(flags) else None
