"""FID and KID on given features, HaarPSI on pictures, against torchmetrics and programs written from the papers."""

import numpy as np
import pytest
import torch
from scipy import linalg, signal  # pyright: ignore[reportMissingTypeStubs] - it has none
from torchmetrics.image.fid import _compute_fid  # pyright: ignore[reportPrivateUsage] - of given statistics
from torchmetrics.image.kid import poly_mmd

from enlarger.errors import InputError
from enlarger.evaluate.distribution import frechet_distance, kernel_distance
from enlarger.evaluate.haarpsi import haarpsi
from enlarger.evaluate.metrics import psnr, ssim
from tests.support.pictures import texture


def features(count: int, width: int = 24, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Rows that are correlated, as features are."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(count, width)) @ np.random.default_rng(9).normal(size=(width, width)) / 4
    return torch.from_numpy(mixed + shift).float()


@pytest.mark.parametrize("counts", ((200, 150), (10, 12)), ids=("full rank", "fewer pictures than features"))
def test_fid_is_that_of_scipys_matrix_root(counts: tuple[int, int]) -> None:
    found, real = features(counts[0], shift=0.3), features(counts[1], seed=1)
    a, b = (each.double().numpy() for each in (found, real))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(linalg.sqrtm(first @ second))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert abs(frechet_distance(found, real) - expected) <= 1e-4


def test_fid_is_that_of_torchmetrics() -> None:
    found, real = features(300, shift=0.1), features(200, seed=2)
    statistics = [value for each in (found, real) for value in (each.double().mean(0), each.double().mT.cov())]
    assert abs(frechet_distance(found, real) - float(_compute_fid(*statistics))) <= 1e-4


def test_fid_of_a_set_with_itself_is_zero_and_grows_with_a_shift() -> None:
    real = features(100)
    assert abs(frechet_distance(real, real)) <= 1e-4
    assert abs(frechet_distance(real + 0.5, real) - 24 * 0.25) <= 1e-4


def test_kid_is_that_of_torchmetrics() -> None:
    found, real = features(80, shift=0.2), features(80, seed=3)
    expected = float(poly_mmd(found.double(), real.double()))
    whole = kernel_distance(found, real)
    assert abs(whole.mean - expected) <= 1e-4 and whole.std == 0


def test_kid_of_subsets_is_near_that_of_all_and_follows_from_the_seed() -> None:
    found, real = features(120, shift=0.2), features(150, seed=3)
    parts = kernel_distance(found, real, subsets=40, subset_size=60)
    assert parts == kernel_distance(found, real, subsets=40, subset_size=60)
    whole = kernel_distance(found[:120], real[:120])
    assert abs(parts.mean - whole.mean) < 3 * parts.std and parts.std > 0


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="FID: found 1 pictures, expected 2 or more"):
        frechet_distance(features(1), features(5))
    with pytest.raises(InputError, match=r"KID: found \(5, 24\) and \(5, 8\)"):
        kernel_distance(features(5), features(5, 8))


def slow_haarpsi(found: np.ndarray, real: np.ndarray) -> float:
    """Reisenhofer et al. 2018, from (H, W, 3) in 0..255, by scipy's convolutions with MATLAB's middle."""

    def convolve(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return np.rot90(signal.convolve2d(np.rot90(plane, 2), np.rot90(kernel, 2), mode="same"), 2)

    matrix = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    planes = [[convolve(image @ row, np.full((2, 2), 0.25))[::2, ::2] for row in matrix] for image in (found, real)]

    def coefficients(plane: np.ndarray, level: int, turned: bool) -> np.ndarray:
        kernel = np.full((2**level, 2**level), 2.0**-level)
        kernel[: 2**level // 2] *= -1
        return np.abs(convolve(plane, kernel.T if turned else kernel))

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (2 * a * b + 30) / (a**2 + b**2 + 30)

    maps, weights = [], []
    for turned in (False, True):
        levels = [[coefficients(image[0], level, turned) for image in planes] for level in (1, 2, 3)]
        maps.append((alike(*levels[0]) + alike(*levels[1])) / 2)
        weights.append(np.maximum(*levels[2]))
    chroma = [[np.abs(convolve(image[k], np.full((2, 2), 0.25))) for image in planes] for k in (1, 2)]
    maps.append((alike(*chroma[0]) + alike(*chroma[1])) / 2)
    weights.append((weights[0] + weights[1]) / 2)
    squashed = sum((w / (1 + np.exp(-4.2 * m))).sum() for m, w in zip(maps, weights, strict=True))
    share = squashed / sum(w.sum() for w in weights)
    return float((np.log(share / (1 - share)) / 4.2) ** 2)


@pytest.mark.parametrize("size", ((40, 56), (37, 45)), ids=("even", "odd"))
def test_haarpsi_is_that_of_the_paper(size: tuple[int, int]) -> None:
    real = texture(size[1], size[0])
    noise = np.random.default_rng(0).normal(0, 12, real.shape)
    found = np.clip(real + noise, 0, 255).round()
    pair = (torch.from_numpy(each.astype(np.float64)).permute(2, 0, 1) / 255 for each in (found, real))
    assert abs(float(haarpsi(*pair)) - slow_haarpsi(found, real.astype(np.float64))) <= 1e-9


def test_weights_choose_the_pixels_that_count() -> None:
    truth = torch.from_numpy(texture(48, 48)).permute(2, 0, 1).double() / 255
    found, mask = truth.clone(), torch.zeros(48, 48)
    found[:, :, 24:] = found[:, :, 24:].flip(1)
    mask[:, 34:] = 1  # away from the edge of what differs: windows and wavelets look beside
    for figure, best in ((psnr, np.inf), (ssim, 1.0), (haarpsi, 1.0)):
        left = torch.zeros(48, 48)
        left[:, :10] = 1
        assert float(figure(found, truth, left)) == pytest.approx(best, abs=1e-9)
        assert float(figure(found, truth, mask)) < float(figure(found, truth)) < best
        everywhere = float(figure(found, truth, torch.ones(48, 48)))
        assert everywhere == pytest.approx(float(figure(found, truth)), abs=1e-9)
