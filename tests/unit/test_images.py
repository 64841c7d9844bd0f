"""Pictures in and out, and resizing."""

import io
import os
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from enlarger.errors import InputError, NonFinite
from enlarger.image.deep import DEEP_FORMATS, DeepImage
from enlarger.image.encode import FORMAT_MODES
from enlarger.image.picture import STRIP, Picture, check_output, read_picture, resize, resize_matrix, save_image, to_pil
from tests.support.close import assert_close, max_difference
from tests.support.pictures import gamma_profile, texture

KERNELS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
SIZES = [
    ((37, 53), (74, 106)),
    ((37, 53), (18, 27)),
    ((100, 7), (13, 50)),
    ((1, 1), (5, 9)),
    ((1, 300), (2, 600)),
    ((200, 150), (3, 1)),
    ((129, 65), (128, 64)),
    ((5, 6), (700, 333)),
    ((64, 64), (64, 64)),
]


def opened(path: Path) -> tuple[np.ndarray, dict[Any, Any]]:
    """A file's pixels and its metadata, read by Pillow alone."""
    with Image.open(path) as image:
        return np.asarray(image), dict(image.info)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("start", "end"), SIZES)
def test_resize_equals_pillow_in_float(start: tuple[int, int], end: tuple[int, int], kernel: str) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, start).astype(np.float32)
    expected = np.asarray(Image.fromarray(values).resize((end[1], end[0]), KERNELS[kernel]))
    assert_close(resize(torch.from_numpy(values)[None, None], end, kernel)[0, 0], expected, 1e-6)
    rows, columns = (resize_matrix(a, b, kernel) for a, b in zip(start, end, strict=True))
    assert_close(rows @ torch.from_numpy(values).double() @ columns.T, expected, 1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_resize_equals_pillow_in_eight_bits_within_one_step(kernel: str) -> None:
    values = texture(61, 47)
    expected = np.asarray(Image.fromarray(values).resize((122, 23), KERNELS[kernel]))
    found = resize(torch.from_numpy(values).permute(2, 0, 1)[None].float(), (23, 122), kernel)[0]
    assert max_difference(found.round().clamp(0, 255).permute(1, 2, 0), expected) <= 1


def test_resize_matrix_keeps_constants_and_checks_its_arguments() -> None:
    assert resize_matrix(9, 4).dtype == torch.float64
    assert_close(resize_matrix(9, 4, "lanczos").sum(1), torch.ones(4), 1e-12)
    with pytest.raises(InputError, match="found resize kernel 'nearest', expected one of bicubic, lanczos"):
        resize_matrix(4, 8, "nearest")
    with pytest.raises(InputError, match="found a resize from 4 to 0 pixels, expected at least 1"):
        resize_matrix(4, 0)


def test_resize_keeps_the_type_and_has_a_gradient() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.bfloat16)
    assert resize(x, (4, 4)).dtype == torch.bfloat16
    y = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: resize(v, (3, 9)), y)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_every_source_gives_the_same_picture_and_comes_back_exactly(channels: int, mode: str, tmp_path: Path) -> None:
    values = texture(13, 7, channels)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    for source in (path, str(path), Image.fromarray(values), values, values / 255):
        picture = read_picture(source)
        assert (picture.width, picture.height, picture.is_grey) == (13, 7, channels < 3)
        assert picture.colour.shape == (3, 7, 13) and picture.colour.dtype == torch.float32
        assert (picture.alpha is not None) == (channels in (2, 4))
        assert picture.colour.min() >= -1 and picture.colour.max() <= 1
        image = to_pil(picture)
        assert image.mode == mode and np.array_equal(np.asarray(image), values)


def test_tensors_are_taken_in_minus_one_to_one_and_kept() -> None:
    tensor = torch.linspace(-1, 1, 60).reshape(3, 4, 5)
    picture = read_picture(tensor)
    assert torch.equal(picture.colour, tensor) and not picture.is_grey
    assert read_picture(tensor[:1]).is_grey
    picture.colour.zero_()
    assert tensor.abs().max() == 1


