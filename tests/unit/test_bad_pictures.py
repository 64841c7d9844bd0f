"""Bad files give a one-line error, odd files the right picture, and damaged ones one or the other."""

import io
import random
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.picture import PIXEL_LIMIT, Picture, open_upright, read_picture, to_pil
from tests.support.pictures import all_files, bad_files, odd_files, texture


def test_bad_files_give_one_line_that_names_the_file_and_the_reason(tmp_path: Path) -> None:
    for case in bad_files(tmp_path):
        with pytest.raises(InputError) as caught:
            read_picture(case.path)
        message = str(caught.value)
        assert message.startswith(f"{case.path}: "), message
        assert case.error is not None and case.error in message, message
        assert ";" in message and "\n" not in message


def test_odd_files_give_the_right_picture(tmp_path: Path) -> None:
    for case in odd_files(tmp_path):
        picture = read_picture(case.path)
        image = to_pil(picture)
        assert (image.size, image.mode) == (case.size, case.mode), case.path.name
        notes = "; ".join(picture.notes)
        assert case.note is None or case.note in notes, f"{case.path.name}: {notes}"
        assert case.note is not None or not notes or "exif" in case.path.name, f"{case.path.name}: {notes}"


def test_no_warning_leaks(tmp_path: Path) -> None:
    cases = all_files(tmp_path)
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        for case in cases:
            with pytest.raises(InputError) if case.error else warnings.catch_warnings():
                read_picture(case.path)
    assert [str(w.message) for w in leaked] == []


def test_a_huge_header_is_refused_at_once(tmp_path: Path) -> None:
    path = next(case.path for case in bad_files(tmp_path) if case.path.name == "huge_header.png")
    start = time.perf_counter()
    with pytest.raises(InputError, match="at most 178,956,970 are read"):
        read_picture(path)
    assert time.perf_counter() - start < 0.1


def test_the_pixel_limit_is_an_argument(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(texture(20, 10)).save(path)
    assert read_picture(path, limit=200).width == 20
    with pytest.raises(InputError, match=r"a\.png: 20 x 10: has 200 pixels, at most 199 are read; shrink"):
        read_picture(path, limit=199)


def test_the_usual_limit_is_for_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was enlarged in memory is refined and looked at, however large."""
    monkeypatch.setattr("enlarger.image.decode.PIXEL_LIMIT", 199)
    path, values = tmp_path / "a.png", texture(20, 10)
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match="has 200 pixels, at most 199 are read"):
        read_picture(path)
    for source in (Image.fromarray(values), values, read_picture(values).colour):
        assert read_picture(source).width == 20
    assert open_upright(Image.fromarray(values)).size == (20, 10)
    assert PIXEL_LIMIT == 178_956_970  # a camera of 150 megapixels, and Pillow's own bound


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_mutated_files_give_a_picture_or_an_input_error(kind: str, tmp_path: Path) -> None:
    stream, path, dice = io.BytesIO(), tmp_path / "mutated", random.Random(kind)
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    Image.fromarray(texture(16, 12)).save(stream, format=kind, **options)
    for _ in range(80):
        path.write_bytes(mutate(stream.getvalue(), dice))
        try:
            assert isinstance(read_picture(path, limit=1_000_000), Picture)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Change a few bytes, most of them near the header, and sometimes cut, drop or repeat a piece."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        reach = len(changed) if dice.random() < 0.5 else min(len(changed), 80)
        changed[dice.randrange(reach)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
    start, length = dice.randrange(len(changed)), dice.randint(1, 30)
    piece = changed[start : start + length]
    match dice.randrange(6):
        case 0:
            del changed[start:]
        case 1:
            del changed[start : start + length]
        case 2:
            changed[start:start] = piece
        case _:
            pass
    return bytes(changed or b"\0")
