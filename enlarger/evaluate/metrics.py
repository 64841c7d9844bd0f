"""How near an enlargement is to the truth, and to its input.

Each function takes pictures (3, H, W) or (B, 3, H, W) in 0..1, computes in float64 and gives one number per picture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.resize import resize

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest scale first
MS_SSIM_MIN_SIZE = 176  # pixels of a side: the window must fit the coarsest scale


def luma(image: Tensor) -> Tensor:
    """BT.601 luma of full range: (..., 3, H, W) to (..., H, W) in 0..1, float64."""
    weights = torch.tensor((0.299, 0.587, 0.114), dtype=torch.float64, device=image.device)
    return torch.einsum("c,...chw->...hw", weights, image.double())


def studio_luma(image: Tensor) -> Tensor:
    """The Y that super-resolution papers measure: BT.601 in 16..235, as a share of 255."""
    return (luma(image) * 219 + 16) / 255


def psnr(output: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio in dB over all of R, G and B; infinite for equal pictures.

    `weights` (H, W) say how much each pixel counts.
    """
    check_shapes(output, truth, 1, "PSNR")
    error = (output.double() - truth.double()).square().mean(dim=-3)
    return -10 * weighted_mean(error, weights).log10()


def psnr_y(output: Tensor, truth: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of `studio_luma`."""
    check_shapes(output, truth, 1, "PSNR")
    return -10 * (studio_luma(output) - studio_luma(truth)).square().mean(dim=(-2, -1)).log10()


def ssim(output: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) of `studio_luma`: at most 1, which means equal.

    Gaussian window 11 x 11, sigma 1.5, where it fits wholly; K1 0.01, K2 0.03, range 1. `weights` (H, W) are those of
    the windows' middles. Raises InputError under 11 pixels.
    """
    check_shapes(output, truth, 11, "SSIM")
    luminance, structure = _ssim_maps(studio_luma(output), studio_luma(truth))
    return weighted_mean(luminance * structure, None if weights is None else weights[..., 5:-5, 5:-5])


def ms_ssim(output: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003, eq. 7) of `studio_luma` over five scales.

    Each scale is the 2 x 2 mean of the finer one, an odd last line dropped; a negative mean counts as 0. Raises
    InputError under 176 pixels.
    """
    check_shapes(output, truth, MS_SSIM_MIN_SIZE, "MS-SSIM")
    x, y = studio_luma(output), studio_luma(truth)
    product = torch.ones(x.shape[:-2], dtype=x.dtype, device=x.device)
    for k, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, structure = _ssim_maps(x, y)
        last = k == len(MS_SSIM_WEIGHTS) - 1
        mean = (luminance * structure if last else structure).mean(dim=(-2, -1))
        product = product * mean.clamp(min=0) ** weight
        x, y = _halve(x), _halve(y)
    return product


def gmsd(output: Tensor, truth: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation (Xue et al. 2014, eq. 4 to 6) of `luma`: 0 means equal, lower is better.

    Prewitt gradients of the picture halved by 2 x 2 means, c = 170 / 255 ** 2, zeros outside the picture as in the
    authors' program. Raises InputError under 2 pixels.
    """
    check_shapes(output, truth, 2, "GMSD")
    constant = 170 / 255**2
    x, y = _gradient(halve_padded(luma(output))), _gradient(halve_padded(luma(truth)))
    similarity = (2 * x * y + constant) / (x.square() + y.square() + constant)
    return similarity.std(dim=(-2, -1), correction=0)


@dataclass(frozen=True)
class Consistency:
    """Differences in 8-bit steps between a reduced enlargement and its input."""

    largest: float
    mean: float


def consistency(output: Tensor, source: Tensor) -> Consistency:
    """How far the antialiased-bicubic reduction of `output` (..., C, H, W) to the size of `source` is from `source`."""
    difference = (resize(output.double(), (source.shape[-2], source.shape[-1])) - source.double()).abs() * 255
    return Consistency(float(difference.max()), float(difference.mean()))


@dataclass(frozen=True)
class Band:
    """What lies above the input's Nyquist frequency: energy over the truth's, and correlation with it, -1..1."""

    energy: float
    correlation: float


def fine_band(output: Tensor, truth: Tensor) -> Band:
    """The band that halving took away, of the luma of two pictures (3, H, W) in 0..1, in a Hann window.

    Faithful detail has a high correlation; texture that is made up raises the energy alone.
    """
    check_shapes(output, truth, 2, "the fine band")
    height, width = output.shape[-2:]
    window = torch.hann_window(height, dtype=torch.float64)[:, None] * torch.hann_window(width, dtype=torch.float64)
    y, x = (cast(Tensor, torch.fft.fftfreq(size)).abs() for size in (height, width))
    fine = (y[:, None] > 0.25) | (x > 0.25)
    pictures = ((v - v.mean()) * window for v in (luma(output).cpu(), luma(truth).cpu()))
    found, real = (cast(Tensor, torch.fft.fft2(v))[fine] for v in pictures)
    power, expected = (float(v.abs().square().sum()) for v in (found, real))
    shared = float((found * real.conj()).real.sum())
    return Band(power / max(expected, 1e-12), shared / max((power * expected) ** 0.5, 1e-12))


METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "PSNR": psnr,
    "PSNR-Y": psnr_y,
    "SSIM": ssim,
    "MS-SSIM": ms_ssim,
    "GMSD": gmsd,
}


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of (..., H, W) where `weights` (H, W) are large; NaN where all of them are 0."""
    if weights is None:
        return values.mean(dim=(-2, -1))
    shares = weights.to(values)
    return (values * shares).sum(dim=(-2, -1)) / shares.sum(dim=(-2, -1))


def check_shapes(output: Tensor, truth: Tensor, min_size: int, name: str) -> None:
    """Both must be RGB of one size, with sides of at least `min_size` pixels."""
    if output.shape != truth.shape or output.ndim not in (3, 4) or output.shape[-3] != 3:
        found = f"{tuple(output.shape)} and {tuple(truth.shape)}"
        raise InputError(f"{name}: found shapes {found}, expected two equal ones, (3, H, W) or (B, 3, H, W)")
    if min(output.shape[-2:]) < min_size:
        height, width = output.shape[-2:]
        raise InputError(
            f"{name}: found {width} x {height} pixels, expected at least {min_size} a side; use larger pictures"
        )


def _ssim_maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance map and the contrast-and-structure map of SSIM, each (..., H - 10, W - 10)."""
    mean_x, mean_y = _gaussian_window(x), _gaussian_window(y)
    variances = _gaussian_window(x * x) - mean_x * mean_x + _gaussian_window(y * y) - mean_y * mean_y
    covariance = _gaussian_window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _gaussian_window(x: Tensor) -> Tensor:
    """Weigh (..., H, W) by an 11 x 11 Gaussian of sigma 1.5, where it fits wholly."""
    weights = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)]
    weights = [weight / sum(weights) for weight in weights]
    return _correlate(_correlate(x, weights, -2), weights, -1)


