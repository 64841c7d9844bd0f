"""Running in tiles changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enlarger.runtime.tiling import Blend, apply_tiled
from tests.support.close import assert_close
from tests.support.random_weights import normal


def convolution(reach: int, scale: float = 1, seed: int = 0):
    """A random local function: every output pixel depends on the inputs up to `reach` away."""
    kernel = normal(2, 2, 2 * reach + 1, 2 * reach + 1, seed=seed) / (2 * reach + 1)

    def function(x: Tensor) -> Tensor:
        y = torch.tanh(F.conv2d(x, kernel, padding=reach))
        if scale < 1:
            return F.avg_pool2d(y, round(1 / scale))
        return F.interpolate(y, scale_factor=scale) if scale > 1 else y

    return function


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(2, 12),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
)
def test_tiled_equals_whole(height: int, width: int, tile: int, reach: int, spare: int, scale: int) -> None:
    x = normal(2, 2, height, width, seed=height * 41 + width)
    function = convolution(reach, scale)
    assert_close(apply_tiled(function, x, tile_size=tile, margin=reach + spare, scale=scale), function(x), 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.sampled_from([2, 4]))
def test_shrinking_functions(height: int, width: int, tile: int, factor: int) -> None:
    x = normal(1, 2, height * factor, width * factor)
    function = convolution(2, 1 / factor)
    assert_close(apply_tiled(function, x, tile_size=tile * factor, margin=4, scale=1 / factor), function(x), 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (17, 16), (16, 17), (33, 31)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    x, function = normal(1, 2, *size), convolution(3, 2)
    found = apply_tiled(function, x, tile_size=8, margin=3, scale=2)
    assert found.shape == (1, 2, 2 * size[0], 2 * size[1])
    assert_close(found, function(x), 1e-5)


def test_a_margin_too_small_is_seen() -> None:
    x, function = normal(1, 2, 20, 20), convolution(3)
    assert float((apply_tiled(function, x, tile_size=8, margin=2) - function(x)).abs().max()) > 1e-3


def test_pieces_are_bounded_and_small_pictures_run_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def function(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return x

    apply_tiled(function, torch.zeros(1, 1, 12, 11), tile_size=8, margin=4)
    assert seen == [(12, 11)]
    seen.clear()
    apply_tiled(function, torch.zeros(1, 1, 100, 9), tile_size=16, margin=4)
    assert max(h for h, _ in seen) == 24 and len(seen) == 7


def test_results_are_blended_into_what_is_there() -> None:
    x, function, onto = normal(1, 2, 20, 13), convolution(2, 2), normal(1, 2, 40, 26, seed=1)
    expected = torch.lerp(onto, function(x), 0.3)
    found = apply_tiled(function, x, tile_size=8, margin=3, scale=2, blend=Blend(onto, 0.3))
    assert found is onto
    assert_close(found, expected, 1e-5)


def test_the_type_of_the_output_is_the_functions() -> None:
    assert (
        apply_tiled(lambda x: x.double()[:, :1], torch.zeros(1, 3, 30, 30), tile_size=8, margin=2).dtype
        == torch.float64
    )


def test_a_whole_blend_replaces_what_is_no_number() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    onto = torch.full((1, 3, 8, 8), torch.nan)
    apply_tiled(lambda tile: tile, x, tile_size=4, margin=0, blend=Blend(onto, 1.0))
    assert torch.equal(onto, x)
