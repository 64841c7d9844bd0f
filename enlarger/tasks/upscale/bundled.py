"""The bundled model: one network call predicts the mean of the enlargements; others add detail or clean the picture."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.families import KINDS, ModelKind
from enlarger.image.consistency import is_harmless
from enlarger.image.input_quality import cell_size, input_hint, is_graphics
from enlarger.nn.compact import downsample_bicubic
from enlarger.nn.upscale_net import Backprojected, UpscaleNet, backproject
from enlarger.requests import UpscaleRequest, as_request, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.smaller_tiles import Tiling, halve_tile
from enlarger.runtime.tiling import Blend, apply_tiled
from enlarger.tasks.inputs import ImageSource, image_size, split_request
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls
from enlarger.tasks.loading.load import BUNDLED, Checkpoint
from enlarger.tasks.planning.network_costs import input_channels, picture_cost
from enlarger.tasks.planning.plan import Plan
from enlarger.tasks.planning.room import LARGE_BYTES, LEAST_PICTURE_TILE, MemoryRoom, picture_tile
from enlarger.tasks.planning.stages import StageList, Timer, make_plan, pixels_of
from enlarger.tasks.results.generation import with_generation
from enlarger.tasks.results.result import Progress, ProgressCallback, Result, join_results, no_progress
from enlarger.tasks.upscale.upscale import (
    UpscaleBatch,
    plan_upscale,
    refuse_unused_options,
    single_batches,
    stack_requests,
    upscale_key,
)
from enlarger.verb_options import UpscalerOptions

TILE = 512  # input pixels: what bounds the memory
GRAPHICS_NOTE = (
    "taken for graphics: redrawn without detail, and not made consistent with the input, since no larger picture's "
    "half is like it"
)


@dataclass(frozen=True, eq=False)
class BundledUpscaler:
    """The networks, an `Upscaler`. They run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: UpscaleNet
    detailer: UpscaleNet
    restorer: UpscaleNet
    graphics: UpscaleNet
    runtime: Runtime = Runtime()
    tile: int = TILE

    name: str = BUNDLED
    scale: int = 2
    input_latent_space: None = None
    vae: None = None
    tokenizer: None = None
    sampler: None = None

    @property
    def kind(self) -> ModelKind:
        return KINDS["bundled"]

    def __call__(
        self,
        request: UpscaleRequest | ImageSource,
        watch: ProgressCallback = no_progress,
        **options: Unpack[UpscalerOptions],
    ) -> Result:
        request = as_request(UpscaleRequest, request, options)
        if request.memory is not None:
            self.plan(request)  # raises for a bound that cannot be kept
        results = list[Result]()
        for batch, settings in single_batches(self, request, _options):
            results += self._run(batch, settings, watch)
        return with_generation(join_results(results), self, "upscale", request)

    def run_batch(self, requests: Sequence[UpscaleRequest], watch: ProgressCallback = no_progress) -> list[Result]:
        return self._run(stack_requests(requests), _options(requests), watch)

    def batch_key(self, request: UpscaleRequest) -> Hashable | None:
        return upscale_key(request)

    def network_calls(self, request: UpscaleRequest, size: tuple[int, int]) -> tuple[NetworkCalls, ...]:
        """None: there is no diffusion network in it."""
        return ()

    def _run(self, batch: UpscaleBatch, options: Mapping[str, Any], watch: ProgressCallback) -> list[Result]:
        """Pass after pass; a picture is restored once, in the first, which is made whatever the size."""
        image, count, graphics = batch.low_res, len(batch.pictures), None
        detail, restore, asked = options["detail"], options["restore"], batch.requests[0].consistent
        hints = [None if restore > 0 else input_hint(picture.colour) for picture in batch.pictures]
        if restore > 0:
            room = self._room(batch.requests[0], (image.shape[-2], image.shape[-1]))
            restorer = self._within(room, detail, count)
            image, graphics = restorer.restore(image, restore, detail, watch).float().cpu(), (False,) * count
        while batch.needs_pass(image):
            room = self._room(batch.requests[0], (image.shape[-2], image.shape[-1]))
            image, graphics = self._within(room, detail, count).enlarge(image, detail, watch, graphics)
            image = image.float().cpu()
        drawn = (False,) * count if graphics is None else graphics
        held = restore == 0 and batch.is_harmless
        consistent = [(held and not is_drawn) if asked is None else asked for is_drawn in drawn]
        notes = [
            _notes(request, None if is_drawn else hint, is_drawn and restore == 0)
            for request, hint, is_drawn in zip(batch.requests, hints, drawn, strict=True)
        ]
        return batch.finish(self.name, image, consistent, notes)

    def plan(self, request: UpscaleRequest, timer: Timer | None = None) -> Plan:
        """Graphics, which only the picture tells, take another network of the same size instead."""
        lists = [self._stages(one, timer) for one, _ in split_request(request)]
        return make_plan("upscale", self, self.runtime, torch.float32, lists)

    def _stages(self, request: UpscaleRequest, timer: Timer | None) -> StageList:
        """What `_run` will do for one picture."""
        size, options = image_size(request.image), with_defaults(request, "upscale/bundled")
        upscale_plan = plan_upscale(request, size, self.scale)
        stages = StageList(self._room(request, size), size, upscale_plan.target, 1, timer)
        stages.read()
        detail, is_restored = options["detail"], options["restore"] > 0
        for index in range(max(upscale_plan.passes, int(is_restored))):
            room = self._room(request, size)
            tile = self._within(room, detail).tile
            first = "restore" if is_restored and index == 0 else "predict"
            networks = [(first, self.restorer if first == "restore" else self.predictor)]
            networks += [("predict", self.predictor)] if first == "restore" and detail > 0 else []
            networks += [("detail", Backprojected(self.detailer))] if detail > 0 else []
            for name, network in networks:
                within = replace(stages, room=room)
                within.enlarge(network, size, tile, network.receptive_radius, name)
            size = (self.scale * size[0], self.scale * size[1])
        held = not is_restored and is_harmless(image_size(request.image), upscale_plan.target)
        stages.finish(size, is_consistent=held if request.consistent is None else request.consistent)
        return stages

    def _room(self, request: UpscaleRequest, size: tuple[int, int]) -> MemoryRoom:
        """What is left of the memory that a request allows for a pass over a picture of `size`, its result aside."""
        networks = (self.predictor, self.detailer, self.restorer, self.graphics)
        room = MemoryRoom.of(request.memory, self.runtime, networks, size)
        return replace(room, held=room.held + LARGE_BYTES * self.scale**2 * pixels_of(size))

    def _within(self, room: MemoryRoom, detail: float, count: int = 1) -> "BundledUpscaler":
        """The upscaler in tiles whose work fits, of `count` pictures at once."""
        network = self.predictor if detail == 0 else Backprojected(self.detailer)
        margin, work = network.receptive_radius, room.work // max(count, 1)
        return replace(self, tile=picture_tile(network, self.tile, margin, work))

    def upscale_pixels(
        self, small: Tensor, *, detail: float = 0.0, restore: float = 0.0, watch: ProgressCallback = no_progress
    ) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W), see `enlarge`."""
        if restore > 0:
            return self.restore(small, restore, detail, watch)
        return self.enlarge(small, detail, watch)[0]

    def enlarge(
        self, small: Tensor, detail: float, watch: ProgressCallback, graphics: tuple[bool, ...] | None = None
    ) -> tuple[Tensor, tuple[bool, ...]]:
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W), and which of them were redrawn as graphics.

        The predicted mean, and `detail` of the way from there to the detailed picture; graphics, which the mean does
        not fit, are redrawn. Which are, `graphics` says where it is known already.
        """
        with torch.inference_mode():
            small = small.to(self.runtime.device)
            rows = [slice(i, i + 1) for i in range(len(small))]
            if graphics is not None and all(graphics):  # then nobody asks for the mean
                made = small.new_empty(*small.shape[:2], *(2 * side for side in small.shape[-2:]))
            else:
                made = self._apply(self.predictor, small, "predict", watch)
            drawn = tuple(is_graphics(made[row], small[row]) for row in rows) if graphics is None else graphics
            for row, is_drawn in zip(rows, drawn, strict=True):
                if is_drawn:
                    self._redraw(small[row], made[row], watch)
                elif detail > 0:
                    blend = Blend(made[row], detail)
                    self._apply(Backprojected(self.detailer), small[row], "detail", watch, blend)
            return made, drawn

    def restore(self, small: Tensor, strength: float, detail: float, watch: ProgressCallback) -> Tensor:
        """Damaged pictures (B, 3, H, W) in -1..1 to clean ones, (B, 3, 2H, 2W), with the detail of their own half."""
        with torch.inference_mode():
            small = small.to(self.runtime.device)
            plane = small.new_full((len(small), 1, *small.shape[-2:]), strength)
            made = self._apply(self.restorer, torch.cat([small, plane], 1), "restore", watch)
            if detail == 0:
                return made
            clean = downsample_bicubic(made).clamp(-1, 1)
            mean = backproject(self._apply(self.predictor, clean, "predict", watch), clean)
            detailed = self._apply(Backprojected(self.detailer), clean, "detail", watch)
            return made.add_(detailed.sub_(mean), alpha=detail)

    def _redraw(self, small: Tensor, made: Tensor, watch: ProgressCallback) -> None:
        """Graphics (1, 3, H, W) into `made`, (1, 3, 2H, 2W); the cells of pixel art are doubled, which is exact."""
        if cell_size(small) > 1:
            made.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).copy_(small[..., :, None, :, None])
        else:
            self._apply(self.graphics, small, "redraw", watch, Blend(made, 1.0))

    def _apply(
        self,
        net: UpscaleNet | Backprojected,
        inputs: Tensor,
        stage: str,
        watch: ProgressCallback,
        blend: Blend | None = None,
    ) -> Tensor:
        """A network over a picture and the planes that join it, in tiles."""

        def report_tile(done: int, total: int) -> None:
            watch(Progress(stage, done, total))

        def tiling(side: int) -> Tiling:
            def need(tile: int | None) -> int:
                return picture_cost(net, (tile or side, tile or side), input_channels(net)).peak

            return Tiling(f"the stage {stage}", None, "pixels", halve_tile(side, LEAST_PICTURE_TILE), need)

        with self.runtime.run(net) as call:
            return apply_tiled(
                call,
                inputs,
                tile_size=self.tile,
                margin=net.receptive_radius,
                scale=2,
                progress=report_tile,
                blend=blend,
                tiling=tiling,
            )


def load(components: PipelineComponents, runtime: Runtime, name: str) -> BundledUpscaler:
    """The upscaler of its folder's parts."""
    parts = {part: module.to(memory_format=torch.channels_last) for part, module in components.components.items()}
    networks = (parts[part] for part in ("predictor", "detailer", "restorer", "graphics"))
    return BundledUpscaler(*networks, runtime=runtime, name=name)


def load_bundled(runtime: Runtime) -> BundledUpscaler:
    """The model that ships with the package."""
    return load(Checkpoint(BUNDLED).open(), runtime, BUNDLED)


def _options(requests: Sequence[UpscaleRequest]) -> dict[str, Any]:
    """Those of requests that differ in the picture alone. Raises Unsupported for what is not used."""
    request = requests[0]
    refuse_unused_options(KINDS["bundled"], request)
    return with_defaults(request, "upscale/bundled")


def _notes(request: UpscaleRequest, hint: str | None, is_drawn: bool) -> tuple[str, ...]:
    """What to know of a result, and what would help its input."""
    notes = [KINDS["bundled"].one_answer.format(count=request.count)] if request.count > 1 else []
    return (*notes, *([GRAPHICS_NOTE] if is_drawn and not request.consistent else []), *([hint] if hint else []))
