"""A kind of model is data: a row of the table and the one file of its task, and everything knows it."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import enlarger
from enlarger.checkpoint.families import FAMILIES, KINDS
from enlarger.requests import DEFAULTS
from tests.support import nearest_upscaler, tiny
from tests.support.service import FOLDERS, HTTP, running

ROW = """
    "nearest": ModelKind(
        label="the nearest neighbour",
        purpose="upscaling by 2, enlarger.upscale",
        trained_for="x2 upscaling",
        service_kind="nearest",
        loader="enlarger.tasks.upscale.nearest:load",
        tasks={"upscale": TaskSpec("upscale/bundled")},
        pipeline_class="NearestUpscale",
        unused_options=("prompt", "steps", "guidance"),
    ),
"""
BEFORE_THE_ROWS = "KINDS: dict[str, ModelKind] = {\n"
LOAD = """
import sys
import enlarger
from enlarger.cli.main import run
from enlarger.requests import UpscaleRequest
loaded = enlarger.load(sys.argv[1], device="cpu")
loaded(UpscaleRequest("photo.png")).image.save("loaded.png")
enlarger.upscale("photo.png", model=sys.argv[1], device="cpu").image.save("upscaled.png")
print(loaded.kind.description)
sys.argv = ["enlarger", "inspect", sys.argv[1], "--json"]
run()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with one row more and one file more; all others are links to what they are."""
    root = tmp_path_factory.mktemp("package")
    source, copy = Path(enlarger.__file__).parent, root / "enlarger"
    shutil.copytree(source, copy, copy_function=os.symlink)
    families = copy / "checkpoint" / "families.py"
    text = families.read_text()
    assert text.count(BEFORE_THE_ROWS) == 1
    families.unlink()
    families.write_text(text.replace(BEFORE_THE_ROWS, BEFORE_THE_ROWS + ROW.lstrip("\n")))
    shutil.copy(nearest_upscaler.__file__, copy / "tasks" / "upscale" / "nearest.py")
    return root


@pytest.fixture(scope="module", autouse=True)
def in_every_child(package: Path) -> object:
    """Processes that are started meanwhile import that package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "NearestUpscale"}))
    return folder


def doubled(image: Image.Image) -> np.ndarray:
    return np.asarray(image).repeat(2, 0).repeat(2, 1)


def test_load_a_request_and_inspect(model: Path, tmp_path: Path) -> None:
    image = tiny.picture(24, 16)
    image.save(tmp_path / "photo.png")
    command = [sys.executable, "-c", LOAD, str(model)]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=100)
    description, inspected = run.stdout.splitlines()
    assert description == "the nearest neighbour (upscaling by 2, enlarger.upscale)"
    assert json.loads(inspected)["kind"] == description
    for name in ("loaded.png", "upscaled.png"):
        assert (np.asarray(Image.open(tmp_path / name)) == doubled(image)).all()


def test_the_service(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOLDERS, "nearest", lambda: model)
    monkeypatch.chdir(tmp_path)  # `python -m` looks for the package here first
    image = tiny.picture(24, 16)
    image.save(tmp_path / "photo.png")
    with running(models=("nearest",)) as served:
        found = served.get("/v1/models/nearest").json()["enlarger"]
        assert (found["kind"], found["tasks"], found["error"]) == ("nearest", ["upscale"], None)
        assert found["unused_options"] == ["prompt", "steps", "guidance"]
        fields = {"model": "nearest", "prompt": "a boat", "response_format": "b64_json"}
        with (tmp_path / "photo.png").open("rb") as stream:
            answer = HTTP.post(f"{served.url}/v1/images/upscale", data=fields, files={"image": stream})
    assert answer.status_code == 200, answer.text
    about = answer.json()
    assert (about["data"][0]["width"], about["data"][0]["height"]) == (48, 32)
    assert about["enlarger"]["warnings"] == ["the prompt changes nothing: nearest has no use for it"]


def entry_points() -> list[str]:
    tasks = [how.factory for kind in KINDS.values() for how in kind.tasks.values() if how.factory is not None]
    return sorted({*tasks, *(kind.loader for kind in KINDS.values())})


@pytest.mark.parametrize("path", entry_points())
def test_every_entry_point_is_there(path: str) -> None:
    module, _, name = path.partition(":")
    assert callable(getattr(import_module(module), name))


def test_every_row_is_whole() -> None:
    for name, kind in KINDS.items():
        assert kind.tasks and all(how.defaults in DEFAULTS for how in kind.tasks.values()), name
        assert bool(kind.layout) == bool(kind.modelspec) == (name in FAMILIES), name
