"""Random scheduler configurations, walked by diffusers' class and by ours with the same stand-in for a network."""

import inspect
import math
import random
import warnings
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import enlarger.diffusers as face
from enlarger.diffusers.schedulers import SCHEDULER_CLASSES

STEPS = (1, 2, 3, 7, 20, 999)
STEPS_WEIGHTS = (5, 5, 5, 5, 5, 1)
CHOICES: dict[str, list[Any]] = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
    "interpolation_type": ["linear", "linear", "log_linear"],
    "timestep_type": ["discrete", "discrete", "continuous"],
    "thresholding": [False, False, True],
    "sample_max_value": [1.0, 2.0],
    "dynamic_thresholding_ratio": [0.995, 0.9],
    "clip_sample": [False, True],
    "clip_sample_range": [1.0, 2.0],
    "set_alpha_to_one": [True, False],
    "variance_type": ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"],
    "skip_prk_steps": [True, False],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "lower_order_final": [True, False],
    "euler_at_final": [False, False, True],
    "use_lu_lambdas": [False, False, False, True],
    "use_flow_sigmas": [False, False, False, True],
    "flow_shift": [1.0, 3.0],
    "lambda_min_clipped": [-math.inf, -5.1],
    "predict_x0": [True, True, False],
    "disable_corrector": [[], [], [0, 2]],
    "sigma_schedule": ["karras", "exponential"],
    "sigma_data": [0.5, 1.0],
    "sigma_min": [0.002, 0.01],
    "sigma_max": [80.0, 40.0],
    "rho": [7.0, 5.0],
    "noise_sampler_seed": [0, 7],
    "original_inference_steps": [50, 100],
}
CURVES = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", None, None]


@dataclass(frozen=True, eq=False)
class Case:
    """A class, its settings, how many steps, and what each step is told besides."""

    name: str
    config: dict[str, Any]
    steps: int
    options: dict[str, Any]

    def __str__(self) -> str:
        short = {key: "..." if key == "trained_betas" else value for key, value in self.config.items()}
        settings = ", ".join(f"{key}={value!r}" for key, value in short.items())
        return f"{self.name}({settings}), {self.steps} steps, {self.options}"


def random_case(draw: random.Random, name: str | None = None) -> Case:
    """A class with settings drawn from those that it has."""
    name = draw.choice(list(SCHEDULER_CLASSES)) if name is None else name
    known = SCHEDULER_CLASSES[name].DEFAULTS
    config = {key: draw.choice(values) for key, values in CHOICES.items() if key in known and draw.random() < 0.6}
    curve = draw.choice(CURVES)
    if curve in known and not config.get("use_flow_sigmas"):
        config[curve] = True
    if "beta_start" in known:
        config |= {"beta_start": 0.00085, "beta_end": 0.012} if draw.random() < 0.7 else {}
        config |= {"trained_betas": np.linspace(0.0005, 0.01, 1000).tolist()} if draw.random() < 0.1 else {}
    if name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        config.pop("variance_type", None)
    if "noise_sampler_seed" in known:
        config.setdefault("noise_sampler_seed", 3)
    options: dict[str, Any] = {}
    accepted = inspect.signature(getattr(diffusers, name).step).parameters
    if "s_churn" in accepted and draw.random() < 0.4:
        options = {"s_churn": draw.choice([0.5, 5.0, 40.0]), "s_noise": draw.choice([1.0, 1.003]), "s_tmin": 0.1}
    if "eta" in accepted and draw.random() < 0.6:
        options["eta"] = draw.choice([0.0, 0.3, 1.0])
    if "use_clipped_model_output" in accepted and draw.random() < 0.3:
        options["use_clipped_model_output"] = True
    return Case(name, config, draw.choices(STEPS, STEPS_WEIGHTS)[0], options)


def network(sample: Tensor, timestep: Any) -> Tensor:
    """A smooth stand-in that depends on its latents, their neighbours and the time."""
    time = float(timestep)
    mixed = torch.tanh(0.9 * sample + 0.2 * sample.roll(1, -1)) + 0.1 * sample.roll(1, -2)
    return 0.9 * mixed + 0.1 * math.sin(time / 150) - 0.05


