"""What a folder in diffusers' layout holds, from its JSON alone; no weight is read."""

from pathlib import Path
from typing import Any

from enlarger.checkpoint.families import ModelKind, kind_of_pipeline_class, kind_of_unet
from enlarger.checkpoint.folder.load import COMPONENT_CLASSES, CONFIG_NAME, MODEL_INDEX_NAME
from enlarger.errors import CheckpointError, Unsupported
from enlarger.strict_json import read_json


def folder_index(path: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises CheckpointError where there is none."""
    if not (path / MODEL_INDEX_NAME).is_file():
        raise CheckpointError(
            f"{path}: no {MODEL_INDEX_NAME}; expected a model's folder in diffusers' layout, or a single file"
        )
    return read_json(path / MODEL_INDEX_NAME)


def component_class_names(path: Path) -> dict[str, str]:
    """The classes of the parts that the index lists, each [library, class]; [null, null] is left out."""
    listed: dict[str, Any] = {name: value for name, value in folder_index(path).items() if isinstance(value, list)}
    return {name: str(value[-1]) for name, value in listed.items() if value and value[-1] is not None}


def folder_kind(path: Path) -> ModelKind:
    """The kind of the folder's model. Raises Unsupported, naming the folder, for what is none."""
    pipeline_class = str(folder_index(path).get("_class_name"))
    if (kind := kind_of_pipeline_class(pipeline_class)) is not None:
        return kind
    names = component_class_names(path)
    encoders = [part for part in ("text_encoder", "text_encoder_2") if part in names]
    if names.get("unet") != "UNet2DConditionModel" or names.get("vae") != "AutoencoderKL" or not encoders:
        raise Unsupported(f"{path}: holds a {pipeline_class}, expected a checkpoint of the Stable Diffusion family")
    unet, vae, text_encoder = (_read_config(path / part, names[part]) for part in ("unet", "vae", encoders[-1]))
    try:
        return kind_of_unet(unet, vae.latent_channels, text_encoder.projection_dim)
    except Unsupported as error:
        raise Unsupported(f"{path}: {error}") from error


def _read_config(folder: Path, class_name: str) -> Any:
    """A part's config.json as its network's config."""
    return COMPONENT_CLASSES[class_name].read_config(read_json(folder / CONFIG_NAME))
