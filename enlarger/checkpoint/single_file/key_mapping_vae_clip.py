"""What the original code calls the blocks of its autoencoder and its text encoders, and what we do."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import count

from enlarger.checkpoint.single_file.key_rules import SQUEEZE_CONV, TRANSPOSE, KeyRule, KeyRules, rename_rules

RESNET_KEYS = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "nin_shortcut": "conv_shortcut",
    "conv_shortcut": "conv_shortcut",
}
ATTENTION_KEYS = {  # the original's names, and those that converters of 2023 left of two versions of diffusers
    name: target
    for target, names in {
        "to_q": ("q", "to_q", "query"),
        "to_k": ("k", "to_k", "key"),
        "to_v": ("v", "to_v", "value"),
        "to_out.0": ("proj_out", "to_out.0", "proj_attn"),
    }.items()
    for name in names
}
ENCODER_BLOCKS, DECODER_BLOCKS = "encoder.down_blocks", "decoder.up_blocks"
ORIGINAL_BLOCK = re.compile(r"encoder\.down\.(\d{1,3})\.block\.(\d{1,3})\.norm1\.weight")
DIFFUSERS_BLOCK = re.compile(r"encoder\.down_blocks\.(\d{1,3})\.resnets\.(\d{1,3})\.norm1\.weight")
CLIP_MODULES = ("embeddings", "encoder", "final_layer_norm")
CLIP_PREFIX = "text_model."
OPEN_CLIP_LAYER_KEYS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_KEYS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
}
FULL_OPEN_CLIP_KEYS = ("text_projection", "logit_scale")  # a tower that open_clip saved whole has both
VIT_H_LAYERS = 24  # layers, of which Stable Diffusion uses one less


@dataclass(frozen=True)
class VaeStructure:
    """Levels of an autoencoder, and residual blocks of the encoder's (the decoder's have one more)."""

    levels: int
    layers: int


@dataclass(frozen=True)
class OpenClipStructure:
    """Layers of an open_clip text encoder, and whether its projection is used."""

    layers: int
    has_projection: bool


def original_vae_structure(names: Collection[str]) -> VaeStructure:
    return _vae_structure(names, ORIGINAL_BLOCK)


def diffusers_vae_structure(names: Collection[str]) -> VaeStructure:
    return _vae_structure(names, DIFFUSERS_BLOCK)


def _vae_structure(names: Collection[str], pattern: re.Pattern[str]) -> VaeStructure:
    block_indices = {(int(match[1]), int(match[2])) for name in names if (match := pattern.fullmatch(name))}
    layers = (
        len(_consecutive(j for i, j in block_indices if i == level))
        for level in _consecutive(i for i, _ in block_indices)
    )
    return VaeStructure(len(_consecutive(i for i, _ in block_indices)), min(layers, default=0))


def _consecutive(numbers: Iterable[int]) -> range:
    """0, 1, 2 and so on for as long as all are there."""
    found = set(numbers)
    return range(next(n for n in count() if n not in found))


def vae_key_rules(structure: VaeStructure) -> KeyRules:
    """The autoencoder: the original numbers the decoder's levels from the picture, diffusers from the latent."""
    pairs = {f"{part}quant_conv": f"{part}quant_conv" for part in ("", "post_")}
    key_rules: KeyRules = {}
    for side in ("encoder", "decoder"):
        pairs |= {f"{side}.{part}": f"{side}.{part}" for part in ("conv_in", "conv_out")}
        pairs |= {f"{side}.{norm}": f"{side}.conv_norm_out" for norm in ("norm_out", "conv_norm_out")}
        for j in range(2):
            pairs |= _resnet_pairs(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}")
        attention = f"{side}.mid_block.attentions.0"
        pairs |= {f"{side}.mid.attn_1.{norm}": f"{attention}.group_norm" for norm in ("norm", "group_norm")}
        key_rules |= {
            f"{side}.mid.attn_1.{a}": KeyRule((f"{attention}.{b}",), SQUEEZE_CONV) for a, b in ATTENTION_KEYS.items()
        }
    for i in range(structure.levels):
        diffusers_prefixes = {
            "encoder.down": f"{ENCODER_BLOCKS}.{i}",
            "decoder.up": f"{DECODER_BLOCKS}.{structure.levels - 1 - i}",
        }
        for extra_layers, (original_prefix, diffusers_prefix) in enumerate(diffusers_prefixes.items()):
            for j in range(structure.layers + extra_layers):
                pairs |= _resnet_pairs(f"{original_prefix}.{i}.block.{j}", f"{diffusers_prefix}.resnets.{j}")
        pairs[f"encoder.down.{i}.downsample.conv"] = f"{ENCODER_BLOCKS}.{i}.downsamplers.0.conv"
        pairs[f"decoder.up.{i}.upsample.conv"] = f"{DECODER_BLOCKS}.{structure.levels - 1 - i}.upsamplers.0.conv"
    return rename_rules(pairs) | key_rules


