"""The `original` profile equals k-diffusion's own network, wrapped and sampled as the upscaler's notebook does."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import SharedGenerator
from enlarger.diffusion.solvers import PIDStepSizeController, dpm_adaptive, euler
from enlarger.errors import Unsupported
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.nn.k_unet import KStage, KUNet, KUNetConfig
from enlarger.tasks.latent_diffusion.conditioning import GuidedText
from enlarger.tasks.upscale.latent_x2 import ORIGINAL_ADAPTIVE, LatentUpscaleJob, LatentUpscaler
from enlarger.text.encode import PromptEmbeds
from tests.support import k_diffusion, tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-4  # of latents of about unit size
POOLED, CONTEXT, LENGTH, BATCH = 24, 48, 7, 2
SIZE = (8, 12)
STAGES = tuple(KStage(c, 4, level > 0, level == 3) for level, c in enumerate((32, 32, 64, 64)))

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@dataclass(frozen=True, eq=False)
class Original:
    """The notebook's two wrappers around its network: noise level and text, then guidance on the clean estimate."""

    inner: Any
    embed: Any  # k-diffusion's Fourier features

    def one(self, x: Tensor, sigma: Tensor, low: Tensor, level: Tensor, text: PromptEmbeds) -> Tensor:
        scaled = F.interpolate(low, scale_factor=2, mode="nearest") * (level[:, None, None, None] ** 2 + 1) ** -0.5
        condition = torch.cat([self.embed(level.log1p()[:, None]), text.pooled], 1)
        return self.inner(
            x, sigma, mapping_cond=condition, unet_cond=scaled, cross_cond=text.tokens,
            cross_cond_padding=(~text.mask).float(),
        )  # fmt: skip

    def guided(self, low: Tensor, level: float, text: GuidedText, scale: float) -> Callable[..., Tensor]:
        assert text.negative is not None
        levels = torch.full((len(low),), level)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if scale in (0, 1):
                return self.one(x, sigma, low, levels, text.negative if scale == 0 else text.positive)
            without, given = (self.one(x, sigma, low, levels, t) for t in (text.negative, text.positive))
            return without + scale * (given - without)

        return denoise


@cache
def models() -> tuple[LatentUpscaler, Original]:
    """Ours and theirs with the same random weights."""
    layers = k_diffusion.load("layers")
    theirs = randomise(
        k_diffusion.load("models.image_v1").ImageDenoiserModelV1(
            4, 64, (4, 4, 4, 4), (32, 32, 64, 64), (False, False, False, True), (False, True, True, True),
            mapping_cond_dim=128 + POOLED, unet_cond_dim=4, cross_cond_dim=CONTEXT, has_variance=True,
        )
    )  # fmt: skip
    network = KUNet(KUNetConfig(8, 5, STAGES, CONTEXT, 64, 128 + POOLED))
    network.load_state_dict(k_diffusion.to_ours(theirs.state_dict()), strict=True)
    embed = layers.FourierFeatures(1, 128, std=2)
    embed.weight = 2 * normal(64, 1, seed=8)
    vae = AutoencoderKL(AutoencoderConfig((8,), 1, 4, 0.18215, groups=8))
    sampler = sampler_from_config({"_class_name": "EulerDiscreteScheduler", **tiny.X2_SCHEDULER})
    nothing: Any = None  # no prompts are encoded here
    ours = LatentUpscaler(nothing, nothing, network.eval(), vae, sampler, noise_frequencies=embed.weight)
    return ours, Original(layers.Denoiser(theirs, sigma_data=1.0), embed)


def text() -> GuidedText:
    """Two prompts and their negatives, of different lengths."""

    def encoded(seed: int, lengths: tuple[int, int]) -> PromptEmbeds:
        mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
        return PromptEmbeds(normal(BATCH, LENGTH, CONTEXT, seed=seed), normal(BATCH, POOLED, seed=seed + 1), mask)

    return GuidedText(encoded(10, (3, 6)), encoded(12, (2, 2)))


def branches(text: GuidedText, scale: float) -> GuidedText:
    """What `text_for` gives in the `original` profile: at scale 0 the negative prompt stands alone."""
    assert text.negative is not None
    if scale == 0:
        return GuidedText(text.negative)
    return GuidedText(text.positive) if scale == 1 else text


