"""Reading a whole model from one file, as the original code and later programs write it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from enlarger.checkpoint.components import (
    COMPONENT_CLASSES,
    CONFIG_NAME,
    MODEL_INDEX_NAME,
    SCHEDULER_CONFIG_NAME,
    PipelineComponents,
)
from enlarger.checkpoint.config.bundled_configs import clip_tokenizer, family_configs
from enlarger.checkpoint.families import FAMILIES
from enlarger.checkpoint.load_module import check_unquantised, load_module
from enlarger.checkpoint.single_file.component_override import ComponentSource, read_component_override
from enlarger.checkpoint.single_file.detect import PIXEL_NETWORK, DetectedCheckpoint, detect
from enlarger.checkpoint.single_file.infer_config import infer_config
from enlarger.checkpoint.single_file.key_mapping import (
    LAYOUTS,
    OPEN_CLIP,
    OPEN_CLIP_WITH_PROJECTION,
    ConvertedCheckpoint,
    convert_from_original,
)
from enlarger.checkpoint.single_file.key_rules import RemappedTensors
from enlarger.checkpoint.single_file.pixel_network import read_pixel_network
from enlarger.checkpoint.tensors.open import LazyTensors, open_checkpoint
from enlarger.checkpoint.tensors.pickle_guard import PickleCheckpoint
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, InputError, list_names
from enlarger.strict_json import Json, parse_json, printable_name, read_json

CONFIGS_METADATA_KEY = "enlarger.configs"  # the entry of a file's metadata with what shapes cannot say
MODELSPEC_PREDICTION_KEY = "modelspec.prediction_type"  # where other programs state what the network predicts
MODELSPEC_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
INDEX_METADATA_KEY = "_metadata"  # where a pipeline's index holds a file's metadata
CONFIG_COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "low_res_scheduler")
UNUSED_NETWORK_PREFIXES = ("depth_model.",)  # networks that single files hold and that are read from elsewhere


@dataclass(frozen=True)
class _SingleFile:
    """A file being read."""

    path: Path
    detected: DetectedCheckpoint
    converted: ConvertedCheckpoint
    base_configs: Mapping[str, Json]
    dtype: torch.dtype | None
    mmap: bool


def read_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
    vae: ComponentSource | None = None,
    text_encoder: ComponentSource | None = None,
    text_encoder_2: ComponentSource | None = None,
    config: str | Path | None = None,
    ema: bool = False,
    mmap: bool = True,
) -> PipelineComponents:
    """Read a model like `read_folder` does: same components, same names.

    `dtype` converts floating weights while reading. `prediction` ("epsilon", "v_prediction") says what the UNet
    predicts where the file cannot; it must be given for Stable Diffusion 2. `allow_pickle` opens a `.ckpt` or `.pth`
    through the restricted reader. `vae`, `text_encoder` and `text_encoder_2` (a network, a folder or a file) stand in
    for components that the file lacks, as the original x2 upscaler's does, or replace its own. `config` is a folder in
    diffusers' layout whose JSON files replace the bundled ones. `ema` takes the averaged copy of the UNet. With `mmap`
    weights that need no conversion stay in the file, see `load_module`.

    Raises `CheckpointError` saying what the file is instead, what is missing, or which weights differ.
    """
    path = Path(path)
    tensors = open_checkpoint(path, allow_pickle=allow_pickle, mmap=mmap)
    check_unquantised(tensors)
    detected = detect({name: tensors.shape(name) for name in tensors.keys()}, path)
    if detected.kind == PIXEL_NETWORK:
        return read_pixel_network(path, tensors, dtype)
    if detected.kind != "model" or detected.family is None or detected.layout is None:
        advice = f" {detected.advice}." if detected.advice else " Give it together with the model that it belongs to."
        raise CheckpointError(f"{path}: holds {detected.description}, expected a whole model in one file.{advice}")
    stated_configs = _embedded_configs(tensors, path) | _folder_configs(config)
    prediction_type = _resolve_prediction_type(detected, stated_configs, tensors.metadata, prediction, path)
    base_configs = _base_configs(detected.family, prediction_type, stated_configs)
    converted = convert_from_original(detected.layout, tensors, key_prefix=detected.key_prefix, ema=ema)
    _check_unexpected_keys(path, converted)
    notes = _extra_notes(path, converted)
    single_file = _SingleFile(path, detected, converted, base_configs, dtype, mmap)
    overrides = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    networks = _load_networks(single_file, overrides, allow_pickle)
    _check_context_channels(path, networks)
    components: dict[str, Any] = {name: module for name, (module, _) in networks.items()}
    if "noise_frequencies" in converted.components:
        components["noise_frequencies"] = converted.components["noise_frequencies"].get_tensor("weight", torch.float32)
    components |= _load_tokenizers(detected, base_configs)
    components |= _scheduler_configs(base_configs, prediction_type, detected.zero_terminal_snr)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return _pipeline_components(
        single_file, components, {name: config for name, (_, config) in networks.items()}, tensors
    )


def _embedded_configs(tensors: SafetensorsCheckpoint | PickleCheckpoint, path: Path) -> dict[str, Json]:
    """What our own files say about their components."""
    text = tensors.metadata.get(CONFIGS_METADATA_KEY)
    if text is None:
        return {}
    try:
        configs = parse_json(text)
        if not all(isinstance(value, dict) for value in configs.values()):
            raise TypeError("not objects")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its metadata {CONFIGS_METADATA_KEY} is damaged ({error}); fetch the file again."
        ) from error
    return cast("dict[str, Json]", configs)


def _folder_configs(config: str | Path | None) -> dict[str, Json]:
    """The JSON files of a folder in diffusers' layout."""
    if config is None:
        return {}
    folder = Path(config)
    files = {
        name: folder / name / (SCHEDULER_CONFIG_NAME if "scheduler" in name else CONFIG_NAME)
        for name in CONFIG_COMPONENTS
    }
    files["model_index"] = folder / MODEL_INDEX_NAME
    configs = {name: read_json(file) for name, file in files.items() if file.is_file()}
    if not configs:
        raise InputError(
            f"config={config}: found no {MODEL_INDEX_NAME} and no component's {CONFIG_NAME}; expected a folder in "
            "diffusers' layout."
        )
    return configs


