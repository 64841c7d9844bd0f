"""What a picture's file says beside its pixels comes through every format that holds it, stripped where asked."""

import warnings
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from enlarger.image.metadata import read_file_metadata
from enlarger.image.picture import read_picture, save_image, to_pil
from tests.support import tiny

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:GPSLatitude="47,22N" '
    b'dc:title="a hill"><photoshop:City>Bern</photoshop:City></rdf:Description></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x78\0\x06a hill" + b"\x1c\x02\x5a\0\x04Bern"  # caption, city
FORMATS = ("png", "jpg", "webp", "tiff", "avif")


def source(folder: Path, suffix: str, orientation: int = 6) -> Path:
    """A file with a camera, a date, a place, a caption, 300 dpi and a rotation."""
    exif = Image.Exif()
    exif.update({0x0110: "Camera", 0x0112: orientation, 0x8298: "(c) me", 0x0100: 9})
    exif.get_ifd(ExifTags.IFD.Exif).update({0x9003: "2020:01:02 03:04:05", 0xA002: 48, 0xA003: 32})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (47.0, 22.0, 0.0)})
    image = tiny.picture(48, 32)
    image.info |= {"exif": exif.tobytes(), "xmp": XMP, "iptc": IPTC, "dpi": (300.0, 300.0)}
    path = folder / f"in.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_image(image, path)
    if suffix == "jpg":  # `save_image` has put the orientation right
        image.info["exif"] = exif.tobytes()
        with Image.open(path) as written:
            written.save(path, exif=exif.tobytes(), dpi=(300, 300), xmp=XMP, extra=_app13(path))
    return path


def _app13(path: Path) -> bytes:
    data = path.read_bytes()
    start = data.index(b"\xff\xed")
    return data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4])]


@pytest.mark.parametrize("suffix_out", FORMATS)
@pytest.mark.parametrize("suffix_in", FORMATS)
def test_it_comes_through(suffix_in: str, suffix_out: str, tmp_path: Path) -> None:
    picture = read_picture(source(tmp_path, suffix_in))
    out = tmp_path / f"out.{suffix_out}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_image(to_pil(picture), out)
    with Image.open(out) as written:
        exif, found = written.getexif(), read_file_metadata(written)
        assert exif[0x0110] == "Camera" and exif[0x8298] == "(c) me" and exif.get(0x0112, 1) == 1
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        assert inner[0x9003] == "2020:01:02 03:04:05" and (inner[0xA002], inner[0xA003]) == written.size
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
    assert b'tiff:Orientation="6"' not in found["xmp"] and b"a hill" in found["xmp"]
    if suffix_in in ("jpg", "tiff"):
        assert (found.get("iptc") == IPTC) == (suffix_out in ("jpg", "tiff"))
        lost = any("holds no IPTC" in str(one.message) for one in caught)
        assert lost == (suffix_out in ("png", "webp", "avif"))
    if suffix_in not in ("webp", "avif") and suffix_out not in ("webp", "avif"):
        assert found["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png"])
def test_the_place_alone_is_stripped(suffix: str, tmp_path: Path) -> None:
    image = to_pil(read_picture(source(tmp_path, "jpg")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_image(image, tmp_path / f"out.{suffix}", strip="gps")
        save_image(image, tmp_path / f"bare.{suffix}", strip="all")
    data = (tmp_path / f"out.{suffix}").read_bytes()
    assert b"Bern" not in data and b"47,22N" not in data and b"a hill" in data
    with Image.open(tmp_path / f"out.{suffix}") as written:
        assert not written.getexif().get_ifd(ExifTags.IFD.GPSInfo) and written.getexif()[0x0110] == "Camera"
    with Image.open(tmp_path / f"bare.{suffix}") as written:
        assert (
            read_file_metadata(written).keys() <= {"dpi"}
            and b"Camera" not in (tmp_path / f"bare.{suffix}").read_bytes()
        )


def test_what_bmp_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="BMP holds no EXIF and no XMP and no IPTC: left out"):
        save_image(to_pil(read_picture(source(tmp_path, "jpg"))), tmp_path / "out.bmp")


def test_maker_notes_too_large_for_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    exif.get_ifd(ExifTags.IFD.Exif)[0x927C] = bytes(70_000)
    image = tiny.picture(8, 8)
    image.info["exif"] = exif.tobytes()
    with pytest.warns(UserWarning, match="the maker's notes in EXIF are larger than a JPEG file holds: left out"):
        save_image(image, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.getexif()[0x0110] == "Camera"
