"""LoRAs of every layout change our networks as diffusers and PEFT change theirs."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import apply_lora, apply_loras, read_lora
from enlarger.checkpoint.adapters.lora_key_mapping import KOHYA_PREFIXES, layer_aliases
from enlarger.checkpoint.config.network_configs import clip_projection_config, clip_text_config, unet_config
from enlarger.checkpoint.folder.load import read_folder
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.official import config_of
from tests.support.random_weights import normal, randomise

ATOL = 1e-5
RANK = 3
ATTENTION = r"attn\d\.to_|self_attn\..*_proj"
LINEAR = rf"{ATTENTION}|\.proj_|ff\.net|mlp\.fc"
EVERYTHING = rf"{LINEAR}|conv|time_emb"
IDS = torch.tensor([[49406, 320, 2368, 49407, 49407], [49406, 1929, 539, 320, 49407]])

Tensors = dict[str, Tensor]
Layout = Callable[[str, str], str]  # part and layer to the name before `.down.weight` and `.up.weight`

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
pytest.importorskip("peft", reason="the oracle adds LoRAs with peft")


@pytest.fixture(autouse=True)
def peft_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sdxl_pipeline() -> Any:
    """SDXL's parts, tiny, with two layers in each stage as the original numbering expects."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 64), layers_per_block=2, attention_head_dim=(2, 2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2), cross_attention_dim=64, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8,
    )  # fmt: skip
    second = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=32,
        hidden_act="gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    parts = tiny.sd1_parts()
    return StableDiffusionXLPipeline(
        vae=parts["vae"], text_encoder=parts["text_encoder"], tokenizer=parts["tokenizer"],
        text_encoder_2=randomise(CLIPTextModelWithProjection(second), 5), tokenizer_2=parts["tokenizer"],
        unet=randomise(unet, 4), scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sd1() -> tuple[Any, dict[str, nn.Module]]:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    return theirs, _networks(tiny.sd1_folder(), "unet", "text_encoder")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, nn.Module]]:
    theirs, folder = sdxl_pipeline(), tmp_path_factory.mktemp("sdxl")
    theirs.save_pretrained(folder)
    return theirs, _networks(folder, "unet", "text_encoder", "text_encoder_2")


def _networks(folder: Path, *parts: str) -> dict[str, nn.Module]:
    return dict(read_folder(folder, only=parts).components)


def peft(part: str, layer: str) -> str:
    """Newer text encoders have no `text_model.`; diffusers finds only what is spelled as in its own."""
    return f"{part}.{_long(part, layer) if part == 'text_encoder_2' else layer}.lora"


def dotted(part: str, layer: str) -> str:
    """diffusers 0.22 and later."""
    return f"{part}.{_long(part, layer)}.lora" if part == "unet" else f"{part}.{_long(part, layer)}.lora_linear_layer"


def processors(part: str, layer: str) -> str:
    """diffusers before 0.18: attention only."""
    if part == "unet":
        layer = re.sub(r"(attn\d)", r"\1.processor", layer)
        return f"unet.{layer.removesuffix('to_out.0')}to_out_lora" if "to_out" in layer else f"unet.{layer}_lora"
    return f"{part}.text_model." + re.sub(r"self_attn\.(\w+)_proj", r"self_attn.to_\1_lora", layer)


def kohya(part: str, layer: str) -> str:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}[part]
    return prefix + _long(part, layer).replace(".", "_")


def kohya_xl(part: str, layer: str) -> str:
    """kohya's SDXL files count the original code's blocks."""
    if part != "unet":
        return kohya(part, layer).replace("lora_te_", "lora_te1_")
    return "lora_unet_" + original_name(layer).replace(".", "_")


def original_name(layer: str) -> str:
    """Two layers a stage, three stages, attention in the last two going down and the first two going up."""
    sub = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
    sub["conv_shortcut"] = "skip_connection"
    side, *rest = layer.split(".")
    if side == "mid_block":
        kind, index, *rest = rest
        place = f"middle_block.{1 if kind == 'attentions' else int(index) * 2}"
    else:
        stage, kind, index, *rest = rest
        number = 3 * int(stage) + int(index)
        if kind == "downsamplers":
            return f"input_blocks.{number + 3}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{number + 2}.2.conv"
        down = side == "down_blocks"
        place = f"{'input' if down else 'output'}_blocks.{number + down}.{int(kind == 'attentions')}"
    return ".".join([place, *(sub.get(word, word) for word in rest)])


def _long(part: str, layer: str) -> str:
    return layer if part == "unet" or layer == "text_projection" else f"text_model.{layer}"


