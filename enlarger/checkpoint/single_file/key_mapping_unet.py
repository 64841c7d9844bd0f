"""What the original code calls the blocks of its UNets, and what we do: arithmetic over levels, both ways."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from enlarger.checkpoint.single_file.key_rules import SQUEEZE_COLUMN, SQUEEZE_CONV, KeyRule, KeyRules, rename_rules

RESNET_KEYS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER_KEYS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
K_RESNET_KEYS = {
    "main.0.mapper": "norm1.linear",
    "main.2": "conv1",
    "main.4.mapper": "norm2.linear",
    "main.6": "conv2",
    "skip": "conv_shortcut",
}
K_OUTER_RULES: KeyRules = {
    "timestep_embed": KeyRule(("time_proj",), SQUEEZE_COLUMN),
    **rename_rules(
        {
            "mapping_cond": "time_embedding.cond_proj",
            "mapping.0": "time_embedding.linear_1",
            "mapping.2": "time_embedding.linear_2",
            "proj_in": "conv_in",
            "proj_out": "conv_out",
        }
    ),
}


@dataclass(frozen=True)
class UNetLevel:
    """One resolution: its residual blocks on the way down, and which attentions follow each."""

    layers: int
    has_attention: bool
    has_self_attention: bool = False  # self-attention, of the x2 upscaler's blocks


def original_unet_levels(names: Collection[str]) -> tuple[UNetLevel, ...]:
    """The levels of the original layout: `input_blocks` counts layers and halvings in one row."""
    levels, layers, has_attention = list[UNetLevel](), 0, False
    for n in count(1):
        if f"input_blocks.{n}.0.in_layers.0.weight" in names:
            layers, has_attention = layers + 1, has_attention or f"input_blocks.{n}.1.norm.weight" in names
            continue
        levels.append(UNetLevel(layers, has_attention))
        layers, has_attention = 0, False
        if f"input_blocks.{n}.0.op.weight" not in names:
            break
    return tuple(levels)


def diffusers_unet_levels(names: Collection[str]) -> tuple[UNetLevel, ...]:
    """The levels under diffusers' names."""

    def level(i: int) -> UNetLevel:
        has_attention = f"down_blocks.{i}.attentions.0.norm.weight" in names
        return UNetLevel(_count_consecutive(names, f"down_blocks.{i}.resnets.{{}}.norm1.weight"), has_attention)

    return tuple(level(i) for i in range(_count_consecutive(names, "down_blocks.{}.resnets.0.norm1.weight")))


def unet_key_rules(levels: Sequence[UNetLevel]) -> KeyRules:
    """The original's modules, numbered in one row on each side, to ours, numbered by level."""
    pairs = dict(OUTER_KEYS)
    for original, diffusers in _module_pairs(levels):
        if ".resnets." in diffusers:
            pairs |= {f"{original}.{a}": f"{diffusers}.{b}" for a, b in RESNET_KEYS.items()}
        else:
            pairs[original] = diffusers
    return rename_rules(pairs)


def _module_pairs(levels: Sequence[UNetLevel]) -> Iterator[tuple[str, str]]:
    """Where each residual block, attention and resampling lies in both layouts."""
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    number = count(1)
    for i, level in enumerate(levels):
        for j in range(level.layers):
            yield from _layer_pairs(f"input_blocks.{next(number)}", f"down_blocks.{i}", j, level)
        if i < len(levels) - 1:
            yield f"input_blocks.{next(number)}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
    number = count()
    for i, level in enumerate(reversed(levels)):
        n = 0
        for j in range(level.layers + 1):
            n = next(number)
            yield from _layer_pairs(f"output_blocks.{n}", f"up_blocks.{i}", j, level)
        if i < len(levels) - 1:
            yield f"output_blocks.{n}.{2 if level.has_attention else 1}.conv", f"up_blocks.{i}.upsamplers.0.conv"


def _layer_pairs(original: str, diffusers: str, j: int, level: UNetLevel) -> Iterator[tuple[str, str]]:
    yield f"{original}.0", f"{diffusers}.resnets.{j}"
    if level.has_attention:
        yield f"{original}.1", f"{diffusers}.attentions.{j}"


