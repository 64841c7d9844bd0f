"""Prompt weights: what `(word:1.2)` means, and what a weight does to the features."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.text.prompt_words import shortened

BRACKET_FACTOR = 1.1  # what one pair of brackets multiplies or divides by
MAX_WEIGHT = 100.0  # of a weight and of the product of nested ones, either sign
USUAL_WEIGHT = 10.0  # beyond which a slip is likelier than a wish
NUMBER_PATTERN = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
# An escaped bracket or backslash; a number that closes a round bracket; a mark; text.
PROMPT_PATTERN = re.compile(rf"\\[\\()\[\]]|:\s*({NUMBER_PATTERN})\s*\)|[()\[\]:\\]|[^()\[\]:\\]+", re.IGNORECASE)


@dataclass(frozen=True)
class WeightedText:
    """A part of a prompt and its weight."""

    text: str
    weight: float


def parse_prompt_attention(text: str) -> tuple[WeightedText, ...]:
    r"""The parts of a prompt by weight; neighbours differ in weight and none is empty.

    `(a)` is 1.1, `[a]` 1 / 1.1, `(a:1.2)` 1.2, and nesting multiplies. `\(`, `\)`, `\[`, `\]` and `\\` are the
    characters themselves. A bracket without its partner is text; so are both where a colon directly inside is not
    followed by a closing number, as in `(a:b)`. Everything else is text, the prompt schedules of other programs
    included. Weights beyond -100 to 100 are these.

    Source: the syntax of AUTOMATIC1111's `parse_prompt_attention`, which gives a bracket without its partner and
    `(a:b)` a weight of 1.1.
    """
    matches = list(PROMPT_PATTERN.finditer(text))
    opening_factors, closing_positions = _match_brackets(matches)
    weights, parts = [1.0], list[WeightedText]()
    for i, match in enumerate(matches):
        if i in opening_factors:
            weights.append(min(max(weights[-1] * opening_factors[i], -MAX_WEIGHT), MAX_WEIGHT))
        elif i in closing_positions:
            weights.pop()
        else:
            part = match[0][1:] if len(match[0]) == 2 and match[0][0] == "\\" else match[0]
            before = parts.pop().text if parts and parts[-1].weight == weights[-1] else ""
            parts.append(WeightedText(before + part, weights[-1]))
    return tuple(parts)


def unusual_weights(prompt: str) -> tuple[str, ...]:
    """A note where a prompt has a weight that is likelier a slip, such as (red:12), or more than is applied."""
    part = max(parse_prompt_attention(prompt), key=lambda part: abs(part.weight), default=WeightedText("", 1.0))
    if abs(part.weight) <= USUAL_WEIGHT:
        return ()
    most = ", the most that is applied" if abs(part.weight) == MAX_WEIGHT else ""
    return (f"{shortened(part.text)!r} has a weight of {part.weight:g}{most}: pictures fall apart far beyond 2",)


def apply_token_weights(features: Tensor, empty_features: Tensor, weights: Tensor) -> Tensor:
    """Features (B, L, D) at a distance of `weights` (B, L) times their own from those of the empty prompt (1, L, D).

    Weight 0 gives the empty prompt's, and weight 1 leaves the features as they are, to the bit. What has no weight
    is not changed by what has one, as it is where the mean of the whole is restored (AUTOMATIC1111).

    Source: ComfyUI's `encode_token_weights`; compel's weights below 1 lead to the empty prompt likewise.
    """
    compute_dtype = torch.promote_types(features.dtype, torch.float32)
    factor, empty = weights[..., None].to(compute_dtype), empty_features.to(compute_dtype)
    weighted = empty + factor * (features.to(compute_dtype) - empty)
    return torch.where(factor == 1, features, weighted.to(features.dtype))


def _match_brackets(matches: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Positions of the brackets that open a weight, with their factors, and of those that close one."""
    opening_factors, closing_positions = dict[int, float](), set[int]()
    open_positions, open_counts, with_colon = list[int](), {"(": 0, "[": 0}, set[int]()
    for i, match in enumerate(matches):
        symbol = match[0]
        if symbol in open_counts:
            open_positions.append(i)
            open_counts[symbol] += 1
        elif symbol == ":" and open_positions:
            with_colon.add(open_positions[-1])
        elif symbol in (")", "]") or match[1] is not None:
            open_bracket = "(" if symbol[-1] == ")" else "["
            if not open_counts[open_bracket]:
                continue
            start = _close_bracket(matches, open_bracket, open_positions, open_counts, with_colon)
            if open_bracket == "[" or match[1] is not None or start not in with_colon:
                opening_factors[start] = _bracket_factor(match, open_bracket)
                closing_positions.add(i)
    return opening_factors, closing_positions


def _close_bracket(
    matches: Sequence[re.Match[str]],
    open_bracket: str,
    open_positions: list[int],
    open_counts: dict[str, int],
    with_colon: set[int],
) -> int:
    """Where the innermost `open_bracket` stands; brackets opened within it have no partner, so they are text."""
    while True:
        start = open_positions.pop()
        open_counts[matches[start][0]] -= 1
        if matches[start][0] == open_bracket:
            return start
        if start in with_colon:
            with_colon.add(open_positions[-1])


def _bracket_factor(match: re.Match[str], open_bracket: str) -> float:
    if match[1] is not None:
        return min(max(float(match[1]), -MAX_WEIGHT), MAX_WEIGHT)
    return BRACKET_FACTOR if open_bracket == "(" else 1 / BRACKET_FACTOR
