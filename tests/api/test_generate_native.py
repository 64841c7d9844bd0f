"""`enlarger.generate` on tiny folders: sizes, seeds, experts and their plan, enlarging without leaving latents."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import enlarger
from enlarger import (
    GenerateRequest,
    Generator,
    InputError,
    Latents,
    Progress,
    RefineRequest,
    Unsupported,
    load_generator,
)
from enlarger.nn.autoencoder import AutoencoderKL
from tests.support import tiny, tiny_depth, tiny_x4, tiny_xl
from tests.support.close import assert_close
from tests.support.random_weights import normal

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def sd() -> Generator:
    return load_generator(tiny.sd1_folder(), "cpu")


@pytest.fixture(scope="module")
def xl() -> Generator:
    return load_generator(tiny_xl.base_folder(), "cpu", refiner=tiny_xl.refiner_folder())


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


def counted(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name for each call of a network; the autoencoders' decoders too."""
    seen: list[str] = []

    def count(part: Any, name: str) -> None:
        before = part.forward

        def forward(*args: Any, **more: Any) -> Any:
            seen.append(name)
            return before(*args, **more)

        monkeypatch.setattr(part, "forward", forward)

    count(generator.model.latent_diffusion.unet, "base")
    for refiner in generator.refiners:
        count(refiner.latent_diffusion.unet, "refiner")
    if generator.upscaler is not None:
        count(generator.upscaler.unet, "x2")  # type: ignore[union-attr]
    decode = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, x: seen.append("decode") or decode(self, x))
    return seen


@pytest.mark.parametrize("size", [(64, 64), (70, 50), (8, 100), (33, 16)])
def test_any_size(sd: Generator, size: tuple[int, int]) -> None:
    found = sd(GenerateRequest("a boat", width=size[0], height=size[1], steps=2))
    assert found.image.size == size and found.seeds == (0,) and found.model == str(tiny.sd1_folder())
    assert pixels(found.image).std() > 5
    assert found.latents is not None and found.latents.space == "sd" and found.latents.sigma == 0
    assert all(8 * side >= asked for side, asked in zip(found.latents.values.shape[2:], size[::-1], strict=True))


def test_the_models_own_size_is_the_default(sd: Generator, xl: Generator) -> None:
    assert sd(GenerateRequest("", steps=1)).image.size == xl(GenerateRequest("", steps=1)).image.size == (64, 64)


@pytest.mark.parametrize("solver", ["plms", "euler_ancestral"])
def test_one_of_several_is_the_same_alone(sd: Generator, solver: str) -> None:
    request = GenerateRequest(["a cat", "two dogs"], negative=["", "ugly"], steps=3, count=2, seed=5, solver=solver)
    batch = sd(request)
    assert batch.seeds == (5, 6, 7, 8) and batch.latents is not None and len(batch.latents) == 4
    for k, seed in enumerate(batch.seeds):
        prompt, negative = ("a cat", "") if k < 2 else ("two dogs", "ugly")
        alone = sd(replace(request, prompt=prompt, negative=negative, count=1, seed=seed))
        assert (pixels(alone.image) == pixels(batch.images[k])).all()
        assert alone.latents is not None
        assert_close(batch.latents[k].values, alone.latents.values, 0)
    assert (pixels(batch.images[0]) != pixels(batch.images[1])).any()


def test_prompts_carry_weights(sd: Generator) -> None:
    plain, same, more = (
        sd(GenerateRequest(prompt, steps=2)).image for prompt in ("a red boat", "a (red:1.0) boat", "a (red:1.5) boat")
    )
    assert (pixels(plain) == pixels(same)).all() and (pixels(plain) != pixels(more)).any()


def test_zero_is_a_value_and_the_unheard_is_told(sd: Generator) -> None:
    at_zero, other = (sd(GenerateRequest(prompt, negative="a cat", guidance=0, steps=2)).image for prompt in ("a", "b"))
    assert (pixels(at_zero) == pixels(other)).all()
    found = sd(GenerateRequest("a", negative="a cat", guidance=1, steps=2))
    assert found.notes == ("the negative prompt is not used: at guidance 1 only the prompt is",)


