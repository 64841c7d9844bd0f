"""A1111's and ComfyUI's names of solvers and spacings mean ours, and the levels are those of k-diffusion."""

import pytest
import torch
from scipy.stats import beta

from enlarger.diffusion import solvers
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.schedule import karras_sigmas, scaled_linear
from enlarger.errors import InputError
from enlarger.requests import GenerateRequest, UpscaleRequest
from enlarger.sampler_names import MENU_NAMES, SOLVERS, menu_name, parse_sampler
from tests.support.close import assert_close

SCHEDULE = scaled_linear(0.00085, 0.012)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 3M SDE Karras", ("dpmpp_3m_sde", "karras")),
        ("DPM++ 2S a Karras", ("dpmpp_2s_ancestral", "karras")),
        ("DPM2 a", ("dpm2_ancestral", None)),
        ("Euler a", ("euler_ancestral", None)),
        ("euler A", ("euler_ancestral", None)),
        ("k_euler_ancestral", ("euler_ancestral", None)),
        ("LMS Karras", ("lms", "karras")),
        ("dpm_2_ancestral", ("dpm2_ancestral", None)),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("dpmpp_2m_karras", ("dpmpp_2m", "karras")),
        ("uni_pc", ("unipc", None)),
        ("UniPC Beta", ("unipc", "beta")),
        ("LCM", ("lcm", None)),
        *((name, (name, None)) for name in SOLVERS),
    ],
)
def test_names_of_other_programs(name: str, expected: tuple[str, str | None]) -> None:
    assert parse_sampler(name) == expected


def test_every_name_of_the_menu_leads_back_to_itself() -> None:
    for name in MENU_NAMES:
        solver, spacing = parse_sampler(name)
        assert solver is not None and menu_name(solver, spacing) == name
    assert menu_name("ddpm") == "ddpm" and set(SOLVERS) == set(solvers.SOLVERS)


@pytest.mark.parametrize(
    ("solver", "spacing", "message"),
    [
        ("DPM++ 2M Keras", None, "no solver is called 'DPM.. 2M Keras'; there are euler, .*, and A1111's names"),
        ("Restart", None, "no solver is called 'Restart'"),
        ("", None, "no solver is called ''"),
        (None, "keras", "no spacing is called 'keras'; there are karras, exponential, beta, "),
        ("DPM++ 2M Karras", "beta", "solver is 'DPM.. 2M Karras' and spacing 'beta', expected one spacing"),
    ],
)
def test_names_that_are_none(solver: str | None, spacing: str | None, message: str) -> None:
    for make in (lambda: UpscaleRequest(None, solver=solver, spacing=spacing), lambda: parse_sampler(solver, spacing)):
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(InputError, match=message):
        GenerateRequest("a", solver=solver, spacing=spacing)


@pytest.mark.parametrize("own", ["leading", "linspace", "trailing", "log_linear"])
def test_curves_go_over_all_the_training_levels(own: str) -> None:
    sampler = Sampler(SCHEDULE, "pndm", timestep_spacing=own, steps_offset=1, final_sigma=0.03)  # pyright: ignore[reportArgumentType]
    most, least = float(SCHEDULE.sigmas[-1]), float(SCHEDULE.sigmas[0])
    steps = torch.arange(10, dtype=torch.float64) / 9
    quantiles = torch.from_numpy(beta.ppf(1 - steps.numpy(), 0.6, 0.6))
    levels = {
        "Karras": karras_sigmas(least, most, 10),
        "exponential": most ** (1 - steps) * least**steps,
        "beta": least + quantiles * (most - least),
    }
    for name, expected in levels.items():
        sigmas = sampler.with_solver("DPM++ 2M", name).sigma_schedule(10).sigmas
        assert sigmas[-1] == 0 and len(sigmas) == 11
        assert_close(sigmas[:-1], expected, 1e-9)
    assert sampler.with_solver("dpmpp_2m", "beta").solver == "dpmpp_2m"


def test_times_are_spaced_as_said() -> None:
    sampler = Sampler(SCHEDULE, timestep_spacing="leading", sigma_curve="karras")
    assert sampler.with_solver(None, "trailing").sigma_schedule(4).timesteps.tolist() == [999, 749, 499, 249]
    assert sampler.with_solver("euler", "Uniform").sigma_schedule(4).timesteps.tolist() == [999, 666, 333, 0]
    assert sampler.with_solver(None, None) is sampler
