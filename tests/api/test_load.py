"""Any checkpoint loads by its path: folders, single files, pickles where allowed; and what is what is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import enlarger
import enlarger.diffusers as face
from enlarger import Checkpoint, CheckpointError, GenerateRequest, InputError, NonFinite, Unsupported, UpscaleRequest
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.single_file.save import save_single_file
from enlarger.cli.main import app
from enlarger.errors import EnlargerError
from tests.support import tiny, tiny_xl
from tests.support.close import assert_close
from tests.support.tiny_models import x2_bundle
from tests.support.tiny_x4 import x4_folder

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

KINDS: list[tuple[Callable[[], Path], str, str]] = [
    (tiny.sd1_folder, "Generator", "StableDiffusionPipeline"),
    (tiny.inpaint_folder, "Inpainter", "StableDiffusionInpaintPipeline"),
    (tiny_xl.base_folder, "Generator", "StableDiffusionXLPipeline"),
    (tiny_xl.refiner_folder, "Refiner", "StableDiffusionXLImg2ImgPipeline"),
    (x4_folder, "PixelUpscaler", "StableDiffusionUpscalePipeline"),
]


def single(folder: Path, place: Path) -> Path:
    """The folder's model as one file."""
    return save_single_file(read_folder(folder), place / "model.safetensors")


def call(*words: str) -> tuple[int, str]:
    """Exit status and output; errors of ours as the entry point shows them."""
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, EnlargerError):
        return 1, f"error: {result.exception}"
    return result.exit_code, result.output


@pytest.mark.parametrize(("folder", "task", "pipeline"), KINDS)
def test_folder_and_file_are_the_same_model(folder: Any, task: str, pipeline: str, tmp_path: Path) -> None:
    file = single(folder(), tmp_path)
    for path in (folder(), file):
        assert type(enlarger.load(path, "cpu")).__name__ == task
    kind = getattr(face, pipeline)
    one, other = kind.from_single_file(file), kind.from_pretrained(folder())
    for name, part in one.components.items():
        if isinstance(part, torch.nn.Module):
            wanted = other.components[name].state_dict()
            assert all(tensor.equal(wanted[weight]) for weight, tensor in part.state_dict().items())


def test_a_file_makes_the_folders_picture(tmp_path: Path) -> None:
    request = GenerateRequest("a cat", steps=2, width=64, height=64)
    pictures = [
        enlarger.load(path, "cpu")(request).image for path in (tiny.sd1_folder(), single(tiny.sd1_folder(), tmp_path))
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_pickle_needs_leave(tmp_path: Path) -> None:
    tensors = load_file(single(tiny.sd1_folder(), tmp_path))
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"model.ckpt: not opened, since it is a pickle.*allow_pickle=True"):
        enlarger.load(tmp_path / "model.ckpt")
    leave = Checkpoint(tmp_path / "model.ckpt", allow_pickle=True, config=tiny.sd1_folder())
    loaded = enlarger.load(leave, "cpu")
    assert type(loaded).__name__ == "Generator"


def test_what_a_file_cannot_say_is_asked(tmp_path: Path) -> None:
    file = single(tiny.sd1_folder(), tmp_path)
    for options, said in (
        ({"variant": "fp16"}, "variant is 'fp16', but .*model.safetensors is a single file; leave it out"),
        ({"prediction": "noise"}, "prediction is 'noise', expected one of epsilon, v_prediction, sample"),
    ):
        with pytest.raises(InputError, match=said):
            Checkpoint(file, **options).open()
    for options, named in (({"prediction": "epsilon"}, "prediction"), ({"allow_pickle": True}, "allow_pickle")):
        with pytest.raises(InputError, match=f"{named}: for single files only, and .* is a folder; leave it out"):
            Checkpoint(tiny.sd1_folder(), **options).open()


