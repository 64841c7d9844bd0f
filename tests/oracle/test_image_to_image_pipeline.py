"""The whole image-to-image pipeline equals diffusers' on the same random weights, pixel by pixel."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.pipeline_pairs import load_pipelines, run_both, scheduler_swapper
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"set_alpha_to_one": True}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("DDPMScheduler", {}),
]

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    return load_pipelines(StableDiffusionImg2ImgPipeline, "StableDiffusionImg2ImgPipeline", tiny.sd1_folder())


@pytest.fixture
def swapped(pipes: tuple[Any, Any]) -> Any:
    yield from scheduler_swapper(pipes)


def compare(pipes: tuple[Any, Any], **call: Any) -> None:
    options = {"image": tiny.picture(64, 40)} | call
    found, expected = run_both(pipes, **options)
    assert expected.std() > 0.03
    assert_close(found, expected, ATOL)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of their KDPM2
@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(pipes: Any, swapped: Any, name: str, changes: dict[str, Any]) -> None:
    swapped(name, **changes)
    compare(pipes, strength=0.8)
    compare(pipes, strength=1.0, guidance_scale=1, num_inference_steps=3)
    compare(pipes, strength=0.3, num_inference_steps=10)


@pytest.mark.parametrize(("steps", "strength"), [(5, 0.3), (5, 0.6), (10, 0.9), (10, 0.8), (2, 0.5), (3, 0.7)])
def test_pndm_starts_inside_its_list(pipes: Any, steps: int, strength: float) -> None:
    """At its second entry, at the third, and later ones; once with a single step."""
    compare(pipes, strength=strength, num_inference_steps=steps)


def test_last_orders_are_those_of_the_whole_run(pipes: Any, swapped: Any) -> None:
    swapped("DPMSolverMultistepScheduler", solver_order=3)
    compare(pipes, strength=0.3, num_inference_steps=16)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta(pipes: Any, swapped: Any, eta: float) -> None:
    swapped("DDIMScheduler")
    compare(pipes, eta=eta)
    compare(pipes, seed=[1, 2], eta=eta, num_images_per_prompt=2)


@pytest.mark.parametrize("scale", [0, 1, 3.0])
def test_guidance(pipes: Any, scale: float) -> None:
    compare(pipes, guidance_scale=scale, negative_prompt="ugly", num_inference_steps=4)


def images() -> list[Any]:
    return [tiny.picture(64, 48, seed=1), tiny.picture(64, 48, seed=2)]


def test_batches(pipes: Any) -> None:
    prompts = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"]}
    compare(pipes, **prompts, image=images())
    compare(pipes, **prompts, image=images(), seed=[4, 5])
    compare(pipes, image=images(), num_images_per_prompt=2)


@pytest.mark.filterwarnings("ignore:You have passed")
def test_one_picture_for_several_results(pipes: Any) -> None:
    compare(pipes, num_images_per_prompt=2)
    compare(pipes, num_images_per_prompt=3, seed=[4, 5, 6])
    compare(pipes, prompt=["a cat", "two dogs"])


def test_pictures_and_prompts_keep_together(pipes: Any) -> None:
    """a, a, b, b: where diffusers pairs a, b, a, b. Each result equals the one made alone."""
    ours = (pipes[0], pipes[0])
    call = {"prompt": ["a cat", "two dogs"], "num_images_per_prompt": 2, "image": images()}
    found = run_both(ours, seed=[4, 5, 6, 7], **call)[0]
    for i, (prompt, image) in enumerate(zip(["a cat"] * 2 + ["two dogs"] * 2, [0, 0, 1, 1], strict=True)):
        alone = run_both(ours, seed=4 + i, prompt=prompt, image=images()[image])[0]
        assert_close(found[i : i + 1], alone, 1e-5)


def test_kinds_of_pictures(pipes: Any) -> None:
    array = np.asarray(tiny.picture(72, 45), np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (array, [array, array], tensor, tensor[None], [tensor, tensor], tiny.picture(45, 72)):
        many = 2 if isinstance(image, list) else 1
        compare(pipes, image=image, prompt=["a cat"] * many, num_inference_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        compare(pipes, image=tensor * 2 - 1, num_inference_steps=2)


def test_latents_in_and_out(pipes: Any) -> None:
    given = tiny.latents(1, 5, 8)
    compare(pipes, image=given)
    found, expected = run_both(pipes, image=given, output_type="latent")
    assert_close(found, expected, LATENT_ATOL)
    compare(pipes, output_type="pt")


def test_embeddings_given(pipes: Any) -> None:
    given = {"prompt_embeds": normal(1, 77, tiny.WIDTH, seed=2)}
    compare(pipes, **given, negative_prompt_embeds=normal(1, 77, tiny.WIDTH, seed=3))
    compare(pipes, **given)


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 77, 30]}, {"sigmas": [12.0, 3.0, 0.7, 0.3, 0.0]}], ids=str)
def test_own_ladders(pipes: Any, swapped: Any, own: dict[str, list[float]]) -> None:
    swapped("EulerDiscreteScheduler")
    compare(pipes, **own, strength=0.5)


REPORTED = ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]


@pytest.mark.parametrize("name", REPORTED)
@pytest.mark.parametrize(("steps", "strength"), [(5, 1.0), (5, 0.8), (6, 0.5)])
@pytest.mark.filterwarnings("ignore:Passing `callback")
def test_older_callbacks(pipes: Any, swapped: Any, name: str, steps: int, strength: float) -> None:
    swapped(name)
    seen: list[list[tuple[int, float, Tensor]]] = [[], []]
    for pipe, log in zip(pipes, seen, strict=True):
        pipe(
            "a cat", tiny.picture(64, 40), strength, steps, generator=torch.manual_seed(1), output_type="latent",
            callback=lambda i, t, x, log=log: log.append((i, float(t), x.clone())), callback_steps=1,
        )  # fmt: skip
    assert [one[0] for one in seen[0]] == [one[0] for one in seen[1]] and len(seen[0]) == int(steps * strength)
    for (_, time, found), (_, expected_time, expected) in zip(*seen, strict=True):
        assert time == pytest.approx(expected_time, abs=1e-3)
        assert_close(found, expected, LATENT_ATOL)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_callbacks_that_change_the_latents(pipes: Any, swapped: Any, name: str) -> None:
    swapped(name)

    def change(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert set(tensors) == {"latents", "prompt_embeds", "negative_prompt_embeds"}
        return {"latents": tensors["latents"] * 0.9 + 0.1 * step}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    compare(pipes, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names)


def test_interrupt(pipes: Any, swapped: Any) -> None:
    swapped("DDIMScheduler")

    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 1
        return tensors

    compare(pipes, callback_on_step_end=stop)
    compare(pipes)
