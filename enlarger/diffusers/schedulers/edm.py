"""Schedulers of networks preconditioned as in EDM (Karras et al. 2022)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.dpm import second_place_or_last
from enlarger.diffusers.schedulers.k_diffusion import KDiffusionScheduler
from enlarger.diffusers.schedulers.scheduling_utils import Defaults, Generators, StepOptions, StepResult, Timestep
from enlarger.diffusion import precondition
from enlarger.diffusion.listing import sigma_curve
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers.churn import Churn, euler_churned
from enlarger.diffusion.solvers.dpm_orders import Integration, dpm_multistep, multistep_orders
from enlarger.diffusion.stepper import Estimate

EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
}


class EDMEulerScheduler(KDiffusionScheduler):
    """`euler` for a network preconditioned as in EDM, told log(sigma) / 4."""

    DEFAULTS: ClassVar[Defaults] = {**EDM, "final_sigmas_type": "zero"}
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    def _check(self) -> None:
        if self.config.sigma_schedule not in ("karras", "exponential"):
            raise ArgumentError(f"sigma_schedule is {self.config.sigma_schedule!r}, expected karras or exponential")

    def _train(self) -> None:
        """There is no schedule of betas."""

    @property
    def init_noise_sigma(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        return (self.config.sigma_max**2 + 1) ** 0.5

    def _list_training(self) -> None:
        self._use_levels(self._levels_of(len(self) + 1), None)

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Any = None
    ) -> None:
        """List the levels of a run of so many steps; `sigmas` are shares 0..1 of the way between the ends."""
        self.num_inference_steps = num_inference_steps
        self._use_levels(self._levels_of(num_inference_steps or 0, sigmas), device)

    def _levels_of(self, steps: int, ramp: Any = None) -> Tensor:
        config = self.config
        ends = config.sigma_max, config.sigma_min
        if config.sigma_schedule == "exponential" and steps == 1:
            ends = ends[1], ends[1]  # as in diffusers, which counts these from the lowest
        return torch.from_numpy(sigma_curve(config.sigma_schedule, *ends, steps, config.rho, ramp)).float()

    def _use_levels(self, levels: Tensor, device: Device) -> None:
        kind = self.config.final_sigmas_type
        if kind not in ("zero", "sigma_min"):
            raise ArgumentError(f"final_sigmas_type is {kind!r}, expected zero or sigma_min")
        last = levels[-1:] if kind == "sigma_min" else torch.zeros(1)
        self._use(0.25 * levels.log(), torch.cat([levels, last]), device)

    def _shrunk(self, sample: Tensor, sigma: Tensor) -> Tensor:
        return self.precondition_inputs(sample, sigma)

    def precondition_inputs(self, sample: Tensor, sigma: Timestep) -> Tensor:
        """The latents as the network takes them."""
        return sample * float(precondition.karras(self.config.sigma_data)(torch.as_tensor(sigma).double()).input)

    def precondition_noise(self, sigma: Timestep) -> Tensor:
        """What the network is told of a level."""
        return precondition.karras()(torch.as_tensor(sigma)).time

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: Timestep) -> Tensor:
        """The denoised estimate."""
        scale = self._scalings(torch.as_tensor(sigma).double())
        return sample * scale.skip + model_output * scale.output

    def _scalings(self, sigma: Tensor) -> precondition.Scalings:
        scale = precondition.karras(self.config.sigma_data)(sigma)
        velocity = self.checked_prediction() == "v_prediction"
        return replace(scale, output=-scale.output) if velocity else scale

    def precondition(self, time: Callable[[], Tensor]) -> precondition.Precondition:
        return lambda sigma: replace(self._scalings(sigma), time=time())

    def _estimate(self, output: Tensor, called: Tensor) -> Estimate:
        self.checked_prediction()
        bounds = self.bounds()
        return lambda x, sigma: bounds(self.precondition_outputs(x, output, sigma))

    def solver(self, index: int, options: StepOptions) -> Solver:
        return partial(euler_churned, churn=Churn(**options, steps=len(self.sigmas) - 1))

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
    ) -> StepResult:  # fmt: skip
        """The latents after a step, from the network's output, or from a denoised estimate."""
        self._step_checked(timestep)
        churn = {"amount": s_churn, "least": s_tmin, "most": s_tmax, "scale": s_noise}
        self._given = pred_original_sample
        return self._step(model_output, timestep, sample, return_dict, generator, None, **churn)


class EDMDPMSolverMultistepScheduler(EDMEulerScheduler):
    """`dpmpp_2m` for a network preconditioned as in EDM."""

    DEFAULTS: ClassVar[Defaults] = {
        **EDM,
        "solver_order": 2,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    }
    MULTISTEP: ClassVar[bool] = True
    ESTIMATES: ClassVar[bool] = False

    def _check(self) -> None:
        known = {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun")}
        others = {"algorithm_type": ("deis",), "solver_type": ("logrho", "bh1", "bh2")}
        for name, values in known.items():
            if self.config[name] not in (*values, *others[name]):
                raise NotImplementedError(f"{name} is {self.config[name]!r}, expected one of {', '.join(values)}")
            if self.config[name] in others[name]:
                self.register_to_config(**{name: values[0]})

    def _list_training(self) -> None:
        self._use_levels(self._levels_of(len(self)), None)

    def index_for_timestep(self, timestep: Timestep, schedule_timesteps: Tensor | None = None) -> int:
        return second_place_or_last(self.timesteps if schedule_timesteps is None else schedule_timesteps, timestep)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        """List the levels of a run of so many steps."""
        super().set_timesteps(num_inference_steps, device)

    def _use_levels(self, levels: Tensor, device: Device) -> None:
        super()._use_levels(levels, device)
        if self.config.final_sigmas_type == "sigma_min":
            self.sigmas[-1] = self.config.sigma_min

    def solver(self, index: int, options: StepOptions) -> Solver:
        config = self.config
        euler = config.euler_at_final or config.final_sigmas_type == "zero"
        orders = multistep_orders(len(self.timesteps), config.solver_order, config.lower_order_final, euler)
        eta = 1.0 if config.algorithm_type == "sde-dpmsolver++" else 0.0
        if eta and 3 in orders[index + 2 :]:
            raise ArgumentError("'sde-dpmsolver++' has no third order here; set solver_order=2")
        integration = Integration(eta=eta, heun=config.solver_type == "heun")
        return partial(dpm_multistep, orders=orders[index:], integration=integration)

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return self._step(model_output, timestep, sample, return_dict, generator)
