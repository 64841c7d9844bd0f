"""Which checkpoint to read, and how: a folder, a single file, or a name in the cache; and the tasks that it can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from enlarger.checkpoint.adapters.lora import LORA_COMPONENTS, apply_loras, read_lora
from enlarger.checkpoint.adapters.textual_inversion import (
    TextualInversion,
    add_textual_inversion,
    read_textual_inversion,
)
from enlarger.checkpoint.adapters.weight_deltas import WeightDelta
from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.families import KINDS, ModelKind, kind_of_pipeline_class, kind_of_unet
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.model_folder import LORA, ModelFolder, checkpoint_path
from enlarger.checkpoint.single_file.component_override import ComponentSource
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.errors import InputError, Unsupported
from enlarger.hub.cache import cache_dir, resolve, snapshot_variant
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.runtime.choices import choose
from enlarger.runtime.engines.named import INT8, EngineName, EngineOptions, make_engine
from enlarger.runtime.runtime import Offload, Runtime

if TYPE_CHECKING:
    from enlarger.tasks.depth import DepthToImage
    from enlarger.tasks.image_to_image import Refiner
    from enlarger.tasks.inpaint import Inpainter
    from enlarger.tasks.text_to_image import Generator
    from enlarger.tasks.upscale.upscaler import Upscaler

    LoadedTask = Upscaler | Generator | Refiner | Inpainter | DepthToImage

BUNDLED = "bundled"  # the name of the model that ships with the package
BUNDLED_FOLDER = Path(__file__).parents[2] / "bundled"

TOKENIZER_OF_ENCODER = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


INVERSION_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # the encoders in the files of inversions


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file, and how much of it each kind of network gets."""

    path: str | Path
    text_scale: float = 1.0
    unet_scale: float = 1.0

    def scale_of(self, component: str) -> float:
        return self.unet_scale if component == "unet" else self.text_scale


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is, and what its files do not say themselves.

    `variant` chooses among a folder's weight files. The others are for single files, see `read_single_file`:
    `prediction` is what the UNet predicts, `allow_pickle` opens `.ckpt` and `.pth` (pickled
    LoRAs and textual inversions beside a folder too), `vae`, `text_encoder` and `text_encoder_2` stand in
    for parts, `config` is a folder in diffusers' layout whose JSON files replace the bundled ones. With a folder of
    `models`, `path` and `loras` may be names in it, and so may the LoRAs and styles of requests.

    With `mmap` weights that need no conversion stay in their files, which may be replaced or deleted meanwhile, but not
    written to; without it they are copied into memory.
    """

    path: str | Path
    variant: str | None = None
    prediction: str | None = None
    allow_pickle: bool = False
    vae: ComponentSource | None = None
    text_encoder: ComponentSource | None = None
    config: str | Path | None = None
    loras: Sequence[tuple[str | Path, float]] = ()  # files, each with its scale
    inversions: Sequence[str | Path | tuple[str | Path, str | None]] = ()  # files, or with their tokens
    text_encoder_2: ComponentSource | None = None  # of SDXL
    models: ModelFolder | None = field(default=None, repr=False)
    mmap: bool = True

    def __str__(self) -> str:
        return str(self.path)

    def open(self, dtype: torch.dtype | None = None) -> PipelineComponents:
        """Its parts, with what is added to them; `dtype` converts floating weights while reading.

        Nothing is downloaded. Raises CheckpointError naming the file for all that is missing, damaged or unknown.
        """
        bundle = self._read(dtype)
        loras = [LoraFile(self._lora_path(path), scale, scale) for path, scale in self.loras]
        named = [each if isinstance(each, tuple) else (each, None) for each in self.inversions]
        inversions = [read_textual_inversion(path, token, allow_pickle=self.allow_pickle) for path, token in named]
        parts = with_adapters(bundle.components, loras, inversions, allow_pickle=self.allow_pickle)
        return replace(bundle, components=parts, model_folder=self.models)

    def _lora_path(self, name: str | Path) -> str | Path:
        return name if self.models is None or Path(name).exists() else self.models.find(str(name), LORA)

    def _read(self, dtype: torch.dtype | None) -> PipelineComponents:
        if str(self.path) == BUNDLED:
            return read_folder(BUNDLED_FOLDER, dtype=torch.float32, mmap=self.mmap)
        path = resolve(checkpoint_path(self.models, self.path))
        if not path.is_dir():
            if self.variant is not None:
                raise InputError(f"variant is {self.variant!r}, but {path} is a single file; leave it out")
            return read_single_file(
                path, dtype=dtype, prediction=self.prediction, allow_pickle=self.allow_pickle, vae=self.vae,
                text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2, config=self.config, mmap=self.mmap,
            )  # fmt: skip
        names = ("prediction", "vae", "text_encoder", "text_encoder_2", "config")
        given = {name: getattr(self, name) for name in names}
        unused = [name for name, value in given.items() if value is not None]
        may_hold_pickles = self.loras or self.inversions or self.models is not None
        if unused or (self.allow_pickle and not may_hold_pickles):
            named = ", ".join(unused or ["allow_pickle"])
            raise InputError(f"{named}: for single files only, and {path} is a folder; leave it out")
        variant = snapshot_variant(path) if self.variant is None else self.variant
        return read_folder(path, variant, dtype, mmap=self.mmap)


def with_adapters(
    parts: Mapping[str, Any],
    loras: Sequence[LoraFile],
    inversions: Sequence[TextualInversion] = (),
    *,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """The parts of a model with what files add to them; the parts that are given stay as they are."""
    changed, brought = _with_loras(parts, loras, allow_pickle)
    return _with_inversions(changed, [*brought, *inversions])


def _with_loras(
    parts: Mapping[str, Any], loras: Sequence[LoraFile], allow_pickle: bool
) -> tuple[dict[str, Any], list[TextualInversion]]:
    """The parts with networks that the files change, and the tokens that the files bring along."""
    networks = {name: parts[name] for name in LORA_COMPONENTS if name in parts}
    added: dict[str, list[tuple[Mapping[str, WeightDelta], float]]] = {}
    brought: list[TextualInversion] = []
    for file in loras:
        lora = read_lora(file.path, networks, allow_pickle)
        brought += lora.inversions
        for name, updates in lora.components.items():
            added.setdefault(name, []).append((updates, file.scale_of(name)))
    changed = {name: apply_loras(networks[name], weighted) for name, weighted in added.items()}
    return dict(parts) | changed, brought


def _with_inversions(parts: Mapping[str, Any], inversions: Sequence[TextualInversion]) -> dict[str, Any]:
    """The parts with tokenizers and text encoders that know more tokens."""
    extended = dict(parts)
    for inversion in inversions:
        for name in encoders_for(extended, inversion):
            pair = extended[TOKENIZER_OF_ENCODER[name]], extended[name]
            extended[TOKENIZER_OF_ENCODER[name]], extended[name] = add_textual_inversion(
                *pair, inversion, encoder_key=clip_part(name, inversion)
            )
    return extended


def encoders_for(parts: Mapping[str, Any], inversion: TextualInversion) -> list[str]:
    """The text encoders that the file has vectors for; the first, which then complains, where there are none."""
    widths = {vectors.shape[1] for vectors in inversion.vectors.values()}
    present = [name for name in TOKENIZER_OF_ENCODER if name in parts]
    return [name for name in present if parts[name].config.width in widths] or present[:1]


def clip_part(name: str, inversion: TextualInversion) -> str | None:
    """Which of the file's vectors are for a text encoder; None where the file does not say."""
    return INVERSION_KEYS[name] if INVERSION_KEYS[name] in inversion.vectors else None


