"""The whole inpainting pipeline equals diffusers' on the same random weights, pixel by pixel, with 4 and 9 channels."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from enlarger.diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from tests.support import tiny
from tests.support.close import assert_close, max_difference
from tests.support.pipeline_pairs import load_pipelines, run_both, scheduler_swapper
from tests.support.random_weights import normal

ATOL = 1e-4  # of pixels in 0..1
LATENT_ATOL = 1e-3  # of latents that reach 50
SIZE = {"height": 40, "width": 64}
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
]

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def made() -> dict[int, tuple[Any, Any]]:
    name, given = "StableDiffusionInpaintPipeline", {"safety_checker": None}
    return {
        4: load_pipelines(StableDiffusionInpaintPipeline, name, tiny.sd1_folder(), **given),
        9: load_pipelines(StableDiffusionInpaintPipeline, name, tiny.inpaint_folder(), **given),
    }


@pytest.fixture(params=[4, 9])
def pipes(request: pytest.FixtureRequest, made: dict[int, tuple[Any, Any]]) -> tuple[Any, Any]:
    return made[request.param]


@pytest.fixture
def nine(made: dict[int, tuple[Any, Any]]) -> tuple[Any, Any]:
    return made[9]


@pytest.fixture
def swapped(pipes: tuple[Any, Any]) -> Any:
    yield from scheduler_swapper(pipes)


def mask(width: int = 64, height: int = 40, blur: float = 0.0) -> Image.Image:
    """White in an ellipse off the middle; soft if blurred."""
    made = Image.new("L", (width, height))
    ImageDraw.Draw(made).ellipse((width // 4, height // 3, width - 9, height - 4), fill=255)
    return made.filter(ImageFilter.GaussianBlur(blur)) if blur else made


def compare(pipes: tuple[Any, Any], **call: Any) -> None:
    options = {"image": tiny.picture(64, 40), "mask_image": mask(), **SIZE} | call
    found, expected = run_both(pipes, **options)
    if isinstance(found, list):
        compare_bytes(found, expected)
        return
    assert expected.std() > 0.03
    assert_close(found, expected, ATOL)


def compare_bytes(found: list[Image.Image], expected: list[Image.Image]) -> None:
    """Equal but for values between two levels, which rounding takes to either."""
    a, b = (np.stack([np.asarray(one, np.int16) for one in images]) for images in (found, expected))
    assert a.shape == b.shape and b.std() > 8
    assert abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(pipes: Any, swapped: Any, name: str, changes: dict[str, Any]) -> None:
    swapped(name, **changes)
    compare(pipes, num_inference_steps=4)
    compare(pipes, strength=0.8, guidance_scale=1)
    compare(pipes, strength=0.3, num_inference_steps=10)


@pytest.mark.parametrize(("steps", "strength"), [(5, 0.6), (10, 0.9), (2, 0.5), (3, 0.7)])
def test_pndm_starts_inside_its_list(pipes: Any, steps: int, strength: float) -> None:
    compare(pipes, strength=strength, num_inference_steps=steps)


def test_eta(pipes: Any, swapped: Any) -> None:
    swapped("DDIMScheduler")
    compare(pipes, eta=0.7, strength=0.8)


@pytest.mark.parametrize("blur", [2, 6])
def test_soft_masks(pipes: Any, blur: float) -> None:
    compare(pipes, mask_image=mask(blur=blur), num_inference_steps=3)
    compare(pipes, mask_image=mask(70, 90, blur).convert("RGB"), num_inference_steps=3)


def test_kinds_of_masks(nine: Any) -> None:
    array = np.asarray(mask(blur=4), np.float32) / 255
    one = torch.from_numpy(array)
    small = torch.from_numpy(np.asarray(mask(48, 24), np.float32) / 255)
    for kind in (
        array,
        array[None],
        array[None, ..., None],
        one,
        one[None],
        one[None, None],
        small,
        mask().convert("1"),
    ):
        compare(nine, mask_image=kind, num_inference_steps=2)


def test_sizes(pipes: Any) -> None:
    """Pictures and masks of other sizes than `height` and `width`, and the checkpoint's own size."""
    compare(pipes, image=tiny.picture(90, 70), mask_image=mask(30, 50), num_inference_steps=3)
    compare(pipes, height=None, width=None, num_inference_steps=2)
    tensor = torch.from_numpy(np.asarray(tiny.picture(72, 50), np.float32) / 255).permute(2, 0, 1)[None]
    compare(pipes, image=tensor, num_inference_steps=2)


