"""Pictures in, larger pictures out: the verb, and what every upscaler does before and after its network."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch
from PIL import Image
from torch import Tensor

from enlarger.checkpoint.families import ModelKind
from enlarger.errors import InputError, Unsupported
from enlarger.image.consistency import is_harmless, project_into_range_, residual
from enlarger.image.decode import open_upright
from enlarger.image.fill import bleed_alpha
from enlarger.image.picture import Picture, read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.requests import UpscaleRequest, make_request, seeds_for
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload
from enlarger.tasks.batching import prompt_key
from enlarger.tasks.inputs import Latents, match_input, split_request
from enlarger.tasks.loading.load import BUNDLED, Location, load_model
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import ProgressCallback, Result, no_progress
from enlarger.tasks.upscale.upscaler import Upscaler
from enlarger.text.tokenize import Tokenizer
from enlarger.verb_options import UpscaleOptions

Options = TypeVar("Options")


@dataclass(frozen=True, eq=False)
class UpscaleBatch:
    """Pictures of one size, or the latents of one, with a request and a seed each, and the way to their results."""

    requests: Sequence[UpscaleRequest]  # each for one picture
    pictures: Sequence[Picture]  # none for latents
    seeds: Sequence[int]
    low_res: Tensor  # (B, 3, h, w) in -1..1, or latents (1, 4, h, w)
    size: tuple[int, int]  # height and width of the results in pixels

    def needs_pass(self, image: Tensor) -> bool:
        """Whether what has been made of `low_res` so far is still too small."""
        return image.shape[-2] < self.size[0] or image.shape[-1] < self.size[1]

    @property
    def is_harmless(self) -> bool:
        """Whether the results can be made consistent without ripples."""
        return is_harmless(self.low_res.shape[-2:], self.size)

    def finish(
        self, name: str, images: Tensor, consistent: Sequence[bool], notes: Sequence[tuple[str, ...]]
    ) -> list[Result]:
        """The result of each request: (B, 3, H, W) brought to `size` exactly, and like the picture that was given.

        Of each picture `consistent` says whether its half becomes the input, and `notes` what is to be known of it.
        """
        if not self.pictures:
            return [Result((to_pil(Picture(images[0])),), tuple(self.seeds), name)]
        idle = (IDLE_NOTE,) if images is self.low_res else ()
        if images.shape[-2:] != self.size:
            images = resize(images, self.size, RESAMPLING.lower())
        elif images is self.low_res:  # it has its size already, and is changed below
            images = images.clone()
        results = list[Result]()
        for i, picture in enumerate(self.pictures):
            large, small = images[i : i + 1], self.low_res[i : i + 1]
            step, before = 2 / (2**picture.bit_depth - 1), residual(large, small)
            large = project_into_range_(large, small, tolerance=step) if consistent[i] else large
            after = residual(large, small)
            off = (OFF_NOTE.format(after * 127.5),) if consistent[i] and after > step else ()
            image, error = to_pil(match_input(picture, large[0])), _consistency_error(large, small, step)
            rippled = (NEAR_ONE_NOTE,) if consistent[i] and not self.is_harmless else ()
            said = picture.notes + notes[i] + idle + rippled + off
            steps = (before * 127.5, after * 127.5)
            results.append(Result((image,), (self.seeds[i],), name, said, error, residual=steps))
        return results


def single_batches(
    upscaler: Upscaler, request: UpscaleRequest, prepare: Callable[[Sequence[UpscaleRequest]], Options]
) -> Iterator[tuple[UpscaleBatch, Options]]:
    """A batch of one for every picture to make, in order, with the options that `prepare` makes of its request.

    An upscaler whose kind has one answer for a picture gets each picture once, with its first seed.
    """
    for one, seeds in split_request(request):
        options, latents = prepare([one]), as_latents(one.image)
        if latents is None:
            picture = read_picture(one.image)
            low_res, pictures, factor = bleed_alpha(picture)[None], [picture], 1
        else:
            (low_res, factor), pictures = _latents_for(upscaler, latents, one), list[Picture]()
        size = one.target_size(factor * low_res.shape[-2], factor * low_res.shape[-1])
        for seed in seeds[:1] if upscaler.kind.one_answer else seeds:
            yield UpscaleBatch([one], pictures, [seed], low_res, size), options


def stack_requests(requests: Sequence[UpscaleRequest]) -> UpscaleBatch:
    """Requests with equal keys, each for one picture, as a batch."""
    pictures = [read_picture(request.image) for request in requests]
    seeds = [seeds_for(request.seed, 1)[0] for request in requests]
    low_res = torch.stack([bleed_alpha(picture) for picture in pictures])
    size = requests[0].target_size(low_res.shape[-2], low_res.shape[-1])
    return UpscaleBatch(requests, pictures, seeds, low_res, size)


def split_batch(x: Tensor) -> list[Tensor]:
    """Each picture of a batch as a batch of its own."""
    return [x[i : i + 1] for i in range(len(x))]


def upscale_key(request: UpscaleRequest, tokenizers: Sequence[Tokenizer] = ()) -> Hashable | None:
    """Equal for requests for pictures of one size that differ in prompts and seed alone, see `prompt_key`."""
    if not isinstance(request.image, str | Path | Image.Image):
        return None
    key = prompt_key(request, tokenizers, weighted=True)
    return None if key is None else (key, open_upright(request.image).size)


@dataclass(frozen=True)
class UpscalePlan:
    """How a picture reaches its size: in so many passes, and from there by resampling. Sizes are (height, width)."""

    size: tuple[int, int]
    target: tuple[int, int]
    scale: int  # of each pass
    passes: int

    @property
    def reached(self) -> tuple[int, int]:
        """What the last pass gives."""
        factor = self.scale**self.passes
        return self.size[0] * factor, self.size[1] * factor

    def __str__(self) -> str:
        (height, width), (high, wide), (above, across) = self.size, self.target, self.reached
        passes = f"{self.passes} pass{'es' * (self.passes != 1)} of x{self.scale}"
        resampled = "" if self.reached == self.target else f" to {across} x {above}, then reduced by {RESAMPLING}"
        return f"{width} x {height} -> {wide} x {high}: {passes}{resampled}"


RESAMPLING = "Lanczos"
OFF_NOTE = (
    "where the input is near black or white, or alternates from pixel to pixel, the result, reduced again, is off by "
    "up to {:.2g} of 255, as near as the range or the bound on the work allows"
)

IDLE_NOTE = "the picture has the size that is asked for: no network has changed it"
NEAR_ONE_NOTE = "made consistent, as asked; by a factor below 1.5 that can put ripples beside edges"


def plan_upscale(request: UpscaleRequest, size: tuple[int, int], scale: int) -> UpscalePlan:
    """The passes of `scale` that bring a picture of `size` (height, width) to the size that the request asks for."""
    target, passes = request.target_size(*size), 0
    while any(side * scale**passes < wanted for side, wanted in zip(size, target, strict=True)):
        passes += 1
    passes = max(passes, 1 if request.restore else 0)  # which the bundled model makes whatever the size
    return UpscalePlan(size, target, scale, passes)


def refuse_unused_options(kind: ModelKind, request: UpscaleRequest) -> None:
    """Raise Unsupported for options that are set and that a kind of upscaler has no use for."""
    if kind.one_step:
        if request.steps not in (None, 1):
            raise Unsupported(f"steps is {request.steps}, but {kind.label} makes detail in one; leave it")
        request = replace(request, steps=None)
    for option in fields(request):
        if option.name in kind.unused_options and getattr(request, option.name) != option.default:
            raise Unsupported(
                f"{option.name} is set, but {kind.label} has no use for it; leave it, or load another upscaler"
            )


def upscale(
    image: Any, by: float = 2.0, *, model: Location | None = None, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", engine: EngineName = "torch", watch: ProgressCallback = no_progress,
    progress: bool | None = None, **options: Unpack[UpscaleOptions],
) -> Result:  # fmt: skip
    """Enlarge one or several pictures: paths, bytes, open files, PIL images, arrays, tensors in -1..1, or `Latents`.

    `model` is a folder of the x2 latent upscaler or of the x4 upscaler, None the bundled model; `options` are
    `UpscaleRequest`'s. A tensor with 4 channels is taken for latents of Stable Diffusion 1 and 2. Raises InputError for
    pictures and options that cannot be used, CheckpointError for such models, and whatever `watch` does.
    """
    request = make_request(UpscaleRequest, image=image, by=by, **options)
    with progress_bar(watch, progress) as watching:
        return load_upscaler(model, device, precision, offload, engine)(request, watching)


def load_upscaler(
    model: Location | None = None,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
) -> Upscaler:
    """Load an upscaler once for many pictures; `model_index.json` says of which kind it is.

    None or "bundled" is the model that ships with the package. Raises Unsupported for a model of another kind.
    """
    return load_model(BUNDLED if model is None else model, device, precision, offload, "upscale", engine).tasks[
        "upscale"
    ]


def as_latents(source: Any) -> Latents | None:
    """Latents, where that is what was given; a bare tensor is taken for Stable Diffusion's."""
    if isinstance(source, Latents):
        return source
    if not isinstance(source, Tensor) or source.ndim < 3 or source.shape[-3] != 4:
        return None
    return Latents(source if source.ndim == 4 else source[None], "sd")


