"""The Stable Diffusion x4 upscaler: a low-resolution picture beside the noisy latents of one four times as large."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from enlarger.checkpoint.families import ModelKind
from enlarger.checkpoint.folder.load import PipelineComponents
from enlarger.diffusion.noise import PerSampleGenerators, from_seeds
from enlarger.diffusion.sample import OnStep, Solver, unchanged
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.errors import CheckpointError, InputError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.requests import UpscaleRequest, as_request, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.inputs import ImageSource, image_size, split_request
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning, PromptSpec, prompt_spec_from_options
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion, expand_to_batch, pad_to_multiple
from enlarger.tasks.latent_diffusion.sampling import (
    Expert,
    NetworkCalls,
    SamplingPlan,
    sample_latents,
    trace_network_calls,
)
from enlarger.tasks.latent_diffusion.tiled_diffusion import window_attempts
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, build_stable_diffusion
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom, choose_windows
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.result import ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.upscale.upscale import UpscaleBatch, plan_upscale, refuse_unused_options, single_batches
from enlarger.text.tokenize import Tokenizer
from enlarger.verb_options import UpscalerOptions


@dataclass(frozen=True, eq=False)
class PixelUpscaleJob:
    """`image` (N, 3, h, w) in -1..1 for B prompts, N divides B. Noise of step `noise_level` of `low_res_schedule` is
    added to it. `initial_noise` replaces the unit noise, (B, C, h, w)."""

    conditioning: GuidedConditioning
    image: Tensor
    plan: SamplingPlan
    noise_level: int
    low_res_schedule: NoiseSchedule
    initial_noise: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Settings:
    """The options of a request, settled once."""

    prompt: PromptSpec
    solver: Solver
    sigma_schedule: SigmaSchedule
    noise_level: int


@dataclass(frozen=True, eq=False)
class PixelUpscaler:
    """A checkpoint with a schedule for its input, an `Upscaler`."""

    checkpoint: StableDiffusion
    name: str = "x4"
    input_latent_space: None = None

    @property
    def kind(self) -> ModelKind:
        return self.checkpoint.kind

    @property
    def scale(self) -> int:
        return self.vae.downsample_factor

    @property
    def vae(self) -> AutoencoderKL:
        return self.checkpoint.latent_diffusion.vae

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizers[0]

    @property
    def sampler(self) -> Sampler:
        return self.checkpoint.sampler

    def __call__(
        self,
        request: UpscaleRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[UpscalerOptions],
    ) -> Result:
        request = as_request(UpscaleRequest, request, options)
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        results = list[Result]()
        for batch, settings in single_batches(self, request, self._settings):
            results += self._run(batch, settings, watch)
        return with_generation(join_results(results), self, "upscale", request)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return [self(request, watch) for request in requests]

    def batch_key(self, request: UpscaleRequest) -> None:
        """None: its memory allows for one picture."""

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        solver, sigma_schedule = self._solver(request)
        passes = plan_upscale(request, size, self.scale).passes
        return trace_network_calls(["x4"], [0.0], solver, sigma_schedule.sigmas) * passes

    def plan(self, request: UpscaleRequest, timer: Timer | None = None) -> Plan:
        lists = [self._stages(one, len(seeds), timer) for one, seeds in split_request(request)]
        latent_diffusion = self.checkpoint.latent_diffusion
        return make_plan("upscale", self, latent_diffusion.runtime, latent_diffusion.dtype, lists)

    def _stages(self, request: UpscaleRequest, count: int, timer: Timer | None) -> StageList:
        """What `_run` will do for one picture."""
        checkpoint, size = self.checkpoint, image_size(request.image)
        options, upscale_plan = with_defaults(request, "upscale/x4"), plan_upscale(request, size, self.scale)
        rows, room = 1 if options["guidance"] == 1 else 2, self._room(request, size)
        stages = StageList(room, size, upscale_plan.target, count, timer)
        stages.read()
        calls = self.network_calls(request, size)
        per_pass = len(calls) // max(1, upscale_plan.passes)
        for index in range(upscale_plan.passes):
            stages.text(checkpoint.text_encoders, rows, count)
            padded = padded_size(size, checkpoint.size_multiple // self.scale)
            windows = choose_windows(request, checkpoint.network_shape, padded, room.work, rows)
            name = "network calls" if upscale_plan.passes == 1 else f"network calls, pass {index + 1}"
            stages.denoise(checkpoint.network_shape, padded, windows, calls[:per_pass], rows, name)
            stages.decode(self.vae, padded, count)
            size = (self.scale * size[0], self.scale * size[1])
        stages.finish(size, is_consistent=bool(request.consistent))
        return stages

    def _room(self, request: UpscaleRequest, size: tuple[int, int]) -> MemoryRoom:
        """What a picture of `size` leaves of the memory that a request allows."""
        checkpoint = self.checkpoint
        return MemoryRoom.of(request.memory, checkpoint.latent_diffusion.runtime, checkpoint.networks, size)

    def _settings(self, requests: Sequence[UpscaleRequest]) -> _Settings:
        """Raises InputError for a noise level that is no step of the checkpoint's own schedule."""
        request = requests[0]
        refuse_unused_options(self.kind, request)
        options, max_noise_level = with_defaults(request, "upscale/x4"), self.checkpoint.max_noise_level
        noise_level = options["noise_level"]
        if noise_level != int(noise_level) or noise_level > max_noise_level:
            raise InputError(
                f"noise_level is {noise_level:g}, expected a whole number from 0 to {max_noise_level} for the x4 "
                "upscaler"
            )
        return _Settings(prompt_spec_from_options(options), *self._solver(request), int(noise_level))

    def _solver(self, request: UpscaleRequest) -> tuple[Solver, SigmaSchedule]:
        options = with_defaults(request, "upscale/x4")
        sampler = self.sampler.with_solver(options["solver"], options["spacing"])
        return sampler.make_solver(), sampler.sigma_schedule(options["steps"])

    def _run(self, batch: UpscaleBatch, settings: _Settings, watch: ProgressCallback) -> list[Result]:
        checkpoint, image = self.checkpoint.sharing_prompts(), batch.low_res
        assert checkpoint.low_res_schedule is not None, "checked when the checkpoint was loaded"
        room = self._room(batch.requests[0], (image.shape[-2], image.shape[-1]))
        latent_diffusion = checkpoint.within(room.work).bind_schedule(settings.sigma_schedule)
        plan = SamplingPlan(settings.sigma_schedule, settings.solver, from_seeds(batch.seeds))
        notes = settings.prompt.notes
        while batch.needs_pass(image):
            height, width = (self.scale * side for side in image.shape[-2:])
            conditioning = checkpoint.condition_one(settings.prompt, (height, width))
            padded = pad_to_multiple(image, checkpoint.size_multiple // self.scale)
            size = (padded.shape[2], padded.shape[3])
            rows = 1 if conditioning.negative is None else 2
            windows = choose_windows(batch.requests[0], checkpoint.network_shape, size, room.work, rows)
            job = PixelUpscaleJob(conditioning, padded, plan, settings.noise_level, checkpoint.low_res_schedule)
            experts, initial_latents = _start(latent_diffusion, job)
            windowed, latents = replace(plan, windows=windows), initial_latents
            for attempt in window_attempts(windowed, checkpoint.network_shape, size, rows, watch):
                with attempt as run:
                    runtime = latent_diffusion.runtime
                    latents = sample_latents(experts, initial_latents, run.plan, runtime, run.on_step)
                    notes += run.notes
            image = latent_diffusion.decode(latents)[..., :height, :width].float().cpu()
        count = len(batch.requests)
        return batch.finish(self.name, image, [bool(batch.requests[0].consistent)] * count, [notes] * count)


def load(components: PipelineComponents, runtime: Runtime, name: str) -> PixelUpscaler:
    """The upscaler of its folder's parts."""
    model = build_stable_diffusion(components, runtime, name)
    in_channels = model.latent_diffusion.unet_config.in_channels
    expected = model.latent_diffusion.vae.config.latent_channels + 3
    if model.low_res_schedule is None:
        raise CheckpointError(f"{name}: has no low_res_scheduler, the noise of its input; fetch the whole model")
    if in_channels != expected:
        raise CheckpointError(f"{name}: the UNet takes {in_channels} channels, expected {expected} of the x4 upscaler")
    return PixelUpscaler(model, name)


def upscale_pixel_x4(latent_diffusion: LatentDiffusion, job: PixelUpscaleJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the pictures, then for the start.

    Results of one picture share its noise, unless each has a generator of its own.
    """
    experts, initial_latents = _start(latent_diffusion, job)
    return sample_latents(experts, initial_latents, job.plan, latent_diffusion.runtime, on_step)


def _start(latent_diffusion: LatentDiffusion, job: PixelUpscaleJob) -> tuple[list[Expert], Tensor]:
    """The conditioned network, and the latents that it begins with."""
    num_steps = job.low_res_schedule.num_train_timesteps
    if not 0 <= job.noise_level < num_steps:
        raise InputError(f"the noise level is {job.noise_level}, expected 0 to {num_steps - 1}")
    tokens, noise = job.conditioning.positive.tokens, job.plan.noise
    assert tokens is not None, "Stable Diffusion is always conditioned on tokens"
    image = job.image.to(latent_diffusion.runtime.device, latent_diffusion.dtype)
    image = expand_to_batch(image, len(tokens)) if isinstance(noise, PerSampleGenerators) else image
    sigma = float(job.low_res_schedule.sigmas[job.noise_level])
    noisy = (image.float() + sigma * noise(image).float()) / (sigma**2 + 1) ** 0.5
    unit_noise = latent_diffusion.draw_noise(
        latent_diffusion.latent_shape(len(tokens), (image.shape[2], image.shape[3])), noise, job.initial_noise
    )
    noise_label = torch.full((len(tokens),), job.noise_level, device=image.device)
    conditioning = job.conditioning.with_fields(concat=expand_to_batch(noisy, len(tokens)), label=noise_label)
    return [latent_diffusion.expert(conditioning)], unit_noise * job.plan.sigma_schedule.init_noise_sigma
