"""The whole depth-to-image pipeline equals diffusers' on the same random weights, pixel by pixel."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_depth2img import StableDiffusionDepth2ImgPipeline
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.pipeline_pairs import load_pipelines, run_both, scheduler_swapper
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
]

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
pytestmark = pytest.mark.filterwarnings("ignore:You have passed")


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    return load_pipelines(StableDiffusionDepth2ImgPipeline, "StableDiffusionDepth2ImgPipeline", tiny.depth_folder())


@pytest.fixture
def swapped(pipes: tuple[Any, Any]) -> Any:
    yield from scheduler_swapper(pipes)


def depth(count: int = 1, height: int = 30, width: int = 50) -> Tensor:
    return normal(count, height, width, seed=9) * 40 + 100


def compare(pipes: tuple[Any, Any], **call: Any) -> None:
    options = {"image": tiny.picture(64, 40), "depth_map": depth()} | call
    found, expected = run_both(pipes, **options)
    assert expected.std() > 0.03
    assert_close(found, expected, ATOL)


@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(pipes: Any, swapped: Any, name: str, changes: dict[str, Any]) -> None:
    swapped(name, **changes)
    compare(pipes)
    compare(pipes, strength=1.0, guidance_scale=1, num_inference_steps=3)
    compare(pipes, strength=0.3, num_inference_steps=10)


def test_depth_matters(pipes: Any) -> None:
    ours = (pipes[0], pipes[0])
    call = {"image": tiny.picture(64, 40), "num_inference_steps": 3}
    near, far = run_both(ours, depth_map=depth(), **call)[0], run_both(ours, depth_map=-depth(), **call)[0]
    assert np.abs(near - far).max() > 1e-2


@pytest.mark.parametrize("size", [(64, 40), (45, 72), (96, 64)])
def test_estimated_depth(pipes: Any, size: tuple[int, int]) -> None:
    compare(pipes, image=tiny.picture(*size), depth_map=None, num_inference_steps=3)


def test_batches(pipes: Any) -> None:
    images = [tiny.picture(64, 48, seed=1), tiny.picture(64, 48, seed=2)]
    prompts = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"], "num_inference_steps": 4}
    for map in (depth(), depth(2), None):
        compare(pipes, **prompts, image=images, depth_map=map)
    compare(pipes, **prompts, image=images, depth_map=depth(2), seed=[4, 5])
    compare(pipes, num_images_per_prompt=2, num_inference_steps=3)


def test_pictures_prompts_and_maps_keep_together(pipes: Any) -> None:
    """a, a, b, b: where diffusers pairs a, b, a, b."""
    ours = (pipes[0], pipes[0])
    images, maps = [tiny.picture(64, 48, seed=1), tiny.picture(64, 48, seed=2)], depth(2)
    call = {"num_inference_steps": 3}
    found = run_both(
        ours, seed=[4, 5, 6, 7], prompt=["a cat", "two dogs"], num_images_per_prompt=2, image=images, depth_map=maps,
        **call,
    )[0]  # fmt: skip
    for i, which in enumerate((0, 0, 1, 1)):
        prompt = ("a cat", "two dogs")[which]
        one = run_both(ours, seed=4 + i, prompt=prompt, image=images[which], depth_map=maps[which], **call)[0]
        assert_close(found[i : i + 1], one, 1e-5)


def test_kinds_of_pictures_keep_their_sides(pipes: Any) -> None:
    """Arrays too, whose height and width diffusers swaps; what is estimated is the picture in each case."""
    ours = (pipes[0], pipes[0])
    picture = tiny.picture(72, 48)
    array = np.asarray(picture, np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for call in ({"depth_map": depth()}, {"depth_map": None}):
        expected = run_both(ours, image=picture, num_inference_steps=2, **call)[0]
        assert expected.shape == (1, 48, 72, 3)
        for image in (array, array[None], [array], tensor, tensor[None], [tensor]):
            assert_close(run_both(ours, image=image, num_inference_steps=2, **call)[0], expected, ATOL)
    compare(pipes, image=tensor, num_inference_steps=2)


def test_a_constant_map_is_no_depth(pipes: Any) -> None:
    ours = (pipes[0], pipes[0])
    call = {"image": tiny.picture(64, 40), "num_inference_steps": 2}
    found = run_both(ours, depth_map=torch.full((1, 20, 30), 7.0), **call)[0]
    assert np.isfinite(found).all()


def test_latents_with_a_map(pipes: Any) -> None:
    """Theirs makes the map an eighth of the latents' size then, which cannot run."""
    ours = (pipes[0], pipes[0])
    found = run_both(ours, image=tiny.latents(1, 5, 8), depth_map=depth())[0]
    assert found.shape == (1, 40, 64, 3)


def test_guidance_and_embeddings(pipes: Any) -> None:
    given = {"prompt_embeds": normal(1, 77, tiny.WIDTH, seed=2)}
    compare(pipes, **given, negative_prompt_embeds=normal(1, 77, tiny.WIDTH, seed=3), num_inference_steps=3)
    compare(pipes, guidance_scale=3, negative_prompt="ugly", num_inference_steps=3)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_what_callbacks_see(pipes: Any, swapped: Any, guidance: float) -> None:
    swapped("DDIMScheduler")
    seen: list[list[Tensor]] = [[], []]
    names = ["latents", "prompt_embeds", "depth_mask"]
    for pipe, log in zip(pipes, seen, strict=True):

        def look(owner: Any, step: int, time: Any, tensors: dict[str, Tensor], log: Any = log) -> dict[str, Tensor]:
            log.extend(tensors[name].clone() for name in names)
            return {"latents": tensors["latents"] * 0.95}

        pipe(
            "a cat", tiny.picture(64, 40), depth(), num_inference_steps=4, guidance_scale=guidance,
            generator=torch.manual_seed(1), output_type="latent", callback_on_step_end=look,
            callback_on_step_end_tensor_inputs=names,
        )  # fmt: skip
    assert len(seen[0]) == len(seen[1]) == 3 * len(names)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)
