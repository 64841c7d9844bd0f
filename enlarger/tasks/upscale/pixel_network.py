"""Upscalers of others (Real-ESRGAN, SwinIR, SPAN ...): one network call from pixels to pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.families import KINDS, ModelKind
from enlarger.checkpoint.single_file.pixel_network import ImageModel
from enlarger.errors import Unsupported
from enlarger.requests import UpscaleRequest, as_request
from enlarger.runtime.engines.engine import EAGER
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tiling import apply_tiled
from enlarger.tasks.inputs import ImageSource
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.stages import Timer
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.result import Progress, ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.upscale.upscale import UpscaleBatch, refuse_unused_options, single_batches
from enlarger.verb_options import UpscalerOptions

TILE = 256  # input pixels; a multiple of the windows of all transformers among them, so that tiles do not move these
MARGIN = 64  # input pixels that a tile sees around itself


@dataclass(frozen=True, eq=False)
class PixelNetworkUpscaler:
    """A network that spandrel built, an `Upscaler`.

    It runs in tiles. Networks of convolutions that see at most 64 pixels far (Compact, SPAN) give the untiled result;
    what others see further away is cut off. Those that need the whole picture get it.
    """

    network: ImageModel
    name: str
    runtime: Runtime = Runtime()
    tile: int = TILE
    margin: int = MARGIN

    input_latent_space: None = None
    vae: None = None
    tokenizer: None = None
    sampler: None = None

    @property
    def kind(self) -> ModelKind:
        return KINDS["pixel"]

    @property
    def scale(self) -> int:
        return self.network.scale

    def __call__(
        self,
        request: UpscaleRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[UpscalerOptions],
    ) -> Result:
        request = as_request(UpscaleRequest, request, options)
        results = list[Result]()
        for batch, notes in single_batches(self, request, _check_options):
            results += self._run(batch, notes, watch)
        return with_generation(join_results(results), self, "upscale", request)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return [self(request, watch) for request in requests]

    def batch_key(self, request: UpscaleRequest) -> None:
        """None: its memory allows for one picture."""

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        """None: there is no diffusion network in it."""
        return ()

    def plan(self, request: UpscaleRequest, timer: Timer | None = None) -> Plan:
        """Raises Unsupported: what networks of others take is not counted."""
        raise Unsupported(f"there is no plan for {self.kind.label}; load an x2, an x4 or the bundled upscaler")

    def enlarge(self, small: Tensor, watch: ProgressCallback = no_progress) -> Tensor:
        """A picture (1, 3, h, w) in -1..1 to (1, 3, scale * h, scale * w), in tiles."""
        whole = self.network.tiling.name == "INTERNAL"  # they cut the picture up themselves
        tile = max(small.shape[-2:]) if whole else self.tile

        def seen(done: int, total: int) -> None:
            watch(Progress("enlarge", done, total))

        with torch.inference_mode(), self.runtime.hold(self.network.model) as held:
            return apply_tiled(
                lambda x: self._call(held, x),
                small.to(self.runtime.device),
                tile_size=tile,
                margin=self.margin,
                scale=self.scale,
                progress=seen,
            )

    def _call(self, module: nn.Module, x: Tensor) -> Tensor:
        """One tile; a network of grey pictures enlarges each channel by itself."""
        pixels = (x / 2 + 0.5).clamp(0, 1).to(next(module.parameters()).dtype)
        rows = pixels.transpose(0, 1) if self.network.input_channels == 1 else pixels
        made = torch.cat([self.network(rows[i : i + 1].contiguous()) for i in range(len(rows))])
        return (made.transpose(0, 1) if self.network.input_channels == 1 else made).float() * 2 - 1

    def _run(self, batch: UpscaleBatch, notes: tuple[str, ...], watch: ProgressCallback) -> list[Result]:
        image = batch.low_res
        while batch.needs_pass(image):
            image = self.enlarge(image, watch).cpu()
        return batch.finish(self.name, image, [bool(batch.requests[0].consistent)], [notes])


def load(components: PipelineComponents, runtime: Runtime, name: str) -> PixelNetworkUpscaler:
    """The upscaler of a file's network. Raises Unsupported for an engine, which few of them fit."""
    if runtime.engine.name != EAGER.name:
        raise Unsupported(f"{name}: engine is {runtime.engine.name}, but a pixel network runs by torch; leave it out")
    return PixelNetworkUpscaler(components.components["network"], name, runtime)


def _check_options(requests: Sequence[UpscaleRequest]) -> tuple[str, ...]:
    """What to know of the result. Raises Unsupported for options that the network has no use for."""
    request = requests[0]
    refuse_unused_options(KINDS["pixel"], request)
    return (KINDS["pixel"].one_answer.format(count=request.count),) if request.count > 1 else ()
