"""From text features to what a network is told: tokens alone, or SDXL's tokens with a vector of sizes and scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.nn.blocks import sinusoid
from enlarger.tasks.denoise import Told
from enlarger.tasks.parts import Text
from enlarger.text.encode import Encoded

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Sizes:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), in pixels, height before width.

    With a `score` (the refiner's aesthetic score) the network is told that in the target's place.
    """

    original: Size
    crop: Size
    target: Size
    score: float | None = None

    def row(self) -> Tensor:
        """The 6 numbers of the base model or the 5 of the refiner, (1, n)."""
        last = self.target if self.score is None else (self.score,)
        return torch.tensor([[*self.original, *self.crop, *last]], dtype=torch.float32)


def told_tokens(text: Text, guidance: Guidance = Guidance()) -> Told:
    """Stable Diffusion 1 and 2: the tokens and nothing else."""
    negative = None if text.negative is None else Conditioning(text.negative.tokens)
    return Told(Conditioning(text.positive.tokens), negative, guidance)


def told_sizes(text: Text, guidance: Guidance, sizes: Tensor, negative_sizes: Tensor, channels: int) -> Told:
    """SDXL: tokens, and the pooled text with a sinusoid of `channels` per number. Sizes are (1 or B, n)."""
    negative = None if text.negative is None else _with_vector(text.negative, negative_sizes, channels)
    return Told(_with_vector(text.positive, sizes, channels), negative, guidance)


def _with_vector(text: Encoded, sizes: Tensor, channels: int) -> Conditioning:
    numbers = sizes.expand(len(text.tokens), -1).to(text.pooled.device)
    scalars = sinusoid(numbers.flatten(), channels).reshape(len(numbers), -1)
    return Conditioning(text.tokens, vector=torch.cat([text.pooled, scalars.to(text.pooled)], 1))


def vector_replaced(vector: Tensor, channels: int, pooled: Tensor | None, sizes: Tensor | None) -> Tensor:
    """SDXL's vector with other pooled features (B, D) or other numbers (B, n) in it, each of `channels`."""
    width = None if pooled is None else pooled.shape[1]
    if sizes is not None:
        numbers = sinusoid(sizes.flatten(), channels).reshape(len(sizes), -1).to(vector)
        width = vector.shape[1] - numbers.shape[1]
    else:
        numbers = vector[:, width:]
    front = vector[:, :width] if pooled is None else pooled.to(vector)
    rows = max(len(front) if pooled is not None else 0, len(numbers) if sizes is not None else 0)
    return torch.cat([front[-rows:], numbers[-rows:]], 1)
