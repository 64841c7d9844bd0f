"""How much of an adapter each part, each block and each attention of a network gets."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from enlarger.checkpoint.adapters.lora import LORA_COMPONENTS, Lora
from enlarger.checkpoint.adapters.weight_deltas import WeightDelta
from enlarger.diffusers.call.arguments import ArgumentError

Weight = float | Mapping[str, Any] | None
PartWeight = float | Mapping[str, float]  # of a whole network, or by the start of a layer's name; "" is all others
Deltas = Mapping[str, WeightDelta]


def weight_per_adapter(weights: Weight | Sequence[Weight], count: int) -> list[Weight]:
    if weights is None or isinstance(weights, Mapping | float | int):
        return [weights] * count
    if len(weights) != count:
        raise ArgumentError(f"found {count} adapter names and {len(weights)} weights, expected as many")
    return list(weights)


def weight_per_component(weight: Weight, lora: Lora, networks: Mapping[str, nn.Module]) -> dict[str, PartWeight]:
    """A weight for each part that the adapter changes; 1 where none is said."""
    given = weight if isinstance(weight, Mapping) else dict.fromkeys(lora.components, weight)
    if unknown := [part for part in given if part not in LORA_COMPONENTS]:
        raise ArgumentError(f"found weights for {', '.join(unknown)}, expected some of {', '.join(LORA_COMPONENTS)}")
    return {part: _of_part(part, given.get(part), networks[part]) for part in lora.components}


def scaled_weight(weight: PartWeight, scale: float) -> PartWeight:
    if not isinstance(weight, Mapping):
        return scale * weight
    return {name: scale * value for name, value in weight.items()}


def weighted_deltas(deltas: Deltas, weight: PartWeight) -> list[tuple[Deltas, float]]:
    """The changes of a network's weights in groups of one factor."""
    if not isinstance(weight, Mapping):
        return [(deltas, weight)]
    groups: dict[float, dict[str, WeightDelta]] = {}
    for name, delta in deltas.items():
        groups.setdefault(weight.get(_block_of(name), weight[""]), {})[name] = delta
    return [(group, factor) for factor, group in groups.items()]


def _of_part(part: str, weight: Any, network: nn.Module) -> PartWeight:
    if not isinstance(weight, Mapping):
        return 1.0 if weight is None else float(weight)
    if part != "unet":
        raise ArgumentError(f"found weights by block for {part}, expected a number; only the unet has blocks")
    stated: dict[str, Any] = dict(weight)  # pyright: ignore[reportUnknownArgumentType] - a caller's
    if unknown := sorted(set(stated) - {"down", "mid", "up"}):
        raise ArgumentError(f"found weights for {', '.join(unknown)} of the unet, expected some of down, mid, up")
    middle = stated.get("mid", 1.0)
    found = {"": 1.0, "mid_block.attentions.0": _single(middle, "mid")}
    return found | _of_way(network, "down", stated.get("down")) | _of_way(network, "up", stated.get("up"))


def _of_way(network: nn.Module, way: str, weight: Any) -> dict[str, float]:
    """The weights of the attentions of the way down or up: one number, or by block, each a number or a list."""
    counts = {
        f"block_{i}": len(list(block.get_submodule("attentions").children()))
        for i, (_, block) in enumerate(network.get_submodule(f"{way}_blocks").named_children())
        if hasattr(block, "attentions")
    }
    counts = {name: count for name, count in counts.items() if count}
    by_block: dict[str, Any] = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(counts, weight)  # pyright: ignore[reportUnknownArgumentType] - a caller's
    if unknown := sorted(set(by_block) - set(counts)):
        raise ArgumentError(
            f"found weights for {', '.join(unknown)} of {way}, expected some of {', '.join(counts)}, which attend"
        )
    found: dict[str, float] = {}
    for name, count in counts.items():
        for i, value in enumerate(_listed(by_block.get(name), count, f"{way}.{name}")):
            found[f"{way}_blocks.{name.removeprefix('block_')}.attentions.{i}"] = value
    return found


def _listed(value: Any, count: int, name: str) -> list[float]:
    if not isinstance(value, list | tuple):
        return [1.0 if value is None else float(value)] * count
    values = [float(each) for each in value]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - a caller's
    if len(values) not in (1, count):
        raise ArgumentError(f"found {len(values)} weights for {name}, expected 1 or {count}")
    return values if len(values) == count else values * count


def _single(value: Any, name: str) -> float:
    return _listed(value, 1, name)[0]


def _block_of(name: str) -> str:
    """The attention of a layer's block, at the same place in it: a residual block follows its attention."""
    parts = name.split(".")
    if parts[0] == "mid_block":
        return ".".join(parts[:3])
    return f"{parts[0]}.{parts[1]}.attentions.{parts[3]}" if len(parts) > 3 else ""
