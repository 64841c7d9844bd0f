"""The x2 pipeline under diffusers' name: signatures, reading and writing, switches, and what it refuses."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.checkpoint.folder.load import read_folder
from enlarger.diffusers import (
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineOutput,
)
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.tasks.latent_diffusion import tiled_autoencoder
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal

Upscaler = StableDiffusionLatentUpscalePipeline
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture
def pipe() -> Upscaler:
    made = Upscaler.from_pretrained(tiny.x2_folder())
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, **call: Any) -> Tensor:
    options: dict[str, Any] = {"prompt": "a cat", "image": tiny.latents(1, 8, 8), "num_inference_steps": 2}
    options |= {"output_type": "pt", "generator": torch.manual_seed(0)}
    return pipe(**(options | call)).images


def names_and_defaults(function: Any) -> list[tuple[str, Any]]:
    return [(n, p.default) for n, p in inspect.signature(function).parameters.items()]


@pytest.mark.parametrize("name", ["__call__", "encode_prompt"])
def test_signature_is_diffusers(name: str) -> None:
    theirs = getattr(diffusers.StableDiffusionLatentUpscalePipeline, name)
    assert names_and_defaults(getattr(Upscaler, name)) == names_and_defaults(theirs)


def test_constructor_is_diffusers() -> None:
    assert names_and_defaults(Upscaler.__init__) == names_and_defaults(
        diffusers.StableDiffusionLatentUpscalePipeline.__init__
    )


def test_keywords_of_the_older_release() -> None:
    old = (
        "prompt image num_inference_steps guidance_scale negative_prompt generator latents output_type return_dict "
        "callback callback_steps"
    )
    names = [name for name, _ in names_and_defaults(Upscaler.__call__)]
    assert [name for name in names if name in old.split()] == old.split()


@pytest.mark.parametrize(
    "name",
    [
        "to",
        "save_pretrained",
        "components",
        "device",
        "dtype",
        "numpy_to_pil",
        "progress_bar",
        "set_progress_bar_config",
        "decode_latents",
        "enable_attention_slicing",
        "disable_attention_slicing",
        "enable_xformers_memory_efficient_attention",
        "enable_freeu",
        "disable_xformers_memory_efficient_attention",
        "enable_model_cpu_offload",
        "enable_sequential_cpu_offload",
        "disable_freeu",
        "fuse_qkv_projections",
    ],
)
def test_has_what_diffusers_has(pipe: Upscaler, name: str) -> None:
    assert hasattr(diffusers.StableDiffusionLatentUpscalePipeline, name) and hasattr(pipe, name)


def test_the_output_object(pipe: Upscaler) -> None:
    assert ImagePipelineOutput is StableDiffusionPipelineOutput
    found = pipe("a cat", tiny.latents(1, 8, 8), 1)
    assert found.images is found[0] is found["images"] and found.nsfw_content_detected is None
    assert found[:] == found.to_tuple() == (found.images,) and list(found) == ["images"] and len(found) == 1
    assert found.images[0].size == (128, 128) and "images" in found
    with pytest.raises(KeyError):
        found["nsfw_content_detected"]
    as_tuple = pipe("a cat", tiny.latents(1, 8, 8), 1, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1


def test_modes_of_pil_pictures_become_rgb(pipe: Upscaler) -> None:
    rgb = tiny.picture(64, 64)
    expected = run(pipe, image=rgb)
    assert_close(run(pipe, image=rgb.convert("RGBA")), expected, 0)
    grey = rgb.convert("L")
    assert_close(run(pipe, image=grey), run(pipe, image=grey.convert("RGB")), 0)


def test_written_folder_reads_back_here_and_in_diffusers(pipe: Upscaler, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "x2")
    expected = run(pipe)
    assert_close(run(Upscaler.from_pretrained(tmp_path / "x2", use_safetensors=True)), expected, 0)
    theirs = diffusers.StableDiffusionLatentUpscalePipeline.from_pretrained(tmp_path / "x2")
    assert_close(run(theirs), expected, 1e-4)
    assert json.loads((tmp_path / "x2" / "scheduler" / "scheduler_config.json").read_text()) == {
        "_class_name": "EulerDiscreteScheduler",
        **tiny.X2_SCHEDULER,
    }
    (tmp_path / "x2" / "notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path / "x2", safe_serialization=False)
    assert (tmp_path / "x2" / "notes.txt").read_text() == "mine"


def test_variants_types_and_shards(pipe: Upscaler, tmp_path: Path) -> None:
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "x2", variant="bf16", max_shard_size="50KB")
    assert len(list((tmp_path / "x2" / "unet").glob("*bf16*"))) > 2
    found = Upscaler.from_pretrained(tmp_path / "x2", torch_dtype=torch.bfloat16, variant="bf16")
    assert found.dtype == torch.bfloat16 and run(found, output_type="latent").dtype == torch.bfloat16
    assert Upscaler.from_pretrained(tmp_path / "x2", variant="bf16").dtype == torch.float32
    assert Upscaler.from_pretrained(tmp_path / "x2", variant="bf16", dtype="float16").dtype == torch.float16


def test_parts_are_shared_and_swapped(pipe: Upscaler) -> None:
    other = Upscaler(**pipe.components)
    assert other.unet is pipe.unet and list(pipe.components) == [
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
    ]
    other.set_progress_bar_config(disable=True)
    assert_close(run(other), run(pipe), 0)
    other.scheduler = HeunDiscreteScheduler.from_config(other.scheduler.config)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    assert (run(other) - run(pipe)).abs().max() > 1e-3
    read = Upscaler.from_pretrained(tiny.x2_folder(), vae=pipe.vae, scheduler=other.scheduler)
    assert read.vae is pipe.vae and read.scheduler is other.scheduler


def test_offloading_changes_nothing(pipe: Upscaler) -> None:
    expected = run(pipe, image=tiny.picture(64, 64))
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        other = Upscaler(**pipe.components)
        other.set_progress_bar_config(disable=True)
        getattr(other, name)(device="cpu")
        assert_close(run(other, image=tiny.picture(64, 64)), expected, 0)
        assert other.device == torch.device("cpu")
        with pytest.raises(Unsupported, match="offloads to the CPU and moves parts itself"):
            other.to("cpu")
    if not torch.accelerator.is_available():
        with pytest.raises(Unsupported, match="found no accelerator to load parts onto"):
            pipe.enable_model_cpu_offload()


def test_moving(pipe: Upscaler) -> None:
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu") and pipe.dtype == torch.float32
    assert pipe.to("cpu", torch.bfloat16).vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert pipe.to(dtype=torch.float32).dtype == torch.float32


def test_attention_switches_say_that_they_change_nothing(pipe: Upscaler) -> None:
    expected = run(pipe)
    with pytest.warns(UserWarning, match="attention slicing changes nothing here: attention always runs"):
        pipe.enable_attention_slicing()
    with pytest.warns(UserWarning, match="xformers attention changes nothing here"):
        pipe.enable_xformers_memory_efficient_attention()
    pipe.disable_attention_slicing()
    pipe.disable_xformers_memory_efficient_attention()
    pipe.disable_freeu()
    assert_close(run(pipe), expected, 0)


def test_slicing_the_autoencoder_changes_nothing(pipe: Upscaler) -> None:
    call: dict[str, Any] = {"prompt": ["a", "b"], "image": tiny.latents(2, 8, 8)}
    expected = run(pipe, **call)
    pipe.enable_vae_slicing()
    assert_close(run(pipe, **call, generator=torch.manual_seed(0)), expected, 1e-5)


def test_tiling_the_autoencoder_changes_nothing(pipe: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    call: dict[str, Any] = {"prompt": "a", "image": tiny.picture(64, 64)}
    expected, tiles = run(pipe, **call), list[int]()
    whole = tiled_autoencoder.run_tiled
    monkeypatch.setattr(tiled_autoencoder, "run_tiled", lambda *all: tiles.append(all[2]) or whole(*all))
    pipe.enable_vae_tiling()
    assert_close(run(pipe, **call, generator=torch.manual_seed(0)), expected, 1e-4)
    assert tiles == [128, 128]  # encoded, decoded
    pipe.disable_vae_tiling()
    assert_close(run(pipe, **call, generator=torch.manual_seed(0)), expected, 0)
    assert len(tiles) == 2


def test_what_is_not_there_says_what_to_do(pipe: Upscaler, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unsupported, match="use huggingface_hub's upload_folder"):
        pipe.save_pretrained("x2", push_to_hub=True)
    pipe.set_progress_bar_config(ncols=80)
    assert "the progress bar has no ncols; it has disable, desc and leave" in caplog.text
    with pytest.raises(Unsupported, match="attention_op is not available here"):
        pipe.enable_xformers_memory_efficient_attention(attention_op=object())


def test_parts_of_diffusers_are_taken(pipe: Upscaler) -> None:
    made = Upscaler(**tiny.x2_parts())
    made.set_progress_bar_config(disable=True)
    assert_close(run(made), run(pipe), 1e-5)
    with pytest.raises(ValueError, match=r"vae is a builtins.int, expected enlarger.nn.autoencoder"):
        pipe.vae = 1


def test_freeu_of_the_upscaler(pipe: Upscaler) -> None:
    expected = run(pipe)
    pipe.enable_freeu(1, 1, 1, 1)
    assert_close(run(pipe), expected, 1e-5)
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert (run(pipe) - expected).abs().max() > 1e-4
    pipe.disable_freeu()
    assert_close(run(pipe), expected, 0)


def test_a_loop_by_hand_is_the_pipeline(pipe: Upscaler) -> None:
    """As diffusers' pipeline has it, with parts that are called by its names."""
    low, generator = tiny.latents(1, 8, 8), torch.manual_seed(0)
    expected = pipe("a cat", low, num_inference_steps=3, guidance_scale=0, generator=generator, output_type="pt").images
    ids = pipe.tokenizer([""], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids, output_hidden_states=True)
    times = torch.cat([torch.ones(1, 64), torch.zeros(1, 64), text.pooler_output], 1)
    pipe.scheduler.set_timesteps(3)
    noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(0))
    latents = noise * pipe.scheduler.init_noise_sigma
    concat = torch.nn.functional.interpolate(low, scale_factor=2)
    for i, t in enumerate(pipe.scheduler.timesteps):
        sigma = pipe.scheduler.sigmas[i]
        scaled = torch.cat([pipe.scheduler.scale_model_input(latents, t), concat], 1)
        conditioning = {"encoder_hidden_states": text.hidden_states[-1], "timestep_cond": times}
        out = pipe.unet(scaled, sigma.log() / 4, **conditioning).sample[:, :-1]
        denoised = latents / (sigma**2 + 1) + out * sigma / (sigma**2 + 1) ** 0.5
        latents = pipe.scheduler.step(denoised, t, latents).prev_sample
    picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert_close((picture / 2 + 0.5).clamp(0, 1), expected, 1e-5)


