"""Prompt weights: what `(word:1.2)` means, and what a weight does to the features."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.errors import InputError

STEP = 1.1  # what one pair of brackets multiplies or divides by
LIMIT = 10.0  # of a weight and of the product of nested ones, either sign
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?|nan"
# An escaped bracket or backslash; a number that closes a round bracket; a mark; text.
PIECES = re.compile(rf"\\[\\()\[\]]|:\s*({NUMBER})\s*\)|[()\[\]:\\]|[^()\[\]:\\]+", re.IGNORECASE)


@dataclass(frozen=True)
class Weighted:
    """A part of a prompt and its weight."""

    text: str
    weight: float


def parse(text: str) -> tuple[Weighted, ...]:
    r"""The parts of a prompt by weight; neighbours differ in weight and none is empty.

    `(a)` is 1.1, `[a]` 1 / 1.1, `(a:1.2)` 1.2, and nesting multiplies. `\(`, `\)`, `\[`, `\]` and `\\` are the
    characters themselves. A bracket without its partner is text; so are both where a colon directly inside is not
    followed by a closing number, as in `(a:b)`. Everything else is text, the prompt schedules of other programs
    included. Raises InputError for weights beyond -10 to 10.

    Source: the syntax of AUTOMATIC1111's `parse_prompt_attention`, which gives a bracket without its partner and
    `(a:b)` a weight of 1.1.
    """
    pieces = list(PIECES.finditer(text))
    opening, closing = _pairs(pieces)
    weights, found = [1.0], list[Weighted]()
    for i, piece in enumerate(pieces):
        if i in opening:
            weights.append(weights[-1] * opening[i])
        elif i in closing:
            weights.pop()
        else:
            part = piece[0][1:] if len(piece[0]) == 2 and piece[0][0] == "\\" else piece[0]
            before = found.pop().text if found and found[-1].weight == weights[-1] else ""
            found.append(Weighted(before + part, _checked(weights[-1], f"{weights[-1]:g}", text)))
    return tuple(found)


def interpolate(features: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Features (B, L, D) at a distance of `weights` (B, L) times their own from those of the empty prompt (1, L, D).

    Weight 0 gives the empty prompt's, and weight 1 leaves the features as they are, to the bit. What has no weight
    is not changed by what has one, as it is where the mean of the whole is restored (AUTOMATIC1111).

    Source: ComfyUI's `encode_token_weights`; compel's weights below 1 lead to the empty prompt likewise.
    """
    kind = torch.promote_types(features.dtype, torch.float32)
    factor, base = weights[..., None].to(kind), empty.to(kind)
    moved = base + factor * (features.to(kind) - base)
    return torch.where(factor == 1, features, moved.to(features.dtype))


def _pairs(pieces: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Positions of the brackets that open a weight, with their factors, and of those that close one."""
    opening, closing = dict[int, float](), set[int]()
    opened, waiting, colons = list[int](), {"(": 0, "[": 0}, set[int]()
    for i, piece in enumerate(pieces):
        mark = piece[0]
        if mark in waiting:
            opened.append(i)
            waiting[mark] += 1
        elif mark == ":" and opened:
            colons.add(opened[-1])
        elif mark in (")", "]") or piece[1] is not None:
            partner = "(" if mark[-1] == ")" else "["
            if not waiting[partner]:
                continue
            start = _close(pieces, partner, opened, waiting, colons)
            if partner == "[" or piece[1] is not None or start not in colons:
                opening[start] = _factor(piece, partner)
                closing.add(i)
    return opening, closing


def _close(
    pieces: Sequence[re.Match[str]], partner: str, opened: list[int], waiting: dict[str, int], colons: set[int]
) -> int:
    """Where the innermost open `partner` stands; brackets opened within it have no partner, so they are text."""
    while True:
        start = opened.pop()
        waiting[pieces[start][0]] -= 1
        if pieces[start][0] == partner:
            return start
        if start in colons:
            colons.add(opened[-1])


def _factor(piece: re.Match[str], partner: str) -> float:
    if piece[1] is not None:
        return _checked(float(piece[1]), piece[1], piece.string)
    return STEP if partner == "(" else 1 / STEP


def _checked(weight: float, shown: str, text: str) -> float:
    if math.isfinite(weight) and abs(weight) <= LIMIT:
        return weight
    start = text if len(text) <= 60 else text[:57] + "..."
    raise InputError(
        f"the prompt {start!r} has a weight of {shown}, expected {-LIMIT:g} to {LIMIT:g}; "
        r"write \( and \) for brackets that are text."
    )
