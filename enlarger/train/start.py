"""How each task starts from a base: the network that learns, its objective, and what is written of it at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.families import ModelKind
from enlarger.diffusion import precondition
from enlarger.diffusion.sampler import Sampler
from enlarger.errors import InputError, Unsupported
from enlarger.nn.unet import UNet
from enlarger.requests import X2_MAX_NOISE_LEVEL
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json
from enlarger.tasks.auxiliary.depth_estimator import DepthEstimator
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.tasks.loading.load import as_checkpoint, kind_of
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, build_stable_diffusion
from enlarger.train.captions import Captions
from enlarger.train.data.cache import TensorCache, weights_digest
from enlarger.train.draws import draws_of_step
from enlarger.train.lora import with_lora
from enlarger.train.noising import KarrasNoise, ScheduledNoise
from enlarger.train.objectives import DepthMap, Extras, MaskedPicture, NoisyLatents, NoisyPixels, Objective, nothing
from enlarger.train.options import WITHOUT, LossOptions, SampleOptions, Task, TrainOptions

X2_FREQUENCIES, X2_FREQUENCY_STD = 64, 2.0  # of the noise level's embedding, as the original's
X2_NOISE_LEVEL = 0.6  # the most that the original offers
PREDICTING_SAMPLES = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers that have the prediction `sample` in diffusers; PNDM's and Euler's raise."""
KEPT_OF_SCHEDULER = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
DEPTH_PARTS = ("depth_estimator", "feature_extractor")


@dataclass(frozen=True, eq=False)
class Training:
    """What a task trains: `module` learns by `objective`; `components` are the result's, but for the trained weights.

    `size_multiple` divides the sides of its pictures.
    """

    module: nn.Module
    objective: Objective
    components: PipelineComponents
    sampler: Sampler
    size_multiple: int
    kind: ModelKind

    @property
    def max_noise_level(self) -> float | None:
        """The most noise on an upscaler's input, as its task counts it."""
        extras = self.objective.extras
        return extras.max_noise_level if isinstance(extras, NoisyPixels | NoisyLatents) else None


@dataclass(frozen=True)
class TaskSpec:
    """Which models a task may start from, by the service's names of kinds, and what its result is."""

    bases: Mapping[str, str | None]  # kind to the pipeline class of the result; None: the base's
    channels: Callable[[int], int] | None = None  # input channels of the result, of latent channels; None: the base's
    index: Json = field(default_factory=dict[str, object])  # what else model_index.json says


INPAINT, XL_INPAINT = "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"
TASKS: Mapping[Task, TaskSpec] = {
    "text-to-image": TaskSpec({"sd": None, "sdxl": None}),
    "lora": TaskSpec({"sd": None, "sdxl": None}),
    "inpainting": TaskSpec(
        {"sd": INPAINT, "sd-inpaint": None, "sdxl": XL_INPAINT, "sdxl-inpaint": None}, lambda latent: 2 * latent + 1
    ),
    "depth": TaskSpec({"sd": "StableDiffusionDepth2ImgPipeline", "depth": None}, lambda latent: latent + 1),
    "upscaler-x4": TaskSpec({"x4": None}),
    "upscaler-x2": TaskSpec({"x2": None}),
}


def start(options: TrainOptions, device: torch.device) -> Training:
    """Read the base and make of it what is trained.

    Raises InputError and Unsupported, before any step, for options that contradict the base or each other.
    """
    check_options(options)
    components = replace(as_checkpoint(options.model), mmap=False).open(torch.float32)  # weights that will change
    kind = kind_of(components, str(options.model))
    check_base(options.task, kind, str(options.model))
    base = _with_objective(components, options)
    training = (
        _x2(base, kind, options, device) if options.task == "upscaler-x2" else _latent(base, kind, options, device)
    )
    if options.task == "upscaler-x2":
        _check_x2_sides(options, training.size_multiple)
    if options.resolution % training.size_multiple:
        raise InputError(
            f"resolution is {options.resolution}, expected a multiple of {training.size_multiple} for this model"
        )
    return training


def _check_x2_sides(options: TrainOptions, multiple: int) -> None:
    """Raises InputError for sides that the x2 upscaler's network cannot halve so often."""
    least = 4 * multiple if options.data_settings.buckets else 2 * multiple  # a bucket's shorter side is half as long
    if options.resolution < least:
        squares = "" if not options.data_settings.buckets else f", or {2 * multiple} with squares (--no-buckets)"
        raise InputError(f"resolution is {options.resolution}, expected at least {least} for this model{squares}")


