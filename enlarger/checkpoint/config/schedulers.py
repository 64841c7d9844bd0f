"""Between diffusers' scheduler files and our samplers.

The reader refuses, by name, settings that none of our solvers has. Those of other scheduler classes are passed over, as
in diffusers: they stay in the file when a pipeline's scheduler is exchanged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enlarger.checkpoint.config.strict_config import StrictConfig
from enlarger.diffusion.sampler import Prediction, Sampler
from enlarger.diffusion.schedule import (
    NoiseSchedule,
    SigmaCurve,
    TimestepGrid,
    TimestepRounding,
    TimestepSpacing,
    cosine,
    linear,
    scaled_linear,
)
from enlarger.errors import CheckpointError, Unsupported
from enlarger.strict_json import Json, printable_name


@dataclass(frozen=True)
class SchedulerClass:
    """A scheduler class: the solver that stands for it, unit variance outside, and what a silent file means."""

    solver: str
    variance_preserving: bool = False
    timestep_spacing: TimestepSpacing = "linspace"
    timestep_grid: TimestepGrid = "fractional"
    default_betas: tuple[float, float] = (0.0001, 0.02)


STABLE_DIFFUSION_BETAS = (0.00085, 0.012)
SCHEDULERS: Mapping[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass("ddim", True, "leading", "whole"),
    "DDPMScheduler": SchedulerClass("ddpm", True, "leading", "whole"),
    "PNDMScheduler": SchedulerClass("pndm", True, "leading", "whole"),
    "EulerDiscreteScheduler": SchedulerClass("euler"),
    "EulerAncestralDiscreteScheduler": SchedulerClass("euler_ancestral"),
    "HeunDiscreteScheduler": SchedulerClass("heun", default_betas=STABLE_DIFFUSION_BETAS),
    "LMSDiscreteScheduler": SchedulerClass("lms"),
    "KDPM2DiscreteScheduler": SchedulerClass("dpm2", default_betas=STABLE_DIFFUSION_BETAS),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass("dpm2_ancestral", default_betas=STABLE_DIFFUSION_BETAS),
    "DPMSolverSDEScheduler": SchedulerClass("dpmpp_sde", default_betas=STABLE_DIFFUSION_BETAS),
    "DPMSolverMultistepScheduler": SchedulerClass("dpmpp_2m", True, timestep_grid="one_more"),
    "DPMSolverSinglestepScheduler": SchedulerClass("dpmpp_singlestep", True, timestep_grid="one_more"),
    "UniPCMultistepScheduler": SchedulerClass("unipc", True, timestep_grid="one_more"),
}
"""The scheduler classes that our solvers stand in for."""
SET_ALPHA_TO_ONE = {"DDIMScheduler": True, "PNDMScheduler": False}  # set_alpha_to_one where the file is silent
UNSUPPORTED_SETTINGS: Json = {
    "trained_betas": None,
    "timestep_type": "discrete",
    "thresholding": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
MULTISTEP_SETTINGS: Json = {  # of the classes that integrate the denoised estimate
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "solver_p": None,
    "disable_corrector": [],
    "predict_x0": True,
    "shift_terminal": None,
}


def sampler_from_config(config: Json) -> Sampler:
    """A scheduler file's noise schedule, solver, prediction and spacing, with its class's defaults where silent."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise Unsupported(
            f"scheduler {printable_name(name)}: no solver here stands for it; expected one of {', '.join(SCHEDULERS)}."
        )
    scheduler_class, strict_config = SCHEDULERS[name], StrictConfig(name, config).require_equal(UNSUPPORTED_SETTINGS)
    schedule, sigma_curve = _noise_schedule(strict_config, scheduler_class), _sigma_curve(strict_config)
    spacing = _timestep_spacing(strict_config, scheduler_class, sigma_curve)
    final_sigma = _final_sigma(strict_config, schedule, sigma_curve)
    solver, options = _solver_options(strict_config, scheduler_class, final_sigma)
    return Sampler(
        schedule,
        solver,
        _prediction_type(strict_config),
        spacing,
        strict_config.get_int("steps_offset", 0),
        scheduler_class.variance_preserving,
        sigma_curve,
        final_sigma,
        scheduler_class.timestep_grid,
        _timestep_rounding(strict_config, scheduler_class, sigma_curve),
        options,
    )


def _noise_schedule(strict_config: StrictConfig, scheduler_class: SchedulerClass) -> NoiseSchedule:
    beta_schedule = strict_config.get_choice("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2")
    start, end = (
        strict_config.get_float(name, value)
        for name, value in zip(("beta_start", "beta_end"), scheduler_class.default_betas, strict=True)
    )
    if not 0 < start <= end < 1:
        raise CheckpointError(
            f"{strict_config.class_name}: beta_start and beta_end are {start} and {end}, expected 0 < start <= end < 1."
        )
    count, zero_terminal = (
        strict_config.get_int("num_train_timesteps", 1000),
        strict_config.get_bool("rescale_betas_zero_snr"),
    )
    if beta_schedule == "squaredcos_cap_v2":
        return cosine(count, zero_terminal)
    return (linear if beta_schedule == "linear" else scaled_linear)(start, end, count, zero_terminal)


def _prediction_type(strict_config: StrictConfig) -> Prediction:
    stated = strict_config.get_choice("prediction_type", "epsilon", "v_prediction", "sample", "original_sample")
    return "sample" if stated == "original_sample" else stated


def _sigma_curve(strict_config: StrictConfig) -> SigmaCurve | None:
    curves: dict[str, SigmaCurve] = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_lu_lambdas": "exponential",  # the same levels
    }
    return next((curve for flag, curve in curves.items() if strict_config.get_bool(flag)), None)


