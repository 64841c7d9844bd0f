"""The pipeline that a folder names is the one that is read, with diffusers' signatures; pictures are read."""

import inspect
import io
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

import enlarger.diffusers as face
from enlarger.diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)
from enlarger.diffusers.pipelines.auto_pipeline import PIPELINE_CLASSES, PIPELINE_FAMILIES
from enlarger.diffusers.utils import load_image, make_image_grid
from enlarger.errors import CheckpointError, InputError, Unsupported
from tests.support import tiny, tiny_models, tiny_xl
from tests.support.close import assert_close
from tests.support.tiny_x4 import x4_folder

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

NAMES = {
    "StableDiffusionPipeline": tiny.sd1_folder,
    "StableDiffusionInpaintPipeline": tiny.inpaint_folder,
    "StableDiffusionDepth2ImgPipeline": tiny.depth_folder,
    "StableDiffusionLatentUpscalePipeline": tiny.x2_folder,
    "StableDiffusionUpscalePipeline": x4_folder,
    "StableDiffusionXLPipeline": tiny_xl.base_folder,
    "StableDiffusionXLImg2ImgPipeline": tiny_xl.refiner_folder,
    "StableDiffusionXLInpaintPipeline": tiny_xl.inpaint_folder,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_read_as_what_it_names(name: str) -> None:
    made = DiffusionPipeline.from_pretrained(NAMES[name](), torch_dtype=torch.float16)
    assert type(made).__name__ == name and made.dtype == torch.float16


@pytest.mark.parametrize("name", sorted(PIPELINE_CLASSES))
def test_signatures_are_diffusers(name: str) -> None:
    def listed(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, tuple(p.default) if isinstance(p.default, list) else p.default) for p in found]

    theirs, ours = getattr(diffusers, name), PIPELINE_CLASSES[name]
    assert listed(ours.__call__) == listed(theirs.__call__)
    assert [n for n, _ in listed(ours.__init__)] == [n for n, _ in listed(theirs.__init__)]


METHODS = (
    "decode_latents", "numpy_to_pil", "enable_attention_slicing", "disable_attention_slicing", "enable_vae_slicing",
    "disable_vae_slicing", "enable_vae_tiling", "disable_vae_tiling", "enable_model_cpu_offload", "enable_freeu",
    "enable_sequential_cpu_offload", "enable_xformers_memory_efficient_attention", "disable_freeu", "progress_bar",
    "disable_xformers_memory_efficient_attention", "set_progress_bar_config", "to", "save_pretrained",
    "from_pretrained", "from_pipe", "components",
)  # fmt: skip
ADAPTERS = ("load_lora_weights", "unload_lora_weights", "fuse_lora", "set_adapters", "load_textual_inversion")


def test_methods_that_people_call_exist() -> None:
    for name, kind in PIPELINE_CLASSES.items():
        wanted = METHODS if name == "StableDiffusionLatentUpscalePipeline" else METHODS + ADAPTERS
        assert [method for method in wanted if not hasattr(kind, method)] == []


AUTO = {
    "Text2Image": AutoPipelineForText2Image,
    "Image2Image": AutoPipelineForImage2Image,
    "Inpainting": AutoPipelineForInpainting,
}


@pytest.mark.parametrize("task", AUTO)
@pytest.mark.parametrize(("family", "folder"), [(0, tiny.sd1_folder), (1, tiny_xl.base_folder)])
def test_each_family_does_each_task_in_a_class_of_its_own(task: str, family: int, folder: Any) -> None:
    kind = PIPELINE_FAMILIES[family][task]
    assert kind.__name__ == type(getattr(diffusers, f"AutoPipelineFor{task}").from_pretrained(folder())).__name__
    made = AUTO[task].from_pretrained(folder())
    assert type(made) is kind
    for other in AUTO.values():
        shared = other.from_pipe(made)
        assert shared.unet is made.unet and "_class_name" not in shared.config
        assert type(other.from_pipe(shared)) is type(shared)
    plain = AutoPipelineForText2Image.from_pipe(made)
    plain.set_progress_bar_config(disable=True)
    assert len(plain("a cat", num_inference_steps=1).images) == 1


def test_what_is_not_there() -> None:
    with pytest.raises(Unsupported, match=r"is a StableDiffusionUpscalePipeline, expected one of StableDiffusion"):
        AutoPipelineForText2Image.from_pretrained(x4_folder())
    with pytest.raises(CheckpointError, match=r"no such folder, and nothing is downloaded here"):
        DiffusionPipeline.from_pretrained("stabilityai/sd-x2-latent-upscaler")


def test_an_unknown_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(Unsupported, match=r"holds a FluxPipeline; the pipelines here are StableDiffusion"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_all_names_are_there() -> None:
    assert [name for name in face.__all__ if not hasattr(face, name)] == []
    other_folder = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer")  # in transformers
    others = [name for name in face.__all__ if not hasattr(diffusers, name) and not name.endswith("Output")]
    assert sorted(others) == sorted(other_folder)


def test_pictures_are_read(tmp_path: Path) -> None:
    picture = tiny.picture(24, 16)
    turned = Image.new("RGB", (24, 16), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    picture.putalpha(128)
    assert load_image(tmp_path / "turned.jpg").size == (16, 24)
    assert load_image(picture).mode == "RGB" and load_image(picture, lambda image: image.convert("L")).mode == "L"
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9/x.png: cannot be fetched .*; save the picture and give"):
        load_image("http://127.0.0.1:9/x.png")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<html>", r"x\.png: is an HTML page, expected one of "),
        (b"P6 1 1 255\n123", r"x\.png: is a PPM, PGM, PBM or PFM"),
    ],
    ids=["page", "kind that is not read"],
)
def test_what_is_fetched_is_read_as_files_are(monkeypatch: pytest.MonkeyPatch, content: bytes, text: str) -> None:
    address = "http://127.0.0.1:9/x.png"
    monkeypatch.setattr("enlarger.diffusers.utils._fetch", lambda _: content)
    with pytest.raises(InputError, match=f"^http://127.0.0.1:9/{text}"):
        load_image(address)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("LA", (16, 24), (7, 255)).save(stream, "PNG", exif=exif)
    monkeypatch.setattr("enlarger.diffusers.utils._fetch", lambda _: stream.getvalue())
    assert (load_image(address).mode, load_image(address).size) == ("RGB", (24, 16))


def test_pictures_are_laid_out() -> None:
    grid = make_image_grid([tiny.picture(24, 16, seed) for seed in range(6)], rows=2, cols=3)
    assert grid.size == (72, 32)
    assert_close(
        torch.tensor(list(grid.crop((48, 16, 72, 32)).tobytes())),
        torch.tensor(list(tiny.picture(24, 16, 5).tobytes())),
        0,
    )
    assert make_image_grid([grid], 1, 1, resize=8).size == (8, 8)
    with pytest.raises(ValueError, match="found 1 pictures for 2 rows of 2; give 4"):
        make_image_grid([grid], 2, 2)


def test_parts_made_by_hand(tmp_path: Path) -> None:
    bundle = tiny_models.x2_folder(tmp_path)
    made = DiffusionPipeline.from_pretrained(bundle)
    assert made.from_pipe(made).components.keys() == made.components.keys()
