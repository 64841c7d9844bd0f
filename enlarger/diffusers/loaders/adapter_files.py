"""The files of adapters that the methods of a pipeline are given: local, and by name inside a folder."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import ADAPTER_METADATA_KEY, Lora, parse_lora, read_adapter_config, read_lora
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.diffusers.call.arguments import ArgumentError, MissingFile
from enlarger.diffusers.loaders.loading import NO_EFFECT, say_no_effect
from enlarger.errors import Unsupported

log = logging.getLogger(__name__)
LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"

Layers = Mapping[str, nn.Module | Tensor] | nn.Module | None
Metadata = Mapping[str, object] | None
WeightsSource = str | Path | Mapping[str, Tensor]


def load_lora(source: WeightsSource, options: Mapping[str, object], networks: Mapping[str, nn.Module]) -> Lora:
    resolved, allow_pickle = resolve_source(source, options)
    if isinstance(resolved, Mapping):
        return parse_lora(resolved, networks)
    return read_lora(
        _find_weight_file(resolved) if resolved.is_dir() else resolved, networks, allow_pickle=allow_pickle
    )


def read_tensors(
    source: WeightsSource, options: Mapping[str, object]
) -> tuple[Mapping[str, Tensor], Mapping[str, object] | None]:
    """The tensors of a LoRA by the names of its source, and what PEFT stated of them, None where nothing is."""
    resolved, allow_pickle = resolve_source(source, options)
    if isinstance(resolved, Mapping):
        return resolved, None
    file = _find_weight_file(resolved) if resolved.is_dir() else resolved
    weights = open_checkpoint(file, allow_pickle=allow_pickle)
    stated = read_adapter_config(file, weights.metadata)
    return {name: weights.get_tensor(name) for name in weights.keys()}, stated if stated else None


def save_lora(
    folder: Path, name: str | None, layers: Mapping[str, Layers], metadata: Mapping[str, Metadata], safe: bool
) -> None:
    """Write the layers of each component, behind its name, with what PEFT states of them."""
    if not safe:
        log.warning("weights are written as safetensors; safe_serialization and save_function have no effect")
    given = {part: each for part, each in layers.items() if each is not None}
    if not given:
        raise ArgumentError("found no layers to save; give unet_lora_layers or text_encoder_lora_layers")
    tensors = {f"{part}.{key}": value for part, each in given.items() for key, value in _tensors(each).items()}
    stated = {f"{part}.{key}": value for part, each in metadata.items() for key, value in (each or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    note = {ADAPTER_METADATA_KEY: json.dumps(stated, sort_keys=True, default=list)} if stated else None
    save_safetensors(folder / (LORA_WEIGHT_NAME if name is None else name), tensors, metadata=note)


def _tensors(layers: Mapping[str, nn.Module | Tensor] | nn.Module) -> dict[str, Tensor]:
    if isinstance(layers, nn.Module):
        return dict(layers.state_dict())
    found: dict[str, Tensor] = {}
    for name, each in layers.items():
        within = {name: each} if isinstance(each, Tensor) else each.state_dict(prefix=f"{name}.")
        found.update(within)
    return found


def resolve_source(source: WeightsSource, options: Mapping[str, object]) -> tuple[Path | Mapping[str, Tensor], bool]:
    """The file, the folder or the tensors that are meant, and whether a pickle may be read."""
    for name, value in options.items():
        if name not in (*NO_EFFECT, "weight_name", "subfolder") and value is not None:
            raise Unsupported(
                f"found {name}={value!r}, which is not here; give a local file, weight_name and subfolder"
            )
    say_no_effect(options)
    if isinstance(source, Mapping):
        return source, False
    path = Path(source, *(str(options[key]) for key in ("subfolder", "weight_name") if options.get(key) is not None))
    if not path.exists():
        raise MissingFile(f"{path}: no such file, and nothing is downloaded here; fetch it first and give its path")
    return path, options.get("use_safetensors") is False


def _find_weight_file(folder: Path) -> Path:
    candidates = sorted(folder.glob("*.safetensors"))
    default_file = folder / LORA_WEIGHT_NAME
    if default_file in candidates or len(candidates) == 1:
        return default_file if default_file in candidates else candidates[0]
    names = ", ".join(file.name for file in candidates) or "no safetensors file"
    raise MissingFile(f"{folder}: found {names}, expected {LORA_WEIGHT_NAME} or a single file; choose with weight_name")
