"""Pictures and masks in, repainted pictures out, by a network made for it (9 channels) or an ordinary one (4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.diffusion.noise import Noise, PerSampleGenerators
from enlarger.errors import InputError
from enlarger.image.generation import Json
from enlarger.image.inpaint_canvas import ChangedPixels, InpaintCanvas, prepare_canvas
from enlarger.image.resize import resize
from enlarger.requests import InpaintRequest, as_request, make_request, with_defaults
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload
from enlarger.target_size import scaled_side
from enlarger.tasks.image_to_image import truncate_by_strength
from enlarger.tasks.inputs import ImageSource, split_images, split_request
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning, prompt_spec_from_options
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion, expand_to_batch, pad_to_multiple
from enlarger.tasks.latent_diffusion.sampling import (
    KnownRegion,
    SamplingPlan,
    sample_latents,
    trace_network_calls,
)
from enlarger.tasks.loading.adapters import adapt
from enlarger.tasks.loading.load import Location
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, load_stable_diffusion
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import describe_pictures
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import ProgressCallback, join_flags, no_progress, report_steps
from enlarger.verb_options import InpainterOptions, InpaintOptions

LOW_COVERAGE, HIGH_COVERAGE = 0.1, 99.9  # percent of coverage beyond which the mask's sense is doubtful
LARGE_PIXEL_RATIO = 4  # times the pixels that the model was trained on


@dataclass(frozen=True, eq=False)
class InpaintJob:
    """`image` (N, 3, H, W) in -1..1 or its latents, `mask` (N, 1, H, W) from 0 keep to 1 repaint; N divides B.

    `masked_image` replaces the picture with its covered part grey, or that picture's latents. Noise of the first level
    is added to the picture unless `from_pure_noise`. `is_noisy` says that `image` is latents with that noise already. A
    `soft_mask` is averaged over each latent's pixels, otherwise one of them decides. `initial_noise` replaces the unit
    noise (B, C, h, w). `encode_masked_image` encodes the masked picture for a network of 4 channels too, which does not
    need it.
    """

    conditioning: GuidedConditioning
    image: Tensor
    mask: Tensor
    plan: SamplingPlan
    masked_image: Tensor | None = None
    from_pure_noise: bool = False
    is_noisy: bool = False
    soft_mask: bool = False
    initial_noise: Tensor | None = None
    encode_masked_image: bool = False


@dataclass(frozen=True, eq=False)
class PreparedInpaint:
    """A job made ready: the first latents, the conditioning, and the region that stays as it is.

    `mask` (B, 1, h, w) and the latents of the masked picture (B, C, h, w) are for whoever wants to see them; the latter
    are None where nothing needs them.
    """

    conditioning: GuidedConditioning
    latents: Tensor
    mask: Tensor
    masked_image_latents: Tensor | None = None
    known_region: KnownRegion | None = None


def prepare_inpaint(latent_diffusion: LatentDiffusion, job: InpaintJob) -> PreparedInpaint:
    """All that comes before the first step.

    Noise is drawn for the encoding of the picture (with 9 channels only where the start needs it), for the start, and
    for the encoding of the masked picture. Results of one picture share what is drawn for its encodings, unless each
    has a generator of its own.
    """
    takes_mask, tokens = _takes_mask(latent_diffusion), job.conditioning.positive.tokens
    assert tokens is not None, "Stable Diffusion always takes tokens"
    count, noise, sigma_schedule = len(tokens), job.plan.noise, job.plan.sigma_schedule
    if isinstance(noise, PerSampleGenerators):
        job = replace(job, image=expand_to_batch(job.image, count), mask=expand_to_batch(job.mask, count))
    image_latents = (
        None
        if takes_mask and job.from_pure_noise
        else expand_to_batch(latent_diffusion.encode(job.image, noise), count)
    )
    size = _latent_size(job, latent_diffusion)
    unit_noise = latent_diffusion.draw_noise(latent_diffusion.latent_shape(count, size), noise, job.initial_noise)
    latents = unit_noise * sigma_schedule.init_noise_sigma
    if image_latents is not None and not job.from_pure_noise:
        latents = image_latents if job.is_noisy else image_latents + sigma_schedule.sigmas[0] * unit_noise
    mask = expand_to_batch(latent_mask(job.mask, size, soft_mask=job.soft_mask).to(unit_noise), count)
    masked_latents = _masked_latents(latent_diffusion, job, noise, encode=takes_mask or job.encode_masked_image)
    if takes_mask:
        assert masked_latents is not None
        conditioning = job.conditioning.with_fields(concat=torch.cat([mask, expand_to_batch(masked_latents, count)], 1))
        return PreparedInpaint(conditioning, latents, mask, expand_to_batch(masked_latents, count))
    assert image_latents is not None
    known_region = KnownRegion(image_latents, unit_noise, mask)
    return PreparedInpaint(
        job.conditioning,
        latents,
        mask,
        None if masked_latents is None else expand_to_batch(masked_latents, count),
        known_region,
    )


def latent_mask(mask: Tensor, latent_size: tuple[int, int], *, soft_mask: bool = False) -> Tensor:
    """A mask (N, 1, H, W) at the latents' size."""
    return F.interpolate(mask, latent_size, mode="area" if soft_mask else "nearest")


