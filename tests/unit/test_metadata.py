"""What a picture's file says beside its pixels comes through every format that holds it, stripped where asked."""

import warnings
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from enlarger.image.composite import read_original
from enlarger.image.generation import add_generation, read_metadata
from enlarger.image.metadata import read_file_metadata, save_options
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


def packet(attributes: str, inside: str = "") -> bytes:
    """XMP as programs write it."""
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    about = f'<rdf:Description rdf:about="" {attributes}>{inside}</rdf:Description>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {rdf}>{about}</rdf:RDF></x:xmpmeta>'.encode()


PLACES = {
    "a drone": packet('xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" drone-dji:GpsLongtitude="+13.4" a:b="keep"'),
    "in single quotes": packet("exif:GPSLatitude='47,22N' drone-dji:RelativeAltitude='+13.4' a:b='keep'"),
    "an agency": packet(
        'a:b="keep"',
        "<Iptc4xmpExt:LocationCreated><rdf:Bag><rdf:li Iptc4xmpExt:Sublocation='13.4'><Iptc4xmpExt:City>47,22N"
        "</Iptc4xmpExt:City></rdf:li></rdf:Bag></Iptc4xmpExt:LocationCreated>",
    ),
    "another prefix": packet('ps:Country="13.4" a:b="keep"', "<core:CountryCode>47,22N</core:CountryCode>"),
    "an empty element": packet(
        'a:b="keep"', "<exif:GPSStatus/><a:c>keep</a:c><exif:GPSLatitude>47,22N</exif:GPSLatitude>"
    ),
}


@pytest.mark.parametrize("kind", PLACES)
def test_no_place_is_left_in_xmp(kind: str) -> None:
    options, notes = save_options({"xmp": PLACES[kind]}, "WEBP", (8, 8), "gps")
    assert b"keep" in options["xmp"] and b"13.4" not in options["xmp"] and b"47,22N" not in options["xmp"]
    assert notes == ()


@pytest.mark.parametrize("damaged", [b"<a", b'<!DOCTYPE a [<!ENTITY b "c">]><a/>', b"<a>" * 100_000, b"\xff\xfe<\0a\0"])
def test_xmp_that_cannot_be_searched_for_a_place_is_left_out(damaged: bytes) -> None:
    options, notes = save_options({"xmp": damaged}, "WEBP", (8, 8), "gps")
    assert "xmp" not in options
    assert notes == ("the input's XMP cannot be taken apart to leave the place out: left out",)


