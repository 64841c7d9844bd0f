"""SDXL's text-to-image pipeline equals diffusers' on the same random weights, pixel by pixel."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from tests.support import tiny, tiny_xl
from tests.support.close import assert_close
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("EulerDiscreteScheduler", {}),  # the official file: leading, offset 1
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DDIMScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("PNDMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
]

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    return tiny_xl.load_pipelines(diffusers.StableDiffusionXLPipeline, StableDiffusionXLPipeline, tiny_xl.base_folder())


def compare(pipes: tuple[Any, Any], atol: float = ATOL, seed: int | list[int] = 0, **call: Any) -> Tensor:
    """The same call of both, each with its own generators of the same seeds."""
    options: dict[str, Any] = {
        "prompt": "a cat" if "prompt_embeds" not in call else None,
        "num_inference_steps": 4, "output_type": "pt", "height": 48, "width": 64, **call,
    }  # fmt: skip
    found, expected = (pipe(**options, generator=tiny_xl.generators(seed)).images for pipe in pipes)
    assert expected.std() > 0.05
    assert_close(found, expected, atol)
    return found


@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(pipes: tuple[Any, Any], name: str, changes: dict[str, Any]) -> None:
    with tiny_xl.scheduled(pipes, name, **changes):
        compare(pipes, num_inference_steps=5)
        compare(pipes, num_inference_steps=6, guidance_scale=1)


@pytest.mark.parametrize(
    "call",
    [
        {"guidance_scale": 0.5},
        {"guidance_scale": 9, "guidance_rescale": 0.7, "negative_prompt": "grey"},
        {"negative_prompt": ""},
        {"negative_prompt": "grey", "negative_prompt_2": "ugly"},
        {"negative_prompt": "grey", "negative_prompt_2": ""},
        {"prompt_2": "two dogs"},
        {"prompt_2": "two dogs", "negative_prompt": "grey", "clip_skip": 1},
        {"clip_skip": 0},
        {"height": 96, "width": 64},
        {"height": None, "width": None},
        {"latents": normal(1, 4, 6, 8, seed=4)},
        {"prompt": "word " * 90, "num_inference_steps": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_calls(pipes: tuple[Any, Any], call: dict[str, Any]) -> None:
    compare(pipes, **call)


@pytest.mark.parametrize(
    "sizes",
    [
        {"original_size": (200, 300), "crops_coords_top_left": (10, 20), "target_size": (512, 1024)},
        {"original_size": (64, 64), "negative_original_size": (512, 512), "negative_target_size": (100, 90)},
        {
            "negative_original_size": (512, 512),
            "negative_target_size": (100, 90),
            "negative_crops_coords_top_left": (5, 6),
            "crops_coords_top_left": (1, 2),
        },
    ],
    ids=str,
)
def test_sizes(pipes: tuple[Any, Any], sizes: dict[str, Any]) -> None:
    plain = compare(pipes, negative_prompt="grey", guidance_scale=9)
    assert (compare(pipes, negative_prompt="grey", guidance_scale=9, **sizes) - plain).abs().max() > 1e-3


def test_batches(pipes: tuple[Any, Any]) -> None:
    call = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"], "num_images_per_prompt": 2}
    assert len(compare(pipes, **call)) == 4
    compare(pipes, seed=[4, 5, 6, 7], **call)
    compare(pipes, prompt=["a cat", "two dogs"])
    compare(pipes, prompt=["a cat", "two dogs"], negative_prompt="grey")


def test_sizes_of_a_batch_are_those_of_its_pictures(pipes: tuple[Any, Any]) -> None:
    """Where diffusers mixes up the sizes of both branches."""
    call = {"negative_original_size": (512, 512), "negative_target_size": (100, 90), "num_inference_steps": 3}
    call |= {"height": 48, "width": 64, "output_type": "pt", "guidance_scale": 9}
    batch = pipes[0](["a cat", "two dogs"], generator=tiny_xl.generators([1, 2]), **call).images
    alone = [
        pipes[0](text, generator=tiny_xl.generators(i), **call).images for i, text in ((1, "a cat"), (2, "two dogs"))
    ]
    assert_close(batch, torch.cat(alone), 1e-5)


def test_features_given(pipes: tuple[Any, Any]) -> None:
    width = sum(tiny_xl.WIDTHS)
    given = {"prompt_embeds": normal(2, 77, width, seed=2), "pooled_prompt_embeds": normal(2, tiny_xl.POOLED, seed=3)}
    negative = {
        "negative_prompt_embeds": normal(2, 77, width, seed=5),
        "negative_pooled_prompt_embeds": normal(2, tiny_xl.POOLED, seed=6),
    }
    compare(pipes, **given)
    compare(pipes, **given, **negative, num_images_per_prompt=2)
    compare(pipes, **given, negative_prompt="grey")
    compare(pipes, prompt=["a", "b"], **negative)
    compare(pipes, pooled_prompt_embeds=normal(1, tiny_xl.POOLED, seed=3), negative_prompt="grey")
    features = [
        pipe.encode_prompt("a cat", "two dogs", "cpu", 2, negative_prompt="grey", clip_skip=1) for pipe in pipes
    ]
    for found, expected in zip(*features, strict=True):
        assert_close(found, expected, 1e-5)


def test_the_prompt_may_be_absent_or_empty(pipes: tuple[Any, Any]) -> None:
    """Without zeros, no negative prompt is the empty one."""
    for pipe in pipes:
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        assert_close(compare(pipes), compare(pipes, negative_prompt=""), 0)
    finally:
        for pipe in pipes:
            pipe.register_to_config(force_zeros_for_empty_prompt=True)
    assert (compare(pipes) - compare(pipes, negative_prompt="")).abs().max() > 1e-3


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 77]}, {"sigmas": [12.0, 3.0, 0.7, 0.0]}], ids=str)
def test_own_ladders(pipes: tuple[Any, Any], own: dict[str, list[float]]) -> None:
    with tiny_xl.scheduled(pipes, "EulerDiscreteScheduler"):
        compare(pipes, **own)


@pytest.mark.parametrize("name", [one[0] for one in SCHEDULERS])
@pytest.mark.parametrize("end", [0.3, 0.5, 0.8])
def test_latents_handed_on(pipes: tuple[Any, Any], name: str, end: float) -> None:
    with tiny_xl.scheduled(pipes, name):
        compare(pipes, LATENT_ATOL, denoising_end=end, num_inference_steps=10, output_type="latent")


def test_eta(pipes: tuple[Any, Any]) -> None:
    with tiny_xl.scheduled(pipes, "DDIMScheduler"):
        compare(pipes, eta=0.7)
        compare(pipes, LATENT_ATOL, eta=0.7, denoising_end=0.5, output_type="latent")


def test_statistics_of_the_latents(pipes: tuple[Any, Any]) -> None:
    """An autoencoder with a mean and a deviation per channel, as Playground's has."""
    with tiny_xl.statistics(pipes):
        compare(pipes)
        compare(pipes, LATENT_ATOL, output_type="latent")


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler"])
def test_callbacks(pipes: tuple[Any, Any], name: str) -> None:
    seen: list[list[Tensor]] = [[], []]
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def run(pipe: Any, log: list[Tensor]) -> Tensor:
        def change(owner: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            log.extend([*(tensors[name].clone() for name in names), torch.tensor([step, float(time)])])
            return {"latents": tensors["latents"] * 0.9 + 0.1 * step}

        return pipe(
            "a cat", height=48, width=64, num_inference_steps=4, generator=torch.manual_seed(1), output_type="pt",
            callback_on_step_end=change, callback_on_step_end_tensor_inputs=names, crops_coords_top_left=(3, 4),
        ).images  # fmt: skip

    with tiny_xl.scheduled(pipes, name):
        assert_close(*(run(pipe, log) for pipe, log in zip(pipes, seen, strict=True)), ATOL)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)
