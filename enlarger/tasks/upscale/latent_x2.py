"""The Stable Diffusion x2 latent upscaler (Katherine Crowson): latents or pictures to latents of twice the size."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.families import KINDS, ModelKind
from enlarger.checkpoint.folder.load import PipelineComponents
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.precondition import Precondition, karras
from enlarger.diffusion.sample import OnStep, Solver, unchanged
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.diffusion.solvers import PIDStepSizeController, dpm_adaptive
from enlarger.errors import InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.requests import X2_MAX_NOISE_LEVEL, UpscaleRequest, as_request, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.batching import is_batch_invariant
from enlarger.tasks.inputs import ImageSource, LatentSpace, image_size, latent_space_of, split_request
from enlarger.tasks.latent_diffusion.conditioning import (
    GuidedConditioning,
    GuidedText,
    encode_guided_prompts,
    prompt_notes,
)
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion, decode_latents, pad_to_multiple
from enlarger.tasks.latent_diffusion.sampling import (
    Expert,
    NetworkCalls,
    SamplingPlan,
    sample_latents,
    trace_network_calls,
)
from enlarger.tasks.latent_diffusion.tiled_diffusion import TRAINED_SIDE, window_attempts
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom, NetworkShape, choose_windows
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.result import ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.upscale.upscale import (
    UpscaleBatch,
    as_latents,
    plan_upscale,
    refuse_unused_options,
    single_batches,
    split_batch,
    stack_requests,
    upscale_key,
)
from enlarger.text.encode import PromptEmbeds
from enlarger.text.tokenize import Tokenizer
from enlarger.verb_options import UpscalerOptions

SIZE_MULTIPLE, MIN_SIZE = 32, 64  # pixels: the doubled latent halves three times, and reflects at its edges
ORIGINAL_ADAPTIVE: Solver = partial(
    dpm_adaptive, eta=1.0, step_size_controller=PIDStepSizeController(0.05 * 0.25, 0.25 / 127.5, pcoeff=0.2, icoeff=0.4)
)
"""The original notebook's default sampler: tolerance scale 0.25, eta 1."""


@dataclass(frozen=True, eq=False)
class LatentUpscaleJob:
    """One batch: `low_res` is (B, 3, H, W) pictures in -1..1, sides multiples of 32, or (B, 4, h, w) latents, of 4.

    The text is for B pictures. `initial_noise` replaces the first unit noise, (B, 4, 2h, 2w).
    """

    low_res: Tensor
    text_features: GuidedText
    sigma_schedule: SigmaSchedule
    solver: Solver
    noise: Noise
    guidance: Guidance = Guidance()
    noise_level: float = 0.0
    mask_padding: bool = False
    initial_noise: Tensor | None = None


MakeJob = Callable[[Tensor, Noise], LatentUpscaleJob]  # of low-resolution pictures or latents, and their noise


