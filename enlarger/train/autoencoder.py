"""Second stage: the compact autoencoder learns to keep pictures, sharp ones and blurred ones alike."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.nn.compact import CompactAutoencoder, CompactAutoencoderConfig, enlarge_bicubic, halve_bicubic
from enlarger.train.loop import Recipe, channels_last, learn
from enlarger.train.photos import Photos
from enlarger.train.predictor import psnr


def train_autoencoder(
    photos: Photos, config: CompactAutoencoderConfig, recipe: Recipe, folder: Path, batch: int
) -> CompactAutoencoder:
    """Squared error on half sharp crops and half crops that were shrunk and enlarged again."""
    training, held_out = photos.split()

    def mixed(photos: Photos, count: int, draw: np.random.Generator) -> Tensor:
        crops = photos.draw(count, draw)
        crops[::2] = enlarge_bicubic(halve_bicubic(crops[::2]))
        return crops

    def loss(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
        crops = mixed(training, batch, draw)
        autoencoder = cast(CompactAutoencoder, module)
        return 30 * (autoencoder.decode(autoencoder.encode(crops)) - crops).square().mean()

    probe = mixed(held_out, 48, np.random.default_rng(1))

    @torch.inference_mode()
    def score(module: nn.Module) -> dict[str, float]:
        autoencoder = cast(CompactAutoencoder, module)
        decoded = autoencoder.decode(autoencoder.encode(probe))
        return {"psnr": psnr(decoded[1::2], probe[1::2]), "psnr_blurred": psnr(decoded[::2], probe[::2])}

    torch.manual_seed(recipe.seed)
    module = CompactAutoencoder(config)
    module.set_components(training.draw(128, np.random.default_rng(recipe.seed)))
    return cast(CompactAutoencoder, learn(channels_last(module), loss, recipe, folder, "autoencoder", score))
