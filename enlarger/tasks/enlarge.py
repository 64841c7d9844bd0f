"""Pictures in, larger pictures out: what every upscaler needs around its network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.checkpoint.folder import Bundle, read_folder
from enlarger.checkpoint.schedulers import schedule_config
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers import SOLVERS, Control, dpm_adaptive
from enlarger.errors import InputError, Unsupported
from enlarger.fidelity import reduce, stay_true
from enlarger.images import Picture, read_picture, to_pil
from enlarger.requests import UpscaleRequest, filled, one_per, seeds_for
from enlarger.resize import resize
from enlarger.runtime.runtime import Offload, Runtime, pick_device, pick_precision
from enlarger.tasks.parts import Result, Text, Watch, decode, encode_text, pad_to, quiet
from enlarger.tasks.upscale_compact import CompactUpscale
from enlarger.tasks.upscale_latent import LatentUpscale, LatentUpscaleJob

BUNDLED = Path(__file__).parents[1] / "bundled"
GRANULARITY, LEAST = 32, 64  # pixels: the doubled latent halves three times, and reflects at its edges

Double = Callable[[Tensor, Noise], Tensor]  # (1, 3, H, W) in -1..1, or latents, to (1, 3, 2H, 2W)


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A loaded model; calling it with a request enlarges the request's pictures one after another."""

    task: LatentUpscale | CompactUpscale
    name: str

    def __call__(self, request: UpscaleRequest, watch: Watch = quiet) -> Result:
        """Each input gives `count` pictures of exactly `by` times its size, in order."""
        sources = _sources(request.image)
        prompts = one_per(request.prompt, len(sources), "prompt")
        negatives = one_per(request.negative, len(sources), "negative")
        seeds = seeds_for(request.seed, len(sources) * request.count)
        results = [
            self._enlarge(source, replace(request, prompt=prompt, negative=negative), seeds[i * request.count :], watch)
            for i, (source, prompt, negative) in enumerate(zip(sources, prompts, negatives, strict=True))
        ]
        worst = [r.consistency for r in results if r.consistency is not None]
        return Result(
            tuple(image for r in results for image in r.images),
            tuple(seeds),
            self.name,
            tuple(dict.fromkeys(note for r in results for note in r.notes)),
            max(worst, default=None),
        )

    def _enlarge(self, source: Any, request: UpscaleRequest, seeds: Sequence[int], watch: Watch) -> Result:
        """`count` pictures of one input, each computed alone, so that none depends on the others in its last bit."""
        seeds = tuple(seeds[: request.count])
        double, consistent = _prepare(self.task, request, watch)
        if isinstance(source, Tensor) and source.ndim > 2 and source.shape[-3] == 4:
            low = self._check_latents(source, request)
            made = [double(low, from_seeds([seed])).float().cpu()[0] for seed in seeds]
            return Result(tuple(to_pil(Picture(one)) for one in made), seeds, self.name)
        picture = read_picture(source)
        colour = _spread_colour(picture)[None]
        size = (round(picture.height * request.by), round(picture.width * request.by))
        made = [_grow(colour, size, double, from_seeds([seed]), consistent) for seed in seeds]
        images = tuple(to_pil(_like(picture, one[0])) for one in made)
        return Result(images, seeds, self.name, picture.notes, max(_consistency(one, colour) for one in made))

    def _check_latents(self, latents: Tensor, request: UpscaleRequest) -> Tensor:
        if isinstance(self.task, CompactUpscale):
            raise Unsupported(
                "found latents with 4 channels; the bundled model takes pictures only, use an x2 checkpoint"
            )
        if request.by != 2:
            raise Unsupported(f"by is {request.by:g}; latents are enlarged by 2, pictures by any factor")
        low = latents if latents.ndim == 4 else latents[None]
        if len(low) != 1:
            raise InputError(f"{len(low)} latents in one tensor of a list; pass each by itself")
        return low


