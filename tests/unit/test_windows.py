"""Overlapping windows: they cover everything, the whole is one of them, and smooth densities show no seam."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.precondition import Scalings
from enlarger.diffusion.windows import WindowedDenoiser, Windows
from enlarger.requests import RefineRequest, UpscaleRequest
from enlarger.tasks.latent_diffusion.tiled_diffusion import NetworkShape, choose_windows
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


SHAPE = NetworkShape(320, torch.float32, 64, 8)


@pytest.mark.parametrize(
    ("tile", "memory", "size", "side"),
    [
        (None, 4, (64, 64), None),
        (None, 4, (256, 256), None),
        (None, 4, (512, 256), 264),
        (None, 1, (512, 256), 128),
        (False, 1, (512, 512), None),
        (True, 4, (512, 256), 64),
        (True, 4, (64, 64), None),
        (True, 0.05, (512, 256), 24),
    ],
)
def test_windows_follow_the_memory_and_the_training(tile, memory, size, side) -> None:
    windows = choose_windows(UpscaleRequest(None, tile=tile, memory=memory), SHAPE, size)
    assert (None if windows is None else windows.side) == side
    assert windows is None or windows.overlap == side // 4 // 8 * 8 or windows.overlap == 8


def test_more_pictures_at_once_have_smaller_windows() -> None:
    request = RefineRequest(None)
    sides = [choose_windows(request, SHAPE, (999, 999), count).side for count in (1, 4)]
    assert sides == [264, 128]
