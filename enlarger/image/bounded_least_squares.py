"""Where an enlargement within the range of pixels is not yet consistent: small windows, solved one by one.

A window's problem is a least squares problem with bounds: change its pixels, within -1..1, until what the reduction
lacks is at most the tolerance. The accelerated projected gradient method (FISTA, Beck and Teboulle 2009) with restarts
(O'Donoghue and Candes 2015) needs few steps, since a reduction by two is conditioned like 4.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.image.resize import resize_band

BLOCK = 16  # input pixels along a side of a window, without its margin
MAX_VALUES = 1 << 21  # of the pixels of windows that are solved together
CHECK = 8  # steps between two looks at how far it is
GAIN = 0.9  # of what is off, squared: where it is no less than this between two looks, a proof is looked for
SLACK = 0.8  # of the tolerance, at which the steps aim, so that they get within it


@dataclass(frozen=True)
class _Pass:
    """How windows are solved. Work is steps times values of windows."""

    margin: int  # input pixels around a block that may help it
    max_steps: int
    is_patient: bool  # goes on where steps help little, until there is a proof that none can
    min_work: int  # for all windows of a small picture
    work_per_value: int  # for those of a large one

    def work(self, large: Tensor, tolerance: float) -> int:
        """The bound on all windows of a picture: more where bits after the eighth count."""
        return max(self.min_work, self.work_per_value * large.numel()) * max(1, round(math.log2(2 / 255 / tolerance)))


PASSES = (
    _Pass(8, 400, False, 400_000_000, 10),
    _Pass(24, 2000, True, 10_000_000, 1),
)  # the second where one is too few


def solve_windows_(large: Tensor, missing: Tensor, tolerance: float) -> None:
    """Change a picture (C, H, W) in place until what its reduction lacks, `missing` (C, h, w), is at most `tolerance`.

    `missing` changes with it. Where no change within -1..1 does that, it becomes as small as the steps made it; the
    windows that the bound on the work does not reach stay as they are.
    """
    impossible = set[tuple[int, int]]()
    for each in PASSES:
        margin, work_left = each.margin, each.work(large, tolerance)
        stride = 1 - (-2 * margin // BLOCK)  # windows of blocks so far apart have nothing in common
        for i, j in product(range(stride), repeat=2):
            off = torch.maximum(missing.amax(0, keepdim=True), -missing.amin(0, keepdim=True))
            worst = F.max_pool2d(off[None], BLOCK, ceil_mode=True)[0, 0]
            places = {
                (i + stride * int(row), j + stride * int(column))
                for row, column in (worst[i::stride, j::stride] > tolerance).nonzero()
            }
            for windows in _alike(large, missing, sorted(places - impossible), margin):
                if work_left <= 0:
                    break
                problem = _Problem.of(windows)
                found, work = _solve(problem, tolerance, each, work_left)
                work_left -= work
                for window, pixels in zip(windows, found, strict=True):
                    window.write(pixels)
                proved = problem.is_impossible(found, tolerance)
                impossible |= {windows[int(k)].place for k in proved.nonzero()}


@dataclass(frozen=True, eq=False)
class _Window:
    """A block with its margin: its pixels, what their reduction lacks, and how they are reduced."""

    place: tuple[int, int]
    pixels: Tensor  # (C, H, W), a part of the picture
    lacks: Tensor  # (C, h, w), a part of what is missing
    rows: Tensor  # (h, H)
    columns: Tensor  # (w, W)
    step: float  # of the gradient method

    def write(self, pixels: Tensor) -> None:
        """Put other pixels in its place."""
        self.lacks.sub_(self.rows @ (pixels - self.pixels) @ self.columns.mT)
        self.pixels.copy_(pixels)


def _alike(
    large: Tensor, missing: Tensor, places: Sequence[tuple[int, int]], margin: int
) -> Iterator[Sequence[_Window]]:
    """The windows of blocks, those of one shape together, as many as fit into little memory."""
    groups = dict[tuple[torch.Size, torch.Size], list[_Window]]()
    for place in places:
        down, across = (_axis(missing.shape[axis + 1], large.shape[axis + 1], place[axis], margin) for axis in (0, 1))
        pixels = large[:, down.start : down.end, across.start : across.end]
        lacks = missing[:, down.low : down.high, across.low : across.high]
        window = _Window(
            place, pixels, lacks, down.matrix.to(pixels), across.matrix.to(pixels), (down.norm * across.norm) ** -2
        )
        groups.setdefault((pixels.shape, lacks.shape), []).append(window)
    for windows in groups.values():
        count = max(1, MAX_VALUES // windows[0].pixels.numel())
        yield from (windows[k : k + count] for k in range(0, len(windows), count))


@dataclass(frozen=True, eq=False)
class _Axis:
    """The pixels `start` to `end` of a line, which count in the reduced pixels `low` to `high` alone, and how much."""

    low: int
    high: int
    start: int
    end: int
    matrix: Tensor  # (high - low, end - start) float32
    norm: float  # its largest singular value


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
    return _Axis(low, high, start, end, matrix.float(), float(cast(Tensor, torch.linalg.svdvals(matrix))[0]))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Windows of one shape, N of them: how to change `pixels` so that the change, reduced, is `wanted`."""

    pixels: Tensor  # (N, C, H, W)
    wanted: Tensor  # (N, C, h, w)
    rows: Tensor  # (N, 1, h, H)
    columns: Tensor  # (N, 1, w, W)
    step: Tensor  # (N, 1, 1, 1)

    @classmethod
    def of(cls, windows: Sequence[_Window]) -> "_Problem":
        """That of these windows."""
        return cls(
            torch.stack([window.pixels for window in windows]),
            torch.stack([window.lacks for window in windows]),
            torch.stack([window.rows for window in windows])[:, None],
            torch.stack([window.columns for window in windows])[:, None],
            torch.tensor([window.step for window in windows], device=windows[0].pixels.device)[:, None, None, None],
        )

    def __getitem__(self, which: Tensor) -> "_Problem":
        return _Problem(*(each[which] for each in (self.pixels, self.wanted, self.rows, self.columns, self.step)))

    def lacks(self, pixels: Tensor) -> Tensor:
        """What is still wanted of other pixels."""
        return self.wanted - self.rows @ (pixels - self.pixels) @ self.columns.mT

    def is_impossible(self, found: Tensor, tolerance: float) -> Tensor:
        """For which there is a proof that no picture has what is wanted, (N,).

        Farkas' lemma: along the excess of what pixels lack, as far as that counts in the window's pixels alone, no
        change within -1..1 reaches as far as is wanted.
        """
        down, across = (((each.sum(-1) - 1).abs() < 1e-4).float() for each in (self.rows, self.columns))
        excess = F.softshrink(self.lacks(found), tolerance) * down[..., :, None] * across[..., None, :]
        slope = self.rows.mT @ excess @ self.columns
        reach = torch.where(slope > 0, slope * (1 - self.pixels), slope * (-1 - self.pixels)).sum((2, 3))
        needed = (excess * self.wanted).sum((2, 3)) - tolerance * excess.abs().sum((2, 3))
        return (reach < needed * (1 - 1e-4)).any(1)