def test_loading_refuses() -> None:
    with pytest.raises(
        CheckpointError, match=r"no such folder, and nothing is downloaded.*`enlarger pull stabilityai/x2"
    ):
        Upscaler.from_pretrained("stabilityai/x2")
    with pytest.raises(OSError, match="no such folder"):
        Upscaler.from_pretrained("stabilityai/x2", device_map="cpu", token="x", cache_dir="y", low_cpu_mem_usage=False)
    with pytest.raises(Unsupported, match="custom_pipeline is not available: pipelines of other people's code"):
        Upscaler.from_pretrained(tiny.x2_folder(), custom_pipeline="x")
    with pytest.raises(ValueError, match="device_map names cpu, cuda; a pipeline is on one device here"):
        Upscaler.from_pretrained(tiny.x2_folder(), device_map={"unet": "cpu", "vae": "cuda"})
    with pytest.raises(ValueError, match=r"torch_dtype is 'half', expected a torch.dtype, 'auto' or one of float32"):
        Upscaler.from_pretrained(tiny.x2_folder(), torch_dtype="half")
    with pytest.raises(InputError, match=r"unet is a enlarger.nn.unet.UNet, expected enlarger.nn.k_unet.KUNet"):
        Upscaler.from_pretrained(tiny.sd1_folder())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "found neither of `prompt` and `prompt_embeds`"),
    ({"prompt_embeds": normal(1, 77, 32)}, "found both of `prompt` and `prompt_embeds`"),
    ({"prompt": 3}, "`prompt` has to be of type `str` or `list`"),
    ({"prompt": None, "prompt_embeds": normal(1, 77, 32)}, "`pooled_prompt_embeds` also have to be passed"),
    ({"negative_prompt": "x", "negative_prompt_embeds": normal(1, 77, 32)}, "found both `negative_prompt` and"),
    ({"negative_prompt_embeds": normal(1, 77, 32)}, "`negative_pooled_prompt_embeds` also have to be passed"),
    ({"prompt": ["a", "b"]}, "`prompt` has batch size 2 and `image` has batch size 1"),
    ({"prompt": ["a"], "negative_prompt": ["a", "b"]}, "`negative_prompt` has batch size 2"),
    ({"image": None}, "`image` is missing"),
    ({"image": "file.png"}, "`image` holds str; expected PIL images"),
    ({"callback_steps": 0}, "`callback_steps` has to be a positive integer but is 0"),
    ({"callback_steps": None}, "`callback_steps` has to be a positive integer but is None"),
    ({"latents": normal(1, 4, 8, 8)}, "Unexpected latents shape"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_wrong_arguments(pipe: Upscaler, call: dict[str, Any], said: str) -> None:
    """Each is a ValueError in diffusers too."""
    theirs = diffusers.StableDiffusionLatentUpscalePipeline.from_pretrained(tiny.x2_folder())
    theirs.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError):
        run(theirs, **call)
    with pytest.raises(ValueError, match=said) as caught:
        run(pipe, **call)
    assert isinstance(caught.value, InputError)


