"""A LoRA that was trained here, in diffusers; and models that were trained here, in its pipelines."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import enlarger
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.single_file.save import save_single_file
from enlarger.tasks.loading.load import Checkpoint
from enlarger.train.options import LoraLayout, LoraSettings
from enlarger.train.result import LORA_NAME
from enlarger.train.run import train
from tests.support import tiny, tiny_depth, tiny_x4
from tests.support.close import assert_close, max_difference
from tests.support.training import asked, pictures


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


def picture(pipe: Any, **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe("a red wall", num_inference_steps=3, output_type="np", generator=generator, **options).images


def of_diffusers(folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_saved_lora_gives_the_same_picture_in_diffusers(tmp_path: Path, layout: LoraLayout) -> None:
    pytest.importorskip("peft")
    data = pictures(tmp_path, 64)
    settings = LoraSettings(rank=2, alpha=8.0, targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1"))
    options = asked(tmp_path, tiny.sd1_folder(), data, "lora", resolution=64, lora=settings, rate=3e-2, steps=3)
    folder = train(replace(options, lora_layout=layout))
    pipe = of_diffusers(tiny.sd1_folder())
    plain = picture(pipe, height=64, width=64)
    pipe.load_lora_weights(folder)
    theirs = picture(pipe, height=64, width=64)
    request = enlarger.GenerateRequest("a red wall", steps=3, width=64, height=64, seed=3)
    ours = enlarger.load(Checkpoint(tiny.sd1_folder(), loras=[(folder / LORA_NAME, 1.0)]), device="cpu")(request)
    assert max_difference(theirs, plain) > 0.02
    from enlarger.diffusers import StableDiffusionPipeline

    own = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    own.load_lora_weights(folder)
    assert_close(picture(own, height=64, width=64), theirs, 1e-4)
    assert ours.image.size == (64, 64)


TRAINED = {
    "text-to-image": (tiny.sd1_folder, diffusers.StableDiffusionPipeline),
    "inpainting": (tiny.sd1_folder, diffusers.StableDiffusionInpaintPipeline),
    "depth": (tiny.sd1_folder, diffusers.StableDiffusionDepth2ImgPipeline),
    "upscaler-x4": (tiny_x4.x4_folder, diffusers.StableDiffusionUpscalePipeline),
    "upscaler-x2": (tiny.x2_folder, diffusers.StableDiffusionLatentUpscalePipeline),
}


@pytest.mark.parametrize("task", list(TRAINED))
def test_a_trained_folder_loads_in_diffusers(tmp_path: Path, task: str) -> None:
    folder, kind = TRAINED[task]
    side = 128 if task == "upscaler-x2" else 64
    estimator = {"estimator": tiny_depth.depth_folder()} if task == "depth" else {}
    options = asked(tmp_path, folder(), pictures(tmp_path, side), task, resolution=side, steps=2, **estimator)
    out = train(replace(options, data_settings=replace(options.data_settings, buckets=False)))
    pipe = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(pipe) is kind
    made = enlarger.load(out, device="cpu")
    unet = getattr(made, "model", getattr(made, "checkpoint", made))
    unet = unet.latent_diffusion.unet
    theirs = pipe.unet.state_dict()
    assert all(theirs[name].equal(value) for name, value in unet.state_dict().items())


def test_a_single_file_is_a_base_too(tmp_path: Path) -> None:
    file = save_single_file(read_folder(tiny.sd1_folder()), tmp_path / "base.safetensors")
    out = train(asked(tmp_path, file, pictures(tmp_path, 64), "inpainting", resolution=64, steps=1))
    pipe = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(pipe) is diffusers.StableDiffusionInpaintPipeline and pipe.unet.config.in_channels == 9
