"""Courses: what is told where, parts of them, and the samplers that make them."""

import pytest
import torch

from enlarger.checkpoint.schedulers import schedule_config
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
    course = Sampler(SCHEDULE).course(7)
    assert_close(course.times, torch.linspace(999, 0, 7), 1e-4)
    assert_close(SCHEDULE.sigma(course.times), course.ladder[:-1], 1e-12)
    assert course.steps == 7 and course.times.dtype == torch.float64
    counted = Sampler(SCHEDULE, spacing="log_linear").course(4)
    assert counted.times.tolist() == [999, 666, 333, 0] and counted.steps == 4


def test_a_level_that_is_cut_has_no_time() -> None:
    course = Sampler(SCHEDULE, spacing="leading", preserving=True, last=float(SCHEDULE.sigmas[0])).course(10)
    assert course.steps == len(course.times) == 9  # the tenth would go from time 0 to itself
    assert course.times[-1] == 100


@pytest.mark.parametrize("preserving", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_parts(preserving: bool, spacing: str) -> None:
    whole = Sampler(SCHEDULE, spacing=spacing, preserving=preserving).course(10)  # pyright: ignore[reportArgumentType]
    part = whole.part(3, 7)
    assert part.ladder.equal(whole.ladder[3:8]) and part.times.equal(whole.times[3:7]) and part.steps == 4
    first, last = float(whole.ladder[3]), float(whole.ladder[7])
    wide = preserving or spacing == "leading"
    assert part.start == pytest.approx((first**2 + 1) ** 0.5 if wide else first)
    assert part.end == pytest.approx((last**2 + 1) ** -0.5 if preserving else 1)
    assert whole.part().ladder.equal(whole.ladder) and whole.part(9).steps == 1
    assert part.part(1, 3).ladder.equal(whole.ladder[4:7])
    for bad in ((3, 3), (-1, 2), (0, 11), (10, None)):
        with pytest.raises(InputError, match=r"no steps from .* to .*: the course has 10 and a part at least one"):
            whole.part(*bad)


def test_the_network_is_told_what_the_course_lists() -> None:
    sampler = schedule_config(EULER | {"use_karras_sigmas": True})
    course = sampler.course(6)
    for course_or_part in (course, course.part(2, 4)):
        told = sampler.precondition(course_or_part)
        for sigma, time in zip(course.ladder[:-1], course.times, strict=True):  # also at levels outside the part
            assert told(sigma).time == time
    free = sampler.precondition()
    assert [float(free(sigma).time) for sigma in course.ladder[:-1]] == pytest.approx(course.times.tolist())
    between = (course.ladder[0] * course.ladder[1]).sqrt()
    assert course.times[0] > sampler.precondition(course)(between).time > course.times[1]


def test_rounded_times() -> None:
    whole = schedule_config(EULER | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True})
    course = whole.course(5)
    assert course.times.tolist() == course.times.round().tolist()
    assert [float(whole.precondition()(sigma).time) for sigma in course.ladder[:-1]] == course.times.tolist()
    kdpm = schedule_config(EULER | {"_class_name": "KDPM2DiscreteScheduler", "use_karras_sigmas": True})
    course = kdpm.course(5)
    middle = (course.ladder[1] * course.ladder[2]).sqrt()
    assert kdpm.precondition(course)(middle).time % 1 != 0  # only those listed are rounded


def test_ladders_of_ones_own() -> None:
    sampler = Sampler(SCHEDULE)
    course = sampler.along(torch.tensor([9.0, 3.0, 1.0, 0.0]))
    assert_close(SCHEDULE.sigma(course.times), course.ladder[:-1], 1e-3)  # read off log(sigma)
    assert sampler.along(course.ladder, torch.tensor([3, 2, 1])).times.tolist() == [3, 2, 1]
    with pytest.raises(InputError, match="2 times for 4 noise levels, expected one less than levels"):
        sampler.along(course.ladder, torch.tensor([3, 2]))


def test_options_are_the_solvers_own() -> None:
    sampler = schedule_config(EULER | {"_class_name": "UniPCMultistepScheduler", "solver_order": 3})
    assert sampler.solver == "unipc" and sampler.options == {"order": 3, "bh1": False, "eased": 0.0}
    assert sampler.method().keywords == sampler.options  # pyright: ignore[reportFunctionMemberAccess]
    assert sampler.using("dpmpp_2m").method() is solvers.dpmpp_2m
    assert sampler.using("unipc").options == sampler.options
    assert sampler.using("pndm").method().keywords == {"middle": sampler.schedule.middle}  # pyright: ignore


def test_halfway_in_time() -> None:
    sigma, lower = SCHEDULE.sigmas[801], SCHEDULE.sigmas[601]
    assert SCHEDULE.middle(sigma, lower) == SCHEDULE.sigmas[701]
    for most, least in ((30.0, 20.0), (0.02, 0.01), (0.031, 0.030)):  # no whole time between
        ends = torch.tensor([most, least], dtype=torch.float64)
        assert float(SCHEDULE.middle(ends[0], ends[1])) == pytest.approx((most * least) ** 0.5)


def test_the_grids() -> None:
    assert SCHEDULE.times(3, "linspace", grid="whole").tolist() == [999, 500, 0]  # half goes to the even number
    assert SCHEDULE.times(3, "linspace").tolist() == [999, 499.5, 0]
    assert SCHEDULE.times(3, "linspace", grid="one_more").tolist() == [999, 666, 333]
    assert SCHEDULE.times(3, "leading", 1, "one_more").tolist() == [751, 501, 251]
    assert SCHEDULE.times(3, "leading", 1, "whole").tolist() == [667, 334, 1]
    assert SCHEDULE.times(4, "trailing", 1, "one_more").tolist() == [999, 749, 499, 249]
