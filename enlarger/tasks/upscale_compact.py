"""The bundled model: predict the mean of the enlargements, then, if asked, diffuse the detail that it leaves out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, sample
from enlarger.diffusion.schedule import karras
from enlarger.diffusion.solvers import euler
from enlarger.nn.compact import CompactAutoencoder, Predictor
from enlarger.nn.compact_unet import CompactUNet, residual_scale
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tile import tiled
from enlarger.tasks.parts import Progress, Watch, pad_to, quiet, watch_steps

TILE = 512  # input pixels: what bounds the memory
LEAST, MOST = 0.02, 6.0  # noise levels of the ladder, as trained


@dataclass(frozen=True, eq=False)
class CompactUpscale:
    """The parts of the bundled model. Networks run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: Predictor
    autoencoder: CompactAutoencoder
    unet: CompactUNet
    runtime: Runtime = Runtime()
    tile: int = TILE

    def __call__(
        self, small: Tensor, noise: Noise, *, detail: float = 0.0, steps: int = 1, solver: Solver = euler,
        watch: Watch = quiet,
    ) -> Tensor:  # fmt: skip
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W): the predicted mean plus `detail` times a sampled rest."""
        with torch.inference_mode():
            mean = self._predict(small.to(self.runtime.device), watch)
            if detail == 0:
                return mean
            padded = pad_to(mean, self.autoencoder.factor * self.unet.granularity)
            rest = self._rest(padded, noise, steps, solver, watch)
            return mean + detail * rest[..., : mean.shape[-2], : mean.shape[-1]]

    def _predict(self, small: Tensor, watch: Watch) -> Tensor:
        def seen(done: int, total: int) -> None:
            watch(Progress("predict", done, total))

        with self.runtime.hold(self.predictor) as predictor:
            return tiled(predictor, small, tile=self.tile, margin=predictor.reach, scale=2, seen=seen)

    def _rest(self, mean: Tensor, noise: Noise, steps: int, solver: Solver, watch: Watch) -> Tensor:
        """A sample of what real pictures have beyond their mean, found in latents and decoded as a difference."""
        factor, reach = self.autoencoder.factor, self.autoencoder.reach
        with self.runtime.hold(self.autoencoder) as autoencoder:
            latents = tiled(autoencoder.encode, mean, tile=2 * self.tile, margin=reach, scale=1 / factor)
        residual = self._diffuse(latents, noise, steps, solver, watch)
        with self.runtime.hold(self.autoencoder) as autoencoder:
            both = torch.cat([latents, latents + residual], 1)

            def difference(both: Tensor) -> Tensor:
                without, given = both.chunk(2, 1)
                return autoencoder.decode(given) - autoencoder.decode(without)

            return tiled(difference, both, tile=2 * self.tile // factor, margin=reach // factor, scale=factor)

    def _diffuse(self, latents: Tensor, noise: Noise, steps: int, solver: Solver, watch: Watch) -> Tensor:
        ladder = torch.cat([karras(LEAST, MOST, steps), torch.zeros(1, dtype=torch.float64)])
        with self.runtime.hold(self.unet) as unet:

            def network(x: Tensor, time: Tensor) -> Tensor:
                margin = _up(unet.reach, unet.granularity)
                return tiled(lambda piece: unet(piece, time), x, tile=self.tile // 2, margin=margin)

            denoise = Denoiser(network, latents.dtype, precondition.karras(), Conditioning(concat=latents))
            x = sample(solver, denoise, noise(latents) * MOST, ladder, noise, watch_steps(watch, steps))
            return x * residual_scale(latents, unet.config)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
