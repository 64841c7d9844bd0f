"""UniPC: a predictor of the clean estimate's integral, corrected once the next estimate is known (Zhao et al. 2023)."""

from collections.abc import Container, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps

History = Sequence[tuple[Tensor, Tensor]]  # levels and estimates, newest first


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    order: int = 2,
    bh1: bool = False,
    lower_order_final_sigma: float = 0.0,
    of_noise: bool = False,
    uncorrected: Container[int] = (),
) -> Steps:
    """UniPC of order 1 to 3 with B(h) = exp(h) - 1 (`bh1`: B(h) = h), Zhao et al. 2023, algorithms 5 to 8.

    Each estimate also corrects the step that led to it, without a call of its own, but for steps `uncorrected` (counted
    from 0). `of_noise` integrates the noise estimate. A run that ends at `lower_order_final_sigma` or below ends with
    steps of lower order, the last of first order.
    """
    assert 1 <= order <= 3, f"order {order}, expected 1 to 3"
    history: list[tuple[Tensor, Tensor]] = []
    x_prev, used_order = x, 0
    count = len(sigmas) - 1
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        estimate = (x - denoised) / sigma if of_noise else denoised
        if history and i - 1 not in uncorrected:
            x = _unipc_update(x_prev, history[:used_order], sigma, bh1, of_noise, estimate)
        history = [(sigma, estimate), *history][:order]
        used_order = min(len(history), count - i) if sigmas[-1] <= lower_order_final_sigma else len(history)
        x_prev = x
        x = _unipc_update(x_prev, history[:used_order], lower, bh1, of_noise)
        x = yield Step(x, denoised, lower)


def _unipc_update(
    x: Tensor, history: History, lower: Tensor, bh1: bool, of_noise: bool, estimate_next: Tensor | None = None
) -> Tensor:
    """x from the first level known to `lower`; `estimate_next` is the estimate there, if that is known too."""
    (sigma, latest), *older = history
    h = sigma.log() - lower.log()
    x_next = x + (lower - sigma) * latest if of_noise else lower / sigma * x - torch.expm1(-h) * latest
    ratios = [(sigma.log() - level.log()) / h for level, _ in older]
    rates = [(estimate - latest) / ratio for ratio, (_, estimate) in zip(ratios, older, strict=True)]
    if estimate_next is not None:
        ratios, rates = [*ratios, torch.ones_like(h)], [*rates, estimate_next - latest]
    if not rates:
        return x_next
    signed_h, unit = (h, lower) if of_noise else (-h, 1.0)
    scale = signed_h if bh1 else torch.expm1(signed_h)
    for weight, rate in zip(_solve_weights(torch.stack(ratios), signed_h, scale), rates, strict=True):
        x_next = x_next - unit * scale * weight * rate
    return x_next


def _solve_weights(ratios: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The weights of the differences that integrate polynomials exactly; one difference has the weight 1/2.

    `h` is negative where the denoised estimate is integrated.
    """
    count = len(ratios)
    if count == 1:
        return torch.full((1,), 0.5, dtype=h.dtype)
    phi, factorial = torch.expm1(h) / h - 1, 1
    targets: list[Tensor] = []
    for k in range(1, count + 1):
        factorial *= k
        targets.append(phi * factorial / scale)
        phi = phi / h - 1 / (factorial * (k + 1))
    powers = torch.stack([ratios**k for k in range(count)])
    return torch.inverse(powers) @ torch.stack(targets)
