"""The x4 upscaler under diffusers' name: whole runs on the same random weights."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.diffusers import schedulers
from enlarger.diffusers.pipelines.stable_diffusion_upscale import StableDiffusionUpscalePipeline
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.tiny_x4 import x4_folder

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

LOW = [Image.fromarray(np.asarray(tiny.picture(24, 32, seed))) for seed in (0, 1)]


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any]:
    made = [
        kind.from_pretrained(x4_folder())
        for kind in (diffusers.StableDiffusionUpscalePipeline, StableDiffusionUpscalePipeline)
    ]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made[0], made[1]


def run(pipe: Any, **call: Any) -> Tensor:
    options: dict[str, Any] = {"prompt": "a cat", "image": LOW[0], "num_inference_steps": 3, "output_type": "pt"}
    return pipe(**(options | {"generator": torch.manual_seed(3)} | call)).images


@pytest.mark.parametrize(
    "call",
    [
        {"noise_level": 0},
        {"noise_level": 20},
        {"noise_level": 350},
        {"guidance_scale": 1.0},
        {"negative_prompt": "a dog", "guidance_scale": 3.0},
        {"num_images_per_prompt": 2},
        {"prompt": ["a cat", "a boat"], "image": LOW, "negative_prompt": ["a dog", ""]},
        {"eta": 1.0},
        {"image": torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))},
        {"image": np.random.default_rng(1).random((1, 16, 24, 3), np.float32)},
        {"output_type": "latent"},
        {"generator": [torch.Generator().manual_seed(4)], "latents": tiny.latents(1, 32, 24)},
    ],
    ids=lambda call: ",".join(call) + str(call.get("noise_level", "")),
)
def test_equal_to_diffusers(pipes: tuple[Any, Any], call: dict[str, Any]) -> None:
    theirs, ours = pipes
    fresh = dict(call)
    if "generator" in call:
        fresh["generator"] = [torch.Generator().manual_seed(4)]
    wanted = run(theirs, **call)
    assert_close(run(ours, **fresh), wanted, 1e-4)
    if call.get("output_type") != "latent":
        assert wanted.shape[-1] % 4 == 0 and wanted.shape[-1] >= 96


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_other_schedulers(pipes: tuple[Any, Any], name: str) -> None:
    theirs, ours = pipes
    options = {"prediction_type": "epsilon", "skip_prk_steps": True} if name == "PNDMScheduler" else {}
    kept = theirs.scheduler, ours.scheduler
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config, **options)
    ours.scheduler = getattr(schedulers, name).from_config(ours.scheduler.config, **options)
    try:
        assert_close(run(ours), run(theirs), 1e-4)
    finally:
        theirs.scheduler, ours.scheduler = kept


def test_several_results_of_several_pictures(pipes: tuple[Any, Any]) -> None:
    """Prompts and pictures pair a, a, b, b: each result is that of its picture alone; diffusers pairs a, b, a, b."""
    _, ours = pipes

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    prompts = ["a cat", "a boat"]
    both = run(ours, prompt=prompts, image=LOW, num_images_per_prompt=2, generator=generators(1, 2, 3, 4))
    for i, prompt in enumerate(prompts):
        for k in range(2):
            alone = run(ours, prompt=prompt, image=LOW[i], generator=generators(2 * i + k + 1))
            assert_close(both[2 * i + k], alone[0], 1e-4)
