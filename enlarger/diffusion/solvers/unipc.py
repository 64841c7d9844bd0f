"""UniPC: a predictor of the clean estimate's integral, corrected once the next estimate is known (Zhao et al. 2023)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps

History = Sequence[tuple[Tensor, Tensor]]  # levels and clean estimates, newest first


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    order: int = 2,
    bh1: bool = False,
    lower_order_final_sigma: float = 0.0,
) -> Steps:
    """UniPC of order 1 to 3 with B(h) = exp(h) - 1 (`bh1`: B(h) = h), Zhao et al. 2023, algorithms 5 to 8.

    Each estimate also corrects the step that led to it, without a call of its own. A ladder that ends at `eased` or
    below ends with steps of lower order, the last of first order.
    """
    assert 1 <= order <= 3, f"order {order}, expected 1 to 3"
    history: list[tuple[Tensor, Tensor]] = []
    x_prev, used_order = x, 0
    for steps_left, (sigma, lower) in zip(range(len(sigmas) - 1, 0, -1), pairwise(sigmas), strict=True):
        denoised = denoise(x, sigma)
        if history:
            x = _unipc_update(x_prev, history[:used_order], sigma, bh1, denoised)
        history = [(sigma, denoised), *history][:order]
        used_order = min(len(history), steps_left) if sigmas[-1] <= lower_order_final_sigma else len(history)
        x_prev = x
        x = _unipc_update(x_prev, history[:used_order], lower, bh1)
        x = yield Step(x, denoised, lower)


def _unipc_update(x: Tensor, history: History, lower: Tensor, bh1: bool, denoised_next: Tensor | None = None) -> Tensor:
    """x from the first level known to `lower`; `reached` is the estimate there, if that is known too."""
    (sigma, denoised), *older = history
    h = sigma.log() - lower.log()
    x_next = lower / sigma * x - torch.expm1(-h) * denoised
    ratios = [(sigma.log() - level.log()) / h for level, _ in older]
    rates = [(estimate - denoised) / ratio for ratio, (_, estimate) in zip(ratios, older, strict=True)]
    if denoised_next is not None:
        ratios, rates = [*ratios, torch.ones_like(h)], [*rates, denoised_next - denoised]
    if not rates:
        return x_next
    scale = -h if bh1 else torch.expm1(-h)
    for weight, rate in zip(_solve_weights(torch.stack(ratios), h, scale), rates, strict=True):
        x_next = x_next - scale * weight * rate
    return x_next


def _solve_weights(ratios: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The weights of the differences that integrate polynomials exactly; one difference has the weight 1/2."""
    count = len(ratios)
    if count == 1:
        return torch.full((1,), 0.5, dtype=h.dtype)
    phi, factorial = torch.expm1(-h) / -h - 1, 1
    targets: list[Tensor] = []
    for k in range(1, count + 1):
        factorial *= k
        targets.append(phi * factorial / scale)
        phi = phi / -h - 1 / (factorial * (k + 1))
    powers = torch.stack([ratios**k for k in range(count)])
    return torch.inverse(powers) @ torch.stack(targets)
