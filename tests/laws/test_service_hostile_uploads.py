"""Whatever is uploaded, the decoder gives a picture or a refusal with a code, soon, in bounded memory, and goes on."""

import asyncio
import io
import random
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enlarger.image.decode import READABLE_FORMATS
from enlarger.image.picture import read_picture
from enlarger.service.problems import ProblemError
from enlarger.service.settings import Settings
from enlarger.service.uploads.decoder_pool import DecoderPool
from enlarger.service.uploads.messages import DecodedImage
from tests.support.pictures import gamma_profile, odd_files, png_header, texture
from tests.unit.test_bad_pictures import mutate

CODES = {  # of pictures, in the service's contract
    "invalid_image", "invalid_image_format", "image_too_large", "image_too_small", "image_parse_error",
    "invalid_image_mode", "image_file_too_large", "unsupported_image_media_type", "empty_image_file",
}  # fmt: skip
MOST = 50_000_000
SOON = 0.1  # seconds for a refusal from the header
MEMORY = 128 << 20  # bytes of a child that decodes no large picture
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Upload:
    """A file that is sent; with a code it must be refused with that one."""

    name: str
    data: bytes
    code: str | None = None


@dataclass
class Pool:
    """A started decoder and the loop it lives on."""

    decoder: DecoderPool
    runner: asyncio.Runner
    folder: Path

    def take(self, data: bytes) -> tuple[DecodedImage | ProblemError, float]:
        source, out = self.folder / "upload", self.folder / "out.png"
        source.write_bytes(data)
        out.unlink(missing_ok=True)
        start = time.perf_counter()
        try:
            found = self.runner.run(self.decoder.decode_image(source, out, max_pixels=MOST))
        except ProblemError as error:
            assert not out.exists()
            return error, time.perf_counter() - start
        assert read_picture(out).width == found.width
        return found, time.perf_counter() - start

    def memory(self) -> int:
        """The most bytes that any of the children ever held."""
        files = (Path(f"/proc/{child.process.pid}/status") for child in self.decoder._processes)
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
        return max((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), default=0)

    def pids(self) -> set[int]:
        return {child.process.pid for child in self.decoder._processes}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[Pool]:
    with asyncio.Runner() as runner:
        decoder = DecoderPool(Settings())
        runner.run(decoder.start())
        try:
            yield Pool(decoder, runner, tmp_path_factory.mktemp("pool"))
        finally:
            runner.run(decoder.stop())


