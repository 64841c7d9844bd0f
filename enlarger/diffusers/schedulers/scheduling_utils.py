"""What all schedulers do: keep settings, count the entries of their list, and step by one of our solvers."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.types import Device

from enlarger.checkpoint.components import SCHEDULER_CONFIG_NAME
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusers.call.arguments import ArgumentError, MissingFile
from enlarger.diffusers.pipelines.pipeline_output import SchedulerOutput
from enlarger.diffusers.schedulers.config import ConfigMethods, SchedulerConfig, stated_in
from enlarger.diffusers.unsupported import leaves_out
from enlarger.diffusion.estimates import (
    Bounds,
    Coordinates,
    outside_precondition,
    variance_exploding,
    variance_preserving,
)
from enlarger.diffusion.listing import TINY, level_of, rescaled_to_zero, training_betas
from enlarger.diffusion.noise import Noise, PerSampleGenerators, SharedGenerator
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.stepper import Advance, Estimate, Stepper
from enlarger.errors import InputError, Unsupported
from enlarger.strict_json import Json, read_json

log = logging.getLogger(__name__)
Defaults = Mapping[str, object]
CURVES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
Generators = torch.Generator | Sequence[torch.Generator] | None
Timestep = float | Tensor  # an entry of the list
StepOptions = Mapping[str, float]  # what the `step` of a class takes beside the usual
StepResult = SchedulerOutput | tuple[Tensor, ...]


@leaves_out("push_to_hub", "insides of configs", "formulas of a step")
class Scheduler(ConfigMethods):
    """The base of the classes, which differ in their defaults, their lists and their solver.

    A base class and not a table of functions, so that `isinstance`, `type(pipe.scheduler).from_config` and the class
    name in saved files mean what people expect. A step drives a solver of `enlarger.diffusion.solvers`, which knows
    latents as clean + sigma * noise; `outside` says how they come and go here.
    """

    DEFAULTS: ClassVar[Defaults] = {}
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample")
    MULTISTEP: ClassVar[bool] = True  # a solver remembers earlier steps
    TINY: ClassVar[bool] = True  # at zero terminal SNR the last product is a tiny number, not 0
    ESTIMATES: ClassVar[bool] = False  # whether a step gives its denoised estimate
    BY_SLOPE: ClassVar[bool] = True  # see `Stepper`
    order: ClassVar[int] = 1  # entries of the list per step
    config_name: ClassVar[str | None] = SCHEDULER_CONFIG_NAME
    has_compatibles: ClassVar[bool] = True
    _deprecated_kwargs: ClassVar[tuple[str, ...]] = ()
    outside: Coordinates = staticmethod(variance_preserving)
    by_noise = False  # whether the noise estimate is integrated
    timesteps: Tensor
    sigmas: Tensor  # as diffusers shows them
    num_inference_steps: int | None

    def __init__(self, *values: object, **settings: object) -> None:
        named = dict(zip(self.DEFAULTS, values, strict=False)) | settings
        unknown = sorted(set(named) - set(self.DEFAULTS))
        if unknown or len(values) > len(self.DEFAULTS):
            raise TypeError(
                f"{type(self).__name__} has no {unknown or 'so many settings'}; it has {list(self.DEFAULTS)}"
            )
        self.config = SchedulerConfig(type(self).__name__, named, self.DEFAULTS)
        self._check()
        self._train()
        self.num_inference_steps = None
        self._restart()
        self._list_training()

    # ---- settings

    @classmethod
    def from_config(cls, config: Mapping[str, object], return_unused_kwargs: bool = False, **changes: object) -> Any:
        """From another scheduler's config, ours or diffusers', or a scheduler file's.

        Only what was stated carries over, not the other class's defaults: a PNDM file without `timestep_spacing` is
        "leading" for PNDM and "linspace" for Euler. Settings that this class does not know are kept for the next one.
        """
        stated = stated_in(config)
        known = {name: value for name, value in changes.items() if name in cls.DEFAULTS}
        unused = {name: value for name, value in changes.items() if name not in cls.DEFAULTS}
        made = cls(**{name: value for name, value in stated.items() if name in cls.DEFAULTS} | known)
        made.config = SchedulerConfig(cls.__name__, {**stated, **known, **made._replaced()}, cls.DEFAULTS)
        return (made, unused) if return_unused_kwargs else made

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **changes: object,
    ) -> Any:
        """From a `scheduler_config.json` in a local folder, with other settings by name."""
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        file = folder if folder.is_file() else folder / SCHEDULER_CONFIG_NAME
        if not file.is_file():
            raise MissingFile(
                f"{folder}: no {SCHEDULER_CONFIG_NAME}; give the folder that has it, or subfolder='scheduler'."
            )
        loading = ("cache_dir", "force_download", "local_files_only", "token", "revision", "proxies", "mirror")
        changes = {name: value for name, value in changes.items() if name not in loading}
        return cls.from_config(read_json(file), return_unused_kwargs, **changes)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: object) -> None:
        """Write a `scheduler_config.json` that diffusers reads, with the defaults too, as diffusers does."""
        self.save_config(save_directory, push_to_hub)

    def with_config(self, **changes: object) -> Self:
        """The same with other settings."""
        return self.from_config(self.config, False, **changes)

    def register_to_config(self, **changes: object) -> None:
        """Change settings in place; lists that were made stay as they are."""
        self.config = SchedulerConfig(type(self).__name__, {**self.config.explicit, **changes}, self.DEFAULTS)

    @property
    def compatibles(self) -> list[type["Scheduler"]]:
        """The classes that the config of this one can be given to."""
        from enlarger.diffusers.schedulers import SCHEDULER_CLASSES

        alone = ("LCMScheduler", "TCDScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
        return [kind for name, kind in SCHEDULER_CLASSES.items() if name not in alone]

    def to_dict(self) -> Json:
        """What a scheduler file holds: what was stated."""
        return {"_class_name": type(self).__name__, **self.config.explicit}

    def sampler(self) -> Sampler:
        """Our native sampler with these settings; Unsupported for one that only the face has."""
        name = type(self).__name__
        if self.own("clip_sample"):
            raise Unsupported(f"{name}: clip_sample is not available, latents are not bounded; set clip_sample=False")
        return sampler_from_config({key: self.config[key] for key in self.DEFAULTS} | {"_class_name": name})

    def own(self, name: str, default: object = None) -> Any:
        """A setting that this class has; one that was carried over from another class says nothing here."""
        return self.config[name] if name in self.DEFAULTS else default

    def __repr__(self) -> str:
        return repr(self.config)

    def __getattr__(self, name: str) -> Any:
        """A setting, which diffusers lets be read as an attribute, with a warning."""
        config = self.__dict__.get("config")
        if config is None or name.startswith("_") or name not in config:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"read scheduler.config.{name} in place of scheduler.{name}", FutureWarning, stacklevel=2)
        return config[name]

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def _check(self) -> None:
        """Refuse settings that contradict each other."""
        if sum(bool(self.own(name)) for name in CURVES) > 1:
            raise ArgumentError(f"only one of {', '.join(CURVES)} can be True")

    def _replaced(self) -> Json:
        """Settings that this class reads as others."""
        return {}

    # ---- training schedule

    def _train(self) -> None:
        """The betas, and what follows from them, as float32 tensors (T,)."""
        config = self.config
        if config["trained_betas"] is not None:
            self.betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        else:
            kind, ends = config["beta_schedule"], (config["beta_start"], config["beta_end"])
            try:
                self.betas = training_betas(kind, *ends, config["num_train_timesteps"])
            except InputError as error:
                raise NotImplementedError(str(error)) from error
        rescale = bool(self.own("rescale_betas_zero_snr"))
        self.betas = rescaled_to_zero(self.betas) if rescale else self.betas
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, 0)
        if rescale and self.TINY:
            self.alphas_cumprod[-1] = TINY
        self._trained = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5

    def _list_training(self) -> None:
        """The lists before `set_timesteps`: all training times."""
        count = int(self.config["num_train_timesteps"])
        self.timesteps = torch.arange(count - 1, -1, -1, dtype=torch.float32)
        self.sigmas = torch.cat([self._trained.flip(0), torch.zeros(1)])

    def level(self, timestep: int) -> Tensor:
        """The noise level of a training time, as a float64 scalar."""
        return level_of(self.alphas_cumprod[timestep])

    # ---- the list

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which entry of the list a run starts."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Timestep, schedule_timesteps: Tensor | None = None) -> int:
        """Where a timestep is listed: its second place, if it has two."""
        listed = self.timesteps if schedule_timesteps is None else schedule_timesteps
        places = (listed == torch.as_tensor(timestep).to(listed.device)).nonzero()
        return int(places[1 if len(places) > 1 else 0])

    def _restart(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._stepper: Stepper | None = None
        self._awaited: Tensor | None = None  # the level of the guess that the next call is for

    def _use(self, timesteps: Tensor, sigmas: Tensor, device: Device = None) -> None:
        self.timesteps = timesteps.to(device) if device is not None else timesteps
        self.sigmas = sigmas.float()
        self._restart()

    def _index(self, timestep: Timestep) -> int:
        if self._step_index is None:
            found = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if found is None else found
        return self._step_index

    def levels(self, begin: int = 0) -> Tensor:
        """The list's noise levels from an entry on, clean + sigma * noise, float64."""
        return self.sigmas[begin:].double()

    def run_levels(self, begin: int, stop: int) -> Tensor:
        """The noise levels of the calls from an entry to before another, and the one that the last reaches."""
        return self.levels()[begin : stop + 1]

    def called_at(self, timestep: Timestep) -> Tensor:
        """The noise level of the latents that the network is called with next."""
        return self.levels()[self._index(timestep)] if self._awaited is None else self._awaited

    # ---- stepping

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The latents as the network takes them."""
        if self.outside is not variance_exploding:
            return sample
        self.is_scale_input_called = True
        return self._shrunk(sample, self.called_at(timestep))

    def _shrunk(self, sample: Tensor, sigma: Tensor) -> Tensor:
        return sample / float((sigma**2 + 1) ** 0.5)

    def _run_solver(self, timestep: Timestep, options: StepOptions) -> Stepper:
        """The solver from the current entry on, or, if it remembers nothing, over one step."""
        index = self._index(timestep)
        levels = self.levels(index) if self.MULTISTEP else self.levels(index)[:2]
        return Stepper(self.solver(index, options), levels, self.BY_SLOPE)

    def solver(self, index: int, options: StepOptions) -> Solver:
        """The solver of a run that starts at an entry of the list."""
        raise NotImplementedError

    def advance(self, timestep: Timestep, x: Tensor, estimate: Estimate, noise: Noise, options: StepOptions) -> Advance:
        """One call of the network answered, on latents that are clean + sigma * noise."""
        if self._stepper is None:
            self._stepper = self._run_solver(timestep, options)
        done = self._stepper.advance(x, estimate, noise)
        self._awaited = done.sigma if done.inside else None
        if not done.inside and not self.MULTISTEP:
            self._stepper = None
        if self._step_index is not None:
            self._step_index += 1
        return done

    def bounds(self) -> Bounds:
        """What estimates are kept in."""
        config = self.config
        if self.own("thresholding"):
            return Bounds(quantile=config["dynamic_thresholding_ratio"], most=config["sample_max_value"])
        return Bounds(config["clip_sample_range"]) if self.own("clip_sample") else Bounds()

    def precondition(self, time: Callable[[], Tensor]) -> Precondition:
        """What a network's output means in a run, in which it is told `time`."""
        return outside_precondition(self.checked_prediction(), self.outside, time)

    def checked_prediction(self) -> str:
        """What the network predicts, if a step of this class can be taken with it."""
        prediction = str(self.config["prediction_type"])
        if prediction not in self.PREDICTIONS:
            raise self._unknown(prediction)
        return prediction

    def _estimate(self, output: Tensor, called: Tensor) -> Estimate:
        """Denoised estimates from a raw output."""
        prediction, bounds = self.checked_prediction(), self.bounds()
        scalings = outside_precondition(prediction, self.outside, by_noise=self.by_noise)

        def denoised(x: Tensor, sigma: Tensor) -> Tensor:
            scale = scalings(sigma if prediction == "epsilon" else called)  # with churn they differ
            return bounds(x * scale.skip + output * scale.output)

        return denoised

    def _unknown(self, prediction: str) -> Exception:
        said = f"prediction_type is {prediction!r}, expected one of {', '.join(self.PREDICTIONS)}"
        return ArgumentError(said) if prediction != "sample" else NotImplementedError(said)

    def _step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool, generator: Generators = None,
        noise: Tensor | None = None, **options: float,
    ) -> StepResult:  # fmt: skip
        """What `step` does in every class."""
        found = self._after_step(model_output, timestep, sample, generator, noise, options)
        return found if return_dict else found.to_tuple()

    def _after_step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators,
        noise: Tensor | None,
        options: StepOptions,
    ) -> SchedulerOutput:
        called = self.called_at(timestep)
        doubled = self.MULTISTEP and sample.device.type != "mps"  # estimates of high levels and of low ones meet
        dtype = torch.float64 if doubled else torch.float32
        x = sample.to(dtype) * self.outside(called)
        estimate = self._estimate(self._predicted(model_output, sample).to(dtype), called)
        done = self.advance(timestep, x, estimate, drawn_as(model_output, generator, noise), options)
        latents = (done.x / self.outside(done.sigma)).to(sample.dtype)
        return SchedulerOutput(latents, done.denoised if self.ESTIMATES else None)

    def _predicted(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The part of an output that is the prediction."""
        return model_output

    # ---- training

    def _levels_for(self, timesteps: Tensor) -> Tensor:
        """The noise level of each timestep that noise shall be added for."""
        if self._begin_index is None:
            places = [self.index_for_timestep(t) for t in timesteps]
        else:
            places = [self._begin_index if self._step_index is None else self._step_index] * len(timesteps)
        return self.levels()[places]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The latents with the noise of their timesteps."""
        sigma = self._levels_for(timesteps).reshape(-1, *[1] * (original_samples.ndim - 1))
        scale = self.outside(sigma)
        like = original_samples
        return (1 / scale).to(like) * original_samples + (sigma / scale).to(like) * noise

    def _velocity(self, sample: Tensor, noise: Tensor, places: Tensor | list[int]) -> Tensor:
        product = self.alphas_cumprod.to(sample.device, sample.dtype)[places].reshape(-1, *[1] * (sample.ndim - 1))
        return product.sqrt() * noise - (1 - product).sqrt() * sample


def drawn_as(output: Tensor, generator: Generators, given: Tensor | None = None) -> Noise:
    """Noise drawn in the precision and on the device of a network's output, or given."""
    source = PerSampleGenerators(tuple(generator)) if isinstance(generator, Sequence) else SharedGenerator(generator)

    def draw(like: Tensor) -> Tensor:
        return (
            source(torch.empty_like(like, dtype=output.dtype, device=output.device)) if given is None else given
        ).to(like)

    return draw
