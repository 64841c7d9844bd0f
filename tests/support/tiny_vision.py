"""Tiny random networks that look at pictures, as transformers and diffusers write them beside a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from tests.support.random_weights import normal, randomise

SIDE = 64  # of the depth network's input


def depth_network(*, hybrid: bool = False) -> Any:
    """A DPT of four layers; the hybrid one, as the official checkpoint's, begins with a convolutional backbone."""
    from transformers import DPTConfig, DPTForDepthEstimation

    backbone = {
        "model_type": "bit", "layer_type": "bottleneck", "depths": [1, 1, 1], "embedding_size": 8, "num_groups": 2,
        "hidden_sizes": [8, 16, 32], "global_padding": "same", "embedding_dynamic_padding": True,
        "output_stride": 32, "width_factor": 1, "out_features": ["stage1", "stage2", "stage3"],
    }  # fmt: skip
    mixed: dict[str, Any] = {
        "is_hybrid": True, "reassemble_factors": [1, 1, 1, 0.5], "neck_hidden_sizes": [8, 16, 16, 16],
        "backbone_featmap_shape": [1, 32, 4, 4], "backbone_config": backbone,
    }  # fmt: skip
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=SIDE,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], fusion_hidden_size=8,
        **(mixed if hybrid else {"neck_hidden_sizes": [8, 8, 16, 16]}),
    )  # fmt: skip
    return randomise(DPTForDepthEstimation(config), 4)


def depth_processor(**changed: Any) -> Any:
    """The official depth checkpoint's preprocessing at a small size."""
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    half = [0.5, 0.5, 0.5]
    stated = {"size": {"height": SIDE, "width": SIDE}, "image_mean": half, "image_std": half, "resample": 2}
    return DPTImageProcessorPil(**stated | changed)


def safety_network() -> Any:
    """diffusers' safety checker with a vision model of two layers and nothing flagged."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    made = randomise(StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)), 5)
    for name in ("concept", "special_care"):
        embeds = getattr(made, f"{name}_embeds")
        embeds.copy_(normal(*embeds.shape, seed=len(name)))
        getattr(made, f"{name}_embeds_weights").fill_(2.0)
    return made


def clip_processor(**changed: Any) -> Any:
    """The official preprocessing of the safety checker, at a small size."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**{"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | changed)


def save_beside(folder: Path, name: str, network: Any, processor: Any) -> Path:
    """A checkpoint's folder with this network and its preprocessing."""
    network.save_pretrained(folder / name)
    processor.save_pretrained(folder / "feature_extractor")
    return folder


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """(count, 3, height, width) in -1..1, all different and some dark, on the 256 levels of 8 bits."""
    from tests.support.pictures import texture

    arrays = [torch.from_numpy(texture(width, height, seed=seed) // (seed % 3 + 1)) for seed in range(count)]
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
