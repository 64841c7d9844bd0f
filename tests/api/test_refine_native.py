"""`enlarger.refine` on tiny folders: strength, sizes, alpha, latents, and the checkpoints that it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger import InputError, Latents, Refiner, RefineRequest, Unsupported, load_refiner
from enlarger.image.picture import Picture, to_pil
from tests.support import tiny, tiny_depth, tiny_inpaint, tiny_x4, tiny_xl
from tests.support.close import assert_close

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def sd() -> Refiner:
    return load_refiner(tiny.sd1_folder(), "cpu")


@pytest.fixture(scope="module")
def xl() -> Refiner:
    return load_refiner(tiny_xl.refiner_folder(), "cpu")


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (1, 1), (16, 90)])
def test_any_size_stays(sd: Refiner, size: tuple[int, int]) -> None:
    found = sd(RefineRequest(tiny.picture(*size), "a cat", steps=4, strength=0.5))
    assert found.image.size == size and found.image.mode == "RGB" and found.model == str(tiny.sd1_folder())
    assert found.latents is not None and found.latents.space == "sd"


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("folder", [tiny_xl.refiner_folder, tiny_xl.base_folder])
def test_equals_diffusers(folder: Callable[[], Path], strength: float) -> None:
    xl = load_refiner(folder(), "cpu")
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    picture = tiny.picture(64, 48)
    expected = pipe(
        "a cat", image=picture, strength=strength, num_inference_steps=7, negative_prompt="ugly", guidance_scale=4.0,
        aesthetic_score=7.0, negative_aesthetic_score=3.0, generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images  # fmt: skip
    request = RefineRequest(
        picture,
        "a cat",
        negative="ugly",
        strength=strength,
        steps=7,
        guidance=4.0,
        score=7.0,
        negative_score=3.0,
        seed=3,
    )
    found = xl(request).latents
    assert found is not None and found.space == "sdxl"
    assert_close(found.values, expected, 1e-4)
    other = xl(replace(request, score=2.0)).latents
    assert other is not None and torch.equal(other.values, found.values) != xl.model.has_aesthetic_score


def test_strength_counts_steps_as_diffusers_does(sd: Refiner) -> None:
    seen: list[int] = []
    for strength in (0.25, 0.3, 0.99, 1.0):
        totals: list[int] = []
        sd(RefineRequest(tiny.picture(16, 16), steps=4, strength=strength), lambda p, t=totals: t.append(p.total))
        seen.append(totals[-1])
    assert seen == [1, 1, 3, 4]


def test_strength_0_gives_the_input_back(sd: Refiner) -> None:
    picture = tiny.picture(33, 20).convert("LA")
    found = sd(RefineRequest(picture, strength=0, count=2, seed=5))
    assert [image.tobytes() for image in found.images] == [picture.tobytes()] * 2 and found.seeds == (5, 6)
    assert found.notes == ("strength is 0: the picture is the input, no network has changed it",)
    latents = Latents(tiny.latents(1, 4, 6), "sd")
    decoded = sd(RefineRequest(latents, strength=0))
    expected = to_pil(Picture(sd.model.latent_diffusion.decode(latents.values)[0]))
    assert decoded.image.tobytes() == expected.tobytes() and decoded.latents is not None
    assert_close(decoded.latents.values, latents.values, 0)


def test_more_strength_is_farther_from_the_picture(sd: Refiner) -> None:
    """Measured in latents, whose start is the same."""
    picture = tiny.picture(32, 32)
    made = [sd(RefineRequest(picture, steps=20, strength=strength)).latents for strength in (0.05, 0.5, 1.0)]
    start = sd.model.latent_diffusion.vae.encode(
        torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    ).mean
    apart = [float((one.values - start).abs().mean()) for one in made if one is not None]
    assert apart == sorted(apart) and len(apart) == 3


def test_alpha_grey_and_16_bits_stay(sd: Refiner) -> None:
    picture = tiny.picture(40, 30).convert("RGBA")
    alpha = np.arange(30 * 40, dtype=np.uint8).reshape(30, 40)
    picture.putalpha(Image.fromarray(alpha))
    found = sd(RefineRequest(picture, steps=2, strength=0.5)).image
    assert found.mode == "RGBA" and (np.array(found)[..., 3] == alpha).all()
    assert sd(RefineRequest(tiny.picture(16, 16).convert("L"), steps=2, strength=0.5)).image.mode == "L"
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    assert sd(RefineRequest(deep, steps=2, strength=0.5)).image.mode == "I;16"


def test_hidden_colour_does_not_bleed_in(sd: Refiner) -> None:
    """What is under full transparency makes no difference."""
    made = []
    for hidden in (0, 255):
        array = np.array(tiny.picture(32, 32).convert("RGBA"))
        array[:, 16:] = (hidden, hidden, hidden, 0)
        made.append(np.array(sd(RefineRequest(Image.fromarray(array), steps=2, strength=0.5)).image))
    assert (made[0][:, :16] == made[1][:, :16]).all()


@pytest.mark.parametrize("solver", ["plms", "euler_ancestral", "dpm_adaptive"])
def test_one_of_several_is_the_same_alone(sd: Refiner, solver: str) -> None:
    sources = [tiny.picture(32, 32), tiny.picture(40, 24, seed=1)]
    request = RefineRequest(sources, ["a cat", "two dogs"], steps=4, strength=0.6, count=2, seed=[1, 9, 4, 4])
    batch = sd(replace(request, solver=solver))
    assert [image.size for image in batch.images] == [(32, 32)] * 2 + [(40, 24)] * 2
    assert batch.latents is None  # of two sizes
    alone = sd(replace(request, solver=solver, image=sources[1], prompt="two dogs", seed=[4, 4]))
    for found, expected in zip(batch.images[2:], alone.images, strict=True):
        assert (pixels(found) == pixels(expected)).all()
    assert alone.latents is not None and len(alone.latents) == 2


def test_latents_in_and_out(sd: Refiner, xl: Refiner) -> None:
    made = enlarger.generate("a boat", model=tiny_xl.base_folder(), device="cpu", steps=2, count=2)
    found = xl(RefineRequest(made.latents, "a boat", steps=4, strength=0.5, seed=3))
    assert len(found.images) == 2 and found.image.size == (64, 64) and found.latents is not None
    assert made.latents is not None
    alone = xl(RefineRequest(made.latents[1], "a boat", steps=4, strength=0.5, seed=4))
    assert (pixels(alone.image) == pixels(found.images[1])).all()
    odd = sd(RefineRequest(Latents(tiny.latents(1, 5, 7), "sd"), steps=2, strength=0.5))
    assert odd.image.size == (56, 40)


def test_latents_that_do_not_fit_name_the_right_checkpoint(sd: Refiner, xl: Refiner) -> None:
    values = tiny.latents(1, 8, 8)
    with pytest.raises(InputError) as raised:
        xl(RefineRequest(Latents(values, "x4")))
    assert str(raised.value) == (
        f"found latents of x4 for refining with {tiny_xl.refiner_folder()}, which takes those of sdxl; "
        "give them to the x4 upscaler's autoencoder, or decode them and give the picture"
    )
    with pytest.raises(
        InputError, match=r"found latents of sdxl for refining with .*sd1, which takes those of sd; give"
    ):
        sd(RefineRequest(Latents(values, "sdxl")))
    with pytest.raises(
        InputError, match=r"found latents with noise of level 0.59 for refining with .*, expected finish"
    ):
        sd(RefineRequest(Latents(values, "sd", 0.59)))
    with pytest.raises(InputError, match=r'enlarger.Latents\(values, "sd"\) or "sdxl"'):
        sd(RefineRequest(values[0]))


def test_refusals(sd: Refiner) -> None:
    with pytest.raises(
        InputError, match=r"strength 0.05 of 4 steps is less than one step; give more of either, or str"
    ):
        sd(RefineRequest(tiny.picture(16, 16), steps=4, strength=0.05))
    with pytest.raises(InputError, match=r"strength is 1.5, expected 0 to 1"):
        RefineRequest(None, strength=1.5)
    with pytest.raises(InputError, match="no solver is called 'magic'"):
        sd(RefineRequest(tiny.picture(16, 16), solver="magic"))
    with pytest.raises(InputError, match="an empty list of pictures"):
        sd(RefineRequest([]))
    found = sd(RefineRequest(tiny.picture(16, 16), "a", negative="b", steps=2, strength=0.5, guidance=1))
    assert found.notes == ("the negative prompt is not used: at guidance 1 only the prompt is",)


def test_other_checkpoints_are_refused(tmp_path: Any) -> None:
    for folder, verb in (
        (tiny_xl.inpaint_folder(), "inpaint"),
        (tiny_inpaint.inpaint_folder(tmp_path, 9), "inpaint"),
        (tiny_depth.depth_folder(), "depth"),
        (tiny_x4.x4_folder(), "upscale"),
        (tiny.x2_folder(), "upscale"),
    ):
        with pytest.raises(Unsupported, match=f"use enlarger.{verb}$"):
            load_refiner(folder, "cpu")
