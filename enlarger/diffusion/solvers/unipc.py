"""UniPC: a predictor of the clean estimate's integral, corrected once the next estimate is known (Zhao et al. 2023)."""

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step

Known = Sequence[tuple[Tensor, Tensor]]  # levels and clean estimates, newest first


def unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 2, bh1: bool = False, eased: float = 0.0,
    of_noise: bool = False, uncorrected: Container[int] = (),
) -> Iterator[Step]:  # fmt: skip
    """UniPC of order 1 to 3 with B(h) = exp(h) - 1 (`bh1`: B(h) = h), Zhao et al. 2023, algorithms 5 to 8.

    Each estimate also corrects the step that led to it, without a call of its own, but for steps `uncorrected` (counted
    from 0). `of_noise` integrates the noise estimate. A ladder that ends at `eased` or below ends with steps of lower
    order, the last of first order.
    """
    assert 1 <= order <= 3, f"order {order}, expected 1 to 3"
    past: list[tuple[Tensor, Tensor]] = []
    before, used = x, 0
    count = len(sigmas) - 1
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma)
        found = (x - clean) / sigma if of_noise else clean
        if past and i - 1 not in uncorrected:
            x = _step(before, past[:used], sigma, bh1, of_noise, found)
        past = [(sigma, found), *past][:order]
        used = min(len(past), count - i) if sigmas[-1] <= eased else len(past)
        before = x
        x = _step(before, past[:used], lower, bh1, of_noise)
        yield Step(x, clean, lower)


def _step(
    x: Tensor, known: Known, lower: Tensor, bh1: bool, of_noise: bool = False, reached: Tensor | None = None
) -> Tensor:  # fmt: skip
    """x from the first level known to `lower`; `reached` is the estimate there, if that is known too."""
    (sigma, clean), *older = known
    h = sigma.log() - lower.log()
    moved = x + (lower - sigma) * clean if of_noise else lower / sigma * x - torch.expm1(-h) * clean
    shares = [(sigma.log() - level.log()) / h for level, _ in older]
    rates = [(estimate - clean) / share for share, (_, estimate) in zip(shares, older, strict=True)]
    if reached is not None:
        shares, rates = [*shares, torch.ones_like(h)], [*rates, reached - clean]
    if not rates:
        return moved
    signed = h if of_noise else -h
    scale = signed if bh1 else torch.expm1(signed)
    unit = lower if of_noise else 1.0
    for weight, rate in zip(_weights(torch.stack(shares), signed, scale), rates, strict=True):
        moved = moved - unit * scale * weight * rate
    return moved


def _weights(shares: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """The weights of the differences that integrate polynomials exactly; one difference has the weight 1/2.

    `h` is negative where the denoised estimate is integrated.
    """
    count = len(shares)
    if count == 1:
        return torch.full((1,), 0.5, dtype=h.dtype)
    phi, factorial = torch.expm1(h) / h - 1, 1
    wanted: list[Tensor] = []
    for k in range(1, count + 1):
        factorial *= k
        wanted.append(phi * factorial / scale)
        phi = phi / h - 1 / (factorial * (k + 1))
    powers = torch.stack([shares**k for k in range(count)])
    return torch.inverse(powers) @ torch.stack(wanted)
