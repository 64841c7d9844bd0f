"""The bundled model: one network call predicts the mean of the enlargements; others add detail or clean the picture."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from enlarger.nn.compact import halve_bicubic
from enlarger.nn.upscale_net import UpscaleNet, backproject
from enlarger.runtime.runtime import Runtime
from enlarger.runtime.tile import tiled
from enlarger.tasks.input_quality import is_graphics
from enlarger.tasks.parts import Progress, Watch, quiet

TILE = 512  # input pixels: what bounds the memory


@dataclass(frozen=True, eq=False)
class CompactUpscale:
    """The parts of the bundled model. Networks run in tiles, which changes nothing: each sees a bounded surrounding."""

    predictor: UpscaleNet
    detailer: UpscaleNet
    restorer: UpscaleNet
    graphics: UpscaleNet
    runtime: Runtime = Runtime()
    tile: int = TILE

    def __call__(self, small: Tensor, *, detail: float = 0.0, restore: float = 0.0, watch: Watch = quiet) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 to (B, 3, 2H, 2W).

        With `restore` 0 the predicted mean, and `detail` of the way from there to the detailed picture; graphics, which
        the mean does not fit, are redrawn. With more, the restored picture, and the detail of its own half on top.
        """
        with torch.inference_mode():
            small = small.to(self.runtime.device)
            if restore == 0:
                mean = self._predict(small, watch)
                pairs = zip(mean.split(1), small.split(1), strict=True)
                return torch.cat([self._finish(one, given, detail, watch) for one, given in pairs])
            made = self._restore(small, restore, watch)
            if detail == 0:
                return made
            clean = halve_bicubic(made).clamp(-1, 1)
            mean = backproject(self._predict(clean, watch), clean)
            return made + detail * (self._detail(clean, watch) - mean)

    def _finish(self, mean: Tensor, small: Tensor, detail: float, watch: Watch) -> Tensor:
        """One picture from its mean."""
        if is_graphics(mean, small):
            return self._run(self.graphics, small, "redraw", watch)
        return mean if detail == 0 else torch.lerp(mean, self._detail(small, watch), detail)

    def _predict(self, small: Tensor, watch: Watch) -> Tensor:
        return self._run(self.predictor, small, "predict", watch)

    def _detail(self, small: Tensor, watch: Watch) -> Tensor:
        """As it was trained: made consistent with its input."""
        return backproject(self._run(self.detailer, small, "detail", watch), small)

    def _restore(self, small: Tensor, strength: float, watch: Watch) -> Tensor:
        told = torch.cat([small, small.new_full((len(small), 1, *small.shape[-2:]), strength)], 1)
        return self._run(self.restorer, told, "restore", watch)

    def _run(self, net: UpscaleNet, small: Tensor, stage: str, watch: Watch) -> Tensor:
        """A network over the picture, and over what else it is told as further channels, in tiles."""

        def seen(done: int, total: int) -> None:
            watch(Progress(stage, done, total))

        with self.runtime.hold(net) as held:
            return tiled(partial(_call, held), small, tile=self.tile, margin=net.reach, scale=2, seen=seen)


def _call(net: UpscaleNet, told: Tensor) -> Tensor:
    return net(told[:, :3], told[:, 3:] if told.shape[1] > 3 else None)
