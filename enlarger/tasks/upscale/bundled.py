"""The bundled model: one network call predicts the mean of the enlargements; others add detail or clean the picture."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import Unsupported
from enlarger.image.input_quality import cell_size, input_hint, is_graphics
from enlarger.nn.compact import downsample_bicubic
from enlarger.nn.upscale_net import UpscaleNet, backproject
from enlarger.requests import UpscaleRequest, with_defaults
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tiling import apply_tiled
from enlarger.tasks.result import Progress, ProgressCallback, no_progress

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
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W).

        With `restore` 0 the predicted mean, and `detail` of the way from there to the detailed picture; graphics, which
        the mean does not fit, are redrawn. With more, the restored picture, and the detail of its own half on top.
        """
        with torch.inference_mode():
            small = small.to(self.runtime.device)
            if restore == 0:
                mean = self._predict(small, watch)
                rows = (slice(i, i + 1) for i in range(len(small)))
                return torch.cat([self._finish(mean[row], small[row], detail, watch) for row in rows])
            made = self._restore(small, restore, watch)
            if detail == 0:
                return made
            clean = downsample_bicubic(made).clamp(-1, 1)
            mean = backproject(self._predict(clean, watch), clean)
            return made + detail * (self._detail(clean, watch) - mean)

    def _finish(self, mean: Tensor, small: Tensor, detail: float, watch: ProgressCallback) -> Tensor:
        """One picture from its mean."""
        if is_graphics(mean, small):
            if cell_size(small) > 1:  # pixel art: its cells are doubled, which is exact
                return F.interpolate(small, scale_factor=2, mode="nearest")
            return self._run(self.graphics, small, "redraw", watch)
        return mean if detail == 0 else torch.lerp(mean, self._detail(small, watch), detail)

    def _predict(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        return self._run(self.predictor, small, "predict", watch)

    def _detail(self, small: Tensor, watch: ProgressCallback) -> Tensor:
        """As it was trained: made consistent with its input."""
        return backproject(self._run(self.detailer, small, "detail", watch), small)

    def _restore(self, small: Tensor, strength: float, watch: ProgressCallback) -> Tensor:
        told = torch.cat([small, small.new_full((len(small), 1, *small.shape[-2:]), strength)], 1)
        return self._run(self.restorer, told, "restore", watch)

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


def check_bundled_options(request: UpscaleRequest) -> None:
    """Unsupported for an option that the bundled model has no use for."""
    for name in UNUSED_OPTIONS:
        if getattr(request, name) not in (None, ""):
            raise Unsupported(
                f"{name} is set, but the bundled model has no use for it; load an x2 checkpoint, or leave it"
            )
    if request.steps not in (None, 1):
        raise Unsupported(f"steps is {request.steps}, but the bundled model makes detail in one; leave it")


def bundled_notes(request: UpscaleRequest, colour: Tensor, upscaled: Tensor) -> tuple[str, ...]:
    """What to know of a result (1, 3, H, W), and what would help its input, (1, 3, h, w)."""
    notes = [ONE_ANSWER_NOTE.format(count=request.count)] if request.count > 1 else []
    if with_defaults(request, "upscale/bundled")["restore"] > 0:
        return tuple(notes)
    graphics = request.by > 1 and is_graphics(upscaled, colour)
    hint = None if graphics else input_hint(colour[0])
    return (*notes, *([GRAPHICS_NOTE] if graphics and not request.consistent else []), *([hint] if hint else []))
