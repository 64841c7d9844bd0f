"""Between diffusers' scheduler files and our samplers.

The reader refuses, by name, settings that none of our solvers has. Those of other scheduler classes are passed over, as
in diffusers: files keep them when a pipeline's scheduler is exchanged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enlarger.checkpoint.settings import Json, Settings
from enlarger.diffusion.sampler import Prediction, Sampler
from enlarger.diffusion.schedule import Curve, Grid, NoiseSchedule, Rounding, Spacing, cosine, linear, scaled_linear
from enlarger.errors import CheckpointError, Unsupported
from enlarger.jsonfile import shown_name


@dataclass(frozen=True)
class Kind:
    """A scheduler class: the solver that stands for it, unit variance outside, and what a silent file means."""

    solver: str
    preserving: bool = False
    spacing: Spacing = "linspace"
    grid: Grid = "fractional"
    betas: tuple[float, float] = (0.0001, 0.02)


STABLE = (0.00085, 0.012)
SCHEDULERS: Mapping[str, Kind] = {
    "DDIMScheduler": Kind("ddim", True, "leading", "whole"),
    "DDPMScheduler": Kind("ddpm", True, "leading", "whole"),
    "PNDMScheduler": Kind("pndm", True, "leading", "whole"),
    "EulerDiscreteScheduler": Kind("euler"),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral"),
    "HeunDiscreteScheduler": Kind("heun", betas=STABLE),
    "LMSDiscreteScheduler": Kind("lms"),
    "KDPM2DiscreteScheduler": Kind("dpm2", betas=STABLE),
    "KDPM2AncestralDiscreteScheduler": Kind("dpm2_ancestral", betas=STABLE),
    "DPMSolverSDEScheduler": Kind("dpmpp_sde", betas=STABLE),
    "DPMSolverMultistepScheduler": Kind("dpmpp_2m", True, grid="one_more"),
    "DPMSolverSinglestepScheduler": Kind("dpmpp_singlestep", True, grid="one_more"),
    "UniPCMultistepScheduler": Kind("unipc", True, grid="one_more"),
}
"""The scheduler classes that our solvers stand in for."""
ONE_AT_THE_END = {"DDIMScheduler": True, "PNDMScheduler": False}  # set_alpha_to_one where the file is silent
NOWHERE: Json = {
    "trained_betas": None,
    "timestep_type": "discrete",
    "thresholding": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
DATA: Json = {  # of the classes that integrate the clean estimate
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "solver_p": None,
    "disable_corrector": [],
    "predict_x0": True,
    "shift_terminal": None,
}


def schedule_config(config: Json) -> Sampler:
    """A scheduler file's noise schedule, solver, prediction and spacing, with its class's defaults where silent."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise Unsupported(
            f"scheduler {shown_name(name)}: no solver here stands for it; expected one of {', '.join(SCHEDULERS)}."
        )
    kind, found = SCHEDULERS[name], Settings(name, config).same(NOWHERE)
    schedule, curve = _schedule(found, kind), _curve(found)
    spacing = _spacing(found, kind, curve)
    last = _last(found, schedule, curve)
    solver, options = _solver(found, kind, last)
    return Sampler(
        schedule, solver, _prediction(found), spacing, found.number("steps_offset", 0), kind.preserving, curve, last,
        kind.grid, _rounding(found, kind, curve), options,
    )  # fmt: skip


def _schedule(found: Settings, kind: Kind) -> NoiseSchedule:
    curve = found.choice("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2")
    start, end = (found.real(name, value) for name, value in zip(("beta_start", "beta_end"), kind.betas, strict=True))
    if not 0 < start <= end < 1:
        raise CheckpointError(
            f"{found.what}: beta_start and beta_end are {start} and {end}, expected 0 < start <= end < 1."
        )
    count, zero_terminal = found.number("num_train_timesteps", 1000), found.flag("rescale_betas_zero_snr")
    if curve == "squaredcos_cap_v2":
        return cosine(count, zero_terminal)
    return (linear if curve == "linear" else scaled_linear)(start, end, count, zero_terminal)


def _prediction(found: Settings) -> Prediction:
    stated = found.choice("prediction_type", "epsilon", "v_prediction", "sample", "original_sample")
    return "sample" if stated == "original_sample" else stated


def _curve(found: Settings) -> Curve | None:
    curves: dict[str, Curve] = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_lu_lambdas": "exponential",  # the same levels
    }
    return next((curve for flag, curve in curves.items() if found.flag(flag)), None)


