"""Prompts to features with SDXL's text encoders: two side by side, or the refiner's one."""

from collections.abc import Sequence

import torch

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipText
from enlarger.text.encode import PromptEmbeds, encode_chunks, pad_chunks, tokenize_prompts, warn_truncated
from enlarger.text.tokenize import Tokenizer


def encode_prompts_xl(
    tokenizers: Sequence[Tokenizer],
    encoders: Sequence[ClipText],
    prompts: Sequence[Sequence[str]],
    *,
    long_prompt: bool = False,
    weighted: bool = False,
    clip_skip: int = 0,
) -> PromptEmbeds:
    """Encode prompts that belong together; `texts[i]` are those for encoder i, as many for each.

    `tokens` are the states before each encoder's last layer, one encoder's beside the other's (768 + 1280 wide), and
    `pooled` is the last encoder's projected text (Podell et al. 2023, section 2.1). With `long`, all have as many
    pieces as the longest text of any needs. `mask` is True where a token is real to any encoder. `clip_skip` counts
    layers back from there: state -(clip_skip + 2) of each encoder. The rest is as in `encode`.
    """
    _check_inputs(tokenizers, encoders, prompts)
    chunks = [
        tokenize_prompts(one, found, long_prompt, weighted) for one, found in zip(tokenizers, prompts, strict=True)
    ]
    warn_truncated(tokenizers[-1], [row for found in chunks for row in found])
    num_chunks = max(len(found) for found in chunks)
    embeds = [
        encode_chunks(tokenizer, encoder, pad_chunks(tokenizer, found, num_chunks), "penultimate", clip_skip)
        for tokenizer, encoder, found in zip(tokenizers, encoders, chunks, strict=True)
    ]
    last = embeds[-1]
    tokens = torch.cat([one.tokens.to(last.tokens) for one in embeds], dim=-1)
    mask = torch.stack([one.mask.to(last.mask.device) for one in embeds]).any(0)
    return PromptEmbeds(tokens, last.pooled, mask)


def _check_inputs(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[ClipText], texts: Sequence[Sequence[str]]
) -> None:
    counts = len(tokenizers), len(encoders), len(texts)
    if len(set(counts)) > 1 or not 1 <= len(encoders) <= 2:
        found = "{} tokenizers, {} text encoders and prompts for {}".format(*counts)
        raise InputError(f"found {found}, expected one or two of each.")
    if any(isinstance(prompts, str) for prompts in texts):
        raise InputError("texts holds a string for an encoder, expected a list of prompts for each.")
    if len({len(prompts) for prompts in texts}) > 1:
        found = " and ".join(str(len(prompts)) for prompts in texts)
        raise InputError(f"the encoders got {found} prompts, expected as many for each.")
    if encoders[-1].config.projection_dim is None:
        raise InputError("the last text encoder has no projection, expected SDXL's second one (text_encoder_2).")