@dataclass(frozen=True, eq=False)
class LatentUpscaler:
    """The parts of the checkpoint, an `Upscaler`; `noise_frequencies` (64, 1) exists in the original file only."""

    tokenizer: Tokenizer
    text_encoder: ClipText
    unet: KUNet
    vae: AutoencoderKL
    sampler: Sampler
    runtime: Runtime = Runtime()
    noise_frequencies: Tensor | None = None
    name: str = "x2"
    scale: int = 2
    tile_vae: bool = False  # small pictures too
    precondition: Precondition = field(default_factory=karras)

    @property
    def kind(self) -> ModelKind:
        return KINDS["x2"]

    @property
    def input_latent_space(self) -> LatentSpace:
        return latent_space_of(self.vae.config)

    def __call__(
        self,
        request: UpscaleRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[UpscalerOptions],
    ) -> Result:
        request = as_request(UpscaleRequest, request, options)
        self.check_memory(request)
        results = list[Result]()
        for batch, make_job in single_batches(self, request, self._prepare):
            results += self._run(batch, make_job, watch)
        return with_generation(join_results(results), self, "upscale", request)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return self._run(stack_requests(requests), self._prepare(requests), watch)

    def batch_key(self, request: UpscaleRequest) -> Hashable | None:
        solver = with_defaults(request, _defaults_of(request))["solver"]
        return upscale_key(request, [self.tokenizer]) if is_batch_invariant(self.sampler, solver) else None

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        solver, sigma_schedule = self._solver(request)
        passes = plan_upscale(request, size, self.scale).passes
        return trace_network_calls(["x2"], [0.0], solver, sigma_schedule.sigmas) * passes

    def check_memory(self, request: UpscaleRequest) -> None:
        """Raise InputError for a bound on the memory that even the smallest tiles do not keep."""
        if request.memory is not None:
            self.plan(request)

    def plan(self, request: UpscaleRequest, timer: Timer | None = None) -> Plan:
        lists = [self._stages(one, len(seeds), timer) for one, seeds in split_request(request)]
        return make_plan("upscale", self, self.runtime, next(self.unet.parameters()).dtype, lists)

    def _stages(self, request: UpscaleRequest, count: int, timer: Timer | None) -> StageList:
        """What `_run` will do for one picture."""
        factor, is_latent = self.vae.downsample_factor, as_latents(request.image) is not None
        size = image_size(request.image, factor)
        rows = 2 if self._is_guided(request) else 1
        upscale_plan = plan_upscale(request, size, self.scale)
        room, shape = self._room(request, size), self._network_shape
        stages = StageList(room, size, upscale_plan.target, count, timer)
        stages.read()
        stages.text([self.text_encoder], rows)
        calls, (height, width) = self.network_calls(request, size), size
        per_pass = len(calls) // max(1, upscale_plan.passes)
        for index in range(upscale_plan.passes):
            if index == 0 and not is_latent:
                padded = padded_size(size, SIZE_MULTIPLE, MIN_SIZE)
                stages.encode(self.vae, padded, count)
                latents = (padded[0] // factor, padded[1] // factor)
            else:
                covering = (-(-height // factor), -(-width // factor))
                latents = padded_size(covering, SIZE_MULTIPLE // factor, MIN_SIZE // factor)
            doubled = (2 * latents[0], 2 * latents[1])
            windows = choose_windows(request, shape, doubled, room.work, rows)
            name = "network calls" if upscale_plan.passes == 1 else f"network calls, pass {index + 1}"
            stages.denoise(shape, doubled, windows, calls[:per_pass], rows, name)
            height, width = 2 * height, 2 * width
        if upscale_plan.passes or is_latent:
            stages.decode(self.vae, (-(-height // factor), -(-width // factor)), count)
        stages.finish((height, width), is_consistent=bool(request.consistent))
        return stages

    def _prepare(self, requests: Sequence[UpscaleRequest]) -> MakeJob:
        """The options settled once, for requests that differ in picture, prompts and seed alone."""
        request = requests[0]
        refuse_unused_options(self.kind, request)
        options, is_original = with_defaults(request, _defaults_of(request)), request.profile == "original"
        scale, noise_level = options["guidance"], options["noise_level"]
        if noise_level > X2_MAX_NOISE_LEVEL:
            raise InputError(
                f"noise_level is {noise_level:g}, expected 0 to {X2_MAX_NOISE_LEVEL:g} for the x2 latent upscaler"
            )
        text_features = self._encode(requests, scale, is_original)
        solver, sigma_schedule = self._solver(request)
        guidance = Guidance(scale if is_original or scale > 1 else 1.0)

        def make_job(low_res: Tensor, noise: Noise) -> LatentUpscaleJob:
            return LatentUpscaleJob(
                low_res, text_features, sigma_schedule, solver, noise, guidance, noise_level, is_original
            )

        return make_job

    def _encode(self, requests: Sequence[UpscaleRequest], scale: float, is_original: bool) -> GuidedText:
        """The prompts that the branches of the guidance see. At scale 0 the prompt is empty; in the original that is
        the negative prompt's place."""
        prompts, negatives = [str(one.prompt) for one in requests], [str(one.negative) for one in requests]
        is_guided = self._is_guided(requests[0])
        if scale == 0:
            prompts = negatives if is_original else [""] * len(prompts)
        return encode_guided_prompts(
            self.tokenizer, self.text_encoder, self.runtime, prompts, negatives if is_guided else None, "last",
            requests[0].long_prompt, weighted=True,
        )  # fmt: skip

    @staticmethod
    def _is_guided(request: UpscaleRequest) -> bool:
        scale = with_defaults(request, _defaults_of(request))["guidance"]
        return scale not in (0, 1) if request.profile == "original" else scale > 1

    def _solver(self, request: UpscaleRequest) -> tuple[Solver, SigmaSchedule]:
        options = with_defaults(request, _defaults_of(request))
        sampler = self.sampler.with_solver(options["solver"], options["spacing"])
        is_original_adaptive = request.profile == "original" and sampler.solver == "dpm_adaptive"
        solver = ORIGINAL_ADAPTIVE if is_original_adaptive else sampler.make_solver()
        return solver, sampler.sigma_schedule(options["steps"])

    def _run(self, batch: UpscaleBatch, make_job: MakeJob, watch: ProgressCallback) -> list[Result]:
        image, noise = batch.low_res, from_seeds(batch.seeds)
        upscaler, room = self._within(batch.requests[0], batch.low_res)
        notes = prompt_notes(str(batch.requests[0].prompt), str(batch.requests[0].negative))
        factor = self.vae.downsample_factor
        height, width = (side * (factor if image.shape[1] == 4 else 1) for side in image.shape[-2:])
        while height < batch.size[0] or width < batch.size[1]:
            pixels = factor if image.shape[1] == 4 else 1  # per element along a side
            job = make_job(pad_to_multiple(image, SIZE_MULTIPLE // pixels, MIN_SIZE // pixels), noise)
            expert, initial_latents, plan = upscaler._start(job)
            size = (initial_latents.shape[2], initial_latents.shape[3])
            rows = len(initial_latents) * (1 if job.text_features.negative is None else 2)
            windows = choose_windows(batch.requests[0], self._network_shape, size, room.work, rows)
            plan, latents = replace(plan, windows=windows), initial_latents
            for attempt in window_attempts(plan, self._network_shape, size, rows, watch):
                with attempt as run:
                    latents = sample_latents([expert], initial_latents, run.plan, self.runtime, run.on_step)
                    notes += run.notes
            height, width = 2 * height, 2 * width
            image = latents[..., : -(-height // factor), : -(-width // factor)]  # the next pass begins with these
        if image.shape[1] == 4:
            decoded = torch.cat([decode_latents(self.vae, one, upscaler.runtime) for one in split_batch(image)])
            image = decoded[..., :height, :width].float().cpu()
        count = len(batch.requests)
        return batch.finish(self.name, image, [bool(batch.requests[0].consistent)] * count, [notes] * count)

    def _within(self, request: UpscaleRequest, low_res: Tensor) -> tuple["LatentUpscaler", MemoryRoom]:
        """The upscaler whose networks keep within the memory that a request allows."""
        pixels = self.vae.downsample_factor if low_res.shape[1] == 4 else 1
        room = self._room(request, (pixels * low_res.shape[-2], pixels * low_res.shape[-1]))
        return replace(self, runtime=replace(self.runtime, work=room.work)), room

    def _room(self, request: UpscaleRequest, size: tuple[int, int]) -> MemoryRoom:
        """What a picture of `size` leaves of the memory that a request allows."""
        return MemoryRoom.of(request.memory, self.runtime, (self.text_encoder, self.unet, self.vae), size)

    def upscale_latents(self, job: LatentUpscaleJob, on_step: OnStep = unchanged) -> Tensor:
        """Upscaled latents (B, 4, 2h, 2w) in float32. Noise is drawn for the encoding, the augmentation, the start."""
        expert, initial_latents, plan = self._start(job)
        return sample_latents([expert], initial_latents, plan, self.runtime, on_step)

    def _start(self, job: LatentUpscaleJob) -> tuple[Expert, Tensor, SamplingPlan]:
        """What sampling begins with: the conditioned network, the first latents, and how they are to be denoised."""
        low_res = self.latent_diffusion.encode(job.low_res, job.noise)
        noisy_low_res = low_res + job.noise_level * job.noise(low_res) if job.noise_level else low_res
        text, (batch_size, channels, height, width) = job.text_features, low_res.shape
        conditioning = GuidedConditioning(
            self._condition(job, noisy_low_res, text.positive),
            None if text.negative is None else self._condition(job, noisy_low_res, text.negative),
            job.guidance,
        )
        unit_noise = self.latent_diffusion.draw_noise(
            (batch_size, channels, 2 * height, 2 * width), job.noise, job.initial_noise
        )
        plan = SamplingPlan(job.sigma_schedule, job.solver, job.noise)
        return self.latent_diffusion.expert(conditioning), unit_noise * job.sigma_schedule.init_noise_sigma, plan

    @property
    def _network_shape(self) -> NetworkShape:
        return NetworkShape(self.unet, TRAINED_SIDE, SIZE_MULTIPLE // 4)

    @property
    def latent_diffusion(self) -> LatentDiffusion:
        """The two networks; what this one predicts does not depend on a scheduler."""
        return LatentDiffusion(self.unet, self.vae, self.precondition, self.runtime, tile_vae=self.tile_vae)

    def _condition(self, job: LatentUpscaleJob, low_res: Tensor, text: PromptEmbeds) -> Conditioning:
        """The low-resolution latents by nearest neighbour, and the noise level with the pooled text."""
        concat = F.interpolate(low_res, scale_factor=2, mode="nearest") * (job.noise_level**2 + 1) ** -0.5
        level_embedding = self._embed_noise_level(job.noise_level).to(text.pooled).expand(len(text.pooled), -1)
        mask = text.mask if job.mask_padding else None
        return Conditioning(text.tokens, mask, torch.cat([level_embedding, text.pooled], 1), concat=concat)

    def _embed_noise_level(self, noise_level: float) -> Tensor:
        """cos and sin of 2 pi w log(1 + level); w is only needed above level 0."""
        if noise_level == 0:
            return torch.cat([torch.ones(64), torch.zeros(64)])
        if self.noise_frequencies is None:
            raise Unsupported(
                f"noise_level is {noise_level:g}, but these weights lack low_res_noise_embed.weight, as every "
                "diffusers folder of this model does; use noise_level 0 or the original checkpoint"
            )
        angles = 2 * math.pi * math.log1p(noise_level) * self.noise_frequencies.flatten()
        return torch.cat([angles.cos(), angles.sin()])


def load(components: PipelineComponents, runtime: Runtime, name: str) -> LatentUpscaler:
    """The upscaler of its folder's parts."""
    parts = components.components
    return LatentUpscaler(
        parts["tokenizer"], parts["text_encoder"], parts["unet"], parts["vae"],
        sampler_from_config(parts["scheduler"]), runtime, parts.get("noise_frequencies"), name,
    )  # fmt: skip


def _defaults_of(request: UpscaleRequest) -> str:
    return f"upscale/{'x2' if request.profile is None else request.profile}"