@pytest.mark.parametrize("scale", [0, 1, 3.0])
def test_guidance(pipes: Any, scale: float) -> None:
    compare(pipes, guidance_scale=scale, negative_prompt="ugly", strength=0.9)


def images() -> list[Any]:
    return [tiny.picture(64, 40, seed=1), tiny.picture(64, 40, seed=2)]


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_batches(pipes: Any, strength: float) -> None:
    call = {"strength": strength, "num_inference_steps": 4}
    prompts = {"prompt": ["a cat", "two dogs"], "negative_prompt": ["", "grey"]}
    masks = [mask(), mask(blur=5)]
    compare(pipes, **call, **prompts)
    compare(pipes, **call, **prompts, image=images(), mask_image=masks)
    compare(pipes, **call, **prompts, image=images())
    compare(pipes, **call, **prompts, image=images(), mask_image=masks, seed=[4, 5])
    compare(pipes, **call, num_images_per_prompt=2)
    compare(pipes, **call, num_images_per_prompt=3, seed=[4, 5, 6])


def test_pictures_and_prompts_keep_together(pipes: Any) -> None:
    """a, a, b, b: where diffusers pairs a, b, a, b. Latents are given, so that only the pairing matters."""
    ours = (pipes[0], pipes[0])
    masks, prompts, start = [mask(), mask(blur=5)], ["a cat", "two dogs"], normal(4, 4, 5, 8)
    hidden = normal(2, 4, 5, 8, seed=6)
    call = {**SIZE, "num_inference_steps": 3}
    latents = {"image": tiny.latents(2, 5, 8), "masked_image_latents": hidden}
    found = run_both(ours, prompt=prompts, num_images_per_prompt=2, mask_image=masks, latents=start, **latents, **call)[
        0
    ]
    for i, which in enumerate((0, 0, 1, 1)):
        one = {name: value[which : which + 1] for name, value in latents.items()}
        alone = run_both(
            ours, prompt=prompts[which], mask_image=masks[which], latents=start[i : i + 1], **one, **call
        )[0]  # fmt: skip
        assert_close(found[i : i + 1], alone, 1e-5)


@pytest.mark.parametrize("pad", [0, 7, 32])
@pytest.mark.parametrize(
    ("place", "size"), [((40, 30, 70, 44), (40, 64)), ((0, 50, 12, 99), (64, 64)), ((2, 3, 95, 20), (64, 40))]
)
def test_crop_around_the_mask(nine: Any, pad: int, place: tuple[int, ...], size: tuple[int, int]) -> None:
    """The crop grows to the proportions of the result, as far as the picture reaches; the result is pasted back."""
    covered = Image.new("L", (96, 100))
    ImageDraw.Draw(covered).rectangle(place, fill=255)
    covered = covered.filter(ImageFilter.GaussianBlur(1.5))
    whole = tiny.picture(96, 100)
    call: dict[str, Any] = {
        "image": whole, "mask_image": covered, "padding_mask_crop": pad, "output_type": "pil",
        "height": size[0], "width": size[1], "num_inference_steps": 2,
    }  # fmt: skip
    compare(nine, **call)
    image = run_both(nine, **call)[0][0]
    far = np.asarray(covered) == 0
    assert image.size == whole.size and max_difference(np.asarray(image)[far], np.asarray(whole)[far]) == 0


