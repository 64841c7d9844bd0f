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
from enlarger.tasks.upscale_compact import MOST
from enlarger.train.loop import Recipe, channels_last, learn
from enlarger.train.photos import Degradation, Photos, pair


@dataclass(frozen=True)
class Levels:
    """Noise levels to train on: log-normal (Karras et al. 2022, section 5), with a share at the top of the ladder."""

    mean: float = -0.6
    deviation: float = 1.4
    top: float = MOST
    share: float = 0.05

    def draw(self, count: int, draw: np.random.Generator) -> Tensor:
        """Levels for a batch, (B,)."""
        levels = np.exp(draw.normal(self.mean, self.deviation, count)).clip(0.01, self.top)
        levels[draw.random(count) < self.share] = self.top
        return torch.from_numpy(levels).float()


@dataclass(frozen=True, eq=False)
class Target:
    """The latents of the mean, and what is to be added to them."""

    mean: Tensor
    residual: Tensor


@torch.no_grad()
def target(predictor: Predictor, autoencoder: CompactAutoencoder, large: Tensor, small: Tensor) -> Target:
    """Latents of the predictor's mean and the difference to those of the real picture."""
    mean = autoencoder.encode(predictor(small))
    return Target(mean, autoencoder.encode(large) - mean)


def train_denoiser(
    photos: Photos, predictor: Predictor, autoencoder: CompactAutoencoder,
    config: CompactUNetConfig, recipe: Recipe, folder: Path, batch: int,
) -> CompactUNet:  # fmt: skip
    """Karras et al. 2022, equation 8, whose loss is even over noise levels once it is put on the raw output."""
    training, held_out = photos.split()
    levels, scales, degradation = Levels(), karras(), Degradation()
    config = replace(config, deviation=measure(training, predictor, autoencoder, config))

    def raw_error(module: nn.Module, data: Target, sigma: Tensor, noise: Tensor) -> Tensor:
        scale = scales(sigma[:, None, None, None])
        clean = data.residual / residual_scale(data.mean, config)
        x = clean + noise * sigma[:, None, None, None]
        output = module(torch.cat([x * scale.input, data.mean], 1), scales(sigma).time)
        return (output - (clean - x * scale.skip) / scale.output).square().mean((1, 2, 3))

    def loss(module: nn.Module, draw: np.random.Generator, progress: float) -> Tensor:
        crops = pair(training.draw(batch, draw), draw, degradation)
        data = target(predictor, autoencoder, crops.large, crops.small)
        return raw_error(module, data, levels.draw(batch, draw), torch.randn_like(data.mean)).mean()

    fixed = np.random.default_rng(1)
    crops = pair(held_out.draw(48, fixed), fixed)
    probe = target(predictor, autoencoder, crops.large, crops.small)
    noise = torch.randn(probe.mean.shape, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def score(module: nn.Module) -> dict[str, float]:
        probes = {f"loss_at_{s:g}": torch.full((len(noise),), s) for s in (0.05, 0.3, 1.0, 4.0)}
        return {name: float(raw_error(module, probe, sigma, noise).mean()) for name, sigma in probes.items()}

    torch.manual_seed(recipe.seed)
    module = channels_last(CompactUNet(config))
    return cast(CompactUNet, learn(module, loss, recipe, folder, "denoiser", score))


def measure(
    photos: Photos, predictor: Predictor, autoencoder: CompactAutoencoder, config: CompactUNetConfig
) -> tuple[float, ...]:
    """The deviation of each channel of the residual in units of the local one, over 256 crops."""
    draw = np.random.default_rng(2)
    pairs = (pair(photos.draw(32, draw), draw) for _ in range(8))
    found = (target(predictor, autoencoder, p.large, p.small) for p in pairs)
    unit = replace(config, deviation=(1.0,) * config.out_channels)
    residuals = torch.cat([f.residual / residual_scale(f.mean, unit) for f in found])
    return tuple(round(float(v), 5) for v in residuals.std((0, 2, 3)))
