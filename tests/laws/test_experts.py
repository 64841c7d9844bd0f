"""Experts split by noise level: with one set of weights they are the unsplit run, and the plan is what happens."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import from_seeds
from enlarger.diffusion.sampler import Sampler, SigmaSchedule, network_call_sigmas
from enlarger.diffusion.schedule import scaled_linear
from enlarger.diffusion.solvers import SOLVERS, dpm_adaptive
from enlarger.errors import InputError
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion.sampling import (
    Expert,
    SamplingPlan,
    SamplingReport,
    check_handoff_sigmas,
    sample_latents,
    trace_network_calls,
)
from tests.support.close import assert_close, max_difference
from tests.support.random_weights import normal, randomise

SCHEDULE = scaled_linear(0.00085, 0.012)
SAMPLERS = {
    "leading": Sampler(SCHEDULE, timestep_spacing="leading", steps_offset=1),
    "linspace": Sampler(SCHEDULE),
    "karras": Sampler(SCHEDULE, sigma_curve="karras"),
}
STEPS = 8


class Small(nn.Module):
    """A network that looks at its pixel, the time and a token; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.calls = 0

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        self.calls += 1
        calls_made = (time / 1000)[:, None, None, None] + tokens.mean((1, 2))[:, None, None, None]
        return self.outside(torch.tanh(self.inside(x) + calls_made))


def calls_made(guided: bool = False) -> GuidedConditioning:
    tokens = normal(1, 3, 2)
    negative = Conditioning(tokens * 0) if guided else None
    return GuidedConditioning(Conditioning(tokens), negative, Guidance(3.0 if guided else 1.0))


def run(
    networks: list[Small],
    handoff_sigmas: list[float],
    name: str,
    sigma_schedule: SigmaSchedule,
    sampler: Sampler,
    **more: Any,
) -> Tensor:
    experts = [
        Expert(network, sampler.precondition(sigma_schedule), calls_made(**more), until)
        for network, until in zip(networks, handoff_sigmas, strict=True)
    ]
    start = normal(1, 4, 4, 4) * sigma_schedule.init_noise_sigma
    return sample_latents(experts, start, SamplingPlan(sigma_schedule, SOLVERS[name], from_seeds([3])), Runtime())


@pytest.mark.parametrize("spacing", SAMPLERS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_weights_in_both_stages_are_the_unsplit_run(name: str, spacing: str) -> None:
    sampler = SAMPLERS[spacing]
    sigma_schedule = sampler.sigma_schedule(STEPS)
    alone = randomise(Small())
    whole = run([alone], [0.0], name, sigma_schedule, sampler)
    for handoff in (float(SCHEDULE.sigmas[200]), float(sigma_schedule.sigmas[3]), 5.0):
        handoff_sigmas = [handoff, 0.0]
        base, refiner = randomise(Small()), randomise(Small())
        split = run([base, refiner], handoff_sigmas, name, sigma_schedule, sampler)
        assert_close(split, whole, 0)
        assert base.calls and refiner.calls and base.calls + refiner.calls == alone.calls
        plan = SamplingReport(
            trace_network_calls(["base", "refiner"], handoff_sigmas, SOLVERS[name], sigma_schedule.sigmas)
        )
        if name == "dpm_adaptive":
            assert plan.calls is None and [call.who for call in plan.network_calls] == ["base", "refiner"]
            continue
        counted = Counter[str](dict.fromkeys(("base", "refiner"), 0))
        for call in plan.network_calls:
            counted[call.who] += call.count or 0
        assert counted == {"base": base.calls, "refiner": refiner.calls}
        assert plan.calls == base.calls + refiner.calls


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m_sde"])
def test_five_experts_with_guidance_are_one(name: str) -> None:
    sampler = SAMPLERS["leading"]
    sigma_schedule = sampler.sigma_schedule(20)
    alone, handoff_sigmas = randomise(Small()), [9.0, 4.0, 1.0, 0.3, 0.0]
    whole = run([alone], [0.0], name, sigma_schedule, sampler, guided=True)
    networks = [randomise(Small()) for _ in handoff_sigmas]
    assert_close(run(networks, handoff_sigmas, name, sigma_schedule, sampler, guided=True), whole, 0)
    plan = SamplingReport(trace_network_calls(list("abcde"), handoff_sigmas, SOLVERS[name], sigma_schedule.sigmas))
    assert [sum(t.count or 0 for t in plan.network_calls if t.who == who) for who in "abcde"] == [
        n.calls for n in networks
    ]


def test_other_weights_below_the_handoff_change_the_picture() -> None:
    sampler = SAMPLERS["linspace"]
    sigma_schedule = sampler.sigma_schedule(STEPS)
    whole = run([randomise(Small())], [0.0], "euler", sigma_schedule, sampler)
    split = run([randomise(Small()), randomise(Small(), 1)], [1.0, 0.0], "euler", sigma_schedule, sampler)
    assert max_difference(split, whole) > 0.01


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - {"dpm_adaptive"}))
def test_the_plan_lists_all_calls_of_every_step(name: str) -> None:
    sigmas = SAMPLERS["linspace"].sigma_schedule(STEPS).sigmas
    network_calls = trace_network_calls(["base"], [0.0], SOLVERS[name], sigmas)
    levels = network_call_sigmas(SOLVERS[name], sigmas)
    assert levels is not None and sum(call.count or 0 for call in network_calls) == len(levels)
    assert [call.step for call in network_calls] == list(range(1, len(network_calls) + 1))
    assert network_calls[0].start == float(sigmas[0]) and network_calls[-1].stop == 0
    assert all(before.stop == after.start for before, after in pairwise(network_calls))