def written(layout: Layout, networks: Mapping[str, nn.Module], wanted: str, alpha: float | None = None) -> Tensors:
    """Random factors for all layers whose name fits."""
    made: Tensors = {}
    for part, network in networks.items():
        for seed, (layer, module) in enumerate(network.named_modules()):
            if isinstance(module, nn.Linear | nn.Conv2d) and re.search(wanted, layer):
                shape, kernel = module.weight.shape, (1, 1) if isinstance(module, nn.Conv2d) else ()
                factors = {
                    "down": 0.3 * normal(RANK, *shape[1:], seed=seed),
                    "up": 0.3 * normal(shape[0], RANK, *kernel, seed=seed + 1000),
                }
                stem = layout(part, layer)
                for half, factor in factors.items():
                    made[_half(stem, half)] = factor
                if alpha is not None:
                    made[f"{stem}.alpha"] = torch.tensor(alpha)
    return made


def _half(stem: str, half: str) -> str:
    if stem.startswith("lora_"):
        return f"{stem}.lora_{half}.weight"
    if not stem.endswith((".lora", ".lora_linear_layer", "_lora")):
        raise AssertionError(stem)
    return f"{stem}.{half}.weight"


def as_peft(tensors: Tensors) -> Tensors:
    return {name.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): v for name, v in tensors.items()}


def their_outputs(pipe: Any) -> Tensors:
    with torch.no_grad():
        found = {"unet": pipe.unet(**_unet_inputs(pipe.unet)).sample}
        for part in ("text_encoder", "text_encoder_2"):
            if (encoder := getattr(pipe, part, None)) is not None:
                made = encoder(IDS, output_hidden_states=True)
                found[part] = made.last_hidden_state
                if "text_embeds" in made:
                    found[f"{part} projected"] = made.text_embeds
    return found


def our_outputs(networks: Mapping[str, Any]) -> Tensors:
    with torch.no_grad():
        found: Tensors = {}
        for part, network in networks.items():
            if part == "unet":
                found[part] = _our_unet(network)
            else:
                made = network(IDS)
                found[part] = made.last_hidden_state
                if made.text_embeds is not None:
                    found[f"{part} projected"] = made.text_embeds
    return found


def _unet_inputs(unet: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": normal(2, 4, 8, 8), "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": normal(2, 5, unet.config.cross_attention_dim, seed=2),
    }  # fmt: skip
    if unet.config.addition_embed_type is not None:
        inputs["added_cond_kwargs"] = {"text_embeds": normal(2, 32, seed=3), "time_ids": torch.zeros(2, 6)}
    return inputs


def _our_unet(unet: UNet) -> Tensor:
    from enlarger.nn.blocks import sinusoidal_embedding

    vector = None
    if unet.config.vector_channels is not None:
        vector = torch.cat([normal(2, 32, seed=3), sinusoidal_embedding(torch.zeros(12), 8).reshape(2, -1)], dim=1)
    tokens = normal(2, 5, unet.config.context_channels, seed=2)
    return unet(normal(2, 4, 8, 8), torch.tensor([10.0, 900.0]), tokens=tokens, vector=vector)