def test_xmp_tells_of_the_copy_and_not_of_what_lay_behind_the_picture() -> None:
    namespaces = 'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:Item="http://ns.google.com/photos/1.0/"'
    told = (
        'hdrgm:Version="1.0" GCamera:MotionPhoto="1" GCamera:Mode="keep" xmpNote:HasExtendedXMP="ABC" '
        "tiff:Orientation='6' tiff:ImageWidth=\"16\" exif:PixelYDimension='9'"
    )
    item = '<rdf:li><Container:Item Item:Semantic="GainMap" Item:Length="12345"/></rdf:li>'
    inside = f"<Container:Directory>{item}</Container:Directory>"
    image = tiny.picture(8, 8)
    image.info["xmp"] = packet(f"{namespaces} {told}", inside)
    options, _ = save_options(read_file_metadata(image), "WEBP", (640, 480))
    for gone in (b"12345", b"MotionPhoto", b"hdrgm:Version", b"HasExtendedXMP", b'"16"', b'"6"', b"'6'"):
        assert gone not in options["xmp"]
    for kept in (b"keep", b'tiff:Orientation="1"', b'tiff:ImageWidth="640"', b'exif:PixelYDimension="480"'):
        assert kept in options["xmp"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_directory_in_exif_s_directory_comes_through(suffix: str, tmp_path: Path) -> None:
    """R03 marks Adobe RGB in cameras' files, which hold no profile."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA001: 65535, 0xA005: {1: "R03"}})
    tiny.picture(8, 8).save(tmp_path / "in.jpg", exif=exif)
    for strip in ("none", "gps"):
        image = to_pil(read_picture(tmp_path / "in.jpg"))
        image.info.pop("dpi")  # which not every format holds
        save_image(image, tmp_path / f"out.{suffix}", overwrite=True, strip=strip)
        with warnings.catch_warnings(), Image.open(tmp_path / f"out.{suffix}") as written:
            warnings.simplefilter("error")  # Pillow warns of a place in the file where nothing is
            assert written.getexif().get_ifd(ExifTags.IFD.Interop) == {1: "R03"}
            assert written.getexif().get_ifd(ExifTags.IFD.Exif)[0xA001] == 65535


def test_no_resolution_is_made_up(tmp_path: Path) -> None:
    for suffix in ("tif", "png", "jpg"):
        tiny.picture(8, 8).save(tmp_path / f"in.{suffix}")
        assert "dpi" not in read_picture(tmp_path / f"in.{suffix}").metadata
    tiny.picture(8, 8).save(tmp_path / "told.tif", dpi=(72, 72))
    assert read_picture(tmp_path / "told.tif").metadata["dpi"] == (72, 72)


def test_texts_come_through_or_are_named(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    for key, text in (("parameters", "a cat\nSteps: 20"), ("workflow", "{}"), ("Copyright", "© me"), ("Software", "x")):
        texts.add_itxt(key, text)
    tiny.picture(8, 8).save(tmp_path / "in.png", pnginfo=texts)
    image = to_pil(read_picture(tmp_path / "in.png"))
    save_image(image, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        found = {key: value for key, value in written.info.items() if isinstance(value, str)}
    assert found == {"parameters": "a cat\nSteps: 20", "workflow": "{}", "Copyright": "© me"}
    with pytest.warns(UserWarning, match=r"^JPEG holds no texts \(parameters, workflow, Copyright\): left out$"):
        save_image(image, tmp_path / "out.jpg")
    save_image(image, tmp_path / "bare.png", strip="all")
    with Image.open(tmp_path / "bare.png") as written:
        assert not [value for value in written.info.values() if isinstance(value, str)]


def test_a_jpeg_s_comment_comes_through(tmp_path: Path) -> None:
    tiny.picture(8, 8).save(tmp_path / "in.jpg", comment=b"a hill")
    image = to_pil(read_picture(tmp_path / "in.jpg"))
    for suffix, key in (("jpg", "comment"), ("png", "Comment")):
        save_image(image, tmp_path / f"out.{suffix}")
        with Image.open(tmp_path / f"out.{suffix}") as written:
            assert written.info[key] == (b"a hill" if suffix == "jpg" else "a hill")


def test_an_enlarged_picture_keeps_how_it_was_made() -> None:
    made = {"enlarger": "1", "task": "upscale", "options": {"by": 2}, "seeds": [0], "model": "bundled"}
    info = {"texts": {"parameters": "a cat\nSteps: 20", "workflow": "{}"}}
    told, _ = add_generation(info, made, "PNG", (8, 8))
    assert told["texts"].keys() == {"parameters", "workflow", "enlarger"}
    assert told["texts"]["parameters"] == "a cat\nSteps: 20"
    in_exif, _ = add_generation(info, made, "JPEG", (8, 8))
    assert "a cat\nSteps: 20".encode("utf-16-be") in in_exif["exif"] and in_exif["texts"] == {"workflow": "{}"}
    remade, _ = add_generation(info, made | {"task": "refine"}, "PNG", (8, 8))
    assert "a cat" not in remade["texts"]["parameters"]


def test_a_repainted_photo_is_upright_and_keeps_what_its_file_says(tmp_path: Path) -> None:
    for suffix in ("jpg", "tiff"):
        original = read_original(source(tmp_path, suffix))
        image = original.write(original.values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_image(image, tmp_path / f"{suffix}.jpg")
        with Image.open(tmp_path / f"{suffix}.jpg") as written:
            assert written.getexif().get(0x0112, 1) == 1 and written.getexif()[0x0110] == "Camera"
            assert read_file_metadata(written)["iptc"] == IPTC
            assert ImageOps.exif_transpose(written).size == image.size


def test_a_picture_of_ours_goes_on_with_what_its_file_said(tmp_path: Path) -> None:
    once = read_picture(source(tmp_path, "jpg"))
    assert read_picture(to_pil(once)).metadata == once.metadata
    tiny.picture(8, 8).convert("CMYK").save(tmp_path / "ink.tif")
    assert read_picture(to_pil(read_picture(tmp_path / "ink.tif"))).metadata["cmyk_profile"] == b""


def test_what_is_too_long_for_jpeg_is_left_out_and_the_picture_written(tmp_path: Path) -> None:
    image, about = tiny.picture(16, 8), {"task": "upscale", "seeds": [0], "model": "m", "enlarger": "1", "options": {}}
    image.info |= {"xmp": b"<rdf:RDF>" + bytes(70_000) + b"</rdf:RDF>", "iptc": b"\x1c\x02\x78\x80\x04" + bytes(70_000)}
    for generation, words in ((None, "XMP is larger"), (about, "the input's XMP is larger")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_image(image, tmp_path / "a.jpg", generation=generation, overwrite=True)
        said = " ".join(str(one.message) for one in caught)
        assert f"{words} than a JPEG file holds: left out" in said and "IPTC is larger than a JPEG file holds" in said
        with Image.open(tmp_path / "a.jpg") as written:
            assert (read_metadata(written) is None) == (generation is None)
            assert set(read_file_metadata(written)) - {"exif", "dpi"} == ({"xmp"} if generation else set())


@pytest.mark.parametrize("length", [65_504, 65_506])
def test_the_longest_that_jpeg_holds_is_kept(length: int, tmp_path: Path) -> None:
    image = tiny.picture(16, 8)
    image.info |= {"xmp": XMP + b" " * (min(length, 65_504) - len(XMP)), "iptc": bytes(length)}
    save_image(image, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as written:
        found = read_file_metadata(written)
        assert (len(found["xmp"]), len(found["iptc"])) == (65_504, length)
