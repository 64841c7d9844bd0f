"""Between the JSON configs of diffusers and transformers and the dataclasses that our networks are built from.

A reader refuses, by name, every setting that our networks do not have; what their misnomers mean ends here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from enlarger.checkpoint.config.strict_config import StrictConfig
from enlarger.errors import CheckpointError, Unsupported
from enlarger.nn.autoencoder import AutoencoderConfig
from enlarger.nn.clip_text import ClipTextConfig
from enlarger.nn.clip_vision import ClipVisionConfig
from enlarger.nn.k_unet import KStage, KUNetConfig
from enlarger.nn.unet import Stage, UNetConfig
from enlarger.strict_json import Json

C = TypeVar("C")
# What our UNets are; a file that says otherwise is refused. None stands for "not there".
FIXED_UNET: Json = {
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
FIXED_STANDARD_UNET: Json = {
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
FIXED_K_UNET: Json = {
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
FIXED_AUTOENCODER: Json = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
IGNORED_SETTINGS = ("sample_size", "addition_embed_type_num_heads")  # stated in files, without effect on a network


def unet_config(config: Json) -> UNetConfig | KUNetConfig:
    """A `UNet2DConditionModel`'s config; the block types distinguish the x2 upscaler's network."""
    first = str(config.get("down_block_types")).strip("['")
    return _k_unet(config) if first.startswith("K") else _unet(config)


def _unet(config: Json) -> UNetConfig:
    strict_config = (
        StrictConfig("UNet2DConditionModel", config)
        .require_equal(FIXED_UNET | FIXED_STANDARD_UNET)
        .ignore_keys(*IGNORED_SETTINGS)
    )
    channels = strict_config.get_ints("block_out_channels")
    count = len(channels)
    has_attention = _attention_levels(
        strict_config, count, {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
    )
    heads = strict_config.get_per_level("attention_head_dim", count, 8)  # really the number of heads
    depths = strict_config.get_per_level("transformer_layers_per_block", count, 1)
    layers = strict_config.get_per_level("layers_per_block", count, 2)
    only_cross_attention = strict_config.get_per_level("only_cross_attention", count, False)
    levels = zip(channels, layers, depths, has_attention, heads, only_cross_attention, strict=True)
    vector_channels, time_id_channels = (
        strict_config.get_optional_int("projection_class_embeddings_input_dim"),
        strict_config.get_optional_int("addition_time_embed_dim"),
    )
    if strict_config.get_choice("addition_embed_type", None, "text_time") is None:
        vector_channels = time_id_channels = None
    parsed = UNetConfig(
        in_channels=strict_config.get_int("in_channels", 4),
        out_channels=strict_config.get_int("out_channels", 4),
        stages=tuple(Stage(c, n, d if a else 0, h, bool(x)) for c, n, d, a, h, x in levels),
        mid_transformer_depth=depths[-1],
        mid_heads=heads[-1],
        context_channels=strict_config.get_int("cross_attention_dim"),
        linear_projection=strict_config.get_bool("use_linear_projection"),
        vector_channels=vector_channels,
        time_id_channels=time_id_channels,
        num_class_embeds=strict_config.get_optional_int("num_class_embeds"),
        guidance_channels=strict_config.get_optional_int("time_cond_proj_dim"),
        upcast_attention=strict_config.get_bool("upcast_attention"),
        groups=strict_config.get_int("norm_num_groups", 32),
    )
    strict_config.reject_unknown()
    return parsed


def _k_unet(config: Json) -> KUNetConfig:
    strict_config = (
        StrictConfig("UNet2DConditionModel with K blocks", config)
        .require_equal(FIXED_UNET | FIXED_K_UNET)
        .ignore_keys(*IGNORED_SETTINGS)
    )
    channels = strict_config.get_ints("block_out_channels")
    has_attention = _attention_levels(
        strict_config, len(channels), {"KDownBlock2D": "KUpBlock2D", "KCrossAttnDownBlock2D": "KCrossAttnUpBlock2D"}
    )
    layers = strict_config.get_per_level("layers_per_block", len(channels), 2)
    last = len(channels) - 1  # only there do the blocks have self-attention
    levels = enumerate(zip(channels, layers, has_attention, strict=True))
    parsed = KUNetConfig(
        in_channels=strict_config.get_int("in_channels", 4),
        out_channels=strict_config.get_int("out_channels", 4),
        stages=tuple(KStage(c, n, attend, attend and i == last) for i, (c, n, attend) in levels),
        context_channels=strict_config.get_int("cross_attention_dim"),
        head_channels=strict_config.get_int("attention_head_dim", 8),  # here it really is the size of a head
        vector_channels=strict_config.get_optional_int("time_cond_proj_dim"),
    )
    strict_config.reject_unknown()
    return parsed


def _attention_levels(strict_config: StrictConfig, count: int, block_types: Mapping[str, str]) -> tuple[bool, ...]:
    """Whether each level attends to the tokens; the way up must mirror the way down."""
    _, attention_block = block_types
    down, up = strict_config.get_strings("down_block_types", count), strict_config.get_strings("up_block_types", count)
    strict_config.require_allowed("down_block_types", down, block_types)
    if up != tuple(block_types[name] for name in reversed(down)):
        raise Unsupported(
            f"{strict_config.class_name}: up_block_types {list(up)} do not mirror down_block_types {list(down)}."
        )
    return tuple(name == attention_block for name in down)


def autoencoder_config(config: Json) -> AutoencoderConfig:
    """An `AutoencoderKL`'s config. Files of SD1 and SD2 state no scale: 0.18215."""
    strict_config = (
        StrictConfig("AutoencoderKL", config).require_equal(FIXED_AUTOENCODER).ignore_keys(*IGNORED_SETTINGS)
    )
    channels = strict_config.get_ints("block_out_channels")
    strict_config.require_allowed(
        "down_block_types", strict_config.get_strings("down_block_types", len(channels)), ("DownEncoderBlock2D",)
    )
    strict_config.require_allowed(
        "up_block_types", strict_config.get_strings("up_block_types", len(channels)), ("UpDecoderBlock2D",)
    )
    parsed = AutoencoderConfig(
        channels=channels,
        layers_per_block=strict_config.get_int("layers_per_block", 1),
        latent_channels=strict_config.get_int("latent_channels", 4),
        scaling_factor=strict_config.get_float("scaling_factor", 0.18215),
        force_upcast=bool(strict_config.get("force_upcast", True)),
        groups=strict_config.get_int("norm_num_groups", 32),
        latents_mean=strict_config.get_floats("latents_mean"),
        latents_std=strict_config.get_floats("latents_std"),
    )
    strict_config.reject_unknown()
    return parsed


