"""Depth maps of the user, their normalisation, and what happens without transformers or with another network."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.errors import CheckpointError, InputError, NonFinite, Unsupported
from enlarger.tasks.auxiliary.depth_estimator import (
    DEFAULT_PREPROCESSOR,
    DepthEstimator,
    normalise_depth,
    read_depth_map,
)
from tests.support.close import assert_close
from tests.support.random_weights import normal


def ramp(height: int, width: int) -> torch.Tensor:
    return torch.linspace(0, 1, height * width).reshape(1, height, width)


def test_each_map_fills_minus_one_to_one() -> None:
    depth = normal(3, 20, 30) * torch.tensor([1, 100, 1e-4])[:, None, None] + 7
    found = normalise_depth(depth, (5, 9))
    assert found.shape == (3, 1, 5, 9) and found.dtype == torch.float32
    assert_close(found.amin((1, 2, 3)), -torch.ones(3), 1e-6)
    assert_close(found.amax((1, 2, 3)), torch.ones(3), 1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -5.7, 1e8])
@pytest.mark.parametrize("size", [(5, 9), (64, 48), (20, 30)])
def test_a_constant_map_gives_zeros(value: float, size: tuple[int, int]) -> None:
    """Resizing leaves rounding on a constant, which must not be stretched to -1..1."""
    depth = torch.cat([torch.full((1, 20, 30), value), ramp(20, 30)])
    found = normalise_depth(depth, size)
    assert torch.equal(found[0], torch.zeros(1, *size)) and found[1].max() == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_holes_are_refused(bad: float) -> None:
    depth = ramp(4, 4)
    depth[0, 1, 2] = bad
    with pytest.raises(InputError, match="found NaN or infinity in a depth map, expected numbers; fill its holes"):
        normalise_depth(depth, (2, 2))


@pytest.mark.parametrize("shape", [(4,), (1, 3, 4, 4), (1, 1, 1, 4, 4), (0, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"found a depth map of shape .*, expected \(H, W\), \(B, H, W\) or"):
        normalise_depth(torch.zeros(shape), (2, 2))


def test_every_kind_of_map_is_read_alike(tmp_path: Path) -> None:
    """Height and width stay in their places, whatever the kind."""
    levels = (ramp(24, 56)[0] * 65535).round()
    deep = levels.numpy().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "depth.png")
    sources = [
        levels, levels[None], levels[None, None], levels.double(), deep, deep.astype(np.float64), deep[None],
        Image.fromarray(deep), Image.fromarray(deep.astype(np.float32)), Image.fromarray(deep.astype(np.int32)),
        tmp_path / "depth.png", str(tmp_path / "depth.png"),
    ]  # fmt: skip
    expected = normalise_depth(levels, (3, 7))
    for source in sources:
        found = read_depth_map(source)
        assert found.shape == (1, 1, 24, 56) and found.dtype == torch.float32
        assert_close(normalise_depth(found, (3, 7)), expected, 1e-5)


def test_eight_bits_are_enough_for_a_map() -> None:
    image = Image.fromarray((ramp(24, 56)[0] * 255).round().byte().numpy())
    for one in (image, image.convert("RGB"), np.array(image)):
        assert_close(normalise_depth(read_depth_map(one), (3, 7)), normalise_depth(ramp(24, 56), (3, 7)), 0.01)


@pytest.mark.parametrize("image", [Image.new("RGB", (4, 4), "red"), Image.new("LA", (4, 4), 128)])
def test_coloured_maps_are_refused(image: Image.Image) -> None:
    with pytest.raises(InputError, match="found a depth map with colour or alpha, expected grey"):
        read_depth_map(image)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Unsupported, match=r"install enlarger\[depth\], or give a depth map"):
        DepthEstimator.from_folder(tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "depth_estimator").mkdir()
    (tmp_path / "depth_estimator" / "config.json").write_text(json.dumps({"model_type": "glpn"}))
    with pytest.raises(CheckpointError, match=r"depth_estimator: holds a glpn, expected a dpt; give a depth map"):
        DepthEstimator.from_folder(tmp_path)


def test_bad_pictures_are_refused() -> None:
    estimator = DepthEstimator(torch.nn.Linear(1, 1), DEFAULT_PREPROCESSOR)
    with pytest.raises(InputError, match=r"found pictures of shape \(3, 8, 8\), expected \(B, 3, H, W\) in -1..1"):
        estimator(torch.zeros(3, 8, 8))
    with pytest.raises(NonFinite):
        estimator(torch.full((1, 3, 8, 8), torch.nan))
