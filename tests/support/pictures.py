"""Bad and odd picture files, each with the outcome that reading it must have."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms


@dataclass(frozen=True)
class Case:
    """One file: either the words of its one-line error, or what the picture that it gives is like."""

    path: Path
    error: str | None = None
    size: tuple[int, int] = (0, 0)  # width, height, upright
    mode: str = "RGB"  # of what comes back out
    note: str | None = None


def texture(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture with edges, uint8 (H, W) or (H, W, C)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    phase = np.random.default_rng(seed).uniform(0, 6, channels)
    waves = [127.5 + 90 * np.sin(x / 5 + p) * np.cos(y / 7 - p) + 30 * ((x + y) % 16 < 8) for p in phase]
    planes = np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8)
    return planes[..., 0] if channels == 1 else planes


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds almost no data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(64))),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def gamma_profile() -> bytes:
    """A colour profile that differs from sRGB: the red and blue primaries' curves are swapped for a linear one.

    The same at each call, though a profile tells when it was made.
    """
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    start = data.index(b"para", 132 + 12 * struct.unpack(">I", data[128:132])[0])
    data[start : start + 16] = b"para" + bytes(4) + struct.pack(">HHi", 0, 0, 1 << 16)  # type 0: y = x ** 1.0
    return bytes(data)


def bad_files(folder: Path) -> list[Case]:
    """Files and names that cannot be read."""
    image = Image.fromarray(texture(48, 32))
    cases: list[Case] = []

    def add(name: str, data: bytes, error: str) -> None:
        path = folder / name
        path.write_bytes(data)
        cases.append(Case(path, error))

    for suffix, options in (("png", {}), ("jpg", {}), ("webp", {}), ("tif", {"compression": "tiff_lzw"}), ("bmp", {})):
        whole = folder / f"whole.{suffix}"
        image.save(whole, **options)
        data = whole.read_bytes()
        whole.unlink()
        add(f"truncated.{suffix}", data[: len(data) * 2 // 3], "copy or download it again")
        add(f"header_only.{suffix}", data[:12], "copy or download it again")
    add("empty.png", b"", "the file is empty")
    add("zero_sized.png", png_header(0, 5), "copy or download it again")
    add("text.png", b"This is a text file, not a picture.\n" * 20, "is not a picture")
    add("vector.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "is an SVG drawing")
    add("huge_header.png", png_header(50_000, 50_000), "has 2,500,000,000 pixels")
    add("large_header.png", png_header(14_000, 14_000), "has 196,000,000 pixels")
    (folder / "folder.png").mkdir()
    cases.append(Case(folder / "folder.png", "is a folder"))
    cases.append(Case(folder / "missing.png", "no such file"))
    return cases


def odd_files(folder: Path) -> list[Case]:
    """Unusual files that give a picture."""
    cases: list[Case] = []

    def add(name: str, save: Callable[[Path], None], size: tuple[int, int], mode: str, note: str | None = None) -> None:
        path = folder / name
        save(path)
        cases.append(Case(path, None, size, mode, note))

    colour = Image.fromarray(texture(20, 14))
    grey = Image.fromarray(texture(20, 14, 1))
    with_alpha = Image.fromarray(texture(20, 14, 4))
    deep = Image.fromarray(np.arange(280, dtype=np.uint16).reshape(14, 20) * 234)
    palette = colour.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.fromarray(texture(20, 14, seed=k)) for k in range(3)]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}

    add("one_pixel.png", Image.new("RGB", (1, 1), (10, 20, 30)).save, (1, 1), "RGB")
    add("wide.png", Image.fromarray(texture(3000, 1)).save, (3000, 1), "RGB")
    add("tall.png", Image.fromarray(texture(1, 3000)).save, (1, 3000), "RGB")
    add("cmyk.jpg", colour.convert("CMYK").save, (20, 14), "RGB", "CMYK")
    add("cmyk.tif", colour.convert("CMYK").save, (20, 14), "RGB", "CMYK")
    add("lab.tif", Image.merge("LAB", (grey, grey, grey)).save, (20, 14), "RGB")
    add("ycbcr.tif", colour.convert("YCbCr").save, (20, 14), "RGB")
    add("grey16.png", deep.save, (20, 14), "I;16")
    add("grey16.tif", deep.save, (20, 14), "I;16")
    add("grey.jpg", grey.save, (20, 14), "L")
    add("grey_alpha.png", Image.merge("LA", (grey, grey)).save, (20, 14), "LA")
    add("bilevel.png", grey.convert("1").save, (20, 14), "L")
    add("rgba.png", with_alpha.save, (20, 14), "RGBA")
    add("rgba.webp", with_alpha.save, (20, 14), "RGBA")
    add("palette.png", palette.save, (20, 14), "RGB")
    add("palette_transparent.png", lambda p: palette.save(p, transparency=3), (20, 14), "RGBA")
    add("palette_partial.png", lambda p: palette.save(p, transparency=bytes(range(0, 256, 16))), (20, 14), "RGBA")
    add("colour_key.png", lambda p: colour.save(p, transparency=(1, 2, 3)), (20, 14), "RGBA")
    add("grey_key.png", lambda p: grey.save(p, transparency=7), (20, 14), "LA")
    add("animated.gif", lambda p: frames[0].save(p, **more, duration=50), (20, 14), "RGB", "first frame")
    add("animated.png", lambda p: frames[0].save(p, **more), (20, 14), "RGB", "first frame")
    add("animated.webp", lambda p: frames[0].save(p, **more), (20, 14), "RGB", "first frame")
    add("pages.tif", lambda p: frames[0].save(p, **more), (20, 14), "RGB", "first frame")
    add("turned.jpg", lambda p: colour.save(p, exif=turned), (14, 20), "RGB")
    add("turned.png", lambda p: colour.save(p, exif=turned), (14, 20), "RGB")
    add("turned.tif", lambda p: colour.save(p, exif=turned), (14, 20), "RGB")
    add("profile.png", lambda p: colour.save(p, icc_profile=gamma_profile()), (20, 14), "RGB", "converted to sRGB")
    add("broken_profile.png", lambda p: colour.save(p, icc_profile=bytes(200)), (20, 14), "RGB", "cannot be used")
    add("broken_exif.jpg", lambda p: colour.save(p, exif=b"Exif\0\0II*\0\xff\xff\xff\xff\0"), (20, 14), "RGB")
    add("wrong_suffix.png", lambda p: colour.save(p, format="JPEG"), (20, 14), "RGB")
    add("no_suffix", lambda p: colour.save(p, format="PNG"), (20, 14), "RGB")
    return cases


def all_files(folder: Path) -> list[Case]:
    """Every bad and odd file, written into `folder`."""
    return [*bad_files(folder), *odd_files(folder)]