def clip_text_config(config: Json) -> ClipTextConfig:
    """A `CLIPTextModel`'s config; whatever `projection_dim` it states, its weights have no projection."""
    return _clip_text(config, None)


def clip_projection_config(config: Json) -> ClipTextConfig:
    """A `CLIPTextModelWithProjection`'s config."""
    return _clip_text(config, StrictConfig("CLIPTextModelWithProjection", config).get_int("projection_dim", 512))


def _clip_text(config: Json, projection_dim: int | None) -> ClipTextConfig:
    """transformers adds general settings of no effect to this file, so unknown ones pass."""
    strict_config = StrictConfig("CLIPTextModel", config).require_equal({"layer_norm_eps": 1e-5})
    eos_token_id = strict_config.get_int("eos_token_id", 49407)
    activation = strict_config.get_choice("hidden_act", "quick_gelu", "gelu")
    return ClipTextConfig(
        width=strict_config.get_int("hidden_size"),
        layers=strict_config.get_int("num_hidden_layers"),
        heads=strict_config.get_int("num_attention_heads"),
        intermediate_size=strict_config.get_int("intermediate_size"),
        activation="gelu" if activation == "gelu" else "quick_gelu",
        vocab_size=strict_config.get_int("vocab_size", 49408),
        max_positions=strict_config.get_int("max_position_embeddings", 77),
        projection_dim=projection_dim,
        eos_token_id=None if eos_token_id == 2 else eos_token_id,  # 2 stands for the old rule, the largest id
    )


def clip_vision_config(config: Json) -> ClipVisionConfig:
    """A `CLIPVisionModelWithProjection`'s config; general settings of no effect pass, as in that of the text."""
    strict_config = StrictConfig("CLIPVisionModel", config).require_equal({"layer_norm_eps": 1e-5, "num_channels": 3})
    activation = strict_config.get_choice("hidden_act", "quick_gelu", "gelu")
    return ClipVisionConfig(
        width=strict_config.get_int("hidden_size"),
        layers=strict_config.get_int("num_hidden_layers"),
        heads=strict_config.get_int("num_attention_heads"),
        intermediate_size=strict_config.get_int("intermediate_size"),
        activation="gelu" if activation == "gelu" else "quick_gelu",
        image_size=strict_config.get_int("image_size"),
        patch_size=strict_config.get_int("patch_size"),
        projection_dim=strict_config.get_int("projection_dim", 512),
    )


