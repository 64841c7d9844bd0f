"""The networks of a model by their class names in model_index.json, and a model's components in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from enlarger.checkpoint.config import network_configs
from enlarger.checkpoint.taesd import tiny_config, tiny_json
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet, KUNetConfig
from enlarger.nn.taesd import AutoencoderTiny
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.strict_json import Json

if TYPE_CHECKING:
    from enlarger.checkpoint.model_folder import ModelFolder  # which looks into checkpoints

MODEL_INDEX_NAME = "model_index.json"
CONFIG_NAME = "config.json"
SCHEDULER_CONFIG_NAME = "scheduler_config.json"
NOISE_FREQUENCIES_NAME = "low_res_noise_embed.safetensors"  # of the original x2 upscaler; diffusers' folders lack it


@dataclass(frozen=True)
class ComponentClass:
    """How a network that model_index.json names by its class is read and written."""

    library: str
    weights_stem: str  # of its weights' file names
    read_config: Callable[[Json], Any]  # config.json to a config
    write_config: Callable[[Any], Json]  # and back
    create: Callable[[Any], nn.Module]  # a config to the module


def _diffusers_component(
    read_config: Callable[[Json], Any], write_config: Callable[[Any], Json], create: Callable[[Any], nn.Module]
) -> ComponentClass:
    return ComponentClass("diffusers", "diffusion_pytorch_model", read_config, write_config, create)


def _enlarger_component(config_type: type[Any], create: Callable[[Any], nn.Module]) -> ComponentClass:
    """A network of this package, whose config file is its dataclass."""
    return ComponentClass(
        "enlarger",
        "diffusion_pytorch_model",
        network_configs.dataclass_reader(config_type),
        network_configs.dataclass_json,
        create,
    )


def _create_unet(config: Any) -> nn.Module:
    return KUNet(config) if isinstance(config, KUNetConfig) else UNet(config)


def _write_unet_config(config: Any) -> Json:
    return network_configs.k_unet_json(config) if isinstance(config, KUNetConfig) else network_configs.unet_json(config)


COMPONENT_CLASSES: dict[str, ComponentClass] = {
    "UNet2DConditionModel": _diffusers_component(network_configs.unet_config, _write_unet_config, _create_unet),
    "AutoencoderKL": _diffusers_component(
        network_configs.autoencoder_config, network_configs.autoencoder_json, AutoencoderKL
    ),
    "AutoencoderTiny": _diffusers_component(tiny_config, tiny_json, AutoencoderTiny),
    "CLIPTextModel": ComponentClass(
        "transformers", "model", network_configs.clip_text_config, network_configs.clip_text_json, ClipText
    ),
    "CLIPTextModelWithProjection": ComponentClass(
        "transformers", "model", network_configs.clip_projection_config, network_configs.clip_text_json, ClipText
    ),
    "UpscaleNet": _enlarger_component(UpscaleNetConfig, UpscaleNet),
}
"""The networks by the class names that model_index.json uses; a new one is one line here."""


DIFFUSERS_CLASS_NAMES = {"ClipText": "CLIPTextModel", "UNet": "UNet2DConditionModel", "KUNet": "UNet2DConditionModel"}


def network_class_name(module: nn.Module) -> str:
    """The class by which model_index.json names a network."""
    name = DIFFUSERS_CLASS_NAMES.get(type(module).__name__, type(module).__name__)
    with_projection = isinstance(module, ClipText) and module.config.projection_dim is not None
    return f"{name}WithProjection" if with_projection else name


@dataclass(frozen=True)
class PipelineComponents:
    """A model's components: networks as modules, tokenizers, schedulers as the JSON that describes them."""

    path: Path  # where it was read
    index: Mapping[str, Any]  # model_index.json
    components: Mapping[str, Any]
    network_configs: Mapping[str, Json] = field(
        default_factory=dict[str, Json]
    )  # each network's config.json as it was read
    skipped: tuple[str, ...] = ()  # components that lie in the folder and are not used here
    model_folder: "ModelFolder | None" = None  # where requests' LoRAs and styles are looked up
