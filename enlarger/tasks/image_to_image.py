"""Pictures in, the same pictures made anew from noisy copies of them out (SDEdit, Meng et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from enlarger.diffusion.noise import PerSampleGenerators, from_seeds
from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.diffusion.windows import Windows
from enlarger.errors import InputError, Unsupported
from enlarger.image.picture import to_pil
from enlarger.requests import RefineRequest, UpscaleRequest, as_request, make_request, with_defaults
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload
from enlarger.tasks.inputs import (
    ImageSource,
    Latents,
    PreparedImage,
    image_size,
    prepare_picture,
    split_request,
)
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning, PromptSpec, prompt_spec_from_options
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion, expand_to_batch
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan, sample_latents, trace_network_calls
from enlarger.tasks.latent_diffusion.tiled_diffusion import window_attempts
from enlarger.tasks.loading.adapters import adapt
from enlarger.tasks.loading.load import Location
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, load_stable_diffusion
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom, choose_windows
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import Progress, ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.results.watermarking import watermark_result
from enlarger.tasks.upscale.bundled import load_bundled
from enlarger.verb_options import RefineOptions, RefinerOptions


@dataclass(frozen=True, eq=False)
class ImageToImageJob:
    """`image` (N, 3, H, W) in -1..1, or latents (N, C, h, w), for B prompts; N divides B.

    Noise of the first level is added, unless `is_noisy`: then the latents carry it already, as clean + sigma * noise.
    """

    conditioning: GuidedConditioning
    image: Tensor
    plan: SamplingPlan
    is_noisy: bool = False


def image_to_image(latent_diffusion: LatentDiffusion, job: ImageToImageJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the encoding, then for the start.

    Results of one picture share its encoding's noise, unless each has a generator of its own.
    """
    tokens, noise = job.conditioning.positive.tokens, job.plan.noise
    assert tokens is not None, "Stable Diffusion always takes tokens"
    image = expand_to_batch(job.image, len(tokens)) if isinstance(noise, PerSampleGenerators) else job.image
    latents = expand_to_batch(latent_diffusion.encode(image, noise), len(tokens))
    if not job.is_noisy:
        latents = latents + job.plan.sigma_schedule.sigmas[0] * latent_diffusion.draw_noise(latents.shape, noise)
    experts = [latent_diffusion.expert(job.conditioning)]
    return sample_latents(experts, latents, job.plan, latent_diffusion.runtime, on_step)


