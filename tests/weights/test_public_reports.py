"""What users of other programs have reported about their files, rebuilt small; listed in docs/compatibility.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import apply_loras, read_lora
from enlarger.checkpoint.adapters.textual_inversion import add_textual_inversion, read_textual_inversion
from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.single_file.component_override import read_vae_file
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import original_state_dict
from enlarger.errors import CheckpointError, InputError
from enlarger.image.decode import UnreadableImage
from enlarger.image.mask import read_mask
from enlarger.image.picture import read_picture
from tests.support import tiny
from tests.support.random_weights import normal
from tests.support.single import tiny_single
from tests.support.spandrel import NETWORKS
from tests.support.tiny_models import same_weights

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
Weights = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def sd1() -> PipelineComponents:
    return tiny_single("sd1")


@pytest.fixture(scope="module")
def original(sd1: PipelineComponents) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in original_state_dict(sd1).items()}


def written(path: Path, tensors: Weights) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    "extra",
    [{POSITIONS: torch.arange(77)[None]}, {POSITIONS: torch.arange(77.0)[None]}, {}],
    ids=["position_ids", "position_ids of merges", "no metadata"],
)
def test_single_files_that_load(
    sd1: PipelineComponents, original: Weights, tmp_path: Path, extra: dict[str, Tensor]
) -> None:
    found = read_single_file(written(tmp_path / "a.safetensors", {**original, **extra}))
    assert all(same_weights(found.components[name], sd1.components[name]) for name in ("unet", "vae", "text_encoder"))


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("first_stage_model.", r"holds Stable Diffusion 1 .* without vae. Pass vae=, a folder or a file of them"),
        ("first_stage_model.encoder.conv_in.weight", r"1 weights missing: encoder.conv_in.weight"),
        ("cond_stage_model.", r"without text_encoder. Pass text_encoder="),
    ],
    ids=["no autoencoder", "corrupt autoencoder", "no text encoder"],
)
def test_single_files_that_lack_something(original: Weights, tmp_path: Path, dropped: str, message: str) -> None:
    kept = {name: tensor for name, tensor in original.items() if not name.startswith(dropped)}
    with pytest.raises(CheckpointError, match=message):
        read_single_file(written(tmp_path / "a.safetensors", kept))


def test_an_autoencoder_alone_under_old_names(sd1: PipelineComponents, tmp_path: Path) -> None:
    weights = dict(sd1.components["vae"].state_dict())
    for new, old in OLD_ATTENTION.items():
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    assert same_weights(read_vae_file(written(tmp_path / "a.safetensors", weights)), sd1.components["vae"])


def test_what_lightning_keeps_is_read_or_refused_in_one_line(original: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": dict(original), "callbacks": {"x": 1}, "epoch": 1}, tmp_path / "a.ckpt")
    assert "unet" in read_single_file(tmp_path / "a.ckpt", allow_pickle=True).components
    torch.save({"state_dict": dict(original), "loss": nn.MSELoss()}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"its program names 'torch\.nn.modules.loss.MSELoss'") as raised:
        read_single_file(tmp_path / "b.ckpt", allow_pickle=True)
    assert str(raised.value).isprintable() and "weights_only" not in str(raised.value)


def kohya(layer: str, **more: Tensor) -> dict[str, Tensor]:
    tensors = {"lora_down.weight": normal(2, 32), "lora_up.weight": normal(32, 2), **more}
    return {f"{layer}.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}


KOHYA_LAYER = f"lora_unet_{LAYER.replace('.', '_')}_to_q"
TEXT_LAYER = "text_model_encoder_layers_0_mlp_fc1"
LORAS: dict[str, dict[str, Tensor]] = {
    "attention processors": {
        f"unet.{LAYER}.processor.to_q_lora.{part}.weight": normal(*size)
        for part, size in (("down", (2, 32)), ("up", (32, 2)))
    },
    "attention processors without prefix": {
        f"{LAYER}.processor.to_q_lora.{part}.weight": normal(*size)
        for part, size in (("down", (2, 32)), ("up", (32, 2)))
    },
    "names of the original blocks": kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
    "dora_scale": kohya(KOHYA_LAYER, dora_scale=torch.full((1, 32), 0.7), alpha=torch.tensor(2.0)),
    "on_input": {
        f"{KOHYA_LAYER}.weight": torch.full((32,), 0.5), f"{KOHYA_LAYER}.on_input": torch.tensor(True),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LORAS)
def test_loras_that_load(sd1: PipelineComponents, tmp_path: Path, name: str) -> None:
    networks = {part: sd1.components[part] for part in ("unet", "text_encoder")}
    lora = read_lora(written(tmp_path / "a.safetensors", LORAS[name]), networks)
    changed = apply_loras(networks["unet"], [(lora.components["unet"], 1.0)]).state_dict()
    before = networks["unet"].state_dict()
    assert [key for key in before if not changed[key].equal(before[key])] == [f"{LAYER}.to_q.weight"]


def test_a_lora_of_sdxl_on_another_family_is_named(sd1: PipelineComponents, tmp_path: Path) -> None:
    networks = {part: sd1.components[part] for part in ("unet", "text_encoder")}
    tensors = kohya(KOHYA_LAYER) | kohya(f"lora_te2_{TEXT_LAYER}", alpha=torch.tensor(2.0))
    with pytest.warns(UserWarning, match="lora_te2_text_model_encoder_layers_0_mlp_fc1"):
        lora = read_lora(written(tmp_path / "a.safetensors", tensors), networks)
    assert list(lora.components) == ["unet"]


def test_inversions_of_other_families(sd1: PipelineComponents, tmp_path: Path) -> None:
    both = written(tmp_path / "both.safetensors", {"clip_l": normal(1, 768), "clip_g": normal(1, 1280)})
    assert list(read_textual_inversion(both).vectors) == ["clip_l", "clip_g"]
    whole = written(tmp_path / "whole.safetensors", sd1.components["text_encoder"].state_dict())
    with pytest.raises(CheckpointError, match=r"expected the vectors of one token; pick one with token="):
        read_textual_inversion(whole)
    small = read_textual_inversion(written(tmp_path / "small.safetensors", {"emb_params": normal(1, 768)}))
    parts = sd1.components["tokenizer"], sd1.components["text_encoder"]
    with pytest.raises(InputError, match=r"are 768 wide .SD1 .* use an inversion that was made for this model"):
        add_textual_inversion(*parts, small)
    torch.save({"<cat>": normal(64)}, tmp_path / "learned_embeds.bin")
    assert read_textual_inversion(tmp_path, allow_pickle=True).token == "<cat>"


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def test_pictures_as_they_are_seen(tmp_path: Path) -> None:
    exif, palette = Image.Exif(), photo().quantize(16)
    exif[0x0112] = 6
    photo().save(tmp_path / "turned.jpg", exif=exif)
    turned = read_picture(tmp_path / "turned.jpg")
    assert (turned.width, turned.height) == (12, 20)
    palette.save(tmp_path / "palette.png", transparency=3)
    alpha = read_picture(tmp_path / "palette.png").alpha
    assert alpha is not None and bool((alpha[0].numpy() == (np.array(palette) != 3)).all())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo().convert("L").save(tmp_path / "grey.png", icc_profile=profile)
    grey = read_picture(tmp_path / "grey.png")
    assert grey.is_grey and bool(
        ((grey.colour[0] + 1) * 127.5 - torch.tensor(np.array(photo().convert("L")))).abs().max() < 1
    )


def test_files_under_another_kinds_name(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.avif")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.avif").read_bytes())
    assert read_picture(tmp_path / "a.jpg").width == 20
    (tmp_path / "b.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UnreadableImage, match=r"b\.png: (is a HEIC photo|the HEIF header is damaged)"):
        read_picture(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"64 x 24 pixels and the picture 2496 x 1664; make them equal, or resize it"):
        read_mask(Image.new("L", (64, 24)), (1664, 2496), "white")


SCHEDULES: dict[str, tuple[dict[str, Any], int]] = {
    "DDIM of 1000": ({"_class_name": "DDIMScheduler", "steps_offset": 1, "set_alpha_to_one": False}, 1000),
    "PNDM of 3": ({"_class_name": "PNDMScheduler", "steps_offset": 1, "skip_prk_steps": True}, 3),
    "PNDM with Runge-Kutta of 3": ({"_class_name": "PNDMScheduler", "steps_offset": 1}, 3),
    "DDPM of 53": ({"_class_name": "DDPMScheduler"}, 53),
    **{
        f"cosine with {name}": (
            {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", name: True},
            20,
        )
        for name in ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas")
    },
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_that_run(name: str) -> None:
    config, steps = SCHEDULES[name]
    sampler = sampler_from_config(config)
    schedule = sampler.sigma_schedule(steps)
    assert schedule.steps in (steps, steps - 1)  # the last of 1000 would lead from the least level to itself
    assert 0 <= float(schedule.timesteps.min()) <= float(schedule.timesteps.max()) <= 999


@pytest.mark.parametrize("form", ["params", "params_ema", "torch before 1.6"])
def test_upscalers_of_others(tmp_path: Path, form: str) -> None:
    weights = NETWORKS["ESRGAN"]().state_dict()
    wrapped = {"params": {"params": weights}, "params_ema": {"params": weights, "params_ema": weights}}
    torch.save(wrapped.get(form, weights), tmp_path / "a.pth", _use_new_zipfile_serialization=form in wrapped)
    found = read_single_file(tmp_path / "a.pth", allow_pickle=True)
    assert found.index["_class_name"] == "PixelNetwork"