def test_base_and_refiner_equal_diffusers(xl: Generator) -> None:
    """denoising_end and denoising_start of 0.8 are a hand-off at the noise level of training time 200."""
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_xl.base_folder())
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(tiny_xl.refiner_folder())
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": "a boat", "num_inference_steps": 10, "output_type": "latent"}
    start = normal(1, 4, 6, 8)
    middle = base(**call, width=64, height=48, latents=start, denoising_end=0.8).images
    expected = refiner(**call, image=middle, denoising_start=0.8).images
    made = xl.model.latent_diffusion
    noise = torch.Generator().manual_seed(1)
    assert torch.equal(made.draw_noise((1, 4, 6, 8), lambda like: torch.randn(like.shape, generator=noise)), start)
    found = xl(GenerateRequest("a boat", width=64, height=48, steps=10, seed=1))
    assert found.latents is not None and expected.std() > 1
    assert_close(found.latents.values, expected, 1e-4)


def test_the_plan_is_what_happens(xl: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(xl, monkeypatch)
    for solver, handoff in (("euler", None), ("heun", 1.0), ("dpmpp_2m_sde", 0.1), ("euler", 0), ("euler", 1000)):
        seen.clear()
        request = GenerateRequest(["a", "b"], steps=6, solver=solver, handoff=handoff)
        plan = xl.explain(request)
        assert seen == []
        xl(request)
        network_calls = [
            network_call.who for network_call in plan.network_calls for _ in range(network_call.count or 0)
        ] + ["decode"]
        assert seen == network_calls * 2 and plan.calls == len(seen) - 2
    assert "refiner" in str(xl.explain(GenerateRequest("a", steps=6)))
    assert xl.explain(GenerateRequest("a", steps=6, solver="dpm_adaptive")).calls is None


def test_any_number_of_refiners() -> None:
    folders = [tiny_xl.refiner_folder(), tiny_xl.base_folder()]
    three = load_generator(tiny_xl.base_folder(), "cpu", refiner=folders)
    plan = three.explain(GenerateRequest("a", steps=8, handoff=[2.0, 0.5]))
    assert list(dict.fromkeys(network_call.who for network_call in plan.network_calls)) == [
        "base",
        "refiner",
        "refiner 2",
    ]
    assert three(GenerateRequest("a", steps=3, handoff=[2.0, 0.5])).image.size == (64, 64)
    with pytest.raises(InputError, match="found 0 hand-offs for 2 refiners; give one for each"):
        three(GenerateRequest("a", steps=3))
    with pytest.raises(InputError, match="the hand-offs are at noise levels 1, 2, expected falling ones"):
        three(GenerateRequest("a", steps=3, handoff=[1.0, 2.0]))


def test_latents_go_straight_into_the_x2_upscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator(tiny.sd1_folder(), "cpu", upscaler=tiny.x2_folder())
    seen = counted(generator, monkeypatch)
    request = GenerateRequest("a boat", width=70, height=50, steps=3, seed=4, upscale=2, upscale_steps=2)
    plan = generator.explain(request)
    found = generator(request)
    assert found.image.size == (140, 100)
    assert seen == [network_call.who for network_call in plan.network_calls for _ in range(network_call.count or 0)] + [
        "decode"
    ]
    assert seen.count("decode") == 1 and plan.calls == 4 + 2  # plms calls once more than it steps
    before = generator(replace(request, upscale=1, upscale_steps=None))
    assert before.latents is not None and found.latents is not None
    assert_close(found.latents.values, before.latents.values, 0)
    again = enlarger.upscale(before.latents, model=tiny.x2_folder(), device="cpu", prompt="a boat", seed=4, steps=2)
    assert (pixels(again.image.crop((0, 0, 140, 100))) == pixels(found.image)).all()


def test_other_upscalers_take_the_picture(sd: Generator) -> None:
    stages: list[str] = []

    def watch(progress: Progress) -> None:
        stages.append(progress.stage)

    found = sd(GenerateRequest("a boat", width=24, height=16, steps=2, upscale=2.5), watch)
    assert found.image.size == (60, 40)
    assert list(dict.fromkeys(stages)) == ["denoise", "enlarge: predict"]
    with pytest.raises(InputError, match="upscale_steps is 3, but the bundled upscaler takes no steps"):
        sd(GenerateRequest("a", steps=1, upscale=2, upscale_steps=3))
    x4 = load_generator(tiny.sd1_folder(), "cpu", upscaler=tiny_x4.x4_folder())
    request = GenerateRequest("a boat", width=24, height=16, steps=2, upscale=3, upscale_steps=2)
    assert x4(request).image.size == (72, 48) and x4.explain(request).calls == 3 + 2


def test_an_autoencoder_of_another_scale(tmp_path: Path) -> None:
    """It has a space of its own: its models make pictures, and take their own latents and no others'."""
    folder = shutil.copytree(tiny.sd1_folder(), tmp_path / "model")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    made = load_generator(folder, "cpu")(GenerateRequest("a boat", steps=2, solver="ddim", seed=3))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert made.latents is not None and made.latents.space == "0.5"
    with torch.inference_mode():
        expected = pipe.image_processor.postprocess(pipe.vae.decode(made.latents.values / 0.5).sample)[0]
    assert abs(pixels(made.image) - pixels(expected)).max() <= 1
    refiner = enlarger.load_refiner(folder, "cpu")
    again = refiner(RefineRequest(made.latents, "a boat", strength=0.5, steps=2)).latents
    assert again is not None and again.space == "0.5"
    with pytest.raises(InputError, match=r"^found latents of sd for .*, which takes those of 0.5; give them to"):
        refiner(RefineRequest(Latents(made.latents.values, "sd"), "a boat"))


def test_latents_that_do_not_fit_name_the_right_checkpoint(sd: Generator) -> None:
    accident = (
        "found latents of sdxl for the upscaler .*, which takes those of sd; give them to an SDXL checkpoint, base or "
        "refiner, or decode them and give the picture"
    )
    with pytest.raises(InputError, match=accident):
        load_generator(tiny_xl.base_folder(), "cpu", upscaler=tiny.x2_folder())
    with pytest.raises(InputError, match=r"found latents of sd for the refiner .*, which takes those of sdxl; give th"):
        load_generator(tiny.sd1_folder(), "cpu", refiner=tiny_xl.refiner_folder())
    with pytest.raises(InputError, match="found latents of sdxl for the x2 latent upscaler, which takes those of sd"):
        enlarger.upscale(Latents(tiny.latents(1, 8, 8), "sdxl"), model=tiny.x2_folder(), device="cpu")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (tiny_xl.refiner_folder, "holds a StableDiffusionXLImg2ImgPipeline, a checkpoint for refiner; use enlarger.re"),
        (tiny_xl.inpaint_folder, "a checkpoint for inpaint; use enlarger.inpaint"),
        (tiny_depth.depth_folder, "a checkpoint for depth; use enlarger.depth"),
        (tiny_x4.x4_folder, "a checkpoint for x4 upscaling; use enlarger.upscale"),
        (
            tiny.x2_folder,
            "holds a StableDiffusionLatentUpscalePipeline, expected a checkpoint of .*; use enlarger.upscale",
        ),
    ],
)
def test_other_checkpoints_are_refused(folder: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        load_generator(folder(), "cpu")


def test_refusals(sd: Generator) -> None:
    with pytest.raises(InputError, match="found 1 hand-offs for 0 refiners; give one for each"):
        sd(GenerateRequest("a", handoff=1))
    with pytest.raises(InputError, match="an empty list of prompts, expected at least one"):
        sd(GenerateRequest([]))
    with pytest.raises(InputError, match="upscale_steps is 3, but upscale is 1; give upscale, or leave both"):
        GenerateRequest("a", upscale_steps=3)
    with pytest.raises(InputError, match="found the upscaler x2, but upscale is 1; give upscale, or leave both"):
        enlarger.generate("a", model="m", upscaler="x2")
    with pytest.raises(InputError, match="unexpected keyword argument 'stepz'; the options are those of GenerateReq"):
        enlarger.generate("a", model="m", stepz=3)
