"""Prompts in, pictures out: from one network or several one after another, and enlarged if asked."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from PIL import Image
from torch import Tensor

from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.errors import InputError
from enlarger.image.picture import Picture, read_picture, to_pil
from enlarger.requests import (
    DEFAULT_HANDOFF,
    DEFAULT_UPSCALE_STRENGTH,
    GenerateRequest,
    RefineRequest,
    UpscaleRequest,
    as_request,
    make_request,
    seeds_for,
    with_defaults,
)
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload
from enlarger.target_size import scaled_side
from enlarger.tasks.batching import is_batch_invariant, prompt_key
from enlarger.tasks.image_to_image import Refiner, truncate_by_strength
from enlarger.tasks.inputs import Latents, check_space, prompt_pairs
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning, prompt_spec_from_options
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.tasks.latent_diffusion.sampling import (
    Expert,
    NetworkCalls,
    SamplingPlan,
    SamplingReport,
    check_handoff_sigmas,
    sample_latents,
    trace_network_calls,
)
from enlarger.tasks.loading.adapters import adapt, is_adapted
from enlarger.tasks.loading.load import Checkpoint, Location
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, load_stable_diffusion
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import MemoryRoom
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, padded_size
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import Progress, ProgressCallback, Result, join_results, no_progress, report_steps
from enlarger.tasks.results.watermarking import watermark_picture
from enlarger.tasks.upscale.bundled import load_bundled
from enlarger.tasks.upscale.upscale import load_upscaler
from enlarger.tasks.upscale.upscaler import Upscaler
from enlarger.verb_options import GenerateOptions

SHARED_WITH_REFINING = (
    "prompt", "negative", "guidance", "rescale", "solver", "spacing", "long_prompt", "score", "negative_score",
    "memory",
)  # fmt: skip
CheckpointLocations = Location | Sequence[Location] | None


@dataclass(frozen=True, eq=False)
class TextToImageJob:
    """One batch of B latents of `size` (h, w). `initial_noise` replaces the first unit noise, (B, C, h, w).

    The network works down to the noise level `handoff_sigma`; below it the `refiners` take over one after another.
    """

    conditioning: GuidedConditioning
    size: tuple[int, int]
    plan: SamplingPlan
    initial_noise: Tensor | None = None
    handoff_sigma: float = 0.0
    refiners: Sequence[Expert] = ()


def text_to_image(latent_diffusion: LatentDiffusion, job: TextToImageJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32, scaled as the checkpoint's autoencoder scales them."""
    tokens = job.conditioning.positive.tokens
    assert tokens is not None, "Stable Diffusion always takes tokens"
    shape = latent_diffusion.latent_shape(len(tokens), job.size)
    unit_noise = latent_diffusion.draw_noise(shape, job.plan.noise, job.initial_noise)
    latents = unit_noise * job.plan.sigma_schedule.init_noise_sigma
    base = latent_diffusion.expert(job.conditioning, job.handoff_sigma)
    return sample_latents([base, *job.refiners], latents, job.plan, latent_diffusion.runtime, on_step)


