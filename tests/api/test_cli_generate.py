"""The verbs generate, refine and depth: with tiny models, and with stand-ins for names, streams and exit statuses."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger import DepthRequest, GenerateRequest, InputError, RefineRequest
from enlarger.cli.generate import slug
from enlarger.cli.main import run
from enlarger.cli.options import describe_runtime
from enlarger.image.picture import read_picture, to_pil
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.tasks.latent_diffusion.sampling import NetworkCalls, SamplingReport
from enlarger.tasks.results.result import Progress, ProgressCallback, Result
from tests.support import tiny, tiny_depth, tiny_xl
from tests.support.pictures import texture

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


SEED_LINE = "seed 0, drawn at random; --seed 0 makes the same again\n"


class Fake:
    """Gives grey pictures, or back what it got, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[tuple[Any, ...]] = []
        self.requests: list[Any] = []
        self.before: Callable[[Any], None] = lambda request: None

    def load(self, *arguments: Any, **more: Any) -> "Fake":
        self.loaded.append((*arguments, *more.values()))
        return self

    def explain(self, request: GenerateRequest) -> SamplingReport:
        return SamplingReport((NetworkCalls(1, "base", 3.0, 0.0, 1),), len(request.prompt))

    def target_size(self, request: GenerateRequest) -> tuple[int, int]:
        return round(1024 * request.upscale), round(1024 * request.upscale)

    def __call__(self, request: Any, watch: ProgressCallback) -> Result:
        self.requests.append(request)
        self.before(request)
        watch(Progress("denoise", 1, 1))
        image = getattr(request, "image", None)
        made = Image.new("RGB", (12, 9), "grey") if image is None else to_pil(read_picture(image))
        return Result((made,) * request.count, tuple(range(request.seed, request.seed + request.count)), "fake")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    for name, loader in (("text_to_image", "generator"), ("image_to_image", "refiner"), ("depth", "depth")):
        monkeypatch.setattr(f"enlarger.tasks.{name}.load_{loader}", made.load)
    return made


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secrets.randbelow", lambda most: 0)  # the seed where none is given

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run()
        said = capsys.readouterr()
        if isinstance(exit.value.code, str):  # what the interpreter does with a text
            return 1, said.out, f"{said.err}{exit.value.code}\n"
        return exit.value.code or 0, said.out, said.err

    return call


