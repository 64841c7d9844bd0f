"""Every scheduler class that we stand in for against diffusers' own: the times told and whole trajectories of a toy.

Latents are compared at about unit size: those of Euler and its kin are divided by sqrt(sigma^2 + 1).
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from enlarger.checkpoint.config.schedulers import SCHEDULERS
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import SharedGenerator
from enlarger.diffusion.sample import Step, walk
from enlarger.diffusion.sampler import Sampler
from tests.support.close import assert_close
from tests.support.random_weights import normal

diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # NumPy's, of diffusers' KDPM2

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
UNBOUNDED = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}
CURVES = ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas")
UNCHAINED = ("DDIMScheduler", "PNDMScheduler")  # theirs jump by 1000 // N times, also where the list does not
NO_SAMPLE = (  # theirs have not implemented that prediction
    "EulerAncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
START = normal(2, 3, 4, 4) / 4


def network(x: Tensor, time: Tensor) -> Tensor:
    """Near the noise where there is much, so that clean estimates stay small."""
    return 0.9 * x + 0.1 * torch.sin(2 * x + 0.02 * time.reshape(-1, 1, 1, 1))


def their_run(scheduler: Any, steps: int) -> tuple[list[Tensor], list[float]]:
    """The latents after each call of the network, and the times told."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(7)
    x, seen, options = START * scheduler.init_noise_sigma, list[Tensor](), dict[str, Any]()
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    if isinstance(scheduler, diffusers.DPMSolverSDEScheduler):  # in place of the Brownian tree
        noise = SharedGenerator(generator)
        scheduler.noise_sampler = lambda sigma, lower: noise(START)
    for time in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, time), time.float())
        x = scheduler.step(output, time, x, **options).prev_sample
        seen.append(x)
    return seen, scheduler.timesteps.tolist()


def our_run(sampler: Sampler, steps: int) -> tuple[list[Step], list[float]]:
    """The steps, and the times told."""
    listed: list[float] = []

    def telling(x: Tensor, time: Tensor) -> Tensor:
        listed.append(float(time[0]))
        return network(x, time)

    sigma_schedule = sampler.sigma_schedule(steps)
    denoise = Denoiser(telling, torch.float32, sampler.precondition(sigma_schedule), Conditioning())
    noise = SharedGenerator(torch.Generator().manual_seed(7))
    return list(
        walk(sampler.make_solver(), denoise, START * sigma_schedule.init_noise_sigma, sigma_schedule.sigmas, noise)
    ), listed


def whole_steps(sampler: Sampler, seen: list[Tensor]) -> list[Tensor]:
    """Of the latents after each call those after each step."""
    if sampler.solver in ("heun", "dpm2", "dpm2_ancestral", "dpmpp_sde"):
        return [*seen[1::2], seen[-1]]
    if sampler.solver == "pndm":
        return [*seen[3:12:4], *seen[12:]]
    return seen[1:] if sampler.solver == "plms" else seen


def compare(
    name: str, settings: dict[str, Any], steps: int = 10, listed_atol: float = 1e-3, atol: float = 1e-5
) -> None:
    config = STABLE | UNBOUNDED.get(name, {}) | settings
    known = {key: value for key, value in config.items() if key in SCHEDULER_CLASSES[name].DEFAULTS}
    sampler = SCHEDULER_CLASSES[name](**known).sampler()
    latents, times = their_run(getattr(diffusers, name)(**known), steps)
    found, listed = our_run(sampler, steps)
    assert listed == pytest.approx(times, abs=listed_atol)
    kept = whole_steps(sampler, latents)
    assert len(found) == len(kept)
    for step, wanted in zip(found, kept, strict=True):
        unit = (float(step.sigma) ** 2 + 1) ** -0.5
        assert_close(step.x * unit, wanted if sampler.variance_preserving else wanted * unit, atol)


# In diffusers' UNCHAINED "linspace" ends a step elsewhere than the next begins.
SPACED = [
    (name, spacing)
    for name in SCHEDULERS
    for spacing in ("leading", "linspace", "trailing")
    if name not in UNCHAINED or spacing != "linspace"
]


