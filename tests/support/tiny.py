"""Tiny random models in diffusers' folder layout, made by diffusers and transformers, with the real CLIP tokenizer."""

import atexit
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from PIL import Image

from tests.support.clip_files import tokenizer_folder
from tests.support.pictures import texture
from tests.support.random_weights import normal, randomise
from tests.support.tiny_vision import depth_network, depth_processor

WIDTH = 32  # of the text features
X2_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "log_linear",
    "prediction_type": "original_sample",
}
SD1_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def x2_parts() -> dict[str, Any]:
    """The five parts of the x2 upscaler: autoencoder of factor 8, UNet of four levels, both tiny."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    cross = "KCrossAttn{}Block2D"
    unet = UNet2DConditionModel(
        in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), layers_per_block=1, mid_block_type=None,
        down_block_types=("KDownBlock2D", *[cross.format("Down")] * 3), act_fn="gelu", attention_head_dim=16,
        up_block_types=(*[cross.format("Up")] * 3, "KUpBlock2D"), cross_attention_dim=WIDTH, conv_in_kernel=1,
        conv_out_kernel=1, norm_num_groups=None, resnet_time_scale_shift="scale_shift",
        time_cond_proj_dim=128 + WIDTH, time_embedding_type="fourier", timestep_post_act="gelu",
    )  # fmt: skip
    return _shared_parts() | {"unet": randomise(unet, 2), "scheduler": EulerDiscreteScheduler(**X2_SCHEDULER)}


def sd1_parts(channels: int = 4) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1 text-to-image model; the UNet has two levels and so many input channels."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, norm_num_groups=8,
    )  # fmt: skip
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    scheduler = PNDMScheduler.from_config(SD1_SCHEDULER)
    return _shared_parts() | {"unet": randomise(unet, 3), "scheduler": scheduler, **absent}


@cache
def x2_folder() -> Path:
    """The x2 upscaler as diffusers writes it; one for all tests, not to be changed."""
    from diffusers import StableDiffusionLatentUpscalePipeline

    return _saved(StableDiffusionLatentUpscalePipeline(**x2_parts()), "x2", X2_SCHEDULER)


@cache
def sd1_folder() -> Path:
    """The text-to-image model as diffusers writes it; one for all tests, not to be changed."""
    from diffusers import StableDiffusionPipeline

    return _saved(StableDiffusionPipeline(**sd1_parts(), requires_safety_checker=False), "sd1", SD1_SCHEDULER)


@cache
def inpaint_folder() -> Path:
    """A model with an inpainting UNet of 9 channels; one for all tests, not to be changed."""
    from diffusers import StableDiffusionInpaintPipeline

    parts = sd1_parts(channels=9)
    return _saved(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False), "inpaint", SD1_SCHEDULER)


@cache
def depth_folder() -> Path:
    """A depth-to-image model with a UNet of 5 channels and a DPT; one for all tests, not to be changed."""
    from diffusers import StableDiffusionDepth2ImgPipeline

    parts = sd1_parts(channels=5)
    del parts["safety_checker"], parts["image_encoder"]
    parts |= {"depth_estimator": depth_network(), "feature_extractor": depth_processor()}
    return _saved(StableDiffusionDepth2ImgPipeline(**parts), "depth", SD1_SCHEDULER)


def picture(width: int = 64, height: int = 96, seed: int = 0) -> Image.Image:
    """A smooth RGB picture with edges."""
    return Image.fromarray(texture(width, height, seed=seed))


def latents(batch: int, height: int, width: int, seed: int = 5) -> torch.Tensor:
    """Latents (B, 4, h, w) as Stable Diffusion's have them, of about unit size."""
    return normal(batch, 4, height, width, seed=seed)


def one_thread() -> Iterator[None]:
    """A fixture's body: networks this small run fastest on one thread, most of all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _shared_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vae = AutoencoderKL(
        block_out_channels=(16,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408,
        projection_dim=WIDTH, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    folder = tokenizer_folder(_place("tokenizer") / "tokenizer")
    return {
        "vae": randomise(vae, 0),
        "text_encoder": randomise(CLIPTextModel(text), 1),
        "tokenizer": CLIPTokenizer.from_pretrained(folder),
    }


def _saved(pipe: Any, name: str, scheduler: dict[str, Any]) -> Path:
    """The pipeline's folder; the scheduler file states only what the official one states."""
    folder = _place(name) / name
    pipe.save_pretrained(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": type(pipe.scheduler).__name__, **scheduler}))
    return folder


def _place(name: str) -> Path:
    place = Path(mkdtemp(prefix=f"enlarger-{name}-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
