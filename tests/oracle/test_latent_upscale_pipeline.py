"""The whole x2 pipeline equals diffusers' on the same random weights, pixel by pixel."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import enlarger.diffusers as ours_room
from enlarger.diffusers import StableDiffusionLatentUpscalePipeline
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
STEPS = 3


one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipe = diffusers.StableDiffusionLatentUpscalePipeline.from_pretrained(tiny.x2_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> StableDiffusionLatentUpscalePipeline:
    pipe = StableDiffusionLatentUpscalePipeline.from_pretrained(tiny.x2_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(ours: Any, theirs: Any, seed: int | list[int] = 0, **call: Any) -> tuple[Any, Any]:
    """The same call of both, each with its own generators of the same seeds."""
    options: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "np", **call}

    def run(pipe: Any) -> Any:
        seeds = seed if isinstance(seed, list) else [seed]
        made = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe(generator=made if isinstance(seed, list) else made[0], **options).images

    found, expected = run(ours), run(theirs)
    if isinstance(expected, np.ndarray | Tensor):
        assert expected.std() > 0.05
    return found, expected


def embeds(batch: int = 1, seed: int = 20) -> dict[str, Tensor]:
    return {
        "prompt_embeds": normal(batch, 77, tiny.WIDTH, seed=seed),
        "pooled_prompt_embeds": normal(batch, tiny.WIDTH, seed=seed + 1),
    }


def negative_embeds(batch: int = 1) -> dict[str, Tensor]:
    return {f"negative_{name}": value for name, value in embeds(batch, 30).items()}


@pytest.mark.parametrize("guidance", [0, 1, 9])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 64)])
def test_pictures(ours: Any, theirs: Any, guidance: float, size: tuple[int, int]) -> None:
    found, expected = both(ours, theirs, prompt="a cat", image=tiny.picture(*size), guidance_scale=guidance)
    assert found.shape == (1, 2 * size[1], 2 * size[0], 3)
    assert_close(found, expected, ATOL)


@pytest.mark.parametrize("guidance", [0, 0.5, 1, 9])
def test_latents(ours: Any, theirs: Any, guidance: float) -> None:
    found, expected = both(ours, theirs, prompt="a cat", image=tiny.latents(1, 8, 12), guidance_scale=guidance)
    assert_close(found, expected, ATOL)


def test_one_latent_without_batch(ours: Any, theirs: Any) -> None:
    assert_close(*both(ours, theirs, prompt="a cat", image=tiny.latents(1, 8, 8)[0]), ATOL)


@pytest.mark.parametrize("kind", ["array 0..1", "array -1..1", "tensor 0..1", "tensor -1..1", "list of tensors"])
def test_kinds_of_pictures(ours: Any, theirs: Any, kind: str) -> None:
    array = np.array(tiny.picture(), dtype=np.float32)[:, :, :] / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = {
        "array 0..1": array,
        "array -1..1": 2 * array - 1,
        "tensor 0..1": tensor,
        "tensor -1..1": 2 * tensor[None] - 1,
        "list of tensors": [tensor],
    }[kind]
    with pytest.warns() if "-1..1" in kind else pytest.MonkeyPatch.context():  # theirs warns of the range
        assert_close(*both(ours, theirs, prompt="a cat", image=image), ATOL)


def test_odd_sides_are_lowered(ours: Any, theirs: Any) -> None:
    assert_close(*both(ours, theirs, prompt="a cat", image=tiny.picture(71, 101)), ATOL)
    assert_close(*both(ours, theirs, prompt="a cat", image=np.array(tiny.picture(71, 101), np.float32) / 255), ATOL)


def test_negative_prompt_and_batch(ours: Any, theirs: Any) -> None:
    call = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["ugly", "blurry, grey"]}
    found, expected = both(ours, theirs, image=[tiny.picture(), tiny.picture(seed=1)], **call)
    assert len(found) == 2
    assert_close(found, expected, ATOL)
    assert_close(*both(ours, theirs, prompt="a cat", negative_prompt="ugly", image=tiny.latents(1, 8, 8)), ATOL)


def test_a_generator_per_picture(ours: Any, theirs: Any) -> None:
    image = [tiny.picture(), tiny.picture(seed=1)]
    assert_close(*both(ours, theirs, seed=[3, 4], prompt=["a", "b"], image=image), ATOL)


def test_global_randomness(ours: Any, theirs: Any) -> None:
    def run(pipe: Any) -> Any:
        torch.manual_seed(11)
        return pipe("a cat", tiny.picture(), STEPS, output_type="np").images

    assert_close(run(ours), run(theirs), ATOL)


@pytest.mark.parametrize("guidance", [0, 1, 9])
def test_embeddings_given(ours: Any, theirs: Any, guidance: float) -> None:
    image = tiny.latents(2, 8, 8)
    given = embeds(2) | negative_embeds(2)
    assert_close(*both(ours, theirs, image=image, guidance_scale=guidance, **given), ATOL)
    if guidance <= 1:
        assert_close(*both(ours, theirs, image=image, guidance_scale=guidance, **embeds(2)), ATOL)
    words = {"prompt": ["a", "b"], **negative_embeds(2)}
    assert_close(*both(ours, theirs, image=image, guidance_scale=guidance, **words), ATOL)


def test_only_positive_embeddings_with_guidance(ours: Any, theirs: Any) -> None:
    """Theirs stops at an unbound name; ours takes the negative prompt, empty if there is none."""
    image, empty = tiny.latents(1, 8, 8), theirs.encode_prompt("", "cpu", False)
    with pytest.raises(UnboundLocalError):
        both(theirs, theirs, image=image, **embeds())
    spelled = {"negative_prompt_embeds": empty[0], "negative_pooled_prompt_embeds": empty[2]}
    expected = both(theirs, theirs, image=image, **embeds(), **spelled)[1]
    assert_close(both(ours, ours, image=image, **embeds())[0], expected, ATOL)
    assert_close(both(ours, ours, image=image, negative_prompt="", **embeds())[0], expected, ATOL)


def test_initial_latents(ours: Any, theirs: Any) -> None:
    start = normal(1, 4, 16, 24, seed=9)
    assert_close(*both(ours, theirs, prompt="a", image=tiny.latents(1, 8, 12), latents=start), ATOL)


@pytest.mark.parametrize("output_type", ["pt", "latent", "pil"])
def test_output_types(ours: Any, theirs: Any, output_type: str) -> None:
    found, expected = both(ours, theirs, prompt="a cat", image=tiny.picture(), output_type=output_type)
    if output_type == "pil":
        assert [i.mode for i in found] == ["RGB"] and found[0].size == expected[0].size
        assert abs(np.array(found[0], int) - np.array(expected[0], int)).max() <= 1
    else:
        assert found.dtype == expected.dtype
        assert_close(found, expected, ATOL)


def test_encode_prompt(ours: Any, theirs: Any) -> None:
    for found, expected in zip(
        ours.encode_prompt(["a cat"], "cpu", True, ["dogs"]), theirs.encode_prompt(["a cat"], "cpu", True, ["dogs"]),
        strict=True,
    ):  # fmt: skip
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_callbacks(ours: Any, theirs: Any, every: int) -> None:
    seen: list[list[tuple[int, float, Tensor]]] = [[], []]
    for pipe, log in zip((ours, theirs), seen, strict=True):
        pipe(
            "a cat", tiny.latents(1, 8, 8), 5, generator=torch.manual_seed(1), output_type="latent",
            callback=lambda i, t, x, log=log: log.append((i, float(t), x.clone())), callback_steps=every,
        )  # fmt: skip
    assert [one[0] for one in seen[0]] == [one[0] for one in seen[1]] == list(range(0, 5, every))
    for (_, time, found), (_, expected_time, expected) in zip(*seen, strict=True):
        assert time == pytest.approx(expected_time)
        assert_close(found, expected, ATOL)


EULER = [
    {},
    {"interpolation_type": "linear"},
    {"interpolation_type": "linear", "timestep_spacing": "leading", "steps_offset": 1},
    {"interpolation_type": "linear", "timestep_spacing": "trailing"},
    {"interpolation_type": "linear", "use_karras_sigmas": True},
    {"interpolation_type": "linear", "use_exponential_sigmas": True},
]


@pytest.fixture
def swapped(ours: Any, theirs: Any) -> Any:
    """Swap both schedulers for the test."""
    before = ours.scheduler, theirs.scheduler

    def swap(name: str, **changes: Any) -> None:
        ours.scheduler = getattr(ours_room, name).from_config(before[0].config, **changes)
        theirs.scheduler = getattr(diffusers, name).from_config(before[1].config, **changes)

    yield swap
    ours.scheduler, theirs.scheduler = before


def check_swapped(ours: Any, theirs: Any) -> None:
    for call in ({"image": tiny.latents(1, 8, 8)}, {"image": tiny.picture(64, 64), "guidance_scale": 1}):
        assert_close(*both(ours, theirs, prompt="a cat", **call), ATOL)


@pytest.mark.parametrize("changes", EULER, ids=str)
def test_euler_schedules(ours: Any, theirs: Any, swapped: Any, changes: dict[str, Any]) -> None:
    swapped("EulerDiscreteScheduler", **changes)
    check_swapped(ours, theirs)


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}], ids=str)
def test_heun(ours: Any, theirs: Any, swapped: Any, changes: dict[str, Any]) -> None:
    """Theirs refuses the file's name of the prediction, "original_sample", and takes its other name, "sample"."""
    swapped("HeunDiscreteScheduler", prediction_type="sample", **changes)
    check_swapped(ours, theirs)


