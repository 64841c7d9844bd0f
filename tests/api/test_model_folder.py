"""A folder of models: what lies in it, LoRAs and styles by name for each request, and the layer of the text encoder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

import enlarger
from enlarger import Checkpoint, GenerateRequest, InputError, RefineRequest, read_model_folder
from enlarger.cli.loading import file_of
from enlarger.diffusion.guidance import Guidance
from enlarger.image.generation import read_metadata
from enlarger.service.problems import ProblemError
from enlarger.service.routes.parsed_request import parse_generation
from enlarger.service.routes.request_models import Generation
from enlarger.service.settings import Bounds, load_settings
from enlarger.service.worker.folder_models import adapter_names, models_of_folder, open_model_folder
from enlarger.service.worker.model_cache import CachedModel
from enlarger.service.worker.model_requests import check_prompt_tokens
from enlarger.tasks.latent_diffusion.conditioning import PromptSpec
from enlarger.tasks.loading.adapters import adapt
from tests.support import command, tiny
from tests.support.close import assert_close
from tests.support.model_folders import web_ui_folder

call, fake = pytest.fixture(command.call), pytest.fixture(command.fake)
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance": 2.0}
PROMPT = "a lighthouse"


@pytest.fixture(scope="module")
def generator() -> enlarger.Generator:
    return enlarger.load_generator(Checkpoint("tiny", models=read_model_folder(web_ui_folder())))


def test_files_are_told_apart_by_shapes() -> None:
    found = {file.name: (file.role, file.holds) for file in read_model_folder(web_ui_folder()).files if not file.error}
    assert found == {
        "bend": ("lora", "a LoRA with kohya's names"),
        "fine": ("vae", "an autoencoder of Stable Diffusion 1, 2 or XL"),
        "painter": ("model", "Stable Diffusion 1 inpainting"),
        "thing": ("textual_inversion", "a textual inversion"),
        "tiny": ("model", "Stable Diffusion 1"),
        "wave": ("lora", "a LoRA with kohya's names"),
    }
    errors = {file.name: file.error for file in read_model_folder(web_ui_folder()).files if file.error}
    assert list(errors) == ["old", "cut"]
    assert "allow_pickle" in str(errors["old"])
    with_pickles = read_model_folder(web_ui_folder(), allow_pickle=True)
    assert with_pickles.find("old", "lora").name == "old.pt"


@pytest.mark.parametrize("name", ["wave", "WAVE", "wave.safetensors", "loras/sub/wave", "loras/sub/wave.safetensors"])
def test_a_file_is_found_by_each_of_its_names(name: str) -> None:
    assert read_model_folder(web_ui_folder()).find(name, "lora") == web_ui_folder() / "loras/sub/wave.safetensors"


def test_names_that_two_files_share_have_their_folders(tmp_path: Path) -> None:
    for place in ("Lora/a", "Lora/b"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(web_ui_folder() / "Lora" / "bend.safetensors", tmp_path / place)
    (tmp_path / "Lora" / "loop").symlink_to(tmp_path)
    folder = read_model_folder(tmp_path)
    assert [file.name for file in folder.files] == ["Lora/a/bend", "Lora/b/bend"]
    with pytest.raises(InputError, match=r"2 files of .* are called 'bend'; say which: Lora/a/bend, Lora/b/bend"):
        folder.find("bend", "lora")


def test_what_is_not_there_is_named_with_what_is_like_it() -> None:
    folder = read_model_folder(web_ui_folder())
    with pytest.raises(InputError, match="no lora is called 'bent'; there are 2, bend among them"):
        folder.find("bent", "lora")
    with pytest.raises(InputError, match=r"old.pt: "):
        folder.find("old", "lora")
    with pytest.raises(InputError, match="no such folder"):
        read_model_folder(web_ui_folder() / "nothing")
    with pytest.raises(enlarger.CheckpointError, match="no model is called 'tinny'; there are 2, tiny among them"):
        enlarger.load(Checkpoint("tinny", models=folder))


def made(generator: enlarger.Generator, prompt: str, **options: Any) -> torch.Tensor:
    latents = generator(GenerateRequest(prompt=prompt, seed=3, **(SIZE | options))).latents
    assert latents is not None
    return latents.values


def test_a_lora_of_a_prompt_is_the_lora_of_a_checkpoint(generator: enlarger.Generator) -> None:
    plain = made(generator, PROMPT)
    loaded = enlarger.load_generator(Checkpoint("tiny", models=generator.model.model_folder, loras=[("bend", 0.8)]))
    expected = made(loaded, PROMPT)
    assert float((plain - expected).abs().max()) > 0.01
    assert_close(made(generator, f"{PROMPT} <lora:bend:0.8>"), expected, 0)
    assert_close(made(generator, f"{PROMPT}, <lora:bend:0.8:0.8>"), expected, 0)
    assert_close(made(generator, PROMPT, loras=[("bend", 0.8)]), expected, 0)
    assert_close(made(generator, PROMPT, loras=[(web_ui_folder() / "Lora/bend.safetensors", 0.8)]), expected, 0)
    assert_close(made(generator, f"{PROMPT} <lora:bend:0>"), plain, 0)
    assert_close(made(generator, PROMPT), plain, 0)


def test_text_encoder_and_unet_have_scales_of_their_own(generator: enlarger.Generator) -> None:
    only_text, only_unet, both = (made(generator, f"{PROMPT} <lora:bend:{tag}>") for tag in ("1:0", "0:1", "1"))
    assert len({float(each.sum()) for each in (only_text, only_unet, both, made(generator, PROMPT))}) == 4
    request = GenerateRequest(prompt=f"{PROMPT} <lora:bend:1:0>", **SIZE)
    model, adapted = adapt(generator.model, request)
    assert (adapted.prompt, adapted.loras) == (PROMPT, ())
    assert model.latent_diffusion.vae is generator.model.vae


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt": "<lora:bent:1>"}, "no lora is called 'bent'"),
        ({"prompt": "<lora:bend:loud>"}, "expected a number as the scale: <lora:name:0.8>"),
        ({"prompt": "<lora::1>"}, "expected <lora:name:0.8>"),
        ({"prompt": "<lora:bend:1:1:1>"}, "expected <lora:name:0.8>"),
        ({"prompt": "<lora:bend:99>"}, "has a scale of 99, expected -10 to 10"),
        ({"prompt": "<hypernet:old:1>"}, "hypernetworks are not supported"),
        ({"prompt": "a", "negative": "<lora:bend:1>"}, "the negative prompt names a LoRA"),
        ({"prompt": ["a <lora:bend:1>", "b"]}, "the prompts of one request name different LoRAs"),
        ({"prompt": "a" + "<lora:bend:1>" * 17}, "found 17 LoRAs, expected at most 16"),
        ({"prompt": "a", "loras": [("/etc/passwd", 1.0)]}, "no lora is called '/etc/passwd'"),
        ({"prompt": "a", "styles": ["oily"]}, "no style is called 'oily'; there are 3, oil"),
        ({"prompt": "a", "styles": ["oil", "warm", "oil"]}, "the style 'oil' is named twice, expected each once"),
        ({"prompt": "a" * 31_990, "styles": ["oil"]}, "with its styles the prompt has 32,0.. characters, expected at"),
        ({"prompt": ["a", "b", "c"], "negative": ["n", "m"], "styles": ["oil"]}, "2 values of negative for 3 images"),
        ({"prompt": "a", "clip_skip": 3}, "clip_skip is 3, expected 1 to 2 for Stable Diffusion 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_added_is_refused(generator: enlarger.Generator, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        generator(GenerateRequest(**SIZE, **options))


def test_a_style_counts_in_the_tokens_of_a_prompt(generator: enlarger.Generator) -> None:
    cached = cast(CachedModel, SimpleNamespace(model=generator.model))
    request = GenerateRequest("a", styles=["oil"])
    check_prompt_tokens(GenerateRequest("a"), cached, 3)
    with pytest.raises(ProblemError, match=r"prompt has \d+ tokens, expected at most 3"):
        check_prompt_tokens(request, cached, 3)


def test_without_a_folder_a_name_finds_nothing() -> None:
    plain = enlarger.load_generator(tiny.sd1_folder())
    with pytest.raises(InputError, match="'bend' is asked for by name, but there is no folder of models; give one"):
        made(plain, "a <lora:bend:1>")


def test_styles_are_put_around_the_prompt_and_may_name_loras(generator: enlarger.Generator) -> None:
    told = "oil painting of a lighthouse, thick paint, warm light"
    expected = made(generator, told, negative="blurred, photo")
    assert_close(made(generator, PROMPT, negative="blurred", styles=["oil", "warm"]), expected, 0)
    assert_close(made(generator, PROMPT, styles=["bent"]), made(generator, f"{PROMPT} <lora:bend:0.5>"), 0)


def test_clip_skip_counts_layers_from_the_end_as_web_uis_do(generator: enlarger.Generator) -> None:
    from enlarger.text.encode import encode_prompts

    model = generator.model
    for clip_skip in (1, 2):
        adapted, _ = adapt(model, GenerateRequest(prompt=PROMPT, clip_skip=clip_skip, **SIZE))
        found = adapted.condition_one(PromptSpec(PROMPT, "", Guidance(1.0)), (64, 64)).positive.tokens
        expected = encode_prompts(model.tokenizer, model.text_encoders[0], [PROMPT], clip_skip=clip_skip - 1).tokens
        assert found is not None
        assert_close(found, expected, 0)
    assert_close(made(generator, PROMPT, clip_skip=1), made(generator, PROMPT), 0)
    assert float((made(generator, PROMPT, clip_skip=2) - made(generator, PROMPT)).abs().max()) > 1e-3


def test_other_verbs_hear_of_loras_too(generator: enlarger.Generator) -> None:
    refiner, picture = enlarger.Refiner(generator.model), tiny.picture(64, 64)
    plain, bent = (
        refiner(RefineRequest(picture, prompt, steps=2, strength=0.5)).image for prompt in ("a", "a <lora:bend:1>")
    )
    assert plain.tobytes() != bent.tobytes()


def test_requests_with_loras_share_no_batch(generator: enlarger.Generator) -> None:
    assert generator.batch_key(GenerateRequest(prompt=PROMPT, **SIZE)) is not None
    for options in ({"prompt": "a <lora:bend:1>"}, {"prompt": "a", "styles": ["oil"]}, {"prompt": "a", "clip_skip": 2}):
        assert generator.batch_key(GenerateRequest(**SIZE, **options)) is None


def test_the_command_line_lists_and_uses_names(call: Any) -> None:
    status, listed, _ = call("models", web_ui_folder())
    assert status == 0
    assert "bend: a LoRA with kohya's names, <lora:NAME:1>, 0 MB" in listed
    assert "styles: oil, warm, bent" in listed
    lines = [json.loads(line) for line in call("models", web_ui_folder(), "--json")[1].splitlines()]
    assert {"name": "oil", "role": "style"} in lines
    command = ("--models", web_ui_folder(), "--model", "tiny", "--width", 64, "--height", 64, "--steps", 2)
    outs = ["plain.png", "bent.png"]
    for prompt, out in zip((PROMPT, f"{PROMPT} <lora:bend:1>"), outs, strict=True):
        more = ("--style", "warm", "--clip-skip", 1, "--seed", 3, "-o", out)
        assert call("generate", prompt, *command, *more)[:2] == (0, f"{out}\n")
    first, second = (Image.open(out).tobytes() for out in outs)
    assert first != second


def test_a_worker_serves_the_folder_under_names_that_an_address_holds(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(tiny.sd1_folder(), tmp_path / "checkpoints" / "my Model (v2)", symlinks=True)
    shutil.copytree(tiny.sd1_folder(), tmp_path / "checkpoints" / "bundled", symlinks=True)
    folder = open_model_folder(tmp_path, allow_pickle=False)
    assert [each.name for each in models_of_folder(folder, ["bundled"])] == ["bundled-2", "my-Model-v2"]
    names = adapter_names(open_model_folder(web_ui_folder(), allow_pickle=False))
    assert names.loras == ("bend", "wave")
    assert names.styles["oil"] == ("oil painting of {prompt}, thick paint", "photo")
    assert models_of_folder(open_model_folder(None, allow_pickle=True), []) == ()


def test_a_request_over_http_names_loras_styles_and_a_layer() -> None:
    body = Generation(prompt="a", loras="bend:0.8, sub:wave, fine", styles="oil, warm", clip_skip=2)
    options = parse_generation(body.model_copy(update={"loras": "bend:0.8, wave"}), Bounds(), None).options
    assert (options["loras"], options["styles"], options["clip_skip"]) == (
        [("bend", 0.8), ("wave", 1.0)],
        ["oil", "warm"],
        2,
    )
    with pytest.raises(ProblemError, match="loras has 'sub:wave', expected name:"):
        parse_generation(body, Bounds(), None)


def test_one_variable_names_the_folder_for_every_verb(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENLARGER_MODELS_FOLDER", str(web_ui_folder()))
    assert "bend: a LoRA" in call("models")[1]
    told = ("generate", f"{PROMPT} <lora:bend:1>", "--model", "tiny", "--width", 64, "--height", 64, "--steps", 2)
    assert call(*told, "-o", "a.png")[:2] == (0, "a.png\n")
    settings = load_settings()
    assert (settings.models_folder, settings.models) == (web_ui_folder(), ())


@pytest.mark.parametrize("models", [(), ("--models", web_ui_folder)], ids=["alone", "with a folder"])
def test_a_file_of_styles_is_recorded_and_found_again(call: Any, models: tuple[Any, ...]) -> None:
    Path("own.csv").write_text("name,prompt,negative_prompt\nmine,a red boat,\n")
    folder = [each() if callable(each) else each for each in models]
    told = ("--model", tiny.sd1_folder(), "--styles", "own.csv", "--style", "mine", "--steps", 2, "-o", "a.png")
    status, _, err = call("generate", PROMPT, *told, *folder)
    assert status == 0, err
    found = read_metadata(Image.open("a.png"))
    assert found is not None
    expected = {"styles": "own.csv"} | ({"models": str(web_ui_folder())} if models else {})
    assert found["loading"]["checkpoint"] == expected
    assert call("replay", "a.png")[:2] == (0, f"a.png: the same {Path('a.png').stat().st_size:,} bytes\n")


@pytest.mark.parametrize("with_folder", [True, False], ids=["with a folder", "alone"])
def test_leave_to_open_pickles_is_for_the_models_beside_too(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_folder: bool
) -> None:
    loaded: list[Any] = []

    def load(*arguments: Any) -> None:
        loaded.extend(arguments)
        raise InputError("enough")

    monkeypatch.setattr("enlarger.tasks.text_to_image.load_generator", load)
    (tmp_path / "4x.pth").write_bytes(b"weights")
    models = ("--models", web_ui_folder()) if with_folder else ()
    told = ("--model", tiny.sd1_folder(), "--upscaler", "4x.pth", "--refiner", tiny.sd1_folder(), "--upscale", 2)
    call("generate", PROMPT, *told, *models, "--allow-pickle", "--seed", 1)
    model, *_, refiner, upscaler, engine = loaded
    assert (
        engine == "torch" and upscaler == Checkpoint("4x.pth", allow_pickle=True) and refiner == str(tiny.sd1_folder())
    )
    assert model.open().components and (model.models is not None) == with_folder
    assert file_of("4x.pth", allow_pickle=False) == "4x.pth"


def test_a_folder_of_models_may_hold_pickles() -> None:
    folder = read_model_folder(web_ui_folder(), allow_pickle=True)
    assert Checkpoint(tiny.sd1_folder(), models=folder, allow_pickle=True).open().model_folder is folder
    with pytest.raises(InputError, match="allow_pickle: for single files only"):
        Checkpoint(tiny.sd1_folder(), allow_pickle=True).open()


def test_quiet_does_not_say_the_seed(call: Any) -> None:
    told = ("generate", PROMPT, "--model", tiny.sd1_folder(), "--steps", 1, "--width", 64, "--height", 64)
    assert call(*told, "--quiet", "-o", "a.png") == (0, "", "")
