"""Whole runs by the engine OpenVINO: the library, in float32 as torch and in 8-bit integers near it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import enlarger
from enlarger.runtime.engines import openvino_api
from tests.support import tiny
from tests.support.tiny import one_thread

one_thread = pytest.fixture(autouse=True, scope="module")(one_thread)

STEPS = {"steps": 3, "seed": 4}
LEAST_PSNR = 40.0  # dB, of 8-bit pictures to float32's


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path))
    return tmp_path / "engines" / "openvino"


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each 8-bit graph was made of."""
    counts, quantise = list[int](), openvino_api.quantise

    def counted(graph: Any, calls: Any) -> Any:
        counts.append(len(calls))
        return quantise(graph, calls)

    monkeypatch.setattr(openvino_api, "quantise", counted)
    return counts


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def psnr(found: Image.Image, expected: Image.Image) -> float:
    error = float(((pixels(found) - pixels(expected)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def x2(**options: Any) -> Image.Image:
    upscaler = enlarger.load_upscaler(tiny.x2_folder(), device="cpu", **options)
    return upscaler(tiny.picture(64, 96), consistent=False, **STEPS).image


def test_the_x2_upscaler_in_float32(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UNet, encoder and decoder are graphs; a picture of 8 bits is the same up to rounding.

    Tiles of the autoencoder run by torch, and give what the graph gives.
    """
    from enlarger.tasks.latent_diffusion import tiled_autoencoder

    found, expected = x2(precision="float32", engine="openvino"), x2(precision="float32")
    assert np.abs(pixels(found) - pixels(expected)).max() <= 1
    assert len(list(home.iterdir())) == 3
    monkeypatch.setattr(tiled_autoencoder, "DEFAULT_WORK", 1)
    assert np.abs(pixels(x2(precision="float32", engine="openvino")) - pixels(expected)).max() <= 1


def test_the_x2_upscaler_in_8_bits(home: Path, quantised: list[int]) -> None:
    """The first run's calls calibrate it, and it is made again: every picture is an 8-bit one, also of another load.

    A run that is cancelled calibrates nothing.
    """
    upscaler = enlarger.load_upscaler(tiny.x2_folder(), device="cpu", precision="int8", engine="openvino")

    def stop(progress: Any) -> None:
        if progress.done == 2:
            raise enlarger.Cancelled("enough")

    with pytest.raises(enlarger.Cancelled):
        upscaler(tiny.picture(64, 96), stop, **STEPS)
    assert quantised == []
    expected, first = x2(precision="float32"), x2(precision="int8", engine="openvino")
    assert quantised == [STEPS["steps"]]
    assert LEAST_PSNR <= psnr(first, expected) < math.inf
    assert len(list(home.iterdir())) == 4
    assert np.array_equal(pixels(x2(precision="int8", engine="openvino")), pixels(first)) and len(quantised) == 1