def _spacing(found: Settings, kind: Kind, curve: Curve | None) -> Spacing:
    if kind.solver == "dpmpp_singlestep":
        return "linspace"  # the class has no other, whatever its file says
    spacing = found.choice("timestep_spacing", kind.spacing, "leading", "linspace", "trailing")
    if found.choice("interpolation_type", "linear", "log_linear") == "linear":
        return spacing
    if spacing == "leading":
        raise Unsupported(
            f"{found.what}: interpolation_type 'log_linear' and timestep_spacing 'leading' exclude each other."
        )
    if curve is not None:
        raise Unsupported(
            f"{found.what}: interpolation_type 'log_linear' and Karras or exponential sigmas exclude each other."
        )
    return "log_linear"


def _last(found: Settings, schedule: NoiseSchedule, curve: Curve | None) -> float:
    """The level that ladders end at."""
    least = found.choice("final_sigmas_type", "zero", "sigma_min") == "sigma_min"
    if least and curve is not None:
        raise Unsupported(
            f"{found.what}: final_sigmas_type 'sigma_min' repeats the last level of Karras or exponential sigmas; "
            "set final_sigmas_type='zero'."
        )
    if found.what in ONE_AT_THE_END:
        least = not found.get("set_alpha_to_one", ONE_AT_THE_END[found.what])
    return float(schedule.sigmas[0]) if least else 0.0


def _rounding(found: Settings, kind: Kind, curve: Curve | None) -> Rounding:
    """How diffusers' class makes times of the levels of a curve; where it needs whole ones, it cuts the rest off."""
    whole = kind.grid == "one_more"
    cosine = found.get("beta_schedule") == "squaredcos_cap_v2" and kind.solver == "dpmpp_2m"
    if (curve == "karras" or found.flag("use_lu_lambdas")) and not cosine:
        return "nearest" if whole or kind.solver.startswith("dpm2") else "none"
    return "down" if curve is not None and whole else "none"


def _solver(found: Settings, kind: Kind, last: float) -> tuple[str, dict[str, Any]]:
    """The solver's name and its own arguments."""
    if kind.solver == "pndm":
        return ("plms" if found.flag("skip_prk_steps") else "pndm"), {}
    if kind.solver == "ddpm":
        found.choice("variance_type", "fixed_small")
    if kind.solver == "dpmpp_sde" and found.get("noise_sampler_seed") is not None:
        raise Unsupported(
            f"{found.what}: noise_sampler_seed is {found.get('noise_sampler_seed')}, but noise comes from the "
            "generators of the run; give those a seed and set noise_sampler_seed=None."
        )
    if kind.grid != "one_more":
        return kind.solver, {}
    found.same(DATA)
    order = found.choice("solver_order", 2, 1, 3)
    eased = last if found.get("lower_order_final", kind.solver != "dpmpp_singlestep") else None
    if kind.solver == "unipc":
        return "unipc", {"order": order, "bh1": _unipc_type(found) == "bh1", "eased": 0.0 if eased is None else eased}
    eta = 1.0 if found.choice("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "deis") == "sde-dpmsolver++" else 0.0
    heun = _dpm_type(found) == "heun"
    if order == 3 and eta:
        raise Unsupported(
            f"{found.what}: solver_order 3 of 'sde-dpmsolver++' is not available, its last term has the wrong sign in "
            "diffusers; set solver_order=2, or name the solver dpmpp_3m_sde."
        )
    if kind.solver == "dpmpp_singlestep":
        return kind.solver, {"order": order, "eta": eta, "heun": heun, "lower_final": eased is not None}
    if last and found.flag("euler_at_final"):
        raise Unsupported(f"{found.what}: euler_at_final is True; set final_sigmas_type='zero', which does the same.")
    return _multistep(order, eta, heun, eased)


def _multistep(order: int, eta: float, heun: bool, eased: float | None) -> tuple[str, dict[str, Any]]:
    if order == 1:
        return ("euler_ancestral" if eta else "euler"), {}
    if order == 3:
        return "dpmpp_3m_sde", {"eta": eta, "heun": heun, "eased": eased}
    return ("dpmpp_2m_sde" if eta else "dpmpp_2m"), {"heun": heun, "eased": eased}


def _unipc_type(found: Settings) -> str:
    """The type of another class's solver means the default, as in diffusers."""
    return str(found.choice("solver_type", "bh2", "bh1", "midpoint", "heun", "logrho"))


def _dpm_type(found: Settings) -> str:
    return str(found.choice("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2"))
