"""What one does with a result: save it, see it in a notebook."""

import io
from pathlib import Path

import pytest
from PIL import Image

import enlarger
from enlarger.errors import InputError
from enlarger.tasks.results.result import Result
from tests.support.pictures import texture

PICTURES = tuple(Image.new("RGB", (3, 2), colour) for colour in ("red", "green", "blue"))
RESULT = Result(PICTURES, (0, 1, 2), "bundled")


def test_every_picture_is_saved_and_none_over_another(tmp_path: Path) -> None:
    paths = RESULT.save(tmp_path / "a.png")
    assert [path.name for path in paths] == ["a.png", "a-2.png", "a-3.png"]
    for path, picture in zip(paths, PICTURES, strict=True):
        with Image.open(path) as saved:
            assert saved.tobytes() == picture.tobytes()
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a-2.png: exists already; choose another name or allow overwriting"):
        RESULT.save(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert RESULT.save(tmp_path / "a.png", overwrite=True) == paths


def test_a_format_that_cannot_hold_one_is_refused_before_any_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="JPEG cannot hold colour with alpha"):
        Result((PICTURES[0], Image.new("RGBA", (2, 2))), (0, 1), "bundled").save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="has a side of 16,384 pixels, WEBP holds at most 16,383"):
        Result((PICTURES[0], Image.new("L", (16_384, 1))), (0, 1), "bundled").save(tmp_path / "a.webp")
    assert list(tmp_path.iterdir()) == []


def test_notebooks_show_the_first_picture() -> None:
    with Image.open(io.BytesIO(RESULT._repr_png_())) as shown:
        assert shown.tobytes() == PICTURES[0].tobytes()


def test_an_input_that_is_gone_by_the_end_costs_no_result(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(texture(16, 16)).save(path)
    made = enlarger.upscale(path, watch=lambda progress: path.unlink(missing_ok=True))
    assert made.image.size == (32, 32) and made.generation[0]["input"] == {"file": "a.png"}


@pytest.mark.parametrize("background", ["nosuch", "#10203080"])
def test_a_background_that_is_no_colour_is_refused_whatever_the_picture(background: str, tmp_path: Path) -> None:
    result = Result((Image.new("RGB", (4, 4)),), (0,), "m")
    with pytest.raises(InputError, match="expected a colour such as white or #102030"):
        result.save(tmp_path / "a.jpg", background=background)
    assert list(tmp_path.iterdir()) == []