def check_options(options: TrainOptions) -> None:
    """Raises InputError for options that exclude each other, whatever the base."""
    loss, task = options.loss, options.task
    if loss.zero_terminal_snr and task == "lora":
        raise InputError(
            "zero_terminal_snr changes the schedule, which a LoRA cannot; train text-to-image, or leave it out"
        )
    usual = LossOptions()
    without_effect = sorted(name for name in WITHOUT[task] if getattr(loss, name) != getattr(usual, name))
    without_effect += ["estimator"] if task != "depth" and options.estimator is not None else []
    asked = options.data_settings
    if options.cache is not None and not asked.center_crop:
        raise InputError(
            "the cache keeps pictures as they are cut, and cuts at random places never come again; add --center-crop, "
            "or leave the cache out"
        )
    if without_effect:
        raise InputError(f"{without_effect[0]} has no meaning for {task}; leave it out")
    _check_samples(options.samples)
    if task == "upscaler-x2" and loss.max_noise_level is not None and loss.max_noise_level > X2_MAX_NOISE_LEVEL:
        raise InputError(
            f"max_noise_level is {loss.max_noise_level:g}, expected a level from 0 to {X2_MAX_NOISE_LEVEL:g} for "
            f"{task}, where {X2_NOISE_LEVEL:g} is usual"
        )


def _check_samples(samples: SampleOptions) -> None:
    """Raises InputError where it is said how samples are made, but not that they are."""
    usual = SampleOptions()
    names = ("sample_prompts", "sample_steps", "sample_guidance")
    given = next((name for name in names if getattr(samples, name) != getattr(usual, name)), None)
    if samples.sample_every is None and given is not None:
        raise InputError(f"{given} has no effect without samples; add --sample-every, or leave it out")


def check_base(task: Task, kind: ModelKind, name: str) -> None:
    """Raises Unsupported for a base that a task cannot start from."""
    bases = TASKS[task].bases
    if kind.service_kind in bases:
        return
    fitting = next((name for name, spec in TASKS.items() if kind.service_kind in spec.bases), None)
    advice = "" if fitting is None else f"; enlarger train {fitting} starts from it"
    raise Unsupported(f"{name}: holds {kind.label}, which enlarger train {task} cannot start from{advice}")


def with_input_channels(unet: UNet, channels: int) -> UNet:
    """The UNet with more input channels, whose weights are zero; the others stay the given one's own.

    Raises Unsupported where it already has others than its latents'.
    """
    found = unet.config.in_channels
    if channels == found:
        return unet
    if channels < found:
        raise Unsupported(f"the base's UNet takes {found} channels, expected {channels} or fewer; give its own base")
    with torch.device("meta"):
        child = UNet(replace(unet.config, in_channels=channels))
    weights = unet.state_dict()
    narrow: Tensor = weights["conv_in.weight"]
    wide = narrow.new_zeros(narrow.shape[0], channels, *narrow.shape[2:])
    wide[:, :found] = narrow
    child.load_state_dict(weights | {"conv_in.weight": wide}, assign=True)
    return child


def _with_objective(components: PipelineComponents, options: TrainOptions) -> PipelineComponents:
    """The base with the prediction and the schedule that are asked for in its scheduler's file."""
    loss, config = options.loss, dict(components.components["scheduler"])
    if loss.prediction is not None:
        config["prediction_type"] = loss.prediction
    predicts_noise = config.get("prediction_type", "epsilon") == "epsilon"
    if predicts_noise and (loss.zero_terminal_snr or config.get("rescale_betas_zero_snr")):
        whose = "zero_terminal_snr" if loss.zero_terminal_snr else "the base's schedule, which ends in pure noise,"
        raise InputError(
            f"{whose} needs another prediction than epsilon, since at its last time the input is the noise itself; "
            "add --prediction v_prediction"
        )
    if loss.zero_terminal_snr:
        config = _ddim(config) | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif loss.prediction == "sample" and config.get("_class_name") not in PREDICTING_SAMPLES:
        config = _ddim(config) | {"steps_offset": 1}
    return replace(components, components={**components.components, "scheduler": config})


def _ddim(config: Mapping[str, object]) -> dict[str, object]:
    """A scheduler's file with the same betas and prediction, for DDIM, which has them all in diffusers too."""
    kept = {name: config[name] for name in KEPT_OF_SCHEDULER if name in config}
    return kept | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}


def _latent(base: PipelineComponents, kind: ModelKind, options: TrainOptions, device: torch.device) -> Training:
    """Every task on a UNet with a schedule."""
    spec = TASKS[options.task]
    model = build_stable_diffusion(base, Runtime.here(device), str(options.model))
    unet = model.latent_diffusion.unet
    assert isinstance(unet, UNet)
    if unet.config.guidance_channels is not None:
        raise Unsupported(
            f"{model.name}: is distilled, its UNet takes the guidance scale; train the model that it was made of"
        )
    latent_channels = model.vae.config.latent_channels
    child: nn.Module = unet if spec.channels is None else with_input_channels(unet, spec.channels(latent_channels))
    child = with_lora(child, options.lora, options.seed) if options.task == "lora" else child.requires_grad_(True)
    captions = Captions(
        model.tokenizers,
        model.text_encoders,
        model.latent_diffusion.runtime,
        "with_sizes" if model.has_micro_conditioning else "normalised",
        options.loss.text_dropout,
        model.force_zeros_for_empty_prompt,
        model.latent_diffusion.unet_config.time_id_channels or 0,
        _cache(options, *model.text_encoders),
    )
    noising = ScheduledNoise(
        model.sampler.schedule, model.sampler.prediction, options.loss.offset_noise, options.loss.snr_gamma
    )
    extras, result = _extras(model, base, options)
    objective = Objective(
        replace(model.latent_diffusion, unet=child), noising, captions, extras, _cache(options, model.vae)
    )
    index = dict(result.index)
    if (pipeline_class := spec.bases[kind.service_kind]) is not None:
        index["_class_name"] = pipeline_class
    return Training(child, objective, replace(result, index=index), model.sampler, model.size_multiple, kind)