def upscale(
    image: Any, by: float = 2.0, *, model: str | Path | None = None, device: str = "auto", precision: str = "auto",
    watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Enlarge one or several pictures: paths, PIL images, arrays, tensors in -1..1, or Stable Diffusion latents.

    `model` is a folder of the x2 latent upscaler, None the bundled model; `options` are `UpscaleRequest`'s. Raises
    InputError for pictures and options that cannot be used, CheckpointError for such models, and whatever `watch` does.
    """
    request = _request(UpscaleRequest, image=image, by=by, **options)
    return load_upscaler(model, device, precision)(request, watch)


def load_upscaler(
    model: str | Path | None = None, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Upscaler:
    """Load an upscaler once for many pictures. None or "bundled" is the model that ships with the package."""
    place = pick_device(device)
    runtime = Runtime(place, offload)
    if model is None or str(model) == "bundled":
        return Upscaler(compact_task(read_folder(BUNDLED, dtype=torch.float32), runtime), "bundled")
    bundle = read_folder(model, dtype=pick_precision(precision, place))
    kind = str(bundle.index.get("_class_name"))
    if kind == "CompactUpscale":
        return Upscaler(compact_task(bundle, runtime), str(model))
    if kind != "StableDiffusionLatentUpscalePipeline":
        raise Unsupported(f"{model}: holds a {kind}, expected StableDiffusionLatentUpscalePipeline, the x2 upscaler")
    return Upscaler(latent_task(bundle, runtime), str(model))


def latent_task(bundle: Bundle, runtime: Runtime) -> LatentUpscale:
    """The x2 latent upscaler from a folder's parts."""
    parts = bundle.components
    sampler = schedule_config(parts["scheduler"])
    return LatentUpscale(parts["tokenizer"], parts["text_encoder"], parts["unet"], parts["vae"], sampler, runtime)


def compact_task(bundle: Bundle, runtime: Runtime) -> CompactUpscale:
    """The bundled model from its folder's parts."""
    parts = {name: part.to(memory_format=torch.channels_last) for name, part in bundle.components.items()}
    return CompactUpscale(parts["predictor"], parts["autoencoder"], parts["unet"], runtime)


def _prepare(task: LatentUpscale | CompactUpscale, request: UpscaleRequest, watch: Watch) -> tuple[Double, bool]:
    """The request's options settled once: a function that doubles a batch, and whether to make it consistent."""
    if isinstance(task, CompactUpscale):
        return _prepare_compact(task, request, watch)
    options = filled(request, f"upscale/{request.profile or 'diffusers'}")
    if options["detail"] is not None:
        raise Unsupported("detail is for the bundled model; this one takes steps, guidance and noise_level")
    scale, masked = options["guidance"], request.profile == "original"
    text = text_for(
        task, [str(request.prompt)], [str(request.negative)], scale, long=request.long_prompt, original=masked
    )
    sampler = task.sampler.using(options["solver"])
    solver = ORIGINAL_ADAPTIVE if masked and sampler.solver == "dpm_adaptive" else SOLVERS[sampler.solver]
    guidance = Guidance(scale if masked or scale > 1 else 1.0)
    course = sampler.course(options["steps"])

    def double(low: Tensor, noise: Noise) -> Tensor:
        unit = task.vae.factor if low.shape[1] == 4 else 1  # pixels per element of `low`
        padded = pad_to(low, GRANULARITY // unit, LEAST // unit)
        job = LatentUpscaleJob(padded, text, course, solver, noise, guidance, request.noise_level, masked)
        picture = decode(task.vae, task(job, watch), task.runtime)
        return picture[..., : 2 * unit * low.shape[-2], : 2 * unit * low.shape[-1]]

    return double, bool(options["consistent"])


def _prepare_compact(task: CompactUpscale, request: UpscaleRequest, watch: Watch) -> tuple[Double, bool]:
    options = filled(request, "upscale/bundled")
    unused = {"prompt": "", "negative": "", "profile": None, "noise_level": 0.0, "guidance": None}
    for name, default in unused.items():
        if getattr(request, name) != default:
            raise Unsupported(
                f"{name} is set, but the bundled model has no use for it; load an x2 checkpoint, or leave it"
            )
    if options["solver"] not in SOLVERS:
        raise InputError(f"no solver is called {options['solver']!r}; there are {', '.join(SOLVERS)}")
    settings = {"detail": options["detail"], "steps": options["steps"], "solver": SOLVERS[options["solver"]]}
    return partial(task, **settings, watch=watch), bool(options["consistent"])


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


def _sources(image: Any) -> list[Any]:
    if isinstance(image, list | tuple):
        if not image:
            raise InputError("an empty list of pictures, expected at least one")
        return list(cast("Sequence[Any]", image))
    if isinstance(image, Tensor) and image.ndim == 4:
        return list(image)
    return [image]


def _request(kind: Callable[..., UpscaleRequest], **options: Any) -> UpscaleRequest:
    try:
        return kind(**options)
    except TypeError as error:
        raise InputError(f"{error}; the options are those of UpscaleRequest") from error


def _grow(colour: Tensor, size: tuple[int, int], double: Double, noise: Noise, consistent: bool) -> Tensor:
    """Doubled until at least `size`, brought to it exactly, and made consistent with the input."""
    large = colour
    while large.shape[-2] < size[0] or large.shape[-1] < size[1]:
        large = double(large, noise).float().cpu()
    large = resize(large, size, "lanczos") if large.shape[-2:] != size else large
    return stay_true(large, colour) if consistent else large


def _like(picture: Picture, colour: Tensor) -> Picture:
    """The enlarged colour with the alpha enlarged beside it, and all else as in the input."""
    size = (colour.shape[-2], colour.shape[-1])
    alpha = None if picture.alpha is None else resize(picture.alpha, size, "lanczos").clamp(0, 1)
    return replace(picture, colour=colour, alpha=alpha)


def _spread_colour(picture: Picture) -> Tensor:
    """The colour, with what nobody can see replaced by its visible surroundings, so that it cannot bleed in."""
    if picture.alpha is None:
        return picture.colour
    return _fill(picture.colour[None], picture.alpha[None])[0]


def _fill(colour: Tensor, weight: Tensor) -> Tensor:
    """Pixels of weight 0 take the weighted mean of ever larger surroundings (pull-push, Gortler et al. 1996)."""
    if bool((weight > 0).all()) or max(weight.shape[-2:]) == 1:
        return colour
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = _fill(F.avg_pool2d(colour * weight, 2, ceil_mode=True) / total.clamp(min=1e-8), total)
    return torch.where(
        weight > 0, colour, F.interpolate(coarse, scale_factor=2)[..., : colour.shape[-2], : colour.shape[-1]]
    )


def _consistency(large: Tensor, small: Tensor) -> float:
    """The largest difference of the 8-bit result's reduction to the input, in 8-bit steps."""
    rounded = ((large / 2 + 0.5).clamp(0, 1) * 255).round() / 127.5 - 1
    return round(float((reduce(rounded, small.shape[-2:]) - small).abs().max()) * 127.5, 3)
