"""The files of adapters that the methods of a pipeline are given: local, and by name inside a folder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import Lora, parse_lora, read_lora
from enlarger.errors import CheckpointError, Unsupported

LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
FIXED_LOADING_OPTIONS = {
    "use_safetensors": True,
    "local_files_only": True,
    "low_cpu_mem_usage": True,
}  # how it is done anyway

WeightsSource = str | Path | Mapping[str, Tensor]


def load_lora(source: WeightsSource, options: Mapping[str, object], networks: Mapping[str, nn.Module]) -> Lora:
    resolved, allow_pickle = resolve_source(source, options)
    if isinstance(resolved, Mapping):
        return parse_lora(resolved, networks)
    return read_lora(
        _find_weight_file(resolved) if resolved.is_dir() else resolved, networks, allow_pickle=allow_pickle
    )


def resolve_source(source: WeightsSource, options: Mapping[str, object]) -> tuple[Path | Mapping[str, Tensor], bool]:
    """The file, the folder or the tensors that are meant, and whether a pickle may be read."""
    for name, value in options.items():
        is_known = name in ("weight_name", "subfolder", "use_safetensors", "local_files_only")
        if not is_known and value not in (None, FIXED_LOADING_OPTIONS.get(name)):
            raise Unsupported(f"{name}={value!r} has no effect here; give a local file, weight_name and subfolder")
    if isinstance(source, Mapping):
        return source, False
    path = Path(source, *(str(options[key]) for key in ("subfolder", "weight_name") if options.get(key) is not None))
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, and nothing is downloaded here; fetch it first and give its path")
    return path, options.get("use_safetensors") is False


def _find_weight_file(folder: Path) -> Path:
    candidates = sorted(folder.glob("*.safetensors"))
    default_file = folder / LORA_WEIGHT_NAME
    if default_file in candidates or len(candidates) == 1:
        return default_file if default_file in candidates else candidates[0]
    names = ", ".join(file.name for file in candidates) or "no safetensors file"
    raise CheckpointError(
        f"{folder}: found {names}, expected {LORA_WEIGHT_NAME} or a single file; choose with weight_name"
    )