@pytest.mark.parametrize(("name", "spacing"), SPACED)
def test_spacings_and_predictions(name: str, spacing: str) -> None:
    predictions = ["epsilon", "v_prediction", "sample"]
    if name == "PNDMScheduler":
        predictions = ["epsilon"]  # theirs mixes outputs of several levels
    if name in NO_SAMPLE:
        predictions.remove("sample")
    for prediction in predictions:
        compare(name, {"timestep_spacing": spacing, "prediction_type": prediction, "skip_prk_steps": True})


# diffusers' PNDM takes its one step twice.
LENGTHS = [(name, steps) for name in SCHEDULERS for steps in (1, 2, 3, 27) if (name, steps) != ("PNDMScheduler", 1)]


@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_lengths(name: str, steps: int) -> None:
    compare(name, {"timestep_spacing": "leading", "skip_prk_steps": True}, steps)


WITH_CURVES = [(name, curve) for name in SCHEDULERS for curve in CURVES if curve in SCHEDULER_CLASSES[name].DEFAULTS]


@pytest.mark.parametrize(("name", "curve"), WITH_CURVES)
def test_curves(name: str, curve: str) -> None:
    rounded = name == "KDPM2AncestralDiscreteScheduler" and curve == "use_karras_sigmas"
    for spacing in ("linspace", "leading"):
        # its level halfway is the next one, of which theirs tell the rounded time one call later and not yet
        loose = {"listed_atol": 0.5, "atol": 5e-3} if rounded else {}
        compare(name, {curve: True, "timestep_spacing": spacing}, **loose)
    if SCHEDULERS[name].timestep_grid == "one_more":  # whole times, which hang on the last digit
        compare(name, {curve: True, "beta_start": 0.0001, "beta_end": 0.02})
        compare(name, {curve: True, "beta_schedule": "linear"})


def test_the_cosine_schedule() -> None:
    for name in ("DDPMScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        compare(name, {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"})
    cosine = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    multistep = diffusers.DPMSolverMultistepScheduler(**cosine)
    multistep.set_timesteps(10)  # lists its first time twice, which its steps do not survive
    sigma_schedule = SCHEDULER_CLASSES["DPMSolverMultistepScheduler"](**cosine).sampler().sigma_schedule(10)
    assert sigma_schedule.timesteps.tolist() == multistep.timesteps.tolist()


ZERO_TERMINAL = [
    name
    for name in SCHEDULERS
    if "rescale_betas_zero_snr" in SCHEDULER_CLASSES[name].DEFAULTS
    and not name.startswith("DD")  # whose first level is infinite
]


@pytest.mark.parametrize("name", ZERO_TERMINAL)
def test_zero_terminal_signal(name: str) -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    compare(name, settings, atol=5e-5)  # the first level is 4096: float32 latents know 2e-4 of it


def test_the_runge_kutta_start() -> None:
    compare("PNDMScheduler", {"skip_prk_steps": False})
    compare("PNDMScheduler", {"skip_prk_steps": False, "set_alpha_to_one": True}, steps=20)


DPM_SOLVERS = [
    {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm}
    for order in (1, 2, 3)
    for kind in ("midpoint", "heun")
    for algorithm in ("dpmsolver++", "sde-dpmsolver++")
    if (order, algorithm) != (3, "sde-dpmsolver++")
]
ENDS = [
    {"lower_order_final": lower, "final_sigmas_type": last} for lower in (True, False) for last in ("zero", "sigma_min")
]


@pytest.mark.parametrize("settings", DPM_SOLVERS, ids=str)
def test_dpm_solver_multistep(settings: dict[str, Any]) -> None:
    for steps in (1, 10, 16):
        for end in ENDS:
            compare("DPMSolverMultistepScheduler", settings | end, steps)


@pytest.mark.parametrize("settings", DPM_SOLVERS, ids=str)
def test_dpm_solver_singlestep(settings: dict[str, Any]) -> None:
    for steps in (3, 10, 11, 12):
        for end in ENDS:
            compare("DPMSolverSinglestepScheduler", settings | end, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
def test_unipc(order: int, kind: str) -> None:
    for end in ENDS:
        if end["final_sigmas_type"] == "zero" and (kind == "bh1" or not end["lower_order_final"]):
            continue  # theirs is not a number then
        compare("UniPCMultistepScheduler", {"solver_order": order, "solver_type": kind} | end)
