"""Schedulers that integrate exactly over log(sigma): UniPC and DEIS."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.dpm import FLOW, SHIFT, THRESHOLD, IntegratedScheduler
from enlarger.diffusers.schedulers.k_diffusion import BETAS, NO_CURVES, SPACING
from enlarger.diffusers.schedulers.scheduling_utils import CURVES, Defaults, StepOptions, StepResult, Timestep
from enlarger.diffusion.estimates import Bounds
from enlarger.diffusion.listing import (
    Array,
    flow_levels,
    flow_shifted,
    stretched_to,
)
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers import unipc
from enlarger.diffusion.solvers.dpm_orders import (
    deis,
    multistep_orders,
)


class UniPCMultistepScheduler(IntegratedScheduler):
    """`unipc`, of order 1 to 3, "bh1" or "bh2", of the denoised or of the noise estimate."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLD,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        **NO_CURVES,
        **FLOW,
        **SPACING,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        **SHIFT,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }
    ALIASES: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {
        "solver_type": (("bh1", "bh2"), ("midpoint", "heun", "logrho"), "bh2"),
    }

    def _check(self) -> None:
        super()._check()
        if self.config.shift_terminal is not None and not self.config.use_flow_sigmas:
            raise ArgumentError("shift_terminal is only for use_flow_sigmas=True")
        if self.config.solver_p is not None:
            raise ArgumentError("solver_p is not available; the predictor is UniPC's own, leave it out")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """List the entries of a run of so many steps, or of flow levels of one's own."""
        config = self.config
        if config.use_dynamic_shifting and mu is None:
            raise ArgumentError("`mu` is missing, use_dynamic_shifting needs it")
        if sigmas is not None and not config.use_flow_sigmas:
            raise ArgumentError("`sigmas` can only be given with use_flow_sigmas=True")
        self._mu, self._own = mu, sigmas
        self._set(num_inference_steps if sigmas is None else len(sigmas), device)

    def _shift(self, mu: float | None) -> None:
        """The shift is part of the levels."""

    def _curved(self, times: Array, steps: int) -> tuple[Array, Array]:
        config, curved = self.config, any(self.config[name] for name in CURVES)
        if not config.use_flow_sigmas or curved:
            times, sigmas = super()._curved(times, steps)
            if config.use_flow_sigmas and config.use_karras_sigmas:
                sigmas = sigmas / (sigmas + 1)
                times = sigmas * len(self)
            return times, sigmas
        shift = 1.0 if config.use_dynamic_shifting else config.flow_shift
        sigmas = flow_levels(len(self), steps, shift, whole=True, own=self._own)
        sigmas = flow_shifted(sigmas, math.exp(self._mu)) if config.use_dynamic_shifting and self._mu else sigmas
        sigmas = stretched_to(sigmas, config.shift_terminal) if config.shift_terminal else sigmas
        sigmas[0] -= 1e-6 if abs(sigmas[0] - 1) < 1e-6 else 0
        return sigmas * len(self), sigmas

    def _last(self, sigmas: Array) -> float:
        last = super()._last(sigmas)
        repeated = self.config.use_flow_sigmas or any(self.config[name] for name in CURVES)
        return float(sigmas[-1]) if last and repeated else last

    @property
    def by_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - follows from a setting here
        return not self.config.predict_x0

    def bounds(self) -> Bounds:
        return Bounds() if self.by_noise else super().bounds()

    def solver(self, index: int, options: StepOptions) -> Solver:
        config = self.config
        return partial(
            unipc,
            order=config.solver_order,
            bh1=config.solver_type == "bh1",
            lower_order_final_sigma=math.inf if config.lower_order_final else -1.0,
            of_noise=self.by_noise,
            uncorrected=[i - index for i in config.disable_corrector],
        )

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return self._step(model_output, timestep, sample, return_dict)


class DEISMultistepScheduler(IntegratedScheduler):
    """`deis`, of order 1 to 3."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        **THRESHOLD,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
        **NO_CURVES,
        **FLOW,
        **SPACING,
        **SHIFT,
    }
    ALIASES: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {
        "algorithm_type": (("deis",), ("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": (("logrho",), ("midpoint", "heun", "bh1", "bh2"), "logrho"),
    }

    def set_timesteps(self, num_inference_steps: int, device: Device = None, mu: float | None = None) -> None:
        """List the entries of a run of so many steps; `mu` is for dynamic shifting."""
        self._set(num_inference_steps, device, None, mu)

    def _last(self, sigmas: Array) -> float:
        repeated = self.config.use_flow_sigmas or any(self.config[name] for name in CURVES)
        return float(sigmas[-1]) if repeated else float(self._trained[0])

    def solver(self, index: int, options: StepOptions) -> Solver:
        orders = multistep_orders(len(self.timesteps), self.config.solver_order, self.config.lower_order_final)
        return partial(deis, orders=orders[index:])

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return self._step(model_output, timestep, sample, return_dict)