def saved(kind: str, image: Image.Image | None = None, **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(texture(48, 32)) if image is None else image
    image.save(
        stream,
        kind,
        **({"compression": "tiff_lzw"} if kind == "TIFF" and "compression" not in options else {}),
        **options,
    )
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small_png(*chunks: bytes) -> bytes:
    """A PNG of 16 x 16 with chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(49 * 16))) + chunk(b"IEND", b"")


def bombs() -> Iterator[Upload]:
    """Small files that state a size no one wants, in every format; refused from the header."""
    jpeg = saved("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    gif = struct.pack("<HHBBB", 50_000, 50_000, 0, 0, 0)
    picture = b",\0\0\0\0" + struct.pack("<HHB", 50_000, 50_000, 0) + b"\2\2\x4c\1\0;"
    tags = [(256, 50_000), (257, 50_000), (258, 8), (262, 1), (273, 8), (279, 9)]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\x4f\xc3\0" * 2
    files = {
        "png": png_header(50_000, 50_000),
        "jpg": jpeg[: frame + 5] + struct.pack(">HH", 50_000, 50_000) + jpeg[frame + 9 :],
        "gif": b"GIF89a" + gif + picture,
        "frame.gif": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + picture,
        "tif": b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + bytes(4),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "bmp": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24) + bytes(24),
        "one-row.png": png_header(2**31 - 1, 1),
    }
    yield from (Upload(name, data, "image_too_large") for name, data in files.items())


def truncated() -> Iterator[Upload]:
    """Every format cut in its signature, its header, its middle and near its end."""
    for kind in FORMATS:
        whole = saved(kind)
        for place in (1, 3, 12, 30, 64, len(whole) // 3, len(whole) * 2 // 3, len(whole) * 9 // 10, len(whole) - 1):
            yield Upload(f"{kind} cut at {place}", whole[:place])


def strangers() -> Iterator[Upload]:
    """Other files under the name of a PNG."""
    foreign = "unsupported_image_media_type"
    yield Upload("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", foreign)
    yield Upload("PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", foreign)
    yield Upload("SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', foreign)
    yield Upload("FITS", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), foreign)
    yield Upload("PSD", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3), foreign)
    yield Upload("HTML", b"<!DOCTYPE html><script>alert(1)</script>", foreign)
    yield Upload("ZIP", b"PK\3\4" + bytes(60), foreign)
    yield Upload(
        "HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image_parse_error" if "HEIF" in READABLE_FORMATS else foreign
    )
    yield Upload("a PDF with a picture in it", b"%PDF-1.4\nstream\n" + saved("JPEG") + b"\nendstream", foreign)
    yield Upload("DDS", b"DDS " + struct.pack("<7I", 124, 0x1007, 20_000, 20_000, 0, 0, 0), foreign)
    yield Upload("PPM", b"P6 99999 99999 255\n" + bytes(30), foreign)
    yield Upload("noise", random.Random(1).randbytes(5000), "invalid_image_format")
    yield Upload("nothing", b"", "empty_image_file")
    yield Upload("a line before", b"\n" + saved("PNG"), "invalid_image_format")


def stuffed() -> Iterator[Upload]:
    """PNGs with far too many pieces beside their pixels, and other damage."""
    yield Upload("100,000 chunks", small_png(chunk(b"tEXt", b"a\0b") * 100_000), "image_parse_error")
    yield Upload("a checksum", small_png()[:29] + bytes(4) + small_png()[33:], "image_parse_error")
    yield Upload("an endless chunk", small_png()[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(50))
    avif = saved("AVIF")
    size = avif.index(b"ispe") + 8
    yield Upload("a large AVIF", avif[:size] + struct.pack(">II", 50_000, 50_000) + avif[size + 8 :])
    yield Upload("2^31 frames", small_png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))))
    yield Upload(
        "no palette", SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)) + small_png()[33:]
    )


def overfull() -> Iterator[Upload]:
    """PNGs with far too much beside their pixels, which are taken without it."""
    bomb = zlib.compress(bytes(60 << 20), 9)
    yield Upload("a text bomb", small_png(chunk(b"zTXt", b"a\0\0" + bomb)))
    yield Upload("a profile bomb", small_png(chunk(b"iCCP", b"a\0\0" + bomb)))
    yield Upload("many texts", small_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) * 90))


def polyglots() -> Iterator[Upload]:
    """Pictures that are something else besides; what is written is the picture alone."""
    page, jpeg = b"<html><script>alert(1)</script></html>", saved("JPEG")
    yield Upload("PNG and ZIP", saved("PNG") + b"PK\3\4evil.html" + page)
    yield Upload("JPEG and HTML", jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(page) + 2) + page + jpeg[2:])
    yield Upload("GIF and HTML", saved("GIF") + page)


def odd_pictures() -> Iterator[Upload]:
    """Pictures that programs stumble over; each is taken."""
    yield Upload("1 x 10,000", saved("PNG", Image.fromarray(texture(1, 10_000))))
    yield Upload("a profile of 5 MB", saved("TIFF", icc_profile=gamma_profile() + bytes(5 << 20)))
    yield Upload("a broken profile of 5 MB", saved("TIFF", icc_profile=bytes(5 << 20)))
    yield Upload("a grey profile", saved("PNG", icc_profile=gamma_profile()[:16] + b"GRAY" + gamma_profile()[20:]))
    yield Upload("16 bits of colour", SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
                 + chunk(b"IDAT", zlib.compress(bytes(97 * 16))) + chunk(b"IEND", b""))  # fmt: skip
    yield Upload("floats", saved("TIFF", Image.fromarray(np.ones((3, 4), np.float32))))
    yield Upload("two pictures", saved("MPO", save_all=True, append_images=[Image.fromarray(texture(9, 9))]))


REFUSED = [*bombs(), *strangers(), *stuffed()]


@pytest.mark.parametrize("upload", [u for u in REFUSED if u.code is not None], ids=lambda upload: upload.name)
def test_hostile_files_are_refused_soon_and_with_their_code(pool: Pool, upload: Upload) -> None:
    found, seconds = min((pool.take(upload.data) for _ in range(3)), key=lambda each: each[1])
    assert isinstance(found, ProblemError), found
    refusal = found.problem
    assert (refusal.status, refusal.code, refusal.param) == (400, upload.code, "image")
    assert refusal.message.startswith("image: ") and refusal.message.isprintable() and ";" in refusal.message
    assert str(pool.folder) not in refusal.message
    assert seconds < SOON


def test_damaged_files_give_a_picture_or_a_refusal(pool: Pool) -> None:
    before, uploads = pool.pids(), [*truncated(), *(upload for upload in REFUSED if upload.code is None)]
    for upload in uploads:
        found, seconds = pool.take(upload.data)
        assert isinstance(found, DecodedImage) or (found.problem.status == 400 and found.problem.code in CODES), (
            upload.name
        )
        assert seconds < 2, upload.name
    assert len(uploads) > 60 and pool.pids() == before, "a child was lost"


def test_odd_pictures_and_polyglots_are_taken(pool: Pool, tmp_path: Path) -> None:
    cases = [Upload(case.path.name, case.path.read_bytes()) for case in odd_files(tmp_path)]
    for upload in [*cases, *odd_pictures(), *polyglots()]:
        found, _ = pool.take(upload.data)
        assert isinstance(found, DecodedImage), f"{upload.name}: {found}"
        assert b"script" not in (pool.folder / "out.png").read_bytes()


@pytest.mark.parametrize("upload", [*overfull()], ids=lambda upload: upload.name)
def test_what_is_beside_the_pixels_costs_little_and_is_left_out(pool: Pool, upload: Upload) -> None:
    found, seconds = min((pool.take(upload.data) for _ in range(3)), key=lambda each: each[1])
    assert isinstance(found, DecodedImage), found
    assert "data beside the pixels, left out: " in found.notes[0] and seconds < 2 * SOON


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_give_a_picture_or_a_refusal(pool: Pool, kind: str) -> None:
    whole, dice = saved(kind), random.Random(f"service {kind}")
    for _ in range(60):
        data = mutate(whole, dice)
        found, _ = pool.take(data)
        assert isinstance(found, DecodedImage) or (found.problem.status == 400 and found.problem.code in CODES)


def test_the_pool_is_whole_after_all_that_and_small(pool: Pool) -> None:
    found, _ = pool.take(saved("PNG"))
    assert isinstance(found, DecodedImage)
    assert len(pool.pids()) >= 1 and pool.memory() < MEMORY
