"""First stage: the predictor learns the mean of the pictures that a small picture may have come from."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.nn.compact import Predictor, PredictorConfig, upsample_bicubic
from enlarger.train.loop import TrainingConfig, channels_last, train
from enlarger.train.photos import Degradation, Photos, make_pairs


def train_predictor(
    photos: Photos, config: PredictorConfig, training_config: TrainingConfig, folder: Path, batch: int
) -> Predictor:
    """Absolute error first, since it converges faster; squared error, whose minimum is the mean, in the last third."""
    training, held_out = photos.split()
    degradation = Degradation()

    def loss(module: nn.Module, rng: np.random.Generator, progress: float) -> Tensor:
        crops = make_pairs(training.sample_crops(batch, rng), rng, degradation)
        error = module(crops.small) - crops.large
        return error.abs().mean() if progress < 0.67 else 8 * error.square().mean()

    validation_rng = np.random.default_rng(1)
    validation_pairs = make_pairs(held_out.sample_crops(48, validation_rng), validation_rng)

    @torch.inference_mode()
    def evaluate(module: nn.Module) -> dict[str, float]:
        interpolated = psnr(upsample_bicubic(validation_pairs.small), validation_pairs.large)
        return {"psnr": psnr(module(validation_pairs.small), validation_pairs.large), "bicubic": interpolated}

    torch.manual_seed(training_config.seed)
    module = channels_last(Predictor(config))
    return cast(Predictor, train(module, loss, training_config, folder, "predictor", evaluate))


def psnr(output: Tensor, reference: Tensor) -> float:
    """Mean over the batch of the peak signal-to-noise ratio in dB, pixels in -1..1."""
    error = (output.clamp(-1, 1) - reference).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())
