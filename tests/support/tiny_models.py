"""Whole models with tiny random networks, in memory and as folders."""

from pathlib import Path
from typing import Any

import torch

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.save import save_folder
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNet, KUNetConfig
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.text.tokenize import Tokenizer
from tests.support.clip_files import small_tokenizer_folder
from tests.support.random_weights import randomise

EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "log_linear",
    "prediction_type": "original_sample",
}
TEXT = ClipTextConfig(32, 2, 4, 64, "quick_gelu", vocab_size=64)
AUTOENCODER = AutoencoderConfig((32, 32), 1, 4, 0.18215, groups=8)
K_UNET = KUNetConfig(
    8, 5, (KStage(32, 2, False, False), KStage(64, 2, True, False), KStage(64, 2, True, True)), 32, 16, 160
)
UNET = UNetConfig(4, 4, (Stage(32, 1, 1, 4), Stage(64, 1, 0, 4)), 1, 4, 32, False)


def x2_bundle(place: Path, **parts: Any) -> PipelineComponents:
    """The x2 upscaler's five parts; `parts` replaces or adds some."""
    components = {
        "scheduler": EULER,
        "text_encoder": randomise(ClipText(TEXT)),
        "tokenizer": Tokenizer.from_folder(small_tokenizer_folder(place / "small_tokenizer")),
        "unet": randomise(KUNet(K_UNET)),
        "vae": randomise(AutoencoderKL(AUTOENCODER)),
    }
    return PipelineComponents(place, {"_class_name": "StableDiffusionLatentUpscalePipeline"}, components | parts)


def sdxl_bundle(place: Path) -> PipelineComponents:
    """Parts of SDXL: an ordinary UNet with a vector input, and a second text encoder with a projection."""
    unet = UNetConfig(4, 4, (Stage(32, 1, 0, 2), Stage(64, 1, 2, 4)), 2, 4, 64, True, 32 + 6 * 8, 8)
    second = ClipTextConfig(32, 2, 4, 64, "gelu", vocab_size=64, projection_dim=32)
    tokenizer = Tokenizer.from_folder(small_tokenizer_folder(place / "small_tokenizer_2"))
    bundle = x2_bundle(
        place, unet=randomise(UNet(unet)), text_encoder_2=randomise(ClipText(second)), tokenizer_2=tokenizer
    )
    return PipelineComponents(
        place, {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}, bundle.components
    )


def x2_folder(place: Path, **options: Any) -> Path:
    """The x2 upscaler as a folder on disk."""
    return save_folder(x2_bundle(place), place / "x2", **options)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules have the same names, types and bits."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(x.dtype == other[n].dtype and x.equal(other[n]) for n, x in one.items())
