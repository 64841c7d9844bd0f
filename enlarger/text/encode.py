"""Prompts to the features that the networks attend to."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipFeatures, ClipText
from enlarger.text.tokenize import Tokenizer, Tokens

# Which state the networks attend to: SD1 and SD2 the last one normalised; the x2 upscaler the last one as it is;
# SDXL the one before it as it is.
Layer = Literal["last_norm", "last", "penultimate"]


@dataclass(frozen=True)
class Encoded:
    """Text features of B prompts; L is 77, or a multiple of it for long prompts."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor  # (B, D), or (B, P) from encoders with a projection
    mask: Tensor  # (B, L) bool, True at real tokens, start and end included


def encode(
    tokenizer: Tokenizer,
    encoder: ClipText,
    texts: Sequence[str],
    *,
    layer: Layer = "last_norm",
    long: bool = False,
    clip_skip: int = 0,
) -> Encoded:
    """Encode prompts that belong together (both branches of a guidance too: one call gives them one length).

    A text over 75 tokens is cut with a warning that names what was cut; with `long` it is encoded in pieces of 75,
    laid one after another, and texts with fewer pieces are filled up with empty ones. `pooled` is the first piece's.
    `clip_skip` counts layers back from `layer`; "last_norm" normalises that one instead.
    """
    if layer not in get_args(Layer):
        raise InputError(f"layer is {layer!r}, expected one of {', '.join(get_args(Layer))}.")
    pieces = _pieces(tokenizer, texts) if long else (_cut(tokenizer, texts),)
    device = encoder.embeddings.token_embedding.weight.device
    with torch.no_grad():
        features = [encoder(piece.ids.to(device)) for piece in pieces]
        tokens = torch.cat([_states(encoder, found, layer, clip_skip) for found in features], dim=1)  # (B, L, D)
    first: ClipFeatures = features[0]
    pooled = first.pooled if first.projected is None else first.projected
    return Encoded(tokens, pooled, torch.cat([piece.mask for piece in pieces], dim=1).to(device))


def _cut(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    tokens = tokenizer(texts)
    for part in filter(None, tokens.cut):
        room = tokenizer.length - 2
        warnings.warn(f"the prompt is longer than {room} tokens; left out: {part!r}", UserWarning, stacklevel=3)
    return tokens


def _pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """One `Tokens` per position in the sequence of pieces; a filler is an empty prompt with nothing real in it."""
    found = [tokenizer.chunks(text) for text in texts]
    filler = tokenizer([""]).ids[0]
    made: list[Tokens] = []
    for k in range(max(len(chunks.ids) for chunks in found)):
        ids = torch.stack([chunks.ids[k] if k < len(chunks.ids) else filler for chunks in found])
        here = torch.tensor([k < len(chunks.ids) for chunks in found])
        masks = torch.stack([chunks.mask[min(k, len(chunks.ids) - 1)] for chunks in found])
        made.append(Tokens(ids, masks & here[:, None], ("",) * len(found)))
    return tuple(made)


def _states(encoder: ClipText, found: ClipFeatures, layer: Layer, clip_skip: int) -> Tensor:
    """The wanted state; `found.states` holds one more than there are layers, the last before the final norm."""
    back = clip_skip + (2 if layer == "penultimate" else 1)
    if not 0 <= clip_skip <= len(found.states) - back + clip_skip:
        most = len(found.states) - back + clip_skip
        raise InputError(f"clip_skip is {clip_skip}, expected 0 to {most} for this text encoder.")
    if layer == "last_norm":
        return found.last if clip_skip == 0 else encoder.final_layer_norm(found.states[-back])
    return found.states[-back]
