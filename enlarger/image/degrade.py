"""What befalls pictures on their way to us, made on purpose and by seed: blur, noise and JPEG compression."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)
Values = np.ndarray[Any, np.dtype[np.float32]]  # the same, 0..255
Draw = np.random.Generator

PHONE_NOISE = 12.0  # 8-bit steps


def blur(values: Values, sigma: float) -> Values:
    """Gaussian blur by `sigma` pixels, the border repeated."""
    radius = max(1, int(np.ceil(3 * sigma)))
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        sides = [(radius, radius) if axis == a else (0, 0) for a in range(3)]
        wide, size = np.pad(values, sides, mode="edge"), values.shape[axis]
        shifted = (wide.take(range(k, k + size), axis) * weights[k] for k in range(2 * radius + 1))
        values = sum(shifted, np.zeros_like(values)).astype(np.float32)
    return values


def sensor_noise(values: Values, sigma: float, draw: Draw) -> Values:
    """A small sensor's noise: more of it in red and blue and in bright parts, and smoothed a little, as phones do.

    `sigma` is in 8-bit steps, in the middle of the range.
    """
    noise = 1.7 * blur(_gaussian(values, sigma, draw) * np.array([1.1, 0.8, 1.3], np.float32), 0.5)
    return (values + noise * (0.4 + 0.85 * np.sqrt(values.clip(0, 255) / 255))).astype(np.float32)


def compress(pixels: Pixels, quality: int, subsampling: int = 2) -> Pixels:
    """Through a JPEG file and back; `subsampling` as Pillow has it: 0 none, 2 colour at half resolution."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(data, formats=("JPEG",)))


def rounded(values: Values) -> Pixels:
    """To 8 bits."""
    return values.round().clip(0, 255).astype(np.uint8)


def phone(pixels: Pixels, draw: Draw) -> Pixels:
    """A dim room and a phone: noise, then JPEG."""
    return compress(rounded(sensor_noise(pixels.astype(np.float32), PHONE_NOISE, draw)), 90)


DEGRADATIONS: Mapping[str, Callable[[Pixels, Draw], Pixels]] = {
    "jpeg40": lambda pixels, _: compress(pixels, 40),
    "jpeg70": lambda pixels, _: compress(pixels, 70),
    "phone": phone,
    "blur": lambda pixels, _: rounded(blur(pixels.astype(np.float32), 1.0)),
}
"""By name, for evaluation."""


@dataclass(frozen=True)
class Severity:
    """How often each degradation befalls a picture of a training pair, and how bad it is at most."""

    blur: float = 0.35
    noise: float = 0.5
    jpeg: float = 0.6
    none: float = 0.05
    blur_sigma: tuple[float, float] = (0.3, 1.3)  # pixels, mildest and worst
    noise_sigma: tuple[float, float] = (1.0, 18.0)  # 8-bit steps
    quality: tuple[float, float] = (95.0, 25.0)


def degrade(pixels: Pixels, draw: Draw, severity: Severity | None = None) -> tuple[Pixels, float]:
    """A picture made worse by at least one of blur, noise and JPEG, and how much: 0 is not at all, 1 is badly."""
    severity = Severity() if severity is None else severity
    if draw.random() < severity.none:
        return pixels, 0.0
    strength = draw.random()
    happens = draw.random(3) < (severity.blur, severity.noise, severity.jpeg)
    if not happens.any():
        happens[draw.integers(3)] = True
    values = pixels.astype(np.float32)
    if happens[0]:
        values = blur(values, _between(severity.blur_sigma, strength * draw.uniform(0.5, 1)))
    if happens[1]:
        values = _noise(values, _between(severity.noise_sigma, strength * draw.uniform(0.4, 1)), draw)
    pixels = rounded(values)
    if happens[2]:
        quality = round(_between(severity.quality, strength * draw.uniform(0.5, 1)))
        pixels = compress(pixels, quality, int(draw.integers(3)))
    return pixels, strength


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _noise(values: Values, sigma: float, draw: Draw) -> Values:
    """Noise of one of several kinds: a sensor's, in all colours alike, or grey."""
    kind = draw.random()
    if kind < 0.5:
        return sensor_noise(values, sigma, draw)
    noise = _gaussian(values, sigma, draw)
    return (values + (noise if kind < 0.85 else noise.mean(2, keepdims=True) * 1.7)).astype(np.float32)


def _gaussian(values: Values, sigma: float, draw: Draw) -> Values:
    """White noise of the shape of `values`."""
    return cast(Values, sigma * draw.standard_normal(values.shape, np.float32))
