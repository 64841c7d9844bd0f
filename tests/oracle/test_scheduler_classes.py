"""Every scheduler class that we stand in for against diffusers' own, whole trajectories on a toy network.

Differences are measured where the classes keep their latents: at unit variance, or, for Euler and its kin, at
sqrt(sigma^2 + 1) of it, by which they are divided.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from enlarger.checkpoint.schedulers import SCHEDULERS
from enlarger.diffusers.schedulers import CLASSES
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import Shared
from enlarger.diffusion.sampler import Sampler
from tests.support.close import assert_close
from tests.support.random_weights import normal

diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PLAIN = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}
TWO_CALLS = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
UNCHAINED = ("DDIMScheduler", "PNDMScheduler")  # theirs jumps by T // N whatever the spacing; ours from time to time
START = normal(2, 3, 4, 4) / 4  # keeps the first latents small, where float32 is coarse


def network(x: Tensor, time: Tensor) -> Tensor:
    """Near the noise where there is much, so that clean estimates stay small."""
    return 0.9 * x + 0.1 * torch.sin(2 * x + 0.02 * time.reshape(-1, 1, 1, 1))


def theirs(scheduler: Any, steps: int) -> tuple[list[Tensor], list[float]]:
    """The latents after each call, and the times told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of what KDPM2 does with tensors
        scheduler.set_timesteps(steps)
    name, generator = type(scheduler).__name__, torch.Generator().manual_seed(7)
    x, seen = START * scheduler.init_noise_sigma, list[Tensor]()
    options: dict[str, Any] = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    if name == "DPMSolverSDEScheduler":
        noise = Shared(generator)
        scheduler.noise_sampler = lambda sigma, lower: noise(x)
    for time in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, time), time.float())
        x = scheduler.step(output, time, x, **options).prev_sample
        seen.append(x)
    return seen, scheduler.timesteps.tolist()


def ours(sampler: Sampler, steps: int) -> tuple[list[Tensor], list[float], list[float]]:
    """The latents after each step in the scheduler's coordinates, the times told, and the largest each can be."""
    told: list[float] = []

    def telling(x: Tensor, time: Tensor) -> Tensor:
        told.append(float(time[0]))
        return network(x, time[:1])

    course = sampler.course(steps)
    denoise = Denoiser(telling, torch.float32, sampler.precondition(course), Conditioning())
    noise = Shared(torch.Generator().manual_seed(7))
    steps_taken = list(sampler.method()(denoise, START * course.start, course.ladder, noise))
    found = [s.x * ((float(s.sigma) ** 2 + 1) ** -0.5 if sampler.preserving else 1) for s in steps_taken]
    return found, told, [1 if sampler.preserving else (float(s.sigma) ** 2 + 1) ** 0.5 for s in steps_taken]


def whole_steps(name: str, seen: list[Any]) -> list[Any]:
    """Of what there is after each call, what there is after each step."""
    if name in TWO_CALLS:
        return [*seen[1::2], seen[-1]]
    if name == "PNDMScheduler runge-kutta":
        return [*seen[3:12:4], *seen[12:]]
    return seen[1:] if name == "PNDMScheduler" else seen


def compare(name: str, settings: dict[str, Any], steps: int = 10, atol: float = 1e-5) -> None:
    config = STABLE | PLAIN.get(name, {}) | settings
    known = {key: value for key, value in config.items() if key in CLASSES[name].DEFAULTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        other = getattr(diffusers, name)(**known)
    sampler = CLASSES[name](**known).sampler()
    latents, times = theirs(other, steps)
    found, told, scale = ours(sampler, steps)
    assert told == pytest.approx(times, abs=1e-3)
    label = f"{name} runge-kutta" if sampler.solver == "pndm" else name
    kept = whole_steps(label, latents)
    assert len(found) == len(kept)
    worst = max(float((a - b).abs().max()) / s for a, b, s in zip(found, kept, scale, strict=True))
    print(name, settings, f"{worst:.2g} of {max(float(b.abs().max()) / s for b, s in zip(kept, scale)):.2g}")
    for a, b, s in zip(found, kept, scale, strict=True):
        assert_close(a / s, b / s, atol)


def predictions(name: str) -> list[str]:
    if name == "PNDMScheduler":
        return ["epsilon"]  # theirs mixes outputs of several levels
    unknown = (
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
    )
    return ["epsilon", "v_prediction"] + ([] if name in unknown else ["sample"])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_spacings_and_predictions(name: str, spacing: str) -> None:
    if name in UNCHAINED and spacing != "leading":
        pytest.skip("theirs jumps by whole strides, see the class's docstring")
    for prediction in predictions(name):
        compare(name, {"timestep_spacing": spacing, "prediction_type": prediction, "skip_prk_steps": True})


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("curve", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
def test_curves(name: str, curve: str) -> None:
    if curve not in CLASSES[name].DEFAULTS:
        pytest.skip(f"{name} has no {curve}")
    for spacing in ("linspace", "leading"):
        compare(name, {curve: True, "timestep_spacing": spacing})


def test_the_runge_kutta_start() -> None:
    compare("PNDMScheduler", {"skip_prk_steps": False})
    compare("PNDMScheduler", {"skip_prk_steps": False, "set_alpha_to_one": True}, steps=20)


MULTISTEP = [
    {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm, "lower_order_final": lower}
    for order in (1, 2, 3)
    for kind in ("midpoint", "heun")
    for algorithm in ("dpmsolver++", "sde-dpmsolver++")
    for lower in (True, False)
    if (order, algorithm) != (3, "sde-dpmsolver++")
]


@pytest.mark.parametrize("settings", MULTISTEP, ids=str)
def test_dpm_solver_multistep(settings: dict[str, Any]) -> None:
    for steps in (10, 16):
        for last in ("zero", "sigma_min"):
            compare("DPMSolverMultistepScheduler", settings | {"final_sigmas_type": last}, steps)


@pytest.mark.parametrize("settings", MULTISTEP, ids=str)
def test_dpm_solver_singlestep(settings: dict[str, Any]) -> None:
    for steps in (9, 10, 11, 12):
        for last in ("zero", "sigma_min"):
            compare("DPMSolverSinglestepScheduler", settings | {"final_sigmas_type": last}, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
def test_unipc(order: int, kind: str) -> None:
    for lower, last in ((True, "zero"), (True, "sigma_min"), (False, "sigma_min")):
        if (kind, last) == ("bh1", "zero"):
            continue  # theirs is not a number then
        settings = {"lower_order_final": lower, "final_sigmas_type": last}
        compare("UniPCMultistepScheduler", {"solver_order": order, "solver_type": kind, **settings})
