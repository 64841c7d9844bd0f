"""The whole text-to-image pipeline equals diffusers' on the same random weights, pixel by pixel."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import enlarger.diffusers as ours_room
from enlarger.diffusers import StableDiffusionPipeline
from tests.support import tiny
from tests.support.close import assert_close
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
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
]


one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def swapped(ours: Any, theirs: Any) -> Any:
    """Swap both schedulers for the test."""
    before = ours.scheduler, theirs.scheduler

    def swap(name: str, **changes: Any) -> None:
        ours.scheduler = getattr(ours_room, name).from_config(before[0].config, **changes)
        theirs.scheduler = getattr(diffusers, name).from_config(before[1].config, **changes)

    yield swap
    ours.scheduler, theirs.scheduler = before


def both(ours: Any, theirs: Any, seed: int | list[int] = 0, **call: Any) -> tuple[Any, Any]:
    """The same call of both, each with its own generators of the same seeds."""
    options: dict[str, Any] = {
        "prompt": "a cat" if "prompt_embeds" not in call else None,
        "num_inference_steps": 5, "output_type": "np", "height": 48, "width": 64, **call,
    }  # fmt: skip

    def run(pipe: Any) -> Any:
        seeds = seed if isinstance(seed, list) else [seed]
        made = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe(generator=made if isinstance(seed, list) else made[0], **options).images

    found, expected = run(ours), run(theirs)
    assert expected.std() > 0.05
    return found, expected


@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(ours: Any, theirs: Any, swapped: Any, name: str, changes: dict[str, Any]) -> None:
    swapped(name, **changes)
    assert_close(*both(ours, theirs), ATOL)
    assert_close(*both(ours, theirs, guidance_scale=1, num_inference_steps=7), ATOL)


def test_ddim_trailing(ours: Any, theirs: Any, swapped: Any) -> None:
    """Where the steps divide 1000; elsewhere their steps do not end where the next one starts."""
    swapped("DDIMScheduler", timestep_spacing="trailing")
    assert_close(*both(ours, theirs, num_inference_steps=5), ATOL)


def test_zero_terminal(ours: Any, theirs: Any, swapped: Any) -> None:
    """The first level is 4096, where float32 resolves 0.0002 of a latent."""
    swapped("EulerDiscreteScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert_close(*both(ours, theirs), 1e-3)


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_few_steps(ours: Any, theirs: Any, swapped: Any, name: str) -> None:
    swapped(name)
    assert_close(*both(ours, theirs, num_inference_steps=2), ATOL)
    if name in ("PNDMScheduler", "DDIMScheduler"):  # with linspace their one step starts at time 0, ours at the top
        assert_close(*both(ours, theirs, num_inference_steps=1), ATOL)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta(ours: Any, theirs: Any, swapped: Any, eta: float) -> None:
    swapped("DDIMScheduler")
    assert_close(*both(ours, theirs, eta=eta), ATOL)
    assert_close(*both(ours, theirs, seed=[1, 2], eta=eta, num_images_per_prompt=2), ATOL)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 7.5])
def test_guidance(ours: Any, theirs: Any, scale: float) -> None:
    assert_close(*both(ours, theirs, guidance_scale=scale, negative_prompt="ugly"), ATOL)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_guidance_rescale(ours: Any, theirs: Any, rescale: float) -> None:
    assert_close(*both(ours, theirs, guidance_rescale=rescale), ATOL)


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip(ours: Any, theirs: Any, skip: int) -> None:
    """Theirs looks for `text_encoder.text_model`, which newer transformers lack: its embeddings are made here."""
    ids = theirs.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        state = theirs.text_encoder(ids, output_hidden_states=True).hidden_states[-1 - skip]
        embeds = theirs.text_encoder.final_layer_norm(state)
    expected = both(theirs, theirs, prompt_embeds=embeds, negative_prompt="ugly")[1]
    assert_close(both(ours, ours, clip_skip=skip, negative_prompt="ugly")[0], expected, ATOL)


def test_batches(ours: Any, theirs: Any) -> None:
    call = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"], "num_images_per_prompt": 2}
    assert len(both(ours, theirs, **call)[0]) == 4
    assert_close(*both(ours, theirs, **call), ATOL)
    assert_close(*both(ours, theirs, seed=[4, 5, 6, 7], **call), ATOL)


def test_embeddings_and_latents_given(ours: Any, theirs: Any) -> None:
    given = {"prompt_embeds": normal(2, 77, tiny.WIDTH, seed=2)}
    negative = {"negative_prompt_embeds": normal(2, 77, tiny.WIDTH, seed=3)}
    assert_close(*both(ours, theirs, **given, **negative, latents=normal(2, 4, 6, 8, seed=4)), ATOL)
    assert_close(*both(ours, theirs, **given), ATOL)
    assert_close(*both(ours, theirs, **given, negative_prompt=["ugly", "x"]), ATOL)
    assert_close(*both(ours, theirs, prompt=["a", "b"], **negative), ATOL)


def test_own_size_and_output_types(ours: Any, theirs: Any) -> None:
    found, expected = both(ours, theirs, height=None, width=None, output_type="latent")
    assert found.shape == (1, 4, 8, 8)
    assert_close(found, expected, LATENT_ATOL)
    assert_close(*both(ours, theirs, output_type="pt"), ATOL)
    with torch.no_grad():
        assert_close(ours.decode_latents(expected), theirs.decode_latents(expected), ATOL)


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 77]}, {"sigmas": [12.0, 3.0, 0.7, 0.0]}], ids=str)
def test_own_ladders(ours: Any, theirs: Any, swapped: Any, own: dict[str, list[float]]) -> None:
    swapped("EulerDiscreteScheduler")
    assert_close(*both(ours, theirs, **own), ATOL)


@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]
)  # fmt: skip
def test_older_callbacks(ours: Any, theirs: Any, swapped: Any, name: str) -> None:
    swapped(name)
    seen: list[list[tuple[int, float, Tensor]]] = [[], []]
    for pipe, log in zip((ours, theirs), seen, strict=True):
        pipe(
            "a cat", 48, 64, 5, generator=torch.manual_seed(1), output_type="latent",
            callback=lambda i, t, x, log=log: log.append((i, float(t), x.clone())), callback_steps=1,
        )  # fmt: skip
    assert [one[0] for one in seen[0]] == [one[0] for one in seen[1]] and len(seen[0]) == 5
    for (_, time, found), (_, expected_time, expected) in zip(*seen, strict=True):
        assert time == pytest.approx(expected_time, abs=1e-3)
        assert_close(found, expected, LATENT_ATOL)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_callbacks_that_change_the_latents(ours: Any, theirs: Any, swapped: Any, name: str) -> None:
    swapped(name)
    seen: list[list[Tensor]] = [[], []]

    def run(pipe: Any, log: list[Tensor]) -> np.ndarray[Any, Any]:
        def change(owner: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            assert owner is pipe and set(tensors) == {"latents", "prompt_embeds"}
            log.extend([tensors["latents"].clone(), tensors["prompt_embeds"]])
            return {"latents": tensors["latents"] * 0.9 + 0.1 * step}

        return pipe(
            "a cat", 48, 64, 4, generator=torch.manual_seed(1), output_type="np", callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        ).images  # fmt: skip

    assert_close(run(ours, seen[0]), run(theirs, seen[1]), ATOL)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)


def test_interrupt(ours: Any, theirs: Any, swapped: Any) -> None:
    swapped("DDIMScheduler")

    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 1
        return tensors

    assert_close(*both(ours, theirs, callback_on_step_end=stop), ATOL)
    assert_close(*both(ours, theirs), ATOL)
