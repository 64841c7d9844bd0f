"""LoRA files (Hu et al. 2021): low-rank changes of a model's weights, read in every common layout and added."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.adapters.lora_key_mapping import KOHYA_PREFIXES, layer_aliases
from enlarger.checkpoint.adapters.read_deltas import LORA_KEY_PATTERN, group_factors, make_deltas
from enlarger.checkpoint.adapters.textual_inversion import TextualInversion, read_textual_inversion
from enlarger.checkpoint.adapters.weight_deltas import WeightDelta
from enlarger.checkpoint.load_module import TEXT_ENCODER_NAMES, UNET_NAMES, Shape, guess_network
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, InputError, Unsupported, list_names
from enlarger.strict_json import is_object, parse_json, printable_name, short_repr

LORA_COMPONENTS = tuple(KOHYA_PREFIXES)  # the networks that a LoRA may change
ADAPTER_METADATA_KEY = "lora_adapter_metadata"  # where diffusers writes PEFT's config in a file
TRANSFORMER_PATTERN = re.compile(r"double_blocks|single_blocks|single_transformer|joint_blocks|^transformer\.")
BUNDLED_EMBEDDING_PATTERN = re.compile(r"bundle_emb\.(.+)\.(clip_[lg]|string_to_param(?:\.\*)?|emb_params)")
LAYER_NAME_PATTERN = re.compile(r"(?:[\w.]|(?<=\.)\*)+")  # of PEFT's alpha_pattern: names, their ends, and `.*`
MAX_WILDCARDS = 100  # of all names with `.*`, which are compared with every layer
UNSUPPORTED_ADAPTERS = {  # what trainers write that none of our changes is, by a pattern in its names
    r"\.oft_": "an OFT",
    r"\.boft_": "a BOFT",
    r"\.a1\.weight$": "a GLoRA",
    "lora_embedding_": "a LoRA of token embeddings",
    "lora_controlnet": "a Control-LoRA",
}


@dataclass(frozen=True, eq=False)
class Lora:
    """What a file changes: for each component (unet, text_encoder, text_encoder_2) the changes of weights by name."""

    components: Mapping[str, Mapping[str, WeightDelta]]
    inversions: tuple[TextualInversion, ...] = ()  # tokens that the file brings along
    unknown_layers: tuple[str, ...] = ()  # of the file, which the networks lack


@dataclass(frozen=True)
class _LoraTarget:
    """A layer of a network: its component, its name, and the shapes of its weight and of its bias, if any."""

    component: str
    name: str
    shape: Shape
    bias_shape: Shape | None

    def parameter_shape(self, parameter: str) -> Shape | None:
        return self.shape if parameter == "weight" else self.bias_shape


def read_lora(path: str | Path, networks: Mapping[str, nn.Module], allow_pickle: bool = False) -> Lora:
    """Read a safetensors file for these networks, by component; `allow_pickle` reads a pickle of tensors too.

    Raises CheckpointError where a name or shape fits none of the networks, and Unsupported for kinds other than LoRA.
    """
    path = Path(path)
    weights = open_checkpoint(path, allow_pickle=allow_pickle)
    tensors = {name: weights.get_tensor(name) for name in weights.keys()}
    return parse_lora(tensors, networks, read_adapter_config(path, weights.metadata), str(path))


class UnfitLora(CheckpointError):
    """A LoRA whose names fit no layer of a model."""


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
    embeddings, tensors = _split_embeddings(source, tensors)
    targets, factors = _lora_targets(networks), group_factors(tensors)
    unknown_layers = tuple(name for name in factors if name not in targets)
    if len(unknown_layers) == len(factors):
        problem = (
            f"{len(unknown_layers)} names fit no layer of the model: {list_names(unknown_layers)}"
            if factors
            else "it is empty"
        )
        raise UnfitLora(f"{source}: {problem}. {_family_hint(tensors, networks)}")
    known_factors = {name: each for name, each in factors.items() if name in targets}
    components = _read_components(source, targets, known_factors, adapter_config or {}, networks)
    if unknown_layers:
        warnings.warn(
            f"{source}: {len(unknown_layers)} of {len(factors)} layers fit none of the model's and are left out: "
            f"{list_names([printable_name(name) for name in unknown_layers])}",
            stacklevel=2,
        )
    return Lora(components, embeddings, unknown_layers)


def _read_components(
    source: str,
    targets: Mapping[str, _LoraTarget],
    factors: Mapping[str, Mapping[str, Tensor]],
    adapter_config: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
) -> dict[str, dict[str, WeightDelta]]:
    """The changes of each component's parameters. Raises CheckpointError naming those that fit no parameter."""
    components: dict[str, dict[str, WeightDelta]] = {}
    alphas = {name: _adapter_alphas(source, adapter_config, name) for name in networks}
    misshapen: list[str] = []
    for target, layer_key in _unique_layer_keys(source, targets, factors).items():
        default_scale = partial(alphas[target.component].scale, target.name)
        for parameter, delta in make_deltas(source, layer_key, factors[layer_key], default_scale).items():
            shape = target.parameter_shape(parameter)
            if shape is None or not delta.fits(shape):
                found = ", ".join(f"{name} {tuple(each.shape)}" for name, each in factors[layer_key].items())
                misshapen.append(f"{layer_key} (found {found}, expected factors of {shape})")
            components.setdefault(target.component, {})[f"{target.name}.{parameter}"] = delta
    if misshapen:
        tensors = {f"{key}.lora_{name}.weight": each for key in factors for name, each in factors[key].items()}
        problem = f"{len(misshapen)} changes do not fit the model's weights: {list_names(misshapen)}"
        raise CheckpointError(f"{source}: {problem}. {_family_hint(tensors, networks)}")
    return components


