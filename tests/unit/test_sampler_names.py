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
        ("DPM++ 2M SDE Heun", ("dpmpp_2m_sde_heun", None)),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde_heun", "karras")),
        ("DPM2 a Karras", ("dpm2_ancestral", "karras")),
        ("DPM++ 2S", ("dpmpp_singlestep", None)),
        ("Euler SGM Uniform", ("euler", "trailing")),
        ("k_dpmpp_sde_ka", ("dpmpp_sde", "karras")),
        ("SAMPLER_K_DPMPP_2M", ("dpmpp_2m", None)),
        ("dpmpp_2m_k", ("dpmpp_2m", "karras")),
        ("kdpm_2_a", ("dpm2_ancestral", None)),
        ("dpm_2_a", ("dpm2_ancestral", None)),
        ("uni_pc_bh2", ("unipc", None)),
        ("DPM fast", ("dpm_fast", None)),
        *((name, (name, None)) for name in SOLVERS),
    ],
)
def test_names_of_other_programs(name: str, expected: tuple[str, str | None]) -> None:
    assert parse_sampler(name) == expected


def test_every_name_of_the_menu_leads_back_to_itself() -> None:
    for name in MENU_NAMES:
        solver, spacing = parse_sampler(name)
        assert solver is not None and menu_name(solver, spacing) == name
    assert parse_sampler(None, "Automatic") == (None, None) and parse_sampler("Euler", "automatic") == ("euler", None)
    assert menu_name("ddpm") == "ddpm" and set(SOLVERS) == set(solvers.SOLVERS)


@pytest.mark.parametrize(
    ("solver", "spacing", "message"),
    [
        (
            "DPM++ 2M Keras",
            None,
            "called 'DPM.. 2M Keras', the nearest is 'DPM.. 2M Karras'; there are euler, .*, and A",
        ),
        ("Restart", None, "no solver is called 'Restart', the nearest is 'Heun'; there are euler, "),
        ("Restart Karras", None, "no solver is called 'Restart Karras', the nearest is 'Heun Karras'; there"),
        ("DDIM CFG++", None, "called 'DDIM CFG..', the nearest is 'DDIM'; there"),
        ("k_euler_cfg_pp", None, "called 'k_euler_cfg_pp', the nearest is 'Euler'; there"),
        ("deis_k", None, "called 'deis_k', the nearest is 'UniPC Karras'; there"),
        ("EulerAncestralDiscreteScheduler", None, "Scheduler', the nearest is 'euler_ancestral'; there"),
        ("", None, "no solver is called ''; there"),
        ("magic", None, "no solver is called 'magic'; there"),
        (None, "keras", "no spacing is called 'keras', the nearest is 'karras'; there are karras, exponential, beta, "),
        (None, "KL Optimal", "called 'KL Optimal', the nearest is 'Karras'; there are karras"),
        (None, "align_your_steps", "called 'align_your_steps', the nearest is 'Karras'; there are karras"),
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


@pytest.mark.parametrize("option", ["solver", "spacing"])
def test_a_name_without_end_is_refused_at_once_and_shown_in_part(option: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sampler(**{"solver": None, option: "a " * 500_000})  # in words, its parts would be quadratic
    assert str(caught.value).startswith(f"no {option} is called '{'a ' * 32}...'") and len(str(caught.value)) < 800


def test_a_spacing_is_compared_with_spacings() -> None:
    with pytest.raises(InputError, match="no spacing is called 'deis'") as caught:
        parse_sampler(None, "deis")
    assert "UniPC" not in str(caught.value)
    with pytest.raises(InputError, match="the nearest is 'DPM\\+\\+ 3M SDE'"):
        parse_sampler("dpmpp_3m")
    assert parse_sampler("dpmpp_sde_gpu karras") == ("dpmpp_sde", "karras")
