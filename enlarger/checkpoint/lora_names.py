"""What LoRA files call the layers of a network: diffusers' names of several years, and kohya's two numberings."""

import re
from collections.abc import Iterable, Iterator

KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
ATTENTION = re.compile(r"(.+\.attn\d+)\.(to_q|to_k|to_v|to_out)(?:\.0)?")  # of the UNet
TEXT_ATTENTION = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")
BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
# The original code's names of what diffusers renamed.
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def spellings(part: str, layers: Iterable[str]) -> dict[str, str]:
    """Every name that a file may have for a layer of `part` (unet, text_encoder, text_encoder_2), to our name.

    kohya writes underscores for dots, which cannot be undone without knowing the layers; hence the table.
    """
    layers = list(layers)
    per_stage = sum(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1", layer) is not None for layer in layers)
    table: dict[str, str] = {}
    for layer in layers:
        names = _unet_names(layer, per_stage) if part == "unet" else _text_names(part, layer)
        for name in names:
            assert table.setdefault(name, layer) == layer, f"{name} is both {layer} and {table[name]}"
    return table


def _unet_names(layer: str, per_stage: int) -> Iterator[str]:
    plain = [layer]
    if found := ATTENTION.fullmatch(layer):
        plain.append(f"{found[1]}.processor.{found[2]}")
    for name in plain:
        yield from (name, f"unet.{name}")
    for name in (layer, *_original_names(layer, per_stage)):
        yield from (_underscored(prefix, name) for prefix in KOHYA["unet"])


def _text_names(part: str, layer: str) -> Iterator[str]:
    long = layer if layer.startswith("text_projection") else f"text_model.{layer}"
    for name in dict.fromkeys((layer, long)):
        yield f"{part}.{name}"
        if found := TEXT_ATTENTION.fullmatch(name):
            yield f"{part}.{found[1]}.to_{found[2]}"
    yield from (_underscored(prefix, long) for prefix in KOHYA[part])


def _underscored(prefix: str, name: str) -> str:
    return prefix + name.replace(".", "_")


def _original_names(layer: str, per_stage: int) -> list[str]:
    """The names in the original code, where `per_stage` residual blocks and a downsampler are counted through."""
    if layer in OUTSIDE:
        return [OUTSIDE[layer]]
    found = BLOCK.fullmatch(layer)
    if found is None:
        return []
    side, stage, kind, index, rest = found.groups()
    rest = RESNET.get(rest, rest) if kind == "resnets" else rest
    if side == "mid_block":
        return [f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{rest}"]
    first = int(stage) * (per_stage + 1)
    if kind == "downsamplers":
        return [f"input_blocks.{first + per_stage + 1}.0.op"]
    if kind == "upsamplers":  # after the attention, where the stage has one
        return [f"output_blocks.{first + per_stage}.{seat}.{rest}" for seat in (1, 2)]
    blocks, shift = ("input_blocks", 1) if side == "down_blocks" else ("output_blocks", 0)
    return [f"{blocks}.{first + int(index) + shift}.{int(kind == 'attentions')}.{rest}"]
