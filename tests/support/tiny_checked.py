"""A tiny random Stable Diffusion 1 with a safety checker."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enlarger.diffusers import StableDiffusionPipeline
from tests.support import tiny
from tests.support.tiny_vision import clip_processor, safety_network, save_beside


def folder_with_checker(place: Path, above: float) -> tuple[Path, Any]:
    """The tiny model with a checker that flags, if `above` is positive, what two steps make of "a cat" with seed 0.

    Also diffusers' checker."""
    folder, network = place / "sd1", safety_network()
    shutil.copytree(tiny.sd1_folder(), folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    processed = clip_processor()(pipeline("a cat", num_inference_steps=2, generator=torch.manual_seed(0)).images[0])
    inputs = torch.from_numpy(np.stack(processed["pixel_values"]))
    with torch.inference_mode():
        embeds = torch.nn.functional.normalize(network.visual_projection(network.vision_model(inputs)[1]))
    network.concept_embeds[4], network.concept_embeds_weights[4] = 3 * embeds[0], 1 - above
    save_beside(folder, "safety_checker", network, clip_processor())
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, network
