"""Depth equals transformers' DPT and diffusers' preparation of a depth map."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.image.picture import Picture, to_pil
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json
from enlarger.tasks.auxiliary.depth_estimator import DEFAULT_PREPROCESSOR, DepthEstimator, normalise_depth
from enlarger.tasks.auxiliary.vision import preprocessor_from_config
from tests.support.close import assert_close
from tests.support.official import config_of
from tests.support.random_weights import normal
from tests.support.tiny_vision import SIDE, depth_network, depth_processor, pictures, save_beside

ATOL = 1e-5


def images(batch: torch.Tensor) -> list[Image.Image]:
    return [to_pil(Picture(each)) for each in batch]


def saved(processor: Any) -> Json:
    return json.loads(processor.to_json_string())


@pytest.fixture(scope="module", params=["plain", "hybrid"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = depth_network(hybrid=request.param == "hybrid")
    return save_beside(tmp_path_factory.mktemp("depth"), "depth_estimator", network, depth_processor())


SIZES = [(64, 64), (40, 104), (150, 90), (33, 47)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "changed",
    [
        {}, {"resample": 3}, {"keep_aspect_ratio": True, "ensure_multiple_of": 32}, {"ensure_multiple_of": 16},
        {"do_resize": False}, {"do_normalize": False}, {"do_rescale": False}, {"image_std": [0.1, 0.2, 0.3]},
        {"size": {"height": 32, "width": 48}},
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing_equals_transformers(changed: Json, height: int, width: int) -> None:
    processor, batch = depth_processor(**changed), pictures(2, height, width)
    expected = processor(images(batch), return_tensors="pt").pixel_values
    found = preprocessor_from_config(saved(processor), DEFAULT_PREPROCESSOR)(batch)
    assert_close(found, expected, 255 * ATOL if changed == {"do_rescale": False} else ATOL)


def test_the_official_preprocessing() -> None:
    found = preprocessor_from_config(config_of("stable-diffusion-2-depth/feature_extractor"), DEFAULT_PREPROCESSOR)
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    processor, batch = (
        DPTImageProcessorPil(**config_of("stable-diffusion-2-depth/feature_extractor")),
        pictures(1, 100, 60),
    )
    assert found.size == (384, 384) and found.resample == Image.Resampling.BILINEAR
    assert_close(found(batch), processor(images(batch), return_tensors="pt").pixel_values, ATOL)


def test_the_official_network_has_the_official_size() -> None:
    from transformers import DPTConfig, DPTForDepthEstimation

    with torch.device("meta"):
        network = DPTForDepthEstimation(DPTConfig(**config_of("stable-diffusion-2-depth/depth_estimator")))
    assert len(network.state_dict()) == 414 and list(network.buffers()) == []
    assert sum(parameter.numel() for parameter in network.parameters()) == 122_377_985


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_depth_equals_transformers(folder: Path, height: int, width: int) -> None:
    from transformers import DPTForDepthEstimation

    batch = pictures(2, height, width)
    theirs = DPTForDepthEstimation.from_pretrained(folder / "depth_estimator").eval()
    inputs = depth_processor()(images(batch), return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = theirs(inputs).predicted_depth
    found = DepthEstimator.from_folder(folder)(batch)
    assert found.shape == (2, 1, SIDE, SIDE) and expected.std() > 0.01
    assert_close(found[:, 0], expected, ATOL)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_channel_equals_diffusers(folder: Path, height: int, width: int) -> None:
    from transformers import DPTForDepthEstimation

    batch = pictures(2, height, width)
    theirs = DPTForDepthEstimation.from_pretrained(folder / "depth_estimator").eval()
    pipe = SimpleNamespace(feature_extractor=depth_processor(), depth_estimator=theirs, vae_scale_factor=8)
    expected = prepare(pipe, images(batch), None)
    found = normalise_depth(DepthEstimator.from_folder(folder)(batch), (height // 8, width // 8))
    assert_close(found, expected, ATOL)


@pytest.mark.parametrize("size", [(24, 16), (5, 9), (64, 40)])
def test_a_given_map_equals_diffusers(size: tuple[int, int]) -> None:
    depth = 1000 * normal(3, 37, 61).abs()
    pipe = SimpleNamespace(vae_scale_factor=8)
    expected = prepare(pipe, [torch.zeros(3, 8 * size[0], 8 * size[1])] * 3, depth)
    assert_close(normalise_depth(depth, size), expected, ATOL)
    assert_close(normalise_depth(depth[:, None], size), expected, ATOL)


def prepare(pipe: Any, image: list[Any], depth: torch.Tensor | None) -> torch.Tensor:
    """diffusers' depth channel without guidance."""
    from diffusers import StableDiffusionDepth2ImgPipeline

    run = StableDiffusionDepth2ImgPipeline.prepare_depth_map
    with torch.inference_mode():
        return run(pipe, image, depth, len(image), False, torch.float32, torch.device("cpu"))


def test_weights_in_half_precision_compute_in_float32(folder: Path) -> None:
    batch = pictures(1, 48, 80)
    half, whole = (DepthEstimator.from_folder(folder, dtype) for dtype in (torch.float16, torch.float32))
    found, expected = half(batch), whole(batch)
    assert found.dtype == torch.float32 and next(half.network.parameters()).dtype == torch.float16
    assert_close(found, expected, 2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offload_changes_nothing(folder: Path, offload: Any) -> None:
    batch = pictures(1, 48, 80)
    expected = DepthEstimator.from_folder(folder)(batch)
    assert torch.equal(DepthEstimator.from_folder(folder, runtime=Runtime(offload=offload))(batch), expected)


def test_batch_equals_singles(folder: Path) -> None:
    estimator, batch = DepthEstimator.from_folder(folder), pictures(3, 40, 72)
    assert_close(estimator(batch), torch.cat([estimator(one[None]) for one in batch]), ATOL)
    assert not np.allclose(estimator(batch)[0], estimator(batch)[1])
