"""Forms of the samples of diffusers' documentation: names, parts, processors, callbacks, errors, as there."""

import copy
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import callbacks as their_callbacks

import enlarger
import enlarger.diffusers as face
from enlarger.diffusers import callbacks
from enlarger.diffusers.image_processor import VaeImageProcessor
from enlarger.diffusers.pipelines import StableDiffusionPipeline
from enlarger.diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from enlarger.diffusers.schedulers import AysSchedules
from enlarger.diffusers.utils import BaseOutput, numpy_to_pil, pt_to_pil
from enlarger.diffusers.utils import logging as face_logging
from enlarger.diffusers.utils.torch_utils import randn_tensor
from enlarger.errors import InputError, Unsupported
from tests.support import tiny, tiny_xl
from tests.support.random_weights import normal, randomise

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
ATOL = 1e-4
Pair = tuple[Any, Any]


@pytest.fixture(autouse=True)
def theirs_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(name: str, folder: Any, **options: Any) -> Pair:
    pipes = [getattr(module, name).from_pretrained(folder, **options) for module in (face, diffusers)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes[0], pipes[1]


def call(pipe: Any, **options: Any) -> Any:
    fixed = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe("a cat", **(fixed | options)).images


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=ATOL)


def small_autoencoder(kind: str) -> Any:
    if kind == "AutoencoderTiny":
        sizes: dict[str, Any] = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        blocks = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
        return randomise(diffusers.AutoencoderTiny(**sizes, **blocks), 5)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    sizes = {"down_block_types": down, "up_block_types": up, "latent_channels": 4, "norm_num_groups": 8}
    widths = {"down_block_out_channels": (8,) * 4, "up_block_out_channels": (8,) * 4}
    return randomise(diffusers.AsymmetricAutoencoderKL(**sizes, **widths), 5)


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AsymmetricAutoencoderKL"])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])
def test_other_autoencoders_may_be_a_pipelines(kind: str, name: str) -> None:
    pair, part = read(name, tiny.sd1_folder()), small_autoencoder(kind)
    given = {"image": tiny.picture(64, 64)} if "Img2Img" in name else {}
    for pipe in pair:
        pipe.vae = part
    same(*(call(pipe, **given) for pipe in pair))


def test_parts_by_their_config_and_by_numbers() -> None:
    for place, name in (("unet", "UNet2DConditionModel"), ("text_encoder", "CLIPTextModel"), ("vae", "AutoencoderKL")):
        assert type(face.AutoModel.from_pretrained(tiny.sd1_folder(), subfolder=place)).__name__ == name
    with pytest.raises(OSError, match=r"no config.json, and nothing is downloaded here"):
        face.AutoModel.from_pretrained(tiny.sd1_folder())
    numbers: dict[str, Any] = {"block_out_channels": (8, 8), "norm_num_groups": 8, "latent_channels": 4}
    numbers |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    ours, theirs = (module.AutoencoderKL(**numbers) for module in (face, diffusers))
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()
    z = normal(1, 4, 4, 4)
    with torch.no_grad():
        same(ours.tiled_decode(z).sample, ours.decode(z).sample)
    with pytest.raises(Unsupported, match=r"upcast_attention is not available: give torch_dtype=torch.float32"):
        face.UNet2DConditionModel.from_single_file(__file__, upcast_attention=True)
    with pytest.raises(OSError, match=r"https://a/b.safetensors: no such file, and nothing is downloaded here"):
        face.AutoencoderKL.from_single_file("https://a/b.safetensors")


def test_what_a_pipeline_says_of_itself() -> None:
    ours, theirs = read("StableDiffusionXLPipeline", tiny_xl.base_folder())
    for name in ours.components:
        assert ours.config[name] == theirs.config[name]
    assert ours.parameters == theirs.parameters and ours.name_or_path == str(theirs.name_or_path)
    assert type(ours).load_config(tiny_xl.base_folder()) == type(theirs).load_config(tiny_xl.base_folder())
    for part in ("unet", "vae", "scheduler"):
        stated = [json.loads(getattr(pipe, part).to_json_string()) for pipe in (ours, theirs)]
        stated[1].pop("_name_or_path", None)
        assert stated[0] == stated[1]
    other = face.StableDiffusionXLPipeline(**ours.components, **ours.parameters)
    other.register_modules(vae=None)
    assert other.config.vae == (None, None) and other.hf_device_map is None
    with pytest.raises(Unsupported, match="enable_pag is not available: perturbed-attention guidance is not here"):
        face.AutoPipelineForText2Image.from_pipe(ours, enable_pag=True)