@dataclass(frozen=True, eq=False)
class Generator:
    """A loaded text-to-image checkpoint; calling it with a request makes the request's pictures.

    `refiners` take over one after another, each below a noise level of its own, on the same latents and down the same
    noise levels. `upscaler` enlarges; None is the bundled one.
    """

    model: StableDiffusion
    refiners: tuple[StableDiffusion, ...] = ()
    upscaler: Upscaler | None = None

    def __post_init__(self) -> None:
        """Raises InputError for checkpoints whose latents do not fit together."""
        for refiner in self.refiners:
            check_space(self.model.latent_space, refiner.latent_diffusion.vae.config, f"the refiner {refiner.name}")
        if self.upscaler is not None and self.upscaler.input_latent_space is not None and self.upscaler.vae is not None:
            check_space(self.model.latent_space, self.upscaler.vae.config, f"the upscaler {self.upscaler.name}")

    def __call__(
        self,
        request: GenerateRequest | str | Sequence[str],
        watch: ProgressCallback = no_progress,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Each prompt gives `count` pictures of exactly the size asked for, times `upscale`, in order.

        One picture is computed at a time, so that it is the same to the last bit alone and among others.
        `Result.latents` are those before enlarging; they cover the size that the network needed, which can be larger.
        """
        request = as_request(GenerateRequest, request, options, "prompt")
        model, adapted = adapt(self.model, request)
        if model is not self.model:
            return with_generation(replace(self, model=model)(adapted, watch), self.model, "generate", request)
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        prompts, negatives = prompt_pairs(request)
        seeds = seeds_for(request.seed, len(prompts))
        refiners = tuple(refiner.sharing_prompts() for refiner in self.refiners)
        sharing = replace(self, model=self.model.sharing_prompts(), refiners=refiners)
        results: list[Result] = []
        bounded = replace(sharing, model=sharing.model.within(self._room(request).work))
        for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True):
            one = replace(request, prompt=prompt, negative=negative, seed=seed, count=1)
            latent_diffusion, job = bounded._prepare([one])
            latents = text_to_image(latent_diffusion, job, report_steps(watch, job.plan.sigma_schedule.steps))
            results += bounded._finish([one], latents, watch)
        return with_generation(join_results(results), self.model, "generate", request)

    def explain(self, request: GenerateRequest) -> SamplingReport:
        """Who would run which step, and how many calls that makes; nothing is computed."""
        options = self._options(request)
        plan = self.model.sampling_plan(options["steps"], options["solver"], [0], options["spacing"])
        network_calls = trace_network_calls(
            list(self._experts), self._handoff_sigmas(request), plan.solver, plan.sigma_schedule.sigmas
        )
        if request.upscale > 1:
            network_calls += self._effective_upscaler.network_calls(
                self._upscale_request(request, None, 0), self._size(options)
            )
            network_calls += self._remaking_calls(request, options) if request.tile else ()
        return SamplingReport(network_calls, len(prompt_pairs(request)[0]))

    def plan(self, request: GenerateRequest, timer: Timer | None = None) -> Plan:
        """What a request will take, stage by stage, before it runs; with a `timer`, its time too.

        Raises InputError for a `memory` that even the smallest windows and tiles do not keep.
        """
        options, model, room = self._options(request), self.model, self._room(request)
        size, count = self._size(options), len(prompt_pairs(request)[0])
        large = self.target_size(request)
        rows, latents = 1 if options["guidance"] == 1 else 2, model.latent_size(padded_size(size, model.size_multiple))
        stages = StageList(room, size, large, count, timer)
        calls = self.explain(replace(request, upscale=1, tile=None, upscale_steps=None, upscale_strength=None))
        for who, expert in self._experts.items():
            stages.text(expert.text_encoders, rows, 1 if isinstance(request.prompt, str) else len(set(request.prompt)))
            own = [call for call in calls.network_calls if call.who == who]
            name = f"network calls, {who}" if self.refiners else "network calls"
            stages.denoise(expert.network_shape, latents, None, own, rows, name)
        stages.decode(model.vae, latents, count)
        if request.upscale > 1:
            self._plan_enlarging(request, stages, timer)
        stages.finish(large, is_consistent=False)
        networks = model.latent_diffusion
        return make_plan("generate", model, networks.runtime, networks.dtype, [stages])

    def _plan_enlarging(self, request: GenerateRequest, stages: StageList, timer: Timer | None) -> None:
        """The stages of the upscaler and of the remaking, for each picture."""
        upscaler, made = self._effective_upscaler, Image.new("L", (stages.small[1], stages.small[0]))
        for _ in range(stages.count):
            stages.add_plan(upscaler.plan(self._upscale_request(request, made, 0), timer), "enlarge")
            if request.tile:
                larger = Image.new("L", (stages.large[1], stages.large[0]))
                remade = Refiner(self.model).plan(self._refine_request(request, larger, 0), timer)
                stages.add_plan(replace(remade, process=0), "remake")

    @property
    def _experts(self) -> dict[str, StableDiffusion]:
        """Who works on the latents, by the names that `explain` gives."""
        names = ("refiner" if i == 0 else f"refiner {i + 1}" for i in range(len(self.refiners)))
        return {"base": self.model, **dict(zip(names, self.refiners, strict=True))}

    def _remaking_calls(self, request: GenerateRequest, options: dict[str, Any]) -> tuple[NetworkCalls, ...]:
        """The calls, in each window, that remake the enlarged picture."""
        refine = self._refine_request(request, None, 0)
        steps = options["steps"] if refine.steps is None else refine.steps
        plan = self.model.sampling_plan(steps, options["solver"], [0], options["spacing"])
        if refine.strength == 0:
            return ()
        sigmas = truncate_by_strength(plan.sigma_schedule, refine.strength).sigmas
        return trace_network_calls(["remake"], [0.0], plan.solver, sigmas)

    @property
    def _effective_upscaler(self) -> Upscaler:
        return load_bundled(self.model.latent_diffusion.runtime) if self.upscaler is None else self.upscaler

    def _room(self, request: GenerateRequest) -> MemoryRoom:
        """What is left of the memory that a request allows."""
        refiners = (network for refiner in self.refiners for network in refiner.networks)
        networks, size = (*self.model.networks, *refiners), self._size(self._options(request))
        return MemoryRoom.of(request.memory, self.model.latent_diffusion.runtime, networks, size)

    def _options(self, request: GenerateRequest) -> dict[str, Any]:
        """The options with their defaults."""
        return with_defaults(request, "generate/xl" if self.model.has_micro_conditioning else "generate")

    def _size(self, options: dict[str, Any]) -> tuple[int, int]:
        """Height and width in pixels."""
        side = self.model.sample_size * self.model.latent_diffusion.vae.downsample_factor
        height, width = (side if options[name] is None else int(options[name]) for name in ("height", "width"))
        return height, width

    def target_size(self, request: GenerateRequest) -> tuple[int, int]:
        """Height and width in pixels of the pictures of a request, enlarged."""
        height, width = self._size(self._options(request))
        return scaled_side(height, request.upscale), scaled_side(width, request.upscale)

    def _handoff_sigmas(self, request: GenerateRequest) -> tuple[float, ...]:
        """The noise level down to which each network works."""
        handoff = request.handoff
        handoff_sigmas = [] if handoff is None else list(handoff) if isinstance(handoff, Sequence) else [handoff]
        if handoff is None and len(self.refiners) == 1:
            schedule = self.model.sampler.schedule
            handoff_sigmas = [float(schedule.sigmas[round(DEFAULT_HANDOFF * schedule.num_train_timesteps)])]
        if len(handoff_sigmas) != len(self.refiners):
            raise InputError(
                f"found {len(handoff_sigmas)} hand-offs for {len(self.refiners)} refiners; give one for each"
            )
        return check_handoff_sigmas(handoff_sigmas)

    def batch_key(self, request: GenerateRequest) -> Hashable | None:
        """Equal for requests that can share a batch; None for one that is computed by itself."""
        if (
            self.refiners
            or request.upscale != 1
            or is_adapted(request)
            or not is_batch_invariant(self.model.sampler, request.solver)
        ):
            return None
        return prompt_key(request, self.model.tokenizers, weighted=True)

    def run_batch(self, requests: Sequence[GenerateRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        """One picture of each request, in one batch. They differ in prompts and seed alone, see `batching`."""
        latent_diffusion, job = self._prepare(requests)
        latents = text_to_image(latent_diffusion, job, report_steps(watch, job.plan.sigma_schedule.steps))
        return self._finish(requests, latents, watch)

    def _prepare(self, requests: Sequence[GenerateRequest]) -> tuple[LatentDiffusion, TextToImageJob]:
        """The networks on the requests' sigma schedule, and the batch."""
        model, options = self.model, self._options(requests[0])
        if requests[0].upscale > 1:
            self._upscale_request(requests[0], None, 0)  # raises for what it will not take, before the work
        size = self._size(options)
        seeds = [_seed(request) for request in requests]
        plan = model.sampling_plan(options["steps"], options["solver"], seeds, options["spacing"])
        prompt_specs = [prompt_spec_from_options(self._options(request)) for request in requests]
        handoff_sigmas = self._handoff_sigmas(requests[0])
        refiners = [
            Expert(
                refiner.latent_diffusion.unet,
                refiner.bind_schedule(plan.sigma_schedule).precondition,
                refiner.condition_batch(prompt_specs, size),
                handoff_sigma,
            )
            for refiner, handoff_sigma in zip(self.refiners, handoff_sigmas[1:], strict=True)
        ]
        job = TextToImageJob(
            model.condition_batch(prompt_specs, size),
            model.latent_size(padded_size(size, model.size_multiple)),
            plan,
            handoff_sigma=handoff_sigmas[0],
            refiners=refiners,
        )
        return model.bind_schedule(plan.sigma_schedule), job

    def _finish(self, requests: Sequence[GenerateRequest], latents: Tensor, watch: ProgressCallback) -> list[Result]:
        """The latents of each request made a picture, and that looked at by the safety checker."""
        latents, results = latents.cpu(), list[Result]()
        for i, request in enumerate(requests):
            options, one = self._options(request), Latents(latents[i : i + 1], self.model.latent_space)
            image, notes = self._decode_picture(one, self._size(options), request, _seed(request), watch)
            checked = [] if self.model.safety_checker is None else [read_picture(image).colour]
            flagged, safety_notes = self.model.check_safety(checked)
            image, mark_notes = watermark_picture(image, request.watermark, self.model.has_micro_conditioning)
            notes = prompt_spec_from_options(options).notes + notes + safety_notes + mark_notes
            results.append(Result((image,), (_seed(request),), self.model.name, notes, latents=one, flagged=flagged))
        return results

    def _decode_picture(
        self, latents: Latents, size: tuple[int, int], request: GenerateRequest, seed: int, watch: ProgressCallback
    ) -> tuple[Image.Image, tuple[str, ...]]:
        """The latents as a picture of `size` (height, width), times `upscale`."""
        upscaler = self._effective_upscaler if request.upscale > 1 else None
        scale = None if upscaler is None or upscaler.input_latent_space is None else upscaler.scale
        upscales_latents = scale == request.upscale  # by another factor it enlarges the picture
        pixels = (
            None if upscales_latents else self.model.latent_diffusion.decode(latents.values)[0, :, : size[0], : size[1]]
        )
        if upscaler is None:
            assert pixels is not None
            return to_pil(Picture(pixels.cpu())), ()
        upscaler_input = latents if pixels is None else pixels.clamp(-1, 1).cpu()

        def report(progress: Progress) -> None:
            watch(replace(progress, stage=f"enlarge: {progress.stage}"))

        upscaled = upscaler(self._upscale_request(request, upscaler_input, seed), report)
        height, width = self.target_size(request)
        image = upscaled.image.crop((0, 0, width, height))
        if not request.tile:
            return image, upscaled.notes
        remade = Refiner(self.model)(self._refine_request(request, image, seed), watch)
        return remade.image, upscaled.notes + remade.notes

    def _refine_request(self, request: GenerateRequest, image: Any, seed: int) -> RefineRequest:
        """How the enlarged picture is remade: from the same prompts, in windows."""
        shared = {name: getattr(request, name) for name in SHARED_WITH_REFINING}
        steps = request.steps if request.upscale_steps is None else request.upscale_steps
        strength = DEFAULT_UPSCALE_STRENGTH if request.upscale_strength is None else request.upscale_strength
        return RefineRequest(image, strength=strength, seed=seed, steps=steps, tile=True, watermark=False, **shared)

    def _upscale_request(self, request: GenerateRequest, image: Any, seed: int) -> UpscaleRequest:
        """What the upscaler is asked for: the same prompts where it can read them."""
        upscaler = self._effective_upscaler
        steps = None if upscaler.tokenizer is None and request.tile else request.upscale_steps
        upscale_request = UpscaleRequest(
            image, request.upscale, seed=seed, steps=steps, memory=self._room(request).beside_weights
        )
        if upscaler.tokenizer is not None:
            return replace(
                upscale_request, prompt=request.prompt, negative=request.negative, long_prompt=request.long_prompt
            )
        if request.upscale_steps is not None and not request.tile:
            raise InputError(
                f"upscale_steps is {request.upscale_steps}, but the {upscaler.name} upscaler takes no steps; "
                "give an upscaler's folder, or leave it"
            )
        return upscale_request


def _seed(request: GenerateRequest) -> int:
    """The seed of a request for one picture."""
    return seeds_for(request.seed, 1)[0]


def generate(
    prompt: str | Sequence[str],
    *,
    model: Location,
    refiner: CheckpointLocations = None,
    upscaler: Location | None = None,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
    watch: ProgressCallback = no_progress,
    progress: bool | None = None,
    **options: Unpack[GenerateOptions],
) -> Result:
    """Make pictures from text with the Stable Diffusion checkpoint in a folder; `options` are `GenerateRequest`'s.

    `refiner` is a folder, or several, of checkpoints that finish the picture below the noise levels `handoff`. With
    `upscale` 2, a folder of the x2 latent upscaler in `upscaler` enlarges the latents before they ever become a
    picture; other upscalers, None being the bundled one, enlarge the picture. Raises InputError for latents that do not
    fit together, and Unsupported for checkpoints made for something else.
    """
    request = make_request(GenerateRequest, prompt=prompt, **options)
    if upscaler is not None and request.upscale == 1:
        raise InputError(f"found the upscaler {upscaler}, but upscale is 1; give upscale, or leave both")
    with progress_bar(watch, progress) as watching:
        return load_generator(model, device, precision, offload, refiner, upscaler, engine)(request, watching)


def load_generator(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    refiner: CheckpointLocations = None,
    upscaler: Location | None = None,
    engine: EngineName = "torch",
) -> Generator:
    """Load a text-to-image checkpoint, and what works on its latents after it, once for many requests."""
    locations = () if refiner is None else (refiner,) if isinstance(refiner, str | Path | Checkpoint) else refiner
    load_options = (device, precision, offload, engine)
    base = load_stable_diffusion(model, *load_options).require_task("generate")
    refiners = (load_stable_diffusion(each, *load_options).require_task("generate", "refine") for each in locations)
    return Generator(base, tuple(refiners), None if upscaler is None else load_upscaler(upscaler, *load_options))
