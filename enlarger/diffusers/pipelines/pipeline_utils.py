"""What both pipelines share: their parts, reading and writing folders, devices, the progress bar, and decoding."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.types import Device

from enlarger.checkpoint.components import MODEL_INDEX_NAME, PipelineComponents
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.diffusers.call import pictures
from enlarger.diffusers.call.adapter_scale import ScaledCalls
from enlarger.diffusers.call.arguments import ArgumentError, MissingFile, UnfitFile, with_value_errors
from enlarger.diffusers.call.progress import ProgressBar, ProgressBarConfig, progress_bar_config
from enlarger.diffusers.call.run_state import RunState
from enlarger.diffusers.call.steps_by_hand import StepMethods
from enlarger.diffusers.loaders.loading import Loading, read_options
from enlarger.diffusers.loaders.saving import Saved
from enlarger.diffusers.models.components import (
    Compiled,
    as_component,
    fits,
    is_kept,
    native_of,
    parse_shard_size,
    wrong_component,
)
from enlarger.diffusers.models.foreign import OtherAutoencoder, is_other_autoencoder, read_image_encoder
from enlarger.diffusers.models.modules import model_view
from enlarger.diffusers.pipelines.described import DescribedParts
from enlarger.diffusers.pipelines.memory import MemoryMethods
from enlarger.diffusers.schedulers import Scheduler, scheduler_from_config
from enlarger.diffusers.unsupported import leaves_out, refuse
from enlarger.diffusion.listing import Array
from enlarger.errors import CheckpointError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import Json, read_json
from enlarger.tasks.latent_diffusion.latent_diffusion import decode_latents
from enlarger.text.tokenize import Tokenizer

log = logging.getLogger(__name__)


@leaves_out("IP-Adapter", "push_to_hub", "downloads", "caches of layers", "insides of configs")
class DiffusionPipeline(RunState, ScaledCalls, MemoryMethods, StepMethods, DescribedParts):
    """The base of the pipelines; reading with it gives the class that the folder names.

    A base class, unlike elsewhere in this package: the classes must offer the same thirty methods under diffusers'
    names, and forwarding them one by one to a holder would be longer and say less. Unlike our tasks a pipeline is
    changed by its methods, as people expect of it; a call changes nothing.
    """

    OPTIONAL_COMPONENTS: ClassVar[frozenset[str]] = frozenset()  # parts that may be None
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ()  # what callbacks may see, as diffusers lists it
    model_cpu_offload_seq: ClassVar[str] = "text_encoder->text_encoder_2->unet->vae"
    DISTILLABLE: ClassVar[bool] = False  # whether `time_cond_proj_dim` is a guidance scale's
    UPCAST: ClassVar[bool] = False  # whether the autoencoder's `force_upcast` is heeded
    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Scheduler

    def __init__(self, parts: Mapping[str, object], settings: Mapping[str, object] | None = None) -> None:
        self._configs: dict[str, object] = {}  # of parts that were read, as they were stated
        self._unused_settings: Json = {}  # of a pipeline for another task, which this one was made from
        self._foreign: dict[str, Any] = {}  # parts of diffusers and transformers that are kept as they are
        self._settings: Json = dict(settings or {})
        self._source: tuple[Path, Mapping[str, object]] | None = None  # the folder that was read, and its index
        for name, part in parts.items():
            setattr(self, name, part)
        self._runtime = Runtime(next(self.vae.parameters()).device if self.vae is not None else torch.device("cpu"))
        self._bar = ProgressBarConfig()
        self._interrupt = False
        self._guidance_scale: float = 1.0
        self._guidance_rescale: float = 0.0
        self._num_timesteps = 0

    def __init_subclass__(cls) -> None:
        never = {name for name, kind in cls.COMPONENT_TYPES.items() if kind is type(None)}
        cls._optional_components = sorted(cls.OPTIONAL_COMPONENTS | never)
        for name in ("__init__", "__call__", "encode_prompt"):
            if name in vars(cls):
                setattr(cls, name, with_value_errors(vars(cls)[name]))

    _optional_components: ClassVar[list[str]] = []
    _adds_watermark = False  # of SDXL's

    def __setattr__(self, name: str, value: object) -> None:
        """Parts can be swapped, if they are of the right kind; any other attribute can be set."""
        kind = self.COMPONENT_TYPES.get(name)
        given, value = value, value if kind is None else as_component(name, value)
        plain = getattr(value, "_orig_mod", value)  # what torch.compile wrapped
        if kind is not None and value is not None and not fits(name, plain, kind):
            raise ArgumentError(wrong_component(name, value, kind))
        if name in self.COMPONENT_TYPES and plain is not getattr(self, name, None):
            self._configs.pop(name, None)
            self._foreign.pop(name, None)
            if is_kept(given, plain):
                self._foreign[name] = given
        object.__setattr__(self, name, value)

    def _native(self, name: str) -> Any:
        """A part as our own code takes it."""
        part = getattr(self, name)
        if part is None:
            raise ArgumentError(f"{name} is None, and this call needs it; set pipe.{name}")
        if name == "vae" and is_other_autoencoder(part):
            return OtherAutoencoder(part)
        return Compiled(part) if hasattr(part, "_orig_mod") else getattr(part, "native", part)

    def _native_or_none(self, name: str) -> Any:
        return None if getattr(self, name) is None else self._native(name)

    @property
    def _vae(self) -> AutoencoderKL:
        return self._native("vae")

    @property
    def _tile_vae(self) -> bool:
        return not is_other_autoencoder(self.vae) and self.vae.use_tiling

    @property
    def _unet(self) -> Any:
        return self._native("unet")

    @property
    def _text_encoder(self) -> ClipText:
        return self._native("text_encoder")

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._native("tokenizer")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        torch_dtype: object = None,
        dtype: object = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Read a local folder in diffusers' layout; nothing is downloaded. Precision is float32 unless stated.

        `torch_dtype` is a precision, its name, "auto" (the file's), or a dictionary of those by part. `options` may be
        parts, which then are not read; for the others see `loading`.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            raise MissingFile(
                f"{path}: no such folder, and nothing is downloaded here; fetch the model once with "
                f"`enlarger pull {path} --to FOLDER` and give that folder"
            )
        if cls is DiffusionPipeline:
            from enlarger.diffusers.pipelines.auto_pipeline import class_of

            kind: Any = class_of(path)
            return kind.from_pretrained(path, torch_dtype=torch_dtype, dtype=dtype, variant=variant, **options)
        given = {name: options.pop(name) for name in (*cls.COMPONENT_TYPES, *cls.CONFIG_KEYS) if name in options}
        loading = read_options(torch_dtype if dtype is None else dtype, options)
        wanted = [name for name in cls._components_to_load(path) if name not in given]
        asked = torch_dtype if dtype is None else dtype
        try:
            precision = torch.float32 if asked is None else loading.dtype
            bundle = read_folder(path, variant, precision, wanted, mmap=loading.mmap)
        except CheckpointError as error:  # a ValueError, as in diffusers
            said = f"You are trying to load the model files of the `variant={variant}`, but {error}"
            raise UnfitFile(str(error) if variant is None else said) from error
        return cls._from_bundle(bundle, cls._vision_parts(bundle, variant, given), variant)._loaded(loading)

    def _loaded(self, loading: Loading) -> Self:
        """Itself, moved to where and to what precision loading says."""
        for name, precision in loading.dtypes.items():
            if isinstance(part := getattr(self, name, None), nn.Module) and precision is not None:
                part.to(precision)
        return self if loading.device is None else self.to(loading.device)

    @classmethod
    @with_value_errors
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, *, torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None, config: str | Path | None = None, prediction_type: str | None = None,
        allow_pickle: bool = False, **options: Any,
    ) -> Self:  # fmt: skip
        """Read a local file in the layout of the original code, of the family that this pipeline is for.

        `prediction_type` must be given for Stable Diffusion 2, whose files do not tell; `config` is a folder in
        diffusers' layout whose JSON files replace the bundled ones. Nothing is downloaded. `options` as in
        `from_pretrained`, `vae` and `text_encoder` may stand in for parts that the file lacks.
        """
        given = {name: options.pop(name) for name in (*cls.COMPONENT_TYPES, *cls.CONFIG_KEYS) if name in options}
        asked = torch_dtype if dtype is None else dtype
        loading = read_options(asked, options)
        path = Path(pretrained_model_link_or_path)
        if not path.is_file():
            raise MissingFile(
                f"{pretrained_model_link_or_path}: no such file, and nothing is downloaded here; give a local file"
            )
        bundle = read_single_file(
            path,
            dtype=torch.float32 if asked is None else loading.dtype,
            prediction=prediction_type,
            config=config,
            allow_pickle=allow_pickle,
            vae=native_of(given.get("vae")),
            text_encoder=native_of(given.get("text_encoder")),
            text_encoder_2=native_of(given.get("text_encoder_2")),
            mmap=loading.mmap,
        )
        made = {name: part for name, part in bundle.components.items() if name in cls.COMPONENT_TYPES}
        lacking = [
            n
            for n, kind in cls.COMPONENT_TYPES.items()
            if not (n in made or n in cls.OPTIONAL_COMPONENTS or kind is type(None))
        ]
        if lacking:
            found = bundle.index.get("_class_name")
            raise CheckpointError(f"{path}: has no {', '.join(lacking)} for {cls.__name__}; it is for a {found}")
        return cls._from_bundle(replace(bundle, components=made), given)._loaded(loading)

    @classmethod
    def _vision_parts(
        cls, bundle: PipelineComponents, variant: str | None, given: Mapping[str, object]
    ) -> Mapping[str, object]:
        """What is given, and the networks of other packages that a folder has."""
        return given

    @classmethod
    def _from_bundle(cls, bundle: PipelineComponents, given: Mapping[str, object], variant: str | None = None) -> Self:
        """A pipeline of what was read and of the parts that were given instead."""
        absent: dict[str, Any] = {
            name: None
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is type(None) or name in cls.OPTIONAL_COMPONENTS
        }
        if "image_encoder" in absent and "image_encoder" not in given:
            absent["image_encoder"] = read_image_encoder(bundle.path, bundle.index.get("image_encoder"), variant)
        settings = {name: bundle.index[name] for name in cls.CONFIG_KEYS if name in bundle.index}
        parts = {
            name: scheduler_from_config(part) if issubclass(cls.COMPONENT_TYPES.get(name, object), Scheduler) else part
            for name, part in bundle.components.items()
        }
        arguments: dict[str, Any] = {**absent, **parts, **settings, **given}
        views = {n: model_view(arguments[n], c) for n, c in bundle.network_configs.items() if n not in given}
        made = cls(**{**arguments, **views})
        made._configs.update({name: config for name, config in bundle.network_configs.items() if name not in given})
        made._source = bundle.path, bundle.index
        if absent.get("image_encoder") is not None:
            absent["image_encoder"].to(made.dtype)
        for name, part in made.components.items():
            if name in bundle.components:
                log.info("Loaded %s as %s from `%s` subfolder of %s.", name, type(part).__name__, name, bundle.path)
        return made

    @classmethod
    def _components_to_load(cls, path: Path) -> list[str]:
        """The parts to read; optional ones only where the folder's index names them."""
        index = read_json(path / MODEL_INDEX_NAME) if (path / MODEL_INDEX_NAME).is_file() else {}
        stated = {name for name, value in index.items() if isinstance(value, list) and value != [None, None]}
        return [
            name
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is not type(None) and (name not in cls.OPTIONAL_COMPONENTS or name in stated)
        ]

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None,
        max_shard_size: int | str | None = None, push_to_hub: bool = False, **_: object,
    ) -> None:  # fmt: skip
        """Write a folder that diffusers and `from_pretrained` read; in an existing one only files of the same names are
        written over. Weights are written as safetensors."""
        if push_to_hub:
            refuse("push_to_hub", "push_to_hub")
        if not safe_serialization:
            log.warning(
                "weights are written as safetensors, which diffusers reads too; safe_serialization has no effect"
            )
        saved = Saved(type(self).__name__, self.components, self._foreign, self._settings, self._source)
        saved.write(Path(save_directory), variant, parse_shard_size(max_shard_size))

    @classmethod
    def from_pipe(cls, pipeline: "DiffusionPipeline", **parts: Any) -> Self:
        """A pipeline of another one's parts, which both share; `parts` replaces some or adds what is missing."""
        dtype: torch.dtype | None = parts.pop("torch_dtype", None)
        others = {name: parts.pop(name) for name in [*parts] if name not in (*cls.COMPONENT_TYPES, *cls.CONFIG_KEYS)}
        read_options(None, others)
        shared = {name: part for name, part in pipeline.components.items() if name in cls.COMPONENT_TYPES}
        known = {**pipeline._unused_settings, **pipeline._settings}
        settings = {name: value for name, value in known.items() if name in cls.CONFIG_KEYS}
        absent = {
            name: None
            for name, kind in cls.COMPONENT_TYPES.items()
            if kind is type(None) or name in cls.OPTIONAL_COMPONENTS
        }
        arguments: dict[str, Any] = {**absent, **shared, **settings, **parts}
        made = cls(**arguments)
        made._configs.update({name: config for name, config in pipeline._configs.items() if name not in parts})
        made._unused_settings = {name: value for name, value in known.items() if name not in cls.CONFIG_KEYS}
        kept = {name: part for name, part in pipeline._foreign.items() if name in shared and name not in parts}
        made._foreign.update(kept)
        made._adds_watermark = bool(parts.get("add_watermarker", pipeline._adds_watermark))
        made._runtime, made._bar, made._source = pipeline._runtime, pipeline._bar, pipeline._source
        made._take_adapters(pipeline, parts)
        return made if dtype is None else made.to(dtype)

    @property
    def components(self) -> dict[str, Any]:
        """The parts, to make other pipelines of: `Other(**pipe.components)` shares the weights."""
        return {name: getattr(self, name) for name in self.COMPONENT_TYPES}

    @property
    def _execution_device(self) -> torch.device:
        """Where networks work."""
        return self._runtime.device

    @property
    def vae_scale_factor(self) -> int:
        return 8 if self.vae is None else self._vae.downsample_factor

    @property
    def dtype(self) -> torch.dtype:
        networks = self._networks() if self.unet is None else [self.unet]
        return next((one.dtype for one in networks[0].parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are: with offloading that is the CPU."""
        return self._runtime.device if self._runtime.offload == "none" else torch.device("cpu")

    def to(
        self, *args: str | int | torch.device | torch.dtype, device: Device = None, dtype: torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
    ) -> Self:  # fmt: skip
        """Move the networks to a device, a precision, or both; there are no warnings to silence."""
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

    def set_progress_bar_config(self, **settings: object) -> None:
        """`disable`, `desc` and `leave`, as tqdm names them; others change nothing."""
        self._bar = progress_bar_config(settings)

    def progress_bar(self, iterable: Iterable[object] | None = None, total: int | None = None) -> ProgressBar:
        return ProgressBar(self._bar, iterable, total)

    def decode_latents(self, latents: Tensor) -> Array:
        """Latents (B, 4, h, w) to pictures (B, H, W, 3) in 0..1."""
        return pictures.postprocess(self._decode(latents), "np")

    def _networks(self) -> list[nn.Module]:
        parts = [getattr(part, "network", part) for part in self.components.values()]
        return [part for part in parts if isinstance(part, nn.Module)]

    def _decode(self, latents: Tensor) -> Tensor:
        batches: list[Tensor] = list(
            torch.split(latents, 1 if getattr(self.vae, "use_slicing", False) else len(latents))
        )
        upcast, tiled = self.UPCAST and self._vae.config.force_upcast, self._tile_vae
        return torch.cat([decode_latents(self._vae, one, self._runtime, upcast, tiled=tiled) for one in batches])

    def _postprocess(self, latents: Tensor, output_type: str) -> Any:
        """The pictures of float32 latents, or the latents, in the pipeline's precision."""
        if output_type == "latent":
            return latents.to(self.dtype)
        made = self._decode(latents)
        return pictures.postprocess(made.to(self.dtype) if output_type == "pt" else made, output_type)


Pipeline = DiffusionPipeline
