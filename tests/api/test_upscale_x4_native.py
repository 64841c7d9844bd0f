"""`enlarger.upscale` with a tiny x4 upscaler: sizes, noise levels, prompts, alpha, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from enlarger import CheckpointError, InputError, Latents, Result, Unsupported, Upscaler, UpscaleRequest, load_upscaler
from tests.support import tiny, tiny_x4
from tests.support.close import assert_close

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def x4() -> Upscaler:
    return load_upscaler(tiny_x4.x4_folder(), "cpu")


def enlarged(x4: Upscaler, image: Any, by: float = 4, **options: Any) -> Result:
    return x4(UpscaleRequest(image, by, **({"steps": 2} | options)))


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


@pytest.mark.parametrize("level", [0, None, 350])
def test_equals_diffusers(x4: Upscaler, level: int | None) -> None:
    pipe = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tiny_x4.x4_folder())
    pipe.set_progress_bar_config(disable=True)
    picture = tiny.picture(24, 16)
    expected = pipe(
        "a cat", picture, num_inference_steps=4, negative_prompt="ugly", output_type="np",
        generator=torch.Generator().manual_seed(3), **({} if level is None else {"noise_level": level}),
    ).images[0]  # fmt: skip
    found = enlarged(x4, picture, prompt="a cat", negative="ugly", steps=4, seed=3, noise_level=level).image
    assert_close(np.array(found) / 255, expected, 0.5 / 255 + 1e-4)


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 1), (9, 30)])
def test_any_size_comes_out_exactly_four_times_as_large(x4: Upscaler, size: tuple[int, int]) -> None:
    found = enlarged(x4, tiny.picture(*size))
    assert found.image.size == (4 * size[0], 4 * size[1]) and found.image.mode == "RGB"
    assert found.consistency is not None and found.model == str(tiny_x4.x4_folder()) and found.notes == ()


def test_any_factor(x4: Upscaler) -> None:
    for by, size in ((1.5, (30, 24)), (2, (40, 32)), (3.3, (66, 53)), (5, (100, 80))):
        assert enlarged(x4, tiny.picture(20, 16), by, steps=1).image.size == size


def test_alpha_grey_and_consistency(x4: Upscaler) -> None:
    assert enlarged(x4, tiny.picture(16, 16).convert("RGBA")).image.mode == "RGBA"
    assert enlarged(x4, tiny.picture(16, 16).convert("L")).image.mode == "L"
    loose, held = (enlarged(x4, tiny.picture(16, 16), consistent=wanted) for wanted in (None, True))
    assert loose.consistency is not None and held.consistency is not None
    assert held.consistency < 16 < loose.consistency  # random weights


@pytest.mark.parametrize("solver", [None, "euler_ancestral"])
def test_one_of_several_is_the_same_alone(x4: Upscaler, solver: str | None) -> None:
    sources = [tiny.picture(16, 16), tiny.picture(17, 9, seed=1)]
    batch = enlarged(x4, sources, count=2, seed=[1, 9, 4, 4], prompt=["a cat", "two dogs"], solver=solver)
    alone = enlarged(x4, sources[1], count=2, seed=[4, 4], prompt="two dogs", solver=solver)
    assert [image.size for image in batch.images] == [(64, 64)] * 2 + [(68, 36)] * 2
    for found, expected in zip(batch.images[2:], alone.images, strict=True):
        assert (pixels(found) == pixels(expected)).all()


def test_the_low_resolution_schedule_is_the_folders(x4: Upscaler, tmp_path: Path) -> None:
    folder = tmp_path / "x4"
    shutil.copytree(tiny_x4.x4_folder(), folder)
    file = folder / "low_res_scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.2}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"max_noise_level": 40}))
    other, picture = load_upscaler(folder, "cpu"), tiny.picture(16, 16)
    for level, same in ((0, True), (40, False)):
        made = [pixels(enlarged(one, picture, noise_level=level).image) for one in (x4, other)]
        assert (np.abs(made[0] - made[1]).max() <= 1) == same
    with pytest.raises(InputError, match="noise_level is 41, expected a whole number from 0 to 40 for the x4 upscaler"):
        enlarged(other, picture, noise_level=41)


def test_guidance_1_says_what_is_not_used(x4: Upscaler) -> None:
    found = enlarged(x4, tiny.picture(16, 16), negative="ugly", guidance=1)
    assert found.notes == ("the negative prompt is not used: at guidance 1 only the prompt is",)


def test_refusals(x4: Upscaler) -> None:
    picture = tiny.picture(16, 16)
    for level in (20.5, 351):
        with pytest.raises(InputError, match=f"noise_level is {level}, expected a whole number from 0 to 350 for the"):
            enlarged(x4, picture, noise_level=level)
    with pytest.raises(Unsupported, match="detail is set, but the x4 upscaler has no use for it"):
        enlarged(x4, picture, detail=0)
    with pytest.raises(Unsupported, match="profile is set, but the x4 upscaler has no use for it; leave it"):
        enlarged(x4, picture, profile="original")
    for latents in (tiny.latents(1, 8, 8), Latents(tiny.latents(1, 8, 8), "x4")):
        with pytest.raises(
            Unsupported, match="found latents with 4 channels; the x4 upscaler takes pictures only: decode them, or use"
        ):
            enlarged(x4, latents)


def test_noise_levels_of_the_others() -> None:
    x2 = load_upscaler(tiny.x2_folder(), "cpu")
    with pytest.raises(InputError, match="noise_level is 20, expected 0 to 10 for the x2 latent upscaler"):
        enlarged(x2, tiny.picture(64, 64), 2, noise_level=20)


def test_a_folder_without_the_low_resolution_schedule(tmp_path: Path) -> None:
    folder = tmp_path / "x4"
    shutil.copytree(tiny_x4.x4_folder(), folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["low_res_scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match="has no low_res_scheduler, the noise of its input; fetch the whole model"
    ):
        load_upscaler(folder, "cpu")