@dataclass(frozen=True, eq=False)
class Refiner:
    """A loaded checkpoint, of text-to-image or SDXL's refiner; calling it with a request remakes its pictures."""

    model: StableDiffusion

    def __call__(
        self,
        request: RefineRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[RefinerOptions],
    ) -> Result:
        """Each input gives `count` pictures of its own size, times `by`, in order, computed one at a time."""
        request = as_request(RefineRequest, request, options)
        model, adapted = adapt(self.model, request)
        if model is not self.model:
            return with_generation(replace(self, model=model)(adapted, watch), self.model, "refine", request)
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        sharing = replace(self, model=self.model.sharing_prompts())
        results: list[Result] = []
        for one, seeds in split_request(request):
            run, size, rows = sharing._prepare(one, seeds, watch)
            latents, notes = list[Tensor](), tuple[str, ...]()
            for job in run.jobs:
                for attempt in window_attempts(job.plan, self.model.network_shape, size, rows, watch):
                    with attempt as windowed:
                        planned = replace(job, plan=windowed.plan)
                        made = image_to_image(run.latent_diffusion, planned, windowed.on_step)
                        latents.append(made)
                        notes = windowed.notes
            result = run.finish(latents)
            result = replace(result, notes=result.notes + notes)
            is_xl = self.model.has_micro_conditioning
            results.append(watermark_result(result, one.watermark, is_xl) if run.jobs else result)
        return with_generation(join_results(results), self.model, "refine", request)

    def _prepare(
        self, request: RefineRequest, seeds: tuple[int, ...], watch: ProgressCallback
    ) -> tuple["ImageToImageRun", tuple[int, int], int]:
        """A request for one picture made ready, the size of its latents, and how many run at once."""
        enlarged = None if request.by is None else self._enlarge(request, request.by, watch)
        prepared = self._prepare_input(request.image if enlarged is None else enlarged.image)
        if enlarged is not None and prepared.picture is not None:
            told = replace(prepared.picture, notes=enlarged.notes + prepared.notes)
            prepared = replace(prepared, picture=told)
        factor = 1 if prepared.picture is None else self.model.vae.downsample_factor
        size = (prepared.image.shape[2] // factor, prepared.image.shape[3] // factor)
        options, room = self._options(request), self._room(request, prepared.size)
        rows = self._rows(options)
        windows = choose_windows(request, self.model.network_shape, size, room.work, rows)
        run = prepare_run(self.model.within(room.work), options, prepared, seeds, windows=windows)
        return run, size, rows

    def plan(self, request: RefineRequest, timer: Timer | None = None) -> Plan:
        """What a request will take, stage by stage, before it runs; with a `timer`, its time too.

        Raises InputError for a `memory` that even the smallest windows and tiles do not keep.
        """
        lists = [self._stages(one, len(seeds), timer) for one, seeds in split_request(request)]
        networks = self.model.latent_diffusion
        return make_plan("refine", self.model, networks.runtime, networks.dtype, lists)

    def _stages(self, request: RefineRequest, count: int, timer: Timer | None) -> StageList:
        """What is done for one picture."""
        size, options, model = (
            image_size(request.image, self.model.vae.downsample_factor),
            self._options(request),
            self.model,
        )
        large = size if request.by is None else UpscaleRequest(None, request.by).target_size(*size)
        is_latent, rows, room = isinstance(request.image, Latents), self._rows(options), self._room(request, large)
        stages = StageList(room, size, large, count, timer)
        stages.read()
        if request.by is not None:
            stages.add_plan(self._plan_enlarging(request, request.by, timer), "enlarge")
        if options["strength"] > 0:
            padded = large if is_latent else padded_size(large, model.size_multiple)
            latents = model.latent_size(padded)
            windows = choose_windows(request, model.network_shape, latents, room.work, rows)
            sigmas = truncate_by_strength(
                model.sampler_for(options).sigma_schedule(options["steps"]), options["strength"]
            )
            calls = trace_network_calls(["refine"], [0.0], model.sampler_for(options).make_solver(), sigmas.sigmas)
            stages.text(model.text_encoders, rows)
            if not is_latent:
                stages.encode(model.vae, padded, count)
            stages.denoise(model.network_shape, latents, windows, calls, rows)
            stages.decode(model.vae, latents, count)
        stages.finish(large, is_consistent=False)
        return stages

    def _options(self, request: RefineRequest) -> dict[str, Any]:
        """The options with their defaults."""
        return with_defaults(request, "refine/xl" if self.model.has_micro_conditioning else "refine")

    @staticmethod
    def _rows(options: Mapping[str, Any]) -> int:
        """Branches of the guidance."""
        return 1 if options["guidance"] == 1 else 2

    def _room(self, request: RefineRequest, size: tuple[int, int]) -> MemoryRoom:
        """What a picture of `size` leaves of the memory that a request allows."""
        return MemoryRoom.of(request.memory, self.model.latent_diffusion.runtime, self.model.networks, size)

    def _enlarge(self, request: RefineRequest, by: float, watch: ProgressCallback) -> Result:
        """The request's picture made larger by the bundled model, in the same memory."""
        if isinstance(request.image, Latents):
            raise Unsupported(f"by is {by:g}; latents are refined in their own size, leave by, or give a picture")

        def report(progress: Progress) -> None:
            watch(replace(progress, stage=f"enlarge: {progress.stage}"))

        upscaler = load_bundled(self.model.latent_diffusion.runtime)
        return upscaler(self._upscale_request(request, by), report)

    def _plan_enlarging(self, request: RefineRequest, by: float, timer: Timer | None) -> Plan:
        within = self._upscale_request(request, by)
        try:
            return load_bundled(self.model.latent_diffusion.runtime).plan(within, timer)
        except InputError as error:
            if within.memory is None:
                raise
            found = f"memory is {request.memory}, but the stage 'enlarge' has {within.memory} of it beside the model"
            raise InputError(f"{found}: {error}") from error

    def _upscale_request(self, request: RefineRequest, by: float) -> UpscaleRequest:
        size = UpscaleRequest(None, by).target_size(*image_size(request.image, self.model.vae.downsample_factor))
        return UpscaleRequest(request.image, by, memory=self._room(request, size).beside_weights)

    def _prepare_input(self, source: Any) -> PreparedImage:
        if not isinstance(source, Latents):
            return prepare_picture(source, self.model.size_multiple)
        vae = self.model.latent_diffusion.vae
        values = source.values_for(vae, f"refining with {self.model.name}")
        return PreparedImage(values, (values.shape[2] * vae.downsample_factor, values.shape[3] * vae.downsample_factor))


@dataclass(frozen=True, eq=False)
class ImageToImageRun:
    """One picture on its way through the networks: `finish` makes results of the latents that `jobs` give.

    There is a job for each seed; none at strength 0, where the results are the input.
    """

    model: StableDiffusion
    latent_diffusion: LatentDiffusion
    prompt_spec: PromptSpec
    prepared: PreparedImage
    seeds: tuple[int, ...]
    jobs: tuple[ImageToImageJob, ...]

    def finish(self, latents: Sequence[Tensor]) -> Result:
        """The pictures, looked at by the safety checker."""
        if not self.jobs:
            return _input_as_result(self.model, self.prepared, self.seeds)
        decoded = [self.latent_diffusion.decode(one) for one in latents]
        flagged, safety_notes = self.model.check_safety([one[0] for one in decoded])
        return Result(
            tuple(self.prepared.to_image(one) for one in decoded),
            self.seeds,
            self.model.name,
            self.prepared.notes + self.prompt_spec.notes + safety_notes,
            latents=Latents(torch.cat(list(latents)).cpu(), self.model.latent_space),
            flagged=flagged,
        )


def prepare_run(
    model: StableDiffusion,
    options: Mapping[str, Any],
    prepared: PreparedImage,
    seeds: tuple[int, ...],
    concat: Tensor | None = None,
    windows: Windows | None = None,
) -> ImageToImageRun:
    """All before the first step, by the `options` of a request; `concat` joins the channels.

    In `windows` the network is told their size as the picture's, as it never sees more.
    """
    prompt_spec = prompt_spec_from_options(options)
    if options["strength"] == 0:
        return ImageToImageRun(model, model.latent_diffusion, prompt_spec, prepared, seeds, ())
    plan = model.sampling_plan(options["steps"], options["solver"], seeds, options["spacing"])
    sigma_schedule = truncate_by_strength(plan.sigma_schedule, options["strength"])
    side = max(prepared.size) if windows is None else windows.side * model.vae.downsample_factor
    conditioning = model.condition_one(prompt_spec, (min(side, prepared.size[0]), min(side, prepared.size[1])))
    if concat is not None:
        conditioning = conditioning.with_fields(concat=concat)
    plans = [SamplingPlan(sigma_schedule, plan.solver, from_seeds([seed]), windows) for seed in seeds]
    jobs = tuple(ImageToImageJob(conditioning, prepared.image, one) for one in plans)
    return ImageToImageRun(model, model.bind_schedule(sigma_schedule), prompt_spec, prepared, seeds, jobs)


def truncate_by_strength(sigma_schedule: SigmaSchedule, strength: float) -> SigmaSchedule:
    """The last min(int(steps * strength), steps) steps, as diffusers counts; InputError where none is left."""
    steps = min(int(sigma_schedule.steps * strength), sigma_schedule.steps)
    if steps < 1:
        raise InputError(
            f"strength {strength:g} of {sigma_schedule.steps} steps is less than one step; give more of either, or "
            "strength 0, "
            "which keeps the picture"
        )
    return sigma_schedule.subrange(sigma_schedule.steps - steps)


def _input_as_result(model: StableDiffusion, prepared: PreparedImage, seeds: Sequence[int]) -> Result:
    note = "strength is 0: the picture is the input, no network has changed it"
    latents = None
    if prepared.picture is None:
        image = prepared.to_image(model.latent_diffusion.decode(prepared.image))
        latents = Latents(prepared.image.float().repeat(len(seeds), 1, 1, 1), model.latent_space)
    else:
        image = to_pil(prepared.picture)
    return Result(
        tuple(image.copy() for _ in seeds), tuple(seeds), model.name, (*prepared.notes, note), latents=latents
    )


def refine(
    image: Any, prompt: str | Sequence[str] = "", *, model: Location, device: str = "auto", precision: str = "auto",
    offload: Offload = "none", engine: EngineName = "torch", watch: ProgressCallback = no_progress,
    progress: bool | None = None, **options: Unpack[RefineOptions],
) -> Result:  # fmt: skip
    """Remake one or several pictures: paths, PIL images, arrays, tensors in -1..1, or `Latents` of the model's space.

    `model` is a folder of Stable Diffusion 1 or 2 or SDXL, base or refiner; `options` are `RefineRequest`'s. Raises
    InputError for pictures and options that cannot be used, Unsupported for checkpoints made for something else.
    """
    request = make_request(RefineRequest, image=image, prompt=prompt, **options)
    with progress_bar(watch, progress) as watching:
        return load_refiner(model, device, precision, offload, engine)(request, watching)


def load_refiner(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
) -> Refiner:
    """Load a checkpoint once for many requests."""
    return Refiner(load_stable_diffusion(model, device, precision, offload, engine).require_task("generate", "refine"))
