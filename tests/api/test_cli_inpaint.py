"""`enlarger inpaint`: files, what is refused before the model is loaded, and what is told; with a tiny model."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import run
from enlarger.image.picture import save_image
from tests.support import tiny
from tests.support.pictures import texture
from tests.support.tiny_inpaint import tiny_inpainter

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
AUTO = "note: mask_mode auto took the mask as 'white': its white part is repainted"
GO = ("inpaint", "a.png", "--mask", "m.png", "--model", "folder", "--steps", "1")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the model was loaded with, each time that it was."""
    calls: list[tuple[Any, ...]] = []

    def load(*arguments: Any) -> Any:
        calls.append(arguments)
        return tiny_inpainter(9)

    monkeypatch.setattr("enlarger.tasks.inpaint.load_inpainter", load)
    return calls


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, loaded: Any) -> Any:
    """Run the command in a folder with a picture `a.png` and a mask `m.png`; status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(texture(20, 14)).save("a.png")
    mask = np.zeros((14, 20), np.uint8)
    mask[3:9, 5:12] = 255
    Image.fromarray(mask).save("m.png")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", *arguments])
        with pytest.raises(SystemExit) as exit:
            run()
        said = capsys.readouterr()
        return exit.value.code or 0, said.out, said.err

    return call


def pixels(path: str) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.array(image, dtype=int)


def test_a_picture_is_repainted(call: Any, loaded: list[Any]) -> None:
    status, out, err = call(*GO, "--prompt", "a cat", "--feather", "0")
    assert (status, out) == (0, "a-inpaint.png\n")
    assert f"a.png: {AUTO}\n" in err
    reported = r"a.png: 20 x 14 in \d+\.\d s; the mask covers 15 %, 42 pixels changed within 5,3,12,9\n"
    assert re.search(reported, err), err
    assert loaded == [("folder", "auto", "auto", "none", "torch")]
    differs = (pixels("a.png") != pixels("a-inpaint.png")).any(2)
    assert differs.sum() == 42 and differs[3:9, 5:12].all()


def test_json_and_several_results(call: Any) -> None:
    status, out, _ = call(*GO, "--json", "--count", "2", "--seed", "7", "--feather", "0", "-o", "out")
    reported = json.loads(out)
    assert status == 0 and reported["outputs"] == ["out/a-inpaint-1.png", "out/a-inpaint-2.png"]
    assert (reported["seed"], reported["box"], reported["coverage"], reported["model"]) == (
        7,
        [5, 3, 12, 9],
        15.0,
        "tiny9",
    )
    assert (
        reported["notes"] == [AUTO.removeprefix("note: ")]
        and reported["size"] == [20, 14]
        and "consistency" not in reported
    )


def test_a_border_needs_no_mask(call: Any) -> None:
    status, out, err = call(
        "inpaint", "a.png", "--model", "folder", "--expand", "4,0,4,0", "--steps", "1", "-o", "b.png"
    )
    assert (status, out) == (0, "b.png\n"), err
    assert (pixels("b.png")[:, 4:24] == pixels("a.png")).all()


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (None, ["-o", "m.png", "--overwrite"], "m.png is the mask; choose another --output"),
        (None, ["-o", "a.png", "--overwrite"], "a.png is the input a.png; choose another --output"),
        ("a-inpaint.png", [], "a-inpaint.png exists already; choose another --output, or replace it with --overwrite"),
        ("m.png", [], "the mask is 9 x 9 pixels and the picture 20 x 14; make them equal"),
        (None, ["--mask", "none.png"], "none.png: no such file; check the path"),
        (None, ["--mask-mode", "alpha"], "mask_mode is 'alpha', but the mask has no alpha"),
        ("rgba", ["-o", "b.jpg"], "b.jpg: JPEG cannot hold colour with alpha; save as .png"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    call: Any, loaded: list[Any], change: str | None, arguments: list[str], words: str
) -> None:
    if change == "rgba":
        Image.fromarray(texture(20, 14, 4)).save("a.png")
    elif change is not None:
        Image.new("L", (9, 9)).save(change)
    before = Path("m.png").read_bytes(), Path("a.png").read_bytes()
    status, out, err = call(*GO, *arguments)
    assert (status, out, loaded) == (1, "", []) and err == f"error: a.png: {err.partition('a.png: ')[2]}"
    assert words in err and err.count("\n") == 1 and "Traceback" not in err
    assert before == (Path("m.png").read_bytes(), Path("a.png").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inpaint", "a.png", "--mask", "m.png"], "Missing option '--model'"),
        ([*GO, "--expand", "1,2"], "expand is '1,2', expected one whole number"),
        ([*GO, "--strength", "2"], "Invalid value for '--strength'"),
        ([*GO, "--fill", "red"], "is not one of 'original', 'noise', 'blur', 'patch'"),
    ],
)
def test_wrong_usage(call: Any, loaded: list[Any], arguments: list[str], words: str) -> None:
    status, _, err = call(*arguments)
    assert (status, loaded) == (2, []) and words in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())


def test_metadata_are_stripped_and_alpha_is_laid_on_a_colour(call: Any, loaded: list[Any]) -> None:
    image = Image.fromarray(texture(20, 14, 4))
    image.putalpha(255)
    image.save("a.png", dpi=(300, 300))
    assert call(*GO, "-o", "b.jpg", "--strip", "all")[:2] == (0, "b.jpg\n")
    image.putalpha(90)
    image.save("a.png")
    status, out, err = call(*GO, "-o", "c.jpg", "--background", "white")
    assert (status, out) == (0, "c.jpg\n"), err
    for name in ("b.jpg", "c.jpg"):
        with Image.open(name) as made:
            assert made.mode == "RGB" and round(made.info.get("dpi", (72,))[0]) != 300
    status, out, err = call(*GO, "-o", "c.jpg", "--background", "white")
    assert (status, out, len(loaded)) == (0, "", 2) and "a.png: skipped: was made by the same command before" in err
    Image.fromarray(texture(20, 14)[..., :1].repeat(3, 2)).convert("L").save("m.png")
    assert "c.jpg exists already" in call(*GO, "-o", "c.jpg", "--background", "white")[2]
    assert "skipped: c.jpg exists already" in call(*GO, "-o", "c.jpg", "--skip-existing")[2]
    assert call(*GO, "-o", "d.webp", "--expand", "8192,0,8192,0")[2].startswith("error: a.png: d.webp: has a side of")
    Image.fromarray(texture(20, 14)).convert("P").save("a.gif")
    said = call("inpaint", "a.gif", *GO[2:], "--format", "same")[2]
    assert "a.gif: note: .gif is no kind that is written: PNG instead" in said


def test_a_lossy_file_is_noted(call: Any) -> None:
    status, _, err = call(*GO, "-o", "b.jpg")
    assert status == 0 and "JPEG files change every pixel a little: save as .png" in err
    status, _, err = call(*GO, "-o", "c.jpg", "--preserve", "none")
    assert status == 0 and "change every pixel" not in err


def test_neither_nothing_nor_a_failure_leaves_half_a_file(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(Image.new("L", (20, 14)), "m.png", overwrite=True)
    status, out, err = call(*GO)
    assert (status, out) == (0, "a-inpaint.png\n") and "the mask is empty: the picture is returned as it was" in err
    assert "0 pixels changed\n" in err and (pixels("a-inpaint.png") == pixels("a.png")).all()
    status, out, err = call(*GO, "-o", "b.png", "--strength", "0.1", "--steps", "2", "--mask", "a.png")
    assert (status, out) == (1, "") and "strength 0.1 of 2 steps is less than one step" in err
    assert not Path("b.png").exists()


def test_the_help_shows_defaults(call: Any) -> None:
    status, out, _ = call("inpaint", "--help")
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())
    assert status == 0 and "--mask-mode" in said and "--expand" in said and "inpaint" in said
