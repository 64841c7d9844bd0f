"""Files that are sent to hurt: truncated, bombs, polyglots, other formats under a picture's name."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from tests.support.pictures import bad_files, png_header, texture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")


@dataclass(frozen=True)
class Odd:
    """One upload. `sound`: it holds a picture all the same, so that taking it does no harm."""

    name: str
    content: bytes
    sound: bool = False


def odd_uploads(folder: Path) -> list[Odd]:
    """About 70 files."""
    files = [Odd(case.path.name, case.path.read_bytes()) for case in bad_files(folder) if case.path.is_file()]
    return [*files, *bombs(), *broken(), *polyglots(), *others()]


def truncations(count: int, seed: int = 0) -> Iterator[Odd]:
    """Pictures of all formats cut at random places, in their first 90 %."""
    chance = random.Random(seed)
    for number in range(count):
        kind = FORMATS[number % len(FORMATS)]
        whole = saved(kind, number)
        at = chance.randrange(1, len(whole) * 9 // 10)
        yield Odd(f"cut-at-{at}.{kind.lower()}", whole[:at])


def saved(kind: str, seed: int = 0, side: int = 48) -> bytes:
    """A picture in one format."""
    file = io.BytesIO()
    picture = Image.fromarray(texture(side, side - 16, seed=seed))
    picture.save(file, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def pixels(width: int, height: int, channels: int = 3) -> bytes:
    """The data chunk of a black picture."""
    return chunk(b"IDAT", zlib.compress(bytes((width * channels + 1) * height), 9))


END = chunk(b"IEND", b"")


def bombs() -> Iterator[Odd]:
    """Small files that become large ones."""
    text = b"Comment\0\0" + zlib.compress(bytes(80 << 20), 9)
    profile = b"icc\0\0" + zlib.compress(bytes(50 << 20), 9)
    small = pixels(16, 16)
    jpeg = saved("JPEG")
    at = jpeg.index(b"\xff\xc0")
    yield Odd("black-7100.png", SIGNATURE + ihdr(7100, 7100) + pixels(7100, 7100) + END)
    yield Odd("row-2147483647.png", SIGNATURE + ihdr(2**31 - 1, 1) + small + END)
    yield Odd("text-80MB.png", SIGNATURE + ihdr(16, 16) + chunk(b"zTXt", text) + small + END, sound=True)
    yield Odd("profile-50MB.png", SIGNATURE + ihdr(16, 16) + chunk(b"iCCP", profile) + small + END, sound=True)
    many = chunk(b"tEXt", b"a\0b") * 100_000
    yield Odd("chunks-100000.png", SIGNATURE + ihdr(16, 16) + many + small + END, sound=True)
    frames = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield Odd("frames-2147483647.png", SIGNATURE + ihdr(16, 16) + frames + small + END, sound=True)
    yield Odd("large.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + gif_frame(65535))
    yield Odd("frame-larger.gif", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + gif_frame(65535))
    yield Odd("large.jpg", jpeg[: at + 5] + struct.pack(">HH", 65500, 65500) + jpeg[at + 9 :])
    yield Odd("large.webp", webp(b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2))
    yield Odd(
        "large.bmp",
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHH", 40, 50_000, 50_000, 1, 24) + bytes(24),
    )
    yield Odd(
        "large.tif",
        tiff(
            [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)]
        ),
    )


def gif_frame(side: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"


def webp(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A little-endian TIFF of one directory, whose next one lies at `following`."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def broken() -> Iterator[Odd]:
    """Files that begin well."""
    whole, small = saved("PNG"), pixels(16, 16)
    start = SIGNATURE + ihdr(16, 16)
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    yield Odd("flipped-byte.png", bytes(flipped))
    yield Odd("header-checksum.png", SIGNATURE + ihdr(16, 16)[:-4] + bytes(4) + small + END)
    yield Odd("no-data.png", start + END)
    yield Odd("garbage-data.png", start + chunk(b"IDAT", b"not zlib at all") + END)
    yield Odd("short-data.png", start + chunk(b"IDAT", zlib.compress(bytes(40))) + END)
    yield Odd("endless-chunk.png", start + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(50))
    yield Odd("depth-7.png", SIGNATURE + ihdr(16, 16, depth=7) + small + END)
    yield Odd("colour-9.png", SIGNATURE + ihdr(16, 16, colour=9) + small + END)
    yield Odd("palette-missing.png", SIGNATURE + ihdr(16, 16, colour=3) + pixels(16, 16, 1) + END, sound=True)
    yield Odd("width-0.png", png_header(0, 0))
    jpeg = saved("JPEG")
    scan = jpeg.index(b"\xff\xda")
    yield Odd("start-only.jpg", b"\xff\xd8\xff\xe0")
    yield Odd("no-scan.jpg", jpeg[:scan] + b"\xff\xd9")
    yield Odd("no-tables.jpg", jpeg[:20] + jpeg[scan:])
    yield Odd("garbage.gif", b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0) + bytes(40))
    yield Odd("no-frame.gif", b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0) + b";")
    yield Odd("length.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(30))
    yield Odd("no-frame.webp", webp(b"VP8X" + struct.pack("<I", 10) + b"\x02" + bytes(9) + b"ANIM" + bytes(10)))
    yield Odd("loop.tif", tiff([(256, 3, 1, 16)], following=8))
    yield Odd(
        "outside.tif",
        tiff([(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 2**31), (279, 4, 1, 256)]),
    )
    yield Odd("counts.tif", tiff([(256, 4, 2**32 - 1, 2**31), (257, 4, 2**32 - 1, 0)]))
    yield Odd(
        "offset.bmp",
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 2**31) + struct.pack("<IiiHH", 40, 16, 16, 1, 24) + bytes(24),
    )
    if features.check("avif"):
        avif = saved("AVIF")
        yield Odd("cut.avif", avif[: len(avif) // 2])


def polyglots() -> Iterator[Odd]:
    """Two formats in one file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("evil.html", "<script>alert(1)</script>")
    jpeg = saved("JPEG")
    comment = b"<html><script>alert(1)</script></html>"
    yield Odd("picture-and-zip.png", saved("PNG") + archive.getvalue(), sound=True)
    marker = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
    yield Odd("picture-and-page.jpg", jpeg[:2] + marker + jpeg[2:], sound=True)
    yield Odd("picture-and-script.gif", b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)//")
    yield Odd("document-and-picture.pdf", b"%PDF-1.4\n1 0 obj<<>>stream\n" + jpeg + b"\nendstream\n%%EOF")
    yield Odd("zip-first.png", archive.getvalue() + saved("PNG"))
    yield Odd("newline-first.png", b"\n" + saved("PNG"))


