"""Reading LoRA files and adding them: the formula, what is shared, and what is said of files that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import Lora, apply_lora, apply_loras, parse_lora, read_lora
from enlarger.checkpoint.adapters.lora_key_mapping import layer_aliases
from enlarger.checkpoint.config.network_configs import unet_config
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import UNet
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.official import config_of
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import K_UNET, TEXT, UNET

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
PROJECTION = "down_blocks.0.attentions.0.proj_in"  # a 1x1 convolution
CONVOLUTION = "mid_block.resnets.0.conv1"
TEXT_LAYER = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"unet": randomise(UNet(UNET)), "text_encoder": randomise(ClipText(TEXT), 1)}


def kohya(layer: str, down: Tensor, up: Tensor, **more: Tensor) -> dict[str, Tensor]:
    name = "lora_unet_" + layer.replace(".", "_")
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up} | {
        f"{name}.{k}": v for k, v in more.items()
    }


def changed(networks: dict[str, nn.Module], tensors: dict[str, Tensor], layer: str, scale: float = 1.0) -> Tensor:
    """How much a LoRA changes a layer of the UNet."""
    unet = networks["unet"]
    made = apply_lora(unet, parse_lora(tensors, networks).components["unet"], scale)
    return made.get_parameter(f"{layer}.weight") - unet.get_parameter(f"{layer}.weight")


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (4.0, 2.0), (1.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0, -1.0])
def test_alpha_over_rank(networks: Any, alpha: float | None, factor: float, scale: float) -> None:
    down, up = normal(2, 32), normal(32, 2, seed=2)
    more = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    found = changed(networks, kohya(ATTENTION, down, up, **more), ATTENTION, scale)
    assert_close(found, scale * factor * (up @ down), 1e-5)


def test_convolutions(networks: Any) -> None:
    down, up = normal(2, 64, 3, 3), normal(64, 2, 1, 1, seed=2)
    found = changed(networks, kohya(CONVOLUTION, down, up), CONVOLUTION)
    assert_close(found, torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down), 1e-5)


def test_three_factors_of_a_convolution(networks: Any) -> None:
    """As LoCon runs them: 1x1, 3x3, 1x1, one after the other."""
    down, mid, up = normal(2, 64, 1, 1), normal(2, 2, 3, 3, seed=2), normal(64, 2, 1, 1, seed=3)
    tensors = kohya(CONVOLUTION, down, up, alpha=torch.tensor(1.0)) | kohya(CONVOLUTION, down, up)
    tensors["lora_unet_" + CONVOLUTION.replace(".", "_") + ".lora_mid.weight"] = mid
    weight, x = changed(networks, tensors, CONVOLUTION), normal(1, 64, 6, 6, seed=4)
    conv = torch.nn.functional.conv2d
    assert_close(conv(x, weight, padding=1), 0.5 * conv(conv(conv(x, down), mid, padding=1), up), 1e-3)


@pytest.mark.parametrize("kernel", [(), (1, 1)])
@pytest.mark.parametrize("layer", [ATTENTION, PROJECTION])
def test_linear_layers_and_small_convolutions_are_the_same(networks: Any, layer: str, kernel: tuple[int, ...]) -> None:
    down, up = normal(2, 32), normal(32, 2, seed=2)
    tensors = kohya(layer, down.reshape(2, 32, *kernel), up.reshape(32, 2, *kernel))
    assert_close(changed(networks, tensors, layer).flatten(1), up @ down, 1e-5)


def test_the_module_stays_and_shares_the_rest(networks: Any) -> None:
    unet = networks["unet"]
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    lora = parse_lora(kohya(ATTENTION, normal(2, 32), normal(32, 2)), networks)
    made = apply_lora(unet, lora.components["unet"])
    assert isinstance(made, UNet) and made.config == unet.config and not made.training
    mine, theirs = dict(made.named_parameters()), dict(unet.named_parameters())
    assert [name for name in theirs if mine[name] is not theirs[name]] == [f"{ATTENTION}.weight"]
    assert not mine[f"{ATTENTION}.weight"].requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_half_precision_is_rounded_once() -> None:
    unet = randomise(UNet(UNET)).half()
    networks = {"unet": unet}
    updates = [
        parse_lora(kohya(ATTENTION, normal(2, 32, seed=k).half(), normal(32, 2, seed=9).half()), networks).components[
            "unet"
        ]
        for k in range(3)
    ]
    weight = unet.get_parameter(f"{ATTENTION}.weight")
    exact = weight.float() + sum(
        0.1 * normal(32, 2, seed=9).half().float() @ normal(2, 32, seed=k).half().float() for k in range(3)
    )
    found = apply_loras(unet, [(each, 0.1) for each in updates]).get_parameter(f"{ATTENTION}.weight")
    assert found.dtype == torch.float16
    assert_close(found.float(), exact.half().float(), 2e-3)


def test_settings_of_peft(networks: Any, tmp_path: Path) -> None:
    tensors = {
        f"unet.{ATTENTION}.lora_A.weight": normal(2, 32), f"unet.{ATTENTION}.lora_B.weight": normal(32, 2),
        f"text_encoder.text_model.{TEXT_LAYER}.lora_A.weight": normal(4, 32),
        f"text_encoder.text_model.{TEXT_LAYER}.lora_B.weight": normal(64, 4),
    }  # fmt: skip
    settings: dict[str, Any] = {
        "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 1},
        "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": True,
    }  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    parts = read_lora(tmp_path / "a.safetensors", networks).components
    assert parts["unet"][f"{ATTENTION}.weight"].scale == 0.5
    assert parts["text_encoder"][f"{TEXT_LAYER}.weight"].scale == 4.0
    for said, message in (("{", "is not valid JSON"), ("[]", "is a JSON list, expected an object")):
        save_file(tensors, tmp_path / "b.safetensors", {"lora_adapter_metadata": said})
        with pytest.raises(CheckpointError, match=message):
            read_lora(tmp_path / "b.safetensors", networks)
    with pytest.raises(CheckpointError, match="its lora_adapter_metadata cannot be understood"):
        parse_lora(tensors, networks, {"unet.lora_alpha": "much"})


@pytest.mark.parametrize(
    ("patterns", "scale"),
    [
        ({"to_k": 1}, 0.5), ({"k": 1}, 4.0), ({"attn2.to_k": 1, "to_k": 3}, 0.5), ({"to_k": 3, "attn2.to_k": 1}, 1.5),
        ({ATTENTION: 1}, 0.5), ({f"^{ATTENTION}": 1}, 0.5), ({"attn1.to_k": 1}, 4.0), ({}, 4.0),
        ({r"down_blocks\..*\.to_k": 1}, 0.5), ({".*attn2.*": 1}, 0.5), ({r"mid_block\..*\.to_k": 1}, 4.0),
        ({".*attn2": 1}, 4.0), ({"down_blocks.*attn2.*to_k": 1, "to_k": 3}, 0.5),
    ],
)  # fmt: skip
def test_alphas_by_layer_are_names_and_their_ends(networks: Any, patterns: dict[str, int], scale: float) -> None:
    tensors = {f"unet.{ATTENTION}.lora_A.weight": normal(2, 32), f"unet.{ATTENTION}.lora_B.weight": normal(32, 2)}
    found = parse_lora(tensors, networks, {"unet.lora_alpha": 8, "unet.alpha_pattern": patterns})
    assert found.components["unet"][f"{ATTENTION}.weight"].scale == scale


@pytest.mark.parametrize("pattern", ["(a+)+$", "to_.+", "*to_k", "to_[qk]", "", "(((", "to_k|to_q"])
def test_no_pattern_of_a_file_is_run(networks: Any, pattern: str) -> None:
    tensors = {f"unet.{ATTENTION}.lora_A.weight": normal(2, 32), f"unet.{ATTENTION}.lora_B.weight": normal(32, 2)}
    with pytest.raises(
        Unsupported, match=r"its alpha_pattern has .*, expected the name of a layer; patterns of a file"
    ):
        parse_lora(tensors, networks, {"unet.alpha_pattern": {pattern: 1}})


def test_a_layer_in_two_spellings(networks: Any) -> None:
    down, up = normal(2, 32), normal(32, 2)
    plain = {f"unet.{ATTENTION}.lora.down.weight": down, f"unet.{ATTENTION}.lora.up.weight": up}
    assert len(parse_lora(kohya(ATTENTION, down, up) | plain, networks).components["unet"]) == 1
    with pytest.raises(CheckpointError, match=rf"and unet.{ATTENTION} change one layer differently; expected one"):
        parse_lora(kohya(ATTENTION, 2 * down, up) | plain, networks)


def test_names_without_a_part_are_the_unets(networks: Any) -> None:
    down, up = normal(2, 32), normal(32, 2)
    old = ATTENTION.replace("attn2", "attn2.processor")
    lora = parse_lora({f"{old}_lora.down.weight": down, f"{old}_lora.up.weight": up}, networks)
    assert list(lora.components["unet"]) == [f"{ATTENTION}.weight"]


KINDS = {"oft_blocks": "an OFT", "boft_blocks": "a BOFT", "a1.weight": "a GLoRA"}


@pytest.mark.parametrize("ending", KINDS)
def test_other_kinds(networks: Any, ending: str) -> None:
    tensors = kohya(ATTENTION, normal(2, 32), normal(32, 2), **{ending: torch.ones(1)})
    with pytest.raises(Unsupported, match=rf"this is {KINDS[ending]} .*, expected a LoRA, LoHa, .*\. Merge it into"):
        parse_lora(tensors, networks)


def test_names_that_fit_nothing(networks: Any) -> None:
    tensors = {f"lora_te2_text_model_{k}.lora_down.weight": normal(2, 8) for k in range(12)}
    with pytest.raises(CheckpointError, match=r"12 names fit no layer of the model: (lora_te2_\w+, ){9}\w+ and 2 more"):
        parse_lora(tensors, networks)
    with pytest.raises(CheckpointError, match="it is empty"):
        parse_lora({}, networks)
    with pytest.raises(CheckpointError, match=r"1 names fit no layer of the model: model.diffusion_model.x.weight"):
        parse_lora({"model.diffusion_model.x.weight": normal(2, 2)}, networks)
    with pytest.raises(CheckpointError, match="made for a transformer"):
        parse_lora({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": normal(2, 2)}, networks)
    with pytest.raises(InputError, match="found a network called 'vae', expected one of unet, text_encoder"):
        parse_lora({}, {"vae": networks["unet"]})


FAMILIES = {
    "stable-diffusion-v1-5": "a UNet of Stable Diffusion 1",
    "stable-diffusion-2-1": "a UNet of Stable Diffusion 2",
    "stable-diffusion-xl-base-1.0": "the UNet of SDXL base",
}


@pytest.mark.parametrize(("made_for", "model"), [(a, b) for a in FAMILIES for b in FAMILIES if a != b])
def test_another_family(made_for: str, model: str) -> None:
    with torch.device("meta"):
        one, other = (UNet(unet_config(config_of(f"{name}/unet"))) for name in (made_for, model))
    layers = {name: m for name, m in one.named_modules() if isinstance(m, nn.Linear) and ".attn" in name}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= kohya(name, torch.empty(4, layer.in_features), torch.empty(layer.out_features, 4))
    said = rf"The LoRA looks made for {FAMILIES[made_for]}, the model has {FAMILIES[model]}, 4 input channels; use a"
    with pytest.raises(CheckpointError, match=said):
        parse_lora(tensors, {"unet": other})
    assert len(parse_lora(tensors, {"unet": one}).components["unet"]) == len(layers)


def test_damaged_files(networks: Any) -> None:
    down, up = normal(2, 32), normal(32, 2)
    name = "lora_unet_" + ATTENTION.replace(".", "_")
    with pytest.raises(CheckpointError, match=f"{name} has no up half; fetch the file again"):
        parse_lora({f"{name}.lora_down.weight": down}, networks)
    with pytest.raises(CheckpointError, match="has no down and no up half"):
        parse_lora({f"{name}.alpha": torch.tensor(1.0)}, networks)
    for tensors in (
        kohya(ATTENTION, torch.tensor(1.0), up),
        kohya(ATTENTION, down[:0], up[:, :0]),
        kohya(ATTENTION, down, up, alpha=torch.ones(2)),
    ):
        with pytest.raises(CheckpointError, match="is no product of low rank"):
            parse_lora(tensors, networks)
    for tensors in (kohya(ATTENTION, down[:, 1:], up), kohya(ATTENTION, down[:1], up)):
        with pytest.raises(CheckpointError, match=r"1 changes do not fit the model's weights: .*expected factors of"):
            parse_lora(tensors, networks)


def test_pickles(networks: Any, tmp_path: Path) -> None:
    tensors = kohya(ATTENTION, normal(2, 32), normal(32, 2))
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not opened, since it is a pickle"):
        read_lora(tmp_path / "a.pt", networks)
    assert isinstance(read_lora(tmp_path / "a.pt", networks, allow_pickle=True), Lora)
    for bad in ({"a": 1}, {"a": Path()}, []):
        torch.save(bad, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match="tensor"):
            read_lora(tmp_path / "b.pt", networks, allow_pickle=True)


def test_a_lora_of_another_network(networks: Any) -> None:
    lora = parse_lora(kohya(ATTENTION, normal(2, 32), normal(32, 2)), networks)
    with pytest.raises(InputError, match=f"the LoRA does not fit the network's {ATTENTION}.weight; read it for this"):
        apply_lora(networks["text_encoder"], lora.components["unet"])


def test_every_network_can_be_spelled() -> None:
    """No name stands for two layers, in the x2 upscaler's network either."""
    for network in (KUNet(K_UNET), UNet(UNET)):
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        assert set(layer_aliases("unet", layers).values()) == set(layers)
