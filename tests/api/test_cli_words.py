"""What the command line says and asks: hints that fit, silence, transparency, results of earlier runs, idle options."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from enlarger.cli.help_panels import PANELS
from enlarger.cli.lazy_verbs import VERBS, Verbs
from enlarger.cli.main import app
from enlarger.cli.typos import meant_options
from enlarger.sampler_names import SOLVERS
from tests.support import command
from tests.support.command import Fake, files, photo

call, fake = pytest.fixture(command.call), pytest.fixture(command.fake)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """The command with the bundled model itself."""
    return command.call(monkeypatch, capsys, tmp_path, Fake())


KNOWN = ["--by", "--output", "-o", "--guidance", "--device", "--salvage", "--styles", "--vae", "--steps", "--quality"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--scale", ["--by"]),
        ("--guidence", ["--guidance"]),
        ("--qality", ["--quality"]),
        ("--cfg_scale=7", ["--guidance"]),
        ("--num-inference-steps", ["--steps"]),
        ("--outdir", ["--output"]),
        ("--frobnicate", []),
    ],
)
def test_hints_fit(typed: str, meant: list[str]) -> None:
    assert meant_options(typed, KNOWN) == meant


def words(error: str) -> str:
    """The text in a box that a terminal shows."""
    return " ".join(error.replace("│", " ").split())


def test_a_hint_is_shown(call: Any) -> None:
    status, _, error = call("upscale", "a.png", "--scale", "3")
    assert status == 2
    assert "No such option: --scale (Possible options: --by)" in words(error)


def test_quiet_says_errors_alone(call: Any, fake: Fake) -> None:
    photo("a.png")
    Path("b.png").write_bytes(b"no picture")
    assert call("upscale", "a.png", "--quiet") == (0, "", "")
    status, out, error = call("upscale", "b.png", "-q")
    assert (status, out) == (1, "")
    assert error.startswith("error: b.png: ")
    assert error.count("\n") == 1


def test_a_picture_has_one_line(call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    photo("b.png")
    monkeypatch.setattr("enlarger.cli.upscale._describe_plan", lambda upscaler, request: "plan")
    _, out, error = call("upscale", "a.png", "b.png")
    assert out == "a-x2.png\nb-x2.png\n"
    assert len(re.findall(r"^[ab]\.png: 24 x 18 in [0-9.]+ s$", error, re.MULTILINE)) == 2
    assert len([line for line in error.splitlines() if line.startswith(("a.png", "b.png"))]) == 2


def transparent(name: str, least: int) -> None:
    alpha = Image.linear_gradient("L").resize((12, 9)).point([max(value, least) for value in range(256)])
    image = Image.new("RGB", (12, 9), (200, 0, 0)).convert("RGBA")
    image.putalpha(alpha)
    image.save(name)


def test_transparency_into_a_jpeg_is_asked_for_before_the_work(call: Any, fake: Fake) -> None:
    photo("a.png")
    transparent("real.png", 0)
    transparent("opaque.png", 255)
    status, _, error = call("upscale", "real.png", "--format", "jpg")
    assert status == 1
    assert "JPEG cannot hold colour with alpha; save as .png, or give a background such as white" in error
    assert fake.requests == []
    assert call("upscale", "opaque.png", "--format", "jpg")[:2] == (0, "opaque-x2.jpg\n")
    assert call("upscale", "real.png", "--format", "jpg", "--background", "white")[:2] == (0, "real-x2.jpg\n")
    with Image.open("real-x2.jpg") as flat:
        red, green, _ = flat.getpixel((12, 0))
        assert (flat.mode, red > 200, green > 200) == ("RGB", True, True)
    status, _, error = call("upscale", "a.png", "--background", "whitish")
    assert status == 2
    assert "background is 'whitish', expected a colour" in words(error)


def test_results_in_a_folder_are_not_enlarged_again(real: Any) -> None:
    photo("in/a.png", 8, 8)
    assert real("upscale", "in/")[:2] == (0, "in/a-x2.png\n")
    status, out, error = real("upscale", "in/", "--by", "3")
    assert (status, out) == (0, "in/a-x3.png\n")
    assert "passed over 1, results of an earlier run, which --again takes too: in/a-x2.png" in error
    photo("in/mine-x2.png", 8, 8)  # of that name, and made by nobody here
    assert "in/mine-x2-x4.png\n" in real("upscale", "in/", "--by", "4")[1]
    assert "in/a-x2-x1.5.png\n" in real("upscale", "in/", "--by", "1.5", "--again")[1]
    Path("in/a.png").unlink()
    Path("in/mine-x2.png").unlink()
    status, _, error = real("upscale", "in/", "--by", "2.5")
    assert status == 1
    assert re.search(r"error: in: all \d+ pictures here are results of an earlier run, which --again takes too", error)
    assert "in/a-x2.png" in files()


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ("int4", "precision is 'int4', expected auto, float32, float16, bfloat16"),
        ("int8", "precision is int8, which the engine openvino alone computes in; give both, or neither"),
        ("float16", "precision is float16, but the bundled model runs in float32; leave it out"),
    ],
)
def test_a_precision_without_effect_is_refused(real: Any, precision: str, text: str) -> None:
    photo("a.png")
    status, _, error = real("upscale", "a.png", "--precision", precision)
    assert (status, files()) == (1, ["a.png"])
    assert text in error


def test_steps_without_effect_are_refused(real: Any) -> None:
    photo("a.png")
    status, _, error = real("upscale", "a.png", "--steps", "20", "--detail", "0")
    assert (status, files()) == (1, ["a.png"])
    assert "steps is 20, but the bundled model makes detail in one; leave it" in error


PICTURE_VERBS = ("upscale", "generate", "refine", "inpaint", "depth")


@pytest.mark.parametrize("verb", PICTURE_VERBS)
def test_help_stands_in_panels_the_most_used_first(verb: str) -> None:
    verbs = typer.main.get_command(app)
    assert isinstance(verbs, Verbs)
    command = verbs.load(verb)
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(command.make_context(verb, [], resilient_parsing=True)):
        if parameter.param_type_name == "option":
            panels.setdefault(parameter.rich_help_panel, []).append(parameter.opts[0])
    assert None not in panels  # every option has its place
    assert list(panels) == [name for name in PANELS if name in panels]
    assert panels["Files"][0] == "--output" and panels["Model"][0] == "--model" and panels["Sampling"][0] == "--seed"
    if verb == "upscale":
        assert next(iter(panels)) == "Result" and panels["Result"][:2] == ["--by", "--size"]


@pytest.mark.parametrize("verb", VERBS)
def test_what_the_list_of_verbs_says_is_what_a_verb_says_of_itself(verb: str) -> None:
    verbs = typer.main.get_command(app)
    assert isinstance(verbs, Verbs)
    loaded = verbs.load(verb)
    assert loaded.name == verb and loaded.help.split("\n\n")[0].replace("\n", " ") == VERBS[verb][1]
    assert verbs.commands[verb] is loaded


def test_help_imports_no_verb() -> None:
    """Nor what verbs are made of: it is there at once."""
    code = "import sys\nfrom enlarger.cli.main import run\ntry: run()\nexcept SystemExit: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    modules = set(found.stdout.splitlines()[-1].split())
    assert {name for name in modules if name.startswith("enlarger.cli.")} == {
        "enlarger.cli.lazy_verbs",
        "enlarger.cli.light_help",
        "enlarger.cli.main",
        "enlarger.cli.terminal",
    }
    assert not modules & {"torch", "numpy", "PIL", "enlarger.requests"} and "upscale" in found.stdout


def test_help_lists_the_solvers(call: Any) -> None:
    status, out, _ = call("upscale", "--help")
    assert status == 0
    assert all(solver in out for solver in SOLVERS)


def test_styles_without_a_model_are_refused(call: Any) -> None:
    Path("styles.csv").write_text("name,prompt,negative_prompt\nfilm,film still,\n")
    status, _, error = call("upscale", "a.png", "--styles", "styles.csv")
    assert status == 2
    assert "--styles is given, but not --model; the bundled model takes no prompt" in words(error)
