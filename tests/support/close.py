"""The one comparison that the tests use: the maximum absolute difference."""

import numpy as np
import torch


def max_difference(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """Largest absolute difference of two arrays of the same shape; NaN or infinity anywhere counts as infinite."""
    a, b = (
        np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, dtype=np.float64) for v in (found, expected)
    )
    assert a.shape == b.shape, f"shapes differ: found {a.shape}, expected {b.shape}"
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0))


def assert_close(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray, atol: float) -> None:
    """Fail unless every element differs by at most `atol`."""
    difference = max_difference(found, expected)
    assert difference <= atol, f"maximum absolute difference {difference:.3g}, allowed {atol:.3g}"
