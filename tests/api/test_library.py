"""The library as people use it: a loaded model called with a picture, what a picture may be, seeds, bars, forks."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import enlarger
from enlarger import GenerateRequest, InputError, UpscaleRequest
from enlarger.runtime import runtime
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.results.progress_bar import progress_bar
from enlarger.tasks.results.result import Progress, no_progress
from tests.support import tiny

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def upscaler() -> enlarger.Upscaler:
    return enlarger.load_upscaler(device="cpu")


def test_a_loaded_model_takes_a_picture_as_well_as_a_request(upscaler: enlarger.Upscaler) -> None:
    picture = tiny.picture(20, 30)
    asked = upscaler(UpscaleRequest(picture, by=1.5, detail=0.5)).image
    assert upscaler(picture, by=1.5, detail=0.5).image.tobytes() == asked.tobytes()
    assert len(upscaler([picture, picture]).images) == 2
    with pytest.raises(InputError, match="found a UpscaleRequest and by beside it; put them into the request"):
        upscaler(UpscaleRequest(picture), by=3)
    with pytest.raises(InputError, match="unexpected keyword argument 'bye'"):
        upscaler(picture, bye=3)  # pyright: ignore[reportCallIssue] - wrong on purpose


def test_a_photo_is_made_consistent_where_that_adds_no_ripples(upscaler: enlarger.Upscaler) -> None:
    """Near a factor of 1 the reduction keeps hardly anything of the finest detail, which would be made up for."""
    picture = tiny.picture(41, 30)
    for by, is_held in ((1.02, False), (1.3, False), (1.5, True), (2, True), (3, True)):
        found = upscaler(picture, by=by)
        assert found.residual is not None and found.notes == ()
        assert (found.residual[1] < 0.6 * found.residual[0]) == is_held, by
    asked = upscaler(picture, by=1.3, consistent=True)
    assert asked.residual is not None and asked.residual[1] < asked.residual[0]
    assert asked.notes[0] == "made consistent, as asked; by a factor below 1.5 that can put ripples beside edges"


def test_other_models_do_too() -> None:
    generator = enlarger.load_generator(tiny.sd1_folder(), device="cpu")
    size: dict[str, Any] = {"width": 64, "height": 64, "steps": 1}
    made = generator("a cat", seed=3, **size).image
    assert made.tobytes() == generator(GenerateRequest("a cat", seed=3, **size)).image.tobytes()
    refined = enlarger.Refiner(generator.model)(made, prompt="a dog", steps=2, strength=0.5)
    assert refined.image.size == (64, 64)
    painted = enlarger.Inpainter(generator.model)(made, mask=made.convert("L"), prompt="a dog", steps=1)
    assert painted.image.size == (64, 64)


def test_bytes_and_open_files_are_pictures(upscaler: enlarger.Upscaler, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    tiny.picture(20, 30).save(path)
    expected = upscaler(path).image.tobytes()
    with path.open("rb") as file:
        assert upscaler(file).image.tobytes() == expected
        assert upscaler(file).image.tobytes() == expected, "the file stands where it stood"
    for source in (path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes())):
        assert enlarger.upscale(source, device="cpu").image.tobytes() == expected
    with path.open() as text, pytest.raises(InputError, match=r"a\.png: is open as text"):
        upscaler(text)  # pyright: ignore[reportArgumentType] - wrong on purpose
    with pytest.raises(InputError, match=r"the bytes: .* is not a picture|the bytes: "):
        upscaler(b"no picture")


def test_no_seed_is_a_random_one_that_the_request_tells() -> None:
    seeds = {request.seed for request in (GenerateRequest("a", seed=None) for _ in range(4))}
    assert len(seeds) == 4
    request = UpscaleRequest(tiny.picture(8, 8), seed=None)
    assert isinstance(request.seed, int)
    generator = enlarger.load_generator(tiny.sd1_folder(), device="cpu")
    options: dict[str, Any] = {"width": 64, "height": 64, "steps": 1}
    made = generator("a cat", seed=None, **options)
    assert generator("a cat", seed=made.seeds[0], **options).image.tobytes() == made.image.tobytes()
    assert GenerateRequest("a").seed == 0


def test_a_model_does_not_work_in_a_fork_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    holder, module = Runtime.here(), torch.nn.Linear(1, 1)
    with holder.hold(module):
        pass
    child = os.fork()
    if child == 0:
        try:
            with holder.hold(module):
                os._exit(1)
        except InputError as error:
            os._exit(0 if "loaded before this process was forked" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.setattr(runtime, "_num_forks", 1)
    with Runtime.here().hold(module), Runtime().hold(module):
        pass


class Display:
    """What a notebook shows, the newest text last."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, data: dict[str, str], **_: Any) -> "Display":
        self.shown.append(data["text/plain"])
        return self

    def update(self, data: dict[str, str], **_: Any) -> None:
        self.shown.append(data["text/plain"])


def test_a_notebook_shows_a_bar_and_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(no_progress, None) as watch:
        assert watch is no_progress
    shell, page = type("ZMQInteractiveShell", (), {})(), Display()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    with progress_bar(no_progress, None) as watch:
        watch(Progress("enlarge", 1, 2))
    assert page.shown == ["", "enlarge 1/2", ""]
    with progress_bar(no_progress, False) as watch:
        assert watch is no_progress
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    own: list[Progress] = []
    with progress_bar(own.append, None) as watch:
        assert watch == own.append
    enlarger.upscale(tiny.picture(16, 16), device="cpu")
    assert "1/1" in capsys.readouterr().err
    enlarger.upscale(tiny.picture(16, 16), device="cpu", progress=False)
    assert capsys.readouterr().err == ""