def test_a_call_belongs_to_the_expert_of_its_own_level() -> None:
    """Heun's second call looks from the lower end of its step."""
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    network_calls = trace_network_calls(["base", "refiner"], [2.0, 0.0], SOLVERS["heun"], sigmas)
    found = [(call.step, call.who, call.start, call.stop, call.count) for call in network_calls]
    assert found == [
        (1, "base", 4.0, 2.0, 2),
        (2, "base", 2.0, 1.0, 1),
        (2, "refiner", 2.0, 1.0, 1),
        (3, "refiner", 1.0, 0.0, 1),
    ]


def test_the_table() -> None:
    sigmas = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)
    plan = SamplingReport(trace_network_calls(["base", "the refiner"], [3.0, 0.0], SOLVERS["euler"], sigmas), 2)
    assert str(plan).splitlines() == [
        "    step  network      noise level         calls",
        "       1  base         4.0000 -> 2.0000    1",
        "       2  the refiner  2.0000 -> 0.0000    1",
        "calls of the networks for 2 pictures: 4",
    ]
    adaptive = SamplingReport(trace_network_calls(["base", "refiner"], [3.0, 0.0], dpm_adaptive, sigmas))
    assert str(adaptive).splitlines()[1:] == [
        "adaptive  base     4.0000 -> 3.0000    -",
        "adaptive  refiner  3.0000 -> 0.0000    -",
        "calls of the networks for 1 picture: the solver decides",
    ]


def test_an_expert_without_levels_has_no_turn() -> None:
    sigmas = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)
    for solver in (SOLVERS["euler"], dpm_adaptive):
        assert {call.who for call in trace_network_calls(["a", "b"], [9.0, 0.0], solver, sigmas)} == {"b"}
        assert {call.who for call in trace_network_calls(["a", "b"], [0.0, 0.0], solver, sigmas)} == {"a"}


def test_handoffs_fall() -> None:
    assert check_handoff_sigmas([]) == (0.0,) and check_handoff_sigmas([3.0, 0.5]) == (3.0, 0.5, 0.0)
    with pytest.raises(
        InputError, match=r"the hand-offs are at noise levels 0.5, 3, expected falling ones, one per re"
    ):
        check_handoff_sigmas([0.5, 3.0])