def test_values_become_bytes_rounded_half_to_even_and_clamped() -> None:
    steps = torch.tensor([0.5, 1.5, 2.5, 254.5, -3.0, 300.0], dtype=torch.float64)
    picture = Picture((steps / 255 * 2 - 1).reshape(1, 1, 6).expand(3, -1, -1))
    expected = np.round(np.clip((picture.colour[0].float().numpy() / 2 + np.float32(0.5)), 0, 1) * np.float32(255))
    assert np.array_equal(np.asarray(to_pil(picture))[..., 0], expected)
    assert list(np.asarray(to_pil(picture))[0, -2:, 0]) == [0, 255]
    halves = Picture(torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 1, 3).expand(3, -1, -1))
    assert list(np.asarray(to_pil(halves))[0, :, 0]) == [0, 128, 255]  # 127.5 goes to the even 128


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_becomes_bytes_strip_by_strip(channels: int, bit_depth: int) -> None:
    top, kind = 2**bit_depth - 1, np.uint8 if bit_depth == 8 else np.uint16
    values = np.random.default_rng(channels).integers(0, top + 1, (2 * STRIP + 3, 5, channels)).astype(kind)
    made = to_pil(read_picture(values))
    found = made.samples if isinstance(made, DeepImage) else np.asarray(made)
    assert np.array_equal(found.reshape(values.shape), values)