def test_the_original_upscaler_has_its_noise_again(tmp_path: Path) -> None:
    """The noise level of the x2 upscaler works with its original weights, from a file or a folder."""
    frequencies = torch.randn(64, 1, generator=torch.Generator().manual_seed(2))
    bundle = read_folder(tiny.x2_folder())
    whole = x2_bundle(tmp_path, **bundle.components, noise_frequencies=frequencies)
    folder = save_folder(whole, tmp_path / "x2")
    file = save_single_file(whole, tmp_path / "x2.safetensors")
    source = Checkpoint(file, vae=tiny.x2_folder(), text_encoder=tiny.x2_folder(), mmap=False)
    request = UpscaleRequest(tiny.picture(32, 32), steps=2, guidance=1, noise_level=0.3)
    made = [enlarger.load(each, "cpu")(request).image for each in (Checkpoint(folder, mmap=False), source)]
    assert made[0].tobytes() == made[1].tobytes()
    silent = enlarger.load(folder, "cpu")(UpscaleRequest(tiny.picture(32, 32), steps=2, guidance=1)).image
    assert silent.tobytes() != made[0].tobytes()
    with pytest.raises(Unsupported, match=r"these weights lack low_res_noise_embed.weight"):
        enlarger.load(tiny.x2_folder(), "cpu")(request)
    with pytest.raises(
        CheckpointError, match=r"without text_encoder and vae, as the original file does|without vae and"
    ):
        enlarger.load(file)