def _base_configs(family: str, prediction_type: str, stated_configs: Mapping[str, Json]) -> dict[str, Json]:
    """The family's configs, with what is stated in their place; which components there are is the family's to say."""
    family_json = family_configs("sd2_base" if family == "sd2" and prediction_type == "epsilon" else family)
    index = {
        name: value for name, value in stated_configs.get("model_index", {}).items() if not isinstance(value, list)
    }
    merged = {name: stated_configs.get(name, value) for name, value in family_json.items()}
    return merged | {"model_index": family_json["model_index"] | index}


def _resolve_prediction_type(
    detected: DetectedCheckpoint,
    configs: Mapping[str, Json],
    metadata: Mapping[str, str],
    requested: str | None,
    path: Path,
) -> str:
    """What the UNet predicts: as requested, as the file says of itself, as its family does."""
    if detected.family == "x2":
        if requested not in (None, "original_sample"):
            raise InputError(f"prediction is {requested!r}; the x2 upscaler has none but its own, leave it out.")
        return "original_sample"
    if requested is not None and requested not in PREDICTION_TYPES:
        raise InputError(f"prediction is {requested!r}, expected one of {', '.join(PREDICTION_TYPES)}.")
    scheduler_prediction = configs["scheduler"].get("prediction_type", "epsilon") if "scheduler" in configs else None
    modelspec_prediction = MODELSPEC_PREDICTIONS.get(metadata.get(MODELSPEC_PREDICTION_KEY, ""))
    for each in (requested, scheduler_prediction, modelspec_prediction, detected.prediction_type):
        if each is not None:
            return str(each)
    raise InputError(
        f"{path}: holds {detected.description}, whose weights do not tell what they predict. Say "
        "prediction='epsilon' (512-base models) or prediction='v_prediction' (768-v models)."
    )


def _check_unexpected_keys(path: Path, converted: ConvertedCheckpoint) -> None:
    unexpected = converted.unexpected_keys
    if unexpected:
        raise CheckpointError(
            f"{path}: {len(unexpected)} weights belong to none of its networks: "
            f"{list_names(unexpected)}. The file is changed or of a newer kind."
        )


def extra_keys(detected: DetectedCheckpoint, tensors: LazyTensors) -> tuple[str, ...]:
    """The tensors of a whole model in one file that none of its networks needs; none for other files."""
    if detected.kind != "model" or detected.layout is None:
        return ()
    return convert_from_original(detected.layout, tensors, key_prefix=detected.key_prefix).extra_keys


def _extra_notes(path: Path, converted: ConvertedCheckpoint) -> list[str]:
    """What was read beside the networks and is left out, in a sentence."""
    extra = [printable_name(name) for name in converted.extra_keys if not name.startswith(UNUSED_NETWORK_PREFIXES)]
    noun = "tensor" if len(extra) == 1 else "tensors"
    return [f"{path}: left out {len(extra)} {noun} that no network needs: {list_names(extra)}"] if extra else []


def _load_networks(
    single_file: _SingleFile, overrides: Mapping[str, ComponentSource | None], allow_pickle: bool
) -> dict[str, tuple[nn.Module, Json]]:
    """Each network that the family has, from the file or from where else it was said to be, and its config."""
    networks: dict[str, tuple[nn.Module, Json]] = {}
    index, components = single_file.base_configs["model_index"], single_file.converted.components
    network_names = [name for name, value in index.items() if isinstance(value, list) and value[1] in COMPONENT_CLASSES]
    missing = [name for name in network_names if name not in components and overrides.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{single_file.path}: holds {single_file.detected.description} without "
            f"{_missing_components_hint(single_file.detected, missing)}"
        )
    for name in sorted(network_names, key=lambda each: each == "unet"):  # the UNet's sizes depend on the text encoders'
        source = overrides.get(name)
        if source is not None:
            networks[name] = read_component_override(
                source, name, single_file.base_configs[name], single_file.dtype, allow_pickle, mmap=single_file.mmap
            )
        else:
            networks[name] = _load_network(
                name, str(index[name][1]), components[name], single_file, _pooled_channels(networks)
            )
    unused = [name for name, source in overrides.items() if source is not None and name not in network_names]
    if unused:
        raise InputError(
            f"{single_file.path}: holds {single_file.detected.description}, which has no {', '.join(unused)}; leave "
            "it out."
        )
    return networks