def _takes_mask(latent_diffusion: LatentDiffusion) -> bool:
    """Whether the network takes the mask and the masked picture; InputError if it can do neither."""
    in_channels, channels = latent_diffusion.unet_config.in_channels, latent_diffusion.vae.config.latent_channels
    if in_channels not in (channels, 2 * channels + 1):
        raise InputError(
            f"the UNet takes {in_channels} channels, expected {2 * channels + 1} of an inpainting checkpoint or "
            f"{channels} "
            "of an ordinary one"
        )
    return in_channels != channels


def _latent_size(job: InpaintJob, latent_diffusion: LatentDiffusion) -> tuple[int, int]:
    factor = (
        1
        if job.image.shape[1] == latent_diffusion.vae.config.latent_channels
        else latent_diffusion.vae.downsample_factor
    )
    return job.image.shape[2] // factor, job.image.shape[3] // factor


def _masked_latents(latent_diffusion: LatentDiffusion, job: InpaintJob, noise: Noise, *, encode: bool) -> Tensor | None:
    """Latents of the picture with middle grey where the mask covers at least half.

    Where they are not wanted, None; the noise of their encoding is drawn all the same, so that what follows does not
    depend on that.
    """
    if job.masked_image is not None:
        return latent_diffusion.encode(job.masked_image, noise)
    if encode and job.image.shape[1] != 3:
        raise InputError("found latents without `masked`; an inpainting network needs the picture to hide a part of it")
    if encode:
        return latent_diffusion.encode(job.image * (job.mask < 0.5).to(job.image), noise)
    latent_diffusion.draw_noise(
        latent_diffusion.latent_shape(max(len(job.image), len(job.mask)), _latent_size(job, latent_diffusion)), noise
    )
    return None


@dataclass(frozen=True)
class InpaintResult:
    """Results of their inputs' kind, mode, type and size, and what is to be known of each, in the same order.

    A path gives a PIL image. `masks` are those that were used, white is repainted; `coverage` is their mean in percent.
    """

    images: tuple[Any, ...]
    seeds: tuple[int, ...]
    model: str
    notes: tuple[str, ...]
    changed: tuple[ChangedPixels, ...]
    coverage: tuple[float, ...]
    masks: tuple[Image.Image, ...]
    flagged: tuple[bool, ...] | None = None  # by the checkpoint's safety checker; None: it has none, see `notes`
    generation: tuple[Json, ...] = ()  # what made each, see `image.generation`

    @property
    def image(self) -> Any:
        """The first result."""
        return self.images[0]

    @property
    def mask(self) -> Image.Image:
        """The first mask."""
        return self.masks[0]


