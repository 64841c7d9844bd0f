"""Colour of 16 bits: read from every layout of PNG and TIFF, carried through the way, and written."""

import io
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from enlarger import upscale
from enlarger.errors import InputError
from enlarger.image.colour import transform_samples
from enlarger.image.decode import open_upright, read_header
from enlarger.image.deep import DeepImage
from enlarger.image.encode import save_image
from enlarger.image.picture import read_picture, to_pil
from tests.support.pictures import texture

KINDS = {"LA": 2, "RGB": 3, "RGBA": 4}
LAYOUTS = {
    "plain": {},
    "lzw": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "big-endian": {"byteorder": ">"},
    "big-endian planes": {"byteorder": ">", "planarconfig": "separate", "compression": "lzw"},
}


def samples(channels: int, height: int = 19, width: int = 26) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def opened(path: Path) -> np.ndarray:
    image = open_upright(path)
    assert isinstance(image, DeepImage)
    return image.samples


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_read_and_written_is_the_same(tmp_path: Path, kind: str, suffix: str) -> None:
    values, path = samples(KINDS[kind]), tmp_path / f"a{suffix}"
    picture = read_picture(values)
    save_image(to_pil(picture), path)
    assert np.array_equal(opened(path), values)
    assert read_header(path) == (f"{kind};16", (26, 19))
    decode = imagecodecs.png_decode if suffix == ".png" else tifffile.imread
    assert np.array_equal(decode(path.read_bytes() if suffix == ".png" else path), values)
    assert np.array_equal(read_picture(path).colour, picture.colour)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_tiff_is_read(tmp_path: Path, kind: str, layout: str) -> None:
    values, options = samples(KINDS[kind]), LAYOUTS[layout]
    stored = np.moveaxis(values, 2, 0) if "planarconfig" in options else values
    photometric, extra = ("minisblack" if kind == "LA" else "rgb"), ("unassalpha" if kind.endswith("A") else None)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, extrasamples=extra, **options)
    assert np.array_equal(opened(tmp_path / "a.tif"), values)


def test_colours_that_were_multiplied_by_alpha_are_divided(tmp_path: Path) -> None:
    values = np.array([[[1000, 2000, 3000, 32768], [7, 8, 9, 0]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples="assocalpha")
    assert opened(tmp_path / "a.tif").tolist() == [[[2000, 4000, 6000, 32768], [0, 0, 0, 0]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientations_are_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif, values = Image.Exif(), samples(3)
    exif[0x0112] = orientation
    options = {"exif": exif.tobytes()} if suffix == ".png" else {"tiffinfo": _tag(orientation)}
    DeepImage.from_samples(values).save(tmp_path / f"deep{suffix}", **options)
    shallow = Image.fromarray((values >> 8).astype(np.uint8))
    shallow.save(tmp_path / "shallow.png", exif=exif)
    assert np.array_equal(opened(tmp_path / f"deep{suffix}") >> 8, np.asarray(open_upright(tmp_path / "shallow.png")))
    assert read_header(tmp_path / f"deep{suffix}")[1] == ((26, 19) if orientation < 5 else (19, 26))


def _tag(orientation: int) -> object:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = orientation
    return tags


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    values = samples(3)
    data = imagecodecs.png_encode(values)
    body = b"tRNS" + values[0, 0].astype(">u2").tobytes()
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    found = opened(tmp_path / "a.png")
    assert (
        np.array_equal(found[..., :3], values)
        and found[0, 0, 3] == 0
        and int(found[..., 3].sum()) == 65535 * (19 * 26 - 1)
    )


def test_enlarging_keeps_all_bits(tmp_path: Path) -> None:
    small = texture(20, 24).astype(np.uint16) * 250 + 100
    DeepImage.from_samples(small).save(tmp_path / "a.png")
    upscale(tmp_path / "a.png").save(tmp_path / "b.tif")
    large = opened(tmp_path / "b.tif")
    assert large.shape == (48, 40, 3) and len(np.unique(large)) > 256


def test_eight_bit_formats_say_that_they_round(tmp_path: Path) -> None:
    image = DeepImage.from_samples(samples(3))
    with pytest.warns(UserWarning, match="JPEG holds 8 bits: the 16-bit colour is rounded"):
        save_image(image, tmp_path / "a.jpg")
    with pytest.raises(InputError, match="JPEG cannot hold 16-bit colour with alpha"):
        save_image(DeepImage.from_samples(samples(4)), tmp_path / "b.jpg")


def test_metadata_is_written_beside_all_bits(tmp_path: Path) -> None:
    profile, exif = imagecodecs.cms_profile("adobergb"), Image.Exif()
    exif[0x8298] = "somebody"
    image = DeepImage.from_samples(samples(4))
    image.info |= {"icc_profile": profile, "exif": exif.tobytes(), "dpi": (300.0, 300.0), "xmp": b"<x/>"}
    for name in ("a.png", "a.tif"):
        save_image(image, tmp_path / name)
        with Image.open(tmp_path / name) as found:
            assert found.info["icc_profile"] == profile and found.getexif()[0x8298] == "somebody"
            assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_damage_is_said_as_of_any_picture(tmp_path: Path) -> None:
    stream = io.BytesIO()
    DeepImage.from_samples(samples(3, 200, 200)).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue()[:9000])
    with pytest.raises(InputError, match="the file is cut short"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_a_wide_gamut_keeps_its_numbers_and_profile(tmp_path: Path, deep: bool) -> None:
    profile, values = imagecodecs.cms_profile("adobergb"), samples(3)
    image = DeepImage.from_samples(values) if deep else Image.fromarray((values >> 8).astype(np.uint8))
    image.save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    made = to_pil(picture)
    assert picture.icc_profile == profile and "which sRGB does not hold" in picture.notes[0]
    assert np.array_equal(made.samples if deep else np.asarray(made), values if deep else values >> 8)


def test_a_linear_wide_gamut_is_brought_to_a_displays_curve(tmp_path: Path) -> None:
    primaries = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
    linear = imagecodecs.cms_profile("rgb", whitepoint=(0.3457, 0.3585), primaries=primaries, gamma=1.0)
    values = samples(3)
    DeepImage.from_samples(values).save(tmp_path / "a.png", icc_profile=linear)
    picture = read_picture(tmp_path / "a.png")
    assert "whose tone curve is a display's" in picture.notes[0] and picture.icc_profile is not None
    back = transform_samples(to_pil(picture).samples, picture.icc_profile, linear)
    assert int(np.abs(back.astype(int) - values).max()) <= 64
