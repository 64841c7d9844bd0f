"""A tiny random depth-to-image model in diffusers' folder layout."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import tiny
from tests.support.random_weights import randomise
from tests.support.tiny_vision import depth_network, depth_processor

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def depth_parts() -> dict[str, Any]:
    """The parts: a UNet with 5 channels in, and a DPT."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=5, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=tiny.WIDTH, norm_num_groups=8, use_linear_projection=True,
    )  # fmt: skip
    shared = tiny.sd1_parts()
    kept = {name: shared[name] for name in ("vae", "text_encoder", "tokenizer")}
    seen = {"depth_estimator": depth_network(), "feature_extractor": depth_processor()}
    return kept | seen | {"unet": randomise(unet, 8), "scheduler": DDIMScheduler(**SCHEDULER)}


@cache
def depth_folder() -> Path:
    """The model as diffusers writes it; one for all tests, not to be changed."""
    from diffusers import StableDiffusionDepth2ImgPipeline

    folder = tiny._place("depth") / "depth"
    StableDiffusionDepth2ImgPipeline(**depth_parts()).save_pretrained(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler", **SCHEDULER}))
    return folder
