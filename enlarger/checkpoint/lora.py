"""LoRA files (Hu et al. 2021): low-rank changes of a model's weights, read in every common layout and added."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.build import SHOWN, TEXT, UNETS, Shape, family
from enlarger.checkpoint.files import open_file
from enlarger.checkpoint.lora_names import KOHYA, spellings
from enlarger.errors import CheckpointError, InputError, Unsupported

PARTS = tuple(KOHYA)  # the networks that a LoRA may change
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings in a file
PIECE = re.compile(
    r"(.+?)(?:\.lora_(A|B)(?:\.\w+)?|\.lora_(down|up|mid)|[._]lora(?:_linear_layer)?\.(down|up))\.weight"
)
TRANSFORMER = re.compile(r"double_blocks|single_blocks|single_transformer|joint_blocks|^transformer\.")
PEFT_PIECES = {"A": "down", "B": "up"}
OTHER_KINDS = {  # what trainers write that is no plain LoRA, by a pattern in its names
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
class Update:
    """The change `scale * up @ down` of one weight; a convolution's is taken over all places of its kernel."""

    down: Tensor  # (rank, in) or (rank, in, h, w)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    scale: float  # alpha / rank


@dataclass(frozen=True, eq=False)
class Lora:
    """What a file changes: for each part (unet, text_encoder, text_encoder_2) the updates of weights by name."""

    parts: Mapping[str, Mapping[str, Update]]


@dataclass(frozen=True)
class _Layer:
    """A layer of a network: its part, its name, and its weight's shape."""

    part: str
    name: str
    shape: Shape


def read_lora(path: str | Path, networks: Mapping[str, nn.Module], allow_pickle: bool = False) -> Lora:
    """Read a safetensors file for these networks, by part; `allow_pickle` reads a pickle of tensors too.

    Raises CheckpointError where a name or shape fits none of the networks, and Unsupported for kinds other than LoRA.
    """
    path = Path(path)
    weights = open_file(path, allow_pickle=allow_pickle)
    tensors = {name: weights.read(name) for name in weights.names()}
    return make_lora(tensors, networks, _settings(path, weights.metadata), str(path))


def make_lora(
    tensors: Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    settings: Mapping[str, Any] | None = None,
    source: str = "the LoRA",
) -> Lora:
    """The LoRA of named tensors. `settings` are PEFT's, each name behind its part: `unet.lora_alpha`.

    A layer without alpha, in the tensors or the settings, has alpha = rank.
    """
    _refuse_other_kinds(source, tensors)
    layers, pieces = _layers(networks), _grouped(tensors)
    strange = [name for name in pieces if name not in layers]
    if strange or not pieces:
        problem = f"{len(strange)} names fit no layer of the model: {_listed(strange)}" if pieces else "it is empty"
        raise CheckpointError(f"{source}: {problem}. {_advice(tensors, networks)}")
    parts: dict[str, dict[str, Update]] = {}
    misshapen: list[str] = []
    for layer, spelling in _one_each(source, layers, pieces).items():
        update = _update(source, spelling, pieces[spelling], _stated_scale(source, settings or {}, layer))
        if not _fits(update, layer.shape):
            shapes = f"{tuple(update.up.shape)} and {tuple(update.down.shape)}"
            misshapen.append(f"{spelling} (found {shapes}, expected factors of {layer.shape})")
        parts.setdefault(layer.part, {})[f"{layer.name}.weight"] = update
    if misshapen:
        problem = f"{len(misshapen)} changes do not fit the model's weights: {_listed(misshapen)}"
        raise CheckpointError(f"{source}: {problem}. {_advice(tensors, networks)}")
    return Lora(parts)


def apply_lora(module: nn.Module, updates: Mapping[str, Update], scale: float = 1.0) -> nn.Module:
    """A new module with the changed weights; all others are the given module's own, which stays as it is."""
    return apply_loras(module, [(updates, scale)])


def apply_loras(module: nn.Module, weighted: Iterable[tuple[Mapping[str, Update], float]]) -> nn.Module:
    """As `apply_lora`, for several: their changes are added in float32 and rounded once to the weight's type."""
    changes: dict[str, list[tuple[Update, float]]] = {}
    for updates, scale in weighted:
        for name, update in updates.items():
            changes.setdefault(name, []).append((update, scale))
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    made = deepcopy(module, {id(tensor): tensor for tensor in held})  # a copy of everything but the tensors
    own = dict(module.named_parameters())
    for name, each in changes.items():
        if name not in own or not all(_fits(update, tuple(own[name].shape)) for update, _ in each):
            raise InputError(f"the LoRA does not fit the network's {name}; read it for this network with read_lora")
        layer, _, leaf = name.rpartition(".")
        changed = nn.Parameter(_changed(own[name], each), requires_grad=own[name].requires_grad)
        setattr(made.get_submodule(layer), leaf, changed)
    return made


@torch.no_grad()
def _changed(weight: Tensor, updates: Sequence[tuple[Update, float]]) -> Tensor:
    exact = torch.promote_types(weight.dtype, torch.float32)
    result = weight.to(exact)
    for update, scale in updates:
        up, down = (factor.flatten(1).to(weight.device, exact) for factor in (update.up, update.down))
        result = result + (scale * update.scale) * (up @ down).view_as(result)
    return result.to(weight.dtype)


