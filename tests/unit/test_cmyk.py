"""Pictures in CMYK, and their way back to CMYK by their own profile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.cmyk import to_cmyk
from enlarger.image.picture import read_picture, save_image, to_pil
from enlarger.tasks.results.result import Result
from tests.support import command, tiny
from tests.support.cmyk import cmyk_profile
from tests.support.pictures import texture

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
pytestmark = pytest.mark.filterwarnings("always::UserWarning")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    return command.call(monkeypatch, capsys, tmp_path, command.Fake())


def inks(path: Path, profile: bytes | None = None) -> Image.Image:
    """A picture in CMYK whose colours a printer would mix so, written to a file."""
    smooth = Image.fromarray(texture(4, 5)).resize((24, 20), Image.Resampling.BICUBIC)
    smooth.info["cmyk_profile"] = cmyk_profile()
    image = to_cmyk(smooth)
    image.info = {}
    image.save(path, **({} if profile is None else {"icc_profile": profile}))
    return image


def test_a_picture_in_cmyk_goes_back_by_its_own_profile(tmp_path: Path) -> None:
    before = np.asarray(inks(tmp_path / "a.tif", cmyk_profile()), int)
    picture = read_picture(tmp_path / "a.tif")
    assert picture.notes == ("converted to sRGB from the profile 'four inks'",)
    Result((to_pil(picture),), (0,), "m").save(tmp_path / "b.tif", cmyk=True)
    with Image.open(tmp_path / "b.tif") as found:
        assert found.mode == "CMYK" and found.info["icc_profile"] == cmyk_profile()
        difference = np.abs(np.asarray(found, int) - before)
    assert difference.mean() < 1.5 and before[..., 3].max() > 40  # of 255; there is black


def test_without_a_profile_the_colours_are_approximate(tmp_path: Path) -> None:
    inks(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    with pytest.warns(
        UserWarning, match="no profile says how to print in CMYK: colours are approximate, without black"
    ):
        made = to_cmyk(to_pil(picture))
    assert made.mode == "CMYK" and "icc_profile" not in made.info
    assert np.array_equal(np.asarray(made.convert("RGB")), np.asarray(to_pil(picture)))


def test_a_profile_of_no_use_is_left_out(tmp_path: Path) -> None:
    inks(tmp_path / "a.tif", b"no profile")
    with pytest.warns(UserWarning, match="colours are approximate"):
        assert "icc_profile" not in to_cmyk(to_pil(read_picture(tmp_path / "a.tif"))).info


def test_other_pictures_are_left_as_they_are() -> None:
    with pytest.warns(UserWarning, match="the input is no CMYK picture: the result is none either"):
        assert to_cmyk(Image.new("RGB", (2, 2))).mode == "RGB"


def test_only_tiff_files_hold_it(tmp_path: Path) -> None:
    image = inks(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.png: PNG cannot hold CMYK here; save as \.tif, or leave it in RGB"):
        save_image(image, tmp_path / "a.png")


def test_the_command_line_writes_it_where_asked_and_refuses_before_the_work(call: Any) -> None:
    inks(Path("a.tif"), cmyk_profile())
    assert call("upscale", "a.tif", "--cmyk", "--format", "same")[:2] == (0, "a-x2.tif\n")
    assert call("upscale", "a.tif", "--format", "tif", "-o", "b.tif")[:2] == (0, "b.tif\n")
    with Image.open("a-x2.tif") as ink, Image.open("b.tif") as plain:
        assert (ink.mode, ink.size, ink.info["icc_profile"]) == ("CMYK", (48, 40), cmyk_profile())
        assert plain.mode == "RGB"
    status, _, error = call("upscale", "a.tif", "--cmyk")
    assert status == 1 and "a-x2.png: PNG cannot hold CMYK here; save as .tif, or leave it in RGB" in error
    assert call("replay", "a-x2.tif")[:2] == (0, f"a-x2.tif: the same {Path('a-x2.tif').stat().st_size:,} bytes\n")
    status, _, error = call("upscale", "a.tif", "--cmyk", "--server", "http://localhost:1")
    said = " ".join(error.replace("│", "").split())
    assert status == 2 and "--cmyk cannot be given with --server: a service's pictures are in RGB" in said