def test_a_file_of_another_pipeline(tmp_path: Path) -> None:
    file = single(tiny_xl.base_folder(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"has no low_res_scheduler for StableDiffusionUpscalePipeline; it is for"
    ):
        face.StableDiffusionUpscalePipeline.from_single_file(file)
    with pytest.raises(CheckpointError, match=r"no such file, and nothing is downloaded here; give a local file"):
        face.StableDiffusionPipeline.from_single_file("https://huggingface.co/x/y.safetensors")


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "sd1"
    shutil.copytree(tiny.sd1_folder(), folder)
    for part, weight in (("unet", "mid_block.resnets.0.conv1.weight"), ("vae", "decoder.conv_in.bias")):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        whole = load_file(path)
        save_file(whole | {weight: whole[weight] * torch.nan}, path, {"format": "pt"})
        with pytest.raises(NonFinite, match=f"the weight {weight} holds NaN or infinity; fetch the file again"):
            enlarger.generate("a cat", model=folder, steps=1, device="cpu")
        status, said = call("inspect", str(folder), "--verify")
        assert status == 1 and f"broken: {part}: {weight}" in said
        save_file(whole, path, {"format": "pt"})


def test_inspect(tmp_path: Path) -> None:
    file = single(tiny.sd1_folder(), tmp_path)
    status, said = call("inspect", str(file))
    assert status == 0 and "family: sd1" in said and "parts: unet, vae, text_encoder" in said
    status, said = call("inspect", str(file), "--json", "--verify")
    found = json.loads(said)
    assert status == 0 and found["prediction"] == "epsilon" and found["broken"] is None
    assert found["formats"]["float32"] > 2_000_000 and sum(found["formats"].values()) == found["parameters"]
    status, said = call("inspect", str(tiny.sd1_folder()), "--json")
    found = json.loads(said)
    assert found["holds"] == "StableDiffusionPipeline" and found["parts"]["scheduler"] == {"class": "PNDMScheduler"}
    assert found["parts"]["unet"]["parameters"] > 0 and found["kind"].startswith("Stable Diffusion 1 (text to image")
    save_file({"weight": torch.ones(3)}, tmp_path / "odd.safetensors")
    assert "holds: nothing that is known here" in call("inspect", str(tmp_path / "odd.safetensors"))[1]
    assert "no model_index.json; expected a model's folder" in call("inspect", str(tmp_path))[1]
    assert "nowhere: no such file or folder, and no checkpoint is called" in call("inspect", "nowhere")[1]


def test_convert_there_and_back(tmp_path: Path) -> None:
    folder, file, back = tiny_xl.base_folder(), tmp_path / "xl.safetensors", tmp_path / "back"
    assert call("convert", str(folder), str(file)) == (0, f"{file}\n")
    assert call("convert", str(file), str(back), "--dtype", "float16") == (0, f"{back}\n")
    one, other = read_folder(folder), read_folder(back)
    for name, part in one.components.items():
        if isinstance(part, torch.nn.Module):
            weights = other.components[name].state_dict()
            for weight, tensor in part.state_dict().items():
                assert_close(weights[weight], tensor.half(), 0)
    assert one.index["force_zeros_for_empty_prompt"] is other.index["force_zeros_for_empty_prompt"] is True
    status, said = call("convert", str(folder), str(file))
    assert status == 1 and "already exists; choose another place or allow overwriting" in said
    assert call("convert", str(folder), str(file), "--overwrite")[0] == 0


def test_convert_a_file_that_is_no_model(tmp_path: Path) -> None:
    tensors = {"lora_unet_mid_block.lora_down.weight": torch.ones(2, 3)}
    torch.save(tensors, tmp_path / "lora.pt")
    status, said = call("convert", str(tmp_path / "lora.pt"), str(tmp_path / "lora.safetensors"))
    assert status == 1 and "not opened, since it is a pickle" in said
    words = ("convert", str(tmp_path / "lora.pt"), str(tmp_path / "lora.safetensors"), "--allow-pickle")
    assert call(*words)[0] == 0
    assert load_file(tmp_path / "lora.safetensors").keys() == tensors.keys()


def test_the_verbs_read_files(tmp_path: Path) -> None:
    file, out = single(tiny.sd1_folder(), tmp_path), tmp_path / "cat.png"
    words = ["generate", "a cat", "--model", str(file), "--prediction", "epsilon", "--steps", "1", "-o", str(out)]
    assert call(*words)[0] == 0 and out.is_file()
    status, said = call("generate", "a cat", "--model", str(file), "--variant", "fp16", "-o", str(tmp_path / "b.png"))
    assert status == 1 and "variant is 'fp16', but" in said


def test_adapters_and_inversions_are_added_while_reading(tmp_path: Path) -> None:
    folder, generator = tiny.sd1_folder(), torch.Generator().manual_seed(8)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    down, up = (torch.randn(size, generator=generator) for size in ((2, 32), (32, 2)))
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "style.safetensors")
    save_file({"<cat>": torch.randn(2, tiny.WIDTH, generator=generator)}, tmp_path / "cat.safetensors")
    request = GenerateRequest("a <cat>", steps=2, width=64, height=64)

    def made(**options: Any) -> bytes:
        return enlarger.load(Checkpoint(folder, **options), "cpu")(request).image.tobytes()

    plain, style = made(), tmp_path / "style.safetensors"
    assert made(loras=[(style, 0.0)]) == plain
    assert made(loras=[(style, 0.5)]) != plain
    assert made(inversions=[tmp_path / "cat.safetensors"]) != plain
    for words, expected in (([f"{style}:0.5", f"{style}:0"], made(loras=[(style, 0.5)])), ([f"{style}:0"], plain)):
        out = tmp_path / f"{len(words)}.png"
        options = [word for lora in words for word in ("--lora", lora)]
        size = ("--width", "64", "--height", "64", "--steps", "2", "--seed", "0")
        assert call("generate", "a <cat>", "--model", str(folder), *options, *size, "-o", str(out))[0] == 0
        with Image.open(out) as picture:
            assert picture.tobytes() == expected
    named, cat = made(inversions=[(tmp_path / "cat.safetensors", "<cat>")]), tmp_path / "cat.safetensors"
    for argument in (f"{cat}", f"{cat}:<cat>"):
        out = tmp_path / "cat.png"
        words = (
            "--inversion",
            argument,
            "--width",
            "64",
            "--height",
            "64",
            "--steps",
            "2",
            "--seed",
            "0",
            "--overwrite",
        )
        assert call("generate", "a <cat>", "--model", str(folder), *words, "-o", str(out))[0] == 0
        with Image.open(out) as picture:
            assert picture.tobytes() == named
    assert made(inversions=[(cat, "<dog>")]) == plain  # the prompt has no such word
    status, said = call("upscale", "examples/bread.jpg", "--lora", str(style))
    assert status == 2 and "--model is missing" in said
