"""From the named tensors of one layer in an adapter's file to the changes of its weight and bias."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from enlarger.checkpoint.adapters.weight_deltas import (
    DoraDelta,
    FullDelta,
    HadamardDelta,
    KroneckerDelta,
    LoraDelta,
    RescalingDelta,
    WeightDelta,
)
from enlarger.errors import CheckpointError

LORA_KEY_PATTERN = re.compile(
    r"(.+?)(?:\.lora_(A|B)(?:\.\w+)?|\.lora_(down|up|mid)|[._]lora(?:_linear_layer)?\.(down|up))\.weight"
)
UP_BIAS_PATTERN = re.compile(r"(.+?)\.lora_(?:B(?:\.\w+)?|up)\.bias")
MAGNITUDE_PATTERN = re.compile(r"(.+?)\.lora_magnitude_vector(?:\.\w+){0,2}")  # PEFT's
LYCORIS_KEY_PATTERN = re.compile(
    r"(.+)\.(hada_[wt][12](?:_[ab])?|lokr_w[12](?:_[ab])?|lokr_t[12]|dora_scale|diff|diff_b|w_norm|b_norm|on_input)"
)
PEFT_FACTORS = {"A": "down", "B": "up"}
Factors = Mapping[str, Tensor]
DefaultScale = Callable[[int], float]  # by rank, where no alpha is stored


def group_factors(tensors: Factors) -> dict[str, dict[str, Tensor]]:
    """For each layer, as the file spells it, its tensors by what they are; any other name stands alone."""
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer_key, factor = _layer_and_factor(name, tensors)
        factors.setdefault(layer_key, {})[factor] = tensor
    return factors


def _layer_and_factor(name: str, tensors: Factors) -> tuple[str, str]:
    stem = name.removesuffix(".alpha")
    if (match := LORA_KEY_PATTERN.fullmatch(stem)) is not None:
        factor = next(PEFT_FACTORS.get(group, group) for group in match.groups()[1:] if group is not None)
        return match[1], factor if stem == name else "alpha"
    if stem != name:
        return stem.removesuffix("_lora"), "alpha"
    for pattern, factor in ((UP_BIAS_PATTERN, "up_bias"), (MAGNITUDE_PATTERN, "magnitude")):
        if (match := pattern.fullmatch(name)) is not None:
            return match[1], factor
    if (match := LYCORIS_KEY_PATTERN.fullmatch(name)) is not None:
        return match[1], match[2]
    layer_key = name.removesuffix(".weight")
    return (layer_key, "ia3") if f"{layer_key}.on_input" in tensors else (name, "unknown")


def make_deltas(source: str, layer_key: str, factors: Factors, default_scale: DefaultScale) -> dict[str, WeightDelta]:
    """The changes of a layer's parameters ("weight", "bias"). Raises CheckpointError for factors that do not fit."""
    deltas: dict[str, WeightDelta] = {}
    for factor, parameter in (("diff", "weight"), ("w_norm", "weight"), ("diff_b", "bias"), ("b_norm", "bias")):
        if factor in factors:
            deltas[parameter] = FullDelta(factors[factor])
    try:
        change = _low_rank_change(source, layer_key, factors, default_scale, is_needed=not deltas)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{source}: {layer_key} lacks {error}; fetch the file again.") from error
    if change is None:
        return deltas
    if "up_bias" in factors and isinstance(change, LoraDelta):
        deltas["bias"] = FullDelta(change.scale * factors["up_bias"].float())
    return deltas | {"weight": _with_lengths(change, factors)}


def _low_rank_change(
    source: str, layer_key: str, factors: Factors, default_scale: DefaultScale, is_needed: bool
) -> WeightDelta | None:
    if any(name.startswith("hada_") for name in factors):
        return _hadamard(factors, default_scale)
    if any(name.startswith("lokr_") for name in factors):
        return _kronecker(factors, default_scale)
    if "on_input" in factors:
        return RescalingDelta(factors["ia3"], bool(factors["on_input"].any()))
    is_lora = not factors.keys().isdisjoint({"down", "up", "mid"})
    return _lora(source, layer_key, factors, default_scale) if is_lora or is_needed else None


def _scale(factors: Factors, rank: int, default_scale: DefaultScale) -> float:
    alpha = factors.get("alpha")
    return default_scale(rank) if alpha is None else float(alpha) / max(rank, 1)


def _hadamard(factors: Factors, default_scale: DefaultScale) -> HadamardDelta:
    first, second = ((factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"]) for i in (1, 2))
    cores = factors.get("hada_t1"), factors.get("hada_t2")
    return HadamardDelta(first, second, _scale(factors, first[1].shape[0], default_scale), cores)


def _kronecker(factors: Factors, default_scale: DefaultScale) -> KroneckerDelta:
    left, right = (
        (factors[f"lokr_w{i}"],) if f"lokr_w{i}" in factors else (factors[f"lokr_w{i}_a"], factors[f"lokr_w{i}_b"])
        for i in (1, 2)
    )
    ranks = [factor[1].shape[0] for factor in (right, left) if len(factor) == 2]
    scale = _scale(factors, ranks[0], default_scale) if ranks else 1.0
    return KroneckerDelta(left, right, scale, factors.get("lokr_t2"))


def _with_lengths(change: WeightDelta, factors: Factors) -> WeightDelta:
    """The change as a DoRA, where there are lengths: PEFT's are of rows, LyCORIS' of rows (n, 1) or columns (1, n)."""
    if "magnitude" in factors:
        return DoraDelta(change, factors["magnitude"], by_rows=True)
    if "dora_scale" in factors:
        lengths = factors["dora_scale"]
        return DoraDelta(change, lengths, by_rows=lengths.dim() < 2 or lengths.shape[0] != 1)
    return change


def _lora(source: str, layer_key: str, factors: Factors, default_scale: DefaultScale) -> LoraDelta:
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
    return LoraDelta(down, up, _scale(factors, rank, default_scale))
