"""The bundled model: one network call predicts the mean of the enlargements; others add detail or clean the picture."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion.noise import Noise
from enlarger.errors import Unsupported
from enlarger.image.input_quality import cell_size, input_hint, is_graphics
from enlarger.nn.compact import downsample_bicubic
from enlarger.nn.upscale_net import UpscaleNet, backproject
from enlarger.requests import UpscaleRequest, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tiling import apply_tiled
from enlarger.tasks.result import Progress, ProgressCallback, no_progress
from enlarger.tasks.upscale.plan import Upscaled, UpscalePlan

TILE = 512  # input pixels: what bounds the memory
GRAPHICS_NOTE = (
    "taken for graphics: redrawn without detail, and not made consistent with the input, since no larger picture's "
    "half is like it"
)
ONE_ANSWER_NOTE = "count is {count}, but the bundled model has one answer for a picture: one was made"
UNUSED_OPTIONS = ("prompt", "negative", "guidance", "noise_level", "profile", "solver")


@dataclass(frozen=True, eq=False)
class BundledUpscaler:
    """The parts of the bundled model. Networks run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: UpscaleNet
    detailer: UpscaleNet
    restorer: UpscaleNet
    graphics: UpscaleNet
    runtime: Runtime = Runtime()
    tile: int = TILE

    def __call__(
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
            if graphics is not None and all(graphics):
                return torch.cat([self._redraw(small[i : i + 1], watch) for i in range(len(small))]), graphics
            mean = self._predict(small, watch)
            rows = [slice(i, i + 1) for i in range(len(small))]
            drawn = tuple(is_graphics(mean[row], small[row]) for row in rows) if graphics is None else graphics
            made = [
                self._redraw(small[row], watch) if is_drawn else self._add_detail(mean[row], small[row], detail, watch)
                for row, is_drawn in zip(rows, drawn, strict=True)
            ]
            return torch.cat(made), drawn

    def restore(self, small: Tensor, strength: float, detail: float, watch: ProgressCallback) -> Tensor:
        """Damaged pictures (B, 3, H, W) in -1..1 to clean ones, (B, 3, 2H, 2W), with the detail of their own half."""
        with torch.inference_mode():
            small = small.to(self.runtime.device)
            plane = small.new_full((len(small), 1, *small.shape[-2:]), strength)
            made = self._run(self.restorer, torch.cat([small, plane], 1), "restore", watch)
            if detail == 0:
                return made
            clean = downsample_bicubic(made).clamp(-1, 1)
            mean = backproject(self._predict(clean, watch), clean)
            return made + detail * (self._detail(clean, watch) - mean)

    def _redraw(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        """Graphics, (1, 3, H, W); the cells of pixel art are doubled, which is exact."""
        if cell_size(small) > 1:
            return F.interpolate(small, scale_factor=2, mode="nearest")
        return self._run(self.graphics, small, "redraw", watch)

    def _add_detail(self, mean: Tensor, small: Tensor, detail: float, watch: ProgressCallback) -> Tensor:
        return mean if detail == 0 else torch.lerp(mean, self._detail(small, watch), detail)

    def _predict(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        return self._run(self.predictor, small, "predict", watch)

    def _detail(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        """As it was trained: made consistent with its input."""
        return backproject(self._run(self.detailer, small, "detail", watch), small)

    def _run(self, net: UpscaleNet, small: Tensor, stage: str, watch: ProgressCallback) -> Tensor:
        """A network over the picture, and over what else it is told as further channels, in tiles."""

        def seen(done: int, total: int) -> None:
            watch(Progress(stage, done, total))

        with self.runtime.hold(net) as held:
            return apply_tiled(
                partial(_call, held), small, tile_size=self.tile, margin=net.receptive_radius, scale=2, progress=seen
            )


def _call(net: UpscaleNet, told: Tensor) -> Tensor:
    return net(told[:, :3], told[:, 3:] if told.shape[1] > 3 else None)


def make_bundled_plan(task: BundledUpscaler, request: UpscaleRequest, watch: ProgressCallback) -> UpscalePlan:
    """The bundled model; a picture is restored once, before it is enlarged further."""
    check_bundled_options(request)
    options = with_defaults(request, "upscale/bundled")
    detail, restore = options["detail"], options["restore"]

    def upscale_bundled(given: Upscaled, _: Noise) -> Upscaled:
        if restore > 0 and given.graphics is None:
            return Upscaled(task.restore(given.pixels, restore, detail, watch), (False,) * len(given.pixels))
        return Upscaled(*task.enlarge(given.pixels, detail, watch, given.graphics))

    consistent = False if restore > 0 and request.consistent is None else request.consistent
    return UpscalePlan(upscale_bundled, consistent, at_least_once=restore > 0)


def check_bundled_options(request: UpscaleRequest) -> None:
    """Unsupported for an option that the bundled model has no use for."""
    for name in UNUSED_OPTIONS:
        if getattr(request, name) not in (None, ""):
            raise Unsupported(
                f"{name} is set, but the bundled model has no use for it; load an x2 checkpoint, or leave it"
            )
    if request.steps not in (None, 1):
        raise Unsupported(f"steps is {request.steps}, but the bundled model makes detail in one; leave it")


def bundled_notes(request: UpscaleRequest, colour: Tensor, graphics: bool) -> tuple[str, ...]:
    """What to know of a result, and what would help its input, (3, h, w)."""
    notes = [ONE_ANSWER_NOTE.format(count=request.count)] if request.count > 1 else []
    if with_defaults(request, "upscale/bundled")["restore"] > 0:
        return tuple(notes)
    hint = None if graphics else input_hint(colour)
    return (*notes, *([GRAPHICS_NOTE] if graphics and not request.consistent else []), *([hint] if hint else []))