CASES: dict[str, tuple[str, Layout, str, float | None]] = {
    "peft": ("sd1", peft, LINEAR, None),
    "diffusers": ("sd1", dotted, LINEAR, None),
    "processors": ("sd1", processors, ATTENTION, None),
    "kohya": ("sd1", kohya, LINEAR, 1.5),
    "kohya without alpha": ("sd1", kohya, LINEAR, None),
    "locon": ("sd1", kohya, EVERYTHING, 1.0),
    "sdxl peft": ("sdxl", peft, LINEAR, None),
    "sdxl kohya": ("sdxl", kohya_xl, LINEAR, 1.5),
    "sdxl locon": ("sdxl", kohya_xl, rf"{LINEAR}|blocks.*(conv|time_emb_proj)", 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_layouts(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, layout, wanted, alpha = CASES[case]
    theirs, networks = request.getfixturevalue(model)
    tensors = written(layout, networks, wanted, alpha)
    tensors = as_peft(tensors) if layout is peft else tensors
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    before = our_outputs(networks)
    theirs.load_lora_weights(file)
    try:
        expected = their_outputs(theirs)
    finally:
        theirs.unload_lora_weights()
    lora = read_lora(file, networks)
    changed = {part: apply_lora(network, lora.components[part]) for part, network in networks.items()}
    for name, found in our_outputs(changed).items():
        assert_close(found, expected[name], ATOL)
        assert (found - before[name]).abs().max() > 0.05
    for name, found in our_outputs(networks).items():
        assert torch.equal(found, before[name])


def test_settings_in_the_header(sd1: Any, tmp_path: Path) -> None:
    """PEFT's alpha, its patterns and rank-stabilised scaling, as diffusers saves them."""
    theirs, networks = sd1
    tensors = as_peft(written(peft, networks, ATTENTION))
    common = {"r": RANK, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "peft_type": "LORA"}
    text = ["q_proj", "k_proj", "v_proj", "out_proj"]
    settings = {
        "unet": common | {"lora_alpha": 4, "alpha_pattern": {"attn2.to_k": 1, r"mid_block\..*\.to_q": 7}},
        "text_encoder": common | {"lora_alpha": 2, "use_rslora": True, "target_modules": text},
    }
    flat = {f"{part}.{name}": value for part, each in settings.items() for name, value in each.items()}
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": json.dumps(flat)})
    theirs.load_lora_weights(file)
    try:
        expected = their_outputs(theirs)
    finally:
        theirs.unload_lora_weights()
    lora = read_lora(file, networks)
    for name, found in our_outputs({p: apply_lora(n, lora.components[p]) for p, n in networks.items()}).items():
        assert_close(found, expected[name], ATOL)


def test_several_adapters_with_weights(sd1: Any, tmp_path: Path) -> None:
    theirs, networks = sd1
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(as_peft(written(peft, networks, ATTENTION)), files[0])
    save_file(written(kohya, networks, LINEAR, 2.0), files[1])
    for name, file in zip("ab", files, strict=True):
        theirs.load_lora_weights(file, adapter_name=name)
    theirs.set_adapters(["a", "b"], [0.7, -0.4])
    try:
        expected = their_outputs(theirs)
    finally:
        theirs.unload_lora_weights()
    loras = [read_lora(file, networks) for file in files]
    changed = {
        part: apply_loras(network, zip((lora.components[part] for lora in loras), (0.7, -0.4), strict=True))
        for part, network in networks.items()
    }
    for name, found in our_outputs(changed).items():
        assert_close(found, expected[name], ATOL)


OFFICIAL = {
    "stable-diffusion-v1-5/unet": "unet",
    "stable-diffusion-2-1/unet": "unet",
    "stable-diffusion-xl-base-1.0/unet": "unet",
    "stable-diffusion-xl-refiner-1.0/unet": "unet",
    "stable-diffusion-v1-5/text_encoder": "text_encoder",
    "stable-diffusion-2-1/text_encoder": "text_encoder",
    "stable-diffusion-xl-base-1.0/text_encoder_2": "text_encoder_2",
}


@pytest.mark.parametrize("file", OFFICIAL)
def test_official_names(file: str) -> None:
    """Each kohya name of each layer of the official models is one layer, which diffusers' converter finds as well."""
    part, config = OFFICIAL[file], config_of(file)
    with torch.device("meta"):
        if part == "unet":
            network: nn.Module = UNet(unet_config(config))
        else:
            network = ClipText((clip_projection_config if part == "text_encoder_2" else clip_text_config)(config))
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    table = layer_aliases(part, layers)
    assert set(table.values()) == set(layers)
    for prefix in KOHYA_PREFIXES[part]:
        plain = {kohya_of(prefix, _long(part, layer)): layer for layer in layers}
        assert len(plain) == len(layers) and plain.items() <= table.items()
        assert_converted(part, {name: layer for name, layer in plain.items() if not _diffusers_misses(layer)})
    if "xl" in file and part == "unet":
        counted = {n: layer for n, layer in table.items() if n.startswith("lora_unet_") and n not in plain}
        assert set(counted.values()) == set(layers)
        assert_converted(part, {name: layer for name, layer in counted.items() if not COUNTED_MISSES.search(name)})


# diffusers takes block 10 for block 1 too, and upsamplers are third in a block; in the refiner's outer blocks, second
COUNTED_MISSES = re.compile(r"put_blocks_1\d|output_blocks_\d_1_conv")


def kohya_of(prefix: str, layer: str) -> str:
    return prefix + layer.replace(".", "_")


def _diffusers_misses(layer: str) -> bool:
    """Layers outside the blocks that diffusers' converter does not know by their diffusers names."""
    return layer.startswith("add_embedding")


def assert_converted(part: str, names: Mapping[str, str]) -> None:
    """diffusers' converters give the same layer for each name."""
    tensors: Tensors = {}
    for number, name in enumerate(names):
        tensors[f"{name}.lora_down.weight"] = tensors[f"{name}.lora_up.weight"] = torch.tensor(float(number))
    loader: Any = diffusers.StableDiffusionXLPipeline
    made, _ = loader.lora_state_dict(tensors, unet_config=SimpleNamespace(layers_per_block=2))
    bare = {name.removeprefix(f"{part}."): tensor for name, tensor in made.items()}
    if part == "unet":
        bare = convert_unet_state_dict_to_peft(bare)
    else:
        bare = convert_state_dict_to_peft(convert_state_dict_to_diffusers(bare))
    wanted = list(names.values())
    found = {name.removesuffix(".lora_A.weight"): int(tensor) for name, tensor in bare.items() if "lora_A" in name}
    assert {name.removeprefix("text_model."): wanted[number] for name, number in found.items()} == {
        layer: layer for layer in wanted
    }