OURS_ALONE: list[tuple[dict[str, Any], str]] = [
    ({"pooled_prompt_embeds": normal(1, 32)}, "If `pooled_prompt_embeds` are provided, `prompt_embeds` also"),
    ({"image": tiny.picture(80, 64)}, "is 80 x 64, expected multiples of 32 and at least 64.*enlarger.upscale"),
    ({"image": Image.new("RGB", (64, 7))}, "is 64 x 7 pixels, expected at least 8 x 8"),
    ({"image": tiny.latents(1, 6, 8)}, "is 8 x 6, expected multiples of 4 and at least 8"),
    ({"image": np.zeros((64, 64, 4), np.float32)}, r"expected \(H, W, 3\) or \(B, H, W, 3\); leave out alpha"),
    ({"image": np.zeros((64, 64, 3), np.uint8)}, "holds torch.uint8, expected floats in 0..1"),
    ({"image": np.full((64, 64, 3), 255.0)}, "has values up to 255"),
    ({"image": torch.zeros(1, 1, 64, 64)}, "has 1 channels, expected 3 of a picture or 4 of latents"),
    ({"image": [], "prompt": []}, "`prompt` is an empty list"),
    ({"generator": [torch.Generator(), torch.Generator()]}, "a list of 2 generators for a batch of 1"),
]


