"""A call goes down to the network in a few steps: each function in between is one more to read."""

from typing import Any

import torch

from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest
from enlarger.tasks.depth import DepthToImage, load_depth
from enlarger.tasks.image_to_image import Refiner
from enlarger.tasks.inpaint import Inpainter
from enlarger.tasks.text_to_image import Generator
from tests.support import tiny, tiny_depth
from tests.support.stack import functions_between
from tests.support.tiny_inpaint import inpaint_model, tiny_inpainter

MOST = 5  # functions between a task and its network
OPTIONS: dict[str, Any] = {"prompt": "a cat", "steps": 2, "solver": "euler", "guidance": 3.0}


def depth_task() -> DepthToImage:
    return load_depth(tiny_depth.depth_folder(), device="cpu", estimator=False)


def test_generate() -> None:
    task = Generator(inpaint_model(4))
    network = task.model.latent_diffusion.unet
    request = GenerateRequest(width=32, height=32, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", network, task) <= MOST


def test_refine() -> None:
    task = Refiner(inpaint_model(4))
    network = task.model.latent_diffusion.unet
    request = RefineRequest(tiny.picture(32, 32), strength=1.0, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", network, task) <= MOST


def test_inpaint() -> None:
    task: Inpainter = tiny_inpainter(9)
    network = task.model.latent_diffusion.unet
    request = InpaintRequest(tiny.picture(32, 32), torch.ones(32, 32), **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", network, task) <= MOST


def test_depth() -> None:
    task = depth_task()
    network = task.model.latent_diffusion.unet
    request = DepthRequest(tiny.picture(64, 64), depth=torch.rand(64, 64), strength=1.0, **OPTIONS)
    assert functions_between(lambda: task(request), "__call__", network, task) <= MOST
