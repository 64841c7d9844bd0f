"""What the original code calls the blocks of its UNets, and what we do: arithmetic over levels, both ways."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from enlarger.checkpoint.rules import COLUMN, CONV, Rule, Table, plain

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
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
K_RESNET = {
    "main.0.mapper": "norm1.linear",
    "main.2": "conv1",
    "main.4.mapper": "norm2.linear",
    "main.6": "conv2",
    "skip": "conv_shortcut",
}
K_OUTSIDE: Table = {
    "timestep_embed": Rule(("time_proj",), COLUMN),
    **plain(
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
class Level:
    """One resolution: its residual blocks on the way down, and which attentions follow each."""

    layers: int
    attends: bool
    itself: bool = False  # self-attention, of the x2 upscaler's blocks


def original_levels(names: Collection[str]) -> tuple[Level, ...]:
    """The levels of the original layout: `input_blocks` counts layers and halvings in one row."""
    levels, layers, attends = list[Level](), 0, False
    for n in count(1):
        if f"input_blocks.{n}.0.in_layers.0.weight" in names:
            layers, attends = layers + 1, attends or f"input_blocks.{n}.1.norm.weight" in names
            continue
        levels.append(Level(layers, attends))
        layers, attends = 0, False
        if f"input_blocks.{n}.0.op.weight" not in names:
            break
    return tuple(levels)


def our_levels(names: Collection[str]) -> tuple[Level, ...]:
    """The levels under diffusers' names."""

    def level(i: int) -> Level:
        attends = f"down_blocks.{i}.attentions.0.norm.weight" in names
        return Level(_count(names, f"down_blocks.{i}.resnets.{{}}.norm1.weight"), attends)

    return tuple(level(i) for i in range(_count(names, "down_blocks.{}.resnets.0.norm1.weight")))


def unet_table(levels: Sequence[Level]) -> Table:
    """The original's modules, numbered in one row on each side, to ours, numbered by level."""
    pairs = dict(OUTSIDE)
    for theirs, ours in _places(levels):
        if ".resnets." in ours:
            pairs |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in RESNET.items()}
        else:
            pairs[theirs] = ours
    return plain(pairs)


def _places(levels: Sequence[Level]) -> Iterator[tuple[str, str]]:
    """Where each residual block, attention and resampling lies in both layouts."""
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    number = count(1)
    for i, level in enumerate(levels):
        for j in range(level.layers):
            yield from _layer(f"input_blocks.{next(number)}", f"down_blocks.{i}", j, level)
        if i < len(levels) - 1:
            yield f"input_blocks.{next(number)}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
    number = count()
    for i, level in enumerate(reversed(levels)):
        n = 0
        for j in range(level.layers + 1):
            n = next(number)
            yield from _layer(f"output_blocks.{n}", f"up_blocks.{i}", j, level)
        if i < len(levels) - 1:
            yield f"output_blocks.{n}.{2 if level.attends else 1}.conv", f"up_blocks.{i}.upsamplers.0.conv"


def _layer(theirs: str, ours: str, j: int, level: Level) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.0", f"{ours}.resnets.{j}"
    if level.attends:
        yield f"{theirs}.1", f"{ours}.attentions.{j}"


def original_k_levels(names: Collection[str]) -> tuple[Level, ...]:
    """The levels of k-diffusion's layout: each numbers its blocks and attentions in one row, after the resampling."""

    def level(i: int) -> Level:
        inside = [name for name in names if name.startswith(f"u_net.d_blocks.{i}.")]
        attends, itself = (any(part in name for name in inside) for part in (".norm_enc.", ".norm_in."))
        return Level(sum(name.endswith(".main.2.weight") for name in inside), attends, itself)

    return tuple(level(i) for i in range(_count(names, "u_net.d_blocks.{}.1.main.2.weight")))


def our_k_levels(names: Collection[str]) -> tuple[Level, ...]:
    """The levels under diffusers' names."""

    def level(i: int) -> Level:
        first = f"down_blocks.{i}.attentions.0.norm"
        attends, itself = (f"{first}{n}.linear.weight" in names for n in (2, 1))
        return Level(_count(names, f"down_blocks.{i}.resnets.{{}}.conv1.weight"), attends, itself)

    return tuple(level(i) for i in range(_count(names, "down_blocks.{}.resnets.0.conv1.weight")))


def k_table(levels: Sequence[Level]) -> Table:
    """k-diffusion's modules to ours; projections that it fuses are split by rows."""
    table: Table = dict(K_OUTSIDE)
    for i, level in enumerate(levels):
        table |= _k_block(f"u_net.d_blocks.{i}", f"down_blocks.{i}", level, first=1)
    for i, level in enumerate(reversed(levels)):
        table |= _k_block(f"u_net.u_blocks.{i}", f"up_blocks.{i}", level, first=0)
    return table


def _k_block(theirs: str, ours: str, level: Level, first: int) -> Table:
    table: Table = {}
    step = 1 + level.attends + level.itself
    for j in range(level.layers):
        n = first + j * step
        table |= plain({f"{theirs}.{n}.{a}": f"{ours}.resnets.{j}.{b}" for a, b in K_RESNET.items()})
        if level.itself:
            table |= _self_attention(f"{theirs}.{n + 1}", f"{ours}.attentions.{j}")
        if level.attends:
            table |= _cross_attention(f"{theirs}.{n + step - 1}", f"{ours}.attentions.{j}")
    return table


def _self_attention(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.norm_in.mapper": Rule((f"{ours}.norm1.linear",)),
        f"{theirs}.qkv_proj": Rule(tuple(f"{ours}.attn1.to_{part}" for part in "qkv"), CONV),
        f"{theirs}.out_proj": Rule((f"{ours}.attn1.to_out.0",), CONV),
    }


def _cross_attention(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.norm_enc": Rule((f"{ours}.attn2.norm_cross",)),
        f"{theirs}.norm_dec.mapper": Rule((f"{ours}.norm2.linear",)),
        f"{theirs}.q_proj": Rule((f"{ours}.attn2.to_q",), CONV),
        f"{theirs}.kv_proj": Rule(tuple(f"{ours}.attn2.to_{part}" for part in "kv")),
        f"{theirs}.out_proj": Rule((f"{ours}.attn2.to_out.0",), CONV),
    }


def k_kernels(levels: Sequence[Level]) -> Iterator[tuple[str, float]]:
    """The resampling kernels that k-diffusion's files hold, and by what each exceeds the one that averages."""
    for i in range(1, len(levels)):
        yield f"u_net.d_blocks.{i}.0.kernel", 1.0
    for i, level in enumerate(reversed(levels[1:])):
        yield f"u_net.u_blocks.{i}.{level.layers * (1 + level.attends + level.itself)}.kernel", 4.0


def _count(names: Collection[str], pattern: str) -> int:
    """How many numbers in a row, from 0, make the pattern a name."""
    return sum(1 for _ in takewhile(lambda n: pattern.format(n) in names, count()))
