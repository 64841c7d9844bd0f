"""LoHa, LoKr and DoRA change our networks as PEFT's own layers change theirs."""

import warnings
from typing import Any

import pytest
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import apply_lora, parse_lora
from enlarger.nn.unet import UNet
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import UNET

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
peft: Any = pytest.importorskip("peft", reason="the oracle is peft")
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "mid_block.resnets.0.conv1"
LAYERS = (LINEAR, CONVOLUTION)
CONV = "convolution"


class Layers(nn.Module):
    """The layers alone, under plain names, as PEFT wraps them."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.linear, self.convolution = (unet.get_submodule(layer) for layer in LAYERS)


CONFIGS = {
    "LoHa": lambda: peft.LoHaConfig(r=3, alpha=6, target_modules=["linear", "convolution"]),
    "LoHa with cores": lambda: peft.LoHaConfig(r=3, alpha=6, target_modules=["convolution"], use_effective_conv2d=True),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=4, target_modules=["linear", "convolution"]),
    "LoKr of two products": lambda: peft.LoKrConfig(r=2, alpha=4, target_modules=["linear"], decompose_both=True),
    "LoKr with a core": lambda: peft.LoKrConfig(r=1, alpha=4, target_modules=[CONV], use_effective_conv2d=True),
    "DoRA": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=["linear", "convolution"], use_dora=True),
    "LoRA with biases": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=["convolution"], lora_bias=True),
}  # fmt: skip


@pytest.mark.parametrize("label", CONFIGS)
def test_as_peft_merges_it(label: str) -> None:
    unet, config = randomise(UNet(UNET)), CONFIGS[label]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(Layers(randomise(UNet(UNET))), config)
    for number, (name, weight) in enumerate(wrapped.named_parameters()):
        if any(kind in name for kind in ("lora_A", "lora_B", "hada", "lokr")):
            weight.data = 0.3 * normal(*weight.shape, seed=number)
        elif "magnitude" in name:
            weight.data = weight.data * 1.3
    tensors: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = peft.get_peft_model_state_dict(wrapped)
    for name, tensor in state.items():
        plain, _, rest = name.removeprefix("base_model.model.").partition(".")
        layer = dict(zip(("linear", "convolution"), LAYERS, strict=True))[plain]
        tensors[f"unet.{layer}.{rest}"] = tensor
    alpha = getattr(config, "lora_alpha", getattr(config, "alpha", None))
    lora = parse_lora(tensors, {"unet": unet}, {"unet.lora_alpha": alpha})
    found = apply_lora(unet, lora.components["unet"])
    merged = wrapped.merge_and_unload()
    for layer, expected in zip(LAYERS, (merged.linear, merged.convolution), strict=True):
        assert_close(found.get_submodule(layer).weight, expected.weight, 1e-5)
        if expected.bias is not None:
            assert_close(found.get_submodule(layer).bias, expected.bias, 1e-5)
    assert not found.get_submodule(CONVOLUTION).weight.equal(unet.get_submodule(CONVOLUTION).weight) or len(tensors) < 6