def _solve(problem: _Problem, tolerance: float, how: _Pass, max_work: int) -> tuple[Tensor, int]:
    """Pixels (N, C, H, W) within -1..1 that lack no more than the tolerance, or as near to that as the steps came; and
    the work: the values of all windows, each as often as it was stepped."""
    result, active = problem.pixels.clone(), torch.arange(len(problem.pixels), device=problem.pixels.device)
    run = _Run(problem.pixels, problem.pixels, torch.ones_like(problem.step))
    before, taken = torch.full_like(active, torch.inf, dtype=torch.float32), 0
    for number in range(1, how.max_steps + 1):
        off = F.softshrink(problem.lacks(run.ahead), SLACK * tolerance)
        run = run.step((run.ahead + problem.step * (problem.rows.mT @ off @ problem.columns)).clamp(-1, 1))
        if number % CHECK == 0:
            left, worst = off.square().sum((1, 2, 3)), problem.lacks(run.found).abs().amax((1, 2, 3))
            is_slow = left > GAIN * before
            gives_up = is_slow & problem.is_impossible(run.found, tolerance) if how.is_patient else is_slow
            goes_on = (worst > tolerance) & ~gives_up
            result[active], taken = run.found, taken + CHECK * run.found.numel()
            run, problem, active, before = run[goes_on], problem[goes_on], active[goes_on], left[goes_on]
            if not len(active) or taken >= max_work:
                break
    return result, taken


@dataclass(frozen=True, eq=False)
class _Run:
    """Where the steps are, and where they look, ahead by their momentum."""

    found: Tensor  # (N, C, H, W)
    ahead: Tensor
    weight: Tensor  # (N, 1, 1, 1)

    def step(self, found: Tensor) -> "_Run":
        """The next; momentum that goes uphill is given up."""
        momentum = found - self.found
        is_uphill = ((self.ahead - found) * momentum).sum((1, 2, 3), keepdim=True) > 0
        weight = (1 + (1 + 4 * self.weight**2) ** 0.5) / 2
        share = torch.where(is_uphill, 0, (self.weight - 1) / weight)
        return _Run(found, found + share * momentum, torch.where(is_uphill, 1, weight))

    def __getitem__(self, which: Tensor) -> "_Run":
        return _Run(self.found[which], self.ahead[which], self.weight[which])