Location = str | Path | Checkpoint


def as_checkpoint(location: Location) -> Checkpoint:
    """A path or a name as a checkpoint to be read plainly."""
    return location if isinstance(location, Checkpoint) else Checkpoint(location)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory, and a task for each of its verbs; they share the networks."""

    kind: ModelKind
    model: Any  # what the kind's loader has made: a `StableDiffusion`, or the task itself
    tasks: Mapping[str, Any]


def resolve_runtime(device: str, precision: str, offload: Offload, engine: str) -> tuple[Runtime, torch.dtype]:
    """Where and how a model runs, and its weights' type. Raises InputError for what does not go together."""
    choices = choose(device, "auto" if precision == INT8 else precision)
    chosen = make_engine(engine, EngineOptions(choices.device, precision, offload, cache_dir() / "engines"))
    return Runtime.here(choices.device, offload, chosen, choices.memory_format), choices.dtype


def load_model(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    verb: str | None = None,
    engine: EngineName = "torch",
) -> LoadedModel:
    """Read a checkpoint as its kind in `families.KINDS`. Raises Unsupported for a kind that does not do `verb`."""
    (runtime, dtype), name = resolve_runtime(device, precision, offload, engine), str(model)
    if name == BUNDLED and precision not in ("auto", "float32"):
        raise Unsupported(f"precision is {precision}, but the bundled model runs in float32; leave it out")
    components = as_checkpoint(model).open(dtype)
    kind = kind_of(components, name)
    if kind is KINDS["pixel"] and precision == "auto" and dtype == torch.bfloat16:  # whose steps are those of 8 bits
        components = as_checkpoint(model).open(torch.float32)
    if verb is not None and verb not in kind.tasks:
        wanted = (one for one in KINDS.values() if verb in one.tasks and one.pipeline_class is not None)
        expected = " or ".join(f"{one.pipeline_class}, {one.label}" for one in wanted)
        raise Unsupported(f"{name}: holds a {components.index.get('_class_name')}, expected {expected}")
    loaded = _entry_point(kind.loader)(components, runtime, name)
    factories = {verb: spec.factory for verb, spec in kind.tasks.items()}
    tasks = {verb: loaded if path is None else _entry_point(path)(loaded) for verb, path in factories.items()}
    return LoadedModel(kind, loaded, tasks)


