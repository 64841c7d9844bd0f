"""Pictures that are damaged beside their pixels, cut short, or of a kind that is not read."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from enlarger.errors import InputError
from enlarger.image.damage import PNG_SIGNATURE
from enlarger.image.picture import read_picture, to_pil
from enlarger.image.special_reads import salvage
from tests.support.pictures import gamma_profile, texture

PHOTO = Image.fromarray(texture(64, 48))
Chunk = tuple[bytes, bytes, bytes | None]  # kind, content, checksum if it is not the right one


def encoded(kind: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunks(png: bytes) -> list[Chunk]:
    found: list[Chunk] = []
    position = len(PNG_SIGNATURE)
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        found.append((png[position + 4 : position + 8], png[position + 8 : position + 8 + length], None))
        position += length + 12
    return found


def join(pieces: Iterable[Chunk]) -> bytes:
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + (checksum or zlib.crc32(kind + body).to_bytes(4))
        for kind, body, checksum in pieces
    )


def png_with(*added: Chunk) -> bytes:
    first, *rest = chunks(encoded("PNG"))
    return join([first, *added, *rest])


TEXT = zlib.compress(b"x" * (3 << 20))
WHOLE = {
    "a checksum in text": (png_with((b"tEXt", b"a\0b", b"????")), "tEXt, data beside the pixels, left out: its check"),
    "a checksum in gAMA": (png_with((b"gAMA", struct.pack(">I", 9), b"????")), "gAMA, data beside the pixels"),
    "a workflow": (
        png_with((b"zTXt", b"a\0\0" + TEXT, None)),
        "zTXt, data beside the pixels, left out: text of over 3",
    ),
    "a workflow in UTF-8": (png_with((b"iTXt", b"a\0\1\0\0\0" + TEXT, None)), "iTXt, data beside the pixels, left"),
    "much text": (png_with(*[(b"tEXt", b"a\0" + bytes(1 << 20), None)] * 40), "tEXt, data beside the pixels, left out"),
    "a short resolution": (png_with((b"pHYs", b"\0", None)), "pHYs, data beside the pixels, left out: it is too short"),
    "a large profile that is none": (png_with((b"iCCP", b"a\0\0" + TEXT, None)), "colour profile cannot be used"),
    "another file behind the end": (encoded("PNG") + b"PK\3\4evil.html" * 9, ""),
    "no end of a PNG": (join(chunks(encoded("PNG"))[:-1]), ""),
}


@pytest.mark.parametrize("name", WHOLE)
def test_damage_beside_the_pixels_is_a_note(name: str, tmp_path: Path) -> None:
    data, note = WHOLE[name]
    (tmp_path / "a.png").write_bytes(data)
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(np.asarray(to_pil(picture)), np.asarray(PHOTO))
    assert note.replace("over 3", "over 1") in "; ".join(picture.notes) and len(picture.notes) <= 1


def test_a_profile_of_more_than_a_mebibyte_is_used(tmp_path: Path) -> None:
    small = gamma_profile()
    large = struct.pack(">I", 3 << 20) + small[4:] + bytes((3 << 20) - len(small))
    PHOTO.save(tmp_path / "small.png", icc_profile=small)
    (tmp_path / "large.png").write_bytes(png_with((b"iCCP", b"a\0\0" + zlib.compress(large), None)))
    assert read_picture(tmp_path / "large.png").colour.equal(read_picture(tmp_path / "small.png").colour)


@pytest.mark.parametrize(
    "options", [{"quality": 95}, {"quality": 30, "progressive": True}, {"quality": 80, "subsampling": 2}]
)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_has_all_its_pixels(options: dict[str, int], cut: int, tmp_path: Path) -> None:
    data = encoded("JPEG", **options)
    (tmp_path / "whole.jpg").write_bytes(data), (tmp_path / "a.jpg").write_bytes(data[:-cut])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.colour.equal(read_picture(tmp_path / "whole.jpg").colour)
    assert set(picture.notes) <= {"the mark at the end of the JPEG is missing; all its pixels are there"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("share", [0.97, 0.6])
def test_rows_that_are_there_are_taken_only_when_asked(kind: str, share: float, tmp_path: Path) -> None:
    photo = Image.fromarray(texture(64, 200))
    data, path, notes = encoded(kind, photo, **{"quality": 99} if kind == "JPEG" else {}), tmp_path / "a", list[str]()
    whole = np.asarray(Image.open(io.BytesIO(data)))
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a: the file is cut short; copy or download it again"):
        read_picture(path)
    rows = salvage(path, notes)
    assert rows is not None and rows.width == 64 and 200 * share - 40 <= rows.height < 200
    expected = whole[-rows.height :] if kind == "BMP" else whole[: rows.height]  # a BMP is written from the bottom
    assert np.array_equal(np.asarray(rows), expected)
    assert notes == [f"the file is cut short: {rows.height} of 200 rows are there, the others are left out"]


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_is_salvaged_is_turned_once_and_keeps_what_the_file_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = orientation, "somebody"
    data = encoded("JPEG", Image.fromarray(texture(64, 200)), quality=95, exif=exif)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 3 // 4])
    rows = salvage(tmp_path / "a.jpg", [])
    assert rows is not None and max(rows.size) < 200
    picture = read_picture(rows)
    assert (picture.width, picture.height) == rows.size and (rows.height == 64) == (orientation == 6)
    assert np.array_equal(((picture.colour / 2 + 0.5) * 255).round().numpy().transpose(1, 2, 0), np.asarray(rows))
    assert b"somebody" in picture.metadata["exif"]


def test_nothing_is_salvaged_of_what_is_whole_or_nothing(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "whole.png"), (tmp_path / "none.webp").write_bytes(encoded("WEBP")[:90])
    assert salvage(tmp_path / "whole.png", []) is None
    with pytest.raises(InputError, match=r"none\.webp: "):
        salvage(tmp_path / "none.webp", [])


OTHERS = {
    "HEIC": (b"\0\0\0\x18ftypheic", "is a HEIC photo, expected one of PNG, .*heif-convert|the HEIF header is damaged"),
    "JXL": (b"\xff\x0a\xfa\x7f", "is a JPEG XL file.*`djxl|the JXL header is damaged"),
    "JXL in a box": (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL file|the JXL header is damaged"),
    "TGA": (encoded("TGA"), "is a TGA file.*`magick in.tga"),
    "TGA with RLE": (encoded("TGA", rle=True), "is a TGA file"),
    "DDS": (encoded("DDS"), "is a DDS texture"),
    "PPM": (encoded("PPM"), "is a PPM, PGM, PBM or PFM file"),
    "PSD": (b"8BPS\0\1", "is a Photoshop file"),
    "JP2": (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 file"),
    "ICO": (encoded("ICO"), "is an icon file"),
    "SVG": (b'<?xml version="1.0"?>\n<svg width="9"/>', "is an SVG drawing.*rsvg-convert"),
    "HTML": (b"\n<!DOCTYPE html><html>", "is an HTML page.*download the picture itself"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
    "MP4": (b"\0\0\0\x20ftypisom", "is a film"),
    "raw photo of Canon": (b"II*\0\x10\0\0\0CR\2\0", "is a camera's raw photo.*develop it|the TIFF header is damaged"),
    "raw photo of Canon's new kind": (b"\0\0\0\x18ftypcrx ", "is a camera's raw photo, .*darktable-cli"),
    "raw photo of Fuji": (b"FUJIFILMCCD-RAW 0201", "is a camera's raw photo"),
    "raw photo of Olympus": (b"IIRO\x08\0\0\0", "is a camera's raw photo"),
    "Krita": (
        b"PK\3\4" + bytes(26) + b"mimetypeapplication/x-krita",
        "is a drawing of Krita or another program",
    ),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "is a film"),
    "sound": (b"RIFF\0\0\0\0WAVEfmt ", "is a sound"),
    "PCX": (b"\x0a\5\1\x08", "is a PCX file"),
    "archive": (b"Rar!\x1a\7\0", "is a RAR archive, .*unpack it first"),
    "shortcut": (b"[InternetShortcut]\r\nURL=http://x", "is a shortcut, .*take the picture that it leads to"),
    "BigTIFF": (b"II+\0\x08\0\0\0", "the TIFF header is damaged"),
    "QOI": (b"qoif\0\0\0\1", "is a QOI file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_kind_that_is_not_read_is_named_with_a_way_out(name: str, tmp_path: Path) -> None:
    data, words = OTHERS[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=rf"/a: ({words})"):
        read_picture(tmp_path / "a")


@pytest.mark.parametrize("kind", ["DNG", "NEF", "sensor"])
def test_a_raw_photo_is_not_its_preview(kind: str, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 0 if kind == "sensor" else 1
    tag = 50706 if kind == "DNG" else 330
    tags[tag], tags.tagtype[tag] = (b"\1\4\0\0", 1) if kind == "DNG" else (8, 4)
    PHOTO.save(tmp_path / "a.tif", tiffinfo=tags)
    if kind == "sensor":
        assert read_picture(tmp_path / "a.tif").width == PHOTO.width  # of full size, beside others
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6), np.uint16), photometric="cfa")
    with pytest.raises(InputError, match=r"is a camera's raw photo, expected one of PNG, .*; develop it first"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            lambda data: data[:4] + b"\xff\xff\xff\x7f" + data[8:],
            "the length in the WebP's header is wrong; all its pixels",
        ),
        (lambda data: data[:-20], "XMP , data beside the pixels, left out: it is cut short"),
        (lambda data: data[:-58], "the length in the WebP's header is wrong; all its pixels are there"),
    ],
    ids=["length", "a part of the metadata", "all metadata"],
)
def test_a_webp_with_all_its_pixels_is_read(tmp_path: Path, change: Callable[[bytes], bytes], note: str) -> None:
    data = encoded("WEBP", PHOTO, xmp=b"x" * 50)
    (tmp_path / "a.webp").write_bytes(data), (tmp_path / "b.webp").write_bytes(change(data))
    whole, found = read_picture(tmp_path / "a.webp"), read_picture(tmp_path / "b.webp")
    assert found.colour.equal(whole.colour) and len(found.notes) == 1 and found.notes[0].startswith(note)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_webp_that_is_cut_short_says_so(tmp_path: Path, share: float) -> None:
    data = encoded("WEBP", PHOTO)
    (tmp_path / "a.webp").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.webp: the file is cut short; copy or download it again"):
        read_picture(tmp_path / "a.webp")


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_transparency_that_is_damaged_is_left_out_with_a_note(tmp_path: Path, mode: str) -> None:
    image = PHOTO.quantize(8) if mode == "P" else PHOTO.convert(mode)
    data = bytearray(encoded("PNG", image, transparency=(1, 2, 3) if mode == "RGB" else 1))
    data[data.index(b"tRNS") + 5] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is None and picture.notes == ("tRNS, data beside the pixels, left out: its checksum is wrong",)


def test_a_tiff_that_is_not_read_says_what_it_is_made_of(tmp_path: Path) -> None:
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)]
    entries += [(277, 3, 1, 3), (279, 4, 1, 96), (339, 3, 3, 128)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<6H", 24, 24, 24, 3, 3, 3) + bytes(6 + 192))
    with pytest.raises(
        InputError, match=r"is a TIFF of 3 floating-point numbers of 24 bits .*save it with 8 or 16 bits"
    ):
        read_picture(tmp_path / "a.tif")