def test_nan_never_becomes_a_picture() -> None:
    colour = torch.zeros(3, STRIP + 9, 2)
    colour[1, STRIP + 5, 1] = float("inf")
    with pytest.raises(NonFinite, match="found NaN or infinity in a picture"):
        to_pil(Picture(colour))
    with pytest.raises(NonFinite, match="found NaN or infinity in a picture"):
        to_pil(Picture(torch.full((3, 2, 2), float("nan"))))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_every_level(suffix: str, tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(levels).save(path)
    for source in (path, levels, Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        picture = read_picture(source)
        assert (picture.is_grey, picture.bit_depth) == (True, 16)
        assert np.array_equal(np.asarray(to_pil(picture)), levels)
    save_image(to_pil(read_picture(path)), copy)
    assert np.array_equal(opened(copy)[0], levels)


def test_float_grey_is_taken_in_zero_to_one() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert_close(read_picture(Image.fromarray(values)).colour[0], values * 2 - 1, 1e-6)
    bright = read_picture(Image.fromarray(values * 200))
    assert_close(bright.colour[0], values * 2 - 1, 1e-6)
    assert bright.notes == ("values from 0 to 200, expected 0 to 1: scaled to that",)
    whole = read_picture(Image.fromarray(np.array([[-5, 70000, 0]], dtype=np.int32)))
    assert_close(whole.colour[0], np.array([[-1, 1, 10 / 70005 - 1]]), 1e-6)
    assert whole.notes == ("values from -5 to 70000, expected 0 to 65535: scaled to that",)
    holes = read_picture(Image.fromarray(np.array([[np.nan, 0.25, np.inf]], dtype=np.float32)))
    assert holes.colour[0].tolist() == [[-0.5, -0.5, -0.5]] and "2 pixels are no numbers" in holes.notes[0]
    with pytest.raises(InputError, match="found NaN or infinity in every pixel"):
        read_picture(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_sixteen_bit_colour_keeps_all_bits(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    picture = read_picture(tmp_path / "deep.png")
    assert picture.notes == () and picture.bit_depth == 16
    assert (picture.colour[0, 0, 0] / 2 + 0.5) * 65535 == pytest.approx(0x0001, abs=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation_is_applied_once(orientation: int, suffix: str, tmp_path: Path) -> None:
    stored = texture(6, 4)
    rotate = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, copy = tmp_path / f"a.{suffix}", tmp_path / "b.png"
    Image.fromarray(stored).save(path, exif=exif, lossless=True)
    picture = read_picture(path)
    assert np.array_equal(np.asarray(to_pil(picture)), rotate[orientation])
    save_image(to_pil(picture), copy)
    with Image.open(copy) as saved:
        assert dict(saved.getexif()) == {}
    with Image.open(path) as image:
        assert torch.equal(read_picture(image).colour, picture.colour)


def test_colour_under_full_transparency_is_kept(tmp_path: Path) -> None:
    values = texture(8, 8, 4)
    values[:4, :, 3] = 0
    for source in (values, Image.fromarray(values)):
        assert np.array_equal(np.asarray(to_pil(read_picture(source))), values)


def test_a_profile_that_differs_is_converted_and_one_that_agrees_is_kept(tmp_path: Path) -> None:
    image, path = Image.fromarray(texture(16, 16)), tmp_path / "a.png"
    image.save(path, icc_profile=gamma_profile())
    picture = read_picture(path)
    expected = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(gamma_profile())),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert max_difference(np.asarray(to_pil(picture), dtype=int), np.asarray(expected, dtype=int)) <= 1
    assert max_difference(np.asarray(expected, dtype=int), np.asarray(image, dtype=int)) > 10
    assert picture.notes[0].startswith("converted to sRGB from the profile")
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(path, icc_profile=same)
    picture = read_picture(path)
    assert (
        picture.icc_profile == same
        and picture.notes == ()
        and np.array_equal(np.asarray(to_pil(picture)), np.asarray(image))
    )
    for suffix in ("png", "jpg", "webp", "tif"):
        saved = save_image(to_pil(picture), tmp_path / f"out.{suffix}")
        assert opened(saved)[1]["icc_profile"] == same


def test_grey_with_a_colour_profile_stays_grey(tmp_path: Path) -> None:
    Image.fromarray(texture(9, 9, 1)).save(tmp_path / "a.jpg", icc_profile=gamma_profile(), quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.is_grey and picture.icc_profile is None and to_pil(picture).mode == "L"
    assert picture.notes[0].startswith("converted to sRGB")


def test_a_profile_for_another_mode_is_not_used(tmp_path: Path) -> None:
    Image.fromarray(texture(9, 9)).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=gamma_profile())
    notes = read_picture(tmp_path / "a.jpg").notes
    assert notes[0] == "the colour profile cannot be used (a RGB profile in a CMYK picture): taken as sRGB"


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_pil_mode_is_read(mode: str) -> None:
    base = Image.fromarray(texture(8, 6, 4))
    via = {"La": "LA", "PA": "P", "LA": "LA", "RGBa": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
    image = base.convert(via).convert(mode)
    picture = read_picture(image)
    assert picture.is_grey == (mode in ("1", "L", "LA", "La"))
    assert (picture.alpha is not None) == (mode in ("LA", "La", "PA", "RGBA", "RGBa"))
    expected = image.convert({"1": "L", "La": "LA"}.get(mode, "L" if mode == "L" else "LA" if mode == "LA" else "RGBA"))
    found = to_pil(picture).convert(expected.mode)
    assert max_difference(np.asarray(found, dtype=int), np.asarray(expected, dtype=int)) == 0


def test_lab_is_converted_by_colour(tmp_path: Path) -> None:
    patch = Image.new("RGB", (4, 4), (200, 80, 30))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(patch, srgb, lab, outputMode="LAB")
    assert converted is not None
    assert max_difference(np.asarray(to_pil(read_picture(converted)), dtype=int), np.asarray(patch, dtype=int)) <= 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"array: found shape \(3, 8, 8\), expected \(H, W\) or"),
        (np.zeros((0, 8), np.uint8), "array: is 8 x 0 pixels, expected at least 1 x 1"),
        (np.zeros((2, 2), np.int64), "array: found int64, expected uint8, uint16 or floats in 0..1"),
        (np.full((2, 2), 255.0), "array: found values from 255 to 255, expected floats in 0..1"),
        (np.full((2, 2), np.nan), "array: found values from nan to nan"),
        (torch.zeros(4, 8, 8), r"tensor: found shape \(4, 8, 8\), expected one picture \(1 or 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8), r"tensor: found shape \(1, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "tensor: found torch.uint8, expected floats in -1..1"),
        (torch.full((3, 2, 2), 2.0), "tensor: found values from 2 to 2, expected floats in -1..1"),
        (torch.zeros(3, 0, 2), "tensor: is 2 x 0 pixels"),
        (Image.new("RGB", (0, 3)), "PIL image: is 0 x 3 pixels"),
        (7.5, "found a float, expected a path, bytes, an open file, a PIL image, numpy array or tensor"),
        ("a\0b", r"a\?b: cannot be opened"),
        (Path("/dev/zero"), "/dev/zero: is not a regular file"),
    ],
)
def test_wrong_sources_say_what_was_found(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_picture(source)  # pyright: ignore[reportArgumentType] - wrong on purpose


def test_a_lazily_opened_image_that_is_damaged_gives_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(texture(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as image, pytest.raises(InputError, match=r"a\.jpg: the file is cut short; copy"):
        read_picture(image)


def test_reading_leaves_its_source_unchanged() -> None:
    values = texture(5, 5).astype(np.float32) / 255
    image = Image.fromarray(texture(5, 5))
    image.info["icc_profile"] = gamma_profile()
    before = values.copy(), image.tobytes(), dict(image.info)
    for source in (values, image):
        replace(read_picture(source)).colour.zero_()
    assert np.array_equal(values, before[0]) and image.tobytes() == before[1] and image.info == before[2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "tif", "tiff", "bmp", "avif"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_format_holds_a_mode_or_refuses_it(mode: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "avif" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow writes no AVIF")
    path = tmp_path / f"out.{suffix}"
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = Image.fromarray(deep if mode == "I;16" else texture(8, 8, {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]))
    kind = check_output(path)
    if mode == "I;16" and kind not in DEEP_FORMATS:
        with pytest.warns(UserWarning, match=f"{kind} holds 8 bits: the 16-bit grey is rounded"):
            save_image(image, path)
        found = np.asarray(to_pil(read_picture(path)).convert("L"), int)
        assert np.abs(found - (deep.astype(int) + 128) // 257).max() <= (0 if kind == "BMP" else 6)
        return
    if mode not in FORMAT_MODES[kind]:
        with pytest.raises(InputError, match=rf"{kind} cannot hold .*; save as \.png, or (convert|give)"):
            save_image(image, path)
        assert list(tmp_path.iterdir()) == []
        return
    assert save_image(image, path) == path
    back = to_pil(read_picture(path)).convert(mode if mode != "I;16" else None)
    lossless = kind in ("PNG", "TIFF", "BMP")
    difference = max_difference(np.asarray(back, dtype=int), np.asarray(image, dtype=int))
    assert difference == 0 if lossless else difference < 64
    assert list(tmp_path.iterdir()) == [path]


def test_saving_overwrites_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(Image.new("RGB", (2, 2)), path)
    with pytest.raises(InputError, match=r"a\.png: exists already; choose another name or allow overwriting"):
        save_image(Image.new("RGB", (3, 3)), path)
    assert opened(path)[0].shape == (2, 2, 3)
    save_image(Image.new("RGB", (3, 3)), path, overwrite=True)
    assert opened(path)[0].shape == (3, 3, 3)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xyz", r"found suffix '\.xyz', expected one of \.png, \.jpg"),
        ("a", "found suffix '', expected one of"),
        ("none/a.png", "no such folder .*none; make it first"),
        ("folder.png", "is a folder, expected a file name"),
        (f"{'x' * 300}.png", "cannot be written"),
    ],
)
def test_names_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=message):
        save_image(Image.new("RGB", (2, 2)), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.webp"
    save_image(Image.new("RGB", (2, 2)), path)
    before = path.read_bytes()

    def fill_the_disk(image: Image.Image, stream: BinaryIO, **options: object) -> None:
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(InputError, match=r"a\.webp: cannot be written"):
        save_image(Image.new("RGB", (2, 2)), path, overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_same_picture_gives_the_same_bytes(tmp_path: Path) -> None:
    image, path = Image.fromarray(texture(9, 9)), tmp_path / "a.png"
    image.save(path, icc_profile=gamma_profile())
    first, second = (save_image(to_pil(read_picture(path)), tmp_path / name) for name in ("b.png", "c.png"))
    assert first.read_bytes() == second.read_bytes()
    assert opened(first)[1]["icc_profile"][24:36] == bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))


def test_pictures_are_read_in_threads(tmp_path: Path) -> None:
    image, path, found = Image.fromarray(texture(64, 64)), tmp_path / "a.png", []
    image.save(path)
    threads = [threading.Thread(target=lambda: found.append(to_pil(read_picture(path)).tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [image.tobytes()] * 8


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


CHROMATICITY = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize(
    ("marks", "note"),
    [
        (chunk(b"cICP", bytes((12, 13, 0, 1))), "are Display P3 with sRGB's curve, in cICP"),
        (chunk(b"cICP", bytes((9, 16, 0, 1))), "are BT.2020 with PQ's curve, in cICP"),
        (chunk(b"cICP", bytes((1, 13, 0, 1))), None),
        (chunk(b"cICP", b""), None),
        (chunk(b"gAMA", struct.pack(">I", 100000)), "have gamma 1"),
        (chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"cHRM", struct.pack(">8I", *CHROMATICITY)), None),
        (chunk(b"cHRM", struct.pack(">8I", *WIDE)), "have primaries that are not sRGB's"),
        (chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0"), None),
    ],
)
def test_marks_of_colours_that_are_not_followed_are_said(marks: bytes, note: str | None) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    data = stream.getvalue()
    found = read_picture(data[:33] + marks + data[33:]).notes
    assert found == (() if note is None else (f"the file says its colours {note}: taken as sRGB",))
