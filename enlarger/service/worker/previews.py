"""Pictures of a job under way: small ones for whoever watches, whole ones where the request wants them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from enlarger.image.atomic_write import atomic_write
from enlarger.service.worker.model_cache import CachedModel
from enlarger.target_size import scaled_side
from enlarger.tasks.auxiliary.preview import LATENT_RGB_FACTORS, linear_preview
from enlarger.tasks.inputs import latent_space_of
from enlarger.tasks.results.result import Progress

Size = tuple[int, int]  # width, height
OnPreview = Callable[[str, int | None], None]  # a file of the job's folder, and which of the wanted ones it is
MAX_LIVE_SIDE = 512  # pixels, at most
MIN_LIVE_INTERVAL = 0.25  # between two, at least
LIVE_COST_FACTOR = 10  # previews for watchers take at most one part in so many of the time


@dataclass(frozen=True, eq=False)
class PreviewDecoder:
    """How clean latents (1, C, h, w) become a picture; `factor` is pixels of the result per latent."""

    decode: Callable[[Tensor], Image.Image]
    factor: int


def preview_decoder_for(model: CachedModel) -> PreviewDecoder | None:
    """The decoder of a model's latents; None for those that cannot be shown."""
    vae, space, previewer = model.model.vae, model.loaded.kind.latent_space, model.previewer
    if vae is None:
        return None
    if previewer is not None:
        return PreviewDecoder(lambda denoised: previewer(denoised)[0], vae.downsample_factor)
    if space is None or space not in LATENT_RGB_FACTORS or space != latent_space_of(vae.config):
        return None
    return PreviewDecoder(lambda denoised: linear_preview(denoised, space)[0], vae.downsample_factor)


@dataclass(frozen=True)
class PreviewSpec:
    """Which previews a job wants, and how large its results are.

    `network_size` is the size that the network makes, or for an upscaler begins with; None: whatever the latents cover.
    """

    count: int
    live: bool
    result_size: Size | None = None
    network_size: Size | None = None
    is_upscale: bool = False  # an upscaler's latents are of a picture twice as large, or four times and so on


class PreviewWriter:
    """The previews of a job; the wanted ones are of its first picture. Nothing that fails here touches the job:
    `on_error` is called."""

    def __init__(
        self,
        folder: Path,
        spec: PreviewSpec,
        decoder: PreviewDecoder | None,
        on_preview: OnPreview,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.folder, self.spec, self.decoder, self.on_preview, self.on_error = (
            folder,
            spec,
            decoder,
            on_preview,
            on_error,
        )
        self._next_live_time = 0.0  # when a live one is due
        self._num_written = 0  # of the wanted ones
        self._has_failed = False

    def show_input(self, image: Image.Image | None) -> None:
        """Show the input to watchers, where there will be nothing else to show."""
        if self.spec.live and self.decoder is None and image is not None:
            self._disable_on_error(
                lambda: self._write(_to_displayable(image).resize(self._live_size(image.size)), None)
            )

    def update(self, progress: Progress, batch_index: int) -> None:
        """Show what is due; `batch_index` is the picture's place in the batch."""
        if progress.step is None or self.decoder is None or not (self.spec.count or self.spec.live):
            return
        denoised = progress.step.denoised[batch_index : batch_index + 1]
        self._disable_on_error(lambda: self._write_due(denoised, progress.done, progress.total))

    def _write_due(self, denoised: Tensor, done: int, total: int) -> None:
        count = self.spec.count
        while self._num_written < count and done >= max(1, round(total * (self._num_written + 1) / (count + 1))):
            self._num_written += 1
            self._write(self._decode(denoised, self.spec.result_size), self._num_written - 1)
        start = time.monotonic()
        if self.spec.live and start >= self._next_live_time and done < total:
            self._write(self._decode(denoised, None), None)
            end = time.monotonic()
            self._next_live_time = end + max(MIN_LIVE_INTERVAL, LIVE_COST_FACTOR * (end - start))

    def _decode(self, denoised: Tensor, size: Size | None) -> Image.Image:
        """The latents as a picture of a size, without what only fills them up; None: small."""
        assert self.decoder is not None
        image = self.decoder.decode(denoised)
        covered_size = tuple(side * self.decoder.factor for side in (denoised.shape[-1], denoised.shape[-2]))
        picture_size = self._picture_size((covered_size[0], covered_size[1]))
        box = (
            0.0,
            0.0,
            image.width * picture_size[0] / covered_size[0],
            image.height * picture_size[1] / covered_size[1],
        )
        target = self._live_size(self.spec.result_size or picture_size) if size is None else size
        return image.resize(target, Image.Resampling.BICUBIC, box)

    def _picture_size(self, covered_size: Size) -> Size:
        """The part of what latents cover that is the picture."""
        if self.spec.network_size is None or any(
            a > b for a, b in zip(self.spec.network_size, covered_size, strict=True)
        ):
            return covered_size
        width, height = self.spec.network_size
        while self.spec.is_upscale and 2 * width <= covered_size[0] and 2 * height <= covered_size[1]:
            width, height = 2 * width, 2 * height
        return width, height

    def _live_size(self, size: Size) -> Size:
        scale = min(1.0, MAX_LIVE_SIDE / max(size))
        return scaled_side(size[0], scale), scaled_side(size[1], scale)

    def _write(self, image: Image.Image, index: int | None) -> None:
        """One file for each wanted preview, and the one after them for watchers, whole at any time."""
        name = f"preview-{self.spec.count if index is None else index}.png"
        with atomic_write(self.folder / name, durable=False, single_writer=True) as stream:
            image.save(stream, format="PNG", compress_level=1)
        self.on_preview(name, index)

    def _disable_on_error(self, action: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a preview must not cost the picture
            self._has_failed = True
            self.on_error(error)


def _to_displayable(image: Image.Image) -> Image.Image:
    """Without a mode that cannot be resized or looked at."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGBA" if image.has_transparency_data else "RGB")