MULTISTEP = ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"]


@pytest.mark.parametrize("name", MULTISTEP)
def test_schedulers_of_unit_variance(
    ours: Any, theirs: Any, swapped: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Diffusers' picture by "sample", which is said; the model's own, near Euler's, by the file's name of it."""
    swapped(f"{name}Scheduler", prediction_type="sample")
    check_swapped(ours, theirs)
    (said,) = {record.getMessage() for record in caplog.records if record.name.endswith("latent_upscale")}
    assert said.startswith(f"{name}Scheduler with prediction_type 'sample' gives diffusers' picture")
    call = {"prompt": "a cat", "image": tiny.latents(1, 8, 8), "num_inference_steps": 50, "output_type": "np"}

    def picture() -> np.ndarray[Any, Any]:
        return np.asarray(ours(**call, generator=torch.manual_seed(0)).images)

    theirs_found = picture()
    swapped(f"{name}Scheduler")
    found = picture()
    swapped("EulerDiscreteScheduler")
    expected = picture()
    assert abs(found - expected).mean() < 0.1 * abs(theirs_found - expected).mean()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("HeunDiscreteScheduler", ValueError),  # the prediction type
        ("EulerAncestralDiscreteScheduler", ValueError),
        ("DDIMScheduler", AttributeError),  # it has no sigmas
        ("PNDMScheduler", AttributeError),
    ],
)
def test_schedulers_that_only_ours_can_swap_in(
    ours: Any, theirs: Any, swapped: Any, name: str, error: type[Exception]
) -> None:
    changes = {"DDIMScheduler": {"clip_sample": False}, "PNDMScheduler": {"skip_prk_steps": True}}.get(name, {})
    swapped(name, **changes)
    call = {"prompt": "a cat", "image": tiny.latents(1, 8, 8)}
    with pytest.raises(error):
        both(theirs, theirs, **call)
    found = both(ours, ours, **call)[0]
    assert found.shape == (1, 128, 128, 3) and np.isfinite(found).all() and found.std() > 0.05
