"""Courses: what is told where, parts of them, and the samplers that make them."""

import pytest
import torch

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusion import solvers
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.schedule import scaled_linear
from enlarger.errors import InputError
from tests.support.close import assert_close

SCHEDULE = scaled_linear(0.00085, 0.012)
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def test_times_are_those_of_the_levels() -> None:
    sigma_schedule = Sampler(SCHEDULE).sigma_schedule(7)
    assert_close(sigma_schedule.timesteps, torch.linspace(999, 0, 7), 1e-4)
    assert_close(SCHEDULE.sigma(sigma_schedule.timesteps), sigma_schedule.sigmas[:-1], 1e-12)
    assert sigma_schedule.steps == 7 and sigma_schedule.timesteps.dtype == torch.float64
    counted = Sampler(SCHEDULE, timestep_spacing="log_linear").sigma_schedule(4)
    assert counted.timesteps.tolist() == [999, 666, 333, 0] and counted.steps == 4


def test_a_level_that_is_cut_has_no_time() -> None:
    sigma_schedule = Sampler(
        SCHEDULE, timestep_spacing="leading", variance_preserving=True, final_sigma=float(SCHEDULE.sigmas[0])
    ).sigma_schedule(10)
    assert sigma_schedule.steps == len(sigma_schedule.timesteps) == 9  # the tenth would go from time 0 to itself
    assert sigma_schedule.timesteps[-1] == 100


@pytest.mark.parametrize("preserving", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_parts(preserving: bool, spacing: str) -> None:
    whole = Sampler(SCHEDULE, timestep_spacing=spacing, variance_preserving=preserving).sigma_schedule(10)  # pyright: ignore[reportArgumentType]
    part = whole.subrange(3, 7)
    assert part.sigmas.equal(whole.sigmas[3:8]) and part.timesteps.equal(whole.timesteps[3:7]) and part.steps == 4
    first, last = float(whole.sigmas[3]), float(whole.sigmas[7])
    wide = preserving or spacing == "leading"
    assert part.init_noise_sigma == pytest.approx((first**2 + 1) ** 0.5 if wide else first)
    assert part.final_scale == pytest.approx((last**2 + 1) ** -0.5 if preserving else 1)
    assert whole.subrange().sigmas.equal(whole.sigmas) and whole.subrange(9).steps == 1
    assert part.subrange(1, 3).sigmas.equal(whole.sigmas[4:7])
    for bad in ((3, 3), (-1, 2), (0, 11), (10, None)):
        with pytest.raises(InputError, match=r"no steps from .*: the schedule has 10 and a subrange at least one"):
            whole.subrange(*bad)


def test_the_network_is_told_what_the_schedule_lists() -> None:
    sampler = sampler_from_config(EULER | {"use_karras_sigmas": True})
    sigma_schedule = sampler.sigma_schedule(6)
    for schedule_or_part in (sigma_schedule, sigma_schedule.subrange(2, 4)):
        listed = sampler.precondition(schedule_or_part)
        for sigma, time in zip(
            sigma_schedule.sigmas[:-1], sigma_schedule.timesteps, strict=True
        ):  # also at levels outside the part
            assert listed(sigma).time == time
    free = sampler.precondition()
    assert [float(free(sigma).time) for sigma in sigma_schedule.sigmas[:-1]] == pytest.approx(
        sigma_schedule.timesteps.tolist()
    )
    between = (sigma_schedule.sigmas[0] * sigma_schedule.sigmas[1]).sqrt()
    assert (
        sigma_schedule.timesteps[0] > sampler.precondition(sigma_schedule)(between).time > sigma_schedule.timesteps[1]
    )


def test_rounded_times() -> None:
    whole = sampler_from_config(EULER | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True})
    sigma_schedule = whole.sigma_schedule(5)
    assert sigma_schedule.timesteps.tolist() == sigma_schedule.timesteps.round().tolist()
    assert [
        float(whole.precondition()(sigma).time) for sigma in sigma_schedule.sigmas[:-1]
    ] == sigma_schedule.timesteps.tolist()
    kdpm = sampler_from_config(EULER | {"_class_name": "KDPM2DiscreteScheduler", "use_karras_sigmas": True})
    sigma_schedule = kdpm.sigma_schedule(5)
    middle = (sigma_schedule.sigmas[1] * sigma_schedule.sigmas[2]).sqrt()
    assert kdpm.precondition(sigma_schedule)(middle).time % 1 != 0  # only those listed are rounded


def test_sigmas_of_ones_own() -> None:
    sampler = Sampler(SCHEDULE)
    sigma_schedule = sampler.schedule_from_sigmas(torch.tensor([9.0, 3.0, 1.0, 0.0]))
    assert_close(SCHEDULE.sigma(sigma_schedule.timesteps), sigma_schedule.sigmas[:-1], 1e-3)  # read off log(sigma)
    assert sampler.schedule_from_sigmas(sigma_schedule.sigmas, torch.tensor([3, 2, 1])).timesteps.tolist() == [3, 2, 1]
    with pytest.raises(InputError, match="2 times for 4 noise levels, expected one less than levels"):
        sampler.schedule_from_sigmas(sigma_schedule.sigmas, torch.tensor([3, 2]))


def test_options_are_the_solvers_own() -> None:
    sampler = sampler_from_config(EULER | {"_class_name": "UniPCMultistepScheduler", "solver_order": 3})
    assert sampler.solver == "unipc" and sampler.solver_options == {
        "order": 3,
        "bh1": False,
        "lower_order_final_sigma": 0.0,
    }
    assert sampler.make_solver().keywords == sampler.solver_options  # pyright: ignore[reportFunctionMemberAccess]
    assert sampler.with_solver("dpmpp_2m").make_solver() is solvers.dpmpp_2m
    assert sampler.with_solver("unipc").solver_options == sampler.solver_options
    assert sampler.with_solver("pndm").make_solver().keywords == {"midpoint": sampler.schedule.midpoint_sigma}  # pyright: ignore


def test_halfway_in_time() -> None:
    sigma, lower = SCHEDULE.sigmas[801], SCHEDULE.sigmas[601]
    assert SCHEDULE.midpoint_sigma(sigma, lower) == SCHEDULE.sigmas[701]
    for most, least in ((30.0, 20.0), (0.02, 0.01), (0.031, 0.030)):  # no whole time between
        ends = torch.tensor([most, least], dtype=torch.float64)
        assert float(SCHEDULE.midpoint_sigma(ends[0], ends[1])) == pytest.approx((most * least) ** 0.5)


def test_the_grids() -> None:
    assert SCHEDULE.timesteps(3, "linspace", timestep_grid="whole").tolist() == [
        999,
        500,
        0,
    ]  # half goes to the even number
    assert SCHEDULE.timesteps(3, "linspace").tolist() == [999, 499.5, 0]
    assert SCHEDULE.timesteps(3, "linspace", timestep_grid="one_more").tolist() == [999, 666, 333]
    assert SCHEDULE.timesteps(3, "leading", 1, "one_more").tolist() == [751, 501, 251]
    assert SCHEDULE.timesteps(3, "leading", 1, "whole").tolist() == [667, 334, 1]
    assert SCHEDULE.timesteps(4, "trailing", 1, "one_more").tolist() == [999, 749, 499, 249]