def _layers(networks: Mapping[str, nn.Module]) -> dict[str, _Layer]:
    """Every spelling of every linear layer and convolution of the networks."""
    table: dict[str, _Layer] = {}
    for part, network in networks.items():
        if part not in PARTS:
            raise InputError(f"found a network called {part!r}, expected one of {', '.join(PARTS)}")
        shapes = {
            name: tuple(module.weight.shape)
            for name, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        table |= {said: _Layer(part, name, shapes[name]) for said, name in spellings(part, shapes).items()}
    return table


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """For each layer, as the file spells it, its tensors called down, up, mid and alpha; any other has its own name."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".alpha")
        found = PIECE.fullmatch(stem)
        layer = stem.removesuffix("_lora") if found is None else found[1]
        if stem != name:
            piece = "alpha"
        elif found is not None:
            piece = next(PEFT_PIECES.get(said, said) for said in found.groups()[1:] if said is not None)
        else:
            layer, piece = name, "unknown"
        layers.setdefault(layer, {})[piece] = tensor
    return layers


def _one_each(
    source: str, layers: Mapping[str, _Layer], pieces: Mapping[str, Mapping[str, Tensor]]
) -> dict[_Layer, str]:  # fmt: skip
    """The spelling of each changed layer; a second one is let pass only where it repeats the same tensors."""
    spelled: dict[_Layer, str] = {}
    for spelling, found in pieces.items():
        first = spelled.setdefault(layers[spelling], spelling)
        if first != spelling and not _same(pieces[first], found):
            raise CheckpointError(
                f"{source}: {first} and {spelling} change one layer differently; expected one of them."
            )
    return spelled


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _update(source: str, spelling: str, pieces: Mapping[str, Tensor], stated: Callable[[int], float]) -> Update:
    missing = [piece for piece in ("down", "up") if piece not in pieces]
    if missing:
        raise CheckpointError(f"{source}: {spelling} has no {' and no '.join(missing)} half; fetch the file again.")
    down, up, mid, alpha = (pieces.get(piece) for piece in ("down", "up", "mid", "alpha"))
    assert down is not None and up is not None
    rank = down.shape[0] if down.dim() > 1 else 0
    whole = rank > 0 and up.dim() > 1 and (mid is None or (mid.dim() == 4 and mid.shape[:2] == (rank, rank)))
    if not whole or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{piece} {tuple(tensor.shape)}" for piece, tensor in pieces.items())
        raise CheckpointError(f"{source}: {spelling} is no product of low rank: {shapes}; fetch the file again.")
    if mid is not None:  # LoCon's third factor (rank, rank, h, w), joined with the first
        down = torch.einsum("nmhw,mi->nihw", mid.float(), down.flatten(1).float())
    return Update(down, up, stated(rank) if alpha is None else float(alpha) / rank)


def _fits(update: Update, shape: Shape) -> bool:
    """Whether the product has this shape; a linear layer and a 1x1 convolution fit each other."""
    rank = update.down.shape[0]
    return _bare(update.up.shape) == (shape[0], rank) and _bare(update.down.shape[1:]) == _bare(shape[1:])


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the kernel of a 1x1 convolution."""
    return tuple(shape[:-2] if len(shape) > 2 and tuple(shape[-2:]) == (1, 1) else shape)


def _stated_scale(source: str, settings: Mapping[str, Any], layer: _Layer) -> Callable[[int], float]:
    """alpha / rank by rank, as PEFT's settings state it; 1 where they do not."""
    own = {name.removeprefix(f"{layer.part}."): value for name, value in settings.items()}
    patterns = own.get("alpha_pattern", {})
    names = (layer.name, f"text_model.{layer.name}")  # text encoders had the longer names once
    try:
        fits = [alpha for said, alpha in patterns.items() if any(re.match(rf"(.*\.)?({said})$", n) for n in names)]
        alpha = float((fits or [own.get("lora_alpha", math.nan)])[0])
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"{source}: its {SETTINGS} cannot be understood ({error}); fetch it again.") from error
    root = bool(own.get("use_rslora"))  # Kalajdzievski 2023
    return lambda rank: 1.0 if math.isnan(alpha) else alpha / (math.sqrt(rank) if root else rank)


def _settings(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings in a file's header, where diffusers wrote it."""
    try:
        found = json.loads(header.get(SETTINGS, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {SETTINGS} is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: its {SETTINGS} is a JSON {type(found).__name__}, expected an object.")
    return cast("dict[str, Any]", found)


def _refuse_other_kinds(source: str, names: Iterable[str]) -> None:
    for name in names:
        for pattern, kind in OTHER_KINDS.items():
            if re.search(pattern, name):
                raise Unsupported(
                    f"{source}: this is {kind} ({name}), expected a LoRA: a lower and an upper factor per layer. Merge "
                    "it into the model with the tool that made it and read the merged folder."
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _advice(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> str:
    """Which family the LoRA and the model look like."""
    models = [family({name: tuple(t.shape) for name, t in n.state_dict().items()}) for n in networks.values()]
    made_for = _made_for({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return f"The LoRA looks made for {made_for}, the model has {', '.join(models)}; use a LoRA of the model's family."


def _made_for(shapes: Mapping[str, Shape]) -> str:
    """The family of a LoRA: the width of what its factors read tells."""
    lower: dict[str, Shape] = {}
    for name, shape in shapes.items():
        found = PIECE.fullmatch(name)
        if found is not None and len(shape) > 1 and not {"B", "up", "mid"} & set(found.groups()[1:]):
            lower[found[1]] = shape
    for name, shape in lower.items():
        if TRANSFORMER.search(name):
            return "a transformer (SD3, Flux or later), which this package does not run"
        if re.search(r"attn2[._](processor[._])?to_[kv]$", name):
            context = {width: meaning for (width, _), meaning in UNETS.items()}
            return context.get(shape[1], f"a UNet with context width {shape[1]}")
    text = [shape[1] for name, shape in lower.items() if "self_attn" in name]
    return TEXT.get(text[0], f"a text encoder of width {text[0]}") if text else "none of the networks known here"
