"""Overlapping windows: they cover everything, the whole is one of them, and smooth densities show no seam."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.precondition import Scalings
from enlarger.diffusion.windows import WindowedDenoiser, Windows
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.requests import RefineRequest, UpscaleRequest
from enlarger.tasks.planning.room import NetworkShape, choose_windows, latent_bytes
from tests.support.close import assert_close
from tests.support.random_weights import normal

SIGMA = torch.tensor(1.0, dtype=torch.float64)


def plain(sigma: Tensor) -> Scalings:
    return Scalings(skip=0.0, output=1.0, input=1.0, time=torch.zeros(1))


def denoiser(network, concat: Tensor | None = None) -> Denoiser:
    return Denoiser(network, torch.float32, plain, Conditioning(concat=concat))


@pytest.mark.parametrize(("length", "side"), [(8, 16), (16, 16), (24, 16), (80, 32), (136, 64), (1000, 64)])
def test_windows_cover_everything_and_overlap(length: int, side: int) -> None:
    windows = Windows(side, side // 4, 4)
    starts = windows.starts(length)
    assert starts[0] == 0 and starts[-1] + min(side, length) == length
    assert all(start % 4 == 0 for start in starts)
    assert all(a < b <= a + side - side // 4 for a, b in pairwise(starts))


def test_windows_of_a_pointwise_network_are_the_whole() -> None:
    x, concat = normal(2, 4, 40, 56), normal(2, 3, 40, 56, seed=2)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(x[:, :4] * x[:, 4:7].sum(1, keepdim=True))

    whole = denoiser(network, concat)
    assert_close(WindowedDenoiser(whole, Windows(16, 4, 4))(x, SIGMA), whole(x, SIGMA), 1e-6)


def test_a_window_that_covers_everything_is_the_whole_to_the_last_bit() -> None:
    x, counted = normal(1, 4, 40, 56), list[int]()

    def network(x: Tensor, time: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True)

    whole = denoiser(network)
    windows = Windows(56, 8, 8, lambda: counted.append(1))
    assert_close(WindowedDenoiser(whole, windows)(x, SIGMA), whole(x, SIGMA), 0)
    assert counted == [1]


def official_shape() -> NetworkShape:
    """Stable Diffusion 1's, without memory for its weights."""
    stages = (Stage(320, 2, 1), Stage(640, 2, 1), Stage(1280, 2, 1), Stage(1280, 2))
    with torch.device("meta"):
        return NetworkShape(UNet(UNetConfig(4, 4, stages, 1, 8, 768, linear_projection=False)), 64, 8)


SHAPE = official_shape()


def side_of(request: UpscaleRequest | RefineRequest, size: tuple[int, int], work: int | None, rows: int = 2) -> int:
    """0: whole."""
    windows = choose_windows(request, SHAPE, size, work, rows)
    assert windows is None or windows.overlap == max(8, windows.side // 4 // 8 * 8)
    return 0 if windows is None else windows.side


@pytest.mark.parametrize("work", [2**29, 2**31])
def test_windows_are_the_largest_that_the_memory_allows(work: int) -> None:
    side = side_of(UpscaleRequest(None), (496, 496), work)
    rest = work - latent_bytes((496, 496), 2)
    assert SHAPE.work(side, 2) <= rest < SHAPE.work(side + 16, 2) and side % 8 == 0
    assert side_of(UpscaleRequest(None), (side // 2, side // 2), work) == 0


@pytest.mark.parametrize(
    ("tile", "work", "size", "side"),
    [
        (None, None, (4096, 4096), 0),
        (False, 2**20, (512, 512), 0),
        (True, 2**32, (512, 256), 64),
        (True, None, (512, 256), 64),
        (True, 2**32, (64, 64), 0),
        (None, 1, (512, 256), 16),
        (True, -(2**30), (512, 256), 16),
    ],
)
def test_windows_follow_what_is_asked_and_the_training(tile, work, size, side) -> None:
    assert side_of(UpscaleRequest(None, tile=tile), size, work) == side


def test_more_pictures_at_once_have_smaller_windows() -> None:
    sides = [side_of(RefineRequest(None), (999, 999), 2**32, rows) for rows in (1, 2, 8)]
    assert sides == sorted(sides, reverse=True) and len(set(sides)) == 3
