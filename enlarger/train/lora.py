"""LoRA layers that learn (Hu et al. 2021), and their files in diffusers' and kohya's layouts."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora import ADAPTER_METADATA_KEY
from enlarger.checkpoint.adapters.lora_key_mapping import sdxl_layer_names
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.errors import InputError
from enlarger.train.draws import draws_of_step
from enlarger.train.options import LoraLayout, LoraSettings


class LoraLayer(nn.Module):
    """A frozen layer, and beside it two of low rank of which the second begins at zero."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        if isinstance(base, nn.Linear):
            self.down: nn.Module = nn.Linear(base.in_features, rank, bias=False)
            self.up: nn.Module = nn.Linear(rank, base.out_features, bias=False)
        else:
            kernel = (base.kernel_size[0], base.kernel_size[1])
            self.down = nn.Conv2d(base.in_channels, rank, kernel, base.stride, base.padding, bias=False)  # pyright: ignore[reportArgumentType] - as the layer has them
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        down, up = self.factors()
        with torch.no_grad():
            down.normal_(std=1 / rank, generator=generator)
            up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))

    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The weights of both, down before up."""
        down, up = (layer.get_parameter("weight") for layer in (self.down, self.up))
        return down, up


def with_lora(network: nn.Module, settings: LoraSettings, seed: int) -> nn.Module:
    """A network that shares the given one's frozen weights, with LoRA layers in it; it gives what that one gives.

    Raises InputError where no layer's name ends with one of the targets.
    """
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = deepcopy(network, shared).requires_grad_(False)
    (generator,) = draws_of_step(seed, 0, [0]).generators
    names = [name for name, module in _named_modules(changed) if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = [name for name in names if any(name == end or name.endswith(f".{end}") for end in settings.targets)]
    for end in settings.targets:
        if not any(name == end or name.endswith(f".{end}") for name in chosen):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names if not name[-1].isdigit()}))
            raise InputError(f"no layer's name ends with {end}, expected one of {known}; see --target")
    for name in chosen:
        owner, _, leaf = name.rpartition(".")
        base = changed.get_submodule(name)
        assert isinstance(base, nn.Linear | nn.Conv2d)
        layer = LoraLayer(base, settings.rank, settings.scale, generator).to(base.weight.device)
        setattr(changed.get_submodule(owner), leaf, layer)
    return changed


def save_lora(network: nn.Module, path: Path, settings: LoraSettings, layout: LoraLayout) -> None:
    """Write the LoRA layers of a network's UNet as one file that diffusers and the web UIs read."""
    write = {"diffusers": _diffusers_tensors, "kohya": _kohya_tensors}[layout]
    metadata = _diffusers_metadata(network, settings) if layout == "diffusers" else _kohya_metadata(settings)
    save_safetensors(path, dict(write(network, settings)), metadata=metadata)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Each LoRA layer with the name of the layer that it changes."""
    for name, module in _named_modules(network):
        if isinstance(module, LoraLayer):
            yield name, module


def _named_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(network.named_modules())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - torch's


def _diffusers_tensors(network: nn.Module, settings: LoraSettings) -> Iterator[tuple[str, Tensor]]:
    """With alpha / rank in the factors themselves, since older readers know alpha from nowhere."""
    for name, layer in lora_layers(network):
        down, up = layer.factors()
        yield f"unet.{name}.lora_A.weight", down
        yield f"unet.{name}.lora_B.weight", up * settings.scale


def _kohya_tensors(network: nn.Module, settings: LoraSettings) -> Iterator[tuple[str, Tensor]]:
    """With the names of the original code for SDXL, since kohya's tools know no others of it."""
    layers = [name for name, _ in _named_modules(network)]
    called = sdxl_layer_names(layers) if "add_embedding.linear_1" in layers else {}
    for name, layer in lora_layers(network):
        prefix = f"lora_unet_{called.get(name, name).replace('.', '_')}"
        down, up = layer.factors()
        yield f"{prefix}.lora_down.weight", down
        yield f"{prefix}.lora_up.weight", up
        yield f"{prefix}.alpha", torch.tensor(float(settings.scale * settings.rank))


def _diffusers_metadata(network: nn.Module, settings: LoraSettings) -> dict[str, str]:
    """PEFT's config, as diffusers writes it: alpha is the rank."""
    names: Sequence[str] = sorted(name for name, _ in lora_layers(network))
    config = {
        "unet.r": settings.rank,
        "unet.lora_alpha": settings.rank,
        "unet.target_modules": names,
        "unet.lora_bias": False,
        "unet.use_dora": False,
    }
    return {ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}


def _kohya_metadata(settings: LoraSettings) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": f"{settings.scale * settings.rank:g}",
    }
