"""Pictures in, larger pictures out: what every upscaler needs around its network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.folder.load import read_folder
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.diffusion.solvers import PIDStepSizeController, dpm_adaptive
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.image.consistency import downscale
from enlarger.image.fill import bleed_alpha
from enlarger.image.picture import Picture, read_picture, to_pil
from enlarger.requests import X2_MAX_NOISE_LEVEL, UpscaleOptions, UpscaleRequest, make_request, seeds_for, with_defaults
from enlarger.runtime.runtime import Offload, Runtime, resolve_device, resolve_dtype
from enlarger.tasks.conditioning import GuidedText, encode_guided_prompts, prompt_spec_from_options
from enlarger.tasks.inputs import Latents, match_input, split_request
from enlarger.tasks.latent_diffusion import decode_latents, pad_to_multiple
from enlarger.tasks.loading import Location, as_checkpoint
from enlarger.tasks.result import ProgressCallback, Result, join_results, no_progress, report_steps
from enlarger.tasks.sampling import NetworkCall, SamplingPlan, trace_network_calls
from enlarger.tasks.stable_diffusion import StableDiffusion, build_stable_diffusion
from enlarger.tasks.upscale.bundled import BundledUpscaler, bundled_notes, make_bundled_plan
from enlarger.tasks.upscale.latent_x2 import LatentUpscaleJob, LatentUpscaler
from enlarger.tasks.upscale.pixel_x4 import PixelUpscaleJob, upscale_pixel_x4
from enlarger.tasks.upscale.plan import Upscaled, UpscalePlan, split_batch, split_upscaled, upscale_to

BUNDLED_FOLDER = Path(__file__).parents[2] / "bundled"
X2_SIZE_MULTIPLE, X2_MIN_SIZE = 32, 64  # pixels: the doubled latent halves three times, and reflects at its edges
X4_LARGE_PIXELS = 512 * 512  # pixels into the x4 upscaler, above which its memory is worth a note


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A loaded model; calling it with a request enlarges the request's pictures one after another."""

    task: LatentUpscaler | BundledUpscaler | StableDiffusion
    name: str

    @property
    def scale(self) -> int:
        """How many times wider and higher one pass makes a picture."""
        return self.task.latent_diffusion.vae.downsample_factor if isinstance(self.task, StableDiffusion) else 2

    def __call__(self, request: UpscaleRequest, watch: ProgressCallback = no_progress) -> Result:
        """Each input gives `count` pictures of exactly `by` times its size, in order.

        One picture is computed at a time. The x4 upscaler takes it whole, without tiles, so that its memory grows with
        the picture. Latents are enlarged by 2, without a picture in between.
        """
        return join_results([self._upscale(watch, one, seeds) for one, seeds in split_request(request)])

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCall, ...]:
        """The calls of the diffusion network that enlarge a picture of `size`, or its latents."""
        if isinstance(self.task, BundledUpscaler):
            return ()  # the predictor is no diffusion network
        solver, sigma_schedule = _plan(self.task, request)
        name = "x4" if isinstance(self.task, StableDiffusion) else "x2"
        return trace_network_calls([name], [0.0], solver, sigma_schedule.sigmas) * _num_passes(
            size, request.by, self.scale
        )

    def _upscale(self, watch: ProgressCallback, request: UpscaleRequest, seeds: tuple[int, ...]) -> Result:
        seeds = seeds[:1] if isinstance(self.task, BundledUpscaler) else seeds
        plan = _make_plan(self.task, [request], watch)
        if (latents := _as_latents(request.image)) is not None:
            latent_values = self._check_latents(latents, request)
            outputs = [plan.upscale_fn(Upscaled(latent_values), from_seeds([seed])).pixels for seed in seeds]
            return Result(tuple(to_pil(Picture(one.float().cpu()[0])) for one in outputs), seeds, self.name)
        picture = read_picture(request.image)
        colour = bleed_alpha(picture)[None]
        outputs = [upscale_to(colour, request.by, plan, from_seeds([seed])) for seed in seeds]
        return self._finish(request, picture, colour, outputs, seeds)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        """One enlargement for each request, in one batch. They differ in prompts, seed and picture, but not in the
        picture's size, see `together`."""
        plan = _make_plan(self.task, requests, watch)
        pictures = [read_picture(request.image) for request in requests]
        seeds = [seeds_for(request.seed, 1)[0] for request in requests]
        colour = torch.stack([bleed_alpha(picture) for picture in pictures])
        outputs = split_upscaled(upscale_to(colour, requests[0].by, plan, from_seeds(seeds)))
        return [
            self._finish(request, picture, small, [large], (seed,))
            for request, picture, small, large, seed in zip(
                requests, pictures, split_batch(colour), outputs, seeds, strict=True
            )
        ]

    def _finish(
        self,
        request: UpscaleRequest,
        picture: Picture,
        colour: Tensor,
        upscaled: Sequence[Upscaled],
        seeds: tuple[int, ...],
    ) -> Result:
        """The enlarged colours, each (1, 3, H, W), of one picture as pictures like it."""
        images = tuple(to_pil(match_input(picture, one.pixels[0])) for one in upscaled)
        notes = picture.notes + self._notes(request, picture, upscaled[0])
        return Result(images, seeds, self.name, notes, max(_consistency_error(one.pixels, colour) for one in upscaled))

    def _notes(self, request: UpscaleRequest, picture: Picture, upscaled: Upscaled) -> tuple[str, ...]:
        if isinstance(self.task, BundledUpscaler):
            return bundled_notes(request, picture.colour, any(upscaled.graphics or ()))
        if not isinstance(self.task, StableDiffusion):
            return ()
        large = picture.height * picture.width > X4_LARGE_PIXELS
        whole = ("the x4 upscaler took the picture whole, without tiles: its memory grows with the picture",)
        return prompt_spec_from_options(with_defaults(request, "upscale/x4")).notes + (whole if large else ())

    def _check_latents(self, latents: Latents, request: UpscaleRequest) -> Tensor:
        """(1, 4, h, w) that the model takes."""
        if isinstance(self.task, BundledUpscaler):
            raise Unsupported(
                "found latents with 4 channels; the bundled model takes pictures only, use an x2 checkpoint"
            )
        if isinstance(self.task, StableDiffusion):
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
    offload: Offload = "none", watch: ProgressCallback = no_progress, **options: Unpack[UpscaleOptions],
) -> Result:  # fmt: skip
    """Enlarge one or several pictures: paths, PIL images, arrays, tensors in -1..1, or `Latents`.

    `model` is a folder of the x2 latent upscaler or of the x4 upscaler, None the bundled model; `options` are
    `UpscaleRequest`'s. A tensor with 4 channels is taken for latents of Stable Diffusion 1 and 2. Raises InputError for
    pictures and options that cannot be used, CheckpointError for such models, and whatever `watch` does.
    """
    request = make_request(UpscaleRequest, image=image, by=by, **options)
    return load_upscaler(model, device, precision, offload)(request, watch)


