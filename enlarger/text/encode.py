"""Prompts to the features that the networks attend to."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.clip_text import ClipFeatures, ClipText
from enlarger.text.tokenize import Tokenizer, Tokens
from enlarger.text.weights import interpolate

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
    weighted: bool = False,
    clip_skip: int = 0,
) -> Encoded:
    """Encode prompts that belong together (both branches of a guidance too: one call gives them one length).

    A text over 75 tokens is cut with a warning that names what was cut; with `long` it is encoded in pieces of 75,
    laid one after another, and texts with fewer pieces are filled up with empty ones. `pooled` is the first piece's.
    `weighted` reads weights, as in `(word:1.2)`, and applies them to `tokens` alone (`text/weights.py`).
    `clip_skip` counts layers back from `layer`; "last_norm" normalises that one instead. It counts as diffusers'
    argument does: 0 is `layer` itself, which other programs call a clip skip of 1 (SD1) or 2 (SDXL).
    """
    if layer not in get_args(Layer):
        raise InputError(f"layer is {layer!r}, expected one of {', '.join(get_args(Layer))}.")
    rows = pieces(tokenizer, texts, long, weighted)
    warn_of_cuts(tokenizer, rows)
    return encode_pieces(tokenizer, encoder, rows, layer, clip_skip)


def pieces(tokenizer: Tokenizer, texts: Sequence[str], long: bool, weighted: bool) -> tuple[Tokens, ...]:
    """The prompts as one `Tokens` per position in the sequence of pieces; one alone unless `long`."""
    texts = [texts] if isinstance(texts, str) else texts
    if not long:
        return (tokenizer(texts, weighted),)
    found = [tokenizer.chunks(text, weighted) for text in texts]
    longest = max(len(chunks.ids) for chunks in found)
    whole = [_joined((chunks, _empty(tokenizer, longest - len(chunks.ids))), torch.cat) for chunks in found]
    return tuple(_joined(whole, lambda rows, k=k: torch.stack([row[k] for row in rows])) for k in range(longest))


def filled(tokenizer: Tokenizer, rows: Sequence[Tokens], count: int) -> tuple[Tokens, ...]:
    """At least `count` pieces: empty prompts come after the last, with nothing real in them."""
    return (*rows, *(_empty(tokenizer, len(rows[0].ids)) for _ in range(count - len(rows))))


def warn_of_cuts(tokenizer: Tokenizer, rows: Sequence[Tokens]) -> None:
    """Say what did not fit, each part once; the warning points at the caller's caller."""
    for part in dict.fromkeys(part for tokens in rows for part in tokens.cut if part):
        room = tokenizer.length - 2
        warnings.warn(f"the prompt is longer than {room} tokens; left out: {part!r}", UserWarning, stacklevel=3)


def encode_pieces(
    tokenizer: Tokenizer, encoder: ClipText, rows: Sequence[Tokens], layer: Layer, clip_skip: int
) -> Encoded:
    """Features of the pieces side by side, weighted where a token has a weight."""
    device = encoder.embeddings.token_embedding.weight.device
    with torch.no_grad():
        features = [encoder(piece.ids.to(device)) for piece in rows]
        states = [_states(encoder, found, layer, clip_skip) for found in features]
        if any(bool((piece.weights != 1).any()) for piece in rows):
            empty = _states(encoder, encoder(tokenizer([""]).ids.to(device)), layer, clip_skip)
            states = [interpolate(x, empty, piece.weights.to(device)) for x, piece in zip(states, rows, strict=True)]
    first: ClipFeatures = features[0]
    pooled = first.pooled if first.projected is None else first.projected
    return Encoded(torch.cat(states, dim=1), pooled, torch.cat([piece.mask for piece in rows], dim=1).to(device))


def _empty(tokenizer: Tokenizer, count: int) -> Tokens:
    """Rows of the empty prompt with nothing real in them."""
    rows = tokenizer([""] * count)
    return replace(rows, mask=torch.zeros_like(rows.mask))


def _joined(found: Sequence[Tokens], join: Callable[[list[Tensor]], Tensor]) -> Tokens:
    """One `Tokens` of several that lost nothing."""
    ids, mask, weights = (join([getattr(one, name) for one in found]) for name in ("ids", "mask", "weights"))
    return Tokens(ids, mask, ("",) * len(ids), weights)


def _states(encoder: ClipText, found: ClipFeatures, layer: Layer, clip_skip: int) -> Tensor:
    """The wanted state; `found.states` holds one more than there are layers, the last before the final norm."""
    back = clip_skip + (2 if layer == "penultimate" else 1)
    if not 0 <= clip_skip <= len(found.states) - back + clip_skip:
        most = len(found.states) - back + clip_skip
        raise InputError(f"clip_skip is {clip_skip}, expected 0 to {most} for this text encoder.")
    if layer == "last_norm":
        return found.last if clip_skip == 0 else encoder.final_layer_norm(found.states[-back])
    return found.states[-back]
