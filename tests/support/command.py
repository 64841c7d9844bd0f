"""The command line run in this process with a fast stand-in for the upscaler; `fake` and `call` become fixtures."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from enlarger.cli.main import run
from enlarger.image.picture import read_picture, to_pil
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.result import Progress, ProgressCallback, Result
from tests.support.pictures import texture


class Fake:
    """Enlarges by nearest neighbour, and remembers what it was asked for."""

    scale = 2
    kind: Any = None

    def __init__(self) -> None:
        self.loaded: list[tuple[Any, ...]] = []
        self.requests: list[UpscaleRequest] = []
        self.before: Callable[[UpscaleRequest], None] = lambda request: None

    def load(self, *arguments: Any) -> "Fake":
        self.loaded.append(arguments)
        return self

    def __call__(self, request: UpscaleRequest, watch: ProgressCallback) -> Result:
        self.requests.append(request)
        self.before(request)
        picture = read_picture(request.image)
        for done in range(3):
            watch(Progress("denoise", done + 1, 3))
        size = (round(picture.width * request.by), round(picture.height * request.by))
        images = tuple(to_pil(picture).resize(size, Image.Resampling.NEAREST) for _ in range(request.count))
        assert isinstance(request.seed, int)
        seeds = tuple(range(request.seed, request.seed + request.count))
        return Result(images, seeds, "fake", picture.notes, 0.5)


def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr("enlarger.tasks.upscale.upscale.load_upscaler", made.load)
    return made


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fake: Fake) -> Any:
    """Run the command in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run()
        said = capsys.readouterr()
        error = said.err
        if isinstance(exit.value.code, str):  # what the interpreter does with a text
            return 1, said.out, f"{error}{exit.value.code}\n"
        return exit.value.code or 0, said.out, error

    return call


def photo(path: str, width: int = 12, height: int = 9) -> Path:
    """A small photo in the current folder."""
    made = Path(path)
    made.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(width, height)).save(made)
    return made


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())
