"""What both pipelines share: their parts, reading and writing folders, devices, the progress bar, and decoding."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from enlarger.checkpoint.components import MODEL_INDEX_NAME, PipelineComponents
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.diffusers import image_processor
from enlarger.diffusers.arguments import ArgumentError, reject_unsupported
from enlarger.diffusers.output import PipelineOutput
from enlarger.diffusers.progress import ProgressBar, ProgressBarConfig, progress_bar_config
from enlarger.diffusers.schedulers import Scheduler, scheduler_from_config
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.runtime import DTYPES, Offload, Runtime
from enlarger.strict_json import read_json
from enlarger.tasks.result import decode_latents
from enlarger.text.tokenize import Tokenizer

FIXED_LOADING_OPTIONS = {"use_safetensors": True, "low_cpu_mem_usage": True}  # what loading always does
PRIVATE_ATTRIBUTES = ("_runtime", "_bar", "_sliced_vae", "_configs", "_settings", "_source", "_interrupt", "_adapters")


class Pipeline:
    """The base of the two pipelines.

    A base class, unlike elsewhere in this package: the classes must offer the same thirty methods under diffusers'
    names, and forwarding them one by one to a holder would be longer and say less. Unlike our tasks a pipeline is
    changed by its methods, as people expect of it; a call changes nothing.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[Any]]] = {}
    OPTIONAL_COMPONENTS: ClassVar[frozenset[str]] = frozenset()  # parts that may be None
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ()  # arguments that are not parts; model_index.json keeps them
    UPCAST: ClassVar[bool] = False  # whether the autoencoder's `force_upcast` is heeded
    vae: AutoencoderKL
    text_encoder: ClipText
    tokenizer: Tokenizer
    unet: Any
    scheduler: Scheduler

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        self._configs: dict[str, Any] = {}  # of parts that were read, as they were stated
        self._settings: dict[str, Any] = dict(settings or {})
        self._source: tuple[Path, Mapping[str, Any]] | None = None  # the folder that was read, and its index
        for name, component in components.items():
            setattr(self, name, component)
        self._runtime = Runtime(self.vae.decoder.conv_in.weight.device)
        self._bar = ProgressBarConfig()
        self._sliced_vae = False
        self._interrupt = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Parts can be swapped; anything else would have no effect and is refused."""
        kind = self.COMPONENT_TYPES.get(name)
        if kind is None and name not in PRIVATE_ATTRIBUTES:
            raise Unsupported(
                f"{name} cannot be set, nothing here reads it; the parts are {', '.join(self.COMPONENT_TYPES)}"
            )
        unwrapped = getattr(value, "_orig_mod", value)  # what torch.compile wrapped
        is_absent = value is None and name in self.OPTIONAL_COMPONENTS
        if kind is not None and not is_absent and not isinstance(unwrapped, kind):
            raise InputError(_wrong_component(name, value, kind))
        if name in self.COMPONENT_TYPES and unwrapped is not getattr(self, name, None):
            self._configs.pop(name, None)
        object.__setattr__(self, name, value)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None, variant: str | None = None, revision: str | None = None,
        local_files_only: bool = True,
        **options: Any,
    ) -> Self:  # fmt: skip
        """Read a local folder in diffusers' layout; nothing is downloaded. Precision is float32 unless stated.

        `options` may be parts, which then are not read, and `use_safetensors=True`, `low_cpu_mem_usage=True`, which is
        how it is done anyway. `revision` chooses what is downloaded, so a folder has but one. Others raise Unsupported.
        """
        del local_files_only, revision  # any value is honoured
        overrides = {name: options.pop(name) for name in (*cls.COMPONENT_TYPES, *cls.CONFIG_KEYS) if name in options}
        _check_loading_options(options)
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: no such folder, and nothing is downloaded here; fetch the model once with "
                f"`enlarger pull {path} --to FOLDER` and give that folder"
            )
        names = [name for name in cls._components_to_load(path) if name not in overrides]
        bundle = read_folder(path, variant, _parse_dtype(torch_dtype if dtype is None else dtype), names)
        return cls._from_bundle(bundle, overrides)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, *, torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None, config: str | Path | None = None, prediction_type: str | None = None,
        allow_pickle: bool = False, local_files_only: bool = True, **options: Any,
    ) -> Self:  # fmt: skip
        """Read a local file in the layout of the original code, of the family that this pipeline is for.

        `prediction_type` must be given for Stable Diffusion 2, whose files do not tell; `config` is a folder in
        diffusers' layout whose JSON files replace the bundled ones. Nothing is downloaded. `options` as in
        `from_pretrained`, `vae` and `text_encoder` may stand in for parts that the file lacks.
        """
        del local_files_only  # any value is honoured
        overrides = {name: options.pop(name) for name in (*cls.COMPONENT_TYPES, *cls.CONFIG_KEYS) if name in options}
        _check_loading_options(options)
        path = Path(pretrained_model_link_or_path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file, and nothing is downloaded here; give a local file")
        bundle = read_single_file(
            path,
            dtype=_parse_dtype(torch_dtype if dtype is None else dtype),
            prediction=prediction_type,
            config=config,
            allow_pickle=allow_pickle,
            vae=overrides.get("vae"),
            text_encoder=overrides.get("text_encoder"),
        )
        components = {name: part for name, part in bundle.components.items() if name in cls.COMPONENT_TYPES}
        missing = [
            n
            for n, kind in cls.COMPONENT_TYPES.items()
            if not (n in components or n in cls.OPTIONAL_COMPONENTS or kind is type(None))
        ]
        if missing:
            found = bundle.index.get("_class_name")
            raise CheckpointError(f"{path}: has no {', '.join(missing)} for {cls.__name__}; it is for a {found}")
        return cls._from_bundle(replace(bundle, components=components), overrides)

    @classmethod
    def _from_bundle(cls, bundle: PipelineComponents, overrides: Mapping[str, Any]) -> Self:
        """A pipeline of what was read and of the parts that were given instead."""
        absent = {
            name: None
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is type(None) or name in cls.OPTIONAL_COMPONENTS
        }
        settings = {name: bundle.index[name] for name in cls.CONFIG_KEYS if name in bundle.index}
        components = {
            name: scheduler_from_config(part) if issubclass(cls.COMPONENT_TYPES.get(name, object), Scheduler) else part
            for name, part in bundle.components.items()
        }
        arguments: dict[str, Any] = {**absent, **components, **settings, **overrides}
        pipeline = cls(**arguments)
        pipeline._configs.update(
            {name: config for name, config in bundle.network_configs.items() if name not in overrides}
        )
        pipeline._source = bundle.path, bundle.index
        return pipeline

    @classmethod
    def _components_to_load(cls, path: Path) -> list[str]:
        """The parts to read; optional ones only where the folder's index names them."""
        index = read_json(path / MODEL_INDEX_NAME) if (path / MODEL_INDEX_NAME).is_file() else {}
        listed = {name for name, value in index.items() if isinstance(value, list) and value != [None, None]}
        return [
            name
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is not type(None) and (name not in cls.OPTIONAL_COMPONENTS or name in listed)
        ]

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None,
        max_shard_size: int | str | None = None, push_to_hub: bool = False,
    ) -> None:  # fmt: skip
        """Write a folder that diffusers and `from_pretrained` read. An existing one is not written over."""
        if not safe_serialization or push_to_hub:
            raise Unsupported("weights are written as safetensors to a local folder; leave out the other options")
        index: dict[str, Any] = {
            "_class_name": type(self).__name__,
            **{name: [None, None] for name in self.COMPONENT_TYPES},
        }
        index |= self._settings
        if "safety_checker" in self.COMPONENT_TYPES:
            index["requires_safety_checker"] = False
        unwrapped = {name: getattr(part, "_orig_mod", part) for name, part in self.components.items()}
        present = {name: part for name, part in unwrapped.items() if part is not None}
        components = {
            name: part.to_dict() if isinstance(part, Scheduler) else part
            for name, part in present.items()
            if isinstance(part, nn.Module | Tokenizer | Scheduler)
        }
        no_source: tuple[Path, Mapping[str, Any]] = (Path(save_directory), {})
        path, source_index = no_source if self._source is None else self._source
        copied = [name for name in present if name not in components]  # networks of other packages
        copied += ["feature_extractor"] if copied else []
        index |= {name: source_index[name] for name in copied if name in source_index}
        missing = [name for name in copied if name not in source_index]
        if missing:
            warnings.warn(f"{', '.join(missing)} cannot be saved: only what lies in a folder is copied", stacklevel=2)
        bundle = PipelineComponents(path, index, components, self._configs, tuple(copied))
        save_folder(bundle, save_directory, max_shard_bytes=_parse_shard_size(max_shard_size), variant=variant)

    @classmethod
    def from_pipe(cls, pipeline: "Pipeline", **components: Any) -> Self:
        """A pipeline of another one's parts, which both share; `parts` replaces some or adds what is missing."""
        shared = {name: part for name, part in pipeline.components.items() if name in cls.COMPONENT_TYPES}
        settings = {name: value for name, value in pipeline.config.items() if name in cls.CONFIG_KEYS}
        absent = {
            name: None
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is type(None) or name in cls.OPTIONAL_COMPONENTS
        }
        arguments: dict[str, Any] = {**absent, **shared, **settings, **components}
        new_pipeline = cls(**arguments)
        new_pipeline._configs.update(
            {name: config for name, config in pipeline._configs.items() if name not in components}
        )
        return new_pipeline

    @property
    def components(self) -> dict[str, Any]:
        """The parts, to make other pipelines of: `Other(**pipe.components)` shares the weights."""
        return {name: getattr(self, name) for name in self.COMPONENT_TYPES}

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that are not parts, as model_index.json keeps them."""
        return MappingProxyType(self._settings)

    @property
    def vae_scale_factor(self) -> int:
        return self.vae.downsample_factor

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are: with offloading that is the CPU."""
        return self._runtime.device if self._runtime.offload == "none" else torch.device("cpu")

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device, a precision, or both."""
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = value
        if device is not None and self._runtime.offload != "none":
            raise Unsupported("the pipeline offloads to the CPU and moves parts itself; make a new one to undo that")
        for network in self._networks():
            network.to(device=device, dtype=dtype)
        if device is not None:
            self._runtime = Runtime(torch.device(device))
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep each network on the CPU except while it works."""
        self._enable_offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep each layer on the CPU except while it works: least memory, slowest."""
        self._enable_offload("sequential", gpu_id, device)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Changes nothing, and warns so: attention is computed memory-efficiently in any case."""
        _warn_no_effect("attention slicing")

    def disable_attention_slicing(self) -> None:
        """Attention is never sliced."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Changes nothing, and warns so: torch's memory-efficient attention is always on, xformers is not needed."""
        reject_unsupported({"attention_op": attention_op}, {"attention_op": "attention is torch's; leave it out"})
        _warn_no_effect("xformers attention")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """xformers is never used."""

    def enable_vae_slicing(self) -> None:
        """Decode one picture of a batch at a time."""
        self._sliced_vae = True

    def disable_vae_slicing(self) -> None:
        """Decode a batch at once."""
        self._sliced_vae = False

    def enable_vae_tiling(self) -> None:
        raise Unsupported("the autoencoder does not run in tiles; use enable_vae_slicing, float16, or smaller pictures")

    def disable_vae_tiling(self) -> None:
        """The autoencoder never runs in tiles."""

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        raise Unsupported(
            "FreeU is not available; diffusers' does nothing to the x2 upscaler's network either. For less smooth "
            "results use more steps or a lower guidance_scale"
        )

    def disable_freeu(self) -> None:
        """FreeU is never on."""

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        raise Unsupported("the attention projections cannot be fused here; use torch.compile on pipe.unet for speed")

    def set_progress_bar_config(self, **settings: Any) -> None:
        """`disable`, `desc` and `leave`, as tqdm names them; others raise."""
        self._bar = progress_bar_config(settings)

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> ProgressBar:
        return ProgressBar(self._bar, iterable, total)

    def decode_latents(self, latents: Tensor) -> np.ndarray[Any, Any]:
        """Latents (B, 4, h, w) to pictures (B, H, W, 3) in 0..1."""
        return image_processor.postprocess(self._decode(latents), "np")

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """Arrays in 0..1 to PIL images."""
        return image_processor.numpy_to_pil(images)

    def _scaled(self, kwargs: Mapping[str, Any] | None) -> Self:
        """The same pipeline with its adapters' scale changed for one call."""
        unknown = sorted(set(kwargs or {}) - {"scale"})
        if unknown:
            raise Unsupported(f"cross_attention_kwargs has {', '.join(unknown)}; it takes `scale` of loaded adapters")
        if not kwargs:
            return self
        other: Any = copy(self)
        for name, network in other._with_lora_scale(float(kwargs["scale"])).items():
            object.__setattr__(other, name, network)
        return other

    def _networks(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    def _enable_offload(self, offload: Offload, gpu_id: int | None, device: Any) -> None:
        if device is None:
            if not torch.accelerator.is_available():
                raise Unsupported("found no accelerator to load parts onto; without one there is nothing to offload")
            device = torch.accelerator.current_accelerator()
        target_device = torch.device(device)
        target_device = torch.device(target_device.type, gpu_id) if gpu_id is not None else target_device
        for network in self._networks():
            network.to("cpu")
        self._runtime = Runtime(target_device, offload)

    def _decode(self, latents: Tensor) -> Tensor:
        size = 1 if self._sliced_vae else len(latents)
        batches: list[Tensor] = list(torch.split(latents, size))
        upcast = self.UPCAST and self.vae.config.force_upcast
        return torch.cat([decode_latents(self.vae, batch, self._runtime, upcast) for batch in batches])

    def _postprocess(self, latents: Tensor, output_type: str) -> Any:
        """The pictures of float32 latents, or the latents, in the pipeline's precision."""
        if output_type == "latent":
            return latents.to(self.dtype)
        decoded = self._decode(latents)
        return image_processor.postprocess(decoded.to(self.dtype) if output_type == "pt" else decoded, output_type)


def make_output(images: Any, return_dict: bool, as_tuple: tuple[Any, ...]) -> Any:
    return PipelineOutput(images) if return_dict else as_tuple


def accept_lora_scale(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a pipeline's call take the adapters' scale, `cross_attention_kwargs={"scale": 0.5}`."""

    @wraps(call)
    def run(self: Any, *args: Any, cross_attention_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        return call(self._scaled(cross_attention_kwargs), *args, **kwargs)

    return run


def _wrong_component(name: str, value: Any, kind: type[Any]) -> str:
    found = f"{type(value).__module__}.{type(value).__name__}"
    if kind is type(None):
        return f"{name} is a {found}, expected None: enlarger has no such part"
    if name == "scheduler":
        return f"scheduler is a {found}, expected one of enlarger.diffusers; make it by from_config(scheduler.config)"
    return f"{name} is a {found}, expected {kind.__module__}.{kind.__name__}; read it with from_pretrained"


def _warn_no_effect(what: str) -> None:
    warnings.warn(
        f"{what} changes nothing here: attention always runs through torch's memory-efficient "
        "scaled_dot_product_attention",
        stacklevel=3,
    )


def _check_loading_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in FIXED_LOADING_OPTIONS and value in (None, FIXED_LOADING_OPTIONS[name]):
            continue
        raise Unsupported(
            f"from_pretrained has no {name}={value!r}; it reads safetensors of a local folder with torch_dtype and "
            "variant, and takes parts by name. For a device use .to(...)"
        )


def _parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"torch_dtype is {dtype!r}, expected a torch.dtype or one of {', '.join(DTYPES)}")
    return torch.float32 if dtype is None else DTYPES[dtype]


def _parse_shard_size(size: int | str | None) -> int:
    """Bytes of "5GB" or "500MB"."""
    if size is None or isinstance(size, int):
        return 10_000_000_000 if size is None else size
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3}
    number, unit = size[:-2].strip(), size[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise ArgumentError(f"max_shard_size is {size!r}, expected bytes or a size such as '5GB'")
    return int(float(number) * units[unit])
