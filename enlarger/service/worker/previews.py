"""Pictures of a job under way: small ones for whoever watches, whole ones where the request wants them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from enlarger.service.worker.shelf import Loaded
from enlarger.tasks.enlarge import Upscaler
from enlarger.tasks.model import Model
from enlarger.tasks.parts import Progress
from enlarger.tasks.preview import LINEAR, linear_preview
from enlarger.tasks.upscale_latent import LatentUpscale

Size = tuple[int, int]  # width, height
Show = Callable[[str, int | None], None]  # a file of the job's folder, and which of the wanted ones it is
LIVE_SIDE = 512  # pixels, at most
LIVE_SECONDS = 0.25  # between two, at least
SHARE = 10  # previews for watchers take at most one part in so many of the time


@dataclass(frozen=True, eq=False)
class Painter:
    """How clean latents (1, C, h, w) become a picture; `factor` is pixels of the result per latent."""

    paint: Callable[[Tensor], Image.Image]
    factor: int


def painter_of(loaded: Loaded) -> Painter | None:
    """The painter for a model's latents; None for those that nobody can show."""
    task = loaded.task.task if isinstance(loaded.task, Upscaler) else loaded.model
    if not isinstance(task, Model | LatentUpscale):
        return None
    networks, previewer = task.networks, loaded.previewer
    if previewer is not None:
        return Painter(lambda clean: previewer(clean)[0], networks.vae.factor)
    space = task.space if isinstance(task, Model) else "sd"
    if space not in LINEAR:
        return None
    return Painter(lambda clean: linear_preview(clean, space)[0], networks.vae.factor)


@dataclass(frozen=True)
class Wish:
    """Which previews a job wants, and how large its results are.

    `drawn` is the size that the network draws, or for an upscaler begins with; None: whatever the latents cover.
    """

    count: int
    live: bool
    full: Size | None = None
    drawn: Size | None = None
    doubling: bool = False  # an upscaler's latents are of a picture twice as large, or four times and so on


class Previews:
    """The previews of a job; the wanted ones are of its first picture. Nothing that fails here touches the job:
    `failed` hears of it."""

    def __init__(
        self, folder: Path, wish: Wish, painter: Painter | None, show: Show, failed: Callable[[Exception], None]
    ) -> None:
        self.folder, self.wish, self.painter, self.show, self.failed = folder, wish, painter, show, failed
        self._next = 0.0  # when a live one is due
        self._made = 0  # of the wanted ones
        self._broken = False

    def begin(self, image: Image.Image | None) -> None:
        """Show the input to watchers, where there will be nothing else to show."""
        if self.wish.live and self.painter is None and image is not None:
            self._safely(lambda: self._write(_plain(image).resize(self._live_size(image.size)), None))

    def see(self, progress: Progress, row: int) -> None:
        """Show what is due; `row` is the picture's place in the batch."""
        if progress.step is None or self.painter is None or not (self.wish.count or self.wish.live):
            return
        clean = progress.step.clean[row : row + 1]
        self._safely(lambda: self._due(clean, progress.done, progress.total))

    def _due(self, clean: Tensor, done: int, total: int) -> None:
        count = self.wish.count
        while self._made < count and done >= max(1, round(total * (self._made + 1) / (count + 1))):
            self._made += 1
            self._write(self._painted(clean, self.wish.full), self._made - 1)
        start = time.monotonic()
        if self.wish.live and start >= self._next and done < total:
            self._write(self._painted(clean, None), None)
            end = time.monotonic()
            self._next = end + max(LIVE_SECONDS, SHARE * (end - start))

    def _painted(self, clean: Tensor, size: Size | None) -> Image.Image:
        """The latents as a picture of a size, without what only fills them up; None: small."""
        assert self.painter is not None
        image = self.painter.paint(clean)
        covered = tuple(side * self.painter.factor for side in (clean.shape[-1], clean.shape[-2]))
        drawn = self._drawn((covered[0], covered[1]))
        box = (0.0, 0.0, image.width * drawn[0] / covered[0], image.height * drawn[1] / covered[1])
        target = self._live_size(self.wish.full or drawn) if size is None else size
        return image.resize(target, Image.Resampling.BICUBIC, box)

    def _drawn(self, covered: Size) -> Size:
        """The part of what latents cover that is the picture."""
        if self.wish.drawn is None or any(a > b for a, b in zip(self.wish.drawn, covered, strict=True)):
            return covered
        width, height = self.wish.drawn
        while self.wish.doubling and 2 * width <= covered[0] and 2 * height <= covered[1]:
            width, height = 2 * width, 2 * height
        return width, height

    def _live_size(self, size: Size) -> Size:
        scale = min(1.0, LIVE_SIDE / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _write(self, image: Image.Image, index: int | None) -> None:
        """One file for each wanted preview, and the one after them for watchers, whole at any time."""
        name = f"preview-{self.wish.count if index is None else index}.png"
        part = self.folder / f".{name}.part"
        image.save(part, format="PNG", compress_level=1)
        os.replace(part, self.folder / name)
        self.show(name, index)

    def _safely(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a preview must not cost the picture
            self._broken = True
            self.failed(error)


def _plain(image: Image.Image) -> Image.Image:
    """Without a mode that cannot be resized or looked at."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGBA" if image.has_transparency_data else "RGB")
