"""Textual inversions inside pictures, as AUTOMATIC1111 writes them: in a text chunk, or in pixels at both sides.

The pixel form keeps compressed JSON in the low four bits: low halves of its bytes in columns at the left, high halves
at the right, a column of zeros beside each, and each XORed with the low bits of a linear congruential generator.
"""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from enlarger.errors import CheckpointError
from enlarger.strict_json import parse_json

TEXT_KEY = "sd-ti"
TENSOR_KEY = "TORCHTENSOR"
LOSSLESS_FORMATS = ("PNG", "WEBP")
MAGIC = (b"\x89PNG", b"RIFF")
MAX_JSON_BYTES = 8 << 20  # 100 vectors for SDXL's wider encoder have 3 MB
MAX_NUMBERS = 500_000  # and 200,000 numbers
MAX_PIXELS = 1 << 24
LOW_BITS = 0x0F
LCG_FACTOR, LCG_STEP, LCG_MODULUS, LCG_RANGE = 1664525, 1013904223, 2**32, 255  # Numerical Recipes'


def is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def read_embedding_picture(path: Path) -> Mapping[str, Any]:
    """What the inversion's file would hold: `string_to_param` with its vectors, `name` and so on.

    Raises CheckpointError for a picture that carries none, or a damaged one.
    """
    try:
        with Image.open(path, formats=LOSSLESS_FORMATS) as image:
            text = image.info.get(TEXT_KEY)
            if isinstance(text, str):
                data = base64.b64decode(text, validate=True)
            elif (found := _read_pixels(image)) is not None:
                data = found
            else:
                raise CheckpointError(
                    f"{path}: found no embedding in this picture, neither in {TEXT_KEY} nor in pixels"
                )
        if len(data) > MAX_JSON_BYTES:
            raise ValueError("too long")
        content = parse_json(data, _as_tensor, max_values=MAX_NUMBERS)
    except (OSError, ValueError, TypeError, RecursionError, zlib.error, Image.DecompressionBombError) as error:
        raise CheckpointError(f"{path}: the embedding in this picture is damaged; fetch the original file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the embedding in this picture is no table of vectors; fetch another")
    return cast("dict[str, Any]", content)


def _as_tensor(pairs: list[tuple[str, Any]]) -> Any:
    table = dict(pairs)
    return torch.tensor(table[TENSOR_KEY], dtype=torch.float32) if table.keys() == {TENSOR_KEY} else table


def _read_pixels(image: Image.Image) -> bytes | None:
    """The JSON in the low bits of both sides; None for a picture without them."""
    if image.width * image.height > MAX_PIXELS:
        return None
    pixels = _without_black_border(np.asarray(image.convert("RGB"))) & LOW_BITS
    separators = np.flatnonzero(pixels.sum(axis=(0, 2)) == 0) if pixels.size else np.empty(0)
    if len(separators) < 2:
        return None
    low, high = pixels[:, : separators[0]], pixels[:, separators[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    mask = _random_low_bits(low.size).reshape(low.shape)
    packed = ((high ^ mask) << 4 | (low ^ mask)).tobytes()
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, MAX_JSON_BYTES)
    if not unpacker.eof:
        raise ValueError("cut short or too long")
    return data


def _without_black_border(pixels: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero((pixels > 0).all(axis=2))
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if len(rows) else pixels[:0]


def _random_low_bits(count: int) -> np.ndarray:
    """The generator's numbers, which begin at its first step from 0."""
    numbers, state = np.empty(count, np.uint8), 0
    for place in range(count):
        state = (LCG_FACTOR * state + LCG_STEP) % LCG_MODULUS
        numbers[place] = (state % LCG_RANGE) & LOW_BITS
    return numbers
