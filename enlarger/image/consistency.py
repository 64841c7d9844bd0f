"""Staying true to the input: the enlarged picture nearest to a given one whose half-size copy is the input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from enlarger.image.bounded_least_squares import solve_windows_
from enlarger.image.resize import BLOCK, Pointwise, resize, resize_band

LEAST_FACTOR = 1.5  # see `is_harmless`
STRIP = 512  # rows of an enlargement that are changed at once, so that little beside it is in memory


def is_harmless(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether enlargements of these sizes (height, width) can be made consistent without ripples.

    The closer the sizes, the less of the finest detail the reduction keeps, and the more of it is added to make up for
    that: the least eigenvalue of A A^T is .24 for a factor of 2, .32 for 1.5, .07 for 1.02 and .01 for 1.0025.
    """
    return all(after >= LEAST_FACTOR * before - 0.5 for before, after in zip(small, large, strict=True))


def make_consistent_in_range(large: Tensor, small: Tensor, iterations: int = 4, tolerance: float = 2 / 255) -> Tensor:
    """As `make_consistent`, but also within -1..1, as pictures are: see `project_into_range_`."""
    return project_into_range_(large.clone(), small, iterations, tolerance)


def project_into_range_(large: Tensor, small: Tensor, iterations: int = 4, tolerance: float = 2 / 255) -> Tensor:
    """Alternating projections, relaxed by 1.5, onto the consistent pictures and the range -1..1, in place.

    Where the reduction is off by more than `tolerance` after `iterations` of them, those places are solved one by
    one (`bounded_least_squares`), with a bound on the work. Where the input is near black or white, or alternates from
    pixel to pixel, the two can exclude each other; there the range wins.
    """
    with torch.inference_mode():
        for i in range(iterations):
            _project_(large, small, relaxation=1.5 if (i + 1) % iterations else 1.0).clamp_(-1, 1)
        missing = _missing(large, small)
        for picture, wanted in zip(large, missing, strict=True):
            solve_windows_(picture, wanted, tolerance)
    return large


def residual(large: Tensor, small: Tensor, prepare: Pointwise | None = None) -> float:
    """The largest difference of an enlargement's reduction to the input; `prepare` is applied to its pixels first."""
    return float(_missing(large, small, prepare).abs_().max())


def make_consistent(large: Tensor, small: Tensor) -> Tensor:
    """Project an enlargement (B, C, H, W) onto those whose antialiased-bicubic reduction is `small` (B, C, h, w).

    With A the reduction, the result is large + A^T (A A^T)^-1 (small - A large): the smallest change that makes the
    reduction exact, the limit of iterative back-projection (Irani and Peleg 1991). A is separable, so the axes are
    treated one after the other.
    """
    return _project_(large.clone(), small)


def _project_(large: Tensor, small: Tensor, relaxation: float = 1.0) -> Tensor:
    """`relaxation` of the way to the projection, in place, a strip of rows after the other."""
    missing = _missing(large, small).mul_(relaxation)
    columns = [(b.low, b.high, b.matrix.to(missing).mT) for b in _pseudo_inverse(missing.shape[-1], large.shape[-1])]
    rows = _pseudo_inverse(missing.shape[-2], large.shape[-2])
    for strip in (rows[i : i + STRIP // BLOCK] for i in range(0, len(rows), STRIP // BLOCK)):
        first, last = strip[0].low, strip[-1].high
        needed = missing[..., first:last, :]
        lifted = torch.cat([needed[..., low:high] @ matrix for low, high, matrix in columns], dim=-1)
        for b in strip:
            large[..., b.start : b.end, :] += b.matrix.to(lifted) @ lifted[..., b.low - first : b.high - first, :]
    return large


def _missing(large: Tensor, small: Tensor, prepare: Pointwise | None = None) -> Tensor:
    """What an enlargement's reduction lacks of the input, (B, C, h, w)."""
    return downscale(large, small.shape[-2:], prepare).neg_().add_(small)


def downscale(large: Tensor, size: tuple[int, ...] | torch.Size, prepare: Pointwise | None = None) -> Tensor:
    """The antialiased-bicubic reduction of (..., H, W) to a size (h, w)."""
    return resize(large, (size[0], size[1]), "bicubic", prepare)


@dataclass(frozen=True, eq=False)
class _MatrixBlock:
    """The rows `start` to `end` of a matrix, which are zero outside the columns `low` to `high`."""

    start: int
    end: int
    low: int
    high: int
    matrix: Tensor  # (end - start, high - low) float64


@lru_cache(maxsize=8)
def _pseudo_inverse(small: int, large: int) -> tuple[_MatrixBlock, ...]:
    """A^T (A A^T)^-1 for the reduction A of one axis, by blocks of rows.

    A A^T is a band, so its inverse falls off exponentially, and a block of it needs only its surroundings. The closer
    the sizes, the slower it falls: the margin, found by trial, leaves less than 1e-7.
    """
    margin = max(24, math.ceil(5 * math.sqrt(small / max(1, large - small))))
    first, weights = resize_band(large, small)
    return tuple(
        _pseudo_inverse_block(first, weights, i, min(i + BLOCK, large), margin) for i in range(0, large, BLOCK)
    )


def _pseudo_inverse_block(first: Tensor, weights: Tensor, start: int, end: int, margin: int) -> _MatrixBlock:
    taps = weights.shape[1]
    touching = ((first + taps > start) & (first < end)).nonzero()[:, 0]
    low, high = max(0, int(touching[0]) - margin), min(len(first), int(touching[-1]) + 1 + margin)
    offset = min(int(first[low]), start)  # of the window's pixels
    columns = first[low:high, None] - offset + torch.arange(taps)
    reduction = weights.new_zeros(high - low, max(int(columns.max()) + 1, end - offset))
    reduction.scatter_(1, columns, weights[low:high])
    pseudo_inverse = cast(Tensor, torch.linalg.solve(reduction @ reduction.T, reduction)).T
    return _MatrixBlock(start, end, low, high, pseudo_inverse[start - offset : end - offset].contiguous())