def _extras(
    model: StableDiffusion, base: PipelineComponents, options: TrainOptions
) -> tuple[Extras, PipelineComponents]:
    """What the task tells beside the text, and the parts of its result."""
    if options.task == "inpainting":
        return MaskedPicture(model.latent_diffusion), base
    if options.task == "depth":
        folder = base.path if options.estimator is None else options.estimator
        if not (folder / DEPTH_PARTS[0]).is_dir():
            raise InputError(
                f"{folder}: has no {DEPTH_PARTS[0]}; give --estimator, a folder of a depth model that has one"
            )
        estimator = DepthEstimator.from_folder(folder, torch.float32, model.latent_diffusion.runtime)
        return DepthMap(estimator), _with_depth_parts(base, folder)
    if options.task == "upscaler-x4":
        assert model.low_res_schedule is not None, "checked by its kind"
        level = _x4_noise_level(options, model)
        index = {**base.index, "max_noise_level": level}  # what enlarging with the result offers
        return NoisyPixels(model.low_res_schedule, level, model.vae.downsample_factor), replace(base, index=index)
    return nothing, base


def _x4_noise_level(options: TrainOptions, model: StableDiffusion) -> int:
    """The highest step of the input's noise. Raises InputError for one that its schedule lacks."""
    assert model.low_res_schedule is not None, "checked by its kind"
    asked = options.loss.max_noise_level
    level, last = model.max_noise_level if asked is None else asked, model.low_res_schedule.num_train_timesteps - 1
    if level != int(level) or level > last:
        raise InputError(
            f"max_noise_level is {level:g}, expected a whole number from 0 to {last}, the last step of the input's "
            "schedule"
        )
    return int(level)


def _with_depth_parts(base: PipelineComponents, folder: Path) -> PipelineComponents:
    """The parts of a depth model: those of its base, without its safety checker, and the estimator of a folder."""
    present = tuple(name for name in DEPTH_PARTS if (folder / name).is_dir())
    classes = {"depth_estimator": "DPTForDepthEstimation", "feature_extractor": "DPTImageProcessor"}
    kept = {name: value for name, value in base.index.items() if name in base.components or name.startswith("_")}
    parts = {name: ["transformers", classes[name]] for name in present}
    return replace(base, path=folder, index=kept | parts, skipped=present)


def _x2(base: PipelineComponents, kind: ModelKind, options: TrainOptions, device: torch.device) -> Training:
    """The x2 latent upscaler, on the objective of Karras et al. 2022."""
    parts, runtime = dict(base.components), Runtime.here(device)
    unet: nn.Module = parts["unet"].requires_grad_(True)
    parts["noise_frequencies"] = frequencies = _noise_frequencies(base, options.seed)
    frozen: Tensor = unet.get_submodule("time_proj").get_parameter("weight")
    frozen.requires_grad_(False)
    sampler = sampler_from_config(parts["scheduler"])
    latent_diffusion = LatentDiffusion(unet, parts["vae"], precondition.karras(), runtime)
    captions = Captions(
        (parts["tokenizer"],),
        (parts["text_encoder"],),
        runtime,
        "with_pooled",
        options.loss.text_dropout,
        cache=_cache(options, parts["text_encoder"]),
    )
    sigmas = sampler.schedule.sigmas
    level = X2_NOISE_LEVEL if options.loss.max_noise_level is None else options.loss.max_noise_level
    objective = Objective(
        latent_diffusion,
        KarrasNoise(float(sigmas[0]), float(sigmas[-1])),
        captions,
        NoisyLatents(latent_diffusion, frequencies, level),
        _cache(options, parts["vae"]),
    )
    multiple = parts["vae"].downsample_factor * parts["unet"].size_multiple
    return Training(unet, objective, replace(base, components=parts), sampler, multiple, kind)


def _cache(options: TrainOptions, *networks: nn.Module) -> TensorCache | None:
    """Where what these networks make is kept, if anywhere."""
    return None if options.cache is None else TensorCache(options.cache, weights_digest(*networks))


def _noise_frequencies(base: PipelineComponents, seed: int) -> Tensor:
    """The base's, or new ones: diffusers' folders lack them."""
    if "noise_frequencies" in base.components:
        return base.components["noise_frequencies"]
    draws = draws_of_step(seed, 0, [0])
    return X2_FREQUENCY_STD * draws.normal(torch.empty(1, X2_FREQUENCIES, 1))[0]


def trained_components(training: Training, module: nn.Module) -> PipelineComponents:
    """What is written: the base's parts around the trained network."""
    parts = {**training.components.components, "unet": module.eval().requires_grad_(False)}
    return replace(training.components, components=parts)
