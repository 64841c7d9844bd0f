"""From prompts to what a network is conditioned on: tokens, and for SDXL a vector of sizes and scores."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning, is_equal, stack_branches
from enlarger.diffusion.guidance import Guidance
from enlarger.nn.blocks import sinusoidal_embedding
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.runtime import Runtime
from enlarger.text.encode import OutputLayer, PromptEmbeds, encode_prompts, encode_prompts_xl
from enlarger.text.prompt_words import unheard_words
from enlarger.text.tokenize import Tokenizer
from enlarger.text.weights import unusual_weights

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class GuidedConditioning:
    """The conditioning of the prompts and, where guidance needs it, of the negative prompts."""

    positive: Conditioning
    negative: Conditioning | None = None
    guidance: Guidance = Guidance()

    def branches(self) -> tuple[Conditioning, Conditioning | None]:
        """What a network is told alone, and what in a run with guidance: the negative branch stacked on the positive.

        A branch that cannot matter is left out: the negative one at scale 1 or where it is told the same, the positive
        one at scale 0.
        """
        positive, negative, guidance = self.positive, self.negative, self.guidance
        if negative is None or (not guidance.is_live and (guidance.scale == 1 or is_equal(positive, negative))):
            return positive, None
        if guidance.is_unconditional:
            return negative, None
        return positive, stack_branches(negative, positive)

    def with_fields(self, **fields: Tensor) -> "GuidedConditioning":
        """The same with more fields of `Conditioning`, equal in both branches."""
        negative = None if self.negative is None else replace(self.negative, **fields)
        return replace(self, positive=replace(self.positive, **fields), negative=negative)


@dataclass(frozen=True)
class PromptSpec:
    """The prompts of one picture, and how strongly they guide."""

    prompt: str
    negative: str
    guidance: Guidance
    aesthetic_scores: tuple[float | None, float | None] = (None, None)  # aesthetic, and of the negative branch
    long_prompt: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not heard, or likely not meant, one line each."""
        words = prompt_notes(self.prompt, self.negative)
        is_ignored = self.guidance.scale == 1 and self.negative
        return (*words, "the negative prompt is not used: at guidance 1 only the prompt is") if is_ignored else words


def prompt_notes(*texts: str) -> tuple[str, ...]:
    """What is said of the words of prompts, one line each."""
    return tuple(dict.fromkeys(note for text in texts for note in (*unheard_words(text), *unusual_weights(text))))


def prompt_spec_from_options(options: Mapping[str, Any]) -> PromptSpec:
    """Those of a request for one picture, with its defaults filled in."""
    guidance = Guidance(options["guidance"], options.get("rescale", 0.0))
    aesthetic_scores = (options.get("score"), options.get("negative_score"))
    return PromptSpec(options["prompt"], options["negative"], guidance, aesthetic_scores, options["long_prompt"])


