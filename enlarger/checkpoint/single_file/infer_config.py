"""A network's config, read off the shapes of its weights; what they cannot say comes from the family's config."""

import re
from collections.abc import Mapping
from dataclasses import replace

from enlarger.checkpoint.config import network_configs
from enlarger.checkpoint.single_file.key_mapping_unet import diffusers_k_unet_levels, diffusers_unet_levels
from enlarger.checkpoint.single_file.key_mapping_vae_clip import diffusers_open_clip_structure, diffusers_vae_structure
from enlarger.checkpoint.single_file.key_rules import Shape
from enlarger.errors import CheckpointError
from enlarger.nn.autoencoder import AutoencoderConfig
from enlarger.nn.clip_text import ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNetConfig
from enlarger.nn.unet import Stage, UNetConfig
from enlarger.strict_json import Json

BIGG_POOLED_CHANNELS = 1280  # width of the pooled text in SDXL's `add_embedding`, beside its sizes


def infer_config(
    component: str, shapes: Mapping[str, Shape], base_config: Json, pooled_channels: int | None = None
) -> Json:
    """The config of the weights under our names: `base_config` where it fits, or with what the shapes say otherwise.

    `pooled_channels` is the width of SDXL's pooled text. Raises `CheckpointError` where a weight is missing.
    """
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if empty is not None:
        raise CheckpointError(f"{component}: {empty} of shape {shapes[empty]} is empty; the file is damaged.")
    try:
        if component == "vae":
            base_dataclass = network_configs.autoencoder_config(base_config)
            inferred = _infer_autoencoder(shapes, base_dataclass)
            return (
                base_config if inferred == base_dataclass else base_config | network_configs.autoencoder_json(inferred)
            )
        if component.startswith("text_encoder"):
            has_projection = "text_projection.weight" in shapes
            base_dataclass = (
                network_configs.clip_projection_config if has_projection else network_configs.clip_text_config
            )(base_config)
            inferred = _infer_clip_text(shapes, base_dataclass)
            return base_config if inferred == base_dataclass else base_config | network_configs.clip_text_json(inferred)
        base_dataclass = network_configs.unet_config(base_config)
        if isinstance(base_dataclass, KUNetConfig):
            inferred = _infer_k_unet(shapes, base_dataclass)
            return base_config if inferred == base_dataclass else base_config | network_configs.k_unet_json(inferred)
        inferred = _infer_unet(shapes, base_dataclass, pooled_channels)
        return base_config if inferred == base_dataclass else base_config | network_configs.unet_json(inferred)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{component}: {error!r} in measuring its weights; it is no network known here."
        ) from error


def _infer_unet(shapes: Mapping[str, Shape], base: UNetConfig, pooled_channels: int | None) -> UNetConfig:
    levels = diffusers_unet_levels(shapes)
    channels = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(len(levels))]
    context_channels = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    last_level = len(levels) - 1
    base_stages = [base.stages[-1 if i == last_level else min(i, len(base.stages) - 2)] for i in range(len(levels))]
    stages = tuple(
        Stage(
            width,
            level.layers,
            _transformer_depth(shapes, f"down_blocks.{i}") if level.has_attention else 0,
            _heads(base, width, i),
            _only_cross_attention(
                shapes, f"down_blocks.{i}", width, context_channels, base_stages[i].only_cross_attention
            )
            if level.has_attention
            else base_stages[i].only_cross_attention,
        )
        for i, (width, level) in enumerate(zip(channels, levels, strict=True))
    )
    vector_channels = shapes["add_embedding.linear_1.weight"][1] if "add_embedding.linear_1.weight" in shapes else None
    return replace(
        base,
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        stages=stages,
        mid_transformer_depth=_transformer_depth(shapes, "mid_block"),
        mid_heads=stages[-1].heads,
        context_channels=context_channels,
        linear_projection=len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        vector_channels=vector_channels,
        time_id_channels=_time_id_channels(base, vector_channels, pooled_channels),
        num_class_embeds=shapes["class_embedding.weight"][0] if "class_embedding.weight" in shapes else None,
    )


def _transformer_depth(shapes: Mapping[str, Shape], block: str) -> int:
    pattern = re.compile(re.escape(f"{block}.attentions.0.transformer_blocks.") + r"(\d+)\.norm1\.weight")
    return sum(pattern.fullmatch(name) is not None for name in shapes)


def _heads(base: UNetConfig, width: int, level: int) -> int:
    """The family's number of heads, or of channels per head, whichever is the same at all of its levels."""
    if len({stage.heads for stage in base.stages}) == 1:
        return base.stages[0].heads
    return max(1, width * base.stages[0].heads // base.stages[0].channels)


def _only_cross_attention(
    shapes: Mapping[str, Shape], block: str, width: int, context_channels: int, default: bool
) -> bool:
    """Whether the first attention looks at the tokens; equal widths leave it to the family."""
    key_channels = shapes[f"{block}.attentions.0.transformer_blocks.0.attn1.to_k.weight"][1]
    return default if width == context_channels else key_channels == context_channels


def _time_id_channels(base: UNetConfig, vector_channels: int | None, pooled_channels: int | None) -> int | None:
    """The width of each of SDXL's sizes: what the pooled text leaves of the vector, in equal parts."""
    if vector_channels is None or base.vector_channels is None or base.time_id_channels is None:
        return None
    if vector_channels == base.vector_channels or pooled_channels is None:
        return base.time_id_channels
    return (vector_channels - pooled_channels) // (
        (base.vector_channels - BIGG_POOLED_CHANNELS) // base.time_id_channels
    )


def _infer_k_unet(shapes: Mapping[str, Shape], base: KUNetConfig) -> KUNetConfig:
    levels = diffusers_k_unet_levels(shapes)
    context_channels = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return replace(
        base,
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        stages=tuple(
            KStage(
                shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0],
                level.layers,
                level.has_attention,
                level.has_self_attention,
            )
            for i, level in enumerate(levels)
        ),
        context_channels=context_channels,
        vector_channels=shapes["time_embedding.cond_proj.weight"][1],
    )


def _infer_autoencoder(shapes: Mapping[str, Shape], base: AutoencoderConfig) -> AutoencoderConfig:
    structure = diffusers_vae_structure(shapes)
    return replace(
        base,
        channels=tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(structure.levels)),
        layers_per_block=structure.layers,
        latent_channels=shapes["decoder.conv_in.weight"][1],
    )


def _infer_clip_text(shapes: Mapping[str, Shape], base: ClipTextConfig) -> ClipTextConfig:
    vocab_size, width = shapes["embeddings.token_embedding.weight"]
    has_projection = "text_projection.weight" in shapes
    return replace(
        base,
        width=width,
        layers=diffusers_open_clip_structure(shapes).layers,
        heads=max(1, width * base.heads // base.width),
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        vocab_size=vocab_size,
        max_positions=shapes["embeddings.position_embedding.weight"][0],
        projection_dim=shapes["text_projection.weight"][0] if has_projection else None,
    )
