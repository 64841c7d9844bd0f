"""The pipelines that start from pictures under diffusers' names: signatures, folders, and what they refuse."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.diffusers.pipelines.pipeline_utils import Pipeline
from enlarger.diffusers.pipelines.stable_diffusion_depth2img import StableDiffusionDepth2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from enlarger.diffusers.schedulers import EulerDiscreteScheduler, PNDMScheduler
from enlarger.errors import InputError, Unsupported
from tests.support import tiny
from tests.support.close import assert_close

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

Folder = Callable[[], Path]
KINDS: dict[str, tuple[type[Pipeline], Folder]] = {
    "img2img": (StableDiffusionImg2ImgPipeline, tiny.sd1_folder),
    "inpaint": (StableDiffusionInpaintPipeline, tiny.inpaint_folder),
    "depth": (StableDiffusionDepth2ImgPipeline, tiny.depth_folder),
}
WHITE = Image.new("L", (64, 40), 255)


def read(name: str) -> Any:
    kind, folder = KINDS[name]
    pipe = kind.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: read(name) for name in KINDS}


@pytest.fixture(params=KINDS)
def pipe(request: pytest.FixtureRequest, pipes: dict[str, Any]) -> Any:
    return pipes[request.param]


def run(pipe: Any, **call: Any) -> Any:
    options: dict[str, Any] = {
        "prompt": "a cat", "image": tiny.picture(64, 40), "num_inference_steps": 2, "output_type": "np",
    }  # fmt: skip
    if isinstance(pipe, StableDiffusionInpaintPipeline):
        options |= {"mask_image": WHITE, "height": 40, "width": 64}
    return pipe(**(options | {"generator": torch.manual_seed(0)} | call)).images


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS.values()], ids=lambda kind: kind.__name__)
def test_signatures_are_diffusers(kind: type[Pipeline]) -> None:
    def listed(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters.items()
        return [(n, tuple(p.default) if isinstance(p.default, list) else p.default) for n, p in found]

    theirs = getattr(diffusers, kind.__name__)
    for name in ("__call__", "encode_prompt"):
        assert listed(getattr(kind, name)) == listed(getattr(theirs, name))
    names = [name for name, _ in listed(kind.__init__)]
    assert names == [name for name, _ in listed(theirs.__init__)]
    assert set(kind.COMPONENT_TYPES) | {"self", "requires_safety_checker"} == {*names, "requires_safety_checker"}


def test_a_written_folder_reads_back(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    again = type(pipe).from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert_close(run(again), run(pipe), 0)
    theirs = getattr(diffusers, type(pipe).__name__).from_pretrained(tmp_path / "model", **without(pipe))
    theirs.set_progress_bar_config(disable=True)
    assert_close(run(theirs, **mask_of(pipe)), run(pipe), 1e-4)


def without(pipe: Any) -> dict[str, Any]:
    return {"safety_checker": None} if "safety_checker" in pipe.COMPONENT_TYPES else {}


def mask_of(pipe: Any) -> dict[str, Any]:
    return {"mask_image": WHITE, "height": 40, "width": 64} if isinstance(pipe, StableDiffusionInpaintPipeline) else {}


def test_tuples_and_parts(pipe: Any) -> None:
    call: dict[str, Any] = {"output_type": "pil", "return_dict": False, **mask_of(pipe)}
    found = pipe("a cat", tiny.picture(64, 40), num_inference_steps=2, **call)
    assert found[0][0].size == (64, 40) and found[1:] == ((None,) if "safety_checker" in pipe.COMPONENT_TYPES else ())
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert_close(run(other), run(pipe), 0)


def test_the_bar_counts_the_steps_that_are_made(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[Any] = []
    made = pipe.progress_bar
    monkeypatch.setattr(type(pipe), "progress_bar", lambda self, total: totals.append(total) or made(total=total))
    run(pipe, num_inference_steps=5, strength=0.6)
    assert totals == [3]


def test_offload_and_swapped_schedulers() -> None:
    pipe = read("depth")
    expected = run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(run(pipe), expected, 0)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.abs(run(pipe) - expected).max() > 1e-3


def test_pndm_starts_without_runge_kutta_in_inpainting(pipes: dict[str, Any]) -> None:
    old = PNDMScheduler.from_config(pipes["inpaint"].scheduler.config, skip_prk_steps=False)
    with pytest.warns(UserWarning, match="outdated for inpainting; uses skip_prk_steps=True"):
        made = StableDiffusionInpaintPipeline(**pipes["inpaint"].components | {"scheduler": old})
    assert made.scheduler.config.skip_prk_steps is True


def test_strength_zero_is_no_step(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"strength parameter: 0, the number of pipeline steps is 0 which is < 1"):
        run(pipe, strength=0)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"strength": 1.5}, "The value of strength should in [0.0, 1.0] but is 1.5"),
    ({"image": None}, "`image` is missing; give a picture or latents"),
    ({"image": [tiny.picture(64, 40)] * 2}, "Cannot duplicate `image` of batch size 2 to 1 results"),
    ({"image": torch.zeros(1, 2, 40, 64)}, "`image` has 2 channels, expected 3 of a picture or 4 of latents"),
    ({"image": 3}, "`image` holds int; expected PIL images, numpy arrays or tensors"),
    ({"prompt": None}, "found neither of `prompt` and `prompt_embeds`"),
    ({"num_inference_steps": None}, "`num_inference_steps` is None, expected how many steps there are"),
    ({"callback": print, "callback_steps": 0}, "`callback_steps` has to be a positive integer but is 0"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["x"]}, "tensor_inputs` has ['x']"),
    ({"generator": [torch.Generator()] * 3}, "a list of 3 generators for a batch of 1"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_wrong_arguments(pipe: Any, call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(pipe, **call)


BLACK = Image.new("L", (64, 40))
WRONG_MASKS: list[tuple[dict[str, Any], str]] = [
    ({"mask_image": None}, "`mask_image` is missing; give a mask, white where the picture is repainted"),
    ({"mask_image": "a.png"}, "`mask_image` holds str; expected PIL images, numpy arrays or tensors"),
    ({"mask_image": []}, "`mask_image` holds no mask; expected PIL images"),
    ({"mask_image": torch.ones(1, 3, 40, 64)}, "`mask_image` has shape (1, 3, 40, 64), expected one channel"),
    ({"mask_image": np.full((40, 64), 255.0)}, "`mask_image` has values from 255 to 255, expected 0 (keep) to 1"),
    ({"mask_image": [WHITE] * 2}, "Cannot duplicate `mask_image` of batch size 2 to 1 results"),
    ({"height": 44}, "`height` and `width` have to be divisible by 8 but are 44 and 64"),
    ({"latents": torch.zeros(1, 4, 4, 4)}, "Unexpected latents shape, found (1, 4, 4, 4), expected (1, 4, 5, 8)"),
    ({"image": torch.zeros(1, 4, 4, 4)}, "`image` is latents (1, 4, 4, 4), expected (5, 8) of height and width"),
    ({"padding_mask_crop": 4}, "The output type should be PIL when inpainting mask crop, but is np"),
    (
        {"padding_mask_crop": 4, "output_type": "pil", "image": torch.zeros(1, 3, 40, 64)},
        "The image should be a PIL image when inpainting mask crop",
    ),
    (
        {"padding_mask_crop": 4, "output_type": "pil", "mask_image": torch.ones(40, 64)},
        "The mask image should be a PIL image when inpainting mask crop",
    ),
    (
        {"padding_mask_crop": 4, "output_type": "pil", "mask_image": WHITE.resize((8, 8))},
        "`mask_image` is (8, 8), expected the picture's (64, 40) to crop both",
    ),
    (
        {"padding_mask_crop": 4, "output_type": "pil", "mask_image": BLACK},
        "`mask_image` is black, there is nothing to crop to; leave out `padding_mask_crop`",
    ),
]


@pytest.mark.parametrize(("call", "said"), WRONG_MASKS)
def test_wrong_masks(pipes: dict[str, Any], call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(pipes["inpaint"], **call)


@pytest.mark.parametrize("option", ["ip_adapter_image", "ip_adapter_image_embeds"])
@pytest.mark.parametrize("name", ["img2img", "inpaint"])
def test_ip_adapters(pipes: dict[str, Any], name: str, option: str) -> None:
    with pytest.raises(Unsupported, match=f"{option} is not available here; there are no IP adapters"):
        run(pipes[name], **{option: 1})


def test_unknown_argument(pipe: Any) -> None:
    with pytest.raises(TypeError, match="got unexpected arguments strong"):
        run(pipe, strong=1)


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("img2img", tiny.inpaint_folder, "takes 9 channels, expected 4: this is not an image-to-image checkpoint"),
        ("inpaint", tiny.depth_folder, "takes 5 channels, expected 4 or 9: this is not an inpainting checkpoint"),
        ("depth", tiny.sd1_folder, "takes 4 channels, expected 5: this is not a depth checkpoint"),
    ],
)
def test_other_checkpoints(name: str, folder: Folder, said: str) -> None:
    kind = KINDS[name][0]
    given = {part: None for part in ("depth_estimator",) if part in kind.COMPONENT_TYPES}
    with pytest.raises(InputError, match=said):
        kind.from_pretrained(folder(), **given)


def test_without_a_depth_estimator(tmp_path: Path) -> None:
    """None given, or none in the folder: then each call brings its map."""
    folder = tmp_path / "depth"
    shutil.copytree(tiny.depth_folder(), folder, ignore=shutil.ignore_patterns("depth_estimator", "feature_extractor"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"depth_estimator": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    lean = StableDiffusionDepth2ImgPipeline.from_pretrained(folder)
    given = StableDiffusionDepth2ImgPipeline.from_pretrained(tiny.depth_folder(), depth_estimator=None)
    for pipe in (lean, given):
        pipe.set_progress_bar_config(disable=True)
        assert pipe.depth_estimator is None
        assert run(pipe, depth_map=torch.arange(12.0).reshape(1, 3, 4)).shape == (1, 40, 64, 3)
        with pytest.raises(ValueError, match="`depth_map` is missing, and this pipeline has no depth estimator"):
            run(pipe)


def test_wrong_depth(pipes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`image` is latents, whose depth cannot be seen; give `depth_map`"):
        run(pipes["depth"], image=tiny.latents(1, 5, 8))
    with pytest.raises(ValueError, match="Cannot duplicate `depth_map` of batch size 2 to 1 results"):
        run(pipes["depth"], depth_map=torch.rand(2, 4, 4))
    with pytest.raises(InputError, match="found NaN or infinity in a depth map"):
        run(pipes["depth"], depth_map=torch.full((1, 4, 4), float("nan")))
