"""Prompts to the features that the networks attend to."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipText, ClipTextOutput
from enlarger.text.tokenize import TokenizedPrompts, Tokenizer
from enlarger.text.weights import apply_token_weights

# Which state the networks attend to: SD1 and SD2 the last one normalised; the x2 upscaler the last one as it is;
# SDXL the one before it as it is.
OutputLayer = Literal["last_norm", "last", "penultimate"]
Prompt = TypeVar("Prompt", bound=Hashable)  # a text, or one for each of two encoders


@dataclass(frozen=True)
class PromptEmbeds:
    """Text features of B prompts; L is 77, or a multiple of it for long prompts."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor  # (B, D), or (B, P) from encoders with a projection
    mask: Tensor  # (B, L) bool, True at real tokens, start and end included

    def rows(self, rows: Sequence[int]) -> "PromptEmbeds":
        """Those of some prompts, in that order."""
        return PromptEmbeds(self.tokens[rows], self.pooled[rows], self.mask[rows])


def encode_prompts(
    tokenizer: Tokenizer,
    encoder: ClipText,
    prompts: Sequence[str],
    *,
    layer: OutputLayer = "last_norm",
    long_prompt: bool = False,
    weighted: bool = False,
    clip_skip: int = 0,
) -> PromptEmbeds:
    """Encode prompts that belong together (both branches of a guidance too: one call gives them one length); equal ones
    are encoded once.

    A text over 75 tokens is cut with a warning that names what was cut; with `long_prompt` it is encoded in chunks of
    75, one after another, and shorter texts are filled up with empty ones. `pooled` is the first chunk's.
    `weighted` reads weights, as in `(word:1.2)`, and applies them to `tokens` alone (`text/weights.py`).
    `clip_skip` counts layers back from `layer`; "last_norm" normalises that one instead. It counts as diffusers'
    argument does: 0 is `layer` itself, which other programs call a clip skip of 1 (SD1) or 2 (SDXL).
    """
    if layer not in get_args(OutputLayer):
        raise InputError(f"layer is {layer!r}, expected one of {', '.join(get_args(OutputLayer))}.")
    different, rows = _distinct([prompts] if isinstance(prompts, str) else prompts)
    chunks = tokenize_prompts(tokenizer, different, long_prompt, weighted)
    warn_truncated(tokenizer, chunks)
    encoded = encode_chunks(tokenizer, encoder, chunks, layer, clip_skip)
    return encoded if len(rows) == len(different) else encoded.rows(rows)


def encode_prompts_xl(
    tokenizers: Sequence[Tokenizer],
    encoders: Sequence[ClipText],
    prompts: Sequence[Sequence[str]],
    *,
    long_prompt: bool = False,
    weighted: bool = False,
    clip_skip: int = 0,
) -> PromptEmbeds:
    """Encode prompts that belong together; `prompts[i]` are those for encoder i, as many for each, equal ones once.

    `tokens` are the states before each encoder's last layer, one encoder's beside the other's (768 + 1280 wide), and
    `pooled` is the last encoder's projected text (Podell et al. 2023, section 2.1). With `long_prompt`, all have
    as many chunks as the longest text of any needs. `mask` is True where a token is real to any encoder. `clip_skip`
    counts layers back from there: state -(clip_skip + 2) of each encoder. The rest is as in `encode_prompts`.
    """
    _check_encoders(tokenizers, encoders, prompts)
    different, rows = _distinct(list(zip(*prompts, strict=True)))
    chunks = [
        tokenize_prompts(one, texts, long_prompt, weighted)
        for one, texts in zip(tokenizers, zip(*different, strict=True), strict=True)
    ]
    warn_truncated(tokenizers[-1], [chunk for own_chunks in chunks for chunk in own_chunks])
    num_chunks = max(map(len, chunks))
    embeds = [
        encode_chunks(tokenizer, encoder, pad_chunks(tokenizer, own_chunks, num_chunks), "penultimate", clip_skip)
        for tokenizer, encoder, own_chunks in zip(tokenizers, encoders, chunks, strict=True)
    ]
    last = embeds[-1]
    tokens = torch.cat([one.tokens.to(last.tokens) for one in embeds], dim=-1)
    mask = torch.stack([one.mask.to(last.mask.device) for one in embeds]).any(0)
    encoded = PromptEmbeds(tokens, last.pooled, mask)
    return encoded if len(rows) == len(different) else encoded.rows(rows)


