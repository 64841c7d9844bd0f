"""The invisible watermark of SDXL's reference code: 48 bits that its decoder finds, in the blue chroma. No torch.

The method is `dwtDct` of the package invisible-watermark: the largest coefficient of each 4 x 4 block of the Haar
transform's low band is moved to a value whose rest tells a bit. Here it moves to the nearest such value that is still
the largest of its block, and the other bands stay as they are, which the package's own encoder interchanges.
"""

from typing import Any

import numpy as np
from PIL import Image

from enlarger.image.deep import DeepImage

Array = np.ndarray[Any, np.dtype[np.float64]]

MESSAGE = 0b101100111110110010010000011110111011000110011110  # Stability-AI/generative-models, streamlit_helpers.py
BITS = np.array([int(bit) for bit in f"{MESSAGE:048b}"])
SCALE, BLOCK, LEAST_SIDE = 36.0, 4, 256  # the package's; smaller pictures are left alone, as in the reference
SUITED_MODES = ("RGB", "RGBA")
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_CHROMA, _CHROMA_ZERO = 0.492, 128.0  # OpenCV's U of 8-bit pictures
_MARGIN = 6.0  # by which the coefficient stays above the others: rounding to 8 bits must not change which is largest


def can_hold(image: Image.Image) -> bool:
    """Whether a picture is large enough, and in colour."""
    return image.mode in SUITED_MODES and min(image.size) >= LEAST_SIDE


def add_watermark(image: Image.Image) -> Image.Image:
    """The picture (RGB or RGBA, 8 or 16 bits) with the watermark; alpha, profile and metadata stay."""
    is_deep = isinstance(image, DeepImage)
    values = image.samples if is_deep else np.asarray(image)
    top = 65535 if is_deep else 255
    colour = _embed(values[..., :3].astype(np.float64) * (255 / top))
    marked = (colour * (top / 255)).round().clip(0, top).astype(values.dtype)
    marked = np.concatenate([marked, values[..., 3:]], axis=2)
    made = DeepImage.from_samples(marked) if is_deep else Image.fromarray(marked)
    made.info = dict(image.info)
    return made


def read_watermark(image: Image.Image) -> float | None:
    """The share of the 48 bits that are SDXL's: 1 where all are, about 0.5 where there are none; None if too small."""
    if min(image.size) < LEAST_SIDE:
        return None
    blocks = _blocks(_low_band(_chroma(np.asarray(image.convert("RGB"), np.float64))))
    largest = np.abs(blocks[:, 1:]).max(axis=1)
    votes = (largest % SCALE > SCALE / 2).astype(float)
    found = [float(votes[k :: len(BITS)].mean()) > 0.5 for k in range(len(BITS))]
    return float((np.array(found) == (BITS == 1)).mean())


def _embed(colour: Array) -> Array:
    """Colours (H, W, 3) in 0..255 with the message once in every 48 blocks."""
    low = _low_band(_chroma(colour))
    blocks = _blocks(low)
    others = blocks[:, 1:].copy()
    rows, place = np.arange(len(blocks)), others.argmax(axis=1)
    value = others[rows, place]
    others[rows, place] = -np.inf
    least = np.maximum(others.max(axis=1) + _MARGIN, 0)
    rest = (0.25 + 0.5 * BITS[rows % len(BITS)]) * SCALE
    wanted = np.round((value - rest) / SCALE) * SCALE + rest
    wanted = np.where(wanted < least, np.ceil((least - rest) / SCALE) * SCALE + rest, wanted)
    change = np.zeros_like(blocks)
    change[rows, place + 1] = (wanted - value) / 2  # of each of the four pixels
    return colour + _blue_of(_unblocks(change, low.shape, colour.shape))


def _chroma(colour: Array) -> Array:
    return (colour[..., 2] - colour @ _LUMA) * _TO_CHROMA + _CHROMA_ZERO


def _low_band(chroma: Array) -> Array:
    """The low band of the Haar transform of what is there in fours of rows and columns."""
    height, width = (side // 4 * 4 for side in chroma.shape)
    return chroma[:height, :width].reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3)) / 2


def _blocks(low: Array) -> Array:
    """(N, 16), row by row; what is no whole block is left out."""
    down, across = (side // BLOCK for side in low.shape)
    cut = low[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK)
    return cut.swapaxes(1, 2).reshape(-1, BLOCK * BLOCK)


def _unblocks(change: Array, low: tuple[int, ...], size: tuple[int, ...]) -> Array:
    """The change of each pixel's chroma, (H, W)."""
    down, across = (side // BLOCK for side in low)
    laid = change.reshape(down, across, BLOCK, BLOCK).swapaxes(1, 2).reshape(down * BLOCK, across * BLOCK)
    pixels = np.zeros(size[:2])
    pixels[: 2 * down * BLOCK, : 2 * across * BLOCK] = laid.repeat(2, axis=0).repeat(2, axis=1)
    return pixels


def _blue_of(chroma: Array) -> Array:
    """The change (H, W, 3) of colours that changes their chroma so, and neither their brightness nor their red."""
    blue = chroma / _TO_CHROMA
    return np.stack([np.zeros_like(blue), -blue * _LUMA[2] / _LUMA[1], blue], axis=2)
