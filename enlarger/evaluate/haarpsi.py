"""HaarPSI: a similarity of pictures that agrees with people better than SSIM (Reisenhofer et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.evaluate.metrics import check_shapes, halve_padded, weighted_mean

C, ALPHA = 30.0, 4.2  # the paper's constants, for values in 0..255
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
MIN_SIZE = 2  # pixels of a side


def haarpsi(output: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Similarity in 0..1 of pictures (..., 3, H, W) in 0..1; 1 means equal. `weights` (H, W): how much a pixel counts.

    Equations 10 to 14 with the chroma of section 2.3, on pictures halved by 2 x 2 means as in the authors' program.
    """
    check_shapes(output, truth, MIN_SIZE, "HaarPSI")
    found, real = (_yiq(image) for image in (output, truth))
    similarities, importances = list[Tensor](), list[Tensor]()
    for transposed in (False, True):
        pairs = [[_haar(yiq[..., 0, :, :], scale, transposed) for yiq in (found, real)] for scale in (1, 2, 3)]
        similarities.append((_similarity(*pairs[0]) + _similarity(*pairs[1])) / 2)
        importances.append(torch.maximum(*pairs[2]))
    chroma = [[_mean2(yiq[..., k, :, :]).abs() for yiq in (found, real)] for k in (1, 2)]
    similarities.append((_similarity(*chroma[0]) + _similarity(*chroma[1])) / 2)
    importances.append((importances[0] + importances[1]) / 2)
    importance = torch.stack(importances, -3)
    if weights is not None:
        importance = importance * halve_padded(weights.to(importance))
    squashed = torch.sigmoid(ALPHA * torch.stack(similarities, -3)) * importance
    totals = [weighted_mean(each, None).mean(-1) for each in (squashed, importance)]
    share = torch.where(totals[1] > 0, totals[0] / totals[1], torch.sigmoid(torch.tensor(ALPHA)).to(totals[0]))
    return (share.logit() / ALPHA).square()


def _yiq(image: Tensor) -> Tensor:
    """(..., 3, H, W) in 0..1 to luma and chroma of 0..255 at half the size."""
    matrix = torch.tensor(YIQ, dtype=torch.float64, device=image.device)
    planes = torch.einsum("kc,...chw->...khw", matrix, image.double() * 255)
    return halve_padded(planes)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return (2 * a * b + C) / (a.square() + b.square() + C)


def _haar(plane: Tensor, scale: int, transposed: bool) -> Tensor:
    """The absolute Haar coefficients of (..., H, W) at each place: one half of a square less the other."""
    side = 2**scale
    kernel = torch.full((side, side), 2.0**-scale, dtype=plane.dtype, device=plane.device)
    kernel[: side // 2] *= -1
    return _correlate(plane, kernel.T if transposed else kernel).abs()


def _mean2(plane: Tensor) -> Tensor:
    return _correlate(plane, torch.full((2, 2), 0.25, dtype=plane.dtype, device=plane.device))


def _correlate(plane: Tensor, kernel: Tensor) -> Tensor:
    """At the same size, with zeros outside, the square's middle at each place as MATLAB's `conv2` has it."""
    before, after = kernel.shape[0] // 2 - 1, kernel.shape[0] // 2
    padded = F.pad(plane.reshape(-1, 1, *plane.shape[-2:]), (before, after, before, after))
    return F.conv2d(padded, kernel[None, None]).reshape(plane.shape)
