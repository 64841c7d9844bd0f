"""Resizing by separable matrices, equal to Pillow's antialiased resize in float."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.target_size import scaled_side

Pointwise = Callable[[Tensor], Tensor]
BLOCK = 128  # rows of a matrix that are applied at once; a block touches only the band it needs


def bicubic(x: Tensor) -> Tensor:
    """Keys 1981's cubic kernel with a = -0.5, as in Pillow; support 2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def lanczos(x: Tensor) -> Tensor:
    """The Lanczos kernel with three lobes, sinc(x) sinc(x / 3); support 3."""
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {"bicubic": (bicubic, 2), "lanczos": (lanczos, 3)}


def resize_band(n_in: int, n_out: int, kernel: str = "bicubic") -> tuple[Tensor, Tensor]:
    """The band of `resize_matrix`: the first column that each row uses, and that row's weights.

    Returns `first` (n_out,) int64, rising, and `weights` (n_out, taps) float64, each row summing to 1.
    """
    if kernel not in KERNELS:
        raise InputError(f"found resize kernel {kernel!r}, expected one of {', '.join(KERNELS)}; choose one of these")
    if n_in < 1 or n_out < 1:
        raise InputError(f"found a resize from {n_in} to {n_out} pixels, expected at least 1 on both sides")
    function, support = KERNELS[kernel]
    scale = n_in / n_out
    kernel_scale = max(scale, 1.0)  # shrinking widens the kernel: this is the antialiasing
    taps = min(n_in, 2 * math.ceil(support * kernel_scale) + 1)
    centre = (torch.arange(n_out, dtype=torch.float64) + 0.5) * scale
    first = (centre - support * kernel_scale).floor().long().clamp(0, n_in - taps)
    position = first[:, None] + torch.arange(taps) + 0.5  # (n_out, taps)
    weights = function((position - centre[:, None]) / kernel_scale)
    return first, weights / weights.sum(dim=1, keepdim=True)


def resize_matrix(n_in: int, n_out: int, kernel: str = "bicubic") -> Tensor:
    """The (n_out, n_in) float64 matrix that resizes a line of pixels as Pillow does.

    Pixel centres are aligned, the kernel is stretched by the shrink factor, and rows that reach over an edge are
    normalised to sum 1. `kernel` is "bicubic" or "lanczos". Raises InputError for another kernel or an empty side.
    """
    first, weights = resize_band(n_in, n_out, kernel)
    columns = first[:, None] + torch.arange(weights.shape[1])
    return torch.zeros(n_out, n_in, dtype=torch.float64).scatter_(1, columns, weights)


def resize(x: Tensor, size: tuple[int, int], kernel: str = "bicubic", prepare: Pointwise | None = None) -> Tensor:
    """Resize (..., H, W) to (..., h, w), antialiased, as Pillow does in float; columns first, then rows.

    Differentiable; computed in float32 (float64 for float64 input), the result has the input's type. Values are not
    clamped: both kernels overshoot at edges. `prepare` is applied to each pixel first. A band of rows is resized after
    the other, so that no more than the result is as large as a picture.
    """
    height, width = size
    dtype = torch.promote_types(x.dtype, torch.float32)
    columns = [
        (low, high, block.to(x.device, dtype)) for low, high, block in _matrix_blocks(x.shape[-1], width, kernel)
    ]
    result, start = x.new_empty(*x.shape[:-2], height, width), 0
    for top, bottom, rows in _matrix_blocks(x.shape[-2], height, kernel):
        band = x[..., top:bottom, :].to(dtype)
        band = band if prepare is None else prepare(band)
        narrowed = torch.cat([band[..., low:high] @ block.mT for low, high, block in columns], dim=-1)
        end = start + len(rows)
        result[..., start:end, :] = rows.to(narrowed) @ narrowed
        start = end
    return result


def _matrix_blocks(n_in: int, n_out: int, kernel: str) -> Iterator[tuple[int, int, Tensor]]:
    """The resize matrix by blocks of rows, each with the range of columns that it touches."""
    first, weights = resize_band(n_in, n_out, kernel)
    for start in range(0, n_out, BLOCK):
        starts, rows = first[start : start + BLOCK], weights[start : start + BLOCK]
        low, high = int(starts[0]), int(starts[-1]) + rows.shape[1]
        columns = starts[:, None] - low + torch.arange(rows.shape[1])
        yield low, high, rows.new_zeros(len(rows), high - low).scatter_(1, columns, rows)


def covering_size(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """What a picture (h, w) is resized to, its shape kept, so that `wanted` can be cut from it with nothing missing."""
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    height, width = (max(scaled_side(side, scale), least) for side, least in zip(size, wanted, strict=True))
    return height, width