def test_outputs_and_configs_are_dictionaries() -> None:
    out = StableDiffusionPipelineOutput([1], None)
    assert isinstance(out, BaseOutput) and dict(out) == {"images": [1]} and out.get("nsfw_content_detected") is None
    out.update(images=[2])
    assert out.images == out["images"] == out[0] == out.copy().images == [2]
    with pytest.raises(TypeError, match="keeps its images; set it to None"):
        del out["images"]
    config = face.DDIMScheduler(beta_end=0.01).config
    assert isinstance(config, dict) and json.loads(json.dumps(config))["beta_end"] == 0.01
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    with pytest.raises(TypeError, match="a config cannot be changed; use register_to_config"):
        config["beta_end"] = 1


@pytest.mark.parametrize("at", [{"cutoff_step_ratio": 0.4}, {"cutoff_step_ratio": None, "cutoff_step_index": 1}])
@pytest.mark.parametrize("name", ["SDCFGCutoffCallback", "SDXLCFGCutoffCallback"])
def test_callbacks_that_end_guidance(name: str, at: dict[str, Any]) -> None:
    xl = "XL" in name
    folder = tiny_xl.base_folder() if xl else tiny.sd1_folder()
    pair = read(f"StableDiffusion{'XL' if xl else ''}Pipeline", folder)
    for several in (False, True):
        made: list[Any] = []
        for pipe, module in zip(pair, (callbacks, their_callbacks), strict=True):
            callback: Any = getattr(module, name)(**at)
            callback = module.MultiPipelineCallbacks([callback]) if several else callback
            made.append(call(pipe, num_inference_steps=3, callback_on_step_end=callback))
        same(*made)
    with pytest.raises(ValueError, match="both or none of cutoff_step_ratio and cutoff_step_index"):
        callbacks.SDCFGCutoffCallback(cutoff_step_index=1)


def test_processors_with_settings() -> None:
    picture = tiny.picture(70, 67)
    for settings in ({}, {"do_normalize": False}, {"resample": "bilinear"}, {"vae_scale_factor": 4}):
        processors = [kind(**settings) for kind in (VaeImageProcessor, diffusers.image_processor.VaeImageProcessor)]
        same(*(each.preprocess(picture) for each in processors))
        same(*(each.preprocess(picture, 32, 40) for each in processors))
        assert processors[0].config.do_resize == processors[1].config.do_resize
    masks = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    same(*(kind(**masks).preprocess(picture, 32, 40) for kind in (VaeImageProcessor, type(processors[1]))))
    with pytest.raises(Unsupported, match="reducing_gap is not available"):
        VaeImageProcessor(reducing_gap=2)
    assert numpy_to_pil(np.ones((1, 2, 2, 3)))[0].getpixel((0, 0)) == (255, 255, 255)
    assert pt_to_pil(-torch.ones(1, 3, 2, 2))[0].getpixel((0, 0)) == (0, 0, 0)
    drawn = randn_tensor((2, 3), generator=[torch.Generator().manual_seed(i) for i in (0, 1)])
    same(drawn, diffusers.utils.torch_utils.randn_tensor((2, 3), [torch.Generator().manual_seed(i) for i in (0, 1)]))


def test_logging_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    library, pipe = logging.getLogger("enlarger"), StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    before = library.level, list(library.handlers)
    try:
        face.logging.set_verbosity_info()
        assert face_logging.get_verbosity() == face_logging.INFO and library.handlers
        face_logging.disable_progress_bar()
        call(pipe)
        assert not capsys.readouterr().err
    finally:
        face_logging.enable_progress_bar()
        face_logging.disable_default_handler()
        library.setLevel(before[0])
    assert library.handlers == before[1]
    call(pipe)
    assert "2/2" in capsys.readouterr().err


def weakened(kind: Any) -> Any:
    """A subclass whose step takes nine tenths of an output."""

    class Weakened(kind):
        def step(self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, **options: Any) -> Any:
            given = options | ({} if generator is None else {"generator": generator})
            return super().step(model_output * 0.9, timestep, sample, **given)

    Weakened.__name__ = kind.__name__
    return Weakened


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"])
def test_a_subclass_has_its_own_step(kind: str) -> None:
    pair = read("StableDiffusionPipeline", tiny.sd1_folder())
    for pipe, module in zip(pair, (face, diffusers), strict=True):
        base: Any = getattr(module, f"{kind}Scheduler")
        pipe.scheduler = weakened(base).from_config(pipe.scheduler.config)
    same(*(call(pipe, num_inference_steps=3) for pipe in pair))


def test_listed_steps_of_a_call() -> None:
    pair = read("StableDiffusionPipeline", tiny.sd1_folder())
    for pipe, module in zip(pair, (face, diffusers), strict=True):
        pipe.scheduler = module.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    same(*(call(pipe, timesteps=AysSchedules["StableDiffusionTimesteps"][:3]) for pipe in pair))


