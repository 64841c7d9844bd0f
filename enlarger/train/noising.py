"""What is noised, how much, and what the network should answer: by a schedule, or by Karras et al. 2022."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from enlarger.diffusion.precondition import karras
from enlarger.diffusion.sampler import Prediction
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.train.draws import Draws

ZERO_TERMINAL = 2.0**-24  # the last cumulative product of a schedule where it is to be 0, see `from_betas`


@dataclass(frozen=True, eq=False)
class Noised:
    """What a network sees of the latents, (B, C, h, w) and (B,), and what it should answer.

    `weight` (B,) is that of each sample's squared error.
    """

    x: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor


class Noising(Protocol):
    """Clean latents (B, C, h, w) to noisy ones."""

    def __call__(self, clean: Tensor, draws: Draws) -> Noised: ...


@dataclass(frozen=True, eq=False)
class ScheduledNoise:
    """Noise of uniformly drawn times of a schedule: x = sqrt(a) clean + sqrt(1 - a) noise (Ho et al. 2020, equation 4).

    `offset` adds noise of one value over each channel (Guttenberg 2023). `snr_gamma` weighs as Hang et al. 2023 do,
    section 3.4; None weighs all times alike.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    offset: float = 0.0
    snr_gamma: float | None = None

    def __call__(self, clean: Tensor, draws: Draws) -> Noised:
        time = draws.whole(self.schedule.num_train_timesteps)
        noise = draws.normal(clean)
        if self.offset:
            noise = noise + self.offset * draws.normal(clean[:, :, :1, :1])
        return self.at(clean, noise, time)

    def at(self, clean: Tensor, noise: Tensor, time: Tensor) -> Noised:
        """The same of given noise and whole times (B,)."""
        product = self._alphas_cumprod()[time]
        signal, amount = (
            factor.to(clean.device, clean.dtype)[:, None, None, None]
            for factor in (product.sqrt(), (1 - product).sqrt())
        )
        targets = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: signal * noise - amount * clean,
            "sample": lambda: clean,
        }
        weight = self._weight(product).to(clean.device, clean.dtype)
        return Noised(signal * clean + amount * noise, time.to(clean.device), targets[self.prediction](), weight)

    def _alphas_cumprod(self) -> Tensor:
        product = 1 / (1 + self.schedule.sigmas**2)
        is_zero_terminal = 0.99 * ZERO_TERMINAL < float(product[-1]) < 1.01 * ZERO_TERMINAL
        return torch.cat([product[:-1], torch.zeros(1, dtype=product.dtype)]) if is_zero_terminal else product

    def _weight(self, product: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return torch.ones_like(product)
        snr = product / (1 - product)
        if self.prediction == "epsilon":
            return (self.snr_gamma / snr).clamp(max=1)  # 1, where there is nothing but noise
        of_clean = snr.clamp(max=self.snr_gamma)
        return of_clean if self.prediction == "sample" else of_clean / (snr + 1)


@dataclass(frozen=True, eq=False)
class KarrasNoise:
    """Noise levels drawn log-uniformly, latents preconditioned as Karras et al. 2022, table 1, for data of deviation 1.

    What the x2 latent upscaler learns, as k-diffusion's `Denoiser.loss` has it.
    """

    sigma_min: float
    sigma_max: float

    def __call__(self, clean: Tensor, draws: Draws) -> Noised:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return self.at(clean, draws.normal(clean), (low + (high - low) * draws.uniform()).exp())

    def at(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
        """The same of given noise and levels (B,)."""
        scalings = karras()(sigma.to(clean)[:, None, None, None])
        noisy = clean + noise * sigma.to(clean)[:, None, None, None]
        target = (clean - scalings.skip * noisy) / scalings.output
        return Noised(noisy * scalings.input, scalings.time.flatten(), target, torch.ones_like(sigma.to(clean)))
