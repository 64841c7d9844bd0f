"""UniPC: a predictor of the clean estimate's integral, corrected once the next estimate is known (Zhao et al. 2023)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step

Known = Sequence[tuple[Tensor, Tensor]]  # levels and clean estimates, newest first


def unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 2, bh1: bool = False, eased: float = 0.0
) -> Iterator[Step]:
    """UniPC of order 1 to 3 with B(h) = exp(h) - 1 (`bh1`: B(h) = h), Zhao et al. 2023, algorithms 5 to 8.

    Each estimate also corrects the step that led to it, without a call of its own. A ladder that ends at `eased` or
    below ends with steps of lower order, the last of first order.
    """
    assert 1 <= order <= 3, f"order {order}, expected 1 to 3"
    past: list[tuple[Tensor, Tensor]] = []
    before, used = x, 0
    for left, (sigma, lower) in zip(range(len(sigmas) - 1, 0, -1), pairwise(sigmas), strict=True):
        clean = denoise(x, sigma)
        if past:
            x = _step(before, past[:used], sigma, bh1, clean)
        past = [(sigma, clean), *past][:order]
        used = min(len(past), left) if sigmas[-1] <= eased else len(past)
        before = x
        x = _step(before, past[:used], lower, bh1)
        yield Step(x, clean, lower)


def _step(x: Tensor, known: Known, lower: Tensor, bh1: bool, reached: Tensor | None = None) -> Tensor:
    """x from the first level known to `lower`; `reached` is the estimate there, if that is known too."""
    (sigma, clean), *older = known
    h = sigma.log() - lower.log()
    moved = lower / sigma * x - torch.expm1(-h) * clean
    shares = [(sigma.log() - level.log()) / h for level, _ in older]
    rates = [(estimate - clean) / share for share, (_, estimate) in zip(shares, older, strict=True)]
    if reached is not None:
        shares, rates = [*shares, torch.ones_like(h)], [*rates, reached - clean]
    if not rates:
        return moved
    scale = -h if bh1 else torch.expm1(-h)
    for weight, rate in zip(_weights(torch.stack(shares), h, scale), rates, strict=True):
        moved = moved - scale * weight * rate
    return moved


def _weights(shares: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The weights of the differences that integrate polynomials exactly; one difference has the weight 1/2."""
    count = len(shares)
    if count == 1:
        return torch.full((1,), 0.5, dtype=h.dtype)
    phi, factorial = torch.expm1(-h) / -h - 1, 1
    wanted: list[Tensor] = []
    for k in range(1, count + 1):
        factorial *= k
        wanted.append(phi * factorial / scale)
        phi = phi / -h - 1 / (factorial * (k + 1))
    powers = torch.stack([shares**k for k in range(count)])
    return torch.inverse(powers) @ torch.stack(wanted)
