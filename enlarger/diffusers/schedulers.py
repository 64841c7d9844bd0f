"""Schedulers by diffusers' names: each is a value, a class name and a config, that selects one of our samplers."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from enlarger.checkpoint.components import SCHEDULER_CONFIG_NAME
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusion.sampler import Sampler
from enlarger.errors import CheckpointError, Unsupported
from enlarger.strict_json import read_json

Defaults = Mapping[str, Any]
BETA_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
STABLE_DIFFUSION_BETAS = BETA_DEFAULTS | {"beta_start": 0.00085, "beta_end": 0.012}
SIGMA_CURVE_DEFAULTS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
THRESHOLDING_DEFAULTS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
FLOW_MATCHING_DEFAULTS = {"use_flow_sigmas": False, "flow_shift": 1.0}
SHIFT_DEFAULTS = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
SPACING_DEFAULTS = {"timestep_spacing": "linspace", "steps_offset": 0}


class SchedulerConfig(Mapping[str, Any]):
    """Settings by name or attribute: those stated, then the class's defaults. Those not stated are not carried over."""

    def __init__(self, class_name: str, explicit: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.class_name = class_name
        self.explicit = MappingProxyType(dict(explicit))
        self._all = {**defaults, **explicit, "_class_name": class_name}

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._all:
            raise AttributeError(f"the config of {self.class_name} has no {name!r}; it has {', '.join(self._all)}")
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"{self.class_name}({dict(self.explicit)})"


class Scheduler:
    """The base of the classes, which differ in their defaults alone.

    A base class and not a table of functions, so that `isinstance`, `type(pipe.scheduler).from_config` and the class
    name in saved files mean what people expect. There is no `set_timesteps` or `step`: solvers are in
    `enlarger.diffusion.solvers`.
    """

    DEFAULTS: ClassVar[Defaults] = {}

    def __init__(self, *values: Any, **settings: Any) -> None:
        explicit = dict(zip(self.DEFAULTS, values, strict=False)) | settings
        unknown = sorted(set(explicit) - set(self.DEFAULTS))
        if unknown or len(values) > len(self.DEFAULTS):
            raise TypeError(
                f"{type(self).__name__} has no {unknown or 'so many settings'}; it has {list(self.DEFAULTS)}"
            )
        self.config = SchedulerConfig(type(self).__name__, explicit, self.DEFAULTS)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """From another scheduler's config, ours or diffusers', or a scheduler file's.

        Only what was stated carries over, not the other class's defaults: a PNDM file without `timestep_spacing` is
        "leading" for PNDM and "linspace" for Euler. Settings that this class does not know are kept for the next one.
        """
        explicit = config.explicit if isinstance(config, SchedulerConfig) else _explicit_settings(config)
        scheduler = cls(**{name: value for name, value in explicit.items() if name in cls.DEFAULTS} | changes)
        scheduler.config = SchedulerConfig(cls.__name__, {**explicit, **changes}, cls.DEFAULTS)
        return scheduler

    @classmethod
    def from_pretrained(cls, path: str | Path, subfolder: str | None = None) -> Self:
        """From a `scheduler_config.json` in a local folder."""
        folder = Path(path) / (subfolder or "")
        if not (folder / SCHEDULER_CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{folder}: no {SCHEDULER_CONFIG_NAME}; give the folder that has it, or subfolder='scheduler'."
            )
        return cls.from_config(read_json(folder / SCHEDULER_CONFIG_NAME))

    def with_config(self, **changes: Any) -> Self:
        """The same with other settings."""
        return self.from_config(self.config, **changes)

    def to_dict(self) -> dict[str, Any]:
        """What a scheduler file holds: what was stated."""
        return {"_class_name": type(self).__name__, **self.config.explicit}

    def sampler(self) -> Sampler:
        """Our sampler with these settings; Unsupported for one that none of our solvers has."""
        name = type(self).__name__
        if self.config.get("clip_sample"):
            raise Unsupported(f"{name}: clip_sample is not available, latents are not bounded; set clip_sample=False")
        return sampler_from_config({key: self.config[key] for key in self.DEFAULTS} | {"_class_name": name})

    def __repr__(self) -> str:
        return repr(self.config)


class EulerDiscreteScheduler(Scheduler):
    """`euler`; the x2 upscaler's file names it."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        **SIGMA_CURVE_DEFAULTS,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }


class EulerAncestralDiscreteScheduler(Scheduler):
    """`euler_ancestral`: fresh noise at each step."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


class HeunDiscreteScheduler(Scheduler):
    """`heun`: two calls of the network per step."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "trained_betas": None,
        "prediction_type": "epsilon",
        **SIGMA_CURVE_DEFAULTS,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }


class DDIMScheduler(Scheduler):
    """`ddim`, the one with `eta`. Each step ends where the next one starts.

    In diffusers it ends a whole stride of times lower, which is another place for "linspace", and for "trailing" where
    the number of steps does not divide that of the training times.
    """

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }


class DDPMScheduler(Scheduler):
    """`ddpm`, with the posterior's variance ("fixed_small")."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


class PNDMScheduler(Scheduler):
    """`plms`, as SD1's and SD2's files have it; without `skip_prk_steps` `pndm`, which starts with Runge-Kutta.

    They mix noise estimates; diffusers mixes raw outputs, which differs for "v_prediction" (no official file has that).
    Each step ends where the next one starts, see `DDIMScheduler`.
    """

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }


