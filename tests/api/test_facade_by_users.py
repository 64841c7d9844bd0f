"""What users' code does beside the plain call, in diffusers and here, with equal outcomes."""

import pickle
import warnings
from copy import deepcopy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import enlarger.diffusers
from enlarger.errors import Unsupported
from tests.support import tiny, tiny_xl
from tests.support.random_weights import normal

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
ATOL = 1e-4
Pair = tuple[Any, Any]


@pytest.fixture(autouse=True)
def theirs_may_warn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(name: str, folder: Any, **options: Any) -> Pair:
    pipes = [getattr(module, name).from_pretrained(folder, **options) for module in (enlarger.diffusers, diffusers)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True, ncols=80)
    return pipes[0], pipes[1]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return read("StableDiffusionPipeline", tiny.sd1_folder())


def call(pipe: Any, *args: Any, **options: Any) -> Any:
    options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)} | options
    return pipe(*(args or ("a cat",)), **options).images


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=ATOL)


def zeroed(_: int, __: int, latents: torch.Tensor) -> torch.Tensor:
    return latents * 0


def counted(_: int, __: int, latents: torch.Tensor) -> bool:
    return True


@pytest.mark.parametrize(
    "options",
    [
        {"callback": zeroed, "callback_steps": 1},
        {"callback": counted, "callback_steps": 1},
        {"num_inference_steps": np.int64(2)},
        {"height": 64.0, "width": 64},
        {"output_type": None},
        {"output_type": "np.array"},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"cross_attention_kwargs": {"other": 1}},
        {"latents": normal(1, 4, 8, 12)},
    ],
    ids=["zeroed", "counted", "steps", "size", "none", "array", "scale", "other", "latents"],
)
def test_calls(pair: Pair, options: dict[str, Any]) -> None:
    same(*(call(pipe, **options) for pipe in pair))


