"""LoRA files (Hu et al. 2021): low-rank changes of a model's weights, read in every common layout and added."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora_key_mapping import KOHYA_PREFIXES, layer_aliases
from enlarger.checkpoint.load_module import TEXT_ENCODER_NAMES, UNET_NAMES, Shape, guess_network
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, InputError, Unsupported, list_names
from enlarger.strict_json import parse_json, short_repr

LORA_COMPONENTS = tuple(KOHYA_PREFIXES)  # the networks that a LoRA may change
ADAPTER_METADATA_KEY = "lora_adapter_metadata"  # where diffusers writes PEFT's config in a file
LORA_KEY_PATTERN = re.compile(
    r"(.+?)(?:\.lora_(A|B)(?:\.\w+)?|\.lora_(down|up|mid)|[._]lora(?:_linear_layer)?\.(down|up))\.weight"
)
TRANSFORMER_PATTERN = re.compile(r"double_blocks|single_blocks|single_transformer|joint_blocks|^transformer\.")
LAYER_NAME_PATTERN = re.compile(r"[\w.]+")  # of PEFT's alpha_pattern: whole names and their ends, no expressions
PEFT_FACTORS = {"A": "down", "B": "up"}
UNSUPPORTED_ADAPTERS = {  # what trainers write that is no plain LoRA, by a pattern in its names
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.oft_": "an OFT",
    r"\.boft_": "a BOFT",
    r"\.a1\.weight$": "a GLoRA",
    r"\.on_input$": "an (IA)3",
    r"\.diff(_b)?$": "a LyCORIS full difference",
    r"\.[wb]_norm$": "a LyCORIS with changed normalisations",
    r"lora_(B|up)(\.\w+)?\.bias$": "a LoRA with biases",
    "lora_embedding_": "a LoRA of token embeddings",
    r"^bundle_emb\.": "a LoRA with textual inversions inside",
    "lora_controlnet": "a Control-LoRA",
}


@dataclass(frozen=True, eq=False)
class LoraDelta:
    """The change `scale * up @ down` of one weight; a convolution's is taken over all places of its kernel."""

    down: Tensor  # (rank, in) or (rank, in, h, w)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    scale: float  # alpha / rank


@dataclass(frozen=True, eq=False)
class Lora:
    """What a file changes: for each component (unet, text_encoder, text_encoder_2) the changes of weights by name."""

    components: Mapping[str, Mapping[str, LoraDelta]]


@dataclass(frozen=True)
class _LoraTarget:
    """A layer of a network: its component, its name, and its weight's shape."""

    component: str
    name: str
    shape: Shape


def read_lora(path: str | Path, networks: Mapping[str, nn.Module], allow_pickle: bool = False) -> Lora:
    """Read a safetensors file for these networks, by component; `allow_pickle` reads a pickle of tensors too.

    Raises CheckpointError where a name or shape fits none of the networks, and Unsupported for kinds other than LoRA.
    """
    path = Path(path)
    weights = open_checkpoint(path, allow_pickle=allow_pickle)
    tensors = {name: weights.get_tensor(name) for name in weights.keys()}
    return parse_lora(tensors, networks, _read_adapter_config(path, weights.metadata), str(path))


def parse_lora(
    tensors: Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    adapter_config: Mapping[str, Any] | None = None,
    source: str = "the LoRA",
) -> Lora:
    """The LoRA of named tensors. `adapter_config` is PEFT's, each name behind its component: `unet.lora_alpha`.

    A layer without alpha, in the tensors or the config, has alpha = rank.
    """
    _reject_other_adapters(source, tensors)
    targets, factors = _lora_targets(networks), _group_factors(tensors)
    unknown_keys = [name for name in factors if name not in targets]
    if unknown_keys or not factors:
        problem = (
            f"{len(unknown_keys)} names fit no layer of the model: {list_names(unknown_keys)}"
            if factors
            else "it is empty"
        )
        raise CheckpointError(f"{source}: {problem}. {_family_hint(tensors, networks)}")
    components: dict[str, dict[str, LoraDelta]] = {}
    alphas = {name: _adapter_alphas(source, adapter_config or {}, name) for name in networks}
    misshapen: list[str] = []
    for target, layer_key in _unique_layer_keys(source, targets, factors).items():
        default_scale = partial(alphas[target.component].scale, target.name)
        delta = _make_delta(source, layer_key, factors[layer_key], default_scale)
        if not _fits_shape(delta, target.shape):
            shapes = f"{tuple(delta.up.shape)} and {tuple(delta.down.shape)}"
            misshapen.append(f"{layer_key} (found {shapes}, expected factors of {target.shape})")
        components.setdefault(target.component, {})[f"{target.name}.weight"] = delta
    if misshapen:
        problem = f"{len(misshapen)} changes do not fit the model's weights: {list_names(misshapen)}"
        raise CheckpointError(f"{source}: {problem}. {_family_hint(tensors, networks)}")
    return Lora(components)


