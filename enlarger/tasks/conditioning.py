"""From text features to what a network is told: tokens alone, or SDXL's tokens with a vector of sizes and scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.nn.blocks import sinusoidal_embedding
from enlarger.tasks.result import GuidedText
from enlarger.tasks.sampling import GuidedConditioning
from enlarger.text.encode import PromptEmbeds

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class MicroConditioning:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), in pixels, height before width.

    With a `score` (the refiner's aesthetic score) the network is told that in the target's place.
    """

    original_size: Size
    crop_top_left: Size
    target_size: Size
    aesthetic_score: float | None = None

    def time_ids(self) -> Tensor:
        """The 6 numbers of the base model or the 5 of the refiner, (1, n)."""
        last = self.target_size if self.aesthetic_score is None else (self.aesthetic_score,)
        return torch.tensor([[*self.original_size, *self.crop_top_left, *last]], dtype=torch.float32)


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
