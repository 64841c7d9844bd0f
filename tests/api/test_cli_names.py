"""Names on the command line: empty, odd, over-long and passed over; what is printed of them."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from enlarger.cli.inputs import IMAGE_SUFFIXES
from enlarger.cli.terminal import printable
from enlarger.image.decode import READABLE_FORMATS
from tests.support import command
from tests.support.command import Fake, files, photo, size

fake, call = pytest.fixture(command.fake), pytest.fixture(command.call)
LONG = "x" * 251 + ".png"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["upscale", ""], "INPUTS"),
        (["upscale", "a.png", ""], "INPUTS"),
        (["upscale", "a.png", "-o", ""], "--output"),
        (["upscale", "a.png", "--model="], "--model"),
        (["generate", "a cat", "--model", "m", "--lora", ""], "--lora"),
        (["inpaint", "a.png", "--model", "m", "--mask", ""], "--mask"),
        (["inspect", ""], "PATH"),
        (["serve", "--data", ""], "--data"),
        (["evaluate", "upscale", ""], "FOLDER"),
    ],
)
def test_an_empty_name_is_wrong_usage(call: Any, fake: Fake, arguments: list[str], name: str) -> None:
    photo("a.png")
    status, out, err = call(*arguments)
    assert (status, out, files()) == (2, "", ["a.png"])
    assert f"{name} is empty, expected a value; is a variable in" in " ".join(err.replace("│", " ").split())


def test_an_empty_prompt_is_a_prompt(call: Any, fake: Fake) -> None:
    photo("a.png")
    assert call("upscale", "a.png", "--prompt", "", "--negative", "")[0] == 0


def test_what_pillow_reads_is_taken_from_a_folder() -> None:
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in READABLE_FORMATS}
    assert readable <= IMAGE_SUFFIXES


def test_what_a_folder_holds_is_taken_or_named(call: Any) -> None:
    Path("f").mkdir()
    for name, kind in (("a.JFIF", "JPEG"), ("b.jpe", "JPEG"), ("c.apng", "PNG"), ("d.gif", "GIF")):
        Image.new("RGB", (4, 3)).save(f"f/{name}", kind)
    photo("f/.e.png"), photo("f/sub/g.png"), photo("other/h.png")
    Path("f/linked").symlink_to("../other"), Path("f/i.psd").write_bytes(b"?"), Path("f/notes.txt").write_text("?")
    status, out, err = call("upscale", "f", "-o", "out")
    assert (status, out.split()) == (0, [f"out/{name}-x2.png" for name in "abcd"])
    assert "passed over 2, of a kind that is not read: f/i.psd, f/notes.txt\n" in err
    assert "passed over 1, hidden: f/.e.png\n" in err
    assert "passed over 1, a folder in a folder, which --recursive searches: f/sub\n" in err
    assert (
        "passed over 1, a linked folder in a folder, which is not searched; name it to have it searched: f/lin" in err
    )
    status, out, err = call("upscale", "f/linked", "f/sub", "-o", "more")
    assert (status, out.split(), "passed over" in err) == (0, ["more/h-x2.png", "more/g-x2.png"], False)


@pytest.mark.parametrize("output", ["set.2024/", "set.png/", "deep/v1.0/"])
def test_a_slash_at_the_end_says_folder(call: Any, output: str) -> None:
    photo("a.png")
    assert call("upscale", "a.png", "-o", output)[1] == f"{output}a-x2.png\n"


def test_a_suffix_that_is_none_says_how_to_name_a_folder(call: Any) -> None:
    photo("a.png")
    assert "or end the name with / if it is a folder\n" in call("upscale", "a.png", "-o", "set.2024")[2]


def test_names_that_are_too_long_say_so(call: Any, fake: Fake) -> None:
    photo("a.png"), photo(LONG)
    said = "is too long for the disk ({} bytes; most take 255); choose a shorter one"
    assert said.format(258) in call("upscale", LONG)[2]
    assert said.format(300) in call("upscale", "y" * 300)[2]
    assert said.format(260) in call("upscale", "a.png", "-o", "z" * 256 + ".png")[2]
    assert said.format(400) in call("upscale", "a.png", "-o", "ü" * 200 + "/")[2]
    assert fake.loaded == []
    assert call("upscale", LONG, "-o", "b.png")[0] == 0 and size("b.png") == (24, 18)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred.png", r"\x1b[31mred.png"),
        ("two\nlines.png", r"two\nlines.png"),
        ("bell\x07\x9b2J.png", r"bell\x07\x9b2J.png"),
        ("gnp.\u202ejpg.png", r"gnp.\u202ejpg.png"),
        ("at 1.23\u202fPM 日本 👩\u200d👧.png", "at 1.23\u202fPM 日本 👩\u200d👧.png"),
    ],
)
def test_names_are_shown_and_not_obeyed(call: Any, name: str, shown: str) -> None:
    photo(f"f/{name}")
    assert printable(name) == shown
    status, out, err = call("upscale", "f", "-o", "out")
    assert (status, out) == (0, f"out/{shown.removesuffix('.png')}-x2.png\n") and "\x1b" not in err
    for arguments in (("inspect", f"{name}.no"), ("convert", f"{name}.no", "b.safetensors"), ("upscale", "--by", name)):
        status, out, err = call(*arguments)
        assert status != 0 and not any(code in out + err for code in ("\x1b[31m", "\x07", "\x9b", "\u202e", "two\nl"))


def test_what_is_there_of_a_picture_cut_short_is_enlarged_when_asked(call: Any) -> None:
    whole = photo("whole.png", 40, 90).read_bytes()
    Path("a.png").write_bytes(whole[: len(whole) * 2 // 3])
    status, out, err = call("upscale", "a.png", "whole.png")
    assert (status, out) == (1, "whole-x2.png\n") and "a.png: the file is cut short; copy or download it again" in err
    status, out, err = call("upscale", "a.png", "whole.png", "--salvage", "-o", "out")
    rows = size("out/a-x2.png")[1] // 2
    assert status == 0 and 20 < rows < 90 and size("out/whole-x2.png") == (80, 180)
    assert f"a.png: note: the file is cut short: {rows} of 90 rows are there, the others are left out\n" in err


def test_light_beyond_the_range_is_mapped_when_asked(call: Any) -> None:
    Image.new("F", (4, 3), 7.0).save("a.tif"), photo("b.png")
    status, out, err = call("upscale", "a.tif", "b.png")
    assert (status, out) == (0, "a-x2.png\nb-x2.png\n") and "note: values from 7 to 7, expected 0 to 1: scaled" in err
    status, out, err = call("upscale", "a.tif", "b.png", "--tone-map", "-o", "out")
    assert (status, err.count("tone-mapped")) == (0, 1) and "a.tif: note: tone-mapped\n" in err
    assert "b.png: note: its numbers do not go beyond a display's: read without --tone-map\n" in err
    status, _, err = call("upscale", "a.tif", "--tone-map", "--all-frames")
    assert status == 2 and "leave --format, --count, --salvage, --tone-map and" in " ".join(
        err.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("mode", "size", "output", "words"),
    [
        ("RGBA", (8, 6), "b.jpg", "JPEG cannot hold colour with alpha"),
        ("LA", (8, 6), "b.bmp", "BMP cannot hold grey with alpha"),
        ("P", (8, 6), "b.jpe", "JPEG cannot hold colour with alpha"),
        ("RGB", (8200, 1), "b.webp", "has a side of 16,400 pixels, WEBP holds at most 16,383"),
        ("L", (1, 32751), "b.jpg", "has a side of 65,502 pixels, JPEG holds at most 65,500"),
    ],
)
def test_what_a_file_cannot_hold_is_said_before_the_work(
    call: Any, fake: Fake, mode: str, size: tuple[int, int], output: str, words: str
) -> None:
    options = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, size).save("a.png", **options), photo("good.png")
    status, _, err = call("upscale", "a.png", "-o", output)
    assert (status, fake.loaded, files()) == (1, [], ["a.png", "good.png"]) and words in err


def test_a_tag_of_a_wrong_type_ends_no_other_picture(call: Any, fake: Fake) -> None:
    photo("a.png")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = "preview"  # the kind of page, which is a number
    tags.tagtype[254] = 2
    Image.new("RGB", (8, 8)).save("b.tif", tiffinfo=tags)
    with Image.open("b.tif") as made:
        assert made.tag_v2[254] == "preview"  # it is as meant
    status, out, _ = call("upscale", "a.png", "b.tif")
    assert status == 0 and out.splitlines() == ["a-x2.png", "b-x2.png"]