def run_ours(scale: float, level: float, solver: Any, steps: int) -> Tensor:
    ours, _ = models()
    guidance = Guidance(scale if scale not in (0, 1) else 1.0)
    noise = SharedGenerator(torch.Generator().manual_seed(3))
    low, sigma_schedule = normal(BATCH, 4, *SIZE, seed=5), ours.sampler.sigma_schedule(steps)
    return ours.upscale_latents(
        LatentUpscaleJob(low, branches(text(), scale), sigma_schedule, solver, noise, guidance, level, True)
    )


def run_theirs(scale: float, level: float, sampler: Callable[..., Tensor]) -> Tensor:
    """Noise in the notebook's order: augmentation, start, then the sampler's own."""
    _, original = models()
    generator = torch.Generator().manual_seed(3)
    low = normal(BATCH, 4, *SIZE, seed=5)
    if level:
        low = low + level * torch.randn(low.shape, generator=generator)
    most = math.exp(sigmas(1)[0])
    x = torch.randn(BATCH, 4, 2 * SIZE[0], 2 * SIZE[1], generator=generator) * most
    with torch.no_grad():
        return sampler(original.guided(low, level, text(), scale), x, generator)


def sigmas(steps: int) -> Tensor:
    """The notebook's logarithms of the levels."""
    return torch.linspace(math.log(14.614642143249512), math.log(0.029167532920837402), steps + 1)


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0, 1, 4.0, -1.5])
def test_euler(scale: float, level: float) -> None:
    sampling = k_diffusion.load("sampling")

    def sampler(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        return sampling.sample_euler(model, x, sigmas(4).exp(), disable=True)

    found, expected = run_ours(scale, level, euler, 4), run_theirs(scale, level, sampler)
    assert expected.std() > 0.1
    assert_close(found, expected, ATOL)


@pytest.mark.parametrize(("tolerance", "eta"), [(1.0, 0.0), (0.25, 1.0)])
def test_dpm_adaptive(tolerance: float, eta: float) -> None:
    """The notebook's default, `ORIGINAL_ADAPTIVE`, is tolerance 0.25 and eta 1."""
    sampling = k_diffusion.load("sampling")
    relative, absolute = 0.05 * tolerance, tolerance / 127.5

    def sampler(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        return sampling.sample_dpm_adaptive(
            model, x, math.exp(sigmas(1)[1]), math.exp(sigmas(1)[0]), rtol=relative, atol=absolute, pcoeff=0.2,
            icoeff=0.4, dcoeff=0, eta=eta, disable=True,
            noise_sampler=lambda *_: torch.randn(x.shape, generator=generator),
        )  # fmt: skip

    control = PIDStepSizeController(relative, absolute, pcoeff=0.2, icoeff=0.4)
    solver = (
        ORIGINAL_ADAPTIVE
        if (tolerance, eta) == (0.25, 1)
        else partial(dpm_adaptive, eta=eta, step_size_controller=control)
    )
    found, expected = run_ours(1, 0.2, solver, 1), run_theirs(1, 0.2, sampler)
    assert expected.std() > 0.1
    assert_close(found, expected, ATOL)


def test_padding_matters() -> None:
    """Without the mask the numbers are others: the test above would notice."""
    ours, _ = models()
    job = LatentUpscaleJob(
        normal(BATCH, 4, *SIZE), GuidedText(text().positive), ours.sampler.sigma_schedule(2), euler,
        SharedGenerator(torch.Generator().manual_seed(3)),
    )  # fmt: skip
    masked = LatentUpscaleJob(
        job.low_res,
        job.text_features,
        job.sigma_schedule,
        euler,
        SharedGenerator(torch.Generator().manual_seed(3)),
        mask_padding=True,
    )
    assert (ours.upscale_latents(job) - ours.upscale_latents(masked)).abs().max() > 0.01


def test_a_noise_level_needs_its_weights() -> None:
    ours, _ = models()
    without = LatentUpscaler(ours.tokenizer, ours.text_encoder, ours.unet, ours.vae, ours.sampler)
    low = normal(BATCH, 4, *SIZE)
    job = LatentUpscaleJob(
        low, GuidedText(text().positive), ours.sampler.sigma_schedule(1), euler, SharedGenerator(None), noise_level=0.5
    )
    with pytest.raises(Unsupported, match=r"noise_level is 0.5, but these weights lack low_res_noise_embed.weight"):
        without.upscale_latents(job)
