"""Second stage: the compact autoencoder learns to reproduce pictures, sharp ones and blurred ones alike."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.nn.compact import CompactAutoencoder, CompactAutoencoderConfig, downsample_bicubic, upsample_bicubic
from enlarger.train.loop import TrainingConfig, channels_last, train
from enlarger.train.photos import Photos
from enlarger.train.predictor import psnr


def train_autoencoder(
    photos: Photos, config: CompactAutoencoderConfig, training_config: TrainingConfig, folder: Path, batch: int
) -> CompactAutoencoder:
    """Squared error on half sharp crops and half crops that were shrunk and enlarged again."""
    training, held_out = photos.split()

    def sample_mixed(photos: Photos, count: int, rng: np.random.Generator) -> Tensor:
        crops = photos.sample_crops(count, rng)
        crops[::2] = upsample_bicubic(downsample_bicubic(crops[::2]))
        return crops

    def loss(module: nn.Module, rng: np.random.Generator, progress: float) -> Tensor:
        crops = sample_mixed(training, batch, rng)
        autoencoder = cast(CompactAutoencoder, module)
        return 30 * (autoencoder.decode(autoencoder.encode(crops)) - crops).square().mean()

    validation_crops = sample_mixed(held_out, 48, np.random.default_rng(1))

    @torch.inference_mode()
    def evaluate(module: nn.Module) -> dict[str, float]:
        autoencoder = cast(CompactAutoencoder, module)
        decoded = autoencoder.decode(autoencoder.encode(validation_crops))
        return {
            "psnr": psnr(decoded[1::2], validation_crops[1::2]),
            "psnr_blurred": psnr(decoded[::2], validation_crops[::2]),
        }

    torch.manual_seed(training_config.seed)
    module = CompactAutoencoder(config)
    module.init_from_pca(training.sample_crops(128, np.random.default_rng(training_config.seed)))
    return cast(
        CompactAutoencoder, train(channels_last(module), loss, training_config, folder, "autoencoder", evaluate)
    )