@pytest.mark.parametrize("options", [{"prompt": []}, {"prompt": "a", "num_images_per_prompt": 0}], ids=["none", "zero"])
def test_nothing_to_make_is_refused(pair: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected (at least one prompt|1 or more)"):
        pair[0](**options)


def test_a_scaled_call_is_of_the_pipeline_itself(pair: Pair) -> None:
    for pipe in pair:
        seen: list[Any] = []

        def stop(given: Any, index: int, _: int, tensors: Any, pipe: Any = pipe, seen: Any = seen) -> Any:
            seen.append((given is pipe, given.cross_attention_kwargs, given.clip_skip))
            pipe._interrupt = True
            return tensors

        scale = {"scale": 0.5}
        call(pipe, num_inference_steps=4, cross_attention_kwargs=scale, callback_on_step_end=stop, guidance_scale=3.0)
        assert seen[0] == (True, scale, None)
        assert len(seen) == 1 and pipe.guidance_scale == 3.0
    assert pair[0].num_timesteps == pair[1].num_timesteps == 5


def test_pipelines_and_schedulers_are_copied_and_pickled(pair: Pair) -> None:
    pipe = pair[0]
    for copied in (deepcopy(pipe.scheduler), pickle.loads(pickle.dumps(pipe.scheduler))):
        assert dict(copied.config) == dict(pipe.scheduler.config) == pipe.scheduler.config.copy()
    same(call(deepcopy(pipe)), call(pipe))


def test_image_processors(pair: Pair) -> None:
    picture, values = tiny.picture(70, 67), torch.full((2, 3, 8, 8), 0.5)
    for options in (
        {},
        {"height": 32},
        {"width": 40},
        {"height": 32, "width": 32, "crops_coords": (0, 0, 16, 16), "resize_mode": "fill"},
        {"height": 32, "width": 64, "resize_mode": "fill"},
        {"height": 32, "width": 64, "resize_mode": "crop"},
    ):
        same(*(pipe.image_processor.preprocess(picture, **options) for pipe in pair))
    for denormalize in (None, [False, False], [True, False]):
        same(*(pipe.image_processor.postprocess(values, "np", do_denormalize=denormalize) for pipe in pair))


def test_the_tokenizer(pair: Pair) -> None:
    texts = ["a cat", "a", "<|endoftext|> a", "a <|startoftext|>", ""]
    ours, theirs = (pipe.tokenizer for pipe in pair)
    for options in (
        {"padding": "do_not_pad"},
        {"add_special_tokens": False},
        {"padding": "max_length", "max_length": 9, "truncation": True},
        {"padding": "max_length", "max_length": 5, "truncation": True, "add_special_tokens": False},
        {"truncation": "do_not_truncate"},
    ):
        found, expected = (each(texts, **options) for each in (ours, theirs))
        assert found.input_ids == expected["input_ids"], options
    for text in texts:
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.encode(text) == theirs.encode(text)
    assert ours.convert_tokens_to_ids(["nosuch", "a</w>"]) == theirs.convert_tokens_to_ids(["nosuch", "a</w>"])
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "unk_token_id", "padding_side"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    with pytest.raises(Unsupported, match="the tokenizer takes no text_pair; leave it out"):
        ours("a", text_pair="b")


def test_a_text_encoder_does_not_ignore_what_it_is_told(pair: Pair) -> None:
    encoder, ids = pair[0].text_encoder, torch.tensor([[49406, 320, 49407]])
    encoder(ids, attention_mask=torch.ones_like(ids), output_attentions=False)
    with pytest.raises(Unsupported, match="attends to padding"):
        encoder(ids, attention_mask=torch.tensor([[1, 1, 0]]))
    with pytest.raises(Unsupported, match="the text encoder takes no position_ids; give input_ids alone"):
        encoder(ids, position_ids=ids * 0)


def test_a_part_read_alone_is_float32(tmp_path: Any) -> None:
    pipe = enlarger.diffusers.StableDiffusionPipeline.from_pretrained(tiny.sd1_folder(), torch_dtype=torch.float16)
    pipe.save_pretrained(tmp_path)
    for name in ("AutoencoderKL", "UNet2DConditionModel"):
        place = {"AutoencoderKL": "vae", "UNet2DConditionModel": "unet"}[name]
        ours, theirs = (getattr(m, name).from_pretrained(tmp_path / place) for m in (enlarger.diffusers, diffusers))
        assert ours.dtype == theirs.dtype == torch.float32


def test_masks_of_whole_numbers() -> None:
    pair = read("StableDiffusionInpaintPipeline", tiny.inpaint_folder())
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[:, 16:40, 8:48] = 255
    options: dict[str, Any] = {"image": tiny.picture(64, 64), "strength": 1.0, "height": 64, "width": 64}
    results = [call(pair[0], mask_image=each, **options) for each in (mask, torch.from_numpy(mask), mask // 255)]
    expected = call(pair[1], mask_image=Image.fromarray(mask[0]), **options)
    for result in results:
        same(result, expected)


@pytest.mark.parametrize("name", ["mask", "masked_image_latents", "cutoff"])
@pytest.mark.parametrize("kind", ["sd4", "sd9", "xl4", "xl9"])
def test_callbacks_change_masks(kind: str, name: str) -> None:
    if kind[:2] == "xl" and name == "cutoff":
        return
    folder = {
        "sd4": tiny.sd1_folder,
        "sd9": tiny.inpaint_folder,
        "xl4": tiny_xl.base_folder,
        "xl9": tiny_xl.inpaint_folder,
    }[kind]()
    pair = read(f"StableDiffusion{'XL' if kind[:2] == 'xl' else ''}InpaintPipeline", folder)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    names = ["latents", "mask", "masked_image_latents"] if name != "cutoff" else ["prompt_embeds", "mask"]

    def changed(pipe: Any, index: int, _: Any, tensors: Any) -> Any:
        if name == "cutoff" and index == 0:
            pipe._guidance_scale = 0.0
            return {key: each.chunk(2)[-1] for key, each in tensors.items()}
        return tensors if name == "cutoff" else tensors | {name: tensors[name] * 0}

    options: dict[str, Any] = {"image": tiny.picture(64, 64), "mask_image": Image.fromarray(mask), "strength": 0.99}
    options |= {"callback_on_step_end": changed, "callback_on_step_end_tensor_inputs": names}
    options |= {"height": 64, "width": 64, "num_inference_steps": 4}
    if kind == "sd9" and name == "cutoff":
        options["callback_on_step_end_tensor_inputs"] = ["prompt_embeds", "mask", "masked_image_latents"]
    same(*(call(pipe, **options) for pipe in pair))