def _latents_for(upscaler: Upscaler, latents: Latents, request: UpscaleRequest) -> tuple[Tensor, int]:
    """(1, 4, h, w) that the upscaler takes, and how many pixels each stands for along a side."""
    if upscaler.input_latent_space is None or upscaler.vae is None:
        raise Unsupported(
            f"found latents with {latents.values.shape[1]} channels; {upscaler.kind.label} takes pictures only: decode "
            "them, or use an x2 checkpoint"
        )
    height, width = (upscaler.vae.downsample_factor * side for side in latents.values.shape[2:])
    if request.target_size(height, width) != (upscaler.scale * height, upscaler.scale * width):
        target = "x".join(str(side) for side in reversed(request.target_size(height, width)))
        asked = f"by is {request.by:g}" if request.by != upscaler.scale else f"{target} is asked for"
        raise Unsupported(f"{asked}; latents are enlarged by {upscaler.scale}, pictures by any factor")
    if len(latents) != 1:
        raise InputError(f"{len(latents)} latents in one tensor of a list; pass each by itself")
    return latents.values_for(upscaler.vae, upscaler.kind.label), upscaler.vae.downsample_factor


def _consistency_error(large: Tensor, small: Tensor, step: float) -> float:
    """The largest difference of the reduction of what is saved, in whole `step`s, to the input, in 8-bit steps."""
    return round(residual(large, small, lambda x: ((x.clamp(-1, 1) + 1) / step).round() * step - 1) * 127.5, 3)
