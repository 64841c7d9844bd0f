"""A checkpoint of the Stable Diffusion family, read once for many requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from enlarger.checkpoint.folder import Bundle
from enlarger.checkpoint.schedulers import schedule_config
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.errors import Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet, UNetConfig
from enlarger.runtime.runtime import Offload, Runtime, pick_device, pick_precision
from enlarger.tasks.denoise import Method, Told
from enlarger.tasks.latents import Space, space_of
from enlarger.tasks.networks import Networks
from enlarger.tasks.parts import Text, encode_text, encode_texts
from enlarger.tasks.reading import Location, checkpoint_at
from enlarger.tasks.safety import SafetyChecker, note_without_checker
from enlarger.tasks.told import Sizes, told_sizes, told_tokens
from enlarger.text.encode import Encoded
from enlarger.text.tokenize import Tokenizer

SIDE = 64  # latents along a side where the UNet's file does not say
NAMES = {"generate": "text-to-image", "refine": "refiner", "upscale": "x4 upscaling"}  # others are called by their verb


@dataclass(frozen=True)
class Words:
    """What one picture's networks are told in words, and how strongly."""

    prompt: str
    negative: str
    guidance: Guidance
    scores: tuple[float | None, float | None] = (None, None)  # aesthetic, and of the negative branch
    long: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not heard, one line each."""
        unheard = self.guidance.scale == 1 and self.negative
        return ("the negative prompt is not used: at guidance 1 only the prompt is",) if unheard else ()


def words_of(options: Mapping[str, Any]) -> Words:
    """Those of a request for one picture, with its defaults filled in."""
    guidance = Guidance(options["guidance"], options.get("rescale", 0.0))
    scores = (options.get("score"), options.get("negative_score"))
    return Words(options["prompt"], options["negative"], guidance, scores, options["long_prompt"])


@dataclass(frozen=True, eq=False)
class Model:
    """The parts of one checkpoint. Lists of text encoders run from the first; SDXL's refiner has only the second."""

    name: str
    path: Path  # where it was read
    kind: str  # the pipeline class that model_index.json names
    networks: Networks
    sampler: Sampler
    tokenizers: tuple[Tokenizer, ...]
    encoders: tuple[ClipText, ...]
    side: int = SIDE  # latents along a side of the pictures it was trained on
    zero_empty: bool = False  # an absent negative prompt is zeros (SDXL base)
    low_res: NoiseSchedule | None = None  # the x4 upscaler's schedule for its input
    most_noise: int = 350  # of that schedule
    checker: SafetyChecker | None = None
    unchecked: str | None = None  # why there is no checker though the checkpoint names one

    def judge(self, pictures: Sequence[Tensor]) -> tuple[tuple[bool, ...] | None, tuple[str, ...]]:
        """What the safety checker flags among pictures (3, H, W) in -1..1, and what is to be said of that.

        Nothing happens to a flagged picture: what to do with it is the caller's.
        """
        if self.checker is None:
            return None, () if self.unchecked is None else (self.unchecked,)
        flags = tuple(self.checker(picture[None].clamp(-1, 1))[0] for picture in pictures)
        return flags, (("the safety checker flags this; see `flagged`",) if any(flags) else ())

    @property
    def space(self) -> Space:
        """Whose latents it works on."""
        return space_of(self.networks.vae.config)

    @property
    def sized(self) -> bool:
        """Whether it is told sizes, as SDXL is."""
        return self.networks.config.scalar_channels is not None

    @property
    def scored(self) -> bool:
        """Whether it is told an aesthetic score, as the refiner is."""
        return is_scored(self.networks.config, self.encoders[-1].config.projection)

    @property
    def granularity(self) -> int:
        """Pixels that sides must be multiples of: the network halves the latents between its stages."""
        return self.networks.vae.factor * 2 ** (len(self.networks.config.stages) - 1)

    @property
    def task(self) -> str:
        """The verb that the checkpoint was trained for; SDXL's refiner and base, and SD's, can do "refine" too."""
        if self.low_res is not None:
            return "upscale"
        return verb_of(self.networks.config, self.networks.vae.config.latent_channels, self.scored)

    def for_task(self, *tasks: str) -> "Model":
        """The model itself, if it was trained for one of `tasks`; Unsupported, naming the right verb, if not."""
        if self.task not in tasks:
            found = NAMES.get(self.task, self.task)
            advice = "check its files" if self.task == "nothing" else f"use enlarger.{self.task}"
            raise Unsupported(f"{self.name}: holds a {self.kind}, a checkpoint for {found}; {advice}")
        return self

    def on(self, course: Course) -> Networks:
        """The networks, told the times that a course lists, if it runs over the noise levels they were trained on."""
        own = course.clock.schedule.sigmas.equal(self.sampler.schedule.sigmas)
        return replace(self.networks, precondition=self.sampler.precondition(course if own else None))

    def tell_one(self, words: Words, size: tuple[int, int]) -> Told:
        """What the network is told of one picture of `size` (height, width)."""
        return self.tell_several([words], size)

    def tell_several(self, several: Sequence[Words], size: tuple[int, int]) -> Told:
        """The same of a batch whose words differ in the prompts alone, and those not in length."""
        words = several[0]
        negatives = [one.negative for one in several] if words.guidance.scale != 1 else None
        scores = words.scores if self.scored else (None, None)
        sizes, negative_sizes = (Sizes(size, (0, 0), size, score) for score in scores)
        prompts = [one.prompt for one in several]
        return self.tell(prompts, negatives, words.guidance, sizes, negative_sizes, long=words.long)

    def tell(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, guidance: Guidance,
        sizes: Sizes | None = None, negative_sizes: Sizes | None = None, *, long: bool = False,
    ) -> Told:  # fmt: skip
        """What the network is told. Prompts may carry weights, `(word:1.2)`; `negatives` None runs one branch.

        Empty negative prompts are zeros where the checkpoint was trained so. SDXL needs `sizes`.
        """
        channels = self.networks.config.scalar_channels
        if channels is None:
            text = encode_text(
                self.tokenizers[0], self.encoders[0], self.networks.runtime, prompts, negatives, "last_norm", long,
                weighted=True,
            )  # fmt: skip
            return told_tokens(text, guidance)
        assert sizes is not None, "SDXL is told sizes"
        text = encode_texts(
            self.tokenizers, self.encoders, self.networks.runtime, prompts, negatives, long, weighted=True
        )
        if self.zero_empty and negatives is not None and not any(negatives):
            text = zeroed(text)
        rows: list[Tensor] = [sizes.row(), (negative_sizes or sizes).row()]
        return told_sizes(text, guidance, rows[0], rows[1], channels)

    def sampler_with(self, solver: str | None) -> Sampler:
        """The checkpoint's sampler, with another solver if one is named."""
        return self.sampler.using(solver)

    def method(self, steps: int, solver: str | None, seeds: Sequence[int]) -> Method:
        """A whole course of `steps` with a generator per image."""
        sampler = self.sampler_with(solver)
        return Method(sampler.course(steps), sampler.method(), from_seeds(seeds))


