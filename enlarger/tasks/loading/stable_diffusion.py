"""A checkpoint of the Stable Diffusion family, read once for many requests."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.families import ModelKind, takes_aesthetic_score
from enlarger.checkpoint.model_folder import ModelFolder
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.errors import Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.runtime.engines.named import EngineName
from enlarger.runtime.runtime import Offload, Runtime
from enlarger.tasks.auxiliary.safety_checker import SafetyChecker, missing_checker_note
from enlarger.tasks.inputs import LatentSpace, latent_space_of
from enlarger.tasks.latent_diffusion.conditioning import (
    GuidedConditioning,
    GuidedText,
    MicroConditioning,
    PromptSpec,
    condition_on_tokens,
    condition_on_tokens_and_sizes,
    encode_guided_prompts,
    encode_guided_prompts_xl,
)
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan
from enlarger.tasks.loading.load import Location, as_checkpoint, kind_of, resolve_runtime
from enlarger.tasks.planning.room import NetworkShape
from enlarger.text.encode import PromptEmbeds
from enlarger.text.tokenize import Tokenizer

DEFAULT_SAMPLE_SIZE = 64  # latents along a side where the UNet's file does not say


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The parts of one checkpoint. Lists of text encoders run from the first; SDXL's refiner has only the second."""

    name: str
    kind: ModelKind
    path: Path  # where it was read
    pipeline_class: str  # the pipeline class that model_index.json names
    latent_diffusion: LatentDiffusion
    sampler: Sampler
    tokenizers: tuple[Tokenizer, ...]
    text_encoders: tuple[ClipText, ...]
    sample_size: int = DEFAULT_SAMPLE_SIZE  # latents along a side of the pictures it was trained on
    force_zeros_for_empty_prompt: bool = False  # an absent negative prompt is zeros (SDXL base)
    low_res_schedule: NoiseSchedule | None = None  # the x4 upscaler's schedule for its input
    max_noise_level: int = 350  # of that schedule
    safety_checker: SafetyChecker | None = None
    unchecked_note: str | None = None  # why there is no checker though the checkpoint names one
    model_folder: ModelFolder | None = None  # where requests' LoRAs and styles are looked up
    clip_skip: int | None = None  # the text encoders' layer that is read, counted from the end; None: the usual one
    shared: dict[Hashable, GuidedConditioning] | None = None  # what prompts gave within one request

    def check_safety(self, pictures: Sequence[Tensor]) -> tuple[tuple[bool, ...] | None, tuple[str, ...]]:
        """What the safety checker flags among pictures (3, H, W) in -1..1, and what is to be said of that.

        Nothing happens to a flagged picture: what to do with it is the caller's.
        """
        if self.safety_checker is None:
            return None, () if self.unchecked_note is None else (self.unchecked_note,)
        flags = tuple(self.safety_checker(picture[None].clamp(-1, 1))[0] for picture in pictures)
        return flags, (("the safety checker flags this; see `flagged`",) if any(flags) else ())

    @property
    def vae(self) -> AutoencoderKL:
        return self.latent_diffusion.vae

    @property
    def tokenizer(self) -> Tokenizer:
        """The first, by which prompts are measured."""
        return self.tokenizers[0]

    @property
    def latent_space(self) -> LatentSpace:
        """Whose latents it works on."""
        return latent_space_of(self.latent_diffusion.vae.config)

    @property
    def has_micro_conditioning(self) -> bool:
        """Whether it is conditioned on sizes, as SDXL is."""
        return self.latent_diffusion.unet_config.time_id_channels is not None

    @property
    def has_aesthetic_score(self) -> bool:
        """Whether it is conditioned on an aesthetic score, as the refiner is."""
        return takes_aesthetic_score(self.latent_diffusion.unet_config, self.text_encoders[-1].config.projection_dim)

    @property
    def size_multiple(self) -> int:
        """Pixels that sides must be multiples of: the network halves the latents between its stages."""
        return self.latent_diffusion.vae.downsample_factor * 2 ** (len(self.latent_diffusion.unet_config.stages) - 1)

    @property
    def network_shape(self) -> NetworkShape:
        """What sets the windows of its network."""
        networks = self.latent_diffusion
        multiple = self.size_multiple // networks.vae.downsample_factor
        return NetworkShape(networks.unet, self.sample_size, multiple)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All that it computes with, beside the safety checker."""
        return (self.latent_diffusion.unet, self.latent_diffusion.vae, *self.text_encoders)

    def within(self, work: int) -> "StableDiffusion":
        """The same model, whose networks take at most `work` bytes beside their weights."""
        runtime = replace(self.latent_diffusion.runtime, work=work)
        return replace(self, latent_diffusion=replace(self.latent_diffusion, runtime=runtime))

    def require_task(self, *verbs: str) -> "StableDiffusion":
        """The model itself, if it was trained for one of `verbs`; Unsupported, naming the right one, if not."""
        if self.kind.primary_task not in verbs:
            raise Unsupported(
                f"{self.name}: holds a {self.pipeline_class}, a checkpoint for {self.kind.trained_for}; "
                f"use enlarger.{self.kind.primary_task}"
            )
        return self

    def bind_schedule(self, sigma_schedule: SigmaSchedule) -> LatentDiffusion:
        """The networks with the timesteps that a sigma schedule lists, if it is one of those they were trained on."""
        is_own_schedule = sigma_schedule.timestep_map.schedule.sigmas.equal(self.sampler.schedule.sigmas)
        return replace(
            self.latent_diffusion, precondition=self.sampler.precondition(sigma_schedule if is_own_schedule else None)
        )

    def condition_one(self, prompt_spec: PromptSpec, size: tuple[int, int]) -> GuidedConditioning:
        """The conditioning for one picture of `size` (height, width)."""
        return self.condition_batch([prompt_spec], size)

    def condition_batch(self, prompt_specs: Sequence[PromptSpec], size: tuple[int, int]) -> GuidedConditioning:
        """The same for a batch of prompts of one length that differ in nothing else."""
        if self.shared is None:
            return self._condition_batch(prompt_specs, size)
        key = (tuple(prompt_specs), size)
        if key not in self.shared:
            self.shared[key] = self._condition_batch(prompt_specs, size)
        return self.shared[key]

    def sharing_prompts(self) -> "StableDiffusion":
        """The same for one request, whose equal prompts are encoded once."""
        return replace(self, shared={})

    def _condition_batch(self, prompt_specs: Sequence[PromptSpec], size: tuple[int, int]) -> GuidedConditioning:
        first_spec = prompt_specs[0]
        negatives = [one.negative for one in prompt_specs] if first_spec.guidance.scale != 1 else None
        aesthetic_scores = first_spec.aesthetic_scores if self.has_aesthetic_score else (None, None)
        micro_conditioning, negative_micro_conditioning = (
            MicroConditioning(size, (0, 0), size, score) for score in aesthetic_scores
        )
        prompts = [one.prompt for one in prompt_specs]
        return self.condition(
            prompts,
            negatives,
            first_spec.guidance,
            micro_conditioning,
            negative_micro_conditioning,
            long_prompt=first_spec.long_prompt,
        )

    def condition(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None,
        guidance: Guidance,
        micro_conditioning: MicroConditioning | None = None,
        negative_micro_conditioning: MicroConditioning | None = None,
        *,
        long_prompt: bool = False,
    ) -> GuidedConditioning:
        """The conditioning for prompts, which may carry weights, `(word:1.2)`; `negatives` None runs one branch.

        Empty negative prompts are zeros where the checkpoint was trained so. SDXL needs `micro_conditioning`.
        """
        channels = self.latent_diffusion.unet_config.time_id_channels
        if channels is None:
            text = encode_guided_prompts(
                self.tokenizers[0],
                self.text_encoders[0],
                self.latent_diffusion.runtime,
                prompts,
                negatives,
                "last_norm",
                long_prompt,
                weighted=True,
                clip_skip=self._skipped_layers(1),
            )
            return condition_on_tokens(text, guidance)
        assert micro_conditioning is not None, "SDXL is conditioned on sizes"
        text = encode_guided_prompts_xl(
            self.tokenizers,
            self.text_encoders,
            self.latent_diffusion.runtime,
            prompts,
            negatives,
            long_prompt,
            weighted=True,
            clip_skip=self._skipped_layers(2),
        )
        if self.force_zeros_for_empty_prompt and negatives is not None and not any(negatives):
            text = zero_negative(text)
        time_ids: list[Tensor] = [
            micro_conditioning.time_ids(),
            (negative_micro_conditioning or micro_conditioning).time_ids(),
        ]
        return condition_on_tokens_and_sizes(text, guidance, time_ids[0], time_ids[1], channels)

    def _skipped_layers(self, usual: int) -> int:
        """How many layers before the `usual` one, counted from the end, are read."""
        return 0 if self.clip_skip is None else self.clip_skip - usual

    def parts(self) -> dict[str, Any]:
        """The networks and tokenizers that adapters change, by their names in model_index.json."""
        encoders = ["text_encoder", "text_encoder_2"]
        if len(self.text_encoders) == 1 and self.has_micro_conditioning:
            encoders = ["text_encoder_2"]  # SDXL's refiner
        named = dict(zip(encoders, self.text_encoders, strict=False))
        tokenizers = zip(encoders, self.tokenizers, strict=False)
        return {
            "unet": self.latent_diffusion.unet,
            **named,
            **{name.replace("text_encoder", "tokenizer"): tokenizer for name, tokenizer in tokenizers},
        }

    def with_parts(self, parts: Mapping[str, Any]) -> "StableDiffusion":
        """The same model with other networks and tokenizers, as `parts` names them."""
        encoders = [name for name in ("text_encoder", "text_encoder_2") if name in parts]
        return replace(
            self,
            shared=None,
            latent_diffusion=replace(self.latent_diffusion, unet=parts["unet"]),
            text_encoders=tuple(parts[name] for name in encoders),
            tokenizers=tuple(parts[name.replace("text_encoder", "tokenizer")] for name in encoders),
        )

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of a picture of `size` (height, width) whose sides the autoencoder divides evenly."""
        factor = self.vae.downsample_factor
        return size[0] // factor, size[1] // factor

    def sampler_for(self, options: Mapping[str, Any]) -> Sampler:
        """The checkpoint's sampler as a request's options change it."""
        return self.sampler.with_solver(options["solver"], options["spacing"])

    def sampling_plan(
        self, steps: int, solver: str | None, seeds: Sequence[int], spacing: str | None = None
    ) -> SamplingPlan:
        """The whole sigma schedule of `steps` with a generator per image."""
        sampler = self.sampler.with_solver(solver, spacing)
        return SamplingPlan(sampler.sigma_schedule(steps), sampler.make_solver(), from_seeds(seeds))