def _distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Each prompt once, in order, and where each of `prompts` is among them."""
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def tokenize_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], long_prompt: bool, weighted: bool
) -> tuple[TokenizedPrompts, ...]:
    """The prompts as one `TokenizedPrompts` per chunk; one alone unless `long_prompt`."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not long_prompt:
        return (tokenizer(prompts, weighted),)
    chunked_prompts = [tokenizer.tokenize_in_chunks(text, weighted) for text in prompts]
    num_chunks = max(len(chunks.ids) for chunks in chunked_prompts)
    padded_prompts = [
        _join_tokens((chunks, _empty_prompts(tokenizer, num_chunks - len(chunks.ids))), torch.cat)
        for chunks in chunked_prompts
    ]
    return tuple(
        _join_tokens(padded_prompts, lambda rows, k=k: torch.stack([row[k] for row in rows])) for k in range(num_chunks)
    )


def pad_chunks(
    tokenizer: Tokenizer, chunks: Sequence[TokenizedPrompts], num_chunks: int
) -> tuple[TokenizedPrompts, ...]:
    """At least `num_chunks` chunks: empty prompts come after the last, with nothing real in them."""
    return (*chunks, *(_empty_prompts(tokenizer, len(chunks[0].ids)) for _ in range(num_chunks - len(chunks))))


def warn_truncated(tokenizer: Tokenizer, chunks: Sequence[TokenizedPrompts]) -> None:
    """Say what did not fit, each part once; the warning points at the caller's caller."""
    for removed_text in dict.fromkeys(text for tokens in chunks for text in tokens.removed_text if text):
        max_tokens = tokenizer.model_max_length - 2
        warnings.warn(
            f"the prompt is longer than {max_tokens} tokens; left out: {removed_text!r}", UserWarning, stacklevel=3
        )


def encode_chunks(
    tokenizer: Tokenizer, encoder: ClipText, chunks: Sequence[TokenizedPrompts], layer: OutputLayer, clip_skip: int
) -> PromptEmbeds:
    """Features of the chunks side by side, weighted where a token has a weight."""
    device = encoder.embeddings.token_embedding.weight.device
    with torch.no_grad():
        features = [encoder(chunk.ids.to(device)) for chunk in chunks]
        hidden_states = [_select_hidden_state(encoder, output, layer, clip_skip) for output in features]
        if any(bool((chunk.weights != 1).any()) for chunk in chunks):
            empty = _select_hidden_state(encoder, encoder(tokenizer([""]).ids.to(device)), layer, clip_skip)
            hidden_states = [
                apply_token_weights(x, empty, chunk.weights.to(device))
                for x, chunk in zip(hidden_states, chunks, strict=True)
            ]
    first: ClipTextOutput = features[0]
    pooled = first.pooler_output if first.text_embeds is None else first.text_embeds
    return PromptEmbeds(
        torch.cat(hidden_states, dim=1), pooled, torch.cat([chunk.mask for chunk in chunks], dim=1).to(device)
    )


def _empty_prompts(tokenizer: Tokenizer, count: int) -> TokenizedPrompts:
    """Rows of the empty prompt with nothing real in them."""
    rows = tokenizer([""] * count)
    return replace(rows, mask=torch.zeros_like(rows.mask))


def _join_tokens(chunks: Sequence[TokenizedPrompts], join: Callable[[list[Tensor]], Tensor]) -> TokenizedPrompts:
    """One `TokenizedPrompts` of several that lost nothing."""
    ids, mask, weights = (join([getattr(one, name) for one in chunks]) for name in ("ids", "mask", "weights"))
    return TokenizedPrompts(ids, mask, ("",) * len(ids), weights)


def _select_hidden_state(encoder: ClipText, features: ClipTextOutput, layer: OutputLayer, clip_skip: int) -> Tensor:
    """The wanted state; `hidden_states` holds one more than there are layers, the last before the final norm."""
    offset = clip_skip + (2 if layer == "penultimate" else 1)
    if not 0 <= clip_skip <= len(features.hidden_states) - offset + clip_skip:
        max_clip_skip = len(features.hidden_states) - offset + clip_skip
        raise InputError(f"clip_skip is {clip_skip}, expected 0 to {max_clip_skip} for this text encoder.")
    if layer == "last_norm":
        return (
            features.last_hidden_state if clip_skip == 0 else encoder.final_layer_norm(features.hidden_states[-offset])
        )
    return features.hidden_states[-offset]


def _check_encoders(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[ClipText], prompts: Sequence[Sequence[str]]
) -> None:
    counts = len(tokenizers), len(encoders), len(prompts)
    if len(set(counts)) > 1 or not 1 <= len(encoders) <= 2:
        found = "{} tokenizers, {} text encoders and prompts for {}".format(*counts)
        raise InputError(f"found {found}, expected one or two of each.")
    if any(isinstance(texts, str) for texts in prompts):
        raise InputError("prompts holds a string for an encoder, expected a list of prompts for each.")
    if len({len(texts) for texts in prompts}) > 1:
        found = " and ".join(str(len(texts)) for texts in prompts)
        raise InputError(f"the encoders got {found} prompts, expected as many for each.")
    if encoders[-1].config.projection_dim is None:
        raise InputError("the last text encoder has no projection, expected SDXL's second one (text_encoder_2).")