def _timestep_spacing(
    strict_config: StrictConfig, scheduler_class: SchedulerClass, sigma_curve: SigmaCurve | None
) -> TimestepSpacing:
    if scheduler_class.solver == "dpmpp_singlestep":
        return "linspace"  # the class has no other, whatever its file says
    spacing = strict_config.get_choice(
        "timestep_spacing", scheduler_class.timestep_spacing, "leading", "linspace", "trailing"
    )
    if strict_config.get_choice("interpolation_type", "linear", "log_linear") == "linear":
        return spacing
    if spacing == "leading":
        raise Unsupported(
            f"{strict_config.class_name}: interpolation_type 'log_linear' and timestep_spacing 'leading' exclude "
            "each other."
        )
    if sigma_curve is not None:
        raise Unsupported(
            f"{strict_config.class_name}: interpolation_type 'log_linear' and Karras or exponential sigmas exclude "
            "each other."
        )
    return "log_linear"


def _final_sigma(strict_config: StrictConfig, schedule: NoiseSchedule, sigma_curve: SigmaCurve | None) -> float:
    """The sigma at which the schedule ends."""
    ends_at_sigma_min = strict_config.get_choice("final_sigmas_type", "zero", "sigma_min") == "sigma_min"
    if ends_at_sigma_min and sigma_curve is not None:
        raise Unsupported(
            f"{strict_config.class_name}: final_sigmas_type 'sigma_min' repeats the last level of Karras or "
            "exponential sigmas; set final_sigmas_type='zero'."
        )
    if strict_config.class_name in SET_ALPHA_TO_ONE:
        ends_at_sigma_min = not strict_config.get("set_alpha_to_one", SET_ALPHA_TO_ONE[strict_config.class_name])
    return float(schedule.sigmas[0]) if ends_at_sigma_min else 0.0


def _timestep_rounding(
    strict_config: StrictConfig, scheduler_class: SchedulerClass, sigma_curve: SigmaCurve | None
) -> TimestepRounding:
    """How diffusers' class makes times of the levels of a curve; where it needs whole ones, it cuts the rest off."""
    integer_timesteps = scheduler_class.timestep_grid == "one_more"
    is_cosine = strict_config.get("beta_schedule") == "squaredcos_cap_v2" and scheduler_class.solver == "dpmpp_2m"
    if (sigma_curve == "karras" or strict_config.get_bool("use_lu_lambdas")) and not is_cosine:
        return "nearest" if integer_timesteps or scheduler_class.solver.startswith("dpm2") else "none"
    return "down" if sigma_curve is not None and integer_timesteps else "none"


def _solver_options(
    strict_config: StrictConfig, scheduler_class: SchedulerClass, final_sigma: float
) -> tuple[str, dict[str, Any]]:
    """The solver's name and its own arguments."""
    if scheduler_class.solver == "pndm":
        return ("plms" if strict_config.get_bool("skip_prk_steps") else "pndm"), {}
    if scheduler_class.solver == "ddpm":
        strict_config.get_choice("variance_type", "fixed_small")
    if scheduler_class.solver == "dpmpp_sde" and strict_config.get("noise_sampler_seed") is not None:
        raise Unsupported(
            f"{strict_config.class_name}: noise_sampler_seed is {strict_config.get('noise_sampler_seed')}, but noise "
            "comes from the generators of the run; give those a seed and set noise_sampler_seed=None."
        )
    if scheduler_class.timestep_grid != "one_more":
        return scheduler_class.solver, {}
    strict_config.require_equal(MULTISTEP_SETTINGS)
    order = strict_config.get_choice("solver_order", 2, 1, 3)
    lower_order_final = (
        final_sigma if strict_config.get("lower_order_final", scheduler_class.solver != "dpmpp_singlestep") else None
    )
    if scheduler_class.solver == "unipc":
        return "unipc", {
            "order": order,
            "bh1": _unipc_solver_type(strict_config) == "bh1",
            "lower_order_final_sigma": 0.0 if lower_order_final is None else lower_order_final,
        }
    eta = (
        1.0
        if strict_config.get_choice("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "deis") == "sde-dpmsolver++"
        else 0.0
    )
    heun = _dpm_solver_type(strict_config) == "heun"
    if order == 3 and eta:
        raise Unsupported(
            f"{strict_config.class_name}: solver_order 3 of 'sde-dpmsolver++' is not available, its last term has "
            "the wrong sign in diffusers; set solver_order=2, or name the solver dpmpp_3m_sde."
        )
    if scheduler_class.solver == "dpmpp_singlestep":
        return scheduler_class.solver, {
            "order": order,
            "eta": eta,
            "heun": heun,
            "lower_order_final": lower_order_final is not None,
        }
    if final_sigma and strict_config.get_bool("euler_at_final"):
        raise Unsupported(
            f"{strict_config.class_name}: euler_at_final is True; set final_sigmas_type='zero', which does the same."
        )
    return _multistep_options(order, eta, heun, lower_order_final)


def _multistep_options(
    order: int, eta: float, heun: bool, lower_order_final: float | None
) -> tuple[str, dict[str, Any]]:
    if order == 1:
        return ("euler_ancestral" if eta else "euler"), {}
    if order == 3:
        return "dpmpp_3m_sde", {"eta": eta, "heun": heun, "lower_order_final_sigma": lower_order_final}
    return ("dpmpp_2m_sde" if eta else "dpmpp_2m"), {"heun": heun, "lower_order_final_sigma": lower_order_final}


def _unipc_solver_type(strict_config: StrictConfig) -> str:
    """The type of another class's solver means the default, as in diffusers."""
    return str(strict_config.get_choice("solver_type", "bh2", "bh1", "midpoint", "heun", "logrho"))


def _dpm_solver_type(strict_config: StrictConfig) -> str:
    return str(strict_config.get_choice("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2"))
