"""SDXL under diffusers' names: signatures, settings, parts that may be absent, and what is refused."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from enlarger.diffusers.pipelines.pipeline_utils import Pipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from enlarger.errors import InputError, Unsupported
from enlarger.image.watermark import read_watermark
from tests.support import tiny, tiny_xl
from tests.support.close import assert_close
from tests.support.random_weights import normal

KINDS: list[Any] = [
    StableDiffusionXLPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
]
PICTURE = tiny.picture(64, 64)

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


def without_progress(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def base() -> Any:
    return without_progress(StableDiffusionXLPipeline.from_pretrained(tiny_xl.base_folder()))


@pytest.fixture
def refiner() -> Any:
    return without_progress(StableDiffusionXLImg2ImgPipeline.from_pretrained(tiny_xl.refiner_folder()))


def run(pipe: Any, **call: Any) -> Tensor:
    options: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt"}
    if not isinstance(pipe, StableDiffusionXLPipeline | diffusers.StableDiffusionXLPipeline):
        options |= {"image": PICTURE, "strength": 1.0}
    return pipe(**(options | {"generator": torch.manual_seed(0)} | call)).images


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_signatures_are_diffusers(kind: Any) -> None:
    def listed(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters.items()
        return [(n, tuple(p.default) if isinstance(p.default, list) else p.default) for n, p in found]

    theirs = getattr(diffusers, kind.__name__)
    for name in ("__init__", "__call__", "encode_prompt"):
        assert listed(getattr(kind, name)) == [
            (n, inspect.Parameter.empty if n == "prompt" and name == "encode_prompt" else default)
            for n, default in listed(getattr(theirs, name))
        ]


def test_the_refiner_card(base: Any, refiner: Any, tmp_path: Path) -> None:
    """Offloaded, compiled, latents from the base, and two calls in a row."""
    compiled = []

    def eager(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    expected = run(refiner, strength=0.5, num_inference_steps=4)
    refiner.unet = torch.compile(refiner.unet, backend=eager)
    refiner.enable_model_cpu_offload(device="cpu")
    assert_close(run(refiner, strength=0.5, num_inference_steps=4), expected, 1e-6)
    assert refiner._configs["unet"]["sample_size"] == 8
    assert compiled, "the compiled network is not the one that runs"
    image = base("a cat", num_inference_steps=5, denoising_end=0.8, output_type="latent").images
    assert image.shape == (1, 4, 8, 8)
    [made] = refiner("a cat", image=image, num_inference_steps=5, denoising_start=0.8).images
    assert made.size == (64, 64)
    refiner.save_pretrained(tmp_path / "refiner")
    again = without_progress(StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "refiner"))
    assert_close(run(again, strength=0.5, num_inference_steps=4), expected, 0)


def test_folders_go_both_ways(base: Any, refiner: Any, tmp_path: Path) -> None:
    for pipe, name in ((base, "StableDiffusionXLPipeline"), (refiner, "StableDiffusionXLImg2ImgPipeline")):
        pipe.save_pretrained(tmp_path / name)
        theirs = without_progress(getattr(diffusers, name).from_pretrained(tmp_path / name, add_watermarker=False))
        assert_close(run(pipe), run(theirs), 1e-4)
        for setting, value in pipe.parameters.items():
            assert theirs.config[setting] == value
        assert_close(run(without_progress(type(pipe).from_pretrained(tmp_path / name))), run(pipe), 0)
    assert refiner.parameters == {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    index = json.loads((tmp_path / "StableDiffusionXLImg2ImgPipeline" / "model_index.json").read_text())
    assert index["text_encoder"] == [None, None] and index["requires_aesthetics_score"] is True


def test_settings_may_be_given(base: Any) -> None:
    changed = StableDiffusionXLPipeline.from_pretrained(
        tiny_xl.base_folder(), force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    assert_close(run(without_progress(changed)), run(base, negative_prompt=""), 0)
    with pytest.raises(Unsupported, match="the config has no sample_size; it has force_zeros_for_empty_prompt"):
        base.register_to_config(sample_size=3)


def test_parts_make_other_pipelines(base: Any) -> None:
    for kind in KINDS[1:]:
        made = without_progress(kind(**base.components))
        assert made.unet is base.unet and made.config["requires_aesthetics_score"] is False
    masks = {"mask_image": PICTURE.convert("L"), "height": 64, "width": 64}
    assert run(made, **masks).shape == (1, 3, 64, 64)


def test_without_text_encoders(base: Any) -> None:
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    bare: Pipeline = without_progress(StableDiffusionXLPipeline(**base.components | parts))
    given = {"prompt": None, "prompt_embeds": normal(1, 77, sum(tiny_xl.WIDTHS)), "height": 64, "width": 64}
    given["pooled_prompt_embeds"] = normal(1, tiny_xl.POOLED)
    assert_close(run(bare, **given), run(base, **given), 0)
    with pytest.raises(ValueError, match="the pipeline has no text encoder with a tokenizer; give prompt_embeds and"):
        run(bare, height=64, width=64)


def test_in_half_precision(base: Any) -> None:
    """The autoencoder runs in float32 for as long as it is needed."""
    expected = run(base)
    made = run(base.to(torch.bfloat16))
    assert made.dtype == torch.bfloat16 and base.vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert_close(made.float(), expected, 0.2)


def test_wrong_scores(base: Any, refiner: Any) -> None:
    refiner.register_to_config(requires_aesthetics_score=False)
    said = r"vector of length 56, but a vector of 64 was created; .*`pipe.register_to_config\(.*score=True\)`"
    with pytest.raises(ValueError, match=said):
        run(refiner)
    wrong = without_progress(StableDiffusionXLImg2ImgPipeline(**base.components, requires_aesthetics_score=True))
    said = r"vector of length 64, but a vector of 56 was created; .*`pipe.register_to_config\(.*score=False\)`"
    with pytest.raises(ValueError, match=said):
        run(wrong)
    wrong.register_to_config(requires_aesthetics_score=False)
    run(wrong)
    with pytest.raises(ValueError, match="this is a refiner's UNet, read it with StableDiffusionXLImg2ImgPipeline"):
        run(without_progress(StableDiffusionXLPipeline(**refiner.components)), height=64, width=64)


def test_other_checkpoints() -> None:
    with pytest.raises(InputError, match="the UNet takes no sizes, expected one of SDXL"):
        StableDiffusionXLPipeline.from_pretrained(tiny.sd1_folder(), text_encoder_2=None, tokenizer_2=None)
    with pytest.raises(InputError, match="takes 9 channels, expected 4: this is not a text-to-image checkpoint"):
        StableDiffusionXLPipeline.from_pretrained(tiny_xl.inpaint_folder())


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_watermark(output_type: str) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl.base_folder(), add_watermarker=True)
    latents = normal(1, 4, 32, 32)
    marked = without_progress(pipe)._finish_output(latents, output_type, False)[0]
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl.base_folder())
    plain = without_progress(pipe)._finish_output(latents, output_type, False)[0]
    pictures = [pipe.image_processor.numpy_to_pil(as_array(made)) for made in (marked, plain)]
    found = [read_watermark(one) for (one,) in pictures]
    assert found[0] == 1 and found[1] is not None and found[1] < 0.9


def as_array(made: Any) -> Any:
    """Pictures of any form as an array (B, H, W, 3) in 0..1."""
    if isinstance(made, list):
        return np.asarray(made[0], np.float32)[None] / 255
    return made.permute(0, 2, 3, 1).numpy() if isinstance(made, torch.Tensor) else made


UNUSED: list[tuple[dict[str, Any], str]] = [
    ({"negative_prompt_2": "grey"}, "negative_prompt_2 is not used without negative_prompt, which is zeros"),
    ({"negative_target_size": (8, 8)}, "negative_target_size is not used without both negative_original_size and"),
    ({"negative_crops_coords_top_left": (8, 8)}, "negative_crops_coords_top_left is not used without both"),
]


@pytest.mark.parametrize(("call", "said"), UNUSED, ids=str)
def test_what_is_not_used_is_said(base: Any, call: dict[str, Any], said: str) -> None:
    expected = run(base)
    with pytest.warns(UserWarning, match=said):
        assert_close(run(base, **call), expected, 0)


def test_what_is_not_used_from_pictures(base: Any, refiner: Any) -> None:
    plain = without_progress(StableDiffusionXLImg2ImgPipeline(**base.components))
    with pytest.warns(UserWarning, match="aesthetic scores are not used: the pipeline's requires_aesthetics_score is"):
        run(plain, aesthetic_score=3.0)
    with pytest.warns(UserWarning, match="negative_crops_coords_top_left is not used by a pipeline without aesthetic"):
        run(plain, negative_crops_coords_top_left=(3, 4))
    with pytest.warns(UserWarning, match="prompt_2 is not used: this pipeline has one text encoder, which reads the"):
        run(refiner, prompt_2="two dogs")


FEATURES = normal(1, 77, sum(tiny_xl.WIDTHS))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "found neither of `prompt` and `prompt_embeds`"),
    ({"prompt_2": 3}, "`prompt_2` has to be of type `str` or `list` but is <class 'int'>"),
    ({"prompt": None, "prompt_embeds": FEATURES}, "If `prompt_embeds` are provided, `pooled_prompt_embeds` also have"),
    ({"negative_prompt_embeds": FEATURES}, "`negative_pooled_prompt_embeds` also have to be passed"),
    ({"prompt": None, "prompt_embeds": FEATURES, "prompt_2": "x"}, "found both `prompt_2` and `prompt_embeds`"),
    ({"negative_prompt": ["a", "b"]}, "`negative_prompt` has batch size 2, `prompt` has 1; give as many"),
    ({"prompt": ["a", "b"], "prompt_2": "x"}, "the encoders got 2 and 1 prompts, expected as many for each"),
    ({"height": 60, "width": 64}, "have to be divisible by 8 but are 60 and 64"),
    ({"denoising_end": 0.0}, "`denoising_end` is 0.0, expected a number between 0 and 1"),
    ({"denoising_end": 0.01}, "no steps are left between denoising_start None and denoising_end 0.01; use more steps"),
    ({"num_inference_steps": 0}, "`num_inference_steps` is 0, expected how many steps there are, 1 or more"),
    (
        {"latents": normal(1, 4, 3, 3), "height": 64},
        r"Unexpected latents shape, found \(1, 4, 3, 3\), expected \(1, 4, 8, 8\)",
    ),
    (
        {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["mask"]},
        r"tensor_inputs` has \['mask'\], expected some of .*'add_text_embeds', 'add_time_ids'",
    ),
]


@pytest.mark.parametrize(("call", "said"), WRONG, ids=lambda value: ", ".join(value) if isinstance(value, dict) else "")
def test_wrong_arguments(base: Any, call: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, InputError), match=said):
        run(base, **call)


WRONG_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"strength": 1.2}, r"The value of strength should in \[0.0, 1.0\] but is 1.2"),
    ({"strength": 0.3}, "the number of pipeline steps is 0 which is < 1"),
    ({"denoising_start": 0.8, "denoising_end": 0.5}, "cannot be larger than or equal to `denoising_end`: 0.5"),
    ({"denoising_start": 0.0}, "`denoising_start` is 0.0, expected a number between 0 and 1"),
    ({"image": None}, "`image` is missing; give a picture or latents"),
    ({"latents": normal(2, 4, 8, 8)}, r"found \(2, 4, 8, 8\), expected \(1, 4, 8, 8\)"),
]


@pytest.mark.parametrize(
    ("call", "said"), WRONG_STARTS, ids=lambda value: ", ".join(value) if isinstance(value, dict) else ""
)
def test_wrong_starts(refiner: Any, call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(refiner, **call)


def test_wrong_masks(base: Any) -> None:
    pipe = without_progress(StableDiffusionXLInpaintPipeline(**base.components))
    size = {"height": 64, "width": 64}
    with pytest.raises(ValueError, match="`mask_image` is missing; give a mask, white where the picture is repainted"):
        run(pipe, **size)
    with pytest.raises(ValueError, match="found `latents` and `denoising_start`; give what the run starts from as"):
        run(pipe, **size, mask_image=PICTURE, latents=normal(1, 4, 8, 8), denoising_start=0.5)
    with pytest.raises(ValueError, match="The output type should be PIL when inpainting mask crop, but is pt"):
        run(pipe, **size, mask_image=PICTURE, padding_mask_crop=4)


def test_what_cannot_be_done(base: Any) -> None:
    with pytest.raises(Unsupported, match="ip_adapter_image is not available here; there are no IP adapters"):
        run(base, ip_adapter_image=PICTURE)
    with pytest.raises(TypeError, match="got unexpected arguments strength"):
        run(base, strength=1)
