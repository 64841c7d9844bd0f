"""Where a module runs changes nothing of what it computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.runtime import runtime
from enlarger.runtime.runtime import Offload, Runtime, direct_tensors
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import AUTOENCODER, K_UNET, TEXT, UNET

IDS = torch.arange(77)[None] % 60
TIME = torch.tensor([0.5])
Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def cases() -> dict[str, Case]:
    """Every network, each with a call of all that it offers."""
    picture = normal(1, 3, 16, 16)

    def both(autoencoder: nn.Module) -> Tensor:
        assert isinstance(autoencoder, AutoencoderKL)
        return autoencoder.decode(autoencoder.encode(picture).mean)

    return {
        "text": (ClipText(TEXT), lambda m: m(IDS).last_hidden_state),
        "k_unet": (
            KUNet(K_UNET),
            lambda m: m(normal(1, 8, 8, 8), TIME, tokens=normal(1, 5, 32), vector=normal(1, 160)),
        ),
        "unet": (UNet(UNET), lambda m: m(normal(1, 4, 8, 8), TIME, tokens=normal(1, 5, 32))),
        "autoencoder": (AutoencoderKL(AUTOENCODER), both),
        "upscale_net": (UpscaleNet(UpscaleNetConfig(4, 2, 1)), lambda m: m(torch.cat([picture, picture[:, :1]], 1))),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_offload_changes_nothing(name: str, offload: Offload) -> None:
    module, call = CASES[name]
    randomise(module)
    expected, before = call(module), {n: v.clone() for n, v in module.state_dict().items()}
    with Runtime(offload=offload).hold(module) as held:
        assert held is module
        assert call(module).equal(expected)
    assert call(module).equal(expected)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


@contextmanager
def far_away(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A runtime for a device that the test only plays: what is not on it holds NaN."""
    real = {id(t): t.data for layer in module.modules() for t in direct_tensors(layer)}

    def move(layer: nn.Module, device: torch.device) -> None:
        for tensor in direct_tensors(layer):
            away = torch.full_like(tensor.data, float("nan"))
            tensor.data = real[id(tensor)] if device.type == "meta" else away

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_move", move)
        for layer in module.modules():
            move(layer, torch.device("cpu"))
        yield Runtime(torch.device("meta"), "sequential")
    for layer in module.modules():
        for tensor in direct_tensors(layer):
            tensor.data = real[id(tensor)]


@pytest.mark.parametrize("name", CASES)
def test_layers_use_their_weights_only_while_they_are_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = CASES[name]
    expected = call(randomise(module))
    with far_away(module, monkeypatch) as place:
        assert not torch.isfinite(call(module)).all()  # the play works
        with place.hold(module):
            assert call(module).equal(expected)
        assert all(torch.isnan(t).all() for layer in module.modules() for t in direct_tensors(layer))  # all put back
    assert call(module).equal(expected)


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_a_failure_inside_leaves_no_hooks(offload: Offload) -> None:
    module, _ = CASES["upscale_net"]
    with pytest.raises(ValueError, match="stop"), Runtime(offload=offload).hold(module):
        raise ValueError("stop")
    with pytest.raises(RuntimeError), Runtime(offload=offload).hold(module):
        module(torch.zeros(1, 5, 4, 4))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offload_on_a_device(offload: Offload) -> None:
    module = randomise(UpscaleNet(UpscaleNetConfig(4, 2)))
    picture = normal(1, 3, 16, 16)
    expected = module(picture)
    with Runtime(torch.device("cuda"), offload).hold(module):
        found = module(picture.cuda())
    assert float((found.cpu() - expected).abs().max()) < 1e-4
    assert all(parameter.device.type == "cpu" for parameter in module.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_layout_changes_rounding_alone(name: str) -> None:
    module, call = CASES[name]
    randomise(module)
    expected, before = call(module), {n: v.clone() for n, v in module.state_dict().items()}
    with Runtime(memory_format=torch.channels_last).hold(module) as held:
        assert float((call(held) - expected).abs().max()) <= 1e-5 * max(1, float(expected.abs().max()))
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["unet", "k_unet", "autoencoder"])
def test_the_layout_reaches_every_convolution(name: str) -> None:
    module, call = CASES[name]
    found: list[bool] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels > 16
    ]  # features
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    with Runtime(memory_format=torch.channels_last).hold(module) as held:
        call(held)
    for handle in handles:
        handle.remove()
    assert found and all(found)
