"""What trainers store beside plain LoRAs: each kind by its formula, written out here a second time."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import apply_lora, parse_lora, read_lora
from enlarger.errors import CheckpointError
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import TEXT, UNET

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "mid_block.resnets.0.conv1"
NORM = "mid_block.resnets.0.norm1"
TEXT_NORM = "encoder.layers.1.layer_norm1"


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {"unet": randomise(UNet(UNET)), "text_encoder": randomise(ClipText(TEXT), 1)}


def kohya(layer: str, prefix: str = "lora_unet_", **tensors: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}{layer.replace('.', '_')}.{name}": tensor for name, tensor in tensors.items()}


def change(networks: dict[str, nn.Module], tensors: dict[str, Tensor], parameter: str, scale: float = 1.0) -> Tensor:
    unet = networks["unet"]
    made = apply_lora(unet, parse_lora(tensors, networks).components["unet"], scale)
    return made.get_parameter(parameter) - unet.get_parameter(parameter)


def size(networks: Any, layer: str) -> tuple[int, ...]:
    return tuple(networks["unet"].get_submodule(layer).weight.shape)


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_loha(networks: Any, layer: str, scale: float) -> None:
    rows, *rest = size(networks, layer)
    columns = torch.Size(rest).numel()
    a1, b1, a2, b2 = normal(rows, 2), normal(2, columns, seed=1), normal(rows, 2, seed=2), normal(2, columns, seed=3)
    tensors = kohya(layer, hada_w1_a=a1, hada_w1_b=b1, hada_w2_a=a2, hada_w2_b=b2, alpha=torch.tensor(1.0))
    first = sum(torch.outer(a1[:, r], b1[r]) for r in range(2))
    second = sum(torch.outer(a2[:, r], b2[r]) for r in range(2))
    expected = 0.5 * scale * (first * second).reshape(rows, *rest)
    assert_close(change(networks, tensors, f"{layer}.weight", scale), expected, 1e-5)


def test_loha_with_cores(networks: Any) -> None:
    rows, columns, height, width = size(networks, CONVOLUTION)
    parts = {f"hada_w{i}_a": normal(2, rows, seed=i) for i in (1, 2)}
    parts |= {f"hada_w{i}_b": normal(2, columns, seed=i + 5) for i in (1, 2)}
    parts |= {f"hada_t{i}": normal(2, 2, height, width, seed=i + 9) for i in (1, 2)}
    sides = []
    for i in (1, 2):
        side = torch.zeros(rows, columns, height, width)
        for p in range(2):
            for q in range(2):
                outer = torch.outer(parts[f"hada_w{i}_a"][p], parts[f"hada_w{i}_b"][q])
                side += outer[:, :, None, None] * parts[f"hada_t{i}"][p, q]
        sides.append(side)
    assert_close(change(networks, kohya(CONVOLUTION, **parts), f"{CONVOLUTION}.weight"), sides[0] * sides[1], 1e-4)


def blocks(left: Tensor, right: Tensor) -> Tensor:
    """The Kronecker product of matrices, block by block."""
    return torch.cat([torch.cat([each * right for each in row], dim=1) for row in left])


@pytest.mark.parametrize("kind", ["whole", "right of low rank", "both of low rank"])
def test_lokr(networks: Any, kind: str) -> None:
    rows, columns = size(networks, LINEAR)
    left, right, scale = normal(4, 4), normal(rows // 4, columns // 4, seed=1), 1.0
    tensors = {"lokr_w1": left, "lokr_w2": right, "alpha": torch.tensor(7.0)}
    if kind != "whole":
        a, b = normal(rows // 4, 2, seed=2), normal(2, columns // 4, seed=3)
        tensors = {"lokr_w1": left, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(7.0)}
        right, scale = a @ b, 3.5
    if kind == "both of low rank":
        a, b = normal(4, 2, seed=4), normal(2, 4, seed=5)
        tensors = {name: each for name, each in tensors.items() if name != "lokr_w1"} | {"lokr_w1_a": a, "lokr_w1_b": b}
        left = a @ b
    expected = scale * blocks(left, right)
    assert_close(change(networks, kohya(LINEAR, **tensors), f"{LINEAR}.weight"), expected, 1e-4)


def test_lokr_of_a_convolution(networks: Any) -> None:
    rows, columns, height, width = size(networks, CONVOLUTION)
    left, right = normal(4, 2), normal(rows // 4, columns // 2, height, width, seed=1)
    expected = torch.stack(
        [torch.stack([blocks(left, right[:, :, y, x]) for x in range(width)], -1) for y in range(height)], -2
    )
    tensors = kohya(CONVOLUTION, lokr_w1=left, lokr_w2=right)
    assert_close(change(networks, tensors, f"{CONVOLUTION}.weight"), expected, 1e-4)


@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_ia3(networks: Any, layer: str, on_input: bool) -> None:
    weight = networks["unet"].get_submodule(layer).weight
    factors = normal(weight.shape[1] if on_input else weight.shape[0])
    tensors = kohya(layer, weight=factors[None] if on_input else factors[:, None], on_input=torch.tensor(on_input))
    expected = torch.einsum("oi...,i->oi..." if on_input else "oi...,o->oi...", weight, factors)
    assert_close(change(networks, tensors, f"{layer}.weight"), expected, 1e-5)


@pytest.mark.parametrize("of", ["rows", "columns"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dora(networks: Any, of: str, scale: float) -> None:
    weight = networks["unet"].get_submodule(LINEAR).weight
    down, up = normal(2, weight.shape[1]), normal(weight.shape[0], 2, seed=1)
    rows = of == "rows"
    lengths = normal(weight.shape[0 if rows else 1], seed=2).abs()
    shaped = lengths[:, None] if rows else lengths[None]
    tensors = kohya(LINEAR, **{"lora_down.weight": down, "lora_up.weight": up, "dora_scale": shaped})
    whole = weight + up @ down
    turned = torch.stack([line / line.pow(2).sum().sqrt() for line in (whole if rows else whole.T)])
    expected = (turned if rows else turned.T) * shaped - weight
    assert_close(change(networks, tensors, f"{LINEAR}.weight", scale), scale * expected, 1e-5)


def test_full_differences_of_weights_and_biases(networks: Any) -> None:
    weight, bias = normal(*size(networks, CONVOLUTION)), normal(size(networks, CONVOLUTION)[0])
    tensors = kohya(CONVOLUTION, diff=weight, diff_b=bias)
    assert_close(change(networks, tensors, f"{CONVOLUTION}.weight", 0.5), 0.5 * weight, 1e-6)
    assert_close(change(networks, tensors, f"{CONVOLUTION}.bias", 0.5), 0.5 * bias, 1e-6)


@pytest.mark.parametrize("names", [("w_norm", "b_norm"), ("diff", "diff_b")])
def test_normalisations(networks: Any, names: tuple[str, str]) -> None:
    tensors = kohya(NORM, **{names[0]: torch.full((64,), 0.25), names[1]: torch.full((64,), -2.0)})
    assert_close(change(networks, tensors, f"{NORM}.weight"), torch.full((64,), 0.25), 1e-6)
    assert_close(change(networks, tensors, f"{NORM}.bias"), torch.full((64,), -2.0), 1e-6)
    in_text = kohya("text_model." + TEXT_NORM, "lora_te_", w_norm=torch.ones(32))
    assert parse_lora(in_text, networks).components["text_encoder"].keys() == {f"{TEXT_NORM}.weight"}


def test_bundled_tokens_come_along(networks: Any, tmp_path: Path) -> None:
    down, up = normal(2, size(networks, LINEAR)[1]), normal(size(networks, LINEAR)[0], 2)
    tensors = kohya(LINEAR, **{"lora_down.weight": down, "lora_up.weight": up})
    tensors |= {"bundle_emb.my.word.string_to_param.*": normal(2, 32), "bundle_emb.other.clip_l": normal(1, 32)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", networks)
    assert {each.token: {k: len(v) for k, v in each.vectors.items()} for each in found.inversions} == {
        "my.word": {"32": 2}, "other": {"clip_l": 1},
    }  # fmt: skip
    assert found.components["unet"].keys() == {f"{LINEAR}.weight"} and found.unknown_layers == ()


@pytest.mark.parametrize("odd", ["lora_unet_foo_bar", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "unet.no.layer"])
def test_layers_that_the_model_lacks_are_named(networks: Any, odd: str) -> None:
    down, up = normal(2, size(networks, LINEAR)[1]), normal(size(networks, LINEAR)[0], 2)
    tensors = kohya(LINEAR, **{"lora_down.weight": down, "lora_up.weight": up})
    tensors |= {f"{odd}.lora_down.weight": normal(2, 32), f"{odd}.lora_up.weight": normal(32, 2)}
    with pytest.warns(UserWarning, match=f"1 of 2 layers fit none of the model's and are left out: {odd}"):
        found = parse_lora(tensors, networks)
    assert found.unknown_layers == (odd,) and found.components["unet"].keys() == {f"{LINEAR}.weight"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(
            change(networks, {n: t for n, t in tensors.items() if odd not in n}, f"{LINEAR}.weight"), up @ down, 1e-5
        )


@pytest.mark.parametrize(
    "parts",
    [
        {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32)}, {"lokr_w1": (4, 4)}, {"hada_w1_a": (3, 2), "hada_w1_b": (2, 3),
        "hada_w2_a": (3, 2), "hada_w2_b": (2, 3)}, {"lokr_w1": (5, 5), "lokr_w2": (5, 5)}, {"diff": (3, 3)},
        {"w_norm": (3,)}, {"on_input": ()}, {"dora_scale": (1, 32)},
    ],
)  # fmt: skip
def test_factors_that_do_not_fit(networks: Any, parts: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks|do not fit the model's weights|has no down"):
        parse_lora(kohya(LINEAR, **{name: torch.ones(shape) for name, shape in parts.items()}), networks)