def apply_lora(module: nn.Module, deltas: Mapping[str, LoraDelta], scale: float = 1.0) -> nn.Module:
    """A new module with the changed weights; all others are the given module's own, which stays as it is."""
    return apply_loras(module, [(deltas, scale)])


def apply_loras(module: nn.Module, scaled_deltas: Iterable[tuple[Mapping[str, LoraDelta], float]]) -> nn.Module:
    """As `apply_lora`, for several: their changes are added in float32 and rounded once to the weight's type."""
    changes: dict[str, list[tuple[LoraDelta, float]]] = {}
    for deltas, scale in scaled_deltas:
        for name, delta in deltas.items():
            changes.setdefault(name, []).append((delta, scale))
    shared: list[Tensor] = [*module.parameters(), *module.buffers()]
    clone = deepcopy(module, {id(tensor): tensor for tensor in shared})  # a copy of everything but the tensors
    parameters = dict(module.named_parameters())
    for name, each in changes.items():
        if name not in parameters or not all(_fits_shape(delta, tuple(parameters[name].shape)) for delta, _ in each):
            raise InputError(f"the LoRA does not fit the network's {name}; read it for this network with read_lora")
        layer, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(_add_deltas(parameters[name], each), requires_grad=parameters[name].requires_grad)
        setattr(clone.get_submodule(layer), leaf, parameter)
    return clone


@torch.no_grad()
def _add_deltas(weight: Tensor, scaled_deltas: Sequence[tuple[LoraDelta, float]]) -> Tensor:
    compute_dtype = torch.promote_types(weight.dtype, torch.float32)
    result = weight.to(compute_dtype)
    for delta, scale in scaled_deltas:
        up, down = (factor.flatten(1).to(weight.device, compute_dtype) for factor in (delta.up, delta.down))
        result = result + (scale * delta.scale) * (up @ down).view_as(result)
    return result.to(weight.dtype)


def _lora_targets(networks: Mapping[str, nn.Module]) -> dict[str, _LoraTarget]:
    """Every alias of every linear layer and convolution of the networks."""
    targets: dict[str, _LoraTarget] = {}
    for component, network in networks.items():
        if component not in LORA_COMPONENTS:
            raise InputError(f"found a network called {component!r}, expected one of {', '.join(LORA_COMPONENTS)}")
        shapes = {
            name: tuple(module.weight.shape)
            for name, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        targets |= {
            alias: _LoraTarget(component, name, shapes[name])
            for alias, name in layer_aliases(component, shapes).items()
        }
    return targets


def _group_factors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """For each layer, as the file spells it, its tensors called down, up, mid and alpha; any other has its own name."""
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".alpha")
        match = LORA_KEY_PATTERN.fullmatch(stem)
        layer_key = stem.removesuffix("_lora") if match is None else match[1]
        if stem != name:
            factor = "alpha"
        elif match is not None:
            factor = next(PEFT_FACTORS.get(group, group) for group in match.groups()[1:] if group is not None)
        else:
            layer_key, factor = name, "unknown"
        factors.setdefault(layer_key, {})[factor] = tensor
    return factors


def _unique_layer_keys(
    source: str, targets: Mapping[str, _LoraTarget], factors: Mapping[str, Mapping[str, Tensor]]
) -> dict[_LoraTarget, str]:
    """The key of each changed layer; a second one is accepted only where it repeats the same tensors."""
    layer_keys: dict[_LoraTarget, str] = {}
    for layer_key, layer_factors in factors.items():
        first = layer_keys.setdefault(targets[layer_key], layer_key)
        if first != layer_key and not _equal_tensors(factors[first], layer_factors):
            raise CheckpointError(
                f"{source}: {first} and {layer_key} change one layer differently; expected one of them."
            )
    return layer_keys


def _equal_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _make_delta(
    source: str, layer_key: str, factors: Mapping[str, Tensor], default_scale: Callable[[int], float]
) -> LoraDelta:
    missing = [factor for factor in ("down", "up") if factor not in factors]
    if missing:
        raise CheckpointError(f"{source}: {layer_key} has no {' and no '.join(missing)} half; fetch the file again.")
    down, up, mid, alpha = (factors.get(factor) for factor in ("down", "up", "mid", "alpha"))
    assert down is not None and up is not None
    rank = down.shape[0] if down.dim() > 1 else 0
    is_low_rank = rank > 0 and up.dim() > 1 and (mid is None or (mid.dim() == 4 and mid.shape[:2] == (rank, rank)))
    if not is_low_rank or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{factor} {tuple(tensor.shape)}" for factor, tensor in factors.items())
        raise CheckpointError(f"{source}: {layer_key} is no product of low rank: {shapes}; fetch the file again.")
    if mid is not None:  # LoCon's third factor (rank, rank, h, w), joined with the first
        down = torch.einsum("nmhw,mi->nihw", mid.float(), down.flatten(1).float())
    return LoraDelta(down, up, default_scale(rank) if alpha is None else float(alpha) / rank)


