"""SDXL's inpainting pipeline equals diffusers' on the same random weights, pixel by pixel, with 4 and 9 channels."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from tests.support import tiny, tiny_xl
from tests.support.close import assert_close
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
SCHEDULERS = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
PICTURE = tiny.picture(64, 48)

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Any, Any]]:
    kinds = diffusers.StableDiffusionXLInpaintPipeline, StableDiffusionXLInpaintPipeline
    folders = {"4": tiny_xl.base_folder(), "9": tiny_xl.inpaint_folder(), "refiner": tiny_xl.refiner_folder()}
    return {name: tiny_xl.load_pipelines(*kinds, folder) for name, folder in folders.items()}


@pytest.fixture(params=["4", "9"])
def pipes(request: pytest.FixtureRequest, made: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return made[request.param]


def mask(width: int = 64, height: int = 48, blur: float = 0.0) -> Image.Image:
    """White in an ellipse off the middle; soft if blurred."""
    drawn = Image.new("L", (width, height))
    ImageDraw.Draw(drawn).ellipse((width // 4, height // 3, width - 9, height - 4), fill=255)
    return drawn.filter(ImageFilter.GaussianBlur(blur)) if blur else drawn


def compare(pipes: tuple[Any, Any], atol: float = ATOL, seed: int | list[int] = 0, **call: Any) -> Any:
    """The same call of both, each with its own generators of the same seeds."""
    options: dict[str, Any] = {
        "prompt": "a cat", "image": PICTURE, "mask_image": mask(), "num_inference_steps": 5, "output_type": "pt",
        "height": 48, "width": 64, **call,
    }  # fmt: skip
    found, expected = (pipe(**options, generator=tiny_xl.generators(seed)).images for pipe in pipes)
    if isinstance(found, list):
        compare_bytes(found, expected)
        return found
    assert expected.std() > 0.03
    assert_close(found, expected, atol)
    return found


def compare_bytes(found: list[Image.Image], expected: list[Image.Image]) -> None:
    """Equal but for values between two levels, which rounding takes to either."""
    a, b = (np.stack([np.asarray(one, np.int16) for one in images]) for images in (found, expected))
    assert a.shape == b.shape and b.std() > 8
    assert abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pipes: tuple[Any, Any], name: str) -> None:
    with tiny_xl.scheduled(pipes, name):
        compare(pipes, strength=0.6, num_inference_steps=8)
        compare(pipes, strength=1.0, guidance_scale=1)


@pytest.mark.parametrize(
    "call",
    [
        {"mask_image": mask(blur=6)},
        {"mask_image": np.asarray(mask(blur=6), np.float32) / 255},
        {"mask_image": torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(7))},
        {"strength": 0.3, "num_inference_steps": 10},
        {"guidance_scale": 9, "guidance_rescale": 0.7, "negative_prompt": "grey", "prompt_2": "two dogs"},
        {"negative_prompt": ""},
        {"original_size": (200, 100), "crops_coords_top_left": (10, 20), "target_size": (512, 512)},
        {"negative_original_size": (512, 512), "negative_target_size": (99, 512), "crops_coords_top_left": (1, 2)},
        {"image": torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1)), "strength": 0.8},
        {"latents": normal(1, 4, 6, 8, seed=4), "strength": 1.0},
        {"masked_image_latents": normal(1, 4, 6, 8, seed=5)},
        {"image": tiny.picture(100, 70), "mask_image": mask(100, 70)},
        {"height": None, "width": None},
        {"height": 96, "width": 48},
        {"timesteps": [900, 500, 77], "strength": 0.7},
    ],
    ids=lambda call: ", ".join(call),
)
def test_calls(pipes: tuple[Any, Any], call: dict[str, Any]) -> None:
    compare(pipes, **call)


@pytest.mark.parametrize("pad", [0, 8])
@pytest.mark.parametrize("blur", [0.0, 4.0])
def test_crops(pipes: tuple[Any, Any], pad: int, blur: float) -> None:
    image = tiny.picture(150, 100)
    small = Image.new("L", image.size)
    small.paste(mask(60, 40, blur), (30, 40))
    found = compare(pipes, image=image, mask_image=small, padding_mask_crop=pad, output_type="pil", strength=0.9)
    assert found[0].size == image.size


def test_batches(pipes: tuple[Any, Any]) -> None:
    call: dict[str, Any] = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"], "strength": 0.8}
    compare(pipes, **call, image=[PICTURE, tiny.picture(64, 48, 1)], mask_image=[mask(), mask(blur=6)])
    assert len(compare(pipes, **call, num_images_per_prompt=2)) == 4
    compare(pipes, **call, num_images_per_prompt=2, seed=[4, 5, 6, 7])


def test_scores(made: dict[str, tuple[Any, Any]]) -> None:
    compare(made["refiner"])
    compare(made["refiner"], aesthetic_score=9.0, negative_aesthetic_score=0.0, guidance_scale=12, strength=0.5)


@pytest.mark.parametrize("ends", [(0.3, 0.8), (0.5, None), (0.8, None), (None, 0.5)], ids=str)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_between(made: dict[str, tuple[Any, Any]], name: str, ends: tuple[float | None, float | None]) -> None:
    """The refiner repaints latents that another pipeline left, or leaves some."""
    call = {"denoising_start": ends[0], "denoising_end": ends[1], "num_inference_steps": 10, "strength": 0.99}
    with tiny_xl.scheduled(made["refiner"], name):
        compare(made["refiner"], LATENT_ATOL, image=normal(1, 4, 6, 8, seed=5), **call, output_type="latent")
        compare(made["refiner"], **call)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "HeunDiscreteScheduler"])
def test_between_with_9_channels(made: dict[str, tuple[Any, Any]], name: str) -> None:
    with tiny_xl.scheduled(made["9"], name):
        compare(made["9"], denoising_start=0.4, num_inference_steps=10)
        given = {"image": normal(1, 4, 6, 8, seed=5), "masked_image_latents": normal(1, 4, 6, 8, seed=6)}
        compare(made["9"], **given, denoising_start=0.4, denoising_end=0.7, num_inference_steps=10)


def test_base_then_refiner(made: dict[str, tuple[Any, Any]]) -> None:
    bases, refiners = made["4"], made["refiner"]
    made_by = []
    for first, second in zip(bases, refiners, strict=True):
        call = {"prompt": "a cat", "mask_image": mask(), "num_inference_steps": 8, "height": 48, "width": 64}
        left = first(
            image=PICTURE, denoising_end=0.6, output_type="latent", generator=torch.manual_seed(0), **call
        ).images
        made_by.append(
            second(image=left, denoising_start=0.6, output_type="pt", generator=torch.manual_seed(1), **call).images
        )
    assert made_by[1].std() > 0.03
    assert_close(made_by[0], made_by[1], ATOL)


def test_callbacks(pipes: tuple[Any, Any]) -> None:
    seen: list[list[Tensor]] = [[], []]
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids", "mask", "masked_image_latents"]

    def run(pipe: Any, log: list[Tensor]) -> Tensor:
        def change(owner: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            log.extend([*(tensors[name].clone() for name in names), torch.tensor([step, float(time)])])
            return {"latents": tensors["latents"] * 0.9 + 0.1 * step}

        return pipe(
            "a cat", image=PICTURE, mask_image=mask(), height=48, width=64, strength=0.7, num_inference_steps=6,
            generator=torch.manual_seed(1), callback_on_step_end=change, callback_on_step_end_tensor_inputs=names,
            output_type="pt",
        ).images  # fmt: skip

    assert_close(*(run(pipe, log) for pipe, log in zip(pipes, seen, strict=True)), ATOL)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)
