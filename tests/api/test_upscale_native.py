"""`enlarger.tasks.upscale.upscale` on a tiny x2 folder: exact sizes, seeds, batches, cancelling, latents, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sample import Step, walk
from enlarger.diffusion.solvers import SOLVERS
from enlarger.errors import Cancelled, InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.requests import UpscaleRequest
from enlarger.tasks.inputs import Latents
from enlarger.tasks.latent_diffusion.conditioning import encode_guided_prompts
from enlarger.tasks.results.result import Progress, Result
from enlarger.tasks.upscale.bundled import BundledUpscaler
from enlarger.tasks.upscale.latent_x2 import LatentUpscaleJob, LatentUpscaler
from enlarger.tasks.upscale.upscale import load_upscaler, plan_upscale
from enlarger.tasks.upscale.upscaler import Upscaler
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import randomise

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return load_upscaler(tiny.x2_folder(), device="cpu")


def enlarge(upscaler: Upscaler, image: Any, **options: Any) -> Result:
    return upscaler(UpscaleRequest(image, **({"steps": 2} | options)))


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.array(image, dtype=np.int64)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (1, 1), (33, 80)])
def test_any_size_comes_out_exactly_doubled(upscaler: Upscaler, size: tuple[int, int]) -> None:
    found = enlarge(upscaler, tiny.picture(*size), prompt="a cat")
    assert found.image.size == (2 * size[0], 2 * size[1]) and found.image.mode == "RGB"
    assert found.consistency is not None and found.model == str(tiny.x2_folder())


def test_other_factors_alpha_and_grey(upscaler: Upscaler) -> None:
    assert enlarge(upscaler, tiny.picture(40, 30), by=1.5).image.size == (60, 45)
    assert enlarge(upscaler, tiny.picture(40, 30).convert("RGBA")).image.mode == "RGBA"
    assert enlarge(upscaler, tiny.picture(40, 30).convert("L")).image.mode == "L"


@pytest.mark.parametrize("solver", ["euler", "euler_ancestral"])
def test_one_of_several_equals_itself_alone(upscaler: Upscaler, solver: str) -> None:
    batch = enlarge(upscaler, tiny.picture(64, 64), count=3, seed=5, solver=solver, prompt="a cat")
    assert batch.seeds == (5, 6, 7)
    for k, seed in enumerate(batch.seeds):
        alone = enlarge(upscaler, tiny.picture(64, 64), seed=seed, solver=solver, prompt="a cat")
        assert (pixels(alone.image) == pixels(batch.images[k])).all()
    assert (pixels(batch.images[0]) != pixels(batch.images[1])).any()


def test_inputs_keep_their_seeds_and_prompts(upscaler: Upscaler) -> None:
    sources = [tiny.picture(64, 64), tiny.picture(70, 64, seed=1)]
    batch = enlarge(upscaler, sources, count=2, seed=[1, 9, 4, 4], prompt=["a cat", "two dogs"], negative="ugly")
    alone = enlarge(upscaler, sources[1], count=2, seed=[4, 4], prompt="two dogs", negative="ugly")
    assert [i.size for i in batch.images] == [(128, 128)] * 2 + [(140, 128)] * 2
    for found, expected in zip(batch.images[2:], alone.images, strict=True):
        assert (pixels(found) == pixels(expected)).all()


def job(task: LatentUpscaler, seeds: list[int], low: Tensor, **changes: Any) -> LatentUpscaleJob:
    text = encode_guided_prompts(
        task.tokenizer, task.text_encoder, task.runtime, ["a"] * len(seeds), [""] * len(seeds), "last"
    )
    options = {"solver": SOLVERS["euler_ancestral"], "guidance": Guidance(4.0), **changes}
    return LatentUpscaleJob(low, text, task.sampler.sigma_schedule(3), noise=from_seeds(seeds), **options)


def test_a_batch_of_tensors_equals_singles(upscaler: Upscaler) -> None:
    task, seeds, low = upscaler, [3, 8, 3], tiny.latents(3, 8, 12)
    assert isinstance(task, LatentUpscaler)
    batch = task.upscale_latents(job(task, seeds, low))
    singles = [task.upscale_latents(job(task, [seed], low[i : i + 1])) for i, seed in enumerate(seeds)]
    assert batch.std() > 0.1
    assert_close(batch, torch.cat(singles), 1e-5)


def test_interleaved_samplings_equal_separate_ones(upscaler: Upscaler) -> None:
    """Two runs of each solver, advanced in turns over one network."""
    task = upscaler
    assert isinstance(task, LatentUpscaler)

    def steps(seed: int, name: str) -> Any:
        low, noise = tiny.latents(1, 8, 8, seed), from_seeds([seed])

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scaled = torch.cat([x * torch.rsqrt(sigma**2 + 1), low.repeat(1, 1, 2, 2)], 1).float()
            vector = torch.zeros(1, 128 + tiny.WIDTH)
            with torch.inference_mode():
                return task.unet(scaled, (sigma.log() / 4).float()[None], tokens=torch.zeros(1, 77, 32), vector=vector)[
                    :, :4
                ]

        sigmas = task.sampler.sigma_schedule(4).sigmas
        return walk(SOLVERS[name], denoise, noise(low.repeat(1, 1, 2, 2)) * sigmas[0], sigmas, noise)

    def last(run: Any) -> Tensor:
        return [step.x for step in run][-1]

    for name in SOLVERS.keys() - {"dpm_adaptive"}:
        first: list[Step] = []
        second: list[Step] = []
        for a, b in zip(steps(1, name), steps(2, name), strict=True):
            first.append(a)
            second.append(b)
        assert_close(first[-1].x, last(steps(1, name)), 0)
        assert_close(second[-1].x, last(steps(2, name)), 0)


def test_cancelling_passes_through_and_leaves_nothing(upscaler: Upscaler) -> None:
    def cancel(progress: Progress) -> None:
        if progress.done == 2:
            raise Cancelled("enough")

    request = UpscaleRequest(tiny.picture(64, 64), steps=4)
    before = upscaler(request)
    with pytest.raises(Cancelled, match="enough"):
        upscaler(request, cancel)
    assert (pixels(upscaler(request).image) == pixels(before.image)).all()


def test_watching(upscaler: Upscaler) -> None:
    seen: list[tuple[str, int, int]] = []
    upscaler(UpscaleRequest(tiny.picture(64, 64), steps=3), lambda p: seen.append((p.stage, p.done, p.total)))
    assert [one for one in seen if one[0] == "denoise"] == [("denoise", k, 3) for k in (1, 2, 3)]


def test_latents_in(upscaler: Upscaler) -> None:
    assert enlarge(upscaler, tiny.latents(1, 8, 11)[0]).image.size == (2 * 8 * 11, 2 * 8 * 8)
    batch_of = enlarge(upscaler, tiny.latents(2, 8, 8), seed=[1, 2])
    alone = enlarge(upscaler, tiny.latents(2, 8, 8)[1], seed=2)
    assert len(batch_of.images) == 2 and (pixels(batch_of.images[1]) == pixels(alone.image)).all()
    with pytest.raises(Unsupported, match="by is 3; latents are enlarged by 2, pictures by any factor"):
        enlarge(upscaler, tiny.latents(1, 8, 8)[0], by=3)


@pytest.mark.parametrize("profile", ["diffusers", "original"])
@pytest.mark.parametrize("guidance", [0, 1, 3])
def test_profiles_run(upscaler: Upscaler, profile: str, guidance: float) -> None:
    found = enlarge(upscaler, tiny.picture(64, 64), profile=profile, guidance=guidance, solver="euler", prompt="a cat")
    assert found.image.size == (128, 128) and pixels(found.image).std() > 5


def test_refusals(upscaler: Upscaler) -> None:
    picture = tiny.picture(64, 64)
    with pytest.raises(Unsupported, match=r"noise_level is 0.5, but these weights lack low_res_noise_embed.weight"):
        enlarge(upscaler, picture, noise_level=0.5)
    with pytest.raises(
        Unsupported, match="detail is set, but the x2 latent upscaler has no use for it; leave it, or load another"
    ):
        enlarge(upscaler, picture, detail=0.5)
    with pytest.raises(
        Unsupported, match="restore is set, but the x2 latent upscaler has no use for it; leave it, or load another"
    ):
        enlarge(upscaler, picture, restore=0.5)
    with pytest.raises(InputError, match="no solver is called 'magic'; there are euler, "):
        enlarge(upscaler, picture, solver="magic")
    with pytest.raises(InputError, match="2 seeds for 1 images; give one seed, or one per image"):
        enlarge(upscaler, picture, seed=[1, 2])
    with pytest.raises(InputError, match="an empty list of pictures"):
        enlarge(upscaler, [])
    with pytest.raises(Unsupported, match="holds a StableDiffusionPipeline, expected StableDiffusionLatentUpscale"):
        load_upscaler(tiny.sd1_folder())


def test_the_bundled_kind_refuses_prompts_and_latents() -> None:
    parts = [randomise(UpscaleNet(UpscaleNetConfig(8, 1, extra))) for extra in (0, 0, 1, 0)]
    bundled = BundledUpscaler(*parts)
    assert bundled(UpscaleRequest(tiny.picture(17, 9))).image.size == (34, 18)
    for name, value in {"prompt": "a cat", "negative": "ugly", "guidance": 2.0, "noise_level": 0.1}.items():
        with pytest.raises(Unsupported, match=f"{name} is set, but the bundled model has no use for it"):
            bundled(UpscaleRequest(tiny.picture(16, 16), **{name: value}))
    with pytest.raises(Unsupported, match="found latents with 4 channels; the bundled model takes pictures only"):
        bundled(UpscaleRequest(tiny.latents(1, 8, 8)[0]))


def test_latents_that_say_whose_they_are(upscaler: Upscaler) -> None:
    values = tiny.latents(2, 8, 8)
    typed, bare = (enlarge(upscaler, image, seed=3) for image in (Latents(values, "sd"), values))
    for found, expected in zip(typed.images, bare.images, strict=True):
        assert (pixels(found) == pixels(expected)).all()
    with pytest.raises(InputError, match="found latents of sdxl for the x2 latent upscaler, which takes those of sd"):
        enlarge(upscaler, Latents(values, "sdxl"))
    with pytest.raises(InputError, match=r"found latents with noise of level 0.5 for the x2 latent upscaler, expected"):
        enlarge(upscaler, Latents(values, "sd", 0.5))


def test_two_passes_stay_in_latents(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"encode": 0, "decode": 0}
    for name in calls:
        method = getattr(AutoencoderKL, name)

        def counted(self: Any, x: Tensor, method: Any = method, name: str = name) -> Any:
            calls[name] += 1
            return method(self, x)

        monkeypatch.setattr(AutoencoderKL, name, counted)
    assert enlarge(upscaler, tiny.picture(33, 20), by=4).image.size == (132, 80)
    assert calls == {"encode": 1, "decode": 1}


def test_the_plan_of_a_size(upscaler: Upscaler) -> None:
    request = UpscaleRequest(None, size="150x100", steps=1)
    plan = "75 x 50 -> 150 x 100: 1 pass of x2"
    assert str(plan_upscale(request, (50, 75), upscaler.scale)) == plan
    larger = plan_upscale(UpscaleRequest(None, long_edge=200), (50, 75), 2)
    assert str(larger) == "75 x 50 -> 200 x 133: 2 passes of x2 to 300 x 200, then reduced by Lanczos"
    assert enlarge(upscaler, tiny.picture(75, 50), size="150x100", steps=1).image.size == (150, 100)