def photo(path: str, width: int = 24, height: int = 16) -> Path:
    made = Path(path)
    made.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(width, height)).save(made)
    return made


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_text_to_a_picture_of_twice_the_size_without_pixels_between(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, one command: the latents go into the x2 upscaler, and one picture is decoded."""
    decoded: list[int] = []
    decode = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, x: decoded.append(x.shape[-1]) or decode(self, x))
    status, out, err = call(
        "generate", "a boat", "--model", tiny.sd1_folder(), "--upscale", "2", "--upscaler", tiny.x2_folder(), "-o",
        "boat.png", "--steps", "2", "--upscale-steps", "2", "--device", "cpu",
    )  # fmt: skip
    assert (status, out) == (0, "boat.png\n"), err
    assert size("boat.png") == (128, 128) and decoded == [16]
    assert "128 x 128 in" in err and "denoise" not in err


def test_base_and_refiner_and_their_plan(call: Any) -> None:
    models = ("--model", tiny_xl.base_folder(), "--refiner", tiny_xl.refiner_folder(), "--device", "cpu")
    status, out, err = call("generate", "a boat", *models, "--steps", "3", "--handoff", "0.5", "--explain")
    assert (status, files()) == (0, []), err
    runtime = describe_runtime("cpu", "auto", "torch")["runtime"]
    assert out.splitlines()[: len(runtime)] == [f"{name} {about}" for name, about in runtime.items()]
    assert [line.split()[1] for line in out.splitlines()[len(runtime) + 1 : -1]] == ["base", "base", "refiner"]
    assert out.splitlines()[-1] == "calls of the networks for 1 picture: 3"
    status, out, err = call("generate", "a boat", *models, "--steps", "3", "--handoff", "0.5")
    assert (status, out, size("a-boat-0.png")) == (0, "a-boat-0.png\n", (64, 64)), err
    status, out, err = call("generate", "a", "--model", tiny_xl.base_folder(), "--upscale", "2", "--upscaler",
                            tiny.x2_folder(), "--device", "cpu")  # fmt: skip
    assert (status, out) == (1, "") and "found latents of sdxl for the upscaler" in err


def test_refine_and_depth_with_models(call: Any) -> None:
    photo("a.png")
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save("map.png")
    common = ("--steps", "3", "--device", "cpu", "--strength", "0.8", "--prompt", "a cat")
    assert call("refine", "a.png", "--model", tiny.sd1_folder(), *common)[:2] == (0, "a-refined.png\n")
    depth = ("depth", "a.png", "--model", tiny_depth.depth_folder(), *common)
    assert call(*depth, "--depth", "map.png")[:2] == (0, "a-depth.png\n")
    assert call(*depth, "-o", "out/b.jpg")[:2] == (0, "out/b.jpg\n")
    assert {size(name) for name in ("a-refined.png", "a-depth.png", "out/b.jpg")} == {(24, 16)}
    status, _, err = call("refine", "a.png", "--model", tiny_depth.depth_folder(), "--overwrite", *common)
    assert status == 1 and err.endswith("a checkpoint for depth; use enlarger.depth\n")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["a boat"], ["a-boat-0.png"]),
        (["a boat", "--seed", "7", "--count", "2"], ["a-boat-7.png", "a-boat-8.png"]),
        (["a boat", "a boat", "--count", "2"], [f"a-boat-{k}.png" for k in range(4)]),
        (["a", "b", "-o", "out"], ["out/a-0.png", "out/b-1.png"]),
        (["a", "-o", "b.webp", "--count", "2"], ["b-1.webp", "b-2.webp"]),
        (["a", "-o", "deep/b.jpg"], ["deep/b.jpg"]),
        (["--", "-a/../b"], ["a-b-0.png"]),
        ([""], ["picture-0.png"]),
        (["a", "--seed", "-1", "--format", "webp"], ["a-0.webp"]),
        (["a", "-o", "out", "--format", "jpg", "--count", "2"], ["out/a-0.jpg", "out/a-1.jpg"]),
        (["a", "-o", "b.jpeg", "--format", "jpg", "--quality", "50"], ["b.jpeg"]),
    ],
)
def test_names_of_pictures(call: Any, fake: Fake, arguments: list[str], written: list[str]) -> None:
    status, out, err = call("generate", "--model", "m", *arguments)
    assert (status, out.splitlines(), files()) == (0, written, sorted(written)), err


def test_a_seed_that_is_drawn_is_said_and_another_kind_is_refused(call: Any, fake: Fake) -> None:
    assert call("generate", "a", "--model", "m")[2].startswith(SEED_LINE)
    assert SEED_LINE not in call("generate", "a", "--model", "m", "--seed", "3")[2]
    photo("p.png")
    assert call("refine", "p.png", "--model", "m", "--seed", "-1")[2].startswith(SEED_LINE)
    status, _, err = call("generate", "a", "--model", "m", "-o", "b.png", "--format", "jpg")
    assert status == 2 and "name different kinds of file; give one" in " ".join(err.replace("│", " ").split())


def test_slugs() -> None:
    assert slug("A (red:1.2) Boat, 4k!") == "a-red-1-2-boat-4k" and slug("../..") == "picture"
    assert len(slug("word " * 99)) <= 40 and not slug("word " * 99).endswith("-")
    assert slug("Ein schönes Haus") == "ein-schönes-haus"


def test_prompts_of_a_file(call: Any, fake: Fake) -> None:
    Path("prompts.txt").write_text("a boat\n\n  two dogs \n", "utf-8")
    status, out, err = call("generate", "first", "--prompts", "prompts.txt", "--model", "m", "--seed", "5", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0, err
    assert [(one["prompt"], one["seed"], one["outputs"]) for one in found] == [
        ("first", 5, ["first-5.png"]), ("a boat", 6, ["a-boat-6.png"]), ("two dogs", 7, ["two-dogs-7.png"]),
    ]  # fmt: skip
    assert len(fake.loaded) == 1


def test_options_reach_the_requests(call: Any, fake: Fake) -> None:
    """Every field of a request is an option with its name."""
    given: dict[str, Any] = {
        "negative": "dog", "width": 64, "height": 32, "steps": 4, "guidance": 0.0, "rescale": 0.5, "seed": 7,
        "count": 2, "solver": "heun", "handoff": 1.5, "score": 7.0, "negative_score": 1.0, "upscale": 3.0,
        "upscale_steps": 5, "strength": 0.25, "prompt": "cat", "upscale_strength": 0.5, "memory": "2.5GB", "by": 2.0,
        "spacing": "karras",
    }  # fmt: skip
    photo("a.png")
    for verb, kind, word in (("generate", GenerateRequest, "cat"), ("refine", RefineRequest, "a.png"),
                             ("depth", DepthRequest, "a.png")):  # fmt: skip
        asked = {item.name: given[item.name] for item in fields(kind) if item.name in given}
        options = [f"--{n.replace('_', '-')}={v}" for n, v in asked.items() if (verb, n) != ("generate", "prompt")]
        has_watermark = any(item.name == "watermark" for item in fields(kind))
        options += ["--no-watermark"] * has_watermark + ["--tile"] * (verb == "generate")
        status, _, err = call(verb, word, "--model", "m", "--long-prompt", "-o", verb, *options)
        assert status == 0, err
        request = fake.requests[-1]
        assert {name: getattr(request, name) for name in asked} == asked and request.long_prompt
        assert not has_watermark or request.watermark is False
        others = {"loras", "styles", "clip_skip", "watermark"}  # which have options of their own
        assert {item.name for item in fields(kind)} - set(asked) <= {"image", "depth", "long_prompt", "tile"} | others


def test_models_reach_the_loaders(call: Any, fake: Fake) -> None:
    photo("a.png")
    photo("maps/a.png")
    common = ("--device", "cpu", "--precision", "float32", "--offload", "model")
    call("generate", "a", "--model", "m", "--refiner", "r", "--upscaler", "u", "--upscale", "2", *common)
    call("refine", "a.png", "--model", "m", *common)
    call("depth", "a.png", "--model", "m", "--depth", "maps", *common)
    call("depth", "a.png", "--model", "m", "--overwrite", *common)
    place = ("m", "cpu", "float32", "model")
    loaded = [(*place, "r", "u"), place, (*place, False), (*place, True)]
    assert fake.loaded == [(*each, "torch") for each in loaded]
    assert [getattr(request, "depth", None) for request in fake.requests] == [None, None, Path("maps/a.png"), None]


def test_nothing_is_overwritten_unasked_and_nothing_loaded_for_it(call: Any, fake: Fake) -> None:
    photo("a-boat-0.png")
    before = Path("a-boat-0.png").read_bytes()
    status, out, err = call("generate", "a boat", "--model", "m")
    assert (status, out, fake.loaded) == (1, "", []) and Path("a-boat-0.png").read_bytes() == before
    refusal = "error: a-boat: a-boat-0.png exists already; choose another --output, or replace it with --overwrite\n"
    assert err == f"{SEED_LINE}{refusal}"
    assert call("generate", "a boat", "--model", "m", "--overwrite")[:2] == (0, "a-boat-0.png\n")
    status, _, err = call("refine", "a-boat-0.png", "--model", "m", "-o", "a-boat-0.png", "--overwrite")
    assert status == 1 and "is the input a-boat-0.png; choose another --output" in err


def test_prompts_that_are_made_are_not_made_again(call: Any, fake: Fake) -> None:
    Path("prompts.txt").write_bytes("\ufeffa cat\r\na\u2028dog\x0c\n".encode())
    run = ("generate", "--model", "m", "--prompts", "prompts.txt", "--seed", "3")
    assert call(*run)[1].split() == ["a-cat-3.png", "a-dog-4.png"]
    assert [request.prompt for request in fake.requests] == ["a cat", "a\u2028dog"]
    Path("a-dog-4.png").unlink()
    status, out, err = call(*run)
    assert (status, out) == (0, "a-dog-4.png\n") and "a-cat: skipped: was made by the same command before" in err
    status, _, err = call(*run, "--steps", "9")
    assert status == 1 and "a-cat-3.png exists already" in err and len(fake.requests) == 3
    status, _, err = call(*run, "--steps", "9", "--skip-existing")
    assert (status, len(fake.loaded)) == (0, 2) and "a-cat: skipped: a-cat-3.png exists already" in err


def test_a_side_that_a_file_does_not_hold_is_refused_before_the_work(call: Any, fake: Fake) -> None:
    photo("a.png", 1200, 8)
    words = " pixels, WEBP holds at most 16,383; save as PNG, or make it smaller"
    status, _, err = call("refine", "a.png", "--model", "m", "--by", "14", "-o", "b.webp")
    assert status == 1 and f"has a side of 16,800{words}" in err
    status, _, err = call("generate", "a", "--model", "m", "--width", "8192", "--upscale", "4", "-o", "b.webp")
    assert status == 1 and f"has a side of 32,768{words}" in err and fake.loaded == []
    status, _, err = call("generate", "a", "--model", "m", "--upscale", "16", "-o", "b.webp", "--seed", "1")
    assert status == 1 and f"has a side of 16,384{words}" in err and fake.requests == []


def test_what_fails_is_a_line_and_the_others_go_on(call: Any, fake: Fake) -> None:
    def before(request: GenerateRequest) -> None:
        if request.prompt == "bad":
            raise InputError("no such thing")
        if request.prompt == "odd":
            raise RuntimeError("broken")

    fake.before = before
    status, out, err = call("generate", "bad", "odd", "good", "--model", "m")
    assert (status, out) == (1, "good-2.png\n")
    assert "error: bad: no such thing\n" in err and "error: odd: unexpected RuntimeError: broken; set" in err
    assert "2 of 3 files failed:" in err and "Traceback" not in err
    photo("a.png")
    photo("b.png")
    status, out, err = call("depth", "a.png", "b.png", "--model", "m", "--depth", ".")
    assert (status, out) == (0, "a-depth.png\nb-depth.png\n"), err
    photo("maps/b.png")
    status, out, err = call("depth", "a.png", "b.png", "--model", "m", "--depth", "maps", "--overwrite")
    assert (status, out) == (1, "b-depth.png\n") and "found 0 files named a in maps, expected one depth map" in err


def test_ctrl_c_keeps_the_finished_and_ends_with_130(call: Any, fake: Fake) -> None:
    def before(request: GenerateRequest) -> None:
        if request.prompt == "b":
            raise KeyboardInterrupt

    fake.before = before
    status, out, err = call("generate", "a", "b", "c", "--model", "m")
    assert (status, out, files()) == (130, "a-0.png\n", ["a-0.png"]) and "interrupted: 1 of 3 files done" in err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["generate", "--model", "m"], "found no prompt; give one, or --prompts FILE"),
        (["generate", "a"], "Missing option '--model'"),
        (["generate", "a", "--model", "m", "--upscaler", "u"], "--upscaler is given, but not --upscale"),
        (["generate", "a", "--model", "m", "--upscale-steps", "4"], "upscale_steps is 4, but upscale is 1"),
        (["generate", "a", "b", "--model", "m", "-o", "c.png"], "names one file, but there are several prompts"),
        (["generate", "--model", "m", "--prompts", "no.txt"], "--prompts no.txt cannot be read"),
        (["generate", "a", "--model", "m", "--width", "7"], "Invalid value for '--width'"),
        (["refine", "a.png", "--model", "m", "--strength", "2"], "Invalid value for '--strength'"),
        (["depth", "--model", "m"], "Missing argument 'INPUT...'"),
    ],
)
def test_wrong_usage_exits_2(
    call: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = call(*arguments)
    assert (status, out, fake.loaded) == (2, "", []) and error in err


def test_explaining_computes_nothing(call: Any, fake: Fake) -> None:
    status, out, _ = call("generate", "a", "b", "--model", "m", "--explain")
    assert (status, fake.requests, files()) == (0, [], [])
    assert out.splitlines()[-1] == "calls of the networks for 2 pictures: 2"
    _, out, _ = call("generate", "a", "--model", "m", "--explain", "--json")
    network_call = {"step": 1, "who": "base", "start": 3.0, "stop": 0.0, "count": 1}
    runtime = describe_runtime("auto", "auto", "torch")["runtime"]
    assert json.loads(out) == {"network_calls": [network_call], "pictures": 1, "calls": 1, "runtime": runtime}


def test_what_is_known_before_the_work_is_said_before_it(call: Any) -> None:
    models = ("--model", tiny.sd1_folder(), "--upscaler", tiny.x2_folder(), "--steps", "2", "--device", "cpu")
    status, out, err = call("generate", "a", *models, "--upscale", "1.5", "--upscale-steps", "1", "-o", "a.png")
    assert (status, out, size("a.png")) == (0, "a.png\n", (96, 96)), err
    status, _, err = call("generate", "a", *models[:2], "--upscale", "2", "--upscale-steps", "3", "-o", "b.png")
    assert status == 1 and "denoise" not in err and "the bundled upscaler takes no steps" in err
    status, _, err = call(
        "generate", "a", *models, "--upscale", "4", "--width", "4104", "--height", "64", "-o", "c.webp"
    )
    assert status == 1 and "denoise" not in err and "a side of 16,416 pixels, WEBP holds at most 16,383" in err
