"""Parts of diffusers' lists of calls: how many calls they make, and what cannot be split."""

import pytest
import torch

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from enlarger.diffusers.timesteps import (
    make_solver,
    range_by_calls,
    range_by_strength,
    retrieve_sigma_schedule,
    timesteps_per_call,
)
from enlarger.diffusion.sampler import Sampler, network_call_sigmas
from enlarger.errors import Unsupported

SPLIT = ["PNDM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DPMSolverMultistep"]


def sampler(name: str, **settings: object) -> Sampler:
    kind = SCHEDULER_CLASSES[f"{name}Scheduler"]
    known = {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False} | settings
    return kind(**{key: value for key, value in known.items() if key in kind.DEFAULTS}).sampler()


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_a_part_makes_the_calls_that_are_listed(name: str, steps: int) -> None:
    chosen = sampler(name)
    course = chosen.sigma_schedule(steps)
    count = len(timesteps_per_call(chosen, course))
    for first in range(0, count, 2 if name == "HeunDiscrete" else 1):
        for stop in range(first + 1, count + 1):
            walk = range_by_calls(chosen, course, first, stop_call=stop)
            seen = network_call_sigmas(walk.solver, walk.sigma_schedule.sigmas)
            assert seen is not None and len(seen) == walk.network_calls == stop - first, (first, stop)
            assert len(walk.reported_steps) <= walk.sigma_schedule.steps


@pytest.mark.parametrize("name", [*SPLIT, "KDPM2Discrete", "DPMSolverSDE", "UniPCMultistep", "LMSDiscrete"])
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_strength_takes_that_share_of_the_steps(name: str, strength: float) -> None:
    chosen = sampler(name)
    walk = range_by_strength(chosen, chosen.sigma_schedule(10), strength)
    assert len(walk.reported_steps) == 10 * strength
    assert float(walk.sigma_schedule.sigmas[-1]) == float(chosen.sigma_schedule(10).sigmas[-1])


def test_own_lists() -> None:
    chosen = sampler("EulerDiscrete")
    assert retrieve_sigma_schedule(chosen, 50, timesteps=[900, 500, 77]).steps == 3
    assert retrieve_sigma_schedule(chosen, 50, sigmas=[12.0, 3.0, 0.0]).steps == 2
    with pytest.raises(ArgumentError, match="found both `timesteps` and `sigmas`"):
        retrieve_sigma_schedule(chosen, 50, [3], [1.0])


def test_a_course_that_is_shorter_than_asked_for() -> None:
    """The last level of "linspace" is where the ladder ends already: a step that diffusers counts and that does
    nothing."""
    chosen = sampler("PNDM", timestep_spacing="linspace")
    course = chosen.sigma_schedule(10)
    assert course.steps == 9
    assert len(range_by_strength(chosen, course, 0.35, requested_steps=10).reported_steps) == 2
    assert len(range_by_strength(chosen, course, 0.35).reported_steps) == 3
    with pytest.raises(ArgumentError, match="number of pipeline steps is 1 which is < 1"):
        range_by_strength(chosen, course, 0.1, requested_steps=10)


def test_what_cannot_be() -> None:
    with pytest.raises(ArgumentError, match=r"strength parameter: 0.1, the number of pipeline steps is 0 which is < 1"):
        range_by_strength(sampler("DDIM"), sampler("DDIM").sigma_schedule(5), 0.1)
    with pytest.raises(Unsupported, match="a run of dpm2 cannot be split by time"):
        timesteps_per_call(sampler("KDPM2Discrete"), sampler("KDPM2Discrete").sigma_schedule(5))
    with pytest.raises(Unsupported, match=r"eta is 0\.5, but only DDIMScheduler has it"):
        make_solver(sampler("EulerDiscrete"), 0.5)


def test_times_are_told_as_the_scheduler_lists_them() -> None:
    chosen = sampler("PNDM")
    walk = range_by_strength(chosen, chosen.sigma_schedule(5), 0.8)
    assert [i for i, _ in walk.reported_steps] == [1, 2, 3, 4]
    assert all(time.dtype == torch.int64 for _, time in walk.reported_steps)
