"""Third stage: the denoiser learns what the predictor's mean leaves out, in the autoencoder's latents."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from enlarger.diffusion.precondition import karras
from enlarger.nn.compact import CompactAutoencoder, Predictor
from enlarger.nn.compact_unet import CompactUNet, CompactUNetConfig, residual_scale
from enlarger.tasks.upscale.bundled import SIGMA_MAX
from enlarger.train.loop import TrainingConfig, channels_last, train
from enlarger.train.photos import Degradation, Photos, make_pairs


@dataclass(frozen=True)
class NoiseLevelDistribution:
    """Noise levels to train on: log-normal (Karras et al. 2022, section 5), with a share at the highest sigma."""

    P_mean: float = -0.6
    P_std: float = 1.4
    sigma_max: float = SIGMA_MAX
    sigma_max_fraction: float = 0.05

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """Levels for a batch, (B,)."""
        sigmas = np.exp(rng.normal(self.P_mean, self.P_std, count)).clip(0.01, self.sigma_max)
        sigmas[rng.random(count) < self.sigma_max_fraction] = self.sigma_max
        return torch.from_numpy(sigmas).float()


@dataclass(frozen=True, eq=False)
class ResidualTarget:
    """The latents of the mean, and what is to be added to them."""

    mean: Tensor
    residual: Tensor


@torch.no_grad()
def residual_target(
    predictor: Predictor, autoencoder: CompactAutoencoder, large: Tensor, small: Tensor
) -> ResidualTarget:
    """Latents of the predictor's mean and the difference to those of the real picture."""
    mean = autoencoder.encode(predictor(small))
    return ResidualTarget(mean, autoencoder.encode(large) - mean)


def train_denoiser(
    photos: Photos, predictor: Predictor, autoencoder: CompactAutoencoder,
    config: CompactUNetConfig, training_config: TrainingConfig, folder: Path, batch: int,
) -> CompactUNet:  # fmt: skip
    """Karras et al. 2022, equation 8, whose loss is even over noise levels once it is put on the raw output."""
    training, held_out = photos.split()
    noise_levels, precondition, degradation = NoiseLevelDistribution(), karras(), Degradation()
    config = replace(config, deviation=residual_std(training, predictor, autoencoder, config))

    def output_error(module: nn.Module, data: ResidualTarget, sigma: Tensor, noise: Tensor) -> Tensor:
        scalings = precondition(sigma[:, None, None, None])
        clean = data.residual / residual_scale(data.mean, config)
        x = clean + noise * sigma[:, None, None, None]
        output = module(torch.cat([x * scalings.input, data.mean], 1), precondition(sigma).time)
        return (output - (clean - x * scalings.skip) / scalings.output).square().mean((1, 2, 3))

    def loss(module: nn.Module, rng: np.random.Generator, progress: float) -> Tensor:
        crops = make_pairs(training.sample_crops(batch, rng), rng, degradation)
        data = residual_target(predictor, autoencoder, crops.large, crops.small)
        return output_error(module, data, noise_levels.sample(batch, rng), torch.randn_like(data.mean)).mean()

    validation_rng = np.random.default_rng(1)
    crops = make_pairs(held_out.sample_crops(48, validation_rng), validation_rng)
    validation_target = residual_target(predictor, autoencoder, crops.large, crops.small)
    noise = torch.randn(validation_target.mean.shape, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def evaluate(module: nn.Module) -> dict[str, float]:
        validation_sigmas = {f"loss_at_{s:g}": torch.full((len(noise),), s) for s in (0.05, 0.3, 1.0, 4.0)}
        return {
            name: float(output_error(module, validation_target, sigma, noise).mean())
            for name, sigma in validation_sigmas.items()
        }

    torch.manual_seed(training_config.seed)
    module = channels_last(CompactUNet(config))
    return cast(CompactUNet, train(module, loss, training_config, folder, "denoiser", evaluate))


def residual_std(
    photos: Photos, predictor: Predictor, autoencoder: CompactAutoencoder, config: CompactUNetConfig
) -> tuple[float, ...]:
    """The deviation of each channel of the residual in units of the local one, over 256 crops."""
    rng = np.random.default_rng(2)
    pairs = (make_pairs(photos.sample_crops(32, rng), rng) for _ in range(8))
    targets = (residual_target(predictor, autoencoder, p.large, p.small) for p in pairs)
    unit = replace(config, deviation=(1.0,) * config.out_channels)
    residuals = torch.cat([f.residual / residual_scale(f.mean, unit) for f in targets])
    return tuple(round(float(v), 5) for v in residuals.std((0, 2, 3)))
