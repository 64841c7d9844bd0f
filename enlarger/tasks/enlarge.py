"""Pictures in, larger pictures out: what every upscaler needs around its network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enlarger.checkpoint.folder import Bundle, read_folder
from enlarger.checkpoint.schedulers import schedule_config
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Course
from enlarger.diffusion.solvers import Control, dpm_adaptive
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.fidelity import reduce, stay_true
from enlarger.images import Picture, read_picture, to_pil
from enlarger.requests import X2_NOISE, UpscaleRequest, filled, request_of, seeds_for
from enlarger.resize import resize
from enlarger.runtime.runtime import Offload, Runtime, pick_device, pick_precision
from enlarger.tasks.denoise import Method
from enlarger.tasks.experts import Turn, turns_of
from enlarger.tasks.fill import spread_colour
from enlarger.tasks.input_quality import input_hint, is_graphics
from enlarger.tasks.latents import Latents
from enlarger.tasks.model import Model, model_of, words_of
from enlarger.tasks.parts import Result, Text, Watch, decode, encode_text, pad_to, quiet
from enlarger.tasks.reading import Location, checkpoint_at
from enlarger.tasks.sources import each_source, like
from enlarger.tasks.upscale_compact import CompactUpscale
from enlarger.tasks.upscale_latent import LatentUpscale, LatentUpscaleJob
from enlarger.tasks.upscale_pixel import PixelUpscaleJob, upscale_pixel

BUNDLED = Path(__file__).parents[1] / "bundled"
GRANULARITY, LEAST = 32, 64  # pixels: the doubled latent halves three times, and reflects at its edges
LARGE = 512 * 512  # pixels into the x4 upscaler, above which its memory is worth a note

Larger = Callable[[Tensor, Noise], Tensor]  # (1, 3, H, W) in -1..1, or latents, to (1, 3, 2H, 2W), or 4H and 4W for x4
GRAPHICS = (
    "taken for graphics: redrawn without detail, and not made consistent with the input, as no larger picture's half is "
    "like it"
)
ONE_ANSWER = "count is {count}, but the bundled model has one answer for a picture: one was made"


@dataclass(frozen=True)
class Passes:
    """How a picture is enlarged: once by `first`, then by `further` until it is large enough.

    `consistent` is None where each picture is to decide, see `is_graphics`. `always` enlarges even by 1.
    """

    first: Larger
    further: Larger
    consistent: bool | None
    always: bool = False


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A loaded model; calling it with a request enlarges the request's pictures one after another."""

    task: LatentUpscale | CompactUpscale | Model
    name: str

    @property
    def factor(self) -> int:
        """How many times wider and higher one pass makes a picture."""
        return self.task.networks.vae.factor if isinstance(self.task, Model) else 2

    def __call__(self, request: UpscaleRequest, watch: Watch = quiet) -> Result:
        """Each input gives `count` pictures of exactly `by` times its size, in order.

        One picture is computed at a time. The x4 upscaler takes it whole, without tiles, so that its memory grows with
        the picture. Latents are enlarged by 2, without a picture in between.
        """
        return each_source(request, partial(self._enlarge, watch))

    def turns(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[Turn, ...]:
        """The calls of the diffusion network that enlarge a picture of `size`, or its latents."""
        if isinstance(self.task, CompactUpscale):
            return ()  # the predictor is no diffusion network
        solver, course = _way(self.task, request)
        name = "x4" if isinstance(self.task, Model) else "x2"
        return turns_of([name], [0.0], solver, course.ladder) * _passes(size, request.by, self.factor)

    def _enlarge(self, watch: Watch, request: UpscaleRequest, seeds: tuple[int, ...]) -> Result:
        if isinstance(self.task, CompactUpscale):
            seeds = seeds[:1]
        passes = _prepare(self.task, [request], watch)
        if (latents := _latents_in(request.image)) is not None:
            low = self._check_latents(latents, request)
            made = [passes.first(low, from_seeds([seed])).float().cpu()[0] for seed in seeds]
            return Result(tuple(to_pil(Picture(one)) for one in made), seeds, self.name)
        picture = read_picture(request.image)
        colour = spread_colour(picture)[None]
        made = [_grow(colour, request.by, passes, from_seeds([seed])) for seed in seeds]
        return self._finish(request, picture, colour, made, seeds)

    def several(self, requests: Sequence[UpscaleRequest], watch: Watch = quiet) -> list[Result]:
        """One enlargement for each request, in one batch. They differ in prompts, seed and picture, but not in the
        picture's size, see `together`."""
        passes = _prepare(self.task, requests, watch)
        pictures = [read_picture(request.image) for request in requests]
        seeds = [seeds_for(request.seed, 1)[0] for request in requests]
        colour = torch.stack([spread_colour(picture) for picture in pictures])
        made = _rows(_grow(colour, requests[0].by, passes, from_seeds(seeds)))
        return [
            self._finish(request, picture, small, [large], (seed,))
            for request, picture, small, large, seed in zip(requests, pictures, _rows(colour), made, seeds, strict=True)
        ]

    def _finish(
        self, request: UpscaleRequest, picture: Picture, colour: Tensor, made: Sequence[Tensor], seeds: tuple[int, ...]
    ) -> Result:
        """The enlarged colours, each (1, 3, H, W), of one picture as pictures like it."""
        images = tuple(to_pil(like(picture, one[0])) for one in made)
        notes = picture.notes + self._notes(request, picture, made)
        return Result(images, seeds, self.name, notes, max(_consistency(one, colour) for one in made))

    def _notes(self, request: UpscaleRequest, picture: Picture, made: Sequence[Tensor]) -> tuple[str, ...]:
        if isinstance(self.task, CompactUpscale):
            return _compact_notes(request, picture, made)
        if not isinstance(self.task, Model):
            return ()
        large = picture.height * picture.width > LARGE
        whole = ("the x4 upscaler took the picture whole, without tiles: its memory grows with the picture",)
        return words_of(filled(request, "upscale/x4")).notes + (whole if large else ())

    def _check_latents(self, latents: Latents, request: UpscaleRequest) -> Tensor:
        """(1, 4, h, w) that the model takes."""
        if isinstance(self.task, CompactUpscale):
            raise Unsupported(
                "found latents with 4 channels; the bundled model takes pictures only, use an x2 checkpoint"
            )
        if isinstance(self.task, Model):
            raise Unsupported(
                "found latents; the x4 upscaler takes pictures only: decode them, or use an x2 checkpoint"
            )
        if request.by != 2:
            raise Unsupported(f"by is {request.by:g}; latents are enlarged by 2, pictures by any factor")
        if len(latents) != 1:
            raise InputError(f"{len(latents)} latents in one tensor of a list; pass each by itself")
        return latents.values_for(self.task.vae, "the x2 latent upscaler")


def upscale(
    image: Any, by: float = 2.0, *, model: Location | None = None, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Enlarge one or several pictures: paths, PIL images, arrays, tensors in -1..1, or `Latents`.

    `model` is a folder of the x2 latent upscaler or of the x4 upscaler, None the bundled model; `options` are
    `UpscaleRequest`'s. A tensor with 4 channels is taken for latents of Stable Diffusion 1 and 2. Raises InputError for
    pictures and options that cannot be used, CheckpointError for such models, and whatever `watch` does.
    """
    request = request_of(UpscaleRequest, image=image, by=by, **options)
    return load_upscaler(model, device, precision, offload)(request, watch)


def load_upscaler(
    model: Location | None = None, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Upscaler:
    """Load an upscaler once for many pictures; `model_index.json` says of which kind it is.

    None or "bundled" is the model that ships with the package.
    """
    place = pick_device(device)
    runtime = Runtime(place, offload)
    if model is None or str(model) == "bundled":
        return bundled(runtime)
    bundle = checkpoint_at(model).open(pick_precision(precision, place))
    made = upscaler_of(bundle, runtime, str(model))
    if made is None:
        raise Unsupported(
            f"{model}: holds a {bundle.index.get('_class_name')}, expected StableDiffusionLatentUpscalePipeline, the "
            "x2 upscaler, or StableDiffusionUpscalePipeline, the x4 upscaler"
        )
    return made


def upscaler_of(bundle: Bundle, runtime: Runtime, name: str) -> Upscaler | None:
    """The parts of an upscaler put in their places; None if they are of something else."""
    kind = str(bundle.index.get("_class_name"))
    if kind == "CompactUpscale":
        return Upscaler(compact_task(bundle, runtime), name)
    if kind == "StableDiffusionLatentUpscalePipeline":
        return Upscaler(latent_task(bundle, runtime), name)
    if kind == "StableDiffusionUpscalePipeline":
        return Upscaler(_pixel_task(bundle, runtime, name), name)
    return None


def bundled(runtime: Runtime) -> Upscaler:
    """The model that ships with the package."""
    return Upscaler(compact_task(read_folder(BUNDLED, dtype=torch.float32), runtime), "bundled")


def latent_task(bundle: Bundle, runtime: Runtime) -> LatentUpscale:
    """The x2 latent upscaler from a folder's parts."""
    parts = bundle.components
    sampler = schedule_config(parts["scheduler"])
    return LatentUpscale(
        parts["tokenizer"], parts["text_encoder"], parts["unet"], parts["vae"], sampler, runtime,
        parts.get("noise_frequencies"),
    )  # fmt: skip


def compact_task(bundle: Bundle, runtime: Runtime) -> CompactUpscale:
    """The bundled model from its folder's parts."""
    parts = {name: part.to(memory_format=torch.channels_last) for name, part in bundle.components.items()}
    return CompactUpscale(parts["predictor"], parts["detailer"], parts["restorer"], parts["graphics"], runtime)


def _pixel_task(bundle: Bundle, runtime: Runtime, name: str) -> Model:
    """The x4 upscaler from a folder's parts."""
    model = model_of(bundle, runtime, name)
    found = model.networks.config.in_channels
    expected = model.networks.vae.config.latent_channels + 3
    if model.low_res is None:
        raise CheckpointError(f"{name}: has no low_res_scheduler, the noise of its input; fetch the whole model")
    if found != expected:
        raise CheckpointError(f"{name}: the UNet takes {found} channels, expected {expected} of the x4 upscaler")
    return model


def _way(task: LatentUpscale | Model, request: UpscaleRequest) -> tuple[Solver, Course]:
    """How the request's solver walks, and where."""
    options = filled(request, "upscale/x4" if isinstance(task, Model) else f"upscale/{request.profile or 'diffusers'}")
    sampler = task.sampler.using(options["solver"])
    adaptive = request.profile == "original" and sampler.solver == "dpm_adaptive"
    return ORIGINAL_ADAPTIVE if adaptive else sampler.method(), sampler.course(options["steps"])


def _prepare(
    task: LatentUpscale | CompactUpscale | Model, requests: Sequence[UpscaleRequest], watch: Watch
) -> Passes:
    """The requests' options settled once: how to enlarge, and whether to make the result consistent.

    They differ in prompts at most; only the x2 upscaler may be told several.
    """
    request = requests[0]
    if isinstance(task, CompactUpscale):
        return _prepare_compact(task, request, watch)
    if request.detail is not None:
        raise Unsupported("detail is for the bundled model; this one takes steps, guidance and noise_level")
    if request.restore is not None:
        raise Unsupported("restore is for the bundled model; this one takes steps, guidance and noise_level")
    if isinstance(task, Model):
        return _prepare_pixel(task, request, watch)
    options, masked = filled(request, f"upscale/{request.profile or 'diffusers'}"), request.profile == "original"
    scale, level = options["guidance"], options["noise_level"]
    if level > X2_NOISE:
        raise InputError(f"noise_level is {level:g}, expected 0 to {X2_NOISE:g} for the x2 latent upscaler")
    prompts, negatives = [str(one.prompt) for one in requests], [str(one.negative) for one in requests]
    text = text_for(task, prompts, negatives, scale, long=request.long_prompt, original=masked)
    solver, course = _way(task, request)
    guidance = Guidance(scale if masked or scale > 1 else 1.0)

    def double(low: Tensor, noise: Noise) -> Tensor:
        unit = task.vae.factor if low.shape[1] == 4 else 1  # pixels per element of `low`
        padded = pad_to(low, GRANULARITY // unit, LEAST // unit)
        job = LatentUpscaleJob(padded, text, course, solver, noise, guidance, level, masked)
        picture = torch.cat([decode(task.vae, one, task.runtime) for one in _rows(task(job, watch))])
        return picture[..., : 2 * unit * low.shape[-2], : 2 * unit * low.shape[-1]]

    return Passes(double, double, bool(options["consistent"]))


def _prepare_pixel(model: Model, request: UpscaleRequest, watch: Watch) -> Passes:
    """The x4 upscaler; its noise level is a step of its own schedule for the input."""
    options, factor = filled(request, "upscale/x4"), model.networks.vae.factor
    level, low_res = options["noise_level"], model.low_res
    assert low_res is not None, "checked when the folder was read"
    if level != int(level) or level > model.most_noise:
        raise InputError(
            f"noise_level is {level:g}, expected a whole number from 0 to {model.most_noise} for the x4 upscaler"
        )
    if request.profile is not None:
        raise Unsupported(f"profile is {request.profile!r}; only the x2 latent upscaler has profiles, leave it")
    solver, course = _way(model, request)
    networks, words = model.on(course), words_of(options)

    def quadruple(low: Tensor, noise: Noise) -> Tensor:
        height, width = low.shape[-2:]
        told = model.tell_one(words, (factor * height, factor * width))
        padded = pad_to(low, model.granularity // factor)
        job = PixelUpscaleJob(told, padded, Method(course, solver, noise), int(level), low_res)
        return networks.decode(upscale_pixel(networks, job, watch))[..., : factor * height, : factor * width]

    return Passes(quadruple, quadruple, bool(options["consistent"]))


def _prepare_compact(task: CompactUpscale, request: UpscaleRequest, watch: Watch) -> Passes:
    """The bundled model; a picture is restored once, before it is enlarged further."""
    options = filled(request, "upscale/bundled")
    unused = {"prompt": "", "negative": "", "profile": None, "noise_level": None, "guidance": None, "solver": None}
    for name, default in unused.items():
        if getattr(request, name) != default:
            raise Unsupported(
                f"{name} is set, but the bundled model has no use for it; load an x2 checkpoint, or leave it"
            )
    if request.steps not in (None, 1):
        raise Unsupported(f"steps is {request.steps}, but the bundled model makes detail in one; leave it")
    detail, restore = options["detail"], options["restore"]

    def first(small: Tensor, _: Noise) -> Tensor:
        return task(small, detail=detail, restore=restore, watch=watch)

    def further(small: Tensor, _: Noise) -> Tensor:
        return task(small, detail=detail, watch=watch)

    consistent = request.consistent if restore == 0 or request.consistent is not None else False
    return Passes(first, further, consistent, always=restore > 0)


def _compact_notes(request: UpscaleRequest, picture: Picture, made: Sequence[Tensor]) -> tuple[str, ...]:
    """What to know of the bundled model's result."""
    options, notes = filled(request, "upscale/bundled"), list[str]()
    if request.count > 1:
        notes.append(ONE_ANSWER.format(count=request.count))
    if options["restore"] == 0:
        graphics = request.by > 1 and is_graphics(made[0], spread_colour(picture)[None])
        notes += [GRAPHICS] if graphics and not request.consistent else []
        hint = None if graphics else input_hint(picture.colour)
        notes += [] if hint is None else [hint]
    return tuple(notes)


def text_for(
    task: LatentUpscale, prompts: list[str], negatives: list[str], scale: float, *, long: bool, original: bool
) -> Text:
    """Which prompts the branches of the guidance see. At scale 0 the prompt is empty; in the original that is the
    negative prompt's place."""
    guided = scale not in (0, 1) if original else scale > 1
    if scale == 0:
        prompts = negatives if original else [""] * len(prompts)
    return encode_text(
        task.tokenizer, task.text_encoder, task.runtime, prompts, negatives if guided else None, "last", long
    )


ORIGINAL_ADAPTIVE: Solver = partial(
    dpm_adaptive, eta=1.0, control=Control(0.05 * 0.25, 0.25 / 127.5, proportional=0.2, integral=0.4)
)
"""The original notebook's default sampler: tolerance scale 0.25, eta 1."""


def _rows(x: Tensor) -> list[Tensor]:
    """Each picture of a batch as a batch of its own."""
    return [x[i : i + 1] for i in range(len(x))]


def _latents_in(source: Any) -> Latents | None:
    """Latents, where that is what was given; a bare tensor is taken for Stable Diffusion's."""
    if isinstance(source, Latents):
        return source
    if not isinstance(source, Tensor) or source.ndim < 3 or source.shape[-3] != 4:
        return None
    return Latents(source if source.ndim == 4 else source[None], "sd")


def _passes(size: tuple[int, int], by: float, factor: int) -> int:
    """How often `_grow` enlarges."""
    wanted, count = tuple(round(side * by) for side in size), 0
    while any(side * factor**count < goal for side, goal in zip(size, wanted, strict=True)):
        count += 1
    return count


def _grow(colour: Tensor, by: float, passes: Passes, noise: Noise) -> Tensor:
    """Enlarged until at least `by` times as large, brought to that size exactly, and made consistent with the input."""
    large, size = colour, (round(colour.shape[-2] * by), round(colour.shape[-1] * by))
    if passes.always or large.shape[-2] < size[0] or large.shape[-1] < size[1]:
        large = passes.first(large, noise).float().cpu()
    while large.shape[-2] < size[0] or large.shape[-1] < size[1]:
        large = passes.further(large, noise).float().cpu()
    large = resize(large, size, "lanczos") if large.shape[-2:] != size else large
    if passes.consistent is not None:
        return stay_true(large, colour) if passes.consistent else large
    rows = zip(_rows(large), _rows(colour), strict=True)
    return torch.cat([one if is_graphics(one, small) else stay_true(one, small) for one, small in rows])


def _consistency(large: Tensor, small: Tensor) -> float:
    """The largest difference of the 8-bit result's reduction to the input, in 8-bit steps."""
    rounded = ((large / 2 + 0.5).clamp(0, 1) * 255).round() / 127.5 - 1
    return round(float((reduce(rounded, small.shape[-2:]) - small).abs().max()) * 127.5, 3)