def _resnet_pairs(original: str, diffusers: str) -> dict[str, str]:
    return {f"{original}.{a}": f"{diffusers}.{b}" for a, b in RESNET_KEYS.items()}


def original_clip_prefix(names: Collection[str]) -> str:
    """The prefix of transformers' text encoder, which some files lack."""
    return CLIP_PREFIX if any(name.startswith(CLIP_PREFIX) for name in names) else ""


def diffusers_clip_prefix(_: Collection[str]) -> str:
    return CLIP_PREFIX


def clip_key_rules(prefix: str) -> KeyRules:
    """transformers' text encoder: but for the prefix the names are ours."""
    return rename_rules({prefix + part: part for part in CLIP_MODULES})


def original_open_clip_structure(names: Collection[str]) -> OpenClipStructure:
    """The layers that Stable Diffusion 2 uses: all but the last of a tower that was saved whole."""
    count = _count_layers(names, r"transformer\.resblocks\.(\d{1,3})\.ln_1\.weight")
    is_full_model = any(name in names for name in FULL_OPEN_CLIP_KEYS)
    num_unused = count == VIT_H_LAYERS or (is_full_model and count != VIT_H_LAYERS - 1)
    return OpenClipStructure(count - num_unused, has_projection=False)


def original_projected_open_clip_structure(names: Collection[str]) -> OpenClipStructure:
    """Of SDXL's second tower all layers are used, and the projection."""
    return OpenClipStructure(
        _count_layers(names, r"transformer\.resblocks\.(\d{1,3})\.ln_1\.weight"), has_projection=True
    )


def diffusers_open_clip_structure(names: Collection[str]) -> OpenClipStructure:
    return OpenClipStructure(
        _count_layers(names, r"encoder\.layers\.(\d{1,3})\.layer_norm1\.weight"), "text_projection.weight" in names
    )


def _count_layers(names: Collection[str], pattern: str) -> int:
    return len(_consecutive(int(found[1]) for name in names if (found := re.fullmatch(pattern, name))))


def open_clip_key_rules(structure: OpenClipStructure) -> KeyRules:
    """open_clip's text encoder: queries, keys and values are rows of one weight, the projection is transposed."""
    key_rules = rename_rules(OPEN_CLIP_KEYS)
    if structure.has_projection:
        key_rules["text_projection"] = KeyRule(("text_projection.weight",), TRANSPOSE)
    for i in range(structure.layers):
        original, diffusers = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        key_rules |= rename_rules({f"{original}.{a}": f"{diffusers}.{b}" for a, b in OPEN_CLIP_LAYER_KEYS.items()})
        for parameter in ("weight", "bias"):
            parts = tuple(f"{diffusers}.self_attn.{part}_proj.{parameter}" for part in "qkv")
            key_rules[f"{original}.attn.in_proj_{parameter}"] = KeyRule(parts)
    return key_rules