def zero_negative(text: GuidedText) -> GuidedText:
    """The negative branch as zeros, which SDXL's base model was trained to see without a prompt."""
    assert text.negative is not None
    negative = text.negative
    return GuidedText(text.positive, PromptEmbeds(negative.tokens * 0, negative.pooled * 0, negative.mask))


def load_stable_diffusion(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
) -> StableDiffusion:
    """Read a folder in diffusers' layout, a single file, or the copy of a name in the cache."""
    runtime, dtype = resolve_runtime(device, precision, offload, engine)
    return build_stable_diffusion(as_checkpoint(model).open(dtype), runtime, str(model))


def build_stable_diffusion(bundle: PipelineComponents, runtime: Runtime, name: str) -> StableDiffusion:
    """The parts of a folder put in their places; Unsupported for a folder of another family."""
    parts, pipeline_class = bundle.components, str(bundle.index.get("_class_name"))
    text_encoders = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
    missing = [part for part in ("unet", "vae", "scheduler") if part not in parts]
    has_known_parts = isinstance(parts.get("unet"), UNet) and isinstance(parts.get("vae"), AutoencoderKL)
    if missing or not text_encoders or not has_known_parts:
        advice = "; use enlarger.upscale" if "Upscale" in pipeline_class else ""
        raise Unsupported(
            f"{name}: holds a {pipeline_class}, expected a checkpoint of the Stable Diffusion family{advice}"
        )
    sampler = sampler_from_config(parts["scheduler"])
    has_micro_conditioning = getattr(parts["unet"].config, "time_id_channels", None) is not None
    low_res_schedule = (
        sampler_from_config(parts["low_res_scheduler"]).schedule if "low_res_scheduler" in parts else None
    )
    upcast = parts["vae"].config.force_upcast and (has_micro_conditioning or low_res_schedule is not None)
    latent_diffusion = LatentDiffusion(parts["unet"], parts["vae"], sampler.precondition(), runtime, upcast)
    stated_sample_size: Any = bundle.network_configs.get("unet", {}).get("sample_size")
    return StableDiffusion(
        name, kind_of(bundle, name), bundle.path, pipeline_class, latent_diffusion, sampler,
        tuple(parts[encoder.replace("text_encoder", "tokenizer")] for encoder in text_encoders),
        tuple(parts[encoder] for encoder in text_encoders),
        stated_sample_size if isinstance(stated_sample_size, int) else DEFAULT_SAMPLE_SIZE,
        bool(bundle.index.get("force_zeros_for_empty_prompt", False)),
        low_res_schedule, int(bundle.index.get("max_noise_level", 350)), *_load_safety_checker(bundle, runtime),
        bundle.model_folder,
    )  # fmt: skip


def _load_safety_checker(bundle: PipelineComponents, runtime: Runtime) -> tuple[SafetyChecker | None, str | None]:
    """The checker that the folder names, or why it cannot be used."""
    checker_class: Any = bundle.index.get("safety_checker") or (None, None)
    note = None if checker_class[1] is None else missing_checker_note(bundle.path)
    if checker_class[1] is None or note is not None:
        return None, note
    return SafetyChecker.from_folder(bundle.path, runtime=runtime), None