def original_k_unet_levels(names: Collection[str]) -> tuple[UNetLevel, ...]:
    """The levels of k-diffusion's layout: each numbers its blocks and attentions in one row, after the resampling."""

    def level(i: int) -> UNetLevel:
        inside = [name for name in names if name.startswith(f"u_net.d_blocks.{i}.")]
        has_attention, has_self_attention = (
            any(part in name for name in inside) for part in (".norm_enc.", ".norm_in.")
        )
        return UNetLevel(sum(name.endswith(".main.2.weight") for name in inside), has_attention, has_self_attention)

    return tuple(level(i) for i in range(_count_consecutive(names, "u_net.d_blocks.{}.1.main.2.weight")))


def diffusers_k_unet_levels(names: Collection[str]) -> tuple[UNetLevel, ...]:
    """The levels under diffusers' names."""

    def level(i: int) -> UNetLevel:
        first = f"down_blocks.{i}.attentions.0.norm"
        has_attention, has_self_attention = (f"{first}{n}.linear.weight" in names for n in (2, 1))
        return UNetLevel(
            _count_consecutive(names, f"down_blocks.{i}.resnets.{{}}.conv1.weight"), has_attention, has_self_attention
        )

    return tuple(level(i) for i in range(_count_consecutive(names, "down_blocks.{}.resnets.0.conv1.weight")))


def k_unet_key_rules(levels: Sequence[UNetLevel]) -> KeyRules:
    """k-diffusion's modules to ours; projections that it fuses are split by rows."""
    key_rules: KeyRules = dict(K_OUTER_RULES)
    for i, level in enumerate(levels):
        key_rules |= _k_block_rules(f"u_net.d_blocks.{i}", f"down_blocks.{i}", level, first=1)
    for i, level in enumerate(reversed(levels)):
        key_rules |= _k_block_rules(f"u_net.u_blocks.{i}", f"up_blocks.{i}", level, first=0)
    return key_rules


def _k_block_rules(original: str, diffusers: str, level: UNetLevel, first: int) -> KeyRules:
    key_rules: KeyRules = {}
    modules_per_layer = 1 + level.has_attention + level.has_self_attention
    for j in range(level.layers):
        n = first + j * modules_per_layer
        key_rules |= rename_rules(
            {f"{original}.{n}.{a}": f"{diffusers}.resnets.{j}.{b}" for a, b in K_RESNET_KEYS.items()}
        )
        if level.has_self_attention:
            key_rules |= _self_attention_rules(f"{original}.{n + 1}", f"{diffusers}.attentions.{j}")
        if level.has_attention:
            key_rules |= _cross_attention_rules(
                f"{original}.{n + modules_per_layer - 1}", f"{diffusers}.attentions.{j}"
            )
    return key_rules


def _self_attention_rules(original: str, diffusers: str) -> KeyRules:
    return {
        f"{original}.norm_in.mapper": KeyRule((f"{diffusers}.norm1.linear",)),
        f"{original}.qkv_proj": KeyRule(tuple(f"{diffusers}.attn1.to_{part}" for part in "qkv"), SQUEEZE_CONV),
        f"{original}.out_proj": KeyRule((f"{diffusers}.attn1.to_out.0",), SQUEEZE_CONV),
    }


def _cross_attention_rules(original: str, diffusers: str) -> KeyRules:
    return {
        f"{original}.norm_enc": KeyRule((f"{diffusers}.attn2.norm_cross",)),
        f"{original}.norm_dec.mapper": KeyRule((f"{diffusers}.norm2.linear",)),
        f"{original}.q_proj": KeyRule((f"{diffusers}.attn2.to_q",), SQUEEZE_CONV),
        f"{original}.kv_proj": KeyRule(tuple(f"{diffusers}.attn2.to_{part}" for part in "kv")),
        f"{original}.out_proj": KeyRule((f"{diffusers}.attn2.to_out.0",), SQUEEZE_CONV),
    }


def k_unet_kernels(levels: Sequence[UNetLevel]) -> Iterator[tuple[str, float]]:
    """The resampling kernels that k-diffusion's files hold, and by what each exceeds the one that averages."""
    for i in range(1, len(levels)):
        yield f"u_net.d_blocks.{i}.0.kernel", 1.0
    for i, level in enumerate(reversed(levels[1:])):
        yield f"u_net.u_blocks.{i}.{level.layers * (1 + level.has_attention + level.has_self_attention)}.kernel", 4.0


def _count_consecutive(names: Collection[str], pattern: str) -> int:
    """How many numbers in a row, from 0, make the pattern a name."""
    return sum(1 for _ in takewhile(lambda n: pattern.format(n) in names, count()))
