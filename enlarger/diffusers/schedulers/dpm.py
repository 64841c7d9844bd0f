"""Schedulers that integrate exactly over log(sigma): DPM-Solver, UniPC and DEIS."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.k_diffusion import BETAS, NO_CURVES, SPACING
from enlarger.diffusers.schedulers.scheduling_utils import (
    CURVES,
    Defaults,
    Generators,
    Scheduler,
    StepOptions,
    StepResult,
    Timestep,
    log,
)
from enlarger.diffusion.estimates import flow_matching, variance_preserving
from enlarger.diffusion.listing import (
    Array,
    flow_levels,
    interpolated_levels,
    sigma_curve,
    time_of_level,
    timesteps_of_one_more,
)
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers.dpm_orders import (
    Integration,
    dpm_multistep,
    dpm_singlestep,
    multistep_orders,
    singlestep_orders,
)

THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
SHIFT = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
PLUS = ("dpmsolver++", "sde-dpmsolver++")


class IntegratedScheduler(Scheduler):
    """The base of those that list whole times, of one step more but its last."""

    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction", "flow_prediction")
    ALIASES: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {}  # known, taken for, the last
    init_noise_sigma = 1.0

    def _check(self) -> None:
        super()._check()
        self.outside = flow_matching if self.config.use_flow_sigmas else variance_preserving
        for name, (known, others, _) in self.ALIASES.items():
            if self.config[name] not in (*known, *others):
                raise NotImplementedError(
                    f"{type(self).__name__}: {name} is {self.config[name]!r}, expected one of {known}"
                )
        if replaced := self._replaced():
            self.register_to_config(**replaced)

    def _replaced(self) -> dict[str, Any]:
        return {name: last for name, (_, others, last) in self.ALIASES.items() if self.config[name] in others}

    def _list_training(self) -> None:
        super()._list_training()
        self.sigmas = self._trained

    def levels(self, begin: int = 0) -> Tensor:
        listed = self.sigmas[begin:].double()
        return listed / (1 - listed) if self.config.use_flow_sigmas else listed

    def index_for_timestep(self, timestep: Timestep, schedule_timesteps: Tensor | None = None) -> int:
        return second_place_or_last(self.timesteps if schedule_timesteps is None else schedule_timesteps, timestep)

    def _set(
        self, steps: int | None, device: Device, own: Sequence[int] | None = None, mu: float | None = None
    ) -> None:
        if (steps is None) == (own is None):
            raise ArgumentError("give exactly one of `num_inference_steps` and `timesteps`")
        if own is not None and any(self.own(name) for name in (*CURVES, "use_lu_lambdas")):
            raise ArgumentError("`timesteps` cannot be set with Karras, exponential, beta or Lu sigmas; leave them out")
        self._shift(mu)
        count = (steps or 0) if own is None else len(own)
        times = self._times(count) if own is None else np.asarray(own).astype(np.int64)
        times, sigmas = self._curved(times, count)
        sigmas = np.concatenate([sigmas, [self._last(sigmas)]]).astype(np.float32)
        self.num_inference_steps = len(times)
        self._use(torch.from_numpy(times.astype(np.int64)), torch.from_numpy(sigmas), device)

    def _shift(self, mu: float | None) -> None:
        if mu is None:
            return
        if not self.config.use_dynamic_shifting:
            raise ArgumentError("`mu` is given, but use_dynamic_shifting is False")
        self.register_to_config(flow_shift=math.exp(mu))

    def _times(self, steps: int) -> Array:
        config = self.config
        clipped = self._clipped()
        try:
            return timesteps_of_one_more(len(self), steps, config.timestep_spacing, config.steps_offset, clipped)
        except ValueError as error:
            raise ArgumentError(str(error)) from error

    def _clipped(self) -> int:
        """How many training times lie above `lambda_min_clipped`."""
        lambdas = -self._trained.log().flip(0)
        return len(self) - int(torch.searchsorted(lambdas, self.own("lambda_min_clipped", -math.inf)))

    def _curved(self, times: Array, steps: int) -> tuple[Array, Array]:
        config = self.config
        curve = next((name for name in (CURVES[0], "use_lu_lambdas", *CURVES[1:]) if self.own(name)), None)
        if curve is not None:
            least, most = (config.get(name) for name in ("sigma_min", "sigma_max"))
            ends = (
                float(self._trained[-1]) if most is None else most,
                float(self._trained[0]) if least is None else least,
            )
            sigmas = sigma_curve(curve.split("_")[1], *ends, steps)
            found = time_of_level(sigmas, self._trained)
            return (found.round() if self._rounds(curve) else found), sigmas
        if config.use_flow_sigmas:
            sigmas = flow_levels(len(self), steps, config.flow_shift)
            return sigmas * len(self), sigmas
        return times, interpolated_levels(times, self._trained)

    def _rounds(self, curve: str) -> bool:
        return curve == CURVES[0]

    def _last(self, sigmas: Array) -> float:
        """The level that a run ends at."""
        ends = {"zero": 0.0, "sigma_min": float(self._trained[0])}
        if self.config.final_sigmas_type not in ends:
            raise ArgumentError(f"final_sigmas_type is {self.config.final_sigmas_type!r}, expected zero or sigma_min")
        return ends[self.config.final_sigmas_type]


class DPMSolverMultistepScheduler(IntegratedScheduler):
    """`dpmpp_2m` and its kin: order 1 to 3, of the denoised or of the noise estimate, with or without noise."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLD,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        **NO_CURVES,
        "use_lu_lambdas": False,
        **FLOW,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **SPACING,
        "rescale_betas_zero_snr": False,
        **SHIFT,
    }
    ALIASES: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {
        "algorithm_type": (("dpmsolver", "sde-dpmsolver", *PLUS), ("deis",), "dpmsolver++"),
        "solver_type": (("midpoint", "heun"), ("logrho", "bh1", "bh2"), "midpoint"),
    }

    def _check(self) -> None:
        super()._check()
        if self.config.algorithm_type not in PLUS and self.config.final_sigmas_type == "zero":
            raise ArgumentError(
                f"final_sigmas_type 'zero' is not for algorithm_type {self.config.algorithm_type!r}; set 'sigma_min'"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """List the entries of a run of so many steps, or times of one's own; `mu` is for dynamic shifting."""
        self._set(num_inference_steps, device, timesteps, mu)

    def _rounds(self, curve: str) -> bool:
        return curve in (CURVES[0], "use_lu_lambdas") and self.config.beta_schedule != "squaredcos_cap_v2"

    def _predicted(self, model_output: Tensor, sample: Tensor) -> Tensor:
        return model_output[:, :3] if self.config.variance_type in ("learned", "learned_range") else model_output

    @property
    def by_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - follows from a setting here
        return self.config.algorithm_type not in PLUS

    def _integration(self, quadratic: float) -> Integration:
        kind = self.config.algorithm_type
        return Integration(
            self.by_noise,
            1.0 if kind.startswith("sde") else 0.0,
            self.config.solver_type == "heun",
            quadratic,
            kind == "sde-dpmsolver++" and quadratic < 1,
        )

    def solver(self, index: int, options: StepOptions) -> Solver:
        config = self.config
        euler = config.euler_at_final or config.final_sigmas_type == "zero"
        orders = multistep_orders(len(self.timesteps), config.solver_order, config.lower_order_final, euler)
        if config.algorithm_type == "sde-dpmsolver" and 3 in orders[index + 2 :]:
            raise ArgumentError("'sde-dpmsolver' has no third order; set solver_order=2")
        return partial(dpm_multistep, orders=orders[index:], integration=self._integration(0.5))

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return self._step(model_output, timestep, sample, return_dict, generator, variance_noise)


class DPMSolverSinglestepScheduler(DPMSolverMultistepScheduler):
    """`dpmpp_singlestep`: groups of steps, each from the start of its group."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLD,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        **NO_CURVES,
        **FLOW,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        **SHIFT,
    }
    ALIASES: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {
        "algorithm_type": (("dpmsolver", *PLUS), ("deis",), "dpmsolver++"),
        "solver_type": (("midpoint", "heun"), ("logrho", "bh1", "bh2"), "midpoint"),
    }

    def _check(self) -> None:
        super()._check()
        if self.config.solver_order > 3:
            raise ArgumentError(f"solver_order is {self.config.solver_order}, expected 1 to 3")
        self.order_list = self.get_order_list(len(self))

    def _times(self, steps: int) -> Array:
        return timesteps_of_one_more(len(self), steps, "linspace", 0, self._clipped())

    def _rounds(self, curve: str) -> bool:
        return curve == CURVES[0]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, mu, timesteps)
        count = (num_inference_steps or 0) if timesteps is None else len(timesteps)
        uneven = count % self.config.solver_order != 0
        if not self.config.lower_order_final and (uneven or self.config.final_sigmas_type == "zero"):
            log.warning("lower_order_final is set to True: the last group of steps is not whole, or ends at 0")
            self.register_to_config(lower_order_final=True)
        self.order_list = self.get_order_list(count)

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step."""
        config = self.config
        euler = config.final_sigmas_type == "zero"
        whole = num_inference_steps // config.solver_order * config.solver_order
        count = num_inference_steps if config.lower_order_final else whole
        return list(singlestep_orders(count, config.solver_order, config.lower_order_final, euler))

    def solver(self, index: int, options: StepOptions) -> Solver:
        orders = [min(order, i + 1) for i, order in enumerate(self.order_list[index:])]
        return partial(dpm_singlestep, orders=orders, integration=self._integration(1.0))

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        return super().step(model_output, timestep, sample, generator, None, return_dict)


def second_place_or_last(listed: Tensor, timestep: Timestep) -> int:
    """Where a timestep is listed: its second place if it has two, the last entry if it has none."""
    places = (listed == torch.as_tensor(timestep).to(listed.device)).nonzero()
    return int(places[min(1, len(places) - 1)]) if len(places) else len(listed) - 1
