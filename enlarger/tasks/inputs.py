"""What users give, taken apart into single pictures, and the way from a network's pixels back to a picture like it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.fill import bleed_alpha
from enlarger.image.picture import Picture, read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.requests import DepthRequest, RefineRequest, UpscaleRequest, one_per_image, seeds_for
from enlarger.tasks.latents import Latents, join_latents
from enlarger.tasks.result import Result, pad_to_multiple

R = TypeVar("R", UpscaleRequest, RefineRequest, DepthRequest)
RunOne = Callable[[R, tuple[int, ...]], Result]  # a request for one picture, its prompts single, and its seeds


def run_each_image(request: R, run_one: RunOne[R], **per_image: Sequence[Any]) -> Result:
    """The results for the request's pictures, computed in turn and in order.

    A picture never shares a batch with another, so that it is the same to the last bit alone and among others. `per`
    names fields of the request that have a value for each picture.
    """
    sources = split_images(request.image)
    values_by_name = {
        name: one_per_image(getattr(request, name), len(sources), name) for name in ("prompt", "negative")
    } | per_image
    seeds, count = seeds_for(request.seed, len(sources) * request.count), request.count
    return join_results(
        [
            run_one(
                replace(request, image=source, **{name: values[i] for name, values in values_by_name.items()}),
                tuple(seeds[i * count : (i + 1) * count]),
            )
            for i, source in enumerate(sources)
        ]
    )


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


def split_images(image: Any) -> list[Any]:
    """One picture, a list of them, a batch in a tensor or of `Latents`, as a list."""
    if isinstance(image, list | tuple):
        if not image:
            raise InputError("an empty list of pictures, expected at least one")
        return [one for item in cast("Sequence[Any]", image) for one in _split_latents(item)]
    if isinstance(image, Tensor) and image.ndim == 4:
        return list(image)
    return _split_latents(image)


def _split_latents(image: Any) -> list[Any]:
    return [image[i] for i in range(len(image))] if isinstance(image, Latents) else [image]


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One picture as a network takes it, and the way back to a picture like it."""

    image: Tensor  # (1, 3, H, W) in -1..1, padded at the right and the bottom, or latents (1, C, h, w)
    size: tuple[int, int]  # height and width of the result
    picture: Picture | None = None  # None for latents

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.picture is None else self.picture.notes

    def to_image(self, pixels: Tensor) -> Image.Image:
        """Pixels (1, 3, H, W) of the padded size as a picture; alpha, grey, depth and profile are the input's."""
        colour = pixels[0, :, : self.size[0], : self.size[1]].float().cpu()
        return to_pil(Picture(colour) if self.picture is None else replace(self.picture, colour=colour))


def prepare_picture(source: Any, multiple: int) -> PreparedImage:
    """A picture of any size, padded to multiples of `multiple` pixels."""
    if isinstance(source, Tensor) and source.ndim > 2 and source.shape[-3] == 4:
        raise InputError(
            "found a tensor with 4 channels, expected a picture or latents that say whose they are: "
            'enlarger.Latents(values, "sd") or "sdxl", values (B, 4, h, w)'
        )
    picture = read_picture(source)
    return PreparedImage(
        pad_to_multiple(bleed_alpha(picture)[None], multiple), (picture.height, picture.width), picture
    )


def match_input(picture: Picture, colour: Tensor) -> Picture:
    """The enlarged colour with the alpha enlarged beside it, and all else as in the input."""
    size = (colour.shape[-2], colour.shape[-1])
    alpha = None if picture.alpha is None else resize(picture.alpha, size, "lanczos").clamp(0, 1)
    return replace(picture, colour=colour, alpha=alpha)
