"""The text-to-image pipeline under diffusers' name: signatures, the absent safety checker, and what it refuses."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from enlarger.diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from enlarger.errors import InputError, Unsupported
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.tiny_checked import folder_with_checker
from tests.support.tiny_vision import clip_processor

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    made = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, **call: Any) -> Tensor:
    options: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt"}
    return pipe(**(options | {"generator": torch.manual_seed(0)} | call)).images


def test_call_signature_is_diffusers() -> None:
    def listed(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters.items()
        return [(n, tuple(p.default) if isinstance(p.default, list) else p.default) for n, p in found]

    theirs = diffusers.StableDiffusionPipeline
    for name in ("__call__", "encode_prompt"):
        assert listed(getattr(StableDiffusionPipeline, name)) == listed(getattr(theirs, name))
    names = [name for name, _ in listed(StableDiffusionPipeline.__init__)]
    assert names == [name for name, _ in listed(theirs.__init__)]


def test_the_safety_checker_blackens_what_it_flags(tmp_path: Path) -> None:
    folder, network = folder_with_checker(tmp_path, above=0.05)
    ours = StableDiffusionPipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=network, feature_extractor=clip_processor()
    )
    theirs.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="the safety checker flagged a picture, which is black now"):
        images, flags = ours("a cat", num_inference_steps=2, generator=torch.manual_seed(0), return_dict=False)
    wanted = theirs("a cat", num_inference_steps=2, generator=torch.manual_seed(0))
    assert flags == wanted.nsfw_content_detected == [True]
    assert images[0].getextrema() == wanted.images[0].getextrema() == ((0, 0),) * 3
    silent = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    silent.set_progress_bar_config(disable=True)
    assert silent("a cat", num_inference_steps=1).nsfw_content_detected is None


def test_the_safety_checker_leaves_the_rest(tmp_path: Path) -> None:
    ours = StableDiffusionPipeline.from_pretrained(folder_with_checker(tmp_path, above=-0.05)[0])
    ours.set_progress_bar_config(disable=True)
    found = ours("a cat", num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt")
    assert found.nsfw_content_detected == [False] and found[1] == [False] and len(found) == 2
    assert found.images.std() > 0.05
    assert ours("a cat", num_inference_steps=1, output_type="latent").nsfw_content_detected is None


def test_the_safety_checker_is_saved_too(tmp_path: Path) -> None:
    ours = StableDiffusionPipeline.from_pretrained(folder_with_checker(tmp_path, above=0.05)[0])
    ours.save_pretrained(tmp_path / "saved")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="flagged"):
        assert again("a cat", num_inference_steps=2, generator=torch.manual_seed(0))[1] == [True]
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert theirs.safety_checker is not None and theirs.feature_extractor is not None
    with pytest.warns(UserWarning, match="safety_checker, feature_extractor cannot be saved: only what lies in"):
        StableDiffusionPipeline(**ours.components).save_pretrained(tmp_path / "parts")


def test_a_missing_safety_checker_is_said(tmp_path: Path) -> None:
    folder, _ = folder_with_checker(tmp_path, above=0.05)
    shutil.rmtree(folder / "safety_checker")
    with pytest.warns(UserWarning, match=r"has no safety_checker; safety_checker=None silences this"):
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.safety_checker is None and pipe.components["feature_extractor"] is None
    with pytest.raises(
        InputError, match=r"safety_checker is a builtins.object, expected enlarger.tasks.auxiliary.safety_checker"
    ):
        pipe.safety_checker = object()


def test_written_folder_reads_back_in_diffusers(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "sd1")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd1")
    theirs.set_progress_bar_config(disable=True)
    assert theirs.safety_checker is None
    assert_close(run(theirs), run(pipe), 1e-4)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "sd1")
    assert_close(run(again), run(pipe), 0)


def test_tuple_and_parts(pipe: StableDiffusionPipeline) -> None:
    images, flags = pipe("a cat", num_inference_steps=1, return_dict=False)
    assert images[0].size == (64, 64) and flags is None
    other = StableDiffusionPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert_close(run(other), run(pipe), 0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ip_adapter_image": 1}, "ip_adapter_image is not available here; there are no IP adapters"),
]


@pytest.mark.parametrize(("call", "said"), REFUSED)
def test_what_cannot_be_done(pipe: StableDiffusionPipeline, call: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        run(pipe, **call)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"height": 60, "width": 64}, "have to be divisible by 8 but are 60 and 64"),
    ({"callback_steps": 0}, "has to be a positive integer but is 0"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["x"]}, r"tensor_inputs` has \['x'\]"),
    ({"timesteps": [3], "sigmas": [1.0]}, "found both `timesteps` and `sigmas`"),
    ({"generator": [torch.Generator()] * 3}, "a list of 3 generators for a batch of 1"),
    ({"callback_on_step_end": lambda *a: None}, "expected the dictionary of tensors"),
    ({"prompt": None}, "found neither of `prompt` and `prompt_embeds`"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_wrong_arguments(pipe: StableDiffusionPipeline, call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(pipe, **call)


def test_unknown_argument(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(TypeError, match="got unexpected arguments strength"):
        run(pipe, strength=1)


def test_outdated_schedulers_are_corrected(pipe: StableDiffusionPipeline) -> None:
    old = DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=0, clip_sample=True)
    with pytest.warns(
        UserWarning, match=r"outdated for Stable Diffusion; uses {'steps_offset': 1, 'clip_sample': False}"
    ):
        made = StableDiffusionPipeline(**pipe.components | {"scheduler": old})
    assert made.scheduler.config.steps_offset == 1 and made.scheduler.config.clip_sample is False
    assert isinstance(pipe.scheduler, PNDMScheduler)


def test_freeu_and_fused_projections_are_diffusers(pipe: StableDiffusionPipeline) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny.sd1_folder(), safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    plain = run(pipe)
    pipe.fuse_qkv_projections()
    assert_close(run(pipe), plain, 1e-5)
    pipe.unfuse_qkv_projections()
    for each in (pipe, theirs):
        each.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert_close(run(pipe), run(theirs), 1e-4)
    assert (run(pipe) - plain).abs().max() > 1e-3
    pipe.enable_freeu(1, 1, 1, 1)
    assert_close(run(pipe), plain, 1e-5)
    pipe.disable_freeu()
    assert_close(run(pipe), plain, 0)


def test_callbacks_guide_the_run_as_in_diffusers(pipe: StableDiffusionPipeline) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny.sd1_folder(), safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    seen: list[list[tuple[int, float]]] = [[], []]

    def stop_guiding(which: int) -> Any:
        def change(made: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen[which].append((index, float(timestep)))
            assert made.num_timesteps > index and made.do_classifier_free_guidance is (made.guidance_scale > 1)
            if index == 1:
                made._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            return tensors

        return change

    call = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    found, expected = (run(p, callback_on_step_end=stop_guiding(i), **call) for i, p in enumerate((pipe, theirs)))
    assert_close(found, expected, 1e-4)
    assert seen[0] == seen[1]


def test_offload_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    expected = run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(run(pipe), expected, 0)


def test_swapping_gives_other_pictures(pipe: StableDiffusionPipeline) -> None:
    expected = run(pipe)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.timestep_spacing == "linspace"
    assert (run(pipe) - expected).abs().max() > 1e-3
