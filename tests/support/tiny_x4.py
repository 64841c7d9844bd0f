"""A tiny random x4 upscaler in diffusers' folder layout."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import tiny
from tests.support.random_weights import randomise

SCHEDULER = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LOW_RES = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def x4_parts() -> dict[str, Any]:
    """The parts of the x4 upscaler: autoencoder of factor 4, UNet with 7 channels in and a class embedding."""
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel

    vae = AutoencoderKL(
        block_out_channels=(16,) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.08333,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=7, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=tiny.WIDTH, norm_num_groups=8, num_class_embeds=1000, use_linear_projection=True,
        only_cross_attention=(True, False),
    )  # fmt: skip
    shared = tiny.x2_parts()
    return {
        "vae": randomise(vae, 6),
        "text_encoder": shared["text_encoder"],
        "tokenizer": shared["tokenizer"],
        "unet": randomise(unet, 7),
        "low_res_scheduler": DDPMScheduler(**LOW_RES),
        "scheduler": DDIMScheduler(**SCHEDULER),
    }


@cache
def x4_folder() -> Path:
    """The x4 upscaler as diffusers writes it; one for all tests, not to be changed."""
    from diffusers import StableDiffusionUpscalePipeline

    folder = tiny._place("x4") / "x4"
    StableDiffusionUpscalePipeline(**x4_parts()).save_pretrained(folder)
    for name, kind, stated in (
        ("scheduler", "DDIMScheduler", SCHEDULER),
        ("low_res_scheduler", "DDPMScheduler", LOW_RES),
    ):
        (folder / name / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **stated}))
    return folder
