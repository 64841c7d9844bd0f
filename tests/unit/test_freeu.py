"""FreeU of the x2 upscaler's UNet is the stated formula, at the two stages that join a skip, computed here by sums."""

from math import pi

import pytest
import torch
from torch import Tensor

from enlarger.nn import freeu
from enlarger.nn.k_unet import KUNet
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import K_UNET

FACTORS = freeu.FreeU(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def by_sums(x: Tensor, skip: Tensor, scale: float, backbone: float) -> tuple[Tensor, Tensor]:
    """Half of the channels of x times `backbone`; of the skip the waves of frequency 0 and -1 times `scale`."""
    height, width = skip.shape[-2:]
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    filtered = skip.double()
    for u in (0, -1):
        for v in (0, -1):
            wave = torch.exp(2j * pi * (u * rows[:, None] / height + v * columns / width))
            part = (skip.double() * wave.conj()).sum((-2, -1), keepdim=True) * wave / (height * width)
            filtered = filtered + (scale - 1) * part.real
    factors = torch.ones(x.shape[1])
    factors[: x.shape[1] // 2] = backbone
    return x * factors[:, None, None], filtered.to(skip.dtype)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (7, 5)])
def test_the_filter_is_the_formula(height: int, width: int) -> None:
    x, skip = normal(2, 6, height, width), normal(2, 4, height, width, seed=1)
    found, expected = freeu.SkipFilter(0.2, 1.4)(x, skip), by_sums(x, skip, 0.2, 1.4)
    assert_close(found[0], expected[0], 1e-6)
    assert_close(found[1], expected[1], 1e-5)


def test_the_upscaler_filters_where_it_joins_its_first_two_skips() -> None:
    network = randomise(KUNet(K_UNET))
    given = {
        "x": normal(2, 8, 16, 24), "time": torch.tensor([0.3, -0.2]), "tokens": normal(2, 5, 32),
        "vector": normal(2, 160), "mask": None,
    }  # fmt: skip
    with torch.inference_mode():
        plain = network(**given)
        freeu.enable(network, FACTORS)
        found = network(**given)
        for block, scale, backbone in zip(network.up_blocks[1:], (0.9, 0.2), (1.2, 1.4), strict=True):
            block.skip_filter = lambda x, skip, s=scale, b=backbone: by_sums(x, skip, s, b)
        expected = network(**given)
        freeu.enable(network, freeu.FreeU(1, 1, 1, 1))
        assert_close(network(**given), plain, 1e-5)
    assert_close(found, expected, 1e-4)
    assert (found - plain).abs().max() > 1e-2
