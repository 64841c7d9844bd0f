"""Every official configuration builds exactly the keys and shapes of its weight file."""

import pytest
import torch
from torch import nn

from enlarger.checkpoint.config.network_configs import (
    autoencoder_config,
    clip_projection_config,
    clip_text_config,
    unet_config,
)
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet, KUNetConfig
from enlarger.nn.unet import UNet
from tests.support.official import config_of, key_tables, table_of

FILES = [file for table in key_tables() for file in table.files]

PARAMETERS = {
    "stable-diffusion-v1-5/unet": (859_520_964, 686),
    "stable-diffusion-inpainting/unet": (859_535_364, 686),
    "stable-diffusion-2-1/unet": (865_910_724, 686),
    "stable-diffusion-2-inpainting/unet": (865_925_124, 686),
    "stable-diffusion-2-depth/unet": (865_913_604, 686),
    "stable-diffusion-x4-upscaler/unet": (473_398_020, 687),
    "sd-x2-latent-upscaler/unet": (372_560_645, 639),
    "stable-diffusion-xl-base-1.0/unet": (2_567_463_684, 1680),
    "stable-diffusion-xl-refiner-1.0/unet": (2_259_526_660, 1220),
    "sd-x2-latent-upscaler/vae": (83_653_863, 248),
    "stable-diffusion-x4-upscaler/vae": (55_325_927, 204),
    "sd-x2-latent-upscaler/text_encoder": (123_060_480, 196),
    "stable-diffusion-2/text_encoder": (340_387_840, 372),
    "stable-diffusion-xl-base-1.0/text_encoder_2": (694_659_840, 517),
}


def build(file: str) -> nn.Module:
    """The network of `repository/component` without memory for its weights."""
    component, config = file.partition("/")[2], config_of(file)
    with torch.device("meta"):
        if component.startswith("vae"):
            return AutoencoderKL(autoencoder_config(config))
        if component.startswith("text_encoder"):
            projected = config["architectures"] == ["CLIPTextModelWithProjection"]
            return ClipText((clip_projection_config if projected else clip_text_config)(config))
        built = unet_config(config)
        return KUNet(built) if isinstance(built, KUNetConfig) else UNet(built)


def test_there_is_a_table_for_every_network() -> None:
    assert len(FILES) == len(set(FILES)) == 42


@pytest.mark.parametrize("file", FILES)
def test_keys_and_shapes(file: str) -> None:
    found = {key: tuple(value.shape) for key, value in build(file).state_dict().items()}
    wanted = {key.removeprefix("text_model."): shape for key, shape in table_of(file).shapes.items()}
    assert sorted(found) == sorted(wanted)
    assert found == wanted


@pytest.mark.parametrize("file", PARAMETERS)
def test_parameter_count(file: str) -> None:
    module = build(file)
    assert (sum(p.numel() for p in module.parameters()), len(module.state_dict())) == PARAMETERS[file]


@pytest.mark.parametrize("file", PARAMETERS)
def test_there_are_no_buffers(file: str) -> None:
    """A buffer that no file holds would stay on the meta device after the weights are assigned."""
    assert [name for name, _ in build(file).named_buffers()] == []
