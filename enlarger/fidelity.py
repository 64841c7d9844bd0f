"""Staying true to the input: the enlarged picture nearest to a given one whose half-size copy is the input."""

from functools import lru_cache

import torch
from torch import Tensor

from enlarger.resize import resize_matrix


def make_consistent(large: Tensor, small: Tensor) -> Tensor:
    """Project an enlargement (B, C, H, W) onto those whose antialiased-bicubic reduction is `small` (B, C, h, w).

    With A the reduction, the result is large + A^T (A A^T)^-1 (small - A large): the smallest change that makes the
    reduction exact, the limit of iterative back-projection (Irani and Peleg 1991). A is separable, so both factors
    are matrices of one axis.
    """
    rows, columns = (_projector(small.shape[i], large.shape[i]) for i in (-2, -1))
    missing = small - reduce(large, small.shape[-2:])
    return large + rows.to(large) @ missing @ columns.to(large).T


def reduce(large: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """The antialiased-bicubic reduction of (..., H, W) to a size (h, w)."""
    rows, columns = (resize_matrix(large.shape[i], size[i], "bicubic").to(large) for i in (-2, -1))
    return rows @ large @ columns.T


@lru_cache(maxsize=8)
def _projector(small: int, large: int) -> Tensor:
    """D^T (D D^T)^-1 for the reduction D of one axis, (large, small) in float64."""
    reduction = resize_matrix(large, small, "bicubic")
    return torch.linalg.solve(reduction @ reduction.T, reduction).T.contiguous()
