"""What LoRA files call the layers of a network: diffusers' names of several years, and kohya's two numberings."""

import re
from collections.abc import Iterable, Iterator

KOHYA_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
ATTENTION_PATTERN = re.compile(r"(.+\.attn\d+)\.(to_q|to_k|to_v|to_out)(?:\.0)?")  # of the UNet
TEXT_ATTENTION_PATTERN = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")
BLOCK_PATTERN = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
# The original code's names of what diffusers renamed.
OUTER_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def layer_aliases(component: str, layers: Iterable[str]) -> dict[str, str]:
    """Every name that a file may have for a layer of `component` (unet, text_encoder, text_encoder_2), to our name.

    kohya writes underscores for dots, which cannot be undone without knowing the layers; hence the table.
    """
    layers = list(layers)
    resnets_per_stage = _resnets_per_stage(layers)
    aliases: dict[str, str] = {}
    for layer in layers:
        layer_names = (
            _unet_aliases(layer, resnets_per_stage) if component == "unet" else _text_encoder_aliases(component, layer)
        )
        for name in layer_names:
            assert aliases.setdefault(name, layer) == layer, f"{name} is both {layer} and {aliases[name]}"
    return aliases


def sdxl_layer_names(layers: Iterable[str]) -> dict[str, str]:
    """The original code's name of each layer of SDXL's UNet that has one, by ours."""
    layers = list(layers)
    resnets_per_stage, names = _resnets_per_stage(layers), dict[str, str]()
    for layer in layers:
        found = _original_names(layer, resnets_per_stage)
        stage = layer.partition(".upsamplers.")[0]
        if found:
            names[layer] = found[-1] if any(each.startswith(f"{stage}.attentions.") for each in layers) else found[0]
    return names


def _resnets_per_stage(layers: Iterable[str]) -> int:
    return sum(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1", layer) is not None for layer in layers)


def _unet_aliases(layer: str, resnets_per_stage: int) -> Iterator[str]:
    diffusers_names = [layer]
    if found := ATTENTION_PATTERN.fullmatch(layer):
        diffusers_names.append(f"{found[1]}.processor.{found[2]}")
    for name in diffusers_names:
        yield from (name, f"unet.{name}")
    for name in (layer, *_original_names(layer, resnets_per_stage)):
        yield from (_kohya_name(prefix, name) for prefix in KOHYA_PREFIXES["unet"])


def _text_encoder_aliases(component: str, layer: str) -> Iterator[str]:
    full_name = layer if layer.startswith("text_projection") else f"text_model.{layer}"
    for name in dict.fromkeys((layer, full_name)):
        yield f"{component}.{name}"
        if found := TEXT_ATTENTION_PATTERN.fullmatch(name):
            yield f"{component}.{found[1]}.to_{found[2]}"
    yield from (_kohya_name(prefix, full_name) for prefix in KOHYA_PREFIXES[component])


def _kohya_name(prefix: str, name: str) -> str:
    return prefix + name.replace(".", "_")


def _original_names(layer: str, resnets_per_stage: int) -> list[str]:
    """The names in the original code, with `resnets_per_stage` residual blocks and a downsampler counted through."""
    if layer in OUTER_LAYERS:
        return [OUTER_LAYERS[layer]]
    found = BLOCK_PATTERN.fullmatch(layer)
    if found is None:
        return []
    block_side, stage, kind, index, rest = found.groups()
    rest = RESNET_LAYERS.get(rest, rest) if kind == "resnets" else rest
    if block_side == "mid_block":
        return [f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{rest}"]
    first_index = int(stage) * (resnets_per_stage + 1)
    if kind == "downsamplers":
        return [f"input_blocks.{first_index + resnets_per_stage + 1}.0.op"]
    if kind == "upsamplers":  # after the attention, where the stage has one
        return [f"output_blocks.{first_index + resnets_per_stage}.{position}.{rest}" for position in (1, 2)]
    blocks, offset = ("input_blocks", 1) if block_side == "down_blocks" else ("output_blocks", 0)
    return [f"{blocks}.{first_index + int(index) + offset}.{int(kind == 'attentions')}.{rest}"]
