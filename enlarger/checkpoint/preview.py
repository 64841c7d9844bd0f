"""Reading TAESD: diffusers' config of it, and the original file that holds the decoder alone."""

import re
from pathlib import Path

import torch

from enlarger.checkpoint.build import build
from enlarger.checkpoint.files import PICKLES, Weights, open_file
from enlarger.checkpoint.settings import Json, Settings
from enlarger.errors import CheckpointError, Unsupported
from enlarger.nn.preview import TinyConfig, TinyDecoder

SAME_TINY: Json = {
    "act_fn": "relu",
    "in_channels": 3,
    "out_channels": 3,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "shift_factor": 0.0,
}
# How diffusers rounds latents to bytes, which nothing here does; a precision that it does not need; a copy of a width.
UNUSED_TINY = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels")
OURS = "decoder.layers."  # diffusers' prefix
FIRST = "layers.0.weight"  # of the decoder: (channels, latent_channels, 3, 3)


def tiny_config(config: Json) -> TinyConfig:
    """An `AutoencoderTiny`'s config."""
    found = Settings("AutoencoderTiny", config).same(SAME_TINY).ignore(*UNUSED_TINY)
    made = TinyConfig(
        channels=_width(found),
        latent_channels=found.number("latent_channels", 4),
        encoder_blocks=_blocks(found, "num_encoder_blocks", TinyConfig.encoder_blocks),
        decoder_blocks=_blocks(found, "num_decoder_blocks", TinyConfig.decoder_blocks),
        scale=found.real("scaling_factor", TinyConfig.scale),
    )
    found.finish()
    return made


def _width(found: Settings) -> int:
    """The one width of all levels."""
    names = ("encoder_block_out_channels", "decoder_block_out_channels")
    widths = {width for name in names for width in (found.numbers(name) if found.get(name) else (TinyConfig.channels,))}
    if len(widths) != 1:
        raise Unsupported(f"{found.what}: widths {sorted(widths)}; supported: one width for all levels.")
    return widths.pop()


def _blocks(found: Settings, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return found.numbers(name) if found.get(name) else default


def tiny_json(config: TinyConfig) -> Json:
    """The inverse of `tiny_config`."""
    return SAME_TINY | {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": [config.channels] * len(config.encoder_blocks),
        "decoder_block_out_channels": [config.channels] * len(config.decoder_blocks),
        "num_encoder_blocks": list(config.encoder_blocks),
        "num_decoder_blocks": list(config.decoder_blocks),
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scale,
    }


def decoder_name(name: str) -> str | None:
    """The name that `TinyDecoder` has for a weight of a file; None for one of the encoder.

    The original file counts its layers from the bend, which has no weights: its `1.weight` is our `layers.0.weight`.
    """
    if name.startswith("encoder.layers."):
        return None
    original = re.fullmatch(r"(\d+)\.(.+)", name)
    if original is not None:
        return f"layers.{int(original[1]) - 1}.{original[2]}"
    return name.removeprefix("decoder.")


def read_tiny_decoder(path: Path, dtype: torch.dtype | None = None) -> TinyDecoder:
    """The decoder in one safetensors file, under the original names or diffusers'.

    Raises `CheckpointError` for a pickled file and for one that does not hold TAESD's decoder.
    """
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: such files are programs that run when opened, so only safetensors are read; "
            "fetch taesd_decoder.safetensors or the folder in diffusers' layout."
        )
    weights = open_file(path)
    channels, latent_channels = _sizes(weights)
    made = build(lambda: TinyDecoder(TinyConfig(channels, latent_channels)), weights, decoder_name, dtype)
    assert isinstance(made, TinyDecoder)
    return made


def _sizes(weights: Weights) -> tuple[int, int]:
    """Channels and latent channels, which the first weight tells."""
    first = next((name for name in weights.names() if decoder_name(name) == FIRST), None)
    shape = () if first is None else weights.shape(first)
    if len(shape) != 4:
        names = ", ".join(weights.names()[:3])
        raise CheckpointError(
            f"{weights.path}: found {names} ..., expected TAESD's decoder, whose first weight is 1.weight or "
            f"{OURS}0.weight; give taesd_decoder.safetensors or the folder in diffusers' layout."
        )
    return shape[0], shape[1]