def _correlate(x: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """Correlate along one dimension, where the weights fit wholly, by shifted sums."""
    size = x.shape[dim] - len(weights) + 1
    total = torch.zeros_like(x.narrow(dim, 0, size))
    for k, weight in enumerate(weights):
        total.add_(x.narrow(dim, k, size), alpha=weight)
    return total


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.reshape(-1, 1, *x.shape[-2:]), 2).reshape(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)


def halve_padded(x: Tensor) -> Tensor:
    """2 x 2 means; an odd last line is met by zeros."""
    return _halve(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)))


def _gradient(x: Tensor) -> Tensor:
    """The magnitude of the Prewitt gradient of (..., H, W), with zeros outside."""
    x = F.pad(x, (1, 1, 1, 1))
    mean, slope = (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, -1.0)
    return torch.hypot(_correlate(_correlate(x, mean, -2), slope, -1), _correlate(_correlate(x, slope, -2), mean, -1))


def seam_ratio(image: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    """Mean absolute step of a picture (..., H, W) across grid lines, over that everywhere else; 1 where none shows.

    `rows` and `columns` are the first pixels behind each line, as the edges of tiles are.
    """
    on, off = list[Tensor](), list[Tensor]()
    for axis, lines in ((-2, rows), (-1, columns)):
        steps = image.diff(dim=axis).abs().movedim(axis, 0)
        on_line = torch.zeros(len(steps), dtype=torch.bool)
        on_line[[line - 1 for line in lines if 0 < line <= len(steps)]] = True
        on.append(steps[on_line].flatten())
        off.append(steps[~on_line].flatten())
    return float(torch.cat(on).mean() / torch.cat(off).mean().clamp(min=1e-12))