@pytest.mark.parametrize(("call", "said"), OURS_ALONE)
def test_what_diffusers_takes_wrongly_or_not_at_all(pipe: Upscaler, call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(pipe, **call)


def test_a_negative_prompt_of_another_type(pipe: Upscaler) -> None:
    with pytest.raises(TypeError, match="`negative_prompt` should be the same type as `prompt`"):
        run(pipe, negative_prompt=["x"])


def test_progress_bar(pipe: Upscaler, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.set_progress_bar_config(desc="x2")
    run(pipe)
    shown = capsys.readouterr().err
    assert "\rx2: [####################] 2/2, " in shown and shown.endswith("\n")
    assert list(pipe.progress_bar([1, 2])) == [1, 2] and "2/2" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    run(pipe)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="needs `total` or `iterable`"):
        pipe.progress_bar()


def test_the_model_cards_two_pipelines() -> None:
    """Latents of one pipeline go into the other, as in the card's sample."""
    text_to_image = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    upscaler = Upscaler.from_pretrained(tiny.x2_folder())
    for pipe in (text_to_image, upscaler):
        pipe.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(33)
    low = text_to_image("an astronaut", generator=generator, output_type="latent", num_inference_steps=2).images
    large = upscaler(prompt="x", image=low, num_inference_steps=2, guidance_scale=0, generator=generator).images[0]
    small = text_to_image.numpy_to_pil(text_to_image.decode_latents(low))[0]
    assert large.size == (2 * small.width, 2 * small.height)


def test_interrupting_by_an_error(pipe: Upscaler) -> None:
    def stop(step: int, time: Any, latents: Tensor) -> None:
        raise KeyboardInterrupt

    expected = run(pipe)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, callback=stop)
    assert_close(run(pipe), expected, 0)


def test_folders_of_either_reader_hold_the_same(pipe: Upscaler) -> None:
    assert read_folder(tiny.x2_folder()).skipped == ()
    assert "skip_prk_steps" not in pipe.scheduler.config and pipe.scheduler.config["beta_end"] == 0.012