@dataclass(frozen=True, eq=False)
class Inpainter:
    """A loaded checkpoint; calling it with a request repaints the request's pictures one after another."""

    model: StableDiffusion

    def __call__(
        self,
        request: InpaintRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[InpainterOptions],
    ) -> InpaintResult:
        """Each input gives `count` results, in order. One is computed at a time, so that it depends on no other."""
        request = as_request(InpaintRequest, request, options)
        model, adapted = adapt(self.model, request)
        if model is not self.model:
            made = replace(self, model=model)(adapted, watch)
            return replace(made, generation=describe_pictures(made.seeds, self.model, "inpaint", request))
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        masks = [None] if request.mask is None else split_images(request.mask)
        sharing = replace(self, model=self.model.sharing_prompts())
        results: list[InpaintResult] = []
        for one, seeds in split_request(request, mask=masks):
            settings = with_defaults(one, "inpaint") | {"fill": one.fill}  # None differs for mask and border
            canvas, painted = prepare_canvas(one), list[Tensor]()
            for seed in seeds if canvas.is_changed else ():
                filled = canvas.fill(settings["fill"], seed)
                if one.strength > 0:
                    repainted = sharing._run(*self._crop(canvas, filled, settings), settings, seed, watch)
                    filled = canvas.replace_box(filled, repainted[0])
                painted.append(filled)
            results.append(self._finish(one, canvas, settings, seeds, painted))
        made = _join_results(self.model.name, results)
        return replace(made, generation=describe_pictures(made.seeds, self.model, "inpaint", request))

    def _crop(self, canvas: InpaintCanvas, filled: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The box to work on and its mask, (1, 3, h, w) and (1, 1, h, w), with `crop` at the size of the training."""
        crop, mask = filled[canvas.box_slices], canvas.mask.weights[canvas.box_slices]
        if options["crop"] is not None:
            size = self._trained_size((crop.shape[-2], crop.shape[-1]))
            crop, mask = resize(crop, size, "lanczos").clamp(-1, 1), resize(mask, size).clamp(0, 1)
        return crop[None], mask[None]

    def _finish(
        self,
        request: InpaintRequest,
        canvas: InpaintCanvas,
        options: Mapping[str, Any],
        seeds: tuple[int, ...],
        painted: Sequence[Tensor],
    ) -> InpaintResult:
        """The results of one input; where nothing was painted, the input."""
        flagged, safety_notes = self.model.check_safety(painted) if painted else (None, ())
        finished = [canvas.finish(colour) for colour in painted]
        finished = finished or [(canvas.original.upright, ChangedPixels(0, None)) for _ in seeds]
        notes = (
            *canvas.original.notes,
            *canvas.mask.notes,
            *prompt_spec_from_options(options).notes,
            *self._notes(request, canvas),
            *safety_notes,
        )
        images, changed = (tuple(column) for column in zip(*finished, strict=True))
        masks, coverage = (canvas.mask.image(),) * len(seeds), (canvas.mask.coverage,) * len(seeds)
        return InpaintResult(images, seeds, self.model.name, notes, changed, coverage, masks, flagged)

    def _run(
        self, image: Tensor, mask: Tensor, options: Mapping[str, Any], seed: int, watch: ProgressCallback
    ) -> Tensor:
        """A picture (1, 3, h, w) of any size, repainted by the network."""
        height, width = image.shape[-2:]
        model = self.model.within(self._room(options, (height, width)).work)
        plan = self.model.sampling_plan(options["steps"], options["solver"], [seed], options["spacing"])
        strength = options["strength"]
        sigma_schedule = truncate_by_strength(plan.sigma_schedule, strength)
        conditioning = self.model.condition_one(prompt_spec_from_options(options), (height, width))
        size_multiple = self.model.size_multiple
        image, mask = (
            pad_to_multiple(x, size_multiple, 2 * size_multiple) for x in (image, mask)
        )  # a lone latent has no statistics
        job = InpaintJob(
            conditioning,
            image,
            mask,
            SamplingPlan(sigma_schedule, plan.solver, plan.noise),
            from_pure_noise=strength == 1,
            soft_mask=True,
        )
        latent_diffusion = model.bind_schedule(sigma_schedule)
        start, on_step = prepare_inpaint(latent_diffusion, job), report_steps(watch, sigma_schedule.steps)
        experts, runtime = [latent_diffusion.expert(start.conditioning)], latent_diffusion.runtime
        latents = sample_latents(experts, start.latents, job.plan, runtime, on_step, start.known_region)
        repainted = latent_diffusion.decode(latents)
        return repainted[..., :height, :width].cpu()

    def plan(self, request: InpaintRequest, timer: Timer | None = None) -> Plan:
        """What a request will take, stage by stage, before it runs; with a `timer`, its time too.

        The picture and its mask are read. Raises InputError for a `memory` that even the smallest tiles do not keep.
        """
        masks = [None] if request.mask is None else split_images(request.mask)
        lists = [self._stages(one, len(seeds), timer) for one, seeds in split_request(request, mask=masks)]
        networks = self.model.latent_diffusion
        return make_plan("inpaint", self.model, networks.runtime, networks.dtype, lists)

    def _stages(self, request: InpaintRequest, count: int, timer: Timer | None) -> StageList:
        """What `_run` will do for each seed."""
        options, model, canvas = with_defaults(request, "inpaint"), self.model, prepare_canvas(request)
        left, top, right, bottom = canvas.box
        size, whole = (bottom - top, right - left), (canvas.weights.shape[-2], canvas.weights.shape[-1])
        size = size if options["crop"] is None else self._trained_size(size)
        rows, room = 1 if options["guidance"] == 1 else 2, self._room(options, size)
        stages = StageList(room, whole, whole, count, timer)
        stages.read()
        if canvas.is_changed and request.strength > 0:
            padded = padded_size(size, model.size_multiple, 2 * model.size_multiple)
            sampler = model.sampler_for(options)
            sigmas = truncate_by_strength(sampler.sigma_schedule(options["steps"]), request.strength).sigmas
            calls = trace_network_calls(["inpaint"], [0.0], sampler.make_solver(), sigmas)
            encodings = 2 if _takes_mask(model.latent_diffusion) and request.strength < 1 else 1
            stages.text(model.text_encoders, rows)
            stages.encode(model.vae, padded, encodings * count)
            stages.denoise(model.network_shape, model.latent_size(padded), None, calls, rows)
            stages.decode(model.vae, model.latent_size(padded), count)
        stages.finish(whole, is_consistent=False)
        return stages

    def _room(self, options: Mapping[str, Any], size: tuple[int, int]) -> MemoryRoom:
        """What a picture of `size` leaves of the memory that a request allows."""
        return MemoryRoom.of(options["memory"], self.model.latent_diffusion.runtime, self.model.networks, size)

    def _trained_size(self, crop_size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) of the same shape with as many pixels as the model was trained on."""
        side = self.model.sample_size * self.model.latent_diffusion.vae.downsample_factor
        scale = side / (crop_size[0] * crop_size[1]) ** 0.5
        return scaled_side(crop_size[0], scale), scaled_side(crop_size[1], scale)

    def _notes(self, request: InpaintRequest, canvas: InpaintCanvas) -> list[str]:
        coverage, notes = canvas.mask.coverage, list[str]()
        if coverage == 0:
            return ["the mask is empty: the picture is returned as it was"]
        if coverage < LOW_COVERAGE or coverage > HIGH_COVERAGE:
            notes.append(f"the mask covers {coverage:.4g} % of the picture; if the rest was meant, invert it")
        if request.strength == 0:
            kept = ", except for what was added, which has its fill" if bool(canvas.expanded_area.any()) else ""
            return [*notes, f"strength is 0: no network has changed the picture{kept}"]
        left, top, right, bottom = canvas.box
        side = self.model.sample_size * self.model.latent_diffusion.vae.downsample_factor
        if request.crop is None and (right - left) * (bottom - top) > LARGE_PIXEL_RATIO * side**2:
            notes.append(f"the picture is much larger than the {side} x {side} pixels of the model; crop helps")
        if request.fill is not None and request.strength == 1 and self.model.kind.primary_task == "inpaint":
            notes.append("fill has no effect: at strength 1 this model sees nothing of what lies under the mask")
        if request.preserve == "exact" and float(canvas.weights.max()) < float(canvas.mask.weights.max()):
            notes.append(f"feather {request.feather} reaches over the whole mask: old colours remain everywhere in it")
        alpha = canvas.original.picture.alpha
        if alpha is not None and bool(((alpha == 0) & (canvas.weights > 0)).any()):
            notes.append("alpha stays as it is: what is repainted where the picture is transparent is not seen")
        return notes


def _join_results(model: str, results: Sequence[InpaintResult]) -> InpaintResult:
    """One result of several inputs'."""
    return InpaintResult(
        tuple(image for one in results for image in one.images),
        tuple(seed for one in results for seed in one.seeds),
        model,
        tuple(dict.fromkeys(note for one in results for note in one.notes)),
        tuple(changed for one in results for changed in one.changed),
        tuple(coverage for one in results for coverage in one.coverage),
        tuple(mask for one in results for mask in one.masks),
        join_flags([one.flagged for one in results]),
    )


def inpaint(
    image: Any, mask: Any = None, *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", engine: EngineName = "torch", watch: ProgressCallback = no_progress,
    progress: bool | None = None, **options: Unpack[InpaintOptions],
) -> InpaintResult:  # fmt: skip
    """Repaint what a mask covers of one or several pictures: paths, PIL images, arrays, or tensors in -1..1.

    `model` is a folder of an inpainting checkpoint or of any other of Stable Diffusion 1 or 2 or SDXL; `options` are
    `InpaintRequest`'s. Not one byte changes where the mask is 0. Raises InputError for pictures, masks and options that
    cannot be used, Unsupported for checkpoints made for something else.
    """
    request = make_request(InpaintRequest, image=image, mask=mask, **options)
    with progress_bar(watch, progress) as watching:
        return load_inpainter(model, device, precision, offload, engine)(request, watching)


def load_inpainter(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
) -> Inpainter:
    """Load a checkpoint once for many requests."""
    return Inpainter(
        load_stable_diffusion(model, device, precision, offload, engine).require_task("inpaint", "generate")
    )