def test_crop_of_pictures_with_alpha(pipes: Any) -> None:
    covered = mask(96, 100, blur=3)
    whole = tiny.picture(96, 100)
    whole.putalpha(mask(96, 100, blur=30).point(lambda v: 255 - v // 2))
    for image in (whole, whole.convert("L").convert("RGB")):
        compare(
            pipes, image=image, mask_image=covered.convert("RGB"), padding_mask_crop=4, output_type="pil",
            strength=0.7, num_inference_steps=3,
        )  # fmt: skip


def test_latents_given(pipes: Any) -> None:
    compare(pipes, latents=normal(1, 4, 5, 8), num_inference_steps=3)
    compare(pipes, latents=normal(1, 4, 5, 8), strength=0.7)  # PNDM: the start has unit variance
    compare(pipes, masked_image_latents=normal(1, 4, 5, 8), strength=0.7)
    compare(pipes, image=tiny.latents(1, 5, 8), masked_image_latents=normal(1, 4, 5, 8), strength=0.7)
    found, expected = run_both(pipes, image=tiny.picture(64, 40), mask_image=mask(), **SIZE, output_type="latent")
    assert_close(found, expected, LATENT_ATOL)
    compare(pipes, output_type="pt", num_inference_steps=2)


def test_embeddings_given(nine: Any) -> None:
    given = {"prompt_embeds": normal(2, 77, tiny.WIDTH, seed=2)}
    compare(nine, **given, negative_prompt_embeds=normal(2, 77, tiny.WIDTH, seed=3), num_inference_steps=3)


@pytest.mark.parametrize("own", [{"timesteps": [900, 500, 77, 30]}, {"sigmas": [12.0, 3.0, 0.7, 0.3, 0.0]}], ids=str)
def test_own_ladders(pipes: Any, swapped: Any, own: dict[str, list[float]]) -> None:
    swapped("EulerDiscreteScheduler")
    compare(pipes, **own, strength=0.5)
    compare(pipes, **own)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_what_callbacks_see(pipes: Any, swapped: Any, guidance: float) -> None:
    swapped("DDIMScheduler")
    seen: list[list[Tensor]] = [[], []]
    names = ["latents", "prompt_embeds", "mask", "masked_image_latents"]
    for pipe, log in zip(pipes, seen, strict=True):

        def look(owner: Any, step: int, time: Any, tensors: dict[str, Tensor], log: Any = log) -> dict[str, Tensor]:
            log.extend(tensors[name].clone() for name in names)
            return {"latents": tensors["latents"] * 0.95}

        pipe(
            "a cat", tiny.picture(64, 40), mask(blur=3), **SIZE, strength=0.8, num_inference_steps=4,
            guidance_scale=guidance, generator=torch.manual_seed(1), output_type="latent", callback_on_step_end=look,
            callback_on_step_end_tensor_inputs=names,
        )  # fmt: skip
    assert len(seen[0]) == len(seen[1]) == 3 * len(names)
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected, LATENT_ATOL)


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.filterwarnings("ignore:Passing `callback")
def test_older_callbacks(pipes: Any, swapped: Any, name: str) -> None:
    swapped(name)
    seen: list[list[tuple[int, float, Tensor]]] = [[], []]
    for pipe, log in zip(pipes, seen, strict=True):
        pipe(
            "a cat", tiny.picture(64, 40), mask(), **SIZE, strength=0.8, num_inference_steps=5,
            generator=torch.manual_seed(1), output_type="latent", callback_steps=1,
            callback=lambda i, t, x, log=log: log.append((i, float(t), x.clone())),
        )  # fmt: skip
    for (i, time, found), (expected_i, expected_time, expected) in zip(*seen, strict=True):
        assert i == expected_i and time == pytest.approx(expected_time, abs=1e-3)
        assert_close(found, expected, LATENT_ATOL)


def test_interrupt(pipes: Any, swapped: Any) -> None:
    swapped("DDIMScheduler")

    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 1
        return tensors

    compare(pipes, callback_on_step_end=stop)