def unet_json(config: UNetConfig) -> Json:
    """The inverse of `unet_config` for ordinary UNets."""
    stages = config.stages
    depths = [stage.transformer_depth if stage.transformer_depth else 1 for stage in stages[:-1]] + [
        config.mid_transformer_depth
    ]
    last = stages[-1]
    if last.transformer_depth not in (0, config.mid_transformer_depth) or last.heads != config.mid_heads:
        raise Unsupported("diffusers' config cannot say that the middle block differs from the last level.")
    has_attention = [bool(stage.transformer_depth) for stage in stages]
    return (
        FIXED_UNET
        | FIXED_STANDARD_UNET
        | {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": [stage.channels for stage in stages],
            "layers_per_block": _collapse_equal([stage.layers for stage in stages]),
            "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in has_attention],
            "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(has_attention)],
            "attention_head_dim": _collapse_equal([stage.heads for stage in stages]),
            "transformer_layers_per_block": _collapse_equal(depths),
            "only_cross_attention": _collapse_equal([stage.only_cross_attention for stage in stages]),
            "cross_attention_dim": config.context_channels,
            "use_linear_projection": config.linear_projection,
            "addition_embed_type": None if config.vector_channels is None else "text_time",
            "addition_time_embed_dim": config.time_id_channels,
            "projection_class_embeddings_input_dim": config.vector_channels,
            "num_class_embeds": config.num_class_embeds,
            "time_cond_proj_dim": config.guidance_channels,
            "upcast_attention": config.upcast_attention,
            "norm_num_groups": config.groups,
        }
    )


def k_unet_json(config: KUNetConfig) -> Json:
    """The inverse of `unet_config` for the x2 upscaler's UNet."""
    has_attention = [stage.cross_attention for stage in config.stages]
    expected = [False] * (len(has_attention) - 1) + [has_attention[-1]]
    if [stage.self_attention for stage in config.stages] != expected:
        raise Unsupported("diffusers' K blocks have self-attention at the last level and nowhere else.")
    return (
        FIXED_UNET
        | FIXED_K_UNET
        | {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": [stage.channels for stage in config.stages],
            "layers_per_block": _collapse_equal([stage.layers for stage in config.stages]),
            "down_block_types": ["KCrossAttnDownBlock2D" if attend else "KDownBlock2D" for attend in has_attention],
            "up_block_types": ["KCrossAttnUpBlock2D" if attend else "KUpBlock2D" for attend in reversed(has_attention)],
            "cross_attention_dim": config.context_channels,
            "attention_head_dim": config.head_channels,
            "time_cond_proj_dim": config.vector_channels,
        }
    )


def autoencoder_json(config: AutoencoderConfig) -> Json:
    """The inverse of `autoencoder_config`."""
    count = len(config.channels)
    return FIXED_AUTOENCODER | {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
        "force_upcast": config.force_upcast,
        "norm_num_groups": config.groups,
        "latents_mean": None if config.latents_mean is None else list(config.latents_mean),
        "latents_std": None if config.latents_std is None else list(config.latents_std),
    }


def clip_text_json(config: ClipTextConfig) -> Json:
    """The inverse of `clip_text_config` and of `clip_projection_config`."""
    has_projection = config.projection_dim is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if has_projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.activation,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2 if config.eos_token_id is None else config.eos_token_id,
        "pad_token_id": 1,
    } | ({"projection_dim": config.projection_dim} if has_projection else {})


def dataclass_reader(dataclass_type: type[C]) -> Callable[[Json], C]:
    """A reader for our own networks, whose files name the fields of `dataclass_type` themselves."""

    def read(config: Json) -> C:
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
        unknown = sorted(set(settings) - {field.name for field in fields(dataclass_type)})  # type: ignore[arg-type] - a dataclass
        if unknown:
            raise Unsupported(
                f"{dataclass_type.__name__}: unknown settings {', '.join(unknown)}; a newer enlarger wrote this."
            )
        hints = get_type_hints(dataclass_type)
        try:
            return dataclass_type(**{name: _coerce(hints[name], value) for name, value in settings.items()})
        except TypeError as error:
            raise CheckpointError(f"{dataclass_type.__name__}: config does not fit ({error}).") from error

    return read


def dataclass_json(config: Any) -> Json:
    """The inverse of `dataclass_reader`."""
    return asdict(config)


def _coerce(hint: Any, value: Any) -> Any:
    """A JSON value as the dataclass wants it: lists become tuples, objects become dataclasses."""
    if isinstance(hint, type) and is_dataclass(hint):
        return dataclass_reader(hint)(value)
    if get_origin(hint) is tuple and isinstance(value, Sequence):
        return tuple(_coerce(get_args(hint)[0], each) for each in value)  # pyright: ignore[reportUnknownVariableType] - JSON
    if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"found {value!r}, expected a number")
    return float(value) if hint is float else value


def _collapse_equal(values: Sequence[Any]) -> Any:
    """A list, or its one value where all are equal, as the files have it."""
    return values[0] if len(set(values)) == 1 else list(values)