def test_an_encoder_of_pictures_is_read_again(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(num_hidden_layers=1, projection_dim=8, **sizes)
    )
    given = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder(), image_encoder=encoder)
    given.save_pretrained(tmp_path / "one", variant="fp16")
    StableDiffusionPipeline.from_pretrained(tmp_path / "one", variant="fp16").save_pretrained(tmp_path / "two")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "two").image_encoder
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_errors_are_of_the_classes_that_diffusers_raises(tmp_path: Path) -> None:
    pipe = read("StableDiffusionPipeline", tiny.sd1_folder())[0]
    xl = read("StableDiffusionXLPipeline", tiny_xl.base_folder())[0]
    with pytest.raises(ValueError, match="clip_skip is 9"):
        call(pipe, clip_skip=9)
    with pytest.raises(ValueError):
        xl(["a", "b"], prompt_2=["a"], num_inference_steps=1)
    with pytest.raises(OSError, match="nothing is downloaded here"):
        pipe.load_lora_weights(tmp_path / "none")
    with pytest.raises(ValueError, match="the tokenizer already knows 'cat'"):
        pipe.load_textual_inversion({"cat": normal(1, tiny.WIDTH)})
    for kind in (OSError, ValueError):
        with pytest.raises(kind, match="no such folder, and nothing is downloaded here"):
            StableDiffusionPipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(OSError, match=r"is made by AutoPipelineForText2Image.from_pretrained"):
        face.AutoPipelineForText2Image()
    if not torch.accelerator.is_available():
        with pytest.raises(RuntimeError, match="found no accelerator"):
            pipe.enable_model_cpu_offload()
    with pytest.raises(InputError, match=r"precision is torch.float16, expected auto, float"):
        enlarger.load(tiny.sd1_folder(), precision=torch.float16)  # pyright: ignore[reportArgumentType] - what is refused


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AsymmetricAutoencoderKL", "import it from diffusers, whose autoencoders"),
        ("FluxPipeline", "import it from diffusers"),
        ("MotionAdapter", "import it from diffusers"),
        ("T2IAdapter", "there are no T2I adapters"),
        ("StableDiffusionXLAdapterPipeline", "there are no T2I adapters"),
        ("BitsAndBytesConfig", "import it from diffusers"),
        ("PipelineQuantizationConfig", "weights are not quantised here"),
        ("FasterCacheConfig", "none is kept between steps"),
        ("MultiControlNetModel", "there are no ControlNets"),
    ],
)
def test_other_names_raise_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ImportError, match=rf"^enlarger.diffusers has no {name}: {said}"):
        getattr(face, name)
    for module in ("callbacks", "utils", "schedulers"):
        with pytest.raises(ImportError, match=rf"^enlarger.diffusers.{module} has no {name}: {said}"):
            exec(f"from enlarger.diffusers.{module} import {name}")
    with pytest.raises(ImportError, match="hooks has no apply_group_offloading: use the pipeline's enable"):
        from enlarger.diffusers.hooks import apply_group_offloading  # noqa: F401  # pyright: ignore


def test_tokens_made_by_hand(tmp_path: Path) -> None:
    pair, vector = read("StableDiffusionPipeline", tiny.sd1_folder()), normal(tiny.WIDTH, seed=9)
    for pipe in pair:
        pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
        assert pipe.tokenizer.add_tokens("<thing>") == 1
        assert pipe.tokenizer.add_tokens(["<thing>"]) == 0
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
        place = pipe.tokenizer.convert_tokens_to_ids("<thing>")
        with torch.no_grad():
            pipe.text_encoder.get_input_embeddings().weight[place] = vector
    assert pair[0].tokenizer.encode("a <thing>") == pair[1].tokenizer.encode("a <thing>")
    made = [call(pipe, negative_prompt="a <thing>") for pipe in pair]
    same(*made)
    pair[0].save_pretrained(tmp_path)
    for module in (face, diffusers):
        again = module.StableDiffusionPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        same(call(again, negative_prompt="a <thing>"), made[0])
    with pytest.raises(ValueError, match="the embeddings are 8 wide, expected 32"):
        pair[0].text_encoder.set_input_embeddings(torch.nn.Embedding(5, 8))


def test_rows_of_ids_are_padded() -> None:
    ours, theirs = (pipe.tokenizer for pipe in read("StableDiffusionPipeline", tiny.sd1_folder()))
    rows = {"input_ids": [[49406, 320, 49407], [49406, 49407]]}
    for options in ({}, {"padding": "max_length", "max_length": 6}):
        found, wanted = (each.pad(dict(rows), **options) for each in (ours, theirs))
        assert found.input_ids == wanted["input_ids"] and found.attention_mask == wanted["attention_mask"]
    assert sorted(ours.all_special_tokens) == sorted(theirs.all_special_tokens)
    assert {name: ours.special_tokens_map[name] for name in theirs.special_tokens_map} == theirs.special_tokens_map
