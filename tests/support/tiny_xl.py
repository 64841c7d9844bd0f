"""Tiny random SDXL models in diffusers' folder layout: base, refiner, and a base with an inpainting UNet."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from enlarger.diffusers import schedulers
from tests.support import tiny
from tests.support.clip_files import tokenizer_folder
from tests.support.random_weights import randomise

SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
WIDTHS = (tiny.WIDTH, 24)  # of the two text encoders
POOLED = 16
SCALAR = 8  # channels of each size


@cache
def parts() -> dict[str, Any]:
    """The parts of the base model."""
    from diffusers import EulerDiscreteScheduler

    return {
        **_shared(),
        "unet": _unet(10, sum(WIDTHS), 6),
        "scheduler": EulerDiscreteScheduler.from_config(SCHEDULER),
        "image_encoder": None,
        "feature_extractor": None,
    }


def refiner_parts() -> dict[str, Any]:
    """The parts of the refiner: one text encoder, and a vector with room for five numbers."""
    absent = {"text_encoder": None, "tokenizer": None}
    return parts() | absent | {"unet": _unet(11, WIDTHS[1], 5)}


@cache
def base_folder() -> Path:
    """The base model as diffusers writes it; one for all tests, not to be changed."""
    from diffusers import StableDiffusionXLPipeline

    return _saved(StableDiffusionXLPipeline(**parts(), add_watermarker=False), "xl")


@cache
def refiner_folder() -> Path:
    """The refiner."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False, "add_watermarker": False}
    return _saved(StableDiffusionXLImg2ImgPipeline(**refiner_parts(), **settings), "xl-refiner")


@cache
def inpaint_folder() -> Path:
    """A model whose UNet takes the mask and the masked picture: 9 channels."""
    from diffusers import StableDiffusionXLInpaintPipeline

    unet = {"unet": _unet(12, sum(WIDTHS), 6, channels=9)}
    return _saved(StableDiffusionXLInpaintPipeline(**parts() | unet, add_watermarker=False), "xl-inpaint")


def _unet(seed: int, context: int, scalars: int, channels: int = 4) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), cross_attention_dim=context,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=SCALAR,
        projection_class_embeddings_input_dim=POOLED + scalars * SCALAR,
    )  # fmt: skip
    return randomise(unet, seed)


@cache
def _shared() -> dict[str, Any]:
    """The autoencoder, the two text encoders, the second with a projection, and their tokenizers."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vae = AutoencoderKL(
        block_out_channels=(16,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=8, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    small = {"intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 49408, "bos_token_id": 0}
    small |= {"eos_token_id": 2, "pad_token_id": 1}
    first = CLIPTextConfig(hidden_size=WIDTHS[0], num_hidden_layers=3, projection_dim=WIDTHS[0], **small)
    second = CLIPTextConfig(
        hidden_size=WIDTHS[1], num_hidden_layers=4, projection_dim=POOLED, hidden_act="gelu", **small
    )  # fmt: skip
    place = tiny._place("xl-tokenizers")
    folders = [tokenizer_folder(place / part, "stable-diffusion-xl-base-1.0", part) for part in TOKENIZERS]
    return {
        "vae": randomise(vae, 13),
        "text_encoder": randomise(CLIPTextModel(first), 14),
        "text_encoder_2": randomise(CLIPTextModelWithProjection(second), 15),
        **{part: CLIPTokenizer.from_pretrained(folder) for part, folder in zip(TOKENIZERS, folders, strict=True)},
    }


TOKENIZERS = ("tokenizer", "tokenizer_2")


def _saved(pipe: Any, name: str) -> Path:
    """The pipeline's folder; the scheduler file is the official one."""
    folder = tiny._place(name) / name
    pipe.save_pretrained(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", **SCHEDULER}))
    return folder


def load_pipelines(theirs: Any, ours: Any, folder: Path) -> tuple[Any, Any]:
    """Our pipeline and diffusers', quiet, of one folder."""
    pipelines = ours.from_pretrained(folder), theirs.from_pretrained(folder, add_watermarker=False)
    for pipe in pipelines:
        pipe.set_progress_bar_config(disable=True)
    return pipelines


def generators(seed: int | list[int]) -> Any:
    """A generator, or a list of them."""
    many = [torch.Generator().manual_seed(one) for one in ([seed] if isinstance(seed, int) else seed)]
    return many[0] if isinstance(seed, int) else many


@contextmanager
def scheduled(pipes: Sequence[Any], name: str, **changes: Any) -> Iterator[None]:
    """Both, ours then diffusers', with another scheduler for the length of the block."""
    import diffusers

    before = [pipe.scheduler for pipe in pipes]
    for pipe, room, old in zip(pipes, (schedulers, diffusers), before, strict=True):
        pipe.scheduler = getattr(room, name).from_config(old.config, **changes)
    try:
        yield
    finally:
        for pipe, old in zip(pipes, before, strict=True):
            pipe.scheduler = old


@contextmanager
def statistics(pipes: Sequence[Any]) -> Iterator[None]:
    """Both with an autoencoder that states the latents' mean and deviation."""
    ours, theirs = pipes
    stated = {"latents_mean": (-1.6, 1.1, 3.1, -1.4), "latents_std": (8.4, 5.9, 6.8, 5.2)}
    network = ours.vae.native
    before, plain = network.config, dict(theirs.vae.config)
    network.config = replace(before, **stated)
    theirs.vae.register_to_config(**{name: list(values) for name, values in stated.items()})
    try:
        yield
    finally:
        network.config = before
        theirs.vae.register_to_config(**{name: plain[name] for name in stated})
