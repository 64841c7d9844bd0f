"""Depth for the depth-to-image models: estimated from pictures by DPT, read from the user's maps, normalised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_weights
from enlarger.errors import CheckpointError, InputError
from enlarger.image.picture import PictureSource, read_picture
from enlarger.runtime.runtime import Runtime
from enlarger.strict_json import read_json
from enlarger.tasks.auxiliary.vision import ImagePreprocessor, read_preprocessor, require_transformers
from enlarger.tasks.latent_diffusion.latent_diffusion import in_float32

FOLDER = "depth_estimator"
DEFAULT_PREPROCESSOR = ImagePreprocessor((384, 384), Image.Resampling.BICUBIC, None, (0.5,) * 3, (0.5,) * 3)
CONSTANT_TOLERANCE = (
    1e-6  # a map whose values differ by less, relative to the largest, has only rounding left to stretch
)


@dataclass(frozen=True, eq=False)
class DepthEstimator:
    """transformers' DPT (Ranftl et al. 2021). It runs in float32, since half precision overflows in its backbone."""

    network: nn.Module
    preprocessor: ImagePreprocessor
    runtime: Runtime = Runtime()

    @staticmethod
    def from_folder(
        path: str | Path, dtype: torch.dtype | None = None, runtime: Runtime = Runtime(), variant: str | None = None
    ) -> "DepthEstimator":
        """Of a depth checkpoint; `dtype` is what the weights are kept in. Raises Unsupported without transformers."""
        with require_transformers("depth", "give a depth map"):
            from transformers import DPTConfig, DPTForDepthEstimation

        folder = Path(path) / FOLDER
        config = read_json(folder / "config.json")
        if config.get("model_type") != "dpt":
            raise CheckpointError(f"{folder}: holds a {config.get('model_type')}, expected a dpt; give a depth map")
        weights = open_weights(folder, "model", variant)
        dpt_config: Any = DPTConfig.from_dict(config)
        network = load_module(lambda: DPTForDepthEstimation(dpt_config), weights, dtype=dtype)
        return DepthEstimator(network, read_preprocessor(Path(path), DEFAULT_PREPROCESSOR), runtime)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 to (B, 1, h, w) in float32, larger is nearer; h and w are the network's."""
        inputs = self.preprocessor(pictures)
        with self.runtime.hold(self.network) as network, torch.inference_mode(), in_float32(network):
            return network(inputs.to(self.runtime.device)).predicted_depth[:, None]


def read_depth_map(source: PictureSource) -> Tensor:
    """A depth map of the user's as (B, 1, H, W) in float32, in whatever unit, larger is nearer.

    `source` is a path or a PIL image, grey of any depth; or an array or tensor (H, W), (B, H, W), (B, 1, H, W).
    """
    if isinstance(source, Image.Image) and (source.mode == "F" or source.mode.startswith("I")):
        source = np.array(source)
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(source.astype(np.float32))
    if isinstance(source, Tensor):
        return _depth_planes(source)
    picture = read_picture(source)
    colour = picture.colour[None, :1]
    if picture.alpha is not None or not picture.colour.eq(colour).all():
        raise InputError("found a depth map with colour or alpha, expected grey, larger is nearer; convert it first")
    return colour


def _depth_planes(depth: Tensor) -> Tensor:
    if depth.ndim in (2, 3):
        depth = depth.reshape(-1, 1, *depth.shape[-2:])
    if depth.ndim != 4 or depth.shape[1] != 1 or not depth.numel():
        raise InputError(f"found a depth map of shape {tuple(depth.shape)}, expected (H, W), (B, H, W) or (B, 1, H, W)")
    return depth.float()


def normalise_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth (B, H, W) or (B, 1, H, W) as the UNet's fifth channel (B, 1, h, w), each map in -1..1.

    `size` is the latents' (h, w). A constant map, which has no nearest and no farthest, gives zeros. Raises InputError
    for NaN and infinity.
    """
    maps = _depth_planes(depth)
    if not torch.isfinite(maps).all():
        raise InputError("found NaN or infinity in a depth map, expected numbers; fill its holes first")
    maps = F.interpolate(maps, size, mode="bicubic", align_corners=False)
    minimum, maximum = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    is_constant = maximum - minimum <= CONSTANT_TOLERANCE * torch.maximum(maximum.abs(), minimum.abs())
    stretched = 2 * (maps - minimum) / torch.where(is_constant, torch.ones_like(maximum), maximum - minimum) - 1
    return torch.where(is_constant, torch.zeros_like(maps), stretched)