def load(
    model: Location,
    device: str = "auto",
    precision: str = "auto",
    offload: Offload = "none",
    engine: EngineName = "torch",
) -> "LoadedTask":
    """A folder in diffusers' layout, a single file, or a name in the cache, as a task that takes its verb's request.

    What a path cannot say (the prediction of a Stable Diffusion 2 file, leave to open a pickle) goes into a
    `Checkpoint`. `engine` computes the networks: "torch", "compile", or "openvino" on a CPU. Raises CheckpointError
    naming the file for what is missing, damaged or unknown.
    """
    loaded = load_model(model, device, precision, offload, engine=engine)
    return loaded.tasks[loaded.kind.primary_task]


def kind_of(components: PipelineComponents, name: str) -> ModelKind:
    """The kind of what was read. Raises Unsupported, naming it, for what is none."""
    pipeline_class, parts = str(components.index.get("_class_name")), components.components
    if (kind := kind_of_pipeline_class(pipeline_class)) is not None:
        return kind
    unet, vae = parts.get("unet"), parts.get("vae")
    text_encoder = parts.get("text_encoder_2", parts.get("text_encoder"))
    if not (isinstance(unet, UNet) and isinstance(vae, AutoencoderKL) and isinstance(text_encoder, ClipText)):
        raise Unsupported(f"{name}: holds a {pipeline_class}, expected a checkpoint of the Stable Diffusion family")
    try:
        return kind_of_unet(unet.config, vae.config.latent_channels, text_encoder.config.projection_dim)
    except Unsupported as error:
        raise Unsupported(f"{name}: {error}") from error


def _entry_point(path: str) -> Any:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
