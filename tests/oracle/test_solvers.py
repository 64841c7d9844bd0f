"""Whole trajectories of the solvers against k-diffusion's functions and diffusers' schedulers, with the same noise."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusion import solvers
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import SharedGenerator
from enlarger.diffusion.sample import Solver, sample, walk
from enlarger.diffusion.schedule import karras_sigmas, scaled_linear
from tests.support import k_diffusion
from tests.support.close import assert_close
from tests.support.random_weights import normal

SIGMAS = torch.cat([karras_sigmas(0.03, 10.0, 10), torch.zeros(1, dtype=torch.float64)])
NONZERO = karras_sigmas(0.03, 10.0, 11)  # ends above 0
TRAINED = scaled_linear(0.00085, 0.012)
LADDERS = {
    "karras": SIGMAS,
    "above 0": NONZERO,
    "linspace": TRAINED.sampling_sigmas(10),
    "leading": TRAINED.sampling_sigmas(10, "leading", 1),
}
START = normal(2, 3, 4, 4) * 10


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """Nonlinear, and told the noise level as a scalar (ours) or as one per image (theirs)."""
    sigma = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
    return 0.8 * torch.sin(x / (1 + sigma)) + 0.1 * x / (1 + sigma**2)


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    return k_diffusion.load("sampling")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def noise_sampler(like: Tensor = START) -> Callable[[Any, Any], Tensor]:
    noise = SharedGenerator(generator())
    return lambda sigma, lower: noise(like)


PAIRS: dict[str, tuple[Solver, str, dict[str, Any]]] = {
    "euler": (solvers.euler, "sample_euler", {}),
    "euler_ancestral": (solvers.euler_ancestral, "sample_euler_ancestral", {}),
    "ddim": (solvers.ddim, "sample_euler_ancestral", {"eta": 0.0}),
    "ddim eta": (partial(solvers.ddim, eta=0.5), "sample_euler_ancestral", {"eta": 0.5}),
    "heun": (solvers.heun, "sample_heun", {}),
    "lms": (solvers.lms, "sample_lms", {}),
    "lms order 2": (partial(solvers.lms, order=2), "sample_lms", {"order": 2}),
    "dpm2": (solvers.dpm2, "sample_dpm_2", {}),
    "dpm2_ancestral": (solvers.dpm2_ancestral, "sample_dpm_2_ancestral", {}),
    "dpm2_ancestral eta half": (partial(solvers.dpm2_ancestral, eta=0.5), "sample_dpm_2_ancestral", {"eta": 0.5}),
    "dpmpp_2s_ancestral": (solvers.dpmpp_2s_ancestral, "sample_dpmpp_2s_ancestral", {}),
    "dpmpp_2s_ancestral eta 0": (
        partial(solvers.dpmpp_2s_ancestral, eta=0.0),
        "sample_dpmpp_2s_ancestral",
        {"eta": 0.0},
    ),
    "dpmpp_sde": (solvers.dpmpp_sde, "sample_dpmpp_sde", {}),
    "dpmpp_sde eta half": (partial(solvers.dpmpp_sde, eta=0.5), "sample_dpmpp_sde", {"eta": 0.5}),
    "dpmpp_2m": (solvers.dpmpp_2m, "sample_dpmpp_2m", {}),
    "dpmpp_2m_sde": (solvers.dpmpp_2m_sde, "sample_dpmpp_2m_sde", {}),
    "dpmpp_2m_sde eta 0": (partial(solvers.dpmpp_2m_sde, eta=0.0), "sample_dpmpp_2m_sde", {"eta": 0.0}),
    "dpmpp_2m_sde eta half": (partial(solvers.dpmpp_2m_sde, eta=0.5), "sample_dpmpp_2m_sde", {"eta": 0.5}),
    "dpmpp_2m_sde heun": (partial(solvers.dpmpp_2m_sde, heun=True), "sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_3m_sde": (solvers.dpmpp_3m_sde, "sample_dpmpp_3m_sde", {}),
    "dpmpp_3m_sde eta 0": (partial(solvers.dpmpp_3m_sde, eta=0.0), "sample_dpmpp_3m_sde", {"eta": 0.0}),
    "dpmpp_3m_sde eta half": (partial(solvers.dpmpp_3m_sde, eta=0.5), "sample_dpmpp_3m_sde", {"eta": 0.5}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("kind", LADDERS)
def test_k_diffusion(theirs: ModuleType, name: str, kind: str) -> None:
    ours, function, options = PAIRS[name]
    noise_levels = LADDERS[kind]
    seen: list[Tensor] = []
    if "ancestral" in function or "sde" in function:
        options = options | {"noise_sampler": noise_sampler()}
    wanted = getattr(theirs, function)(
        denoise, START, noise_levels.float(), disable=True, callback=lambda d: seen.append(d["denoised"]), **options
    )
    steps = list(walk(ours, denoise, START, noise_levels, SharedGenerator(generator())))
    assert_close(steps[-1].x, wanted, 1e-5)
    assert len(steps) == len(seen)
    for step, clean in zip(steps, seen, strict=True):
        assert_close(step.denoised, clean, 1e-5)


@pytest.fixture
def double() -> Iterator[None]:
    """Accepting a step is a yes or no of a float: both sides compute in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 6, 10, 11])
