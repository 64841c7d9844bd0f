"""Captions to what a network is told of the text: tokens, and the pooled text where it has a place."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.conditioning import MicroConditioning, vector_of
from enlarger.text.encode import PromptEmbeds, encode_prompts, encode_prompts_xl
from enlarger.text.tokenize import Tokenizer
from enlarger.train.data import TrainingBatch
from enlarger.train.data.cache import TensorCache
from enlarger.train.draws import Draws

Features = Literal["normalised", "with_sizes", "with_pooled"]
"""What is read: Stable Diffusion's normalised last state; SDXL's, with the pooled text and sizes; x2's last state as it
is, with the pooled text."""


@dataclass(frozen=True, eq=False)
class Captions:
    """The text encoders and how often their text is left out, which is what makes guidance work (Ho 2022)."""

    tokenizers: tuple[Tokenizer, ...]
    encoders: tuple[ClipText, ...]
    runtime: Runtime
    features: Features = "normalised"
    dropout: float = 0.0
    zero_dropped: bool = False  # text left out is zeros, not the empty text (SDXL base)
    time_id_channels: int = 0  # of each of SDXL's sizes
    cache: TensorCache | None = None

    def __call__(self, batch: TrainingBatch, draws: Draws) -> Conditioning:
        dropped = draws.uniform() < self.dropout
        texts = ["" if bool(drop) else caption for caption, drop in zip(batch.captions, dropped, strict=True)]
        embeds = self._encode(texts)
        if self.zero_dropped:
            kept = (~dropped).to(embeds.pooled)[:, None]
            embeds = PromptEmbeds(embeds.tokens * kept[..., None], embeds.pooled * kept, embeds.mask)
        if self.features == "normalised":
            return Conditioning(embeds.tokens)
        if self.features == "with_pooled":
            return Conditioning(embeds.tokens, vector=embeds.pooled)
        vector = vector_of(embeds.pooled, _time_ids(batch).to(embeds.pooled.device), self.time_id_channels)
        return Conditioning(embeds.tokens, vector=vector)

    def _encode(self, texts: Sequence[str]) -> PromptEmbeds:
        """Features of captions; with a cache, each by itself, and only once."""
        if self.cache is None:
            return self._compute(texts)
        found = [self.cache.get(self._key(text), lambda text=text: vars(self._compute([text]))) for text in texts]
        tokens, pooled, mask = (
            torch.cat([each[name] for each in found]).to(self.runtime.device) for name in ("tokens", "pooled", "mask")
        )
        return PromptEmbeds(tokens, pooled, mask)

    def _key(self, text: str) -> str:
        """What the features of a text follow from, beside the encoders: which of them are read, and its tokens."""
        rows = [tokenizer([text]) for tokenizer in self.tokenizers]
        return " ".join([self.features, *(f"{row.ids.tolist()} {row.mask.tolist()}" for row in rows)])

    def _compute(self, texts: Sequence[str]) -> PromptEmbeds:
        """Features of captions; of one that is too long, what fits, as everywhere in training."""
        for encoder in self.encoders:
            encoder.to(self.runtime.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the prompt is longer than")
            if self.features == "with_sizes":
                return encode_prompts_xl(self.tokenizers, self.encoders, [texts] * len(self.encoders))
            layer = "last" if self.features == "with_pooled" else "last_norm"
            return encode_prompts(self.tokenizers[0], self.encoders[0], texts, layer=layer)


def _time_ids(batch: TrainingBatch) -> Tensor:
    """SDXL's six numbers of each sample, (B, 6)."""
    sizes = zip(batch.original_size, batch.crop_top_left, strict=True)
    return torch.cat([MicroConditioning(original, crop, batch.target_size).time_ids() for original, crop in sizes])
