"""SDXL's image-to-image pipeline, with the base model and the refiner, equals diffusers' pixel by pixel."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from tests.support import tiny, tiny_xl
from tests.support.close import assert_close
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
FIRST = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"]
SECOND = ["HeunDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
PICTURE = tiny.picture(64, 48)

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def bases() -> tuple[Any, Any]:
    return tiny_xl.load_pipelines(diffusers.StableDiffusionXLPipeline, StableDiffusionXLPipeline, tiny_xl.base_folder())


@pytest.fixture(scope="module")
def refiners() -> tuple[Any, Any]:
    return tiny_xl.load_pipelines(
        diffusers.StableDiffusionXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline, tiny_xl.refiner_folder()
    )


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any]:
    """The base model's image-to-image: no scores."""
    return tiny_xl.load_pipelines(
        diffusers.StableDiffusionXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline, tiny_xl.base_folder()
    )


def compare(pipes: tuple[Any, Any], atol: float = ATOL, seed: int | list[int] = 0, **call: Any) -> Tensor:
    """The same call of both, each with its own generators of the same seeds."""
    options: dict[str, Any] = {
        "prompt": "a cat" if "prompt_embeds" not in call else None, "image": PICTURE, "num_inference_steps": 6,
        "output_type": "pt", **call,
    }  # fmt: skip
    found, expected = (pipe(**options, generator=tiny_xl.generators(seed)).images for pipe in pipes)
    assert expected.std() > 0.05
    assert_close(found, expected, atol)
    return found


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", FIRST + SECOND)
def test_strength(refiners: tuple[Any, Any], name: str, strength: float) -> None:
    with tiny_xl.scheduled(refiners, name):
        compare(refiners, strength=strength, num_inference_steps=10 if strength == 0.3 else 6)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 9, "guidance_rescale": 0.7, "negative_prompt": "grey"},
        {"negative_prompt": ""},
        {"aesthetic_score": 9.0, "negative_aesthetic_score": 0.0, "guidance_scale": 12},
        {"original_size": (200, 100), "crops_coords_top_left": (10, 20)},
        {"negative_original_size": (512, 512), "negative_crops_coords_top_left": (3, 9), "guidance_scale": 12},
        {"clip_skip": 1},
        {"latents": normal(1, 4, 6, 8, seed=4)},
        {"image": normal(1, 4, 6, 8, seed=5)},
        {"image": torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))},
        {"image": np.random.default_rng(1).random((1, 50, 66, 3), np.float32)},
        {"image": tiny.picture(70, 100)},
    ],
    ids=lambda call: ", ".join(call),
)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler"])
def test_calls_of_the_refiner(refiners: tuple[Any, Any], name: str, call: dict[str, Any]) -> None:
    with tiny_xl.scheduled(refiners, name):
        compare(refiners, **{"strength": 0.8, **call})


@pytest.mark.parametrize(
    "call",
    [
        {"prompt_2": "two dogs", "negative_prompt": "grey", "negative_prompt_2": "ugly"},
        {"original_size": (200, 100), "crops_coords_top_left": (10, 20), "target_size": (512, 512)},
        {"negative_target_size": (99, 512), "crops_coords_top_left": (10, 20), "guidance_scale": 12},
    ],
    ids=lambda call: ", ".join(call),
)
def test_calls_without_scores(plain: tuple[Any, Any], call: dict[str, Any]) -> None:
    compare(plain, strength=0.8, **call)


def test_batches(refiners: tuple[Any, Any]) -> None:
    call: dict[str, Any] = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"], "strength": 0.8}
    compare(refiners, **call)
    compare(refiners, **call, image=[PICTURE, tiny.picture(64, 48, 1)])
    assert len(compare(refiners, **call, num_images_per_prompt=2)) == 4
    compare(refiners, **call, num_images_per_prompt=2, seed=[4, 5, 6, 7])
    features = normal(2, 77, tiny_xl.WIDTHS[1], seed=2), normal(2, tiny_xl.POOLED, seed=3)
    compare(refiners, prompt_embeds=features[0], pooled_prompt_embeds=features[1], strength=0.8)