def _split_embeddings(
    source: str, tensors: Mapping[str, Tensor]
) -> tuple[tuple[TextualInversion, ...], Mapping[str, Tensor]]:
    """The textual inversions that OneTrainer bundles with a LoRA, by token, and all other tensors."""
    bundled: dict[str, dict[str, Any]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (match := BUNDLED_EMBEDDING_PATTERN.fullmatch(name)) is None:
            rest[name] = tensor
        else:
            key = match[2]
            is_param = key.startswith("string_to_param")
            bundled.setdefault(match[1], {})["emb_params" if is_param else key] = tensor
    return tuple(read_textual_inversion(each, token) for token, each in bundled.items()), rest


def apply_lora(module: nn.Module, deltas: Mapping[str, WeightDelta], scale: float = 1.0) -> nn.Module:
    """A new module with the changed weights; all others are the given module's own, which stays as it is."""
    return apply_loras(module, [(deltas, scale)])


def apply_loras(module: nn.Module, scaled_deltas: Iterable[tuple[Mapping[str, WeightDelta], float]]) -> nn.Module:
    """As `apply_lora`, for several: their changes are added in float32 and rounded once to the weight's type."""
    changes: dict[str, list[tuple[WeightDelta, float]]] = {}
    for deltas, scale in scaled_deltas:
        for name, delta in deltas.items():
            changes.setdefault(name, []).append((delta, scale))
    shared: list[Tensor] = [*module.parameters(), *module.buffers()]
    clone = deepcopy(module, {id(tensor): tensor for tensor in shared})  # a copy of everything but the tensors
    parameters = dict(module.named_parameters())
    for name, each in changes.items():
        if name not in parameters or not all(delta.fits(tuple(parameters[name].shape)) for delta, _ in each):
            raise InputError(f"the LoRA does not fit the network's {name}; read it for this network with read_lora")
        layer, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(_add_deltas(parameters[name], each), requires_grad=parameters[name].requires_grad)
        setattr(clone.get_submodule(layer), leaf, parameter)
    return clone


@torch.no_grad()
def _add_deltas(weight: Tensor, scaled_deltas: Sequence[tuple[WeightDelta, float]]) -> Tensor:
    compute_dtype = torch.promote_types(weight.dtype, torch.float32)
    base = weight.to(compute_dtype)
    result = base
    for delta, scale in scaled_deltas:
        result = result + scale * delta.delta(base)
    return result.to(weight.dtype)


def _lora_targets(networks: Mapping[str, nn.Module]) -> dict[str, _LoraTarget]:
    """Every alias of every linear layer, convolution and normalisation of the networks."""
    targets: dict[str, _LoraTarget] = {}
    for component, network in networks.items():
        if component not in LORA_COMPONENTS:
            raise InputError(f"found a network called {component!r}, expected one of {', '.join(LORA_COMPONENTS)}")
        layers = {
            name: _LoraTarget(
                component, name, tuple(module.weight.shape), None if module.bias is None else tuple(module.bias.shape)
            )
            for name, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm)
        }
        targets |= {alias: layers[name] for alias, name in layer_aliases(component, layers).items()}
    return targets


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


