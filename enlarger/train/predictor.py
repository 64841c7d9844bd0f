"""First stage: the predictor learns the mean of the pictures that a small picture may have come from."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.nn.compact import Predictor, PredictorConfig, enlarge_bicubic
from enlarger.train.loop import Recipe, channels_last, learn
from enlarger.train.photos import Degradation, Photos, pair


def train_predictor(photos: Photos, config: PredictorConfig, recipe: Recipe, folder: Path, batch: int) -> Predictor:
    """Absolute error first, since it converges faster; squared error, whose minimum is the mean, in the last third."""
    training, held_out = photos.split()
    degradation = Degradation()

    def loss(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
        crops = pair(training.draw(batch, draw), draw, degradation)
        error = module(crops.small) - crops.large
        return error.abs().mean() if progress < 0.67 else 8 * error.square().mean()

    fixed = np.random.default_rng(1)
    probe = pair(held_out.draw(48, fixed), fixed)

    @torch.inference_mode()
    def score(module: nn.Module) -> dict[str, float]:
        interpolated = psnr(enlarge_bicubic(probe.small), probe.large)
        return {"psnr": psnr(module(probe.small), probe.large), "bicubic": interpolated}

    torch.manual_seed(recipe.seed)
    module = channels_last(Predictor(config))
    return cast(Predictor, learn(module, loss, recipe, folder, "predictor", score))


def psnr(found: Tensor, expected: Tensor) -> float:
    """Mean over the batch of the peak signal-to-noise ratio in dB, pixels in -1..1."""
    error = (found.clamp(-1, 1) - expected).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())
