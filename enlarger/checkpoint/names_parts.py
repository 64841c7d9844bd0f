"""What the original code calls the blocks of its autoencoder and its text encoders, and what we do."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import count

from enlarger.checkpoint.rules import CONV, TRANSPOSED, Rule, Table, plain

RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
DOWN, UP = "encoder.down_blocks", "decoder.up_blocks"
THEIR_BLOCK = re.compile(r"encoder\.down\.(\d{1,3})\.block\.(\d{1,3})\.norm1\.weight")
OUR_BLOCK = re.compile(r"encoder\.down_blocks\.(\d{1,3})\.resnets\.(\d{1,3})\.norm1\.weight")
CLIP = ("embeddings", "encoder", "final_layer_norm")
CLIP_PREFIX = "text_model."
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
TOWER = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
}
WHOLE = ("text_projection", "logit_scale")  # a tower that open_clip saved whole has both
VIT_H = 24  # layers, of which Stable Diffusion uses one less


@dataclass(frozen=True)
class Grid:
    """Levels of an autoencoder, and residual blocks of the encoder's (the decoder's have one more)."""

    levels: int
    layers: int


@dataclass(frozen=True)
class Tower:
    """Layers of an open_clip text encoder, and whether its projection is used."""

    layers: int
    projects: bool


def original_grid(names: Collection[str]) -> Grid:
    return _grid(names, THEIR_BLOCK)


def our_grid(names: Collection[str]) -> Grid:
    return _grid(names, OUR_BLOCK)


def _grid(names: Collection[str], pattern: re.Pattern[str]) -> Grid:
    found = {(int(match[1]), int(match[2])) for name in names if (match := pattern.fullmatch(name))}
    layers = (len(_row(j for i, j in found if i == level)) for level in _row(i for i, _ in found))
    return Grid(len(_row(i for i, _ in found)), min(layers, default=0))


def _row(numbers: Iterable[int]) -> range:
    """0, 1, 2 and so on for as long as all are there."""
    found = set(numbers)
    return range(next(n for n in count() if n not in found))


def vae_table(grid: Grid) -> Table:
    """The autoencoder: the original numbers the decoder's levels from the picture, diffusers from the latent."""
    pairs = {f"{part}quant_conv": f"{part}quant_conv" for part in ("", "post_")}
    table: Table = {}
    for side in ("encoder", "decoder"):
        pairs |= {f"{side}.{part}": f"{side}.{part}" for part in ("conv_in", "conv_out")}
        pairs[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for j in range(2):
            pairs |= _resnet(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}")
        attention = f"{side}.mid_block.attentions.0"
        pairs[f"{side}.mid.attn_1.norm"] = f"{attention}.group_norm"
        table |= {f"{side}.mid.attn_1.{a}": Rule((f"{attention}.{b}",), CONV) for a, b in ATTENTION.items()}
    for i in range(grid.levels):
        ours = {"encoder.down": f"{DOWN}.{i}", "decoder.up": f"{UP}.{grid.levels - 1 - i}"}
        for more, (theirs, our) in enumerate(ours.items()):
            for j in range(grid.layers + more):
                pairs |= _resnet(f"{theirs}.{i}.block.{j}", f"{our}.resnets.{j}")
        pairs[f"encoder.down.{i}.downsample.conv"] = f"{DOWN}.{i}.downsamplers.0.conv"
        pairs[f"decoder.up.{i}.upsample.conv"] = f"{UP}.{grid.levels - 1 - i}.upsamplers.0.conv"
    return plain(pairs) | table


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in RESNET.items()}


def original_clip(names: Collection[str]) -> str:
    """The prefix of transformers' text encoder, which some files lack."""
    return CLIP_PREFIX if any(name.startswith(CLIP_PREFIX) for name in names) else ""


def our_clip(_: Collection[str]) -> str:
    return CLIP_PREFIX


def clip_table(prefix: str) -> Table:
    """transformers' text encoder: but for the prefix the names are ours."""
    return plain({prefix + part: part for part in CLIP})


def original_tower(names: Collection[str]) -> Tower:
    """The layers that Stable Diffusion 2 uses: all but the last of a tower that was saved whole."""
    count = _layers(names, r"transformer\.resblocks\.(\d{1,3})\.ln_1\.weight")
    whole = any(name in names for name in WHOLE)
    cut = count == VIT_H or (whole and count != VIT_H - 1)
    return Tower(count - cut, projects=False)


def original_projecting_tower(names: Collection[str]) -> Tower:
    """Of SDXL's second tower all layers are used, and the projection."""
    return Tower(_layers(names, r"transformer\.resblocks\.(\d{1,3})\.ln_1\.weight"), projects=True)


def our_tower(names: Collection[str]) -> Tower:
    return Tower(_layers(names, r"encoder\.layers\.(\d{1,3})\.layer_norm1\.weight"), "text_projection.weight" in names)


def _layers(names: Collection[str], pattern: str) -> int:
    return len(_row(int(found[1]) for name in names if (found := re.fullmatch(pattern, name))))


def tower_table(tower: Tower) -> Table:
    """open_clip's text encoder: queries, keys and values are rows of one weight, the projection is transposed."""
    table = plain(TOWER)
    if tower.projects:
        table["text_projection"] = Rule(("text_projection.weight",), TRANSPOSED)
    for i in range(tower.layers):
        theirs, ours = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        table |= plain({f"{theirs}.{a}": f"{ours}.{b}" for a, b in LAYER.items()})
        for kind in ("weight", "bias"):
            parts = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            table[f"{theirs}.attn.in_proj_{kind}"] = Rule(parts)
    return table