def _fits_shape(delta: LoraDelta, shape: Shape) -> bool:
    """Whether the product has this shape; a linear layer and a 1x1 convolution fit each other."""
    rank = delta.down.shape[0]
    return _squeeze_kernel(delta.up.shape) == (shape[0], rank) and _squeeze_kernel(
        delta.down.shape[1:]
    ) == _squeeze_kernel(shape[1:])


def _squeeze_kernel(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the kernel of a 1x1 convolution."""
    return tuple(shape[:-2] if len(shape) > 2 and tuple(shape[-2:]) == (1, 1) else shape)


@dataclass(frozen=True)
class _AdapterAlphas:
    """What PEFT's config says of one component's alphas: one for all, and one for each layer whose name ends so."""

    default: float  # NaN where nothing is said: alpha is the rank
    by_layer: Mapping[str, tuple[int, float]]  # the place in the config, of which the first counts, and the alpha
    use_rslora: bool  # Kalajdzievski 2023

    def scale(self, layer: str, rank: int) -> float:
        """alpha / rank of a layer."""
        parts = f"text_model.{layer}".split(".")  # text encoders had the longer names once
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        stated = [self.by_layer[ending] for ending in endings if ending in self.by_layer]
        alpha = min(stated)[1] if stated else self.default
        return 1.0 if math.isnan(alpha) else alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _adapter_alphas(source: str, adapter_config: Mapping[str, Any], component: str) -> _AdapterAlphas:
    """PEFT's config of a component. A key of its `alpha_pattern` is the name of a layer or the end of one."""
    settings = {name.removeprefix(f"{component}."): value for name, value in adapter_config.items()}
    try:
        patterns: dict[str, Any] = {str(layer): alpha for layer, alpha in settings.get("alpha_pattern", {}).items()}
        by_layer = {layer.removeprefix("^"): (place, float(patterns[layer])) for place, layer in enumerate(patterns)}
        alphas = _AdapterAlphas(float(settings.get("lora_alpha", math.nan)), by_layer, bool(settings.get("use_rslora")))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: its {ADAPTER_METADATA_KEY} cannot be understood ({error}); fetch it again."
        ) from error
    if (odd := next((layer for layer in by_layer if not LAYER_NAME_PATTERN.fullmatch(layer)), None)) is not None:
        raise Unsupported(
            f"{source}: its alpha_pattern has {short_repr(odd)}, expected the name of a layer; patterns of a file are "
            "not run: save it with layers' names."
        )
    return alphas


def _read_adapter_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's config in a file's header, where diffusers wrote it."""
    try:
        adapter_config = parse_json(metadata.get(ADAPTER_METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its {ADAPTER_METADATA_KEY} is not valid JSON ({error}); fetch the file again."
        ) from error
    if not isinstance(adapter_config, dict):
        raise CheckpointError(
            f"{path}: its {ADAPTER_METADATA_KEY} is a JSON {type(adapter_config).__name__}, expected an object."
        )
    return cast("dict[str, Any]", adapter_config)


def _reject_other_adapters(source: str, names: Iterable[str]) -> None:
    for name in names:
        for pattern, kind in UNSUPPORTED_ADAPTERS.items():
            if re.search(pattern, name):
                raise Unsupported(
                    f"{source}: this is {kind} ({name}), expected a LoRA: a lower and an upper factor per layer. Merge "
                    "it into the model with the tool that made it and read the merged folder."
                )


def _family_hint(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> str:
    """Which family the LoRA and the model look like."""
    model_names = [
        guess_network({name: tuple(t.shape) for name, t in n.state_dict().items()}) for n in networks.values()
    ]
    made_for = _guess_lora_family({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return (
        f"The LoRA looks made for {made_for}, the model has {', '.join(model_names)}; use a LoRA of the model's family."
    )


def _guess_lora_family(shapes: Mapping[str, Shape]) -> str:
    """The family of a LoRA, by the width of what its factors read."""
    down_shapes: dict[str, Shape] = {}
    for name, shape in shapes.items():
        match = LORA_KEY_PATTERN.fullmatch(name)
        if match is not None and len(shape) > 1 and not {"B", "up", "mid"} & set(match.groups()[1:]):
            down_shapes[match[1]] = shape
    for name, shape in down_shapes.items():
        if TRANSFORMER_PATTERN.search(name):
            return "a transformer (SD3, Flux or later), which this package does not run"
        if re.search(r"attn2[._](processor[._])?to_[kv]$", name):
            context = {width: meaning for (width, _), meaning in UNET_NAMES.items()}
            return context.get(shape[1], f"a UNet with context width {shape[1]}")
    text_widths = [shape[1] for name, shape in down_shapes.items() if "self_attn" in name]
    return (
        TEXT_ENCODER_NAMES.get(text_widths[0], f"a text encoder of width {text_widths[0]}")
        if text_widths
        else "none of the networks known here"
    )
