"""Small pictures of latents while they are sampled: by a tiny decoder, or without any weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from enlarger.checkpoint.components import COMPONENT_CLASSES
from enlarger.checkpoint.folder.load import read_network
from enlarger.checkpoint.taesd import read_taesd_decoder
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.image.picture import Picture, to_pil
from enlarger.nn.taesd import AutoencoderTiny, DecoderTiny
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.inputs import LatentSpace

# Red, green and blue in -1..1 of each latent channel, fitted to decoded pictures by others: Stable Diffusion 1.4's at
# discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204, SDXL's in invoke-ai/InvokeAI.
LATENT_RGB_FACTORS: dict[LatentSpace, tuple[tuple[float, float, float], ...]] = {
    "sd": ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    "sdxl": (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    ),
}


@dataclass(frozen=True, eq=False)
class Previewer:
    """Pictures at full size by TAESD's decoder. TAESD is for latents of Stable Diffusion 1 and 2, TAESDXL for SDXL's;
    nothing in their files tells them apart."""

    decoder: DecoderTiny
    runtime: Runtime = Runtime()

    def __call__(self, denoised: Tensor) -> tuple[Image.Image, ...]:
        """Of denoised latents (B, C, h, w) as they are sampled: `Progress.step.denoised`."""
        channels = self.decoder.config.latent_channels
        _check_latents(denoised, channels)
        dtype = next(self.decoder.parameters()).dtype
        with self.runtime.hold(self.decoder) as decoder, torch.inference_mode():
            return _to_images(decoder(denoised.to(self.runtime.device, dtype)))


def linear_preview(denoised: Tensor, space: LatentSpace) -> tuple[Image.Image, ...]:
    """Pictures of denoised latents (B, 4, h, w) as they are sampled, a pixel per latent: each colour is a weighted sum
    of the channels. Raises Unsupported for latents that nobody has fitted weights to."""
    if space not in LATENT_RGB_FACTORS:
        raise Unsupported(
            f"no linear preview of {space} latents, there are {', '.join(LATENT_RGB_FACTORS)}; decode them instead"
        )
    _check_latents(denoised, len(LATENT_RGB_FACTORS[space]))
    factors = torch.tensor(LATENT_RGB_FACTORS[space], device=denoised.device)
    return _to_images(torch.einsum("bchw,cr->brhw", denoised.float(), factors))


def load_previewer(path: str | Path, dtype: torch.dtype | None = None, runtime: Runtime = Runtime()) -> Previewer:
    """A previewer from a folder as diffusers writes `AutoencoderTiny`, or from one safetensors file.

    The file may have the original names (`taesd_decoder.safetensors`) or diffusers'. Raises `CheckpointError` for
    anything else.
    """
    path = Path(path)
    if path.is_dir():
        network, _ = read_network(path, COMPONENT_CLASSES["AutoencoderTiny"], dtype=dtype)
        assert isinstance(network, AutoencoderTiny)
        return Previewer(network.decoder, runtime)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder. Nothing is downloaded: fetch TAESD first.")
    return Previewer(read_taesd_decoder(path, dtype), runtime)


def _check_latents(denoised: Tensor, channels: int) -> None:
    if denoised.ndim != 4 or denoised.shape[1] != channels:
        raise InputError(f"found latents of shape {tuple(denoised.shape)}, expected (B, {channels}, h, w)")


def _to_images(colour: Tensor) -> tuple[Image.Image, ...]:
    return tuple(to_pil(Picture(one)) for one in colour.float().cpu())