class LMSDiscreteScheduler(Scheduler):
    """`lms`, of order 4."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        **SIGMA_CURVE_DEFAULTS,
        "prediction_type": "epsilon",
        **SPACING_DEFAULTS,
    }


class KDPM2DiscreteScheduler(Scheduler):
    """`dpm2`: two calls of the network per step."""

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE_DIFFUSION_BETAS,
        "trained_betas": None,
        **SIGMA_CURVE_DEFAULTS,
        "prediction_type": "epsilon",
        **SPACING_DEFAULTS,
    }


class KDPM2AncestralDiscreteScheduler(Scheduler):
    """`dpm2_ancestral`: two calls of the network and fresh noise per step.

    With Karras sigmas the second call is told the rounded time of its level; in diffusers the one before rounding.
    """

    DEFAULTS: ClassVar[Defaults] = KDPM2DiscreteScheduler.DEFAULTS


class DPMSolverSDEScheduler(Scheduler):
    """`dpmpp_sde`: two calls of the network per step, and fresh noise before each of them.

    The noise comes from the generators of the run; diffusers draws it from a Brownian tree of its own, so that single
    pictures differ. `noise_sampler_seed` therefore stays None.
    """

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE_DIFFUSION_BETAS,
        "trained_betas": None,
        "prediction_type": "epsilon",
        **SIGMA_CURVE_DEFAULTS,
        "noise_sampler_seed": None,
        **SPACING_DEFAULTS,
    }


class DPMSolverMultistepScheduler(Scheduler):
    """`dpmpp_2m`; `dpmpp_2m_sde` for "sde-dpmsolver++"; order 1 `euler` or `euler_ancestral`; order 3 as well."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLDING_DEFAULTS,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        **SIGMA_CURVE_DEFAULTS,
        "use_lu_lambdas": False,
        **FLOW_MATCHING_DEFAULTS,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **SPACING_DEFAULTS,
        "rescale_betas_zero_snr": False,
        **SHIFT_DEFAULTS,
    }


class DPMSolverSinglestepScheduler(Scheduler):
    """`dpmpp_singlestep`: groups of steps, each from the start of its group."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLDING_DEFAULTS,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        **SIGMA_CURVE_DEFAULTS,
        **FLOW_MATCHING_DEFAULTS,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **SHIFT_DEFAULTS,
    }


class UniPCMultistepScheduler(Scheduler):
    """`unipc`, of order 1 to 3, "bh1" or "bh2", with the corrector at every step."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETA_DEFAULTS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLDING_DEFAULTS,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        **SIGMA_CURVE_DEFAULTS,
        **FLOW_MATCHING_DEFAULTS,
        **SPACING_DEFAULTS,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        **SHIFT_DEFAULTS,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }


SCHEDULER_CLASSES: Mapping[str, type[Scheduler]] = {
    kind.__name__: kind
    for kind in (
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        DDIMScheduler,
        DDPMScheduler,
        PNDMScheduler,
        LMSDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        DPMSolverSDEScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        UniPCMultistepScheduler,
    )
}


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a scheduler file names."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULER_CLASSES:
        raise Unsupported(
            f"scheduler {name}: no class here stands for it; expected one of {', '.join(SCHEDULER_CLASSES)}."
        )
    return SCHEDULER_CLASSES[name].from_config(config)


def _explicit_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A file's or a diffusers config's settings without those that its class filled in."""
    filled: Any = config.get("_use_default_values") or ()
    return {name: value for name, value in config.items() if name not in filled and not name.startswith("_")}
