"""The command line, with a fast stand-in for the model: files, names, streams and exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from enlarger.checkpoint.families import KINDS
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.evaluate.upscale import Evaluation, EvaluationTable
from enlarger.image.picture import one_line
from enlarger.requests import UpscaleRequest
from enlarger.runtime.choices import choose
from enlarger.tasks.results.result import Progress
from enlarger.train.upscaler import Plan
from tests.support import command
from tests.support.command import Fake, files, photo, size
from tests.support.pictures import bad_files, odd_files, texture

ROOT = Path(__file__).parents[2]
HELD = "from enlarger.cli.main import run\nrun()"


fake, call = pytest.fixture(command.fake), pytest.fixture(command.call)


def test_one_photo_is_written_beside_it(call: Any) -> None:
    photo("a.jpg")
    status, out, err = call("upscale", "a.jpg")
    assert (status, out) == (0, "a-x2.png\n")
    assert re.search(r"a.jpg: 24 x 18 in \d+\.\d s\n", err)
    assert size("a-x2.png") == (24, 18)


def test_explaining_says_how_networks_run_and_computes_nothing(call: Any, fake: Fake) -> None:
    photo("a.jpg")
    expected = [f"{name} {about}" for name, about in choose("cpu", "bfloat16").describe().items()]
    expected.append("engine torch: as it is")
    status, out, _ = call("upscale", "a.jpg", "--device", "cpu", "--precision", "bfloat16", "--explain")
    assert (status, out.splitlines(), files()) == (0, expected, ["a.jpg"])
    _, out, _ = call("upscale", "a.jpg", "--explain", "--json")
    assert json.loads(out) == {"runtime": choose().describe() | {"engine": "torch: as it is"}} and fake.loaded == []
    _, out, _ = call("upscale", "a.jpg", "--device", "cpu", "--precision", "int8", "--engine", "openvino", "--explain")
    assert re.search(r"^precision int8: asked for, quantised from \w+: \w", out, re.MULTILINE)
    assert out.endswith("\nengine openvino: asked for\n")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["a.png", "-o", "b.jpg"], ["b.jpg"]),
        (["a.png", "-o", "out"], ["out/a-x2.png"]),
        (["a.png", "--output", "deep/er"], ["deep/er/a-x2.png"]),
        (["a.png", "--by", "1.5"], ["a-x1.5.png"]),
        (["a.png", "--by", "3", "--count", "2", "--model", "M"], ["a-x3-1.png", "a-x3-2.png"]),
        (["a.png", "-o", "b.webp", "--count", "2", "--model", "M"], ["b-1.webp", "b-2.webp"]),
        (["a.png", "f/b.png", "-o", "out"], ["out/a-x2.png", "out/b-x2.png"]),
        (["f"], ["f/b-x2.png", "f/c.d-x2.png"]),
        (["f", "-r"], ["f/b-x2.png", "f/c.d-x2.png", "f/g/b-x2.png"]),
        (["f", "-o", "out", "--recursive"], ["out/b-x2.png", "out/c.d-x2.png", "out/g/b-x2.png"]),
        (["f", "-o", "out.png.d"], ["out.png.d/b-x2.png", "out.png.d/c.d-x2.png"]),
        (["a.png", "-o", "deep/er/b.jpg"], ["deep/er/b.jpg"]),
        (["f/b.png", "f"], ["f/b-x2.png", "f/c.d-x2.png"]),
    ],
)
def test_names_of_results(call: Any, arguments: list[str], written: list[str]) -> None:
    for path in ("a.png", "f/b.png", "f/c.d.jpeg", "f/g/b.png", "f/.hidden.png", "f/.cache/h.png"):
        photo(path)
    Path("f/notes.txt").write_text("not a picture")
    before = files()
    status, out, _ = call("upscale", *arguments)
    assert (status, out.split()) == (0, written)
    assert sorted(set(files()) - set(before)) == sorted(written)


def test_the_model_is_loaded_once_and_asked_with_the_options(call: Any, fake: Fake) -> None:
    photo("f/a.png"), photo("f/b.png")
    options = "--prompt cat --negative dog --steps 4 --guidance 0 --seed 7 --noise-level 0.5 --solver euler"
    more = "--profile original --detail 0 --no-consistent --long-prompt --model M --device cpu --precision float32"
    assert call("upscale", "f", *options.split(), *more.split())[0] == 0
    assert fake.loaded == [("M", "cpu", "float32", "none", "torch")]
    expected = UpscaleRequest(
        image=Path("f/a.png"), prompt="cat", negative="dog", steps=4, guidance=0.0, seed=7, noise_level=0.5,
        solver="euler", profile="original", detail=0.0, consistent=False, long_prompt=True,
    )  # fmt: skip
    assert fake.requests[0] == expected
    assert [request.image for request in fake.requests] == [Path("f/a.png"), Path("f/b.png")]


def test_without_options_every_value_is_the_requests_own(call: Any, fake: Fake) -> None:
    photo("a.png")
    call("upscale", "a.png")
    assert fake.requests == [UpscaleRequest(image=Path("a.png"))]
    assert fake.loaded == [(None, "auto", "auto", "none", "torch")]


def test_nothing_is_overwritten_unasked_and_nothing_computed_for_it(call: Any, fake: Fake) -> None:
    photo("a.png"), Path("a-x2.png").write_text("mine")
    status, out, err = call("upscale", "a.png")
    assert (status, out, fake.loaded) == (1, "", [])
    assert err == "error: a.png: a-x2.png exists already; choose another --output, or replace it with --overwrite\n"
    assert Path("a-x2.png").read_text() == "mine"
    assert call("upscale", "a.png", "--overwrite")[:2] == (0, "a-x2.png\n")
    assert size("a-x2.png") == (24, 18)


def test_one_of_several_results_that_exists_refuses_them_all(call: Any, fake: Fake) -> None:
    photo("a.png"), Path("a-x2-2.png").write_text("mine")
    assert call("upscale", "a.png", "--count", "2", "--model", "M")[0] == 1
    assert fake.requests == [] and not Path("a-x2-1.png").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["a.png", "-o", "a.png"], "a.png: a.png is the input a.png; choose another --output"),
        (["a.png", "-o", "f/../a.png"], "a.png: f/../a.png is the input a.png; choose another --output"),
        (["a.png", "a-x2.png"], "a.png: a-x2.png is the input a-x2.png; choose another --output"),
        (["a.png", "-o", "link.png"], "a.png: link.png is the input a.png; choose another --output"),
    ],
)
def test_an_input_is_never_overwritten(call: Any, fake: Fake, arguments: list[str], error: str) -> None:
    photo("a.png"), photo("a-x2.png"), photo("f/a.png"), Path("link.png").symlink_to("a.png")
    before = Path("a.png").read_bytes()
    status, _, err = call("upscale", *arguments, "--overwrite")
    assert status == 1 and f"error: {error}\n" in err
    assert Path("a.png").read_bytes() == before


def test_two_inputs_never_share_a_result(call: Any) -> None:
    for name in ("f/a.png", "g/A.png", "g/a.jpg", "g/h/a.png", "g/b.png"):
        photo(name)
    status, out, err = call("upscale", "f", "g", "-r", "-o", "out", "--by", "3")
    expected = ["f/a-x3.png", "g/A.png-x3.png", "g/a.jpg-x3.png", "g/b-x3.png", "g/h/a-x3.png"]
    assert (status, out.split()) == (0, [f"out/{name}" for name in expected]), err
    status, out, err = call("upscale", "f", "g", "-r", "-o", "out", "--by", "3")
    assert (status, out, err.count("was made by the same command")) == (0, "", 5)
    assert call("upscale", "f/a.png", "g/b.png", "-o", "other")[1].split() == ["other/a-x2.png", "other/b-x2.png"]


def test_the_suffix_stays_where_names_would_be_equal(call: Any) -> None:
    photo("f/a.png"), photo("f/a.jpg"), photo("f/b.png")
    expected = ["f/a.jpg-x2.png", "f/a.png-x2.png", "f/b-x2.png"]
    assert call("upscale", "f")[1].split() == expected
    assert call("upscale", "f", "--overwrite")[1].split() == expected


def test_results_in_a_folder_are_not_enlarged_by_the_next_run(call: Any, fake: Fake) -> None:
    photo("f/a.png")
    assert call("upscale", "f")[0] == 0
    status, out, err = call("upscale", "f")
    assert (status, out) == (0, "") and err.startswith("f/a.png: skipped: was made by the same command before")
    assert call("upscale", "f", "--overwrite")[:2] == (0, "f/a-x2.png\n")
    assert files() == ["f/a-x2.png", "f/a.png"]


def test_bad_files_are_reported_in_a_line_each_and_the_others_go_on(call: Any) -> None:
    cases = [case for case in bad_files(Path()) if case.path.is_file()]
    photo("good.png")
    status, out, err = call("upscale", *(case.path for case in cases), "missing.png", "good.png")
    lines = err.splitlines()
    assert (status, out) == (1, "good-x2.png\n")
    for case in cases:
        reported = [
            line for line in lines if line.startswith(f"error: {one_line(case.path)}: ") and (case.error or "") in line
        ]
        assert len(reported) == 1, (case, err)
    assert "error: missing.png: no such file or folder" in lines
    end = lines.index(f"{len(cases) + 1} of {len(cases) + 2} files failed:")
    assert lines[end + 1 :] == ["- " + line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    assert "Traceback" not in err


def test_odd_files_are_enlarged(call: Any) -> None:
    cases = odd_files(Path())
    status, out, err = call("upscale", *(case.path for case in cases), "-o", "out")
    assert (status, len(out.split())) == (0, len(cases)), err
    for case, written in zip(cases, out.split(), strict=True):
        assert size(written) == (2 * case.size[0], 2 * case.size[1])
        assert case.note is None or any(
            f"{case.path}: note: " in line and case.note in line for line in err.splitlines()
        )


def test_folders_that_give_nothing(call: Any, fake: Fake) -> None:
    Path("empty").mkdir(), photo("outer/inner/a.png")
    status, out, err = call("upscale", "empty", "outer")
    assert (status, out, fake.loaded) == (1, "", [])
    assert "error: empty: no pictures in this folder; --recursive searches the folders in it\n" in err
    assert "error: empty: no pictures in this folder\n" in call("upscale", "empty", "-r")[2]


def test_output_that_cannot_be(call: Any, fake: Fake) -> None:
    photo("a.png"), Path("file").write_text("")
    assert "a.png: file: cannot be made (File exists)" in call("upscale", "a.png", "-o", "file")[2]
    assert "a.png: file/below: cannot be made (Not a directory)" in call("upscale", "a.png", "-o", "file/below")[2]
    assert "a.png: b.gif: found suffix '.gif', expected one of .png" in call("upscale", "a.png", "-o", "b.gif")[2]
    assert fake.loaded == []


def test_options_that_the_model_has_no_use_for_are_refused_once(call: Any, fake: Fake) -> None:
    photo("a.png"), photo("b.png")
    fake.kind = KINDS["pixel"]
    status, out, err = call("upscale", "a.png", "b.png", "--solver", "euler")
    assert (status, out, fake.requests) == (1, "", [])
    assert err.count("solver is set, but") == 1 and "leave it, or load another upscaler" in err


def test_what_names_a_service_or_a_folder_alone_is_wrong_usage(
    call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    photo("a.png"), Path("models").mkdir()
    assert "--models is given, but not --model" in call("upscale", "a.png", "--models", "models")[2]
    assert "--key is given, but not --server" in call("upscale", "a.png", "--key", "abc")[2]
    monkeypatch.setenv("ENLARGER_KEY", "abc")
    monkeypatch.setenv("ENLARGER_MODELS_FOLDER", "models")
    assert call("upscale", "a.png")[:2] == (0, "a-x2.png\n")
    status, _, err = call("upscale", "a.png", "--server", "http://127.0.0.1:9", "--model", "x2", "-o", "b.png")
    assert status == 1 and "cannot be given with --server" not in err and "127.0.0.1:9" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["upscale"],
        ["upscale", "a.png", "--bigger"],
        ["upscale", "a.png", "--by", "0.5"],
        ["upscale", "a.png", "--by", "nan"],
        ["upscale", "a.png", "--count", "0"],
        ["upscale", "a.png", "--profile", "mine"],
        ["upscale", "a.png", "--seed", "-2"],
        ["upscale", "a.png", "a.png", "-o", "b.png"],
        ["enlarge", "a.png"],
    ],
)
def test_wrong_usage_exits_2(call: Any, fake: Fake, arguments: list[str]) -> None:
    photo("a.png")
    status, out, err = call(*arguments)
    assert status == 2 and "Traceback" not in err
    assert not arguments or out == ""
    assert (fake.loaded, files()) == ([], ["a.png"])


def test_json_is_one_line_per_file_and_nothing_else(call: Any, fake: Fake) -> None:
    photo("a.png"), Path("b.png").write_text("not a picture")
    status, out, err = call(
        "upscale", "a.png", "b.png", "c.png", "--json", "--seed", "3", "--count", "2", "--model", "M"
    )
    good, bad, missing = map(json.loads, out.splitlines())
    assert status == 1 and err != ""
    assert good.pop("seconds") >= 0
    assert good == {
        "input": "a.png", "outputs": ["a-x2-1.png", "a-x2-2.png"], "size": [24, 18], "seed": 3, "model": "fake",
        "consistency": 0.5, "notes": [],
    }  # fmt: skip
    assert set(bad) == {"input", "outputs", "notes", "error"} and bad["outputs"] == []
    assert bad["error"].startswith("b.png: ")
    assert missing["error"] == "no such file or folder"


def test_names_of_every_kind(call: Any) -> None:
    names = ["[red]x[/red].png", "new\nline.png", "\x1b[31m.png", "日本 é.png", "-o.png", "b\udcffad.png"]
    for name in names:
        photo(name)
    status, out, err = call("upscale", "--json", "--", *names)
    assert status == 0 and [json.loads(line)["input"] for line in out.splitlines()] == names
    assert "[red]x[/red].png: 24 x 18" in err and "\x1b" not in err and "new line.png: 24 x 18" in err


def test_notes_and_warnings_are_told(call: Any, fake: Fake) -> None:
    photo("a.png")

    def warn(request: UpscaleRequest) -> None:
        warnings.simplefilter("always")
        warnings.warn("the prompt was cut after 'cat'", stacklevel=1)

    fake.before = warn
    status, out, err = call("upscale", "a.png", "--json")
    assert status == 0 and "a.png: note: the prompt was cut after 'cat'\n" in err
    assert json.loads(out)["notes"] == ["the prompt was cut after 'cat'"]


def test_errors_of_ours_never_show_a_traceback(call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png"), photo("b.png")

    def refuse(request: UpscaleRequest) -> None:
        if request.image.name == "a.png":
            raise Unsupported("prompt is set, but this model\nhas no text encoder")

    fake.before = refuse
    monkeypatch.setenv("ENLARGER_DEBUG", "1")
    status, out, err = call("upscale", "a.png", "b.png")
    assert (status, out) == (1, "b-x2.png\n") and "Traceback" not in err
    assert "error: a.png: prompt is set, but this model has no text encoder\n" in err


def test_other_errors_are_a_line_with_advice(call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png"), photo("b.png")

    def break_down(request: UpscaleRequest) -> None:
        raise ZeroDivisionError("of ours")

    fake.before = break_down
    expected = "error: a.png: unexpected ZeroDivisionError: of ours; set ENLARGER_DEBUG=1 to see where it comes from\n"
    status, _, err = call("upscale", "a.png")
    assert status == 1 and expected in err and "Traceback" not in err
    monkeypatch.setenv("ENLARGER_DEBUG", "1")
    status, _, err = call("upscale", "a.png", "b.png")
    assert status == 1 and err.count("Traceback") == 2 and "break_down" in err


@pytest.mark.parametrize("error", [CheckpointError("M: no model_index.json"), RuntimeError("odd")])
def test_a_model_that_does_not_load_ends_the_run(call: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    photo("a.png")

    def load(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("enlarger.tasks.upscale.upscale.load_upscaler", load)
    status, out, err = call("upscale", "a.png")
    said = str(error) if isinstance(error, CheckpointError) else "unexpected RuntimeError: odd; set ENLARGER_DEBUG=1"
    assert (status, out) == (1, "") and f"error: {said}" in err and "Traceback" not in err


def test_a_result_that_cannot_be_written_leaves_nothing(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(texture(8, 8, 4)).save("a.png")
    status, out, err = call("upscale", "a.png", "-o", "b.jpg")
    assert (status, out, files()) == (1, "", ["a.png"])
    assert "error: a.png: b.jpg: JPEG cannot hold colour with alpha; save as .png" in err


def test_ctrl_c_keeps_the_finished_and_ends_with_130(call: Any, fake: Fake) -> None:
    photo("a.png"), photo("b.png"), photo("c.png")

    def interrupt(request: UpscaleRequest) -> None:
        if request.image.name == "b.png":
            raise KeyboardInterrupt

    fake.before = interrupt
    status, out, err = call("upscale", "a.png", "b.png", "c.png")
    assert (status, out) == (130, "a-x2.png\n") and "interrupted: 1 of 3 files done\n" in err
    assert files() == ["a-x2.png", "a.png", "b.png", "c.png"]


def test_help_has_every_option_with_its_help_and_default(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    status, out, _ = call("upscale", "--help")
    assert status == 0
    for item in fields(UpscaleRequest):
        if item.name != "image":
            line = next(line for line in out.splitlines() if f"--{item.name.replace('_', '-')} " in line)
            assert item.metadata["limits"].help in line
    assert "[1<=x<=1000]" in out and "diffusers 75" in next(line for line in out.splitlines() if "--steps" in line)
    assert "(bundled 0.0)" in next(line for line in out.splitlines() if "--detail" in line)


def test_train_passes_on_what_it_is_given(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("enlarger.train.upscaler.train_upscaler", lambda *arguments: given.append(arguments))
    assert call("train", "upscaler")[0] == 2
    assert call("train", "upscaler", "--photos", "p", "--out", "o/m", "--steps", "3", "--seed", "0")[:2] == (0, "o/m\n")
    assert given == [(Plan(Path("p"), Path("o/m"), Path("o/m.work"), steps=3),)]
    more = ("--work", "w", "--perceptual", "j", "--start", "s", "--seed", "7", "--workers", "0")
    assert call("train", "upscaler", "--photos", "p", *more)[0] == 0
    assert given[1] == (Plan(Path("p"), Path("upscaler"), Path("w"), Path("j"), Path("s"), None, 7, 0),)


def test_evaluate_passes_on_what_it_is_given(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def evaluate(*arguments: Any) -> EvaluationTable:
        given.append(arguments[:-1])
        arguments[-1](Progress("evaluate", 1, 1))
        return EvaluationTable(({"set": "s", "psnr": 30.0},))

    monkeypatch.setattr("enlarger.evaluate.upscale.evaluate_upscale", evaluate)
    assert call("evaluate", "upscale")[0] == 2
    status, out, err = call("evaluate", "upscale", "f", "--steps", "1", "--steps", "4", "--sheet", "s.png", "--json")
    assert (status, json.loads(out)) == (0, [{"set": "s", "psnr": 30.0}]) and "f: evaluate\n" in err
    assert given == [(Evaluation(Path("f"), None, [1, 4], Path("s.png")),)]
    more = ("--judges", "j", "--degraded", "blur", "--beside", "b", "--keep", "k", "--seed", "3", "--device", "cpu")
    assert call("evaluate", "upscale", "f", "--json", *more)[0] == 0
    reported = (Path("j"), ["blur"], Path("b"), Path("k"), 3, "cpu")
    assert given[1] == (Evaluation(Path("f"), None, (), None, *reported),)


# What only a process of its own shows.


def process(code: str, *arguments: str, folder: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["upscale", "--help"], ["upscale", "--by", "0"]])
def test_no_torch_for_help(arguments: list[str], tmp_path: Path) -> None:
    code = """
        import sys, atexit
        heavy = {"torch", "numpy", "PIL", "rich.progress", "markdown_it", "rich.traceback"}
        atexit.register(lambda: print("heavy:", sorted(heavy & set(sys.modules))))
        from enlarger.cli.main import run
        run()
    """
    done = process(code, *arguments, folder=tmp_path)
    assert done.returncode == (2 if "--by" in arguments else 0), done.stderr
    assert done.stdout.endswith("heavy: []\n")


def test_whoever_wants_markdown_gets_the_real_one(tmp_path: Path) -> None:
    code = """
        import sys
        from enlarger.cli.light_help import UNUSED, import_help
        import_help()
        assert "typer.rich_utils" in sys.modules and not sys.modules.keys() & UNUSED.keys()
        from rich.markdown import Markdown
        print(Markdown("*a*").parsed is not None)
    """
    assert process(code, folder=tmp_path).stdout == "True\n"


def test_version_is_the_packages(tmp_path: Path) -> None:
    import enlarger

    assert process(HELD, "--version", folder=tmp_path).stdout == f"enlarger {enlarger.__version__}\n"


FAKE = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    import enlarger.tasks.upscale.upscale
    from enlarger.image.picture import read_picture, to_pil
    from enlarger.tasks.results.result import Progress, Result

    def load(*_):
        def upscaler(request, watch):
            image = to_pil(read_picture(request.image))
            print("started", file=sys.stderr, flush=True)
            for done in range({steps}):
                time.sleep(0.05)
                watch(Progress("denoise", done + 1, {steps}))
            return Result((image.resize((image.width * 2, image.height * 2)),), (0,), "fake")
        upscaler.scale = 2
        return upscaler

    enlarger.tasks.upscale.upscale.load_upscaler = load
    from enlarger.cli.main import run
    run()
"""


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    Image.fromarray(texture(8, 8)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", textwrap.dedent(FAKE.format(steps=1000)), "upscale", "a.png"]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    while "started" not in running.stderr.readline():
        assert running.poll() is None
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130 and "interrupted: 0 of 1 files done\n" in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "| true"])
def test_closed_streams(tmp_path: Path, closed: str) -> None:
    Image.fromarray(texture(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "run.py").write_text(textwrap.dedent(FAKE.format(steps=1)))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} run.py upscale a.png {closed}"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    assert size(tmp_path / "a-x2.png") == (16, 16)
    assert done.stdout == ("" if ">&-" in closed.split() or "|" in closed else "a-x2.png\n")


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_a_bar_with_stage_and_count(tmp_path: Path, colour: bool) -> None:
    Image.fromarray(texture(8, 8)).save(tmp_path / "a.png")
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm"} | ({} if colour else {"NO_COLOR": "1"})
    done = process(FAKE.format(steps=12), "upscale", "a.png", folder=tmp_path, env=terminal)
    assert done.stdout == "a-x2.png\n"
    assert re.search(r"a\.png: denoise.*\b\d+/12", done.stderr), done.stderr
    assert bool(re.search(r"\x1b\[3\dm", done.stderr)) == colour


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = """
        import sys
        import enlarger
        assert "upscale" in dir(enlarger) and "torch" not in sys.modules
        try:
            enlarger.enlarge
        except AttributeError as error:
            print(error)
        assert callable(enlarger.upscale) and "torch" in sys.modules
        assert all(hasattr(enlarger, name) for name in enlarger.__all__)
    """
    done = process(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("module 'enlarger' has no attribute 'enlarge'; it has AsyncClient, ")


def test_input_error_is_the_requests_own() -> None:
    with pytest.raises(InputError, match=r"by is nan, expected 1 to 16"):
        UpscaleRequest(image=None, by=float("nan"))