def is_scored(unet: UNetConfig, pooled: int | None) -> bool:
    """Whether a UNet is told an aesthetic score: beside the pooled text its vector holds 5 numbers, not 6."""
    scalars = unet.scalar_channels
    return scalars is not None and unet.vector_channels == (pooled or 0) + 5 * scalars


def verb_of(unet: UNetConfig, latent: int, scored: bool) -> str:
    """What a UNet on latents of so many channels was trained for; its further input channels tell."""
    extra = unet.in_channels - latent
    return {0: "refine" if scored else "generate", 1: "depth", latent + 1: "inpaint"}.get(extra, "nothing")


def zeroed(text: Text) -> Text:
    """The negative branch as zeros, which SDXL's base model was trained to see without a prompt."""
    assert text.negative is not None
    found = text.negative
    return Text(text.positive, Encoded(found.tokens * 0, found.pooled * 0, found.mask))


def load_model(
    model: Location, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Model:  # fmt: skip
    """Read a folder in diffusers' layout, a single file, or the copy of a name in the cache."""
    place = pick_device(device)
    bundle = checkpoint_at(model).open(pick_precision(precision, place))
    return model_of(bundle, Runtime(place, offload), str(model))


def model_of(bundle: Bundle, runtime: Runtime, name: str) -> Model:
    """The parts of a folder put in their places; Unsupported for a folder of another family."""
    parts, kind = bundle.components, str(bundle.index.get("_class_name"))
    encoders = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
    missing = [part for part in ("unet", "vae", "scheduler") if part not in parts]
    ours = isinstance(parts.get("unet"), UNet) and isinstance(parts.get("vae"), AutoencoderKL)
    if missing or not encoders or not ours:
        advice = "; use enlarger.upscale" if "Upscale" in kind else ""
        raise Unsupported(f"{name}: holds a {kind}, expected a checkpoint of the Stable Diffusion family{advice}")
    sampler = schedule_config(parts["scheduler"])
    sized = getattr(parts["unet"].config, "scalar_channels", None) is not None
    low_res = schedule_config(parts["low_res_scheduler"]).schedule if "low_res_scheduler" in parts else None
    upcast = parts["vae"].config.force_upcast and (sized or low_res is not None)
    networks = Networks(parts["unet"], parts["vae"], sampler.precondition(), runtime, upcast)
    stated: Any = bundle.configs.get("unet", {}).get("sample_size")
    return Model(
        name, bundle.path, kind, networks, sampler,
        tuple(parts[encoder.replace("text_encoder", "tokenizer")] for encoder in encoders),
        tuple(parts[encoder] for encoder in encoders),
        stated if isinstance(stated, int) else SIDE,
        bool(bundle.index.get("force_zeros_for_empty_prompt", False)),
        low_res, int(bundle.index.get("max_noise_level", 350)), *_checker(bundle, runtime),
    )  # fmt: skip


def _checker(bundle: Bundle, runtime: Runtime) -> tuple[SafetyChecker | None, str | None]:
    """The checker that the folder names, or why it cannot be used."""
    stated: Any = bundle.index.get("safety_checker") or (None, None)
    note = None if stated[1] is None else note_without_checker(bundle.path)
    if stated[1] is None or note is not None:
        return None, note
    return SafetyChecker.from_folder(bundle.path, runtime=runtime), None
