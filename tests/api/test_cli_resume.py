"""A folder that was left half done, kinds of files to write, and what killed runs leave."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from enlarger.checkpoint.model_folder import ListedFile, ModelFolder
from enlarger.cli.loading import Loading
from enlarger.cli.resume import carries, fingerprint_of_run
from enlarger.image.atomic_write import atomic_write
from enlarger.requests import RefineRequest, UpscaleRequest
from enlarger.tasks.loading.load import Checkpoint
from tests.support import command
from tests.support.command import Fake, photo, size

fake, call = pytest.fixture(command.fake), pytest.fixture(command.call)
pytestmark = pytest.mark.filterwarnings("always::UserWarning")  # what a file cannot hold is told as a note


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "same"])
def test_what_the_same_command_made_is_done(call: Any, fake: Fake, kind: str) -> None:
    photo("f/a.jpg"), photo("f/a.png"), photo("f/b.tif")
    run = ("upscale", "f", "-o", "out", "--format", kind)
    first = call(*run)
    made = first[1].split()
    assert len(made) == 3 == len(set(made)), first
    Path(made[0]).unlink()
    status, out, err = call(*run)
    assert (status, out.split(), len(fake.requests)) == (0, made[:1], 4)
    assert "f/b.tif: skipped: was made by the same command before\n" in err
    status, out, _ = call(*run, "--json")
    assert (status, len(fake.loaded)) == (0, 2) and all(json.loads(line)["skipped"] for line in out.splitlines())


def test_a_result_larger_than_pillow_opens_is_known_as_done(
    call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("a.png")
    assert call("upscale", "a.png", "-o", "out")[0] == 0
    width, height = size("out/a-x2.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height // 2 - 1)
    status, _, err = call("upscale", "a.png", "-o", "out")
    assert (status, len(fake.requests)) == (0, 1) and "skipped: was made by the same command before\n" in err
    assert call("inspect", "out/a-x2.png")[0] == 0 and width * height // 2 - 1 == Image.MAX_IMAGE_PIXELS


def test_a_large_file_that_is_none_of_ours_is_not_decoded(call: Any, tmp_path: Path) -> None:
    header = b"IHDR" + (60000).to_bytes(4) * 2 + bytes((8, 2, 0, 0, 0))
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    parts = [(len(one) - 4).to_bytes(4) + one + zlib.crc32(one).to_bytes(4) for one in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for verb in ("inspect", "replay"):
        status, _, err = call(verb, "a.png")
        assert status == 1 and "a.png: 60000 x 60000: has 3,600,000,000 pixels, at most 178,956,970 are read" in err
    assert not carries(tmp_path / "a.png", "0" * 32)


@pytest.mark.parametrize("change", [["--by", "2.0", "--seed", "1"], ["--quality", "80"], ["--model", "other"], "input"])
def test_what_another_input_or_command_made_is_an_error(call: Any, fake: Fake, change: Any) -> None:
    photo("a.jpg")
    assert call("upscale", "a.jpg", "-o", "out")[0] == 0
    if change == "input":
        photo("a.jpg", 14, 9)
    status, out, err = call("upscale", "a.jpg", "-o", "out", *([] if change == "input" else change))
    assert (status, out, len(fake.requests)) == (1, "", 1) and "out/a-x2.png exists already; choose another" in err
    status, out, err = call("upscale", "a.jpg", "-o", "out", "--skip-existing", *([] if change == "input" else change))
    assert (status, out, len(fake.requests)) == (0, "", 1) and "a.jpg: skipped: out/a-x2.png exists already" in err


def test_of_several_results_the_missing_one_is_made(call: Any, fake: Fake) -> None:
    photo("a.png")
    run = ("upscale", "a.png", "--count", "2", "--model", "M")
    first = call(*run)
    Path("a-x2-1.png").unlink()
    status, out, err = call(*run)
    assert (status, out) == first[:2], err
    Path("a-x2-2.png").write_text("mine")
    assert call(*run)[0] == 1 and Path("a-x2-2.png").read_text() == "mine"


@pytest.mark.parametrize("change", ["--precision", "--engine", "weights"])
def test_numbers_and_weights_are_a_part_of_the_command(call: Any, fake: Fake, change: str) -> None:
    photo("a.png"), Path("m").mkdir(), Path("m/weights.safetensors").write_bytes(b"1")
    run = ["upscale", "a.png", "--model", "m"]
    assert call(*run)[0] == 0 and "skipped: was made by the same command before" in call(*run)[2]
    if change == "weights":
        Path("m/weights.safetensors").write_bytes(b"22")
    others = {"--precision": ["--precision", "float32"], "--engine": ["--engine", "compile"], "weights": []}[change]
    status, _, err = call(*run, *others)
    assert (status, len(fake.requests)) == (1, 1) and "a-x2.png exists already; choose another" in err


def test_loras_and_styles_are_a_part_of_the_command(tmp_path: Path) -> None:
    for name in ("m", "one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"1")
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("m", "one", "two")}
    listed = tuple(ListedFile(name, paths[name], "lora", "", 1) for name in ("one", "two"))
    loading = Loading(Checkpoint(paths["m"], models=ModelFolder(tmp_path, listed)))

    def known(prompt: str) -> list[str]:
        return [state[0] for one in loading.identity(RefineRequest(None, prompt))["files"] for state in one]

    assert known("a hill") == ["m.safetensors"] and known("a <lora:two:1>") == ["m.safetensors", "two.safetensors"]
    alone = Loading(Checkpoint(paths["m"], loras=[(paths["one"], 0.5)]))
    before = alone.identity(RefineRequest(None))
    paths["one"].write_bytes(b"retrained")
    assert before != alone.identity(RefineRequest(None))


def kind_of(name: str) -> str | None:
    with Image.open(name) as image:
        return image.format


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["f", "--format", "webp"], {"f/a-x2.webp": "WEBP", "f/b-x2.webp": "WEBP", "f/c-x2.webp": "WEBP"}),
        (["f", "--format", "jpg"], {"f/a-x2.jpg": "JPEG", "f/b-x2.jpg": "JPEG", "f/c-x2.jpg": "JPEG"}),
        (["f", "--format", "same"], {"f/a-x2.JPG": "JPEG", "f/b-x2.tif": "TIFF", "f/c-x2.png": "PNG"}),
        (["f/b.tif", "-o", "d.jpg", "--format", "jpg"], {"d.jpg": "JPEG"}),
    ],
)
def test_kinds_of_files(call: Any, arguments: list[str], written: dict[str, str]) -> None:
    photo("f/a.JPG"), photo("f/b.tif"), photo("f/c.gif")
    status, out, err = call("upscale", *arguments)
    assert (status, out.split()) == (0, list(written)), err
    assert {name: kind_of(name) for name in written} == written
    assert ("f/c.gif: note: .gif is no kind that is written: PNG instead" in err) == ("same" in arguments)


def test_two_kinds_for_one_file_are_wrong_usage(call: Any) -> None:
    photo("a.png")
    status, _, err = call("upscale", "a.png", "-o", "b.jpg", "--format", "webp")
    assert status == 2 and "name different kinds of" in err


def test_quality_is_the_encoders(call: Any) -> None:
    photo("a.png", 64, 64)
    sizes = [
        len(Path(call("upscale", "a.png", "-o", f"{q}.jpg", "--quality", q)[1].strip()).read_bytes()) for q in "19"
    ]
    assert sizes[0] < sizes[1]


def test_what_a_killed_run_left_is_removed_and_what_runs_is_not(call: Any) -> None:
    photo("a.png")
    with atomic_write(Path("b.png")) as stream:
        running = Path(stream.name)
        stale = running.with_name(running.name.replace(f"-{os.getpid()}-", "-999999999-"))
        stale.write_bytes(b"half"), Path(".other.part").write_bytes(b"")
        assert call("upscale", "a.png")[0] == 0
        assert running.exists() and not stale.exists() and Path(".other.part").exists()
    assert size("a-x2.png") == (24, 18)


def test_what_is_beside_the_input_is_a_part_of_what_a_result_was_made_of(tmp_path: Path) -> None:
    source, depth_map = tmp_path / "a.png", tmp_path / "map.png"
    source.write_bytes(b"picture")
    depth_map.write_bytes(b"near")
    fingerprint = fingerprint_of_run(UpscaleRequest(None), beside=lambda path: (depth_map,))
    first = fingerprint(source, 0)
    assert first == fingerprint(source, 0) != fingerprint_of_run(UpscaleRequest(None))(source, 0)
    depth_map.write_bytes(b"far")
    assert fingerprint(source, 0) != first
