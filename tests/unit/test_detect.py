"""What a file is, from names and shapes alone; what is said of files of another kind, of another model, of nothing."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from enlarger.checkpoint.families import FAMILIES
from enlarger.checkpoint.load_module import state_dict_mismatch
from enlarger.checkpoint.single_file import reference_shapes
from enlarger.checkpoint.single_file.detect import DetectedCheckpoint, detect, require_family
from enlarger.errors import CheckpointError, Unsupported
from tests.support.single import LAYOUTS, original_shapes_of

family_shapes = cache(reference_shapes.family_shapes)
COMPONENTS = {
    "sd1": {"unet", "vae", "text_encoder"},
    "sd2": {"unet", "vae", "text_encoder"},
    "sdxl": {"unet", "vae", "text_encoder", "text_encoder_2"},
    "sdxl_refiner": {"unet", "vae", "text_encoder_2"},
    "x2": {"unet", "noise_frequencies"},
    "vae": {"vae"},
}
PREDICTIONS = {"sd2": None, "x4": "v_prediction", "x2": "original_sample"}


@pytest.mark.parametrize("table", LAYOUTS)
def test_official_single_files(table: str) -> None:
    family, layout = LAYOUTS[table]
    shapes = original_shapes_of(table)
    found = detect(shapes)
    assert (found.family, found.layout, found.key_prefix) == (family, layout, "")
    assert set(found.components) == COMPONENTS[layout]
    if family is not None:
        assert found.kind == "model" and found.prediction_type == PREDICTIONS.get(family, "epsilon")
        assert FAMILIES[family].label in found.description and FAMILIES[family].purpose in found.description
    wrapped = detect({f"model_ema.{name}": shape for name, shape in shapes.items()})
    assert (wrapped.family, wrapped.key_prefix) == (family, "model_ema.")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_diffusers_unets(family: str) -> None:
    found = detect(family_shapes(family)["unet"])
    assert (found.kind, found.family, found.layout) == ("unet", family, "diffusers")
    assert found.description.startswith(f"the UNet of {FAMILIES[family].label}")


def test_other_parts() -> None:
    parts = family_shapes("sd1")
    assert detect(parts["vae"]).description == "an autoencoder of Stable Diffusion 1, 2 or XL"
    assert detect(family_shapes("x4")["vae"]).description == "an autoencoder of the x4 upscaler"
    official = {f"text_model.{name}": shape for name, shape in parts["text_encoder"].items()}
    for shapes in (official, parts["text_encoder"]):
        assert (detect(shapes).kind, detect(shapes).layout) == ("text_encoder", "diffusers")
    prefix = "cond_stage_model.model."
    tower = {n: s for n, s in original_shapes_of("sd2").items() if n.startswith(prefix)}
    assert (detect(tower).kind, detect(tower).key_prefix) == ("text_encoder", prefix)


def test_a_model_without_its_parts() -> None:
    """As programs that keep the UNets of many models and one autoencoder write them."""
    prefix = "model.diffusion_model."
    for table in ("sd1_inpainting", "sd2_depth", "sdxl_base", "sdxl_refiner"):
        unet = {name: shape for name, shape in original_shapes_of(table).items() if name.startswith(prefix)}
        found = detect(unet)
        assert (found.family, found.components) == (LAYOUTS[table][0], ("unet",))


def test_averaged_copies_and_marks_are_seen() -> None:
    shapes = original_shapes_of("sdxl_base")
    assert detect(shapes | {"model_ema.diffusion_modelout2bias": (4,)}).has_ema and not detect(shapes).has_ema
    assert detect(shapes | {"v_pred": (0,)}).prediction_type == "v_prediction"


OTHERS: dict[str, Any] = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": ("lora", "a LoRA with kohya's names"),
    "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": ("lora", "a LoRA with diffusers' names"),
    "text_encoder.x.lora_linear_layer.up.weight": ("lora", "a LoRA with diffusers' names"),
    "emb_params": ("textual_inversion", "a textual inversion"),
    "clip_g": ("textual_inversion", "a textual inversion"),
    "<my-cat>": ("textual_inversion", "a textual inversion"),
    "control_model.input_blocks.0.0.weight": ("controlnet", "a ControlNet"),
    "controlnet_cond_embedding.conv_in.weight": ("controlnet", "a ControlNet"),
    "adapter.body.0.block1.weight": ("adapter", "a T2I-Adapter"),
    "image_proj.proj.weight": ("adapter", "an IP-Adapter"),
    "down_blocks.0.motion_modules.0.proj_in.weight": ("video", "a video model or its part"),
    "model.diffusion_model.joint_blocks.0.x_block.attn.x": ("transformer", "a transformer (SD3, Flux or later)"),
    "double_blocks.0.img_attn.qkv.weight": ("transformer", "a transformer (SD3, Flux or later)"),
    "transformer_blocks.0.attn.add_q_proj.weight": ("transformer", "a transformer (SD3, Flux or later)"),
    "vision_model.embeddings.class_embedding": ("vision", "a CLIP image encoder or safety checker"),
    "decoder.layers.0.weight": ("preview", "a preview decoder (TAESD)"),
    "model.0.weight": ("pixel", "an upscaler of the ESRGAN kind"),
    "dpt.encoder.layer.0.x": ("depth", "a depth estimator"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds(name: str) -> None:
    found = detect({name: (4, 768)})
    assert (found.kind, found.description) == OTHERS[name] and found.family is None and found.advice
    with pytest.raises(CheckpointError, match=r"a.file: holds .*; expected Stable Diffusion 1 \(text to image"):
        require_family(found, ["sd1"], "a.file")


@pytest.mark.parametrize(("extra", "kind"), [
    ("control_model.zero_convs.0.0.weight", "controlnet"), ("edm_mean", "edm"),
    ("embedder.model.visual.proj", "unclip"), ("model.diffusion_model.input_blocks.1.0.time_stack.x", "video"),
])  # fmt: skip
def test_whole_models_of_other_kinds(extra: str, kind: str) -> None:
    assert detect(original_shapes_of("sd2") | {extra: (1,)}).kind == kind


def test_odd_unets() -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    pix = original_shapes_of("sd1") | {first: (320, 8, 3, 3)}
    with pytest.raises(Unsupported) as error:
        detect(pix, "pix.ckpt")
    assert str(error.value) == (
        "pix.ckpt: the UNet is one of Stable Diffusion 1 with 8 input channels, as InstructPix2Pix has them; supported"
        ": 4 (Stable Diffusion 1), 9 (Stable Diffusion 1 inpainting)"
    )
    unclip = family_shapes("sd2")["unet"] | {"add_embedding.linear_1.weight": (1280, 2048)}
    with pytest.raises(Unsupported, match=r"the UNet is an unCLIP model's"):
        detect(unclip)


def test_unknown_files_name_the_nearest_family_and_ten_differences() -> None:
    shapes = {n.replace("input_blocks.0.0", "input_block.0.0"): s for n, s in original_shapes_of("sdxl_base").items()}
    with pytest.raises(CheckpointError) as error:
        detect(shapes, Path("x.safetensors"))
    said = str(error.value)
    assert said.startswith("x.safetensors: no model known here; the nearest is SDXL base (text to image, enlarger.")
    assert "with 6 differences: model.diffusion_model.input_blocks.0.0.weight is missing, " in said
    assert "model.diffusion_model.input_block.0.0.weight is unexpected" in said
    decoder = {n: s for n, s in family_shapes("sd1")["vae"].items() if n.startswith("encoder.")}
    with pytest.raises(
        CheckpointError, match=r"nearest is an autoencoder of Stable Diffusion, with 142 differences: .*"
    ):
        detect(decoder)
    with pytest.raises(CheckpointError, match=r"^the file: 2 weights like those of nothing known here: a.b, c.d\.$"):
        detect({"a.b": (3, 5), "c.d": (1,)})
    with pytest.raises(CheckpointError, match=r"0 weights like those of nothing"):
        detect({})


SWAPS = {  # weights of the first where the second is expected
    "sdxl as sd2": ("sdxl", "sd2"), "sd2 as sd1": ("sd2", "sd1"), "sd1 as sd2": ("sd1", "sd2"),
    "x2 as x4": ("x2", "x4"),
    "x4 as x2": ("x4", "x2"), "inpainting as base": ("sd1_inpainting", "sd1"),
    "base as inpainting": ("sd2", "sd2_inpainting"),
    "depth as base": ("sd2_depth", "sd2"), "x4 as sd2": ("x4", "sd2"), "refiner as base": ("sdxl_refiner", "sdxl"),
    "base as refiner": ("sdxl", "sdxl_refiner"), "xl inpainting as base": ("sdxl_inpainting", "sdxl"),
}  # fmt: skip


@pytest.mark.parametrize("swap", SWAPS)
def test_twelve_swaps(swap: str) -> None:
    """As a whole file where another model is wanted, and as the UNet in the folder of another model."""
    given, wanted = SWAPS[swap]
    whole = DetectedCheckpoint(
        "model", detect(family_shapes(given)["unet"]).description.removeprefix("the UNet of "), given
    )
    with pytest.raises(CheckpointError) as error:
        require_family(whole, [wanted], "m.safetensors")
    for family in (given, wanted):
        assert f"{FAMILIES[family].label} ({FAMILIES[family].purpose})" in str(error.value)
    said = state_dict_mismatch(family_shapes(wanted)["unet"], family_shapes(given)["unet"])
    assert said is not None
    kind = FAMILIES[given].label.removesuffix(" inpainting").removesuffix(" depth").removeprefix("the ")
    assert kind in said and f"These weights are for {FAMILIES[given].purpose}" in said, said
    require_family(whole, [wanted, given], "m.safetensors")


def test_swapped_parts_of_folders() -> None:
    """The other networks of a folder say whose they are."""
    parts = {family: family_shapes(family) for family in ("sd1", "sd2", "x4", "sdxl")}
    said = state_dict_mismatch(parts["sd2"]["text_encoder"], parts["sd1"]["text_encoder"])
    assert said is not None and "looks like CLIP ViT-L's text encoder (SD1" in said
    said = state_dict_mismatch(parts["sd1"]["vae"], parts["x4"]["vae"])
    assert said is not None and "looks like an AutoencoderKL with 3 levels" in said
    said = state_dict_mismatch(parts["sdxl"]["text_encoder_2"], parts["sdxl"]["text_encoder"])
    assert said is not None and "its config like CLIP bigG's text encoder (SDXL's text_encoder_2)" in said
