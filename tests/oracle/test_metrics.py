"""The metrics against torchmetrics, and against slow programs written from the papers with numpy and scipy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal  # pyright: ignore[reportMissingTypeStubs] - it has none
from torch import Tensor

from enlarger.evaluate.metrics import gmsd, ms_ssim, psnr, psnr_y, ssim, studio_luma
from tests.support.close import assert_close
from tests.support.pictures import texture

Plane = NDArray[np.float64]
SIZES = [(200, 186), (177, 211)]


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A picture and a blurred, noisy copy, both rounded to 8 bits."""
    truth = torch.from_numpy(texture(width, height)).permute(2, 0, 1) / 255
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * 0.03
    blurred = torch.from_numpy(ndimage.gaussian_filter(truth.numpy(), (0, 1.2, 0.8)))
    return ((blurred + noise).clamp(0, 1) * 255).round() / 255, truth


def matlab_y(image: Tensor) -> Plane:
    """rgb2ycbcr's first plane of a picture in 0..1, in 16..235."""
    red, green, blue = image.double().numpy()
    return 65.481 * red + 128.553 * green + 24.966 * blue + 16


def gaussian_window() -> Plane:
    """MATLAB's fspecial('gaussian', 11, 1.5)."""
    y, x = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    return window / window.sum()


def ssim_terms(a: Plane, b: Plane) -> tuple[Plane, Plane]:
    """The map of eq. 13 in Wang et al. 2004, and its contrast-structure factor, from planes in 0..255."""
    window, c1, c2 = gaussian_window(), (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(plane: Plane) -> Plane:
        return signal.convolve2d(plane, window, mode="valid")

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure, structure


def slow_ms_ssim(a: Plane, b: Plane) -> float:
    weights, score = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333], 1.0
    for level, weight in enumerate(weights):
        whole, structure = ssim_terms(a, b)
        score *= (whole if level == 4 else structure).mean() ** weight
        a, b = (
            (p[0:-1:2, 0:-1:2] + p[1::2, 0:-1:2] + p[0:-1:2, 1::2] + p[1::2, 1::2]) / 4
            for p in (q[: q.shape[0] // 2 * 2, : q.shape[1] // 2 * 2] for q in (a, b))
        )
    return score


def slow_gmsd(a: Tensor, b: Tensor) -> float:
    """Xue et al. 2014, in the order of the authors' program: planes in 0..255, T = 170."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3

    def gradient(image: Tensor) -> Plane:
        grey = np.tensordot([0.299, 0.587, 0.114], image.double().numpy() * 255, 1)
        small = signal.convolve2d(grey, np.ones((2, 2)) / 4)[1:, 1:][::2, ::2]  # conv2(..., 'same'), then 1:2:end
        return np.hypot(signal.convolve2d(small, prewitt, "same"), signal.convolve2d(small, prewitt.T, "same"))

    x, y = gradient(a), gradient(b)
    return float(((2 * x * y + 170) / (x**2 + y**2 + 170)).std())


@pytest.mark.parametrize("size", SIZES)
def test_psnr_by_its_definition(size: tuple[int, int]) -> None:
    output, truth = pair(*size)
    steps = (output.double().numpy() - truth.double().numpy()) * 255
    assert_close(psnr(output, truth), np.asarray(10 * np.log10(255**2 / np.mean(steps**2))), 1e-9)
    expected = 10 * np.log10(255**2 / np.mean((matlab_y(output) - matlab_y(truth)) ** 2))
    assert_close(psnr_y(output, truth), np.asarray(expected), 1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_and_ms_ssim_by_the_papers(size: tuple[int, int]) -> None:
    output, truth = pair(*size)
    planes = matlab_y(output), matlab_y(truth)
    assert_close(ssim(output, truth), np.asarray(ssim_terms(*planes)[0].mean()), 1e-9)
    assert_close(ms_ssim(output, truth), np.asarray(slow_ms_ssim(*planes)), 1e-9)


@pytest.mark.parametrize("size", [*SIZES, (64, 31), (9, 20)])
def test_gmsd_by_the_paper(size: tuple[int, int]) -> None:
    output, truth = pair(*size)
    assert_close(gmsd(output, truth), np.asarray(slow_gmsd(output, truth)), 1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_torchmetrics_agrees(size: tuple[int, int]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    output, truth = pair(*size)
    x, y = (studio_luma(image)[None, None] for image in (output, truth))
    ratio = functional.peak_signal_noise_ratio(output[None].double(), truth[None].double(), data_range=1.0)
    assert_close(psnr(output, truth), ratio, 1e-5)  # its logarithm of 10 is a float32
    assert_close(psnr_y(output, truth), functional.peak_signal_noise_ratio(x, y, data_range=1.0), 1e-5)
    # it averages over windows that reach over the edge as well; its map without these is the paper's
    found = functional.structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)[1]
    assert_close(ssim(output, truth), found[..., 5:-5, 5:-5].mean(), 1e-6)
