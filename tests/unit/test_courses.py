"""Parts of diffusers' lists of calls: how many calls they make, and what cannot be split."""

import pytest
import torch

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusers.courses import by_strength, entries, from_entry, solver_of, whole
from enlarger.diffusers.schedulers import CLASSES
from enlarger.diffusion.sampler import Sampler, calls
from enlarger.errors import Unsupported

SPLIT = ["PNDM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DPMSolverMultistep"]


def sampler(name: str, **settings: object) -> Sampler:
    kind = CLASSES[f"{name}Scheduler"]
    known = {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False} | settings
    return kind(**{key: value for key, value in known.items() if key in kind.DEFAULTS}).sampler()


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_a_part_makes_the_calls_that_are_listed(name: str, steps: int) -> None:
    chosen = sampler(name)
    course = chosen.course(steps)
    count = len(entries(chosen, course))
    for first in range(0, count, 2 if name == "HeunDiscrete" else 1):
        for stop in range(first + 1, count + 1):
            walk = from_entry(chosen, course, first, stop=stop)
            seen = calls(walk.solver, walk.course.ladder)
            assert seen is not None and len(seen) == walk.calls == stop - first, (first, stop)
            assert len(walk.stops) <= walk.course.steps


@pytest.mark.parametrize("name", [*SPLIT, "KDPM2Discrete", "DPMSolverSDE", "UniPCMultistep", "LMSDiscrete"])
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_strength_takes_that_share_of_the_steps(name: str, strength: float) -> None:
    chosen = sampler(name)
    walk = by_strength(chosen, chosen.course(10), strength)
    assert len(walk.stops) == 10 * strength
    assert float(walk.course.ladder[-1]) == float(chosen.course(10).ladder[-1])


def test_own_lists() -> None:
    chosen = sampler("EulerDiscrete")
    assert whole(chosen, 50, timesteps=[900, 500, 77]).steps == 3
    assert whole(chosen, 50, sigmas=[12.0, 3.0, 0.0]).steps == 2
    with pytest.raises(ArgumentError, match="found both `timesteps` and `sigmas`"):
        whole(chosen, 50, [3], [1.0])


def test_a_course_that_is_shorter_than_asked_for() -> None:
    """The last level of "linspace" is where the ladder ends already: a step that diffusers counts and that does
    nothing."""
    chosen = sampler("PNDM", timestep_spacing="linspace")
    course = chosen.course(10)
    assert course.steps == 9
    assert len(by_strength(chosen, course, 0.35, asked=10).stops) == 2
    assert len(by_strength(chosen, course, 0.35).stops) == 3
    with pytest.raises(ArgumentError, match="number of pipeline steps is 1 which is < 1"):
        by_strength(chosen, course, 0.1, asked=10)


def test_what_cannot_be() -> None:
    with pytest.raises(ArgumentError, match=r"strength parameter: 0.1, the number of pipeline steps is 0 which is < 1"):
        by_strength(sampler("DDIM"), sampler("DDIM").course(5), 0.1)
    with pytest.raises(Unsupported, match="a run of dpm2 cannot be split by time"):
        entries(sampler("KDPM2Discrete"), sampler("KDPM2Discrete").course(5))
    with pytest.raises(Unsupported, match=r"eta is 0\.5, but only DDIMScheduler has it"):
        solver_of(sampler("EulerDiscrete"), 0.5)


def test_times_are_told_as_the_scheduler_lists_them() -> None:
    chosen = sampler("PNDM")
    walk = by_strength(chosen, chosen.course(5), 0.8)
    assert [i for i, _ in walk.stops] == [1, 2, 3, 4]
    assert all(time.dtype == torch.int64 for _, time in walk.stops)
