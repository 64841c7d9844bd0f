"""Where an enlargement within the range of pixels is not yet consistent: small windows, solved one by one.

A window's problem is a least squares problem with bounds: change its pixels, within -1..1, until what the reduction
lacks is at most the tolerance. The accelerated projected gradient method (FISTA, Beck and Teboulle 2009) with restarts
(O'Donoghue and Candes 2015) needs few steps, since a reduction by two is conditioned like 4.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.image.resize import resize_band

BLOCK = 32  # input pixels along a side of a window, without its margin
MARGINS = (8, 32)  # input pixels around a block that may help it; the second where the first were too few
MAX_STEPS = 400
CHECK = 8  # steps between two looks at how far it is
SLACK = 0.9  # of the tolerance, at which the steps aim, so that they get within it


def solve_windows_(large: Tensor, missing: Tensor, tolerance: float) -> None:
    """Change a picture (C, H, W) in place until what its reduction lacks, `missing` (C, h, w), is at most `tolerance`.

    `missing` changes with it. Where no change within -1..1 does that, it becomes as small as the steps made it.
    """
    sizes = [(missing.shape[axis], large.shape[axis]) for axis in (1, 2)]
    for margin in MARGINS:
        worst = F.max_pool2d(missing.abs().amax(0, keepdim=True)[None], BLOCK, ceil_mode=True)[0, 0]
        for place in (worst > tolerance).nonzero():
            i, j = int(place[0]), int(place[1])
            rows, columns = (_axis(*size, k, margin) for size, k in zip(sizes, (i, j), strict=True))
            block = missing[:, i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            if float(block.abs().max()) > tolerance:
                pixels = large[:, rows.start : rows.end, columns.start : columns.end]
                wanted = missing[:, rows.low : rows.high, columns.low : columns.high]
                found = _solve(pixels, wanted, rows.matrix.to(pixels), columns.matrix.to(pixels), tolerance)
                wanted -= rows.matrix.to(pixels) @ (found - pixels) @ columns.matrix.to(pixels).mT
                pixels.copy_(found)


@dataclass(frozen=True, eq=False)
class _Axis:
    """The pixels `start` to `end` of a line, which count in the reduced pixels `low` to `high` alone, and how much."""

    low: int
    high: int
    start: int
    end: int
    matrix: Tensor  # (high - low, end - start) float64


@lru_cache(maxsize=1024)
def _axis(small: int, large: int, block: int, margin: int) -> _Axis:
    first, weights = resize_band(large, small)
    low, high = max(0, block * BLOCK - margin), min(small, (block + 1) * BLOCK + margin)
    start = int(first[low - 1]) + weights.shape[1] if low > 0 else 0
    end = int(first[high]) if high < small else large
    columns = first[low:high, None] - start + torch.arange(weights.shape[1])
    is_free = (columns >= 0) & (columns < end - start)
    matrix = weights.new_zeros(high - low, end - start)
    matrix.scatter_add_(1, columns.clamp(0, end - start - 1), weights[low:high] * is_free)
    return _Axis(low, high, start, end, matrix)


def _solve(pixels: Tensor, wanted: Tensor, rows: Tensor, columns: Tensor, tolerance: float) -> Tensor:
    """Pixels (C, H, W) within -1..1 near the given ones whose change, reduced, is `wanted` (C, h, w) but for
    `tolerance`, or as near to that as the steps came."""
    norms: list[Tensor] = [torch.linalg.matrix_norm(each, 2) for each in (rows, columns)]
    step = float(norms[0] * norms[1]) ** -2
    found, ahead, weight = pixels, pixels, 1.0
    for number in range(MAX_STEPS):
        off = F.softshrink(wanted - rows @ (ahead - pixels) @ columns.mT, SLACK * tolerance)
        previous, found = found, (ahead + step * (rows.mT @ off @ columns)).clamp(-1, 1)
        before, weight = weight, (1 + (1 + 4 * weight**2) ** 0.5) / 2
        momentum = found - previous
        if float(((ahead - found) * momentum).sum()) > 0:
            before = weight = 1.0
        ahead = found + (before - 1) / weight * momentum
        if number % CHECK == CHECK - 1:
            lacks = wanted - rows @ (found - pixels) @ columns.mT
            is_done = lacks.abs().amax((1, 2)) <= tolerance
            if bool((is_done | _is_impossible(pixels, wanted, lacks, rows, columns, tolerance)).all()):
                break
    return found


def _is_impossible(
    pixels: Tensor, wanted: Tensor, lacks: Tensor, rows: Tensor, columns: Tensor, tolerance: float
) -> Tensor:
    """For each channel whether what the change `lacks` proves that none within -1..1 is enough (Farkas' lemma): along
    the excess of it no change reaches as far as is wanted."""
    excess = F.softshrink(lacks, tolerance)
    slope = rows.mT @ excess @ columns
    reach = torch.where(slope > 0, slope * (1 - pixels), slope * (-1 - pixels)).sum((1, 2))
    needed = (excess * wanted).sum((1, 2)) - tolerance * excess.abs().sum((1, 2))
    return reach < needed * (1 - 1e-4)