def test_pictures_and_prompts_pair(refiners: tuple[Any, Any]) -> None:
    """a, a, b, b; diffusers repeats the prompts so and the pictures a, b, a, b."""
    images, prompts = [PICTURE, tiny.picture(64, 48, 1)], ["a cat", "two dogs"]
    call = {"num_inference_steps": 3, "strength": 1.0, "output_type": "pt"}
    batch = refiners[0](
        prompts, image=images, num_images_per_prompt=2, generator=tiny_xl.generators([1, 2, 3, 4]), **call
    )
    alone = [
        refiners[0](prompt, image=image, num_images_per_prompt=2, generator=tiny_xl.generators(seeds), **call).images
        for prompt, image, seeds in zip(prompts, images, ([1, 2], [3, 4]), strict=True)
    ]
    assert_close(batch.images, torch.cat(alone), 1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", FIRST + SECOND)
def test_base_then_refiner(bases: tuple[Any, Any], refiners: tuple[Any, Any], name: str, share: float) -> None:
    """Each side's latents go into its own refiner."""
    with tiny_xl.scheduled(bases, name), tiny_xl.scheduled(refiners, name):
        call: dict[str, Any] = {"num_inference_steps": 7, "negative_prompt": "grey"}
        made = [
            second(
                "a cat", denoising_start=share, output_type="pt", generator=torch.manual_seed(1), **call,
                image=first(
                    "a cat", denoising_end=share, output_type="latent", generator=torch.manual_seed(0), height=48,
                    width=64, **call,
                ).images,
            ).images
            for first, second in zip(bases, refiners, strict=True)
        ]  # fmt: skip
        assert made[1].std() > 0.05
        assert_close(made[0], made[1], ATOL)


@pytest.mark.parametrize("ends", [(0.2, 0.6), (0.5, 0.9), (None, 0.5), (0.5, 1.0)], ids=str)
@pytest.mark.parametrize("name", FIRST + SECOND)
def test_between(refiners: tuple[Any, Any], name: str, ends: tuple[float | None, float]) -> None:
    """Both ends in one run, and an end after a strength."""
    image = normal(1, 4, 6, 8, seed=5)
    with tiny_xl.scheduled(refiners, name):
        call = {"image": image, "strength": 0.8, "denoising_start": ends[0], "denoising_end": ends[1]}
        compare(refiners, LATENT_ATOL, **call, num_inference_steps=10, output_type="latent")


def test_a_picture_handed_on(refiners: tuple[Any, Any]) -> None:
    """It is encoded, and no noise is added to it."""
    with tiny_xl.scheduled(refiners, "DDIMScheduler"):
        compare(refiners, denoising_start=0.6)
        compare(refiners, denoising_start=0.6, num_images_per_prompt=2, seed=[1, 2])


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 77]}, {"sigmas": [12.0, 3.0, 0.7, 0.0]}], ids=str)
def test_own_ladders(refiners: tuple[Any, Any], own: dict[str, list[float]]) -> None:
    compare(refiners, **own, strength=0.7)


def test_statistics_of_the_latents(refiners: tuple[Any, Any]) -> None:
    with tiny_xl.statistics(refiners):
        compare(refiners, strength=0.5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler"])
def test_callbacks(refiners: tuple[Any, Any], name: str) -> None:
    seen: list[list[Tensor]] = [[], []]
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def run(pipe: Any, log: list[Tensor]) -> Tensor:
        def change(owner: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            log.extend([*(tensors[name].clone() for name in names), torch.tensor([step, float(time)])])
            return {"latents": tensors["latents"] * 0.9 + 0.1 * step}

        return pipe(
            ["a cat", "two dogs"], image=PICTURE, strength=0.7, num_inference_steps=6, output_type="pt",
            generator=torch.manual_seed(1), callback_on_step_end=change, callback_on_step_end_tensor_inputs=names,
            negative_crops_coords_top_left=(3, 4),
        ).images  # fmt: skip

    with tiny_xl.scheduled(refiners, name):
        assert_close(*(run(pipe, log) for pipe, log in zip(refiners, seen, strict=True)), ATOL)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)
