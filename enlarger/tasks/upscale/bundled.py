"""The bundled upscaler: predict the mean of the enlargements, then, if asked, diffuse the detail that it leaves out."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enlarger.checkpoint.families import KINDS, ModelKind
from enlarger.checkpoint.folder.load import PipelineComponents
from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.sample import Solver, sample
from enlarger.diffusion.schedule import karras_sigmas
from enlarger.diffusion.solvers import SOLVERS, euler
from enlarger.errors import InputError, Unsupported
from enlarger.nn.compact import CompactAutoencoder, Predictor
from enlarger.nn.compact_unet import CompactUNet, residual_scale
from enlarger.requests import UpscaleRequest, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tiling import apply_tiled
from enlarger.tasks.latent_diffusion import pad_to_multiple
from enlarger.tasks.loading import BUNDLED, Checkpoint
from enlarger.tasks.result import Progress, ProgressCallback, Result, join_results, no_progress, report_steps
from enlarger.tasks.sampling import NetworkCall
from enlarger.tasks.upscale.upscale import UpscaleBatch, single_batches, stack_requests, upscale_key

TILE = 512  # input pixels: what bounds the memory
SIGMA_MIN, SIGMA_MAX = 0.02, 6.0  # noise levels, as trained


@dataclass(frozen=True, eq=False)
class BundledUpscaler:
    """The networks, an `Upscaler`. They run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: Predictor
    autoencoder: CompactAutoencoder
    unet: CompactUNet
    runtime: Runtime = Runtime()
    tile: int = TILE
    name: str = BUNDLED
    scale: int = 2
    latent_space: None = None
    vae: None = None  # its latents are its own
    tokenizer: None = None
    sampler: None = None

    @property
    def kind(self) -> ModelKind:
        return KINDS["bundled"]

    def __call__(self, request: UpscaleRequest, watch: ProgressCallback = no_progress) -> Result:
        results = list[Result]()
        for batch, options in single_batches(self, request, _options):
            results += self._run(batch, options, watch)
        return join_results(results)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return self._run(stack_requests(requests), _options(requests), watch)

    def batch_key(self, request: UpscaleRequest) -> Hashable | None:
        """None with detail: an adaptive solver judges its error by all pictures."""
        return None if with_defaults(request, "upscale/bundled")["detail"] != 0 else upscale_key(request)

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCall, ...]:
        """None: the predictor is no diffusion network."""
        return ()

    def _run(self, batch: UpscaleBatch, options: Mapping[str, Any], watch: ProgressCallback) -> list[Result]:
        image, noise = batch.low_res, from_seeds(batch.seeds)
        detail, steps, solver = options["detail"], options["steps"], SOLVERS[options["solver"]]
        while batch.needs_pass(image):
            image = self.enlarge(image, noise, detail=detail, steps=steps, solver=solver, watch=watch).float().cpu()
        return batch.finish(self.name, image, consistent=options["consistent"])

    def enlarge(
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


def load(components: PipelineComponents, runtime: Runtime, name: str) -> BundledUpscaler:
    """The upscaler of its folder's parts."""
    parts = {part: module.to(memory_format=torch.channels_last) for part, module in components.components.items()}
    return BundledUpscaler(parts["predictor"], parts["autoencoder"], parts["unet"], runtime, name=name)


def load_bundled(runtime: Runtime) -> BundledUpscaler:
    """The model that ships with the package."""
    return load(Checkpoint(BUNDLED).open(), runtime, BUNDLED)


def _options(requests: Sequence[UpscaleRequest]) -> dict[str, Any]:
    """Those of requests that differ in the picture and the seed alone. Raises Unsupported for what is not used."""
    options = with_defaults(requests[0], "upscale/bundled")
    unused = {"prompt": "", "negative": "", "profile": None, "noise_level": None, "guidance": None}
    for name, default in unused.items():
        if getattr(requests[0], name) != default:
            raise Unsupported(
                f"{name} is set, but the bundled model has no use for it; load an x2 checkpoint, or leave it"
            )
    if options["solver"] not in SOLVERS:
        raise InputError(f"no solver is called {options['solver']!r}; there are {', '.join(SOLVERS)}")
    return options
