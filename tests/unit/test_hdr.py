"""TIFF files of floats and wide integers: every layout is read; what goes beyond is scaled with a note, or mapped."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from enlarger.errors import InputError
from enlarger.image.colour import srgb_profile
from enlarger.image.decode import UnreadableImage, read_header
from enlarger.image.deep import DeepImage
from enlarger.image.frames import read_frames
from enlarger.image.hdr import in_srgb_primaries, tone_mapped
from enlarger.image.picture import Picture, read_picture
from enlarger.image.special_reads import tone_map

KINDS = {"grey": (1, "I;16"), "grey and alpha": (2, "LA;16"), "RGB": (3, "RGB;16"), "RGBA": (4, "RGBA;16")}
LAYOUTS = {
    "plain": {},
    "deflate": {"compression": "zlib", "predictor": 3},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "big-endian": {"byteorder": ">"},
}
RNG = np.random.default_rng(0)


def written(path: Path, values: np.ndarray, **options: object) -> Path:
    """A TIFF of numbers (H, W, 1..4)."""
    channels = values.shape[2]
    if channels in (2, 4):
        options.setdefault("extrasamples", "unassalpha")
    stored = np.moveaxis(values, 2, 0) if "planarconfig" in options and channels > 1 else values
    stored = values[..., 0] if channels == 1 else stored
    photometric = options.pop("photometric", "rgb" if channels > 2 else "minisblack")
    options = {key: value for key, value in options.items() if channels > 1 or key != "planarconfig"}
    tifffile.imwrite(path, stored, photometric=photometric, **options)  # pyright: ignore[reportArgumentType]
    return path


def planes(picture: Picture) -> np.ndarray:
    """(H, W, C) in 0..1."""
    colour = (picture.colour[:1] if picture.is_grey else picture.colour) / 2 + 0.5
    parts = [colour.numpy(), *([] if picture.alpha is None else [picture.alpha.numpy()])]
    return np.concatenate(parts).transpose(1, 2, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_in_range_are_read_as_they_are(tmp_path: Path, dtype: str, kind: str, layout: str) -> None:
    channels, mode = KINDS[kind]
    values = RNG.random((19, 26, channels)).astype(dtype)
    options = dict(LAYOUTS[layout])
    if (dtype, layout) == ("float64", "deflate"):
        options.pop("predictor")
    picture = read_picture(written(tmp_path / "a.tif", values, **options))
    assert picture.notes == () and picture.bit_depth == 16
    assert np.abs(planes(picture) - values.astype(np.float64)).max() < 1e-5
    assert read_header(tmp_path / "a.tif") == (mode, (26, 19))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint32", "int32", "uint64", "int64", "int16"])
def test_integers_up_to_16_bits_are_read_as_they_are(tmp_path: Path, dtype: str, kind: str) -> None:
    values = RNG.integers(0, 32768, (9, 12, KINDS[kind][0])).astype(dtype)
    picture = read_picture(written(tmp_path / "a.tif", values))
    white = 32767 if dtype == "int16" else 65535
    assert picture.notes == () and np.abs(planes(picture) * white - values.astype(np.float64)).max() < 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "low", "high", "white"), [("float32", -0.5, 4, 1), ("uint32", 0, 4e9, 65535)])
def test_what_goes_beyond_is_scaled_with_a_note(
    tmp_path: Path, dtype: str, low: float, high: float, white: int, kind: str
) -> None:
    channels = KINDS[kind][0]
    colours = channels - (channels in (2, 4))
    values = RNG.uniform(low, high, (9, 12, channels))
    values[0, 0, :colours], values[0, 1, :colours], values[..., colours:] = low, high, white
    picture = read_picture(written(tmp_path / "a.tif", values.astype(dtype)))
    assert picture.notes == (f"values from {low:g} to {high:g}, expected 0 to {white}: scaled to that",)
    expected = (values[..., :colours] - low) / (high - low)
    assert np.abs(planes(picture)[..., :colours] - expected).max() < 1e-5
    assert picture.alpha is None or bool((picture.alpha == 1).all())


def test_a_dark_picture_with_a_negative_pixel_stays_dark(tmp_path: Path) -> None:
    values = RNG.uniform(0, 0.2, (5, 6, 3)).astype(np.float32)
    values[0, 0] = -0.01
    picture = read_picture(written(tmp_path / "a.tif", values))
    assert picture.notes == (f"values from -0.01 to {values.max():g}, expected 0 to 1: scaled to that",)
    assert np.abs(planes(picture) - (values + 0.01) / 1.01).max() < 1e-4


def test_a_glow_does_not_blacken_what_is_opaque(tmp_path: Path) -> None:
    values = np.full((3, 4, 4), 0.6, np.float32)
    values[..., 3] = 1
    values[0, 0], values[0, 1], values[0, 2] = (0.5, 0.5, 0.5, 1e-4), (0.3, 0.3, 0.3, 0.01), (0.2, 0.2, 0.2, 0.4)
    picture = read_picture(written(tmp_path / "a.tif", values, extrasamples="assocalpha"))
    found = planes(picture)[..., 0]
    assert picture.notes == () and found[0, :3] == pytest.approx([1, 1, 0.5], abs=1e-4)
    assert found[1:] == pytest.approx(np.full((2, 4), 0.6), abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 7, 3), (7, 3, 3), (3, 3, 3), (4, 1, 1), (5, 2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_planes_of_any_size_and_turn(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    values = (RNG.random(shape) * 60000).astype(dtype)
    values = values / np.float32(60000) if dtype == "float32" else values
    path = written(tmp_path / "a.tif", values, planarconfig="separate", extratags=[(274, "H", 1, 6, True)])
    scale = 1 if dtype == "float32" else 65535
    assert np.abs(planes(read_picture(path)) - np.rot90(values, -1) / scale).max() < 1e-4


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_few_rows_of_16_bit_colour_are_not_taken_for_planes(tmp_path: Path, rows: int) -> None:
    values = RNG.integers(0, 65536, (rows, 5, rows), dtype=np.uint16)
    found = planes(read_picture(written(tmp_path / "a.tif", values)))
    assert np.abs(found * 65535 - values).max() < 0.1


def test_pillow_itself_reads_what_it_read(tmp_path: Path) -> None:
    values = RNG.random((3, 4, 1)).astype(np.float32)
    path = written(tmp_path / "a.tif", values, photometric="miniswhite")
    colour = written(tmp_path / "b.tif", RNG.random((3, 4, 3)).astype(np.float32))
    read_picture(path)
    read_picture(colour)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), values[..., 0])
    with pytest.raises(UnidentifiedImageError):
        Image.open(colour)


def test_what_is_no_number_is_said(tmp_path: Path) -> None:
    values = RNG.random((4, 5, 3)).astype(np.float32)
    values[0, 0, 0], values[1, 1] = np.nan, np.inf
    picture = read_picture(written(tmp_path / "a.tif", values))
    assert picture.notes == ("2 pixels are no numbers: taken as the lowest level, infinity as the highest",)
    found = planes(picture)
    assert found[0, 0, 0] == pytest.approx(values[np.isfinite(values)].min(), abs=1e-4)
    assert np.abs(found[1, 1] - values[np.isfinite(values)].max()).max() < 1e-4
    with pytest.raises(
        UnreadableImage, match=r"a\.tif: found NaN or infinity in every pixel, expected numbers; save it"
    ):
        read_picture(written(tmp_path / "a.tif", np.full((4, 5, 3), np.nan, np.float32)))


def test_alpha_and_white_as_the_tags_say(tmp_path: Path) -> None:
    values = np.array([[[0.1, 0.2, 0.3, 0.5], [0, 0, 0, 0]]], np.float32)
    found = planes(read_picture(written(tmp_path / "a.tif", values, extrasamples="assocalpha")))
    assert found[0] == pytest.approx(np.array([[0.2, 0.4, 0.6, 0.5], [0, 0, 0, 0]]), abs=1e-4)
    grey = RNG.random((4, 5, 1)).astype(np.float32)
    white = read_picture(written(tmp_path / "b.tif", grey, photometric="miniswhite"))
    assert np.abs(planes(white) - (1 - grey)).max() < 1e-5
    extra = read_picture(written(tmp_path / "c.tif", RNG.random((4, 5, 4)).astype("f4"), extrasamples="unspecified"))
    assert extra.alpha is None and not extra.is_grey


def test_a_tone_map_is_the_papers(tmp_path: Path) -> None:
    light = np.exp(RNG.normal(0, 2, (6, 7, 3))).astype(np.float32)
    luminance = light.astype(np.float64) @ [0.2126, 0.7152, 0.0722]
    scaled = 0.18 * luminance / np.exp(np.mean(np.log(luminance + 1e-6)))
    display = scaled * (1 + scaled / scaled.max() ** 2) / (1 + scaled)
    linear = np.clip(light * (display / luminance)[..., None], 0, 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    notes: list[str] = []
    image = tone_map(written(tmp_path / "a.tif", light), notes)
    assert isinstance(image, DeepImage) and notes == ["tone-mapped"]
    assert np.abs(image.samples / 65535 - expected).max() < 1e-5
    mapped = read_picture(tmp_path / "a.tif", tone_map=True)
    assert mapped.notes == ("tone-mapped",) and np.abs(planes(mapped) - expected).max() < 1e-4


@pytest.mark.parametrize("ground", ["black", "transparent"])
def test_ground_has_no_say_in_how_bright_a_tone_map_is(ground: str) -> None:
    light = np.exp(RNG.normal(0, 1, (4, 8, 4)))
    light[..., 3] = 1
    framed = np.concatenate([light, np.full_like(light, 0 if ground == "black" else 9)])
    framed[4:, :, 3] = 1 if ground == "black" else 0
    assert np.abs(tone_mapped(framed, 1)[:4].astype(int) - tone_mapped(light, 1)).max() <= 1
    assert not tone_mapped(np.zeros((1, 2, 4)), 1).any()


def test_a_tone_map_is_of_srgbs_primaries(tmp_path: Path) -> None:
    light = np.array([[[0.0, 1.0, 0.0], [0.2, 0.2, 0.2]]], np.float32)
    rgb = np.array(light[..., [0, 1, 2]])
    wide = imagecodecs.cms_profile("adobergb")
    notes: list[str] = []
    found = in_srgb_primaries(rgb, wide, notes)
    assert found[0, 0] == pytest.approx([-0.398, 1.0, -0.043], abs=3e-3)  # Adobe RGB's green, in sRGB's
    assert found[0, 1] == pytest.approx([0.2] * 3, abs=1e-3) and "converted from the primaries" in notes[0]
    path, notes = written(tmp_path / "a.tif", light, iccprofile=wide), []
    assert tone_map(path, notes) is not None and notes[1:] == ["tone-mapped"] and "Adobe" in notes[0]
    assert in_srgb_primaries(rgb, srgb_profile(), []) is rgb
    notes = []
    assert in_srgb_primaries(rgb, b"damaged", notes) is rgb and "leaves out the colour profile" in notes[0]


def test_a_tone_map_keeps_what_the_file_says_and_is_turned_once(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    tags = [(274, "H", 1, 6, True), (700, "B", len(xmp), xmp, True), (315, "s", 0, "somebody", True)]
    path = written(tmp_path / "a.tif", RNG.random((4, 7, 3)).astype(np.float32), extratags=tags)
    image = tone_map(path, [])
    assert image is not None and image.size == (4, 7)
    direct, again = read_picture(path, tone_map=True), read_picture(image)
    assert np.array_equal(planes(again), planes(direct)) and again.metadata == direct.metadata
    assert b'tiff:Orientation="1"' in again.metadata["xmp"] and b"somebody" in again.metadata["exif"]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_greys_that_pillow_reads_are_tone_mapped_too(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1, 100], [10, 3, 50]], np.float32) * (1 if mode == "F" else 65535)
    Image.fromarray(values if mode == "F" else values.astype(np.int32)).save(tmp_path / "a.tif")
    image = tone_map(tmp_path / "a.tif", [])
    assert image is not None and image.mode == "I;16"
    levels = np.asarray(image)
    assert levels[0, 0] == 0 and levels[0, 2] == 65535 and (np.diff(np.sort(levels.ravel())) > 1000).all()


def test_brightest_and_black_pictures_have_a_tone_map() -> None:
    bright = np.array([[[np.inf, 1, 1], [np.nan, 2, 4]]])
    assert tone_mapped(bright, 1).shape == (1, 2, 3) and not tone_mapped(np.zeros((1, 2, 3)), 1).any()
    with pytest.raises(InputError, match="found NaN or infinity in every pixel"):
        tone_mapped(np.full((1, 2, 3), np.nan), 1)


def test_other_pictures_have_none(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "b.tif")
    assert tone_map(tmp_path / "a.png", []) is None and tone_map(tmp_path / "b.tif", []) is None


def test_orientation_and_pages(tmp_path: Path) -> None:
    values = RNG.random((4, 7, 3)).astype(np.float32)
    path = written(tmp_path / "a.tif", values, extratags=[(274, "H", 1, 6, True)])
    assert np.abs(planes(read_picture(path)) - np.rot90(values, -1)).max() < 1e-5
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for page in (values, values[::-1]):
            file.write(page, photometric="rgb")
    frames = [np.asarray(frame.samples) for frame in read_frames(tmp_path / "b.tif") if isinstance(frame, DeepImage)]
    assert len(frames) == 2 and np.array_equal(frames[0], frames[1][::-1])


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", RNG.random((40, 50, 3)).astype(np.float32), compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=r"a\.tif: [^\n]+$"):
        read_picture(path)


def test_a_sun_does_not_blacken_what_it_shines_on() -> None:
    light = np.full((8, 8, 3), 0.5, np.float32)
    light[0, 0] = 1e6
    assert tone_mapped(light, 1)[1:].min() > 20_000


def test_infinite_light_is_the_brightest_in_wide_primaries_too() -> None:
    light = np.full((2, 2, 3), 0.5, np.float32)
    light[0, 0] = np.inf
    found = in_srgb_primaries(light, imagecodecs.cms_profile("adobergb"), [])
    assert np.isfinite(found).all() and found[0, 0].min() >= found[1, 1].max() - 1e-4
