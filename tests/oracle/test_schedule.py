"""Schedules, ladders and preconditions against diffusers' scheduler classes and against recorded numbers of theirs."""

import json
from typing import Any

import pytest
import torch

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import SharedGenerator
from enlarger.diffusion.sample import walk
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.schedule import cosine, linear
from enlarger.diffusion.solvers import SOLVERS
from enlarger.errors import InputError, Unsupported
from tests.support.close import assert_close
from tests.support.official import DATA, config_of
from tests.support.random_weights import normal

diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")

VECTORS = json.loads((DATA / "reference" / "schedulers.json").read_text())
OFFICIAL = sorted(path.parent.name for path in (DATA / "configs").glob("*/scheduler.json"))
EULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def theirs(config: dict[str, Any], steps: int | None = None) -> Any:
    made = getattr(diffusers, config["_class_name"]).from_config(config)
    if steps is not None:
        made.set_timesteps(steps)
    return made


def levels(scheduler: Any, times: torch.Tensor) -> torch.Tensor:
    """Their noise levels at whole times."""
    product = scheduler.alphas_cumprod.double()[times.long()]
    return ((1 - product) / product).sqrt()


@pytest.mark.parametrize("name", OFFICIAL)
def test_training_sigmas_of_the_official_files(name: str) -> None:
    config = config_of(f"{name}/scheduler")
    sampler, other = sampler_from_config(config), theirs(config)
    assert_close(sampler.schedule.sigmas, levels(other, torch.arange(1000)), 1e-5)
    for time, product in VECTORS["alphas_cumprod"][str(config["beta_start"])].items():
        assert abs(float(1 / (sampler.schedule.sigmas[int(time)] ** 2 + 1)) - product) < 1e-7


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("steps", [2, 7, 20, 75])
def test_schedules_of_the_official_files(name: str, steps: int) -> None:
    config = config_of(f"{name}/scheduler")
    sampler, other = sampler_from_config(config), theirs(config, steps)
    sigma_schedule = sampler.sigma_schedule(steps)
    if hasattr(other, "sigmas"):
        wanted = (
            other.sigmas[:-1] if sampler.timestep_spacing == "log_linear" else other.sigmas
        )  # its N + 2 levels, N steps
        assert_close(sigma_schedule.sigmas, wanted, 1e-5)
        assert abs(sigma_schedule.init_noise_sigma - float(other.init_noise_sigma)) < 1e-5
        if sampler.timestep_spacing != "log_linear":  # there the times only count
            assert_close(sampler.schedule.time(sigma_schedule.sigmas[:-1]), other.timesteps, 1e-3)
    else:
        times = torch.unique(other.timesteps).flip(0)  # PNDM lists its second time twice
        assert_close(sigma_schedule.sigmas[:-1], levels(other, times), 1e-5)
        assert_close(sigma_schedule.sigmas[-1], levels(other, torch.tensor(0)), 1e-6)
        assert abs(sigma_schedule.init_noise_sigma**2 - sigma_schedule.sigmas[0] ** 2 - 1) < 1e-9
        assert abs(sigma_schedule.final_scale**-2 - sigma_schedule.sigmas[-1] ** 2 - 1) < 1e-9


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("flag", [None, "use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("steps", [2, 5, 30])
def test_every_spacing_and_curve(kind: str, spacing: str, flag: str | None, steps: int) -> None:
    config = EULER | {"_class_name": kind, "timestep_spacing": spacing} | ({flag: True} if flag else {})
    other = theirs(config, steps)
    wanted = other.sigmas if kind.startswith("Euler") else torch.cat([other.sigmas[:-1:2], other.sigmas[-1:]])
    sigma_schedule = sampler_from_config(config).sigma_schedule(steps)
    assert_close(sigma_schedule.sigmas, wanted, 1e-5)
    assert abs(sigma_schedule.init_noise_sigma - float(other.init_noise_sigma)) < 1e-5


def test_karras_levels_lie_between_those_that_the_spacing_visits() -> None:
    noise_levels = (
        sampler_from_config(EULER | {"timestep_spacing": "leading", "use_karras_sigmas": True}).sigma_schedule(5).sigmas
    )
    assert abs(noise_levels[0] - 5.134) < 1e-3 and abs(noise_levels[-2] - 0.0413) < 1e-4
    whole = sampler_from_config(EULER | {"use_karras_sigmas": True}).sigma_schedule(5).sigmas
    assert abs(whole[0] - 14.6146) < 1e-3 and abs(whole[-2] - 0.02917) < 1e-4


@pytest.mark.parametrize(
    ("kind", "change", "end"),
    [
        ("DDIMScheduler", {}, 0.0),  # the class sets the last product to one, the official files do not
        ("DDIMScheduler", {"set_alpha_to_one": False}, 0.0291675),
        ("PNDMScheduler", {"skip_prk_steps": True}, 0.0291675),
        ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, 0.0),
        ("DDPMScheduler", {}, 0.0),
        ("EulerDiscreteScheduler", {}, 0.0),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_the_last_level(kind: str, change: dict[str, Any], end: float, offset: int) -> None:
    config = EULER | {"_class_name": kind, "steps_offset": offset} | change
    noise_levels = sampler_from_config(config).sigma_schedule(10).sigmas
    assert abs(float(noise_levels[-1]) - end) < 1e-6
    assert bool((noise_levels[1:] < noise_levels[:-1]).all())


@pytest.mark.parametrize("curve", ["linear", "scaled_linear"])
def test_zero_terminal_schedules(curve: str) -> None:
    config = EULER | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "beta_schedule": curve}
    sigma_schedule, other = sampler_from_config(config).sigma_schedule(10), theirs(config, 10)
    assert abs(float(sigma_schedule.sigmas[0]) - 4096) < 1e-3  # they keep it finite in the same way
    assert_close(1 / (sigma_schedule.sigmas**2 + 1), 1 / (other.sigmas.double() ** 2 + 1), 1e-6)


def test_linear_and_cosine_schedules() -> None:
    assert_close(linear(1e-4, 0.02).sigmas, levels(theirs({"_class_name": "DDIMScheduler"}), torch.arange(1000)), 1e-3)
    other = theirs({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"})
    found = cosine().sigmas
    assert_close(1 / (found**2 + 1), other.alphas_cumprod, 1e-6)
    assert bool((found[1:] > found[:-1]).all())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("index", [0, 5, 9])
def test_clean_estimates_equal_the_schedulers(kind: str, index: int) -> None:
    for name in ("EulerDiscreteScheduler", "DDIMScheduler"):
        config = EULER | {"_class_name": name, "prediction_type": kind, "set_alpha_to_one": False, "clip_sample": False}
        other, sampler = theirs(config, 10), sampler_from_config(config)
        sigma_schedule, time = sampler.sigma_schedule(10), other.timesteps[index]
        x, output = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=2)
        x = other.scale_model_input(x * sigma_schedule.sigmas[index].float(), time) if name.startswith("Euler") else x
        scales = sampler.precondition()(sigma_schedule.sigmas[index])
        latent = x / scales.input  # x is what the network sees
        found = latent * scales.skip + output * scales.output
        sample = latent.float() if name.startswith("Euler") else x
        wanted = other.step(output, time, sample).pred_original_sample
        assert_close(found / found.abs().max(), wanted / found.abs().max(), 2e-6)
        assert abs(float(scales.time) - float(time)) < 1e-3


def test_karras_precondition_is_the_upscalers() -> None:
    scales = precondition.karras()(torch.tensor(2.0, dtype=torch.float64))
    assert abs(scales.skip - 1 / 5) < 1e-9 and abs(scales.output - 2 / 5**0.5) < 1e-9
    assert abs(scales.input - 1 / 5**0.5) < 1e-9 and abs(scales.time - torch.tensor(2.0).log() / 4) < 1e-7
    other = precondition.karras(0.5)(torch.tensor(2.0, dtype=torch.float64))  # Karras et al. 2022, table 1
    assert abs(other.skip - 0.25 / 4.25) < 1e-9 and abs(other.output - 1 / 4.25**0.5) < 1e-9


def trajectory(sampler: Sampler) -> list[torch.Tensor]:
    """The recorded toy run: every latent, in the scheduler's own coordinates."""

    counted = iter(torch.linspace(999, 0, 6))

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        if sampler.timestep_spacing == "log_linear":  # their times only count the steps there
            time = next(counted)[None]
        return 0.3 * x + 0.1 * torch.sin(time / 100)[:, None, None, None]

    sigma_schedule = sampler.sigma_schedule(6)
    denoise = Denoiser(network, torch.float32, sampler.precondition(), Conditioning())
    x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2) * sigma_schedule.init_noise_sigma
    noise = SharedGenerator(torch.Generator().manual_seed(0))
    steps = walk(SOLVERS[sampler.solver], denoise, x, sigma_schedule.sigmas, noise)
    return [step.x * ((step.sigma**2 + 1) ** -0.5 if sampler.variance_preserving else 1) for step in steps]


@pytest.mark.parametrize("case", VECTORS["cases"])
def test_recorded_numbers(case: str) -> None:
    said = VECTORS["cases"][case]
    config = config_of(f"{said['config_of']}/scheduler") | {"_class_name": said["class"]} | said["overrides"]
    sampler = sampler_from_config(config)
    for steps, wanted in said["schedules"].items():
        noise_levels = sampler.sigma_schedule(int(steps)).sigmas
        if "sigmas" in wanted:
            sigmas = torch.tensor(wanted["sigmas"], dtype=torch.float64)
            sigmas = torch.cat([sigmas[:-1:2], sigmas[-1:]]) if sampler.solver == "heun" else sigmas
            assert_close(noise_levels, sigmas[: len(noise_levels)], 1e-5)
    if said["class"] == "PNDMScheduler":
        kept = said["trajectory_6_steps"][1:]  # the first is undone
    elif said["class"] == "HeunDiscreteScheduler":
        kept = [*said["trajectory_6_steps"][1::2], said["trajectory_6_steps"][-1]]  # the rest are guesses
    else:
        kept = said["trajectory_6_steps"]
    found = trajectory(sampler)
    assert len(found) == len(kept)
    atol = 3e-3 if "zerosnr" in case else 1e-5  # their DDIM jumps by 1000 // 6 times, from list to list it is 1000 / 6
    for x, wanted in zip(found, kept, strict=True):
        assert_close(x.flatten(), torch.tensor(wanted).flatten(), atol)


def test_zero_terminal_ddim() -> None:
    """Theirs starts at an infinite sigma, ours at 4096."""
    config = config_of("stable-diffusion-2-1/scheduler") | {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    other, sampler = theirs(config, 10), sampler_from_config(config)
    x, sigma_schedule = normal(1, 3, 4, 4), sampler.sigma_schedule(10)
    denoise = Denoiser(lambda x, time: torch.sin(x), torch.float32, sampler.precondition(), Conditioning())
    found = (
        list(
            walk(
                SOLVERS["ddim"],
                denoise,
                x * sigma_schedule.init_noise_sigma,
                sigma_schedule.sigmas,
                SharedGenerator(None),
            )
        )[-1].x
        * sigma_schedule.final_scale
    )
    for time in other.timesteps:
        x = other.step(torch.sin(x), time, x).prev_sample
    assert_close(found, x, 5e-4)


def test_an_offset_does_not_lead_past_the_last_time() -> None:
    leading = sampler_from_config(EULER | {"timestep_spacing": "leading", "steps_offset": 1})
    sigmas = leading.sigma_schedule(1000).sigmas
    assert torch.equal(
        sigmas, sampler_from_config(EULER | {"timestep_spacing": "linspace"}).sigma_schedule(1000).sigmas
    )


def test_refusals() -> None:
    schedule = sampler_from_config(EULER).schedule
    with pytest.raises(InputError, match="steps is 0, expected 1 to 1000"):
        schedule.sampling_sigmas(0)
    with pytest.raises(InputError, match="steps is 1001, expected 1 to 1000"):
        schedule.sampling_sigmas(1001)
    with pytest.raises(Unsupported, match=r"log_linear.*exclude each other"):
        sampler_from_config(EULER | {"interpolation_type": "log_linear", "use_karras_sigmas": True})