@dataclass(frozen=True)
class _AdapterAlphas:
    """What PEFT's config says of one component's alphas: one for all, and one for each layer whose name ends so."""

    default: float  # NaN where nothing is said: alpha is the rank
    by_layer: Mapping[str, tuple[int, float]]  # the place in the config, of which the first counts, and the alpha
    use_rslora: bool  # Kalajdzievski 2023
    wildcards: Sequence[tuple[int, float, Sequence[str]]] = ()  # place, alpha, and what stands between `.*`

    def scale(self, layer: str, rank: int) -> float:
        """alpha / rank of a layer."""
        parts = f"text_model.{layer}".split(".")  # text encoders had the longer names once
        endings = [".".join(parts[start:]) for start in range(len(parts))]
        stated = [self.by_layer[ending] for ending in endings if ending in self.by_layer]
        stated += [
            (place, alpha)
            for place, alpha, pieces in self.wildcards
            if any(_matches_pieces(ending, pieces) for ending in endings)
        ]
        alpha = min(stated)[1] if stated else self.default
        return 1.0 if math.isnan(alpha) else alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matches_pieces(text: str, pieces: Sequence[str]) -> bool:
    """Whether a text is these pieces with anything between them, found in one pass."""
    first, *inner, last = pieces
    if not text.startswith(first):
        return False
    position = len(first)
    for piece in inner:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(text) - len(last) >= position and text.endswith(last)


def _adapter_alphas(source: str, adapter_config: Mapping[str, Any], component: str) -> _AdapterAlphas:
    """PEFT's config of a component. A key of its `alpha_pattern` is a layer's name or its end; `.*` is anything."""
    settings = {name.removeprefix(f"{component}."): value for name, value in adapter_config.items()}
    try:
        patterns: dict[str, Any] = {str(layer): alpha for layer, alpha in settings.get("alpha_pattern", {}).items()}
        by_layer = {
            layer.removeprefix("^").replace("\\.", "."): (place, float(patterns[layer]))
            for place, layer in enumerate(patterns)
        }
        wildcards = [(*each, layer.split(".*")) for layer, each in by_layer.items() if ".*" in layer]
        alphas = _AdapterAlphas(
            float(settings.get("lora_alpha", math.nan)), by_layer, bool(settings.get("use_rslora")), wildcards
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: its {ADAPTER_METADATA_KEY} cannot be understood ({error}); fetch it again."
        ) from error
    count = sum(len(pieces) - 1 for _, _, pieces in wildcards)
    if count > MAX_WILDCARDS:
        raise Unsupported(f"{source}: its alpha_pattern has {count:,} wildcards, expected at most {MAX_WILDCARDS}.")
    if (odd := next((layer for layer in by_layer if not LAYER_NAME_PATTERN.fullmatch(layer)), None)) is not None:
        raise Unsupported(
            f"{source}: its alpha_pattern has {short_repr(odd)}, expected the name of a layer; patterns of a file are "
            "not run: save it with layers' names."
        )
    return alphas


def read_adapter_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's config in a file's header, where diffusers wrote it."""
    try:
        adapter_config = parse_json(metadata.get(ADAPTER_METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its {ADAPTER_METADATA_KEY} is not valid JSON ({error}); fetch the file again."
        ) from error
    if not is_object(adapter_config):
        raise CheckpointError(
            f"{path}: its {ADAPTER_METADATA_KEY} is a JSON {type(adapter_config).__name__}, expected an object."
        )
    return adapter_config


def _reject_other_adapters(source: str, names: Iterable[str]) -> None:
    for name in names:
        for pattern, kind in UNSUPPORTED_ADAPTERS.items():
            if re.search(pattern, name):
                raise Unsupported(
                    f"{source}: this is {kind} ({name}), expected a LoRA, LoHa, LoKr, (IA)3, DoRA or full difference. "
                    "Merge it into the model with the tool that made it and read the merged folder."
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
