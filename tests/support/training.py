"""Tiny bases and pictures to train with, and what a training is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.checkpoint.folder.save import save_folder
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.train.options import LossOptions, TrainOptions
from tests.support.pictures import texture
from tests.support.random_weights import randomise
from tests.support.tiny_inpaint import inpaint_bundle

COLOURS = {"red": (220, 40, 30), "green": (40, 180, 60), "blue": (30, 60, 220), "white": (240, 240, 240)}


def base_folder(place: Path) -> Path:
    """A text-to-image model of random weights whose autoencoder has factor 2.

    Its normalisations have several channels in a group: else biases before them would have no gradient but rounding.
    """
    bundle = inpaint_bundle(place, 4)
    config = UNetConfig(4, 4, (Stage(16, 1, 1, 4), Stage(32, 1, 0, 4)), 1, 4, 32, False, groups=4)
    unet = randomise(UNet(config), 3)
    return save_folder(replace(bundle, components={**bundle.components, "unet": unet}), place / "base")


def pictures(place: Path, side: int = 32) -> Path:
    """A folder of eight small pictures with captions beside them."""
    folder = place / "pictures"
    folder.mkdir()
    for index in range(8):
        name, colour = list(COLOURS.items())[index % 4]
        image = Image.blend(
            Image.fromarray(texture(side, side, seed=index)), Image.new("RGB", (side, side), colour), 0.7
        )
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {name} wall")
    return folder


def asked(place: Path, model: Path, data: Path, task: Any = "text-to-image", **options: Any) -> TrainOptions:
    """A short training on the CPU, written to `place/out`."""
    usual = {
        "steps": 4, "batch": 2, "rate": 1e-3, "resolution": 32, "warmup": min(2, options.get("steps", 4) - 1),
        "device": "cpu", "save_every": 0.0, "loss": LossOptions(text_dropout=0.25),
    }  # fmt: skip
    return TrainOptions(task, model, data, **{"out": place / "out", **usual, **options})
