"""A network's config, read off the shapes of its weights; what they cannot say comes from the family's config."""

import re
from collections.abc import Mapping
from dataclasses import replace

from enlarger.checkpoint import configs
from enlarger.checkpoint.names_parts import our_grid, our_tower
from enlarger.checkpoint.names_unet import our_k_levels, our_levels
from enlarger.checkpoint.rules import Shape
from enlarger.checkpoint.settings import Json
from enlarger.errors import CheckpointError
from enlarger.nn.autoencoder import AutoencoderConfig
from enlarger.nn.clip_text import ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNetConfig
from enlarger.nn.unet import Stage, UNetConfig

BIG_G = 1280  # width of the pooled text in SDXL's `add_embedding`, beside its sizes
LEVEL = 128  # numbers that tell the x2 upscaler its noise level


def measured(component: str, shapes: Mapping[str, Shape], base: Json, pooled: int | None = None) -> Json:
    """The config of the weights under our names: `base` itself where it fits, or with what the shapes say otherwise.

    `pooled` is the width of SDXL's pooled text. Raises `CheckpointError` where a weight to be measured is missing.
    """
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if empty is not None:
        raise CheckpointError(f"{component}: {empty} of shape {shapes[empty]} is empty; the file is damaged.")
    try:
        if component == "vae":
            known = configs.autoencoder_config(base)
            found = _autoencoder(shapes, known)
            return base if found == known else base | configs.autoencoder_json(found)
        if component.startswith("text_encoder"):
            projects = "text_projection.weight" in shapes
            known = (configs.clip_projection_config if projects else configs.clip_text_config)(base)
            found = _text(shapes, known)
            return base if found == known else base | configs.clip_text_json(found)
        known = configs.unet_config(base)
        if isinstance(known, KUNetConfig):
            found = _k_unet(shapes, known)
            return base if found == known else base | configs.k_unet_json(found)
        found = _unet(shapes, known, pooled)
        return base if found == known else base | configs.unet_json(found)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{component}: {error!r} in measuring its weights; it is no network known here."
        ) from error


def _unet(shapes: Mapping[str, Shape], known: UNetConfig, pooled: int | None) -> UNetConfig:
    levels = our_levels(shapes)
    channels = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(len(levels))]
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    last = len(levels) - 1
    like = [known.stages[-1 if i == last else min(i, len(known.stages) - 2)] for i in range(len(levels))]
    stages = tuple(
        Stage(
            width,
            level.layers,
            _depth(shapes, f"down_blocks.{i}") if level.attends else 0,
            _heads(known, width, i),
            _cross_only(shapes, f"down_blocks.{i}", width, context, like[i].cross_only)
            if level.attends
            else like[i].cross_only,
        )
        for i, (width, level) in enumerate(zip(channels, levels, strict=True))
    )
    vector = shapes["add_embedding.linear_1.weight"][1] if "add_embedding.linear_1.weight" in shapes else None
    return replace(
        known,
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        stages=stages,
        mid_depth=_depth(shapes, "mid_block"),
        mid_heads=stages[-1].heads,
        context_channels=context,
        linear_projection=len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        vector_channels=vector,
        scalar_channels=_scalar(known, vector, pooled),
        labels=shapes["class_embedding.weight"][0] if "class_embedding.weight" in shapes else None,
    )


def _depth(shapes: Mapping[str, Shape], block: str) -> int:
    pattern = re.compile(re.escape(f"{block}.attentions.0.transformer_blocks.") + r"(\d+)\.norm1\.weight")
    return sum(pattern.fullmatch(name) is not None for name in shapes)


def _heads(known: UNetConfig, width: int, level: int) -> int:
    """The family's number of heads, or of channels per head, whichever is the same at all of its levels."""
    if len({stage.heads for stage in known.stages}) == 1:
        return known.stages[0].heads
    return max(1, width * known.stages[0].heads // known.stages[0].channels)


def _cross_only(shapes: Mapping[str, Shape], block: str, width: int, context: int, known: bool) -> bool:
    """Whether the first attention looks at the tokens; equal widths leave it to the family."""
    seen = shapes[f"{block}.attentions.0.transformer_blocks.0.attn1.to_k.weight"][1]
    return known if width == context else seen == context


def _scalar(known: UNetConfig, vector: int | None, pooled: int | None) -> int | None:
    """The width of each of SDXL's sizes: what the pooled text leaves of the vector, in equal parts."""
    if vector is None or known.vector_channels is None or known.scalar_channels is None:
        return None
    if vector == known.vector_channels or pooled is None:
        return known.scalar_channels
    return (vector - pooled) // ((known.vector_channels - BIG_G) // known.scalar_channels)


def _k_unet(shapes: Mapping[str, Shape], known: KUNetConfig) -> KUNetConfig:
    levels = our_k_levels(shapes)
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return replace(
        known,
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        stages=tuple(
            KStage(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0], level.layers, level.attends, level.itself)
            for i, level in enumerate(levels)
        ),
        context_channels=context,
        vector_channels=shapes["time_embedding.cond_proj.weight"][1],
    )


def _autoencoder(shapes: Mapping[str, Shape], known: AutoencoderConfig) -> AutoencoderConfig:
    grid = our_grid(shapes)
    return replace(
        known,
        channels=tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(grid.levels)),
        layers=grid.layers,
        latent_channels=shapes["decoder.conv_in.weight"][1],
    )


def _text(shapes: Mapping[str, Shape], known: ClipTextConfig) -> ClipTextConfig:
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    projects = "text_projection.weight" in shapes
    return replace(
        known,
        width=width,
        layers=our_tower(shapes).layers,
        heads=max(1, width * known.heads // known.width),
        inner=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        vocabulary=vocabulary,
        positions=shapes["embeddings.position_embedding.weight"][0],
        projection=shapes["text_projection.weight"][0] if projects else None,
    )