@dataclass(frozen=True)
class MicroConditioning:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), in pixels, height before width.

    With an `aesthetic_score` (the refiner's) that stands in the target size's place.
    """

    original_size: Size
    crop_top_left: Size
    target_size: Size
    aesthetic_score: float | None = None

    def time_ids(self) -> Tensor:
        """The 6 numbers of the base model or the 5 of the refiner, (1, n)."""
        last = self.target_size if self.aesthetic_score is None else (self.aesthetic_score,)
        return torch.tensor([[*self.original_size, *self.crop_top_left, *last]], dtype=torch.float32)


@dataclass(frozen=True)
class GuidedText:
    """Features of the prompts, and of the negative prompts where guidance needs them."""

    positive: PromptEmbeds
    negative: PromptEmbeds | None = None


def encode_guided_prompts(
    tokenizer: Tokenizer, encoder: ClipText, runtime: Runtime,
    prompts: Sequence[str], negatives: Sequence[str] | None, layer: OutputLayer, long_prompt: bool = False,
    weighted: bool = False, clip_skip: int = 0,
) -> GuidedText:  # fmt: skip
    """Prompts and negative prompts in one call, which gives them one length."""
    with runtime.hold(encoder):
        encoded = encode_prompts(
            tokenizer,
            encoder,
            [*prompts, *(negatives or ())],
            layer=layer,
            long_prompt=long_prompt,
            weighted=weighted,
            clip_skip=clip_skip,
        )
    return _split_branches(encoded, len(prompts), negatives is not None)


def encode_guided_prompts_xl(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[ClipText], runtime: Runtime,
    prompts: Sequence[str], negatives: Sequence[str] | None, long_prompt: bool = False, weighted: bool = False,
    clip_skip: int = 0,
) -> GuidedText:  # fmt: skip
    """The same for SDXL: one or two encoders that read the same prompts."""
    texts = [*prompts, *(negatives or ())]
    with ExitStack() as held_encoders:
        for encoder in encoders:
            held_encoders.enter_context(runtime.hold(encoder))
        encoded = encode_prompts_xl(
            tokenizers,
            encoders,
            [texts] * len(encoders),
            long_prompt=long_prompt,
            weighted=weighted,
            clip_skip=clip_skip,
        )
    return _split_branches(encoded, len(prompts), negatives is not None)


def _split_branches(encoded: PromptEmbeds, count: int, is_guided: bool) -> GuidedText:
    """Features of the prompts, then of the negative prompts."""
    first, second = (
        PromptEmbeds(encoded.tokens[part], encoded.pooled[part], encoded.mask[part])
        for part in (slice(count), slice(count, None))
    )
    return GuidedText(first, second if is_guided else None)


def condition_on_tokens(text: GuidedText, guidance: Guidance = Guidance()) -> GuidedConditioning:
    """Stable Diffusion 1 and 2: the tokens and nothing else."""
    negative = None if text.negative is None else Conditioning(text.negative.tokens)
    return GuidedConditioning(Conditioning(text.positive.tokens), negative, guidance)


def condition_on_tokens_and_sizes(
    text: GuidedText, guidance: Guidance, time_ids: Tensor, negative_time_ids: Tensor, channels: int
) -> GuidedConditioning:
    """SDXL: tokens, and the pooled text with a sinusoid of `channels` per number. Sizes are (1 or B, n)."""
    negative = None if text.negative is None else _conditioning_with_sizes(text.negative, negative_time_ids, channels)
    return GuidedConditioning(_conditioning_with_sizes(text.positive, time_ids, channels), negative, guidance)


def _conditioning_with_sizes(text: PromptEmbeds, time_ids: Tensor, channels: int) -> Conditioning:
    batched_time_ids = time_ids.expand(len(text.tokens), -1).to(text.pooled.device)
    time_embeds = sinusoidal_embedding(batched_time_ids.flatten(), channels).reshape(len(batched_time_ids), -1)
    return Conditioning(text.tokens, vector=torch.cat([text.pooled, time_embeds.to(text.pooled)], 1))


def vector_of(pooled: Tensor, time_ids: Tensor, channels: int) -> Tensor:
    """SDXL's vector: pooled features (B, D), then a sinusoid of `channels` per number (B, n)."""
    return torch.cat(
        [pooled, sinusoidal_embedding(time_ids.flatten(), channels).reshape(len(time_ids), -1).to(pooled)], 1
    )


def replace_in_vector(vector: Tensor, channels: int, pooled: Tensor | None, time_ids: Tensor | None) -> Tensor:
    """SDXL's vector with other pooled features (B, D) or other numbers (B, n) in it, each of `channels`."""
    width = None if pooled is None else pooled.shape[1]
    if time_ids is not None:
        numbers = sinusoidal_embedding(time_ids.flatten(), channels).reshape(len(time_ids), -1).to(vector)
        width = vector.shape[1] - numbers.shape[1]
    else:
        numbers = vector[:, width:]
    front = vector[:, :width] if pooled is None else pooled.to(vector)
    rows = max(len(front) if pooled is not None else 0, len(numbers) if time_ids is not None else 0)
    return torch.cat([front[-rows:], numbers[-rows:]], 1)


def embed_guidance_scale(scale: float, count: int, channels: int) -> Tensor:
    """What a network distilled with guidance is told of its scale, (count, channels) (Meng et al. 2023)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half))
    angles = (1000.0 * (scale - 1) * frequencies).expand(count, -1)
    return torch.cat([angles.sin(), angles.cos()], 1)
