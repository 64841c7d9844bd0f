"""Reading TAESD: diffusers' config of it, and the original file that holds the decoder alone."""

import re
from pathlib import Path

import torch

from enlarger.checkpoint.config.strict_config import StrictConfig
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.checkpoint.tensors.pickle_guard import PICKLE_SUFFIXES
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, Unsupported
from enlarger.nn.taesd import AutoencoderTinyConfig, DecoderTiny
from enlarger.strict_json import Json

FIXED_TINY: Json = {
    "act_fn": "relu",
    "in_channels": 3,
    "out_channels": 3,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "shift_factor": 0.0,
}
# How diffusers rounds latents to bytes, which nothing here does; a precision that it does not need; a copy of a width.
IGNORED_TINY = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels")
DIFFUSERS_PREFIX = "decoder.layers."
FIRST_WEIGHT = "layers.0.weight"  # of the decoder: (channels, latent_channels, 3, 3)


def tiny_config(config: Json) -> AutoencoderTinyConfig:
    """An `AutoencoderTiny`'s config."""
    strict_config = StrictConfig("AutoencoderTiny", config).require_equal(FIXED_TINY).ignore_keys(*IGNORED_TINY)
    parsed = AutoencoderTinyConfig(
        channels=_channels(strict_config),
        latent_channels=strict_config.get_int("latent_channels", 4),
        encoder_blocks=_blocks(strict_config, "num_encoder_blocks", AutoencoderTinyConfig.encoder_blocks),
        decoder_blocks=_blocks(strict_config, "num_decoder_blocks", AutoencoderTinyConfig.decoder_blocks),
        scaling_factor=strict_config.get_float("scaling_factor", AutoencoderTinyConfig.scaling_factor),
    )
    strict_config.reject_unknown()
    return parsed


def _channels(strict_config: StrictConfig) -> int:
    """The one width of all levels."""
    setting_names = ("encoder_block_out_channels", "decoder_block_out_channels")
    widths = {
        width
        for name in setting_names
        for width in (strict_config.get_ints(name) if strict_config.get(name) else (AutoencoderTinyConfig.channels,))
    }
    if len(widths) != 1:
        raise Unsupported(f"{strict_config.class_name}: widths {sorted(widths)}; supported: one width for all levels.")
    return widths.pop()


def _blocks(strict_config: StrictConfig, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return strict_config.get_ints(name) if strict_config.get(name) else default


def tiny_json(config: AutoencoderTinyConfig) -> Json:
    """The inverse of `tiny_config`."""
    return FIXED_TINY | {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": [config.channels] * len(config.encoder_blocks),
        "decoder_block_out_channels": [config.channels] * len(config.decoder_blocks),
        "num_encoder_blocks": list(config.encoder_blocks),
        "num_decoder_blocks": list(config.decoder_blocks),
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
    }


def to_decoder_key(name: str) -> str | None:
    """The name that `DecoderTiny` has for a weight of a file; None for one of the encoder.

    The original file counts its layers from the bend, which has no weights: its `1.weight` is our `layers.0.weight`.
    """
    if name.startswith("encoder.layers."):
        return None
    original_match = re.fullmatch(r"(\d+)\.(.+)", name)
    if original_match is not None:
        return f"layers.{int(original_match[1]) - 1}.{original_match[2]}"
    return name.removeprefix("decoder.")


def read_taesd_decoder(path: Path, dtype: torch.dtype | None = None) -> DecoderTiny:
    """The decoder in one safetensors file, under the original names or diffusers'.

    Raises `CheckpointError` for a pickled file and for one that does not hold TAESD's decoder.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path}: such files are programs that run when opened, so only safetensors are read; "
            "fetch taesd_decoder.safetensors or the folder in diffusers' layout."
        )
    weights = open_checkpoint(path)
    channels, latent_channels = _infer_channels(weights)
    decoder = load_module(
        lambda: DecoderTiny(AutoencoderTinyConfig(channels, latent_channels)), weights, to_decoder_key, dtype
    )
    assert isinstance(decoder, DecoderTiny)
    return decoder


def _infer_channels(weights: SafetensorsCheckpoint) -> tuple[int, int]:
    """Channels and latent channels, by the shape of the first weight."""
    first_weight = next((name for name in weights.keys() if to_decoder_key(name) == FIRST_WEIGHT), None)
    shape = () if first_weight is None else weights.shape(first_weight)
    if len(shape) != 4:
        names = ", ".join(weights.keys()[:3])
        raise CheckpointError(
            f"{weights.path}: found {names} ..., expected TAESD's decoder, whose first weight is 1.weight or "
            f"{DIFFUSERS_PREFIX}0.weight; give taesd_decoder.safetensors or the folder in diffusers' layout."
        )
    return shape[0], shape[1]
