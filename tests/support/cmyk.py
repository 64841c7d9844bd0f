"""A small ICC profile of a printer with four inks, made here: every file of the kind belongs to somebody."""

import struct
from functools import cache
from typing import Any

import imagecodecs
import numpy as np

Array = np.ndarray[Any, Any]
INKS, COLOURS = 9, 17  # grid points along an axis of the two tables


@cache
def cmyk_profile() -> bytes:
    """Version 2, class "prtr": inks that mix as sRGB's numbers multiply; black replaces most of what is grey."""
    inks = _grid(INKS, 4)
    rgb = (1 - inks[:, :3]) * (1 - inks[:, 3:])
    to_lab = _lut(4, 3, INKS, _encode_lab(_transform(rgb, "srgb", "rgb", "lab2", "lab")))
    lab = _grid(COLOURS, 3) * (65535 / 65280, 65535 / 256, 65535 / 256) * (100, 1, 1) - (0, 128, 128)
    rgb = _transform(lab, "lab2", "lab", "srgb", "rgb").clip(0, 1)
    black = 0.8 * (1 - rgb.max(axis=1, keepdims=True))
    inks = np.concatenate([1 - rgb / (1 - black), black], axis=1)
    to_inks = _lut(3, 4, COLOURS, (inks.clip(0, 1) * 65535).round())
    name = b"four inks\0"
    return _profile(
        {
            b"desc": b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(78),
            b"cprt": b"text" + bytes(4) + b"public domain\0",
            b"wtpt": b"XYZ " + bytes(4) + _fixed(0.9642, 1.0, 0.8249),
            b"A2B0": to_lab,
            b"B2A0": to_inks,
        }
    )


def _grid(points: int, channels: int) -> Array:
    """All points in 0..1, the first channel slowest."""
    axes = [np.linspace(0, 1, points)] * channels
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, channels)


def _transform(values: Array, source: str, space: str, target: str, out: str) -> Array:
    flat = np.ascontiguousarray(values[None])
    return imagecodecs.cms_transform(
        flat, imagecodecs.cms_profile(source), imagecodecs.cms_profile(target),
        colorspace=space, outcolorspace=out, outdtype="float64",
    )[0]  # fmt: skip


def _encode_lab(lab: Array) -> Array:
    """CIELAB in version 2's 16 bits."""
    return ((lab + np.array([0, 128, 128])) * (652.80, 256, 256)).round().clip(0, 65535)


def _lut(inputs: int, outputs: int, points: int, table: Array) -> bytes:
    """A tag of type lut16 with straight curves."""
    head = b"mft2" + bytes(4) + bytes((inputs, outputs, points, 0)) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    straight = struct.pack(">HH", 0, 65535)
    return head + struct.pack(">HH", 2, 2) + straight * inputs + table.astype(">u2").tobytes() + straight * outputs


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _profile(tags: dict[bytes, bytes]) -> bytes:
    """The header, the table of tags and the tags."""
    start, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        entries += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = struct.pack(">I", start + len(body))
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    header = size + bytes(4) + b"\x02\x40\0\0prtrCMYKLab " + date + b"acsp" + bytes(28) + _fixed(0.9642, 1.0, 0.8249)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + entries + body