def test_k_diffusion_fast(theirs: ModuleType, calls: int, eta: float) -> None:
    start = START.double()
    wanted = theirs.sample_dpm_fast(
        denoise, start, 0.03, 10.0, calls, disable=True, eta=eta, noise_sampler=noise_sampler(start)
    )
    solver, sigmas = partial(solvers.dpm_fast, eta=eta), karras_sigmas(0.03, 10.0, calls + 1)
    found = list(walk(solver, denoise, start, sigmas, SharedGenerator(generator())))
    assert_close(found[-1].x, wanted, 1e-8)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("control", [{}, {"rtol": 0.0125, "atol": 0.25 / 127.5, "pcoeff": 0.2, "icoeff": 0.4}])
def test_k_diffusion_adaptive(theirs: ModuleType, eta: float, control: dict[str, float]) -> None:
    start = START.double()
    wanted, info = theirs.sample_dpm_adaptive(
        denoise,
        start,
        0.03,
        10.0,
        disable=True,
        eta=eta,
        noise_sampler=noise_sampler(start),
        return_info=True,
        **control,
    )
    controller = solvers.PIDStepSizeController(**control)
    solver = partial(solvers.dpm_adaptive, eta=eta, step_size_controller=controller)
    steps = list(walk(solver, denoise, start, NONZERO, SharedGenerator(generator())))
    assert len(steps) == info["n_accept"]
    assert_close(steps[-1].x, wanted, 1e-8)


STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PRESERVING = {"set_alpha_to_one": False, "clip_sample": False, "skip_prk_steps": True}
SCHEDULERS = {
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "PNDMScheduler": PRESERVING,
    "DDIMScheduler": PRESERVING,
    "DDPMScheduler": {"clip_sample": False},
}


CASES = [
    *((name, "epsilon", 0.0) for name in SCHEDULERS),
    *(
        (name, "v_prediction", 0.0) for name in SCHEDULERS if name != "PNDMScheduler"
    ),  # theirs mixes v of several levels
    ("DDIMScheduler", "epsilon", 0.5),
    ("DDIMScheduler", "v_prediction", 0.5),
]


@pytest.mark.parametrize(("name", "prediction", "eta"), CASES)
def test_diffusers(name: str, prediction: str, eta: float) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    config = STABLE | SCHEDULERS[name] | {"_class_name": name, "prediction_type": prediction}
    scheduler = getattr(diffusers, name).from_config(config)
    sampler = sampler_from_config(config)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return 0.5 * torch.sin(2 * x + 0.001 * time.reshape(-1, 1, 1, 1)) + 0.3 * x

    start = normal(2, 3, 4, 4) / 4  # keeps the first latents small, where float32 is coarse
    scheduler.set_timesteps(10)
    x = start * scheduler.init_noise_sigma
    options: dict[str, Any] = {"eta": eta} if name == "DDIMScheduler" else {}
    if name in ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "DDIMScheduler"):
        options["generator"] = generator()
    for time in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, time), time), time, x, **options).prev_sample

    sigma_schedule = sampler.sigma_schedule(10)
    denoiser = Denoiser(network, torch.float32, sampler.precondition(), Conditioning())
    solver = partial(solvers.ddim, eta=eta) if eta else solvers.SOLVERS[sampler.solver]
    found = sample(
        solver, denoiser, start * sigma_schedule.init_noise_sigma, sigma_schedule.sigmas, SharedGenerator(generator())
    )
    assert_close(found * sigma_schedule.final_scale, x, 1e-5)


def test_dpm_solver_multistep() -> None:
    """The same method in diffusers, on our ladder: their sigmas, replaced by its levels, in unit variance."""
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    for algorithm, solver in (("dpmsolver++", solvers.dpmpp_2m), ("sde-dpmsolver++", solvers.dpmpp_2m_sde)):
        config = STABLE | {"algorithm_type": algorithm, "prediction_type": "sample"}
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
        scheduler.set_timesteps(10)
        noise_levels = scheduler.sigmas.double()
        x = START / (noise_levels[0] ** 2 + 1).sqrt()
        noise = SharedGenerator(generator())
        for time, sigma in zip(scheduler.timesteps, noise_levels, strict=False):
            clean = denoise(x * (sigma**2 + 1).sqrt(), sigma)
            x = scheduler.step(clean, time, x, variance_noise=noise(x) if "sde" in algorithm else None).prev_sample
        found = sample(solver, denoise, START, noise_levels, SharedGenerator(generator()))
        assert_close(found, x, 1e-5)