def _load_network(
    name: str, class_name: str, weights: RemappedTensors, single_file: _SingleFile, pooled_channels: int | None
) -> tuple[nn.Module, Json]:
    component = COMPONENT_CLASSES[class_name]
    try:
        shapes = {each: weights.shape(each) for each in weights.keys()}
        config = infer_config(name, shapes, single_file.base_configs[name], pooled_channels)
        parsed_config = component.read_config(config)
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{single_file.path}: {error}") from error

    def create() -> nn.Module:
        try:
            return component.create(parsed_config)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"{single_file.path}: {name} cannot be built with such widths ({error}).") from error

    return load_module(create, weights, str, single_file.dtype), config


def _pooled_channels(networks: Mapping[str, tuple[nn.Module, Json]]) -> int | None:
    return cast("Any", networks["text_encoder_2"][0]).config.projection_dim if "text_encoder_2" in networks else None


def _missing_components_hint(detected: DetectedCheckpoint, missing: list[str]) -> str:
    if detected.family != "x2":
        return (
            f"{' and '.join(missing)}. Pass {' and '.join(f'{name}=' for name in missing)}, a folder or a file of them."
        )
    sources = {
        "vae": "vae=, the autoencoder of Stable Diffusion 1 or 2 (such as vae-ft-mse-840000)",
        "text_encoder": "text_encoder=, CLIP ViT-L/14 (openai/clip-vit-large-patch14, or any Stable Diffusion 1 model)",
    }
    return (
        f"{' and '.join(missing)}, as the original file does. Pass {' and '.join(sources[name] for name in missing)}."
    )


def _check_context_channels(path: Path, networks: Mapping[str, tuple[nn.Module, Json]]) -> None:
    """The UNet attends to what the text encoders make."""
    widths = [
        cast("Any", module).config.width for name, (module, _) in networks.items() if name.startswith("text_encoder")
    ]
    context_channels = cast("Any", networks["unet"][0]).config.context_channels
    if sum(widths) != context_channels:
        raise CheckpointError(
            f"{path}: its UNet reads text of width {context_channels}, its text encoders make "
            f"{' + '.join(map(str, widths))}; bring components of one model together."
        )


def _load_tokenizers(detected: DetectedCheckpoint, base_configs: Mapping[str, Json]) -> dict[str, Any]:
    """CLIP's tokenizer for each text encoder; open_clip's models pad with "!"."""
    layout = LAYOUTS[FAMILIES[str(detected.family)].layout]
    tokenizers: dict[str, Any] = {}
    for name in base_configs:
        if name.startswith("text_encoder"):
            pads_with_exclamation = name in layout and layout[name].key_mapping in (
                OPEN_CLIP,
                OPEN_CLIP_WITH_PROJECTION,
            )
            tokenizers[name.replace("text_encoder", "tokenizer")] = clip_tokenizer(
                "!" if pads_with_exclamation else "<|endoftext|>"
            )
    return tokenizers


def _scheduler_configs(
    base_configs: Mapping[str, Json], prediction_type: str, zero_terminal_snr: bool
) -> dict[str, Json]:
    schedulers = {name: dict(base_configs[name]) for name in ("scheduler", "low_res_scheduler") if name in base_configs}
    if schedulers["scheduler"].get("prediction_type", "epsilon") != prediction_type:
        schedulers["scheduler"]["prediction_type"] = prediction_type
    if zero_terminal_snr:
        schedulers["scheduler"]["rescale_betas_zero_snr"] = True
        if schedulers["scheduler"].get("_class_name") == "PNDMScheduler":  # which has no such setting
            schedulers["scheduler"]["_class_name"] = "DDIMScheduler"
    return schedulers


def _pipeline_components(
    single_file: _SingleFile,
    components: Mapping[str, Any],
    configs: Mapping[str, Json],
    tensors: SafetensorsCheckpoint | PickleCheckpoint,
) -> PipelineComponents:
    index = dict(single_file.base_configs["model_index"])
    metadata = {name: value for name, value in tensors.metadata.items() if name not in (CONFIGS_METADATA_KEY, "format")}
    index |= {INDEX_METADATA_KEY: metadata} if metadata else {}
    index["scheduler"] = ["diffusers", str(components["scheduler"].get("_class_name"))]
    unused_networks = [name for name in single_file.converted.extra_keys if name.startswith(UNUSED_NETWORK_PREFIXES)]
    skipped = ("depth_estimator",) if unused_networks else ()
    return PipelineComponents(
        single_file.path, index, {name: components[name] for name in sorted(components)}, dict(configs), skipped
    )
