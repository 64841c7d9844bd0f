"""The bundled model: predict the mean of the enlargements, then, if asked, diffuse the detail that it leaves out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, sample
from enlarger.diffusion.schedule import karras_sigmas
from enlarger.diffusion.solvers import euler
from enlarger.nn.compact import CompactAutoencoder, Predictor
from enlarger.nn.compact_unet import CompactUNet, residual_scale
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tiling import apply_tiled
from enlarger.tasks.latent_diffusion import pad_to_multiple
from enlarger.tasks.result import Progress, ProgressCallback, no_progress, report_steps

TILE = 512  # input pixels: what bounds the memory
SIGMA_MIN, SIGMA_MAX = 0.02, 6.0  # noise levels of the ladder, as trained


@dataclass(frozen=True, eq=False)
class BundledUpscaler:
    """The parts of the bundled model. Networks run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: Predictor
    autoencoder: CompactAutoencoder
    unet: CompactUNet
    runtime: Runtime = Runtime()
    tile: int = TILE

    def __call__(
        self, small: Tensor, noise: Noise, *, detail: float = 0.0, steps: int = 1, solver: Solver = euler,
        watch: ProgressCallback = no_progress,
    ) -> Tensor:  # fmt: skip
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W): the predicted mean plus `detail` times a sampled rest."""
        with torch.inference_mode():
            mean = self._predict(small.to(self.runtime.device), watch)
            if detail == 0:
                return mean
            padded = pad_to_multiple(mean, self.autoencoder.downsample_factor * self.unet.size_multiple)
            detail_image = self._sample_detail(padded, noise, steps, solver, watch)
            return mean + detail * detail_image[..., : mean.shape[-2], : mean.shape[-1]]

    def _predict(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        def report(done: int, total: int) -> None:
            watch(Progress("predict", done, total))

        with self.runtime.hold(self.predictor) as predictor:
            return apply_tiled(
                predictor, small, tile_size=self.tile, margin=predictor.receptive_radius, scale=2, progress=report
            )

    def _sample_detail(self, mean: Tensor, noise: Noise, steps: int, solver: Solver, watch: ProgressCallback) -> Tensor:
        """A sample of what real pictures have beyond their mean, found in latents and decoded as a difference."""
        factor, reach = self.autoencoder.downsample_factor, self.autoencoder.receptive_radius
        with self.runtime.hold(self.autoencoder) as autoencoder:
            latents = apply_tiled(autoencoder.encode, mean, tile_size=2 * self.tile, margin=reach, scale=1 / factor)
        residual = self._sample_residual(latents, noise, steps, solver, watch)
        with self.runtime.hold(self.autoencoder) as autoencoder:
            latent_pair = torch.cat([latents, latents + residual], 1)

            def difference(latent_pair: Tensor) -> Tensor:
                base, detailed = latent_pair.chunk(2, 1)
                return autoencoder.decode(detailed) - autoencoder.decode(base)

            return apply_tiled(
                difference, latent_pair, tile_size=2 * self.tile // factor, margin=reach // factor, scale=factor
            )

    def _sample_residual(
        self, latents: Tensor, noise: Noise, steps: int, solver: Solver, watch: ProgressCallback
    ) -> Tensor:
        sigmas = torch.cat([karras_sigmas(SIGMA_MIN, SIGMA_MAX, steps), torch.zeros(1, dtype=torch.float64)])
        with self.runtime.hold(self.unet) as unet:

            def tiled_network(x: Tensor, time: Tensor) -> Tensor:
                margin = _round_up(unet.receptive_radius, unet.size_multiple)
                return apply_tiled(lambda piece: unet(piece, time), x, tile_size=self.tile // 2, margin=margin)

            denoise = Denoiser(tiled_network, latents.dtype, precondition.karras(), Conditioning(concat=latents))
            x = sample(solver, denoise, noise(latents) * SIGMA_MAX, sigmas, noise, report_steps(watch, steps))
            return x * residual_scale(latents, unet.config)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
