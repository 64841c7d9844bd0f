"""Between the JSON configs of diffusers and transformers and the dataclasses that our networks are built from.

A reader refuses, by name, every setting that our networks do not have; what their misnomers mean ends here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from enlarger.checkpoint.settings import Json, Settings
from enlarger.errors import CheckpointError, Unsupported
from enlarger.nn.autoencoder import AutoencoderConfig
from enlarger.nn.clip_text import ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNetConfig
from enlarger.nn.unet import Stage, UNetConfig

C = TypeVar("C")
# What our UNets are; a file that says otherwise is refused. None stands for "not there".
SAME_UNET: Json = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "norm_eps": 1e-5,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
PLAIN_UNET: Json = {
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
K_UNET: Json = {
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "mid_block_type": None,
    "norm_num_groups": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "upcast_attention": False,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "transformer_layers_per_block": 1,
}
AUTOENCODER: Json = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
UNUSED = ("sample_size", "addition_embed_type_num_heads")  # stated in files, without effect on a network


def unet_config(config: Json) -> UNetConfig | KUNetConfig:
    """A `UNet2DConditionModel`'s config; the block types tell the x2 upscaler's network from the others."""
    first = str(config.get("down_block_types")).strip("['")
    return _k_unet(config) if first.startswith("K") else _unet(config)


def _unet(config: Json) -> UNetConfig:
    found = Settings("UNet2DConditionModel", config).same(SAME_UNET | PLAIN_UNET).ignore(*UNUSED)
    channels = found.numbers("block_out_channels")
    count = len(channels)
    attends = _blocks(found, count, {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"})
    heads = found.per_level("attention_head_dim", count, 8)  # really the number of heads
    depths = found.per_level("transformer_layers_per_block", count, 1)
    layers = found.per_level("layers_per_block", count, 2)
    cross = found.per_level("only_cross_attention", count, False)
    levels = zip(channels, layers, depths, attends, heads, cross, strict=True)
    vector, scalar = found.optional("projection_class_embeddings_input_dim"), found.optional("addition_time_embed_dim")
    if found.choice("addition_embed_type", None, "text_time") is None:
        vector = scalar = None
    made = UNetConfig(
        in_channels=found.number("in_channels", 4),
        out_channels=found.number("out_channels", 4),
        stages=tuple(Stage(c, n, d if a else 0, h, bool(x)) for c, n, d, a, h, x in levels),
        mid_depth=depths[-1],
        mid_heads=heads[-1],
        context_channels=found.number("cross_attention_dim"),
        linear_projection=found.flag("use_linear_projection"),
        vector_channels=vector,
        scalar_channels=scalar,
        labels=found.optional("num_class_embeds"),
        upcast_attention=found.flag("upcast_attention"),
        groups=found.number("norm_num_groups", 32),
    )
    found.finish()
    return made


def _k_unet(config: Json) -> KUNetConfig:
    found = Settings("UNet2DConditionModel with K blocks", config).same(SAME_UNET | K_UNET).ignore(*UNUSED)
    channels = found.numbers("block_out_channels")
    attends = _blocks(
        found, len(channels), {"KDownBlock2D": "KUpBlock2D", "KCrossAttnDownBlock2D": "KCrossAttnUpBlock2D"}
    )
    layers = found.per_level("layers_per_block", len(channels), 2)
    last = len(channels) - 1  # only there do the blocks have self-attention
    levels = enumerate(zip(channels, layers, attends, strict=True))
    made = KUNetConfig(
        in_channels=found.number("in_channels", 4),
        out_channels=found.number("out_channels", 4),
        stages=tuple(KStage(c, n, attend, attend and i == last) for i, (c, n, attend) in levels),
        context_channels=found.number("cross_attention_dim"),
        head_channels=found.number("attention_head_dim", 8),  # here it really is the size of a head
        vector_channels=found.optional("time_cond_proj_dim"),
    )
    found.finish()
    return made


def _blocks(found: Settings, count: int, pairs: Mapping[str, str]) -> tuple[bool, ...]:
    """Whether each level attends to the tokens; the way up must mirror the way down."""
    _, attending = pairs
    down, up = found.names("down_block_types", count), found.names("up_block_types", count)
    found.only("down_block_types", down, pairs)
    if up != tuple(pairs[name] for name in reversed(down)):
        raise Unsupported(f"{found.what}: up_block_types {list(up)} do not mirror down_block_types {list(down)}.")
    return tuple(name == attending for name in down)


def autoencoder_config(config: Json) -> AutoencoderConfig:
    """An `AutoencoderKL`'s config. Files of SD1 and SD2 state no scale: 0.18215."""
    found = Settings("AutoencoderKL", config).same(AUTOENCODER).ignore(*UNUSED)
    channels = found.numbers("block_out_channels")
    found.only("down_block_types", found.names("down_block_types", len(channels)), ("DownEncoderBlock2D",))
    found.only("up_block_types", found.names("up_block_types", len(channels)), ("UpDecoderBlock2D",))
    made = AutoencoderConfig(
        channels=channels,
        layers=found.number("layers_per_block", 1),
        latent_channels=found.number("latent_channels", 4),
        scale=found.real("scaling_factor", 0.18215),
        force_upcast=bool(found.get("force_upcast", True)),
        groups=found.number("norm_num_groups", 32),
        latents_mean=found.reals("latents_mean"),
        latents_std=found.reals("latents_std"),
    )
    found.finish()
    return made


def clip_text_config(config: Json) -> ClipTextConfig:
    """A `CLIPTextModel`'s config; whatever `projection_dim` it states, its weights have no projection."""
    return _clip_text(config, None)


