"""A call goes down to the network in a few steps: each function in between is one more to read."""

from typing import Any

import pytest
import torch
from PIL import Image

import enlarger
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet
from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
from enlarger.tasks.depth import load_depth
from enlarger.tasks.image_to_image import Refiner
from enlarger.tasks.text_to_image import Generator
from enlarger.tasks.upscale.upscale import load_upscaler
from tests.support import tiny, tiny_depth, tiny_x4
from tests.support.stack import functions_between
from tests.support.tiny_inpaint import inpaint_model, tiny_inpainter

MOST = 5  # functions between a task and its network
MOST_FROM_THE_VERB = 9
OPTIONS: dict[str, Any] = {"prompt": "a cat", "steps": 2, "solver": "euler", "guidance": 3.0}
BUNDLED: list[tuple[Image.Image, dict[str, Any]]] = [
    (tiny.picture(32, 32), {"detail": 0.5}),
    (tiny.picture(32, 32), {"detail": 0.5, "restore": 0.5}),
    (Image.new("RGB", (32, 32), "white"), {"by": 4}),
]
FOLDERS = {"x2": (tiny.x2_folder, KUNet), "x4": (tiny_x4.x4_folder, UNet)}


def test_generate() -> None:
    task, request = Generator(inpaint_model(4)), GenerateRequest(width=32, height=32, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", UNet, task) <= MOST


def test_refine() -> None:
    task, request = Refiner(inpaint_model(4)), RefineRequest(tiny.picture(32, 32), strength=1.0, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", UNet, task) <= MOST


@pytest.mark.parametrize("channels", [4, 9])
def test_inpaint(channels: int) -> None:
    task, request = tiny_inpainter(channels), InpaintRequest(tiny.picture(32, 32), torch.ones(32, 32), **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", UNet, task) <= MOST


def test_depth() -> None:
    task = load_depth(tiny_depth.depth_folder(), device="cpu", estimator=False)
    request = DepthRequest(tiny.picture(64, 64), depth=torch.rand(64, 64), strength=1.0, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", UNet, task) <= MOST


@pytest.mark.parametrize("name", FOLDERS)
def test_upscale(name: str) -> None:
    folder, network = FOLDERS[name]
    task, request = load_upscaler(folder(), device="cpu"), UpscaleRequest(tiny.picture(32, 32), **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", network, task) <= MOST


@pytest.mark.parametrize(("image", "options"), BUNDLED)
def test_upscale_with_the_bundled_model(image: Image.Image, options: dict[str, Any]) -> None:
    task, request = load_upscaler(device="cpu"), UpscaleRequest(image, **options)
    assert functions_between(lambda: task(request), "__call__", UpscaleNet, task) <= MOST


@pytest.mark.parametrize("name", FOLDERS)
def test_from_the_verb(name: str) -> None:
    folder, network = FOLDERS[name]
    found = functions_between(
        lambda: enlarger.upscale(tiny.picture(32, 32), model=folder(), device="cpu", **OPTIONS), "upscale", network
    )
    assert found <= MOST_FROM_THE_VERB


@pytest.mark.parametrize(("image", "options"), BUNDLED)
def test_from_the_verb_with_the_bundled_model(image: Image.Image, options: dict[str, Any]) -> None:
    found = functions_between(lambda: enlarger.upscale(image, device="cpu", **options), "upscale", UpscaleNet)
    assert found <= MOST_FROM_THE_VERB
