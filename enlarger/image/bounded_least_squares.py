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

BLOCK = 16  # input pixels along a side of a window, without its margin
MARGINS = (8, 24)  # input pixels around a block that may help it; the second where the first were too few
MAX_STEPS = 400
CHECK = 8  # steps between two looks at how far it is
GAIN = 0.9  # of what is off, squared: where it is no less than this between two looks, no step will help
SLACK = 0.9  # of the tolerance, at which the steps aim, so that they get within it


def solve_windows_(large: Tensor, missing: Tensor, tolerance: float) -> None:
    """Change a picture (C, H, W) in place until what its reduction lacks, `missing` (C, h, w), is at most `tolerance`.

    `missing` changes with it. Where no change within -1..1 does that, it becomes as small as the steps made it.
    """
    sizes = [(missing.shape[axis], large.shape[axis]) for axis in (1, 2)]
    impossible = set[tuple[int, int]]()
    for margin in MARGINS:
        worst = F.max_pool2d(missing.abs().amax(0, keepdim=True)[None], BLOCK, ceil_mode=True)[0, 0]
        for place in (worst > tolerance).nonzero():
            i, j = int(place[0]), int(place[1])
            block = missing[:, i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            if (i, j) in impossible or float(block.abs().max()) <= tolerance:
                continue  # the second: a neighbour's margin has helped it
            rows, columns = (_axis(*size, k, margin) for size, k in zip(sizes, (i, j), strict=True))
            pixels = large[:, rows.start : rows.end, columns.start : columns.end]
            lacks = missing[:, rows.low : rows.high, columns.low : columns.high]
            found, is_impossible = _solve(pixels, lacks, rows.matrix, columns.matrix, tolerance)
            lacks -= rows.matrix @ (found - pixels) @ columns.matrix.mT
            pixels.copy_(found)
            if is_impossible:
                impossible.add((i, j))


@dataclass(frozen=True, eq=False)
class _Axis:
    """The pixels `start` to `end` of a line, which count in the reduced pixels `low` to `high` alone, and how much."""

    low: int
    high: int
    start: int
    end: int
    matrix: Tensor  # (high - low, end - start) float32


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
    return _Axis(low, high, start, end, matrix.float())


def _solve(pixels: Tensor, wanted: Tensor, rows: Tensor, columns: Tensor, tolerance: float) -> tuple[Tensor, bool]:
    """Pixels (C, H, W) within -1..1 near the given ones whose change, reduced, is `wanted` (C, h, w) but for
    `tolerance`, or as near to that as the steps came; and whether there is a proof that no picture has such."""
    rows, columns = rows.to(pixels), columns.to(pixels)
    norms: list[Tensor] = [torch.linalg.matrix_norm(each, 2) for each in (rows, columns)]
    step, left = float(norms[0] * norms[1]) ** -2, float("inf")
    found, ahead, weight = pixels, pixels, 1.0
    for number in range(MAX_STEPS):
        off = F.softshrink(wanted - rows @ (ahead - pixels) @ columns.mT, SLACK * tolerance)
        previous, found = found, (ahead + step * (rows.mT @ off @ columns)).clamp(-1, 1)
        momentum = found - previous
        previous_weight, weight = weight, (1 + (1 + 4 * weight**2) ** 0.5) / 2
        if float(((ahead - found) * momentum).sum()) > 0:
            previous_weight = weight = 1.0
        ahead = found + (previous_weight - 1) / weight * momentum
        if number % CHECK == CHECK - 1:
            before, left = left, float(off.square().sum())
            if left == 0 or left > GAIN * before:
                break
    lacks = wanted - rows @ (found - pixels) @ columns.mT
    return found, _is_impossible(pixels, wanted, lacks, rows, columns, tolerance)


def _is_impossible(
    pixels: Tensor, wanted: Tensor, lacks: Tensor, rows: Tensor, columns: Tensor, tolerance: float
) -> bool:
    """Whether what a change `lacks` proves that none within -1..1 is enough (Farkas' lemma): along the excess of it, as
    far as that counts in the window's pixels alone, no change reaches as far as is wanted."""
    inner = [(matrix.sum(1) - 1).abs() < 1e-4 for matrix in (rows, columns)]  # reduced of the window's pixels alone
    excess = F.softshrink(lacks, tolerance) * inner[0][:, None] * inner[1]
    slope = rows.mT @ excess @ columns
    reach = torch.where(slope > 0, slope * (1 - pixels), slope * (-1 - pixels)).sum((1, 2))
    needed = (excess * wanted).sum((1, 2)) - tolerance * excess.abs().sum((1, 2))
    return bool((reach < needed * (1 - 1e-4)).any())