def clip_projection_config(config: Json) -> ClipTextConfig:
    """A `CLIPTextModelWithProjection`'s config."""
    return _clip_text(config, Settings("CLIPTextModelWithProjection", config).number("projection_dim", 512))


def _clip_text(config: Json, projection: int | None) -> ClipTextConfig:
    """transformers adds general settings of no effect to this file, so unknown ones pass."""
    found = Settings("CLIPTextModel", config).same({"layer_norm_eps": 1e-5})
    end = found.number("eos_token_id", 49407)
    activation = found.choice("hidden_act", "quick_gelu", "gelu")
    return ClipTextConfig(
        width=found.number("hidden_size"),
        layers=found.number("num_hidden_layers"),
        heads=found.number("num_attention_heads"),
        inner=found.number("intermediate_size"),
        activation="gelu" if activation == "gelu" else "quick_gelu",
        vocabulary=found.number("vocab_size", 49408),
        positions=found.number("max_position_embeddings", 77),
        projection=projection,
        end_token=None if end == 2 else end,  # 2 stands for the old rule, the largest id
    )


def unet_json(config: UNetConfig) -> Json:
    """The inverse of `unet_config` for ordinary UNets."""
    stages = config.stages
    depths = [stage.depth if stage.depth else 1 for stage in stages[:-1]] + [config.mid_depth]
    last = stages[-1]
    if last.depth not in (0, config.mid_depth) or last.heads != config.mid_heads:
        raise Unsupported("diffusers' config cannot say that the middle block differs from the last level.")
    cross = [bool(stage.depth) for stage in stages]
    return (
        SAME_UNET
        | PLAIN_UNET
        | {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": [stage.channels for stage in stages],
            "layers_per_block": _one([stage.layers for stage in stages]),
            "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in cross],
            "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(cross)],
            "attention_head_dim": _one([stage.heads for stage in stages]),
            "transformer_layers_per_block": _one(depths),
            "only_cross_attention": _one([stage.cross_only for stage in stages]),
            "cross_attention_dim": config.context_channels,
            "use_linear_projection": config.linear_projection,
            "addition_embed_type": None if config.vector_channels is None else "text_time",
            "addition_time_embed_dim": config.scalar_channels,
            "projection_class_embeddings_input_dim": config.vector_channels,
            "num_class_embeds": config.labels,
            "upcast_attention": config.upcast_attention,
            "norm_num_groups": config.groups,
        }
    )


def k_unet_json(config: KUNetConfig) -> Json:
    """The inverse of `unet_config` for the x2 upscaler's UNet."""
    attends = [stage.cross_attention for stage in config.stages]
    expected = [False] * (len(attends) - 1) + [attends[-1]]
    if [stage.self_attention for stage in config.stages] != expected:
        raise Unsupported("diffusers' K blocks have self-attention at the last level and nowhere else.")
    return (
        SAME_UNET
        | K_UNET
        | {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": [stage.channels for stage in config.stages],
            "layers_per_block": _one([stage.layers for stage in config.stages]),
            "down_block_types": ["KCrossAttnDownBlock2D" if attend else "KDownBlock2D" for attend in attends],
            "up_block_types": ["KCrossAttnUpBlock2D" if attend else "KUpBlock2D" for attend in reversed(attends)],
            "cross_attention_dim": config.context_channels,
            "attention_head_dim": config.head_channels,
            "time_cond_proj_dim": config.vector_channels,
        }
    )


def autoencoder_json(config: AutoencoderConfig) -> Json:
    """The inverse of `autoencoder_config`."""
    count = len(config.channels)
    return AUTOENCODER | {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": config.layers,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scale,
        "force_upcast": config.force_upcast,
        "norm_num_groups": config.groups,
        "latents_mean": None if config.latents_mean is None else list(config.latents_mean),
        "latents_std": None if config.latents_std is None else list(config.latents_std),
    }


def clip_text_json(config: ClipTextConfig) -> Json:
    """The inverse of `clip_text_config` and of `clip_projection_config`."""
    projects = config.projection is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner,
        "hidden_act": config.activation,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2 if config.end_token is None else config.end_token,
        "pad_token_id": 1,
    } | ({"projection_dim": config.projection} if projects else {})


def plain_reader(kind: type[C]) -> Callable[[Json], C]:
    """A reader for our own networks, whose files name the fields of the dataclass `kind` themselves."""

    def read(config: Json) -> C:
        given = {name: value for name, value in config.items() if not name.startswith("_")}
        unknown = sorted(set(given) - {field.name for field in fields(kind)})  # type: ignore[arg-type] - a dataclass
        if unknown:
            raise Unsupported(f"{kind.__name__}: unknown settings {', '.join(unknown)}; a newer enlarger wrote this.")
        hints = get_type_hints(kind)
        try:
            return kind(**{name: _typed(hints[name], value) for name, value in given.items()})
        except TypeError as error:
            raise CheckpointError(f"{kind.__name__}: config does not fit ({error}).") from error

    return read


def plain_json(config: Any) -> Json:
    """The inverse of `plain_reader`."""
    return asdict(config)


def _typed(hint: Any, value: Any) -> Any:
    """A JSON value as the dataclass wants it: lists become tuples, objects become dataclasses."""
    if isinstance(hint, type) and is_dataclass(hint):
        return plain_reader(hint)(value)
    if get_origin(hint) is tuple and isinstance(value, Sequence):
        return tuple(_typed(get_args(hint)[0], each) for each in value)  # pyright: ignore[reportUnknownVariableType] - JSON
    if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"found {value!r}, expected a number")
    return float(value) if hint is float else value


def _one(values: Sequence[Any]) -> Any:
    """A list, or its one value where all are equal, as the files have it."""
    return values[0] if len(set(values)) == 1 else list(values)
