"""What a task gives: progress while it works, then pictures."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from enlarger.diffusion.sample import OnStep, Step
from enlarger.errors import InputError
from enlarger.image.cmyk import to_cmyk
from enlarger.image.encode import check_background, check_output, check_saving, flatten, save_image
from enlarger.image.generation import Json
from enlarger.image.metadata import Strip
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


@dataclass(frozen=True, eq=False)
class Result:
    """The pictures made, the seed of each, and what is to be known of them."""

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...] = ()
    consistency: float | None = None  # largest difference of the reduced copy to the input, in 8-bit steps
    residual: tuple[float, float] | None = None  # the same without rounding, before and after it was made consistent
    latents: Latents | None = None  # of the pictures in order; None where they differ in size, or were never latents
    flagged: tuple[bool, ...] | None = None  # by the checkpoint's safety checker; None: it has none, see `notes`
    generation: tuple[Json, ...] = ()  # what made each picture; saved with it, see `image.generation`

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        quality: int = 95,
        strip: Strip = "none",
        background: str | None = None,
        cmyk: bool = False,
    ) -> tuple[Path, ...]:
        """Write the pictures whole or not at all; the second and later ones as NAME-2, NAME-3 and so on.

        The suffix chooses the format, `quality` is for JPEG, WebP and AVIF. A `background`, as white, lies under what
        is transparent where the format holds no alpha. What the input's file said (EXIF, XMP, IPTC, resolution) is
        kept, and how it was made is said (`generation`), unless `strip` is "gps", which drops the place, or "all".
        `cmyk` makes TIFF files in CMYK of pictures that came in CMYK, by their own profile; see `image.cmyk.to_cmyk`.
        Raises InputError, before any is written, for what `image.encode.save_image` refuses.
        """
        check_saving(quality, strip)
        check_background(background)
        if not isinstance(path, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise InputError(f"found {type(path).__name__}, expected a file's path; image.save writes into a stream")
        if not (first := Path(path)).name:
            raise InputError(f"path is {str(path)!r}, expected a file name such as picture.png")
        numbered = (first.with_name(f"{first.stem}-{i}{first.suffix}") for i in range(2, len(self.images) + 1))
        paths = (first, *numbered)
        images = tuple(map(to_cmyk, self.images)) if cmyk else self.images
        for image, place in zip(images, paths, strict=True):
            check_output(place, flatten(image, place, background).mode, image.size, overwrite=overwrite)
        made = self.generation if self.generation else (None,) * len(paths)
        how: Any = {"overwrite": overwrite, "quality": quality, "strip": strip, "background": background}
        for image, place, generation in zip(images, paths, made, strict=True):
            save_image(image, place, generation=generation, **how)
        return paths

    def _repr_png_(self) -> bytes:
        """The first picture, for notebooks."""
        stream = io.BytesIO()
        self.image.save(stream, "PNG")
        return stream.getvalue()


def join_results(results: Sequence[Result]) -> Result:
    """One result of several that the same model made."""
    consistencies = [result.consistency for result in results if result.consistency is not None]
    return Result(
        tuple(image for result in results for image in result.images),
        tuple(seed for result in results for seed in result.seeds),
        results[0].model,
        tuple(dict.fromkeys(note for result in results for note in result.notes)),
        max(consistencies, default=None),
        join_residuals([result.residual for result in results]),
        join_latents([result.latents for result in results]),
        join_flags([result.flagged for result in results]),
        tuple(one for result in results for one in result.generation),
    )


def join_residuals(found: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The largest of each; None if none is known."""
    known = [each for each in found if each is not None]
    return (max(before for before, _ in known), max(after for _, after in known)) if known else None


def join_flags(flags: Sequence[tuple[bool, ...] | None]) -> tuple[bool, ...] | None:
    """What a safety checker said of all pictures; None if it was not asked of some."""
    checked = [each for each in flags if each is not None]
    return tuple(flag for each in checked for flag in each) if len(checked) == len(flags) else None
