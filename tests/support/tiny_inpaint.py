"""Tiny random Stable Diffusion models that repaint: of 9 channels and of 4, in memory and as folders."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.save import save_folder
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.inpaint import Inpainter
from enlarger.tasks.loading.stable_diffusion import StableDiffusion, build_stable_diffusion
from tests.support.random_weights import randomise
from tests.support.tiny_models import x2_bundle

STAGES = (Stage(32, 1, 1, 4), Stage(64, 1, 0, 4))
DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
KINDS = {9: "StableDiffusionInpaintPipeline", 4: "StableDiffusionPipeline"}


def inpaint_bundle(place: Path, channels: int) -> PipelineComponents:
    """The parts of a model whose UNet takes `channels`; its autoencoder has factor 2."""
    unet = randomise(UNet(UNetConfig(channels, 4, STAGES, 1, 4, 32, False)), 3)
    bundle = x2_bundle(place, unet=unet, scheduler=DDIM)
    return PipelineComponents(
        place,
        {"_class_name": KINDS[channels]},
        bundle.components,
        bundle.network_configs | {"unet": {"sample_size": 16}},
    )


@cache
def inpaint_model(channels: int) -> StableDiffusion:
    """The same loaded on the CPU; trained, it says, on pictures of 32 x 32. One for all tests."""
    with TemporaryDirectory() as place:
        return build_stable_diffusion(inpaint_bundle(Path(place), channels), Runtime(), f"tiny{channels}")


def tiny_inpainter(channels: int) -> Inpainter:
    """What `load_inpainter` gives."""
    return Inpainter(inpaint_model(channels).require_task("inpaint", "generate"))


def inpaint_folder(place: Path, channels: int) -> Path:
    """The model as a folder on disk."""
    return save_folder(inpaint_bundle(place, channels), place / f"inpaint{channels}")