def others() -> Iterator[Odd]:
    """What is no picture, or none that is taken, under the name of one."""
    yield Odd("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n{} loop\n%%EOF\n")
    yield Odd("document.png", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF")
    yield Odd("stars.png", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800))
    yield Odd("photoshop.png", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(40))
    yield Odd("surface.png", b"DDS " + struct.pack("<7I", 124, 0x1007, 20_000, 20_000, 0, 0, 0) + bytes(96))
    yield Odd("icon.png", struct.pack("<HHH", 0, 1, 1) + bytes(16) + bytes(64))
    yield Odd("bitmap-text.png", b"#define a_width 99999\n#define a_height 99999\nstatic char a_bits[] = {0};\n")
    yield Odd("portable.png", b"P6 99999 99999 255\n" + bytes(30))
    yield Odd("animation.png", struct.pack("<IHHHHH", 128, 0xAF12, 9999, 320, 200, 8) + bytes(114))
    yield Odd("page.png", b"<!doctype html><script>alert(document.domain)</script>")
    yield Odd(
        "entities.svg",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg xmlns="http://www.w3.org/2000/svg">&b;</svg>',
    )
    yield Odd("zeros.png", bytes(1000))
    yield Odd("noise.png", random.Random(1).randbytes(10_000))
    yield Odd("packed.png", gzip.compress(saved("PNG")))
    yield Odd("sixteen.txt", "a picture, honestly".encode("utf-16"))
    yield Odd("byte.png", b"\x89")
    yield Odd("program.png", b"\x7fELF" + bytes(200))
