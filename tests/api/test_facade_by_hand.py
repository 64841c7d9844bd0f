"""The steps of pipelines as methods, for pipelines that people write on top of ours."""

import pytest
import torch

from enlarger.diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from tests.support import tiny
from tests.support.close import assert_close

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


class OwnPipeline(StableDiffusionPipeline):
    """As people write them."""


def test_a_subclass_checks_as_its_class_does() -> None:
    pipe = OwnPipeline.from_pretrained(str(tiny.sd1_folder()))
    pipe.check_inputs("a cat", 64, 64, 1)
    with pytest.raises(ValueError, match="`height` and `width` have to be divisible by 8 but are 65 and 64"):
        pipe.check_inputs("a cat", 65, 64, 1)


def test_without_noise_the_latents_are_the_pictures() -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(str(tiny.inpaint_folder()))
    image, common = torch.rand(1, 3, 16, 16) * 2 - 1, (1, 4, 16, 16, torch.float32, "cpu")
    first, known = pipe.prepare_latents(
        *common, torch.Generator().manual_seed(1), image=image, add_noise=False, return_image_latents=True
    )
    assert_close(first, known, 0)
    with pytest.raises(ValueError, match="`image` is missing; without noise the latents are the picture's"):
        pipe.prepare_latents(*common, torch.Generator(), add_noise=False)
