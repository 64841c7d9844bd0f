"""Every frame of animations and pages, with their timing; metadata stripped by a bare word; CMYK."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from enlarger.errors import InputError
from enlarger.image.deep import DeepImage
from enlarger.image.frames import FrameSettings, Timing, read_frames, read_timing, save_frames
from enlarger.image.generation import read_metadata
from tests.support import command, tiny
from tests.support.pictures import texture

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
pytestmark = pytest.mark.filterwarnings("always::UserWarning")
DURATIONS = (100, 250, 40)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    return command.call(monkeypatch, capsys, tmp_path, command.Fake())


def animation(path: Path, **options: Any) -> Path:
    frames = [Image.fromarray(texture(14, 10, seed=k)) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_an_animation_keeps_frames_timing_and_kind(call: Any, tmp_path: Path, suffix: str) -> None:
    loop = {} if suffix == "avif" else {"loop": 2}
    source = animation(tmp_path / f"a.{suffix}", duration=DURATIONS, **loop)
    status, out, err = call("upscale", source.name, "--all-frames")
    assert (status, out) == (0, f"a-x2.{suffix}\n") and "note: 3 frames\n" in err, err
    assert read_timing(tmp_path / f"a-x2.{suffix}") == read_timing(source)
    assert read_timing(source).durations == DURATIONS
    small, large = list(read_frames(source)), list(read_frames(tmp_path / f"a-x2.{suffix}"))
    assert [image.size for image in large] == [(28, 20)] * 3
    for before, after in zip(small, large, strict=True):
        half = after.convert("RGB").resize((14, 10), Image.Resampling.BOX)
        difference = np.abs(np.asarray(half, int) - np.asarray(before.convert("RGB"), int))
        assert float(difference.mean()) < 14, difference.mean()
    assert ("GIF holds 256 colours in a frame" in err) == (suffix == "gif")


def test_pages_of_a_tiff_keep_all_bits(call: Any, tmp_path: Path) -> None:
    pages = [DeepImage.from_samples(texture(14, 10, seed=k).astype(np.uint16) * 250) for k in range(2)]
    save_frames(pages, tmp_path / "a.tif", Timing(), FrameSettings())
    read = list(read_frames(tmp_path / "a.tif"))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(pages, read, strict=True))  # type: ignore[attr-defined]
    assert call("upscale", "a.tif", "--all-frames")[:2] == (0, "a-x2.tif\n")
    made = list(read_frames(tmp_path / "a-x2.tif"))
    assert [(type(image), image.size) for image in made] == [(DeepImage, (28, 20))] * 2
    with Image.open("a-x2.tif") as image:
        assert read_metadata(image)["frames"] is True  # type: ignore[index]
    assert "holds several frames" in call("replay", "a-x2.tif")[2]


def test_pages_of_a_tiff_keep_their_own_profile_and_metadata(call: Any, tmp_path: Path) -> None:
    pages = [Image.fromarray(texture(14, 10, seed=k)) for k in range(3)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = [profile[:35] + bytes([second]) + profile[36:] for second in (1, 2)]  # of the time when it was made
    for page, profile, dpi in zip(pages, profiles, (100, 200), strict=False):
        page.info |= {"icc_profile": profile, "dpi": (dpi, dpi)}
    save_frames(pages, tmp_path / "a.tif", Timing(), FrameSettings())
    assert call("upscale", "a.tif", "--all-frames")[:2] == (0, "a-x2.tif\n")
    for name in ("a.tif", "a-x2.tif"):
        infos = [page.info for page in read_frames(tmp_path / name)]
        assert [info.get("icc_profile") for info in infos] == [*profiles, None], name
        assert [info["dpi"] for info in infos[:2]] == [(100, 100), (200, 200)], name


def test_damaged_frames_and_files_in_the_way_are_said(call: Any, tmp_path: Path) -> None:
    source = animation(tmp_path / "a.gif")
    source.write_bytes(source.read_bytes()[:-120])
    status, _, err = call("upscale", "a.gif", "--all-frames")
    assert status == 1 and "unexpected" not in err and "a.gif: the file is cut short" in err, err

    def frames() -> Iterator[Image.Image]:
        yield Image.new("RGB", (8, 6))
        (tmp_path / "b.tif").touch()

    with pytest.raises(InputError, match=r"b\.tif: exists already; choose another name or allow overwriting"):
        save_frames(frames(), tmp_path / "b.tif", Timing(), FrameSettings())


def test_a_single_picture_is_one_frame_and_others_are_refused(call: Any, tmp_path: Path) -> None:
    Image.fromarray(texture(8, 6)).save(tmp_path / "a.png")
    assert call("upscale", "a.png", "--all-frames")[:2] == (0, "a-x2.png\n")
    assert "--all-frames makes one file" in call("upscale", "a.png", "--all-frames", "--count", "2")[2]
    animation(tmp_path / "b.webp")
    assert (
        "c.jpg: JPEG holds one picture, the input has 3; save as PNG"
        in call("upscale", "b.webp", "--all-frames", "-o", "c.jpg")[2]
    )


def test_what_phones_put_behind_a_jpeg_is_no_frame(call: Any, tmp_path: Path) -> None:
    frames = [Image.fromarray(texture(14, 10, seed=k)) for k in range(2)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_timing(tmp_path / "a.jpg").count == 1 == len(list(read_frames(tmp_path / "a.jpg")))
    status, out, err = call("upscale", "a.jpg", "--all-frames")
    assert (status, out) == (0, "a-x2.jpg\n") and "note: the file holds a second picture too" in err, err
    status, _, err = call("upscale", "a.jpg", "--all-frames", "--background", "white")
    assert status == 2 and "--all-frames makes one file" in err


@pytest.mark.parametrize("arguments", [("--strip", "a.jpg"), ("a.jpg", "--strip"), ("a.jpg", "--strip", "all")])
def test_strip_alone_strips_all(call: Any, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    exif = Image.Exif()
    exif[0x8298] = "somebody"
    Image.fromarray(texture(12, 12)).save(tmp_path / "a.jpg", exif=exif)
    status, _, err = call("upscale", *arguments, "-o", "b.png")
    assert status == 0, err
    with Image.open("b.png") as image:
        assert not image.getexif() and image.info == {}