def load_upscaler(
    model: Location | None = None, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Upscaler:
    """Load an upscaler once for many pictures; `model_index.json` says of which kind it is.

    None or "bundled" is the model that ships with the package.
    """
    torch_device = resolve_device(device)
    runtime = Runtime(torch_device, offload)
    if model is None or str(model) == "bundled":
        return load_bundled(runtime)
    bundle = as_checkpoint(model).open(resolve_dtype(precision, torch_device))
    upscaler = build_upscaler(bundle, runtime, str(model))
    if upscaler is None:
        raise Unsupported(
            f"{model}: holds a {bundle.index.get('_class_name')}, expected StableDiffusionLatentUpscalePipeline, the "
            "x2 upscaler, or StableDiffusionUpscalePipeline, the x4 upscaler"
        )
    return upscaler


def build_upscaler(bundle: PipelineComponents, runtime: Runtime, name: str) -> Upscaler | None:
    """The parts of an upscaler put in their places; None if they are of something else."""
    pipeline_class = str(bundle.index.get("_class_name"))
    if pipeline_class == "CompactUpscale":
        return Upscaler(build_bundled(bundle, runtime), name)
    if pipeline_class == "StableDiffusionLatentUpscalePipeline":
        return Upscaler(build_latent_x2(bundle, runtime), name)
    if pipeline_class == "StableDiffusionUpscalePipeline":
        return Upscaler(_build_pixel_x4(bundle, runtime, name), name)
    return None


def load_bundled(runtime: Runtime) -> Upscaler:
    """The model that ships with the package."""
    return Upscaler(build_bundled(read_folder(BUNDLED_FOLDER, dtype=torch.float32), runtime), "bundled")


def build_latent_x2(bundle: PipelineComponents, runtime: Runtime) -> LatentUpscaler:
    """The x2 latent upscaler from a folder's parts."""
    parts = bundle.components
    sampler = sampler_from_config(parts["scheduler"])
    return LatentUpscaler(
        parts["tokenizer"], parts["text_encoder"], parts["unet"], parts["vae"], sampler, runtime,
        parts.get("noise_frequencies"),
    )  # fmt: skip


def build_bundled(bundle: PipelineComponents, runtime: Runtime) -> BundledUpscaler:
    """The bundled model from its folder's parts."""
    parts = {name: part.to(memory_format=torch.channels_last) for name, part in bundle.components.items()}
    return BundledUpscaler(parts["predictor"], parts["detailer"], parts["restorer"], parts["graphics"], runtime)


def _build_pixel_x4(bundle: PipelineComponents, runtime: Runtime, name: str) -> StableDiffusion:
    """The x4 upscaler from a folder's parts."""
    model = build_stable_diffusion(bundle, runtime, name)
    in_channels = model.latent_diffusion.unet_config.in_channels
    expected = model.latent_diffusion.vae.config.latent_channels + 3
    if model.low_res_schedule is None:
        raise CheckpointError(f"{name}: has no low_res_scheduler, the noise of its input; fetch the whole model")
    if in_channels != expected:
        raise CheckpointError(f"{name}: the UNet takes {in_channels} channels, expected {expected} of the x4 upscaler")
    return model


def _plan(task: LatentUpscaler | StableDiffusion, request: UpscaleRequest) -> tuple[Solver, SigmaSchedule]:
    """How the request's solver walks, and where."""
    options = with_defaults(
        request, "upscale/x4" if isinstance(task, StableDiffusion) else f"upscale/{request.profile or 'diffusers'}"
    )
    sampler = task.sampler.with_solver(options["solver"])
    is_original_adaptive = request.profile == "original" and sampler.solver == "dpm_adaptive"
    return ORIGINAL_ADAPTIVE if is_original_adaptive else sampler.make_solver(), sampler.sigma_schedule(
        options["steps"]
    )


def _make_plan(
    task: LatentUpscaler | BundledUpscaler | StableDiffusion,
    requests: Sequence[UpscaleRequest],
    watch: ProgressCallback,
) -> UpscalePlan:
    """The requests' options settled once: how to enlarge, and whether to make the result consistent.

    They differ in prompts at most; only the x2 upscaler may be told several.
    """
    request = requests[0]
    if isinstance(task, BundledUpscaler):
        return make_bundled_plan(task, request, watch)
    if request.detail is not None:
        raise Unsupported("detail is for the bundled model; this one takes steps, guidance and noise_level")
    if request.restore is not None:
        raise Unsupported("restore is for the bundled model; this one takes steps, guidance and noise_level")
    if isinstance(task, StableDiffusion):
        return _make_pixel_x4_plan(task, request, watch)
    options, is_original = (
        with_defaults(request, f"upscale/{request.profile or 'diffusers'}"),
        request.profile == "original",
    )
    scale, noise_level = options["guidance"], options["noise_level"]
    if noise_level > X2_MAX_NOISE_LEVEL:
        raise InputError(
            f"noise_level is {noise_level:g}, expected 0 to {X2_MAX_NOISE_LEVEL:g} for the x2 latent upscaler"
        )
    prompts, negatives = [str(one.prompt) for one in requests], [str(one.negative) for one in requests]
    text = encode_x2_prompts(task, prompts, negatives, scale, long_prompt=request.long_prompt, is_original=is_original)
    solver, sigma_schedule = _plan(task, request)
    guidance = Guidance(scale if is_original or scale > 1 else 1.0)

    def upscale_x2(given: Upscaled, noise: Noise) -> Upscaled:
        low_res = given.pixels
        pixels_per_element = task.vae.downsample_factor if low_res.shape[1] == 4 else 1  # pixels per element of `low`
        padded = pad_to_multiple(low_res, X2_SIZE_MULTIPLE // pixels_per_element, X2_MIN_SIZE // pixels_per_element)
        job = LatentUpscaleJob(padded, text, sigma_schedule, solver, noise, guidance, noise_level, is_original)
        decoded = torch.cat(
            [
                decode_latents(task.vae, one, task.runtime)
                for one in split_batch(task(job, report_steps(watch, sigma_schedule.steps)))
            ]
        )
        height, width = (2 * pixels_per_element * side for side in low_res.shape[-2:])
        return Upscaled(decoded[..., :height, :width])

    return UpscalePlan(upscale_x2, bool(options["consistent"]))


def _make_pixel_x4_plan(model: StableDiffusion, request: UpscaleRequest, watch: ProgressCallback) -> UpscalePlan:
    """The x4 upscaler; its noise level is a step of its own schedule for the input."""
    options, factor = with_defaults(request, "upscale/x4"), model.latent_diffusion.vae.downsample_factor
    noise_level, low_res_schedule = options["noise_level"], model.low_res_schedule
    assert low_res_schedule is not None, "checked when the folder was read"
    if noise_level != int(noise_level) or noise_level > model.max_noise_level:
        raise InputError(
            f"noise_level is {noise_level:g}, expected a whole number from 0 to {model.max_noise_level} for the x4 "
            "upscaler"
        )
    if request.profile is not None:
        raise Unsupported(f"profile is {request.profile!r}; only the x2 latent upscaler has profiles, leave it")
    solver, sigma_schedule = _plan(model, request)
    latent_diffusion, prompt_spec = model.bind_schedule(sigma_schedule), prompt_spec_from_options(options)

    def upscale_x4(given: Upscaled, noise: Noise) -> Upscaled:
        low_res = given.pixels
        height, width = low_res.shape[-2:]
        conditioning = model.condition_one(prompt_spec, (factor * height, factor * width))
        padded = pad_to_multiple(low_res, model.size_multiple // factor)
        job = PixelUpscaleJob(
            conditioning, padded, SamplingPlan(sigma_schedule, solver, noise), int(noise_level), low_res_schedule
        )
        decoded = latent_diffusion.decode(
            upscale_pixel_x4(latent_diffusion, job, report_steps(watch, sigma_schedule.steps))
        )
        return Upscaled(decoded[..., : factor * height, : factor * width])

    return UpscalePlan(upscale_x4, bool(options["consistent"]))


def encode_x2_prompts(
    task: LatentUpscaler,
    prompts: list[str],
    negatives: list[str],
    scale: float,
    *,
    long_prompt: bool,
    is_original: bool,
) -> GuidedText:
    """Which prompts the branches of the guidance see. At scale 0 the prompt is empty; in the original that is the
    negative prompt's place."""
    is_guided = scale not in (0, 1) if is_original else scale > 1
    if scale == 0:
        prompts = negatives if is_original else [""] * len(prompts)
    return encode_guided_prompts(
        task.tokenizer, task.text_encoder, task.runtime, prompts, negatives if is_guided else None, "last", long_prompt
    )


ORIGINAL_ADAPTIVE: Solver = partial(
    dpm_adaptive, eta=1.0, step_size_controller=PIDStepSizeController(0.05 * 0.25, 0.25 / 127.5, pcoeff=0.2, icoeff=0.4)
)
"""The original notebook's default sampler: tolerance scale 0.25, eta 1."""


def _as_latents(source: Any) -> Latents | None:
    """Latents, where that is what was given; a bare tensor is taken for Stable Diffusion's."""
    if isinstance(source, Latents):
        return source
    if not isinstance(source, Tensor) or source.ndim < 3 or source.shape[-3] != 4:
        return None
    return Latents(source if source.ndim == 4 else source[None], "sd")


def _num_passes(size: tuple[int, int], scale: float, factor: int) -> int:
    """How often `_grow` enlarges."""
    target_size, count = tuple(round(side * scale) for side in size), 0
    while any(side * factor**count < goal for side, goal in zip(size, target_size, strict=True)):
        count += 1
    return count


def _consistency_error(large: Tensor, small: Tensor) -> float:
    """The largest difference of the 8-bit result's reduction to the input, in 8-bit steps."""
    rounded = ((large / 2 + 0.5).clamp(0, 1) * 255).round() / 127.5 - 1
    return round(float((downscale(rounded, small.shape[-2:]) - small).abs().max()) * 127.5, 3)