def walk(room: Any, case: Case, *, exact: bool = False, nudge: int | None = None) -> list[Tensor]:
    """The latents after each call; `exact` has diffusers compute in float64 with its own levels.

    `nudge` is the seed by which half of the first latents get another last bit.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        scheduler = getattr(room, case.name)(**case.config)
        scheduler.set_timesteps(case.steps)
        if exact:
            in_double(scheduler)
        noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(11))
        if nudge is not None:
            chosen = torch.rand(noise.shape, generator=torch.Generator().manual_seed(nudge)) < 0.5
            noise = torch.where(chosen, torch.nextafter(noise, noise.new_tensor(torch.inf)), noise)
        x = noise.double() * scheduler.init_noise_sigma if exact else noise * scheduler.init_noise_sigma
        generator = torch.Generator().manual_seed(12)
        options = dict(case.options)
        if "generator" in inspect.signature(scheduler.step).parameters:
            options["generator"] = generator
        seen = []
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t).float()
            x = scheduler.step(output, t, x, **options).prev_sample
            seen.append(x)
        return seen


def in_double(scheduler: Any) -> None:
    """Have a scheduler of diffusers compute its coefficients in float64, from the levels that it lists."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "sigmas_interpol", "one"):
        if isinstance(getattr(scheduler, name, None), Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    if hasattr(scheduler, "sigmas_up"):
        sigma = scheduler.sigmas[0::2]
        lower = torch.cat([sigma[1:], torch.zeros(1).double()])
        up = (lower**2 * (sigma**2 - lower**2) / sigma**2).clamp(min=0).sqrt().nan_to_num()
        down = (lower**2 - up**2).clamp(min=0).sqrt()
        between = (sigma * down).sqrt()
        for name, values in (("up", up), ("down", down), ("interpol", between)):
            repeated = torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])
            setattr(scheduler, f"sigmas_{name}", repeated)


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The worst difference over the deviation of the latents."""
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(found, expected, strict=True))


def last_bit(case: Case, expected: list[Tensor]) -> float:
    """How far two runs can be apart: twice of how far diffusers moves when last bits of its first latents change."""
    return 2 * max(distance(walk(diffusers, case, nudge=seed), expected) for seed in range(3))


def compare(case: Case) -> tuple[str, float, str]:
    """What became of it, the worst difference over the latents' deviation, and what was said.

    "equal"; "rounded", where diffusers in float32 is further from diffusers in float64 than ours, or moves half as
    far when last bits of its first latents change; "different"; "refused"; or "theirs", where diffusers does not run,
    or not to numbers.
    """
    try:
        expected = walk(diffusers, case)
    except Exception as error:  # noqa: BLE001 - whatever diffusers raises
        return "theirs", 0.0, repr(error)
    finite = all(bool(torch.isfinite(x).all()) for x in expected) and bool(expected)
    if not finite:
        return "theirs", 0.0, "not finite"
    try:
        found = walk(face, case)
    except Exception as error:  # noqa: BLE001 - whatever is raised is the finding
        return "refused", 0.0, repr(error)
    if len(found) != len(expected):
        return "different", math.inf, f"{len(found)} entries, expected {len(expected)}"
    worst = distance(found, expected)
    if worst <= 1e-4:
        return "equal", worst, ""
    exact = walk(diffusers, case, exact=True)
    precise, own = distance(found, exact), distance(expected, exact)
    same = precise <= 1e-4 or min(worst, precise) <= own or worst <= last_bit(case, expected)
    if "noise_sampler_seed" in case.config:  # a tree knows the last digit of a level: other digits draw other noise
        same = precise <= 1e-4 or worst <= min(1e-3, own)
    return ("rounded" if same else "different"), worst, f"{precise:.2g} from float64, diffusers itself {own:.2g}"


diffusers.logging.set_verbosity(50)
