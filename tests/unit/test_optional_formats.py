"""HEIC and JPEG XL: read where their extras are installed, also by the decoder, and refused by their size before."""

import io
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.decode import OPTIONAL_FORMATS, UnreadableImage, read_header
from enlarger.image.optional_formats import JXL_BOXED, MAX_JXL_BOXES, jxl_size
from enlarger.image.other_kinds import other_kind
from enlarger.image.picture import read_picture

needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="the extra heif is not installed")
needs_jxl = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="the extra jxl is not installed")
FORMATS = [pytest.param("heic", marks=needs_heif), pytest.param("jxl", marks=needs_jxl)]


def photo(width: int = 40, height: int = 24) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    planes = [columns * 5 % 256, rows * 9 % 256, (rows + columns) * 3 % 256]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def written(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "HEIF" if kind == "heic" else "JXL", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_they_are_read_as_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(written(kind, photo()))
    assert f".{kind}" in OPTIONAL_FORMATS and read_header(path) == ("RGB", (40, 24))
    found = read_picture(path)
    seen = ((found.colour + 1) * 127.5).permute(1, 2, 0).numpy()
    assert (found.width, found.height) == (40, 24) and np.abs(seen - np.array(photo())).mean() < 6


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_one_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(written(kind, photo())[:60])
    with pytest.raises(InputError, match=rf"a\.{kind}: ") as raised:
        read_picture(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("bits", "size"),
    [
        (1 | 5 << 1 | 1 << 6, (48, 48)),
        (1 | 5 << 1 | 0 << 6 | 2 << 9, (24, 48)),
        (0 | 0 << 1 | 15 << 3 | 0 << 12 | 1 << 15 | 4999 << 17, (5000, 16)),
        (0 | 3 << 1 | (2**30 - 1) << 3 | 7 << 33, (2**31, 2**30)),
    ],
    ids=["square", "small", "wide", "the largest"],
)
def test_sizes_by_hand(bits: int, size: tuple[int, int]) -> None:
    assert jxl_size(io.BytesIO(b"\xff\x0a" + bits.to_bytes(10, "little"))) == size
    assert jxl_size(io.BytesIO(b"\xff\x0a\0")) is None and jxl_size(io.BytesIO(b"\x89PNG" + bytes(20))) is None


WIDE = b"\xff\x0a" + (15 << 3 | 1 << 15 | 4999 << 17).to_bytes(10, "little")
SMALL = b"\xff\x0a" + (1).to_bytes(10, "little")


def box(kind: bytes, data: bytes, form: str = "32 bits") -> bytes:
    size = {"32 bits": struct.pack(">I", 8 + len(data)), "64 bits": b"\0\0\0\1", "to the end": bytes(4)}[form]
    return size + kind + (struct.pack(">Q", 16 + len(data)) if form == "64 bits" else b"") + data


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        (box(b"xml ", bytes(5000)) + box(b"jxlc", WIDE), (5000, 16)),
        (box(b"xml ", SMALL) + box(b"jxlc", WIDE, "64 bits"), (5000, 16)),
        (box(b"xml ", SMALL, "64 bits") + box(b"jxlc", WIDE, "to the end"), (5000, 16)),
        (box(b"jxlp", bytes(4) + WIDE[:4]) + box(b"jxlp", b"\0\0\0\1" + WIDE[4:]), (5000, 16)),
        (box(b"xml ", SMALL), None),
        (box(b"xml ", SMALL, "to the end") + box(b"jxlc", SMALL), None),
        (b"\0\0\0\2xml " + box(b"jxlc", SMALL), None),
        (b"\0\0\0\1xml " + b"\xff" * 8 + box(b"jxlc", SMALL), None),
        (box(b"jxlp", bytes(4) + WIDE[:4]) + box(b"free", b"") * MAX_JXL_BOXES + box(b"jxlp", bytes(12)), None),
    ],
    ids=["far", "64 bits", "to the end", "in two", "none", "hidden", "too small", "past the end", "too many"],
)
def test_sizes_in_boxes(boxes: bytes, size: tuple[int, int] | None) -> None:
    assert jxl_size(io.BytesIO(JXL_BOXED + boxes)) == size
    if size is None:
        with pytest.raises(UnreadableImage, match=r"the bytes: (is a JPEG XL file|the JXL header is damaged)"):
            read_picture(JXL_BOXED + boxes)


@needs_jxl
@pytest.mark.parametrize("size", [(8, 8), (256, 256), (40, 24), (1000, 3), (300, 200), (1280, 720), (513, 9000)])
def test_sizes_of_files(size: tuple[int, int]) -> None:
    assert jxl_size(io.BytesIO(written("jxl", Image.new("RGB", size)))) == size
    assert jxl_size(io.BytesIO(written("jxl", Image.new("RGB", size), exif=b"Exif\0\0II*\0"))) == size  # in boxes


@needs_jxl
def test_a_bomb_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written("jxl", Image.new("RGB", (3000, 2000)), exif=b"Exif\0\0II*\0")
    (tmp_path / "a.jxl").write_bytes(data[:32] + box(b"xml ", bytes(5000)) + data[32:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UnreadableImage, match=r"a\.jxl: .*6,000,000 pixels"):
        read_picture(tmp_path / "a.jxl")


def test_without_the_extras_the_way_is_said() -> None:
    for head, extra in ((b"\0\0\0\x18ftypheic", "heif"), (JXL_BOXED, "jxl"), (b"\xff\x0a", "jxl")):
        kind = other_kind(head)
        assert kind is not None and kind.way_out.startswith(f"install enlarger[{extra}], or convert it")
        assert other_kind(head, read=("HEIF", "JXL")) is None
