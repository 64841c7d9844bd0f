"""The layouts of original single files: which network has which prefix, by which rules its names are ours, and back."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from enlarger.checkpoint.single_file.key_mapping_unet import (
    diffusers_k_unet_levels,
    diffusers_unet_levels,
    k_unet_key_rules,
    original_k_unet_levels,
    original_unet_levels,
    unet_key_rules,
)
from enlarger.checkpoint.single_file.key_mapping_vae_clip import (
    clip_key_rules,
    diffusers_clip_prefix,
    diffusers_open_clip_structure,
    diffusers_vae_structure,
    open_clip_key_rules,
    original_clip_prefix,
    original_open_clip_structure,
    original_projected_open_clip_structure,
    original_vae_structure,
    vae_key_rules,
)
from enlarger.checkpoint.single_file.key_rules import (
    KeyRules,
    KeySource,
    RemappedTensors,
    Shape,
    find_source,
    invert_rules,
    key_sources,
    merge_to_original,
    original_shape,
    rename_rules,
)
from enlarger.checkpoint.tensors.open import LazyTensors
from enlarger.errors import CheckpointError

EMA_PREFIX = "model_ema."
IGNORED_KEYS = re.compile(  # what a file may hold that no network reads
    r"betas|(alphas|sqrt|log_one|posterior)_.*|lvlb_weights|logvar|scale_factor|v_pred|ztsnr|denoiser\.sigmas"
    r"|low_scale_model\..*|model_ema\..*|loss\..*|global_step|epoch"
    r"|.*\.position_ids|.*\.logit_scale|.*\.text_projection(\.weight)?|.*model\.transformer\.resblocks\.\d+\..*"
    r"|.*u_net\.[du]_blocks\.\d+\.\d+\.kernel"
)


@dataclass(frozen=True)
class NetworkKeyMapping:
    """The rules of one network: its structure, read off either layout's names, and the rules that follow from it."""

    original_structure: Callable[[Collection[str]], Any]
    diffusers_structure: Callable[[Collection[str]], Any]
    key_rules: Callable[[Any], KeyRules]


@dataclass(frozen=True)
class ComponentLayout:
    """A network in a single file."""

    prefix: str
    key_mapping: NetworkKeyMapping


UNET = NetworkKeyMapping(original_unet_levels, diffusers_unet_levels, unet_key_rules)
K_UNET = NetworkKeyMapping(original_k_unet_levels, diffusers_k_unet_levels, k_unet_key_rules)
VAE = NetworkKeyMapping(original_vae_structure, diffusers_vae_structure, vae_key_rules)
CLIP = NetworkKeyMapping(original_clip_prefix, diffusers_clip_prefix, clip_key_rules)
OPEN_CLIP = NetworkKeyMapping(original_open_clip_structure, diffusers_open_clip_structure, open_clip_key_rules)
OPEN_CLIP_WITH_PROJECTION = NetworkKeyMapping(
    original_projected_open_clip_structure, diffusers_open_clip_structure, open_clip_key_rules
)
NOISE_FREQUENCIES = NetworkKeyMapping(len, len, lambda _: rename_rules({"weight": "weight"}))

_UNET_AND_VAE = {
    "unet": ComponentLayout("model.diffusion_model.", UNET),
    "vae": ComponentLayout("first_stage_model.", VAE),
}
LAYOUTS: Mapping[str, Mapping[str, ComponentLayout]] = {
    "sd1": _UNET_AND_VAE | {"text_encoder": ComponentLayout("cond_stage_model.transformer.", CLIP)},
    "sd2": _UNET_AND_VAE | {"text_encoder": ComponentLayout("cond_stage_model.model.", OPEN_CLIP)},
    "sdxl": _UNET_AND_VAE
    | {
        "text_encoder": ComponentLayout("conditioner.embedders.0.transformer.", CLIP),
        "text_encoder_2": ComponentLayout("conditioner.embedders.1.model.", OPEN_CLIP_WITH_PROJECTION),
    },
    "sdxl_refiner": _UNET_AND_VAE
    | {"text_encoder_2": ComponentLayout("conditioner.embedders.0.model.", OPEN_CLIP_WITH_PROJECTION)},
    "x2": {
        "unet": ComponentLayout("inner_model.", K_UNET),
        "noise_frequencies": ComponentLayout("low_res_noise_embed.", NOISE_FREQUENCIES),
    },
    "k_unet": {"unet": ComponentLayout("", K_UNET)},
    "vae": {"vae": ComponentLayout("", VAE)},
    "text": {"text_encoder": ComponentLayout("", OPEN_CLIP)},
    "text_2": {"text_encoder_2": ComponentLayout("", OPEN_CLIP_WITH_PROJECTION)},
}
"""The layouts by name; sd1 and sd2 are those of their variants too, sd2 that of the x4 upscaler. The last four are
networks alone: the x2 upscaler's without what surrounds it, an autoencoder, an open_clip text encoder without its
projection and with it."""


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """An original file's networks under our names, nothing read yet; what in it none of them needs or knows.

    `unexpected_keys` lie among a network's own weights, so that it may be another network; `extra_keys` lie beside.
    """

    components: Mapping[str, RemappedTensors]
    ignored_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    extra_keys: tuple[str, ...] = ()


def convert_from_original(
    layout: str, tensors: LazyTensors, *, key_prefix: str = "", ema: bool = False
) -> ConvertedCheckpoint:
    """The networks of an original single file, those that it has. `key_prefix` is a prefix of all its names.

    `ema` takes the UNet's averaged copy (`model_ema.`) instead of the weights trained last. Raises `CheckpointError`
    where two weights are one, or where there is no such copy.
    """
    names = [name.removeprefix(key_prefix) for name in tensors.keys() if name.startswith(key_prefix)]
    components, used_keys = dict[str, RemappedTensors](), set[str]()
    for component, component_layout in LAYOUTS[layout].items():
        component_keys = {
            name.removeprefix(component_layout.prefix) for name in names if name.startswith(component_layout.prefix)
        }
        key_sources = _component_key_sources(component_layout, component_keys, str(tensors.path))
        if key_sources:
            used_keys |= {place.key for place in key_sources.values()}
            prefixed_sources = {
                ours: _add_prefix(place, key_prefix, ema and component == "unet") for ours, place in key_sources.items()
            }
            components[component] = RemappedTensors(tensors, prefixed_sources)
    unused_keys = [name for name in names if name not in used_keys]
    if ema:
        _check_ema_complete(tensors, components["unet"])
    unknown_keys = [name for name in unused_keys if not IGNORED_KEYS.fullmatch(name)]
    modules = _network_modules(layout, used_keys)
    unexpected_keys = [name for name in unknown_keys if name.startswith(modules)]
    return ConvertedCheckpoint(
        components,
        tuple(name for name in unused_keys if IGNORED_KEYS.fullmatch(name)),
        tuple(unexpected_keys),
        tuple(name for name in unknown_keys if not name.startswith(modules)),
    )


def _network_modules(layout: str, used_keys: Collection[str]) -> tuple[str, ...]:
    """The beginnings of the names of the modules that networks consist of, such as the UNet's input_blocks."""
    prefixes = [component_layout.prefix for component_layout in LAYOUTS[layout].values()]
    return tuple(
        {
            f"{prefix}{name.removeprefix(prefix).partition('.')[0]}."
            for prefix in prefixes
            for name in used_keys
            if name.startswith(prefix)
        }
    )


def _component_key_sources(
    component_layout: ComponentLayout, component_keys: Collection[str], path: str
) -> dict[str, KeySource]:
    """Our names of one network's weights, and where they lie."""
    key_rules = component_layout.key_mapping.key_rules(component_layout.key_mapping.original_structure(component_keys))
    sources: dict[str, KeySource] = {}
    for name in sorted(component_keys):
        if name.endswith("position_ids"):
            continue
        for diffusers_key, source in key_sources(key_rules, name):
            if diffusers_key in sources:
                raise CheckpointError(
                    f"{path}: {name} and {sources[diffusers_key].key} are both {diffusers_key}; expected one of them."
                )
            sources[diffusers_key] = KeySource(
                component_layout.prefix + name, source.chunk, source.num_chunks, source.transform
            )
    return sources


def _add_prefix(source: KeySource, key_prefix: str, ema: bool) -> KeySource:
    name = EMA_PREFIX + source.key.removeprefix("model.").replace(".", "") if ema else source.key
    return KeySource(key_prefix + name, source.chunk, source.num_chunks, source.transform)


def _check_ema_complete(tensors: LazyTensors, unet: RemappedTensors) -> None:
    names = set(tensors.keys())
    missing = [place.key for place in unet.key_sources.values() if place.key not in names]
    if missing:
        raise CheckpointError(
            f"{tensors.path}: no averaged weights: {len(missing)} of {len(unet.key_sources)} are missing, {missing[0]} "
            "first; read it with ema=False."
        )


def original_key_sources(layout: str, component: str, names: Collection[str]) -> dict[str, KeySource]:
    """Where each of our names goes in a layout. Raises `CheckpointError` for one that has no place there."""
    component_layout = LAYOUTS[layout][component]
    original_sources = invert_rules(
        component_layout.key_mapping.key_rules(component_layout.key_mapping.diffusers_structure(names))
    )
    sources: dict[str, KeySource] = {}
    for name in names:
        source = find_source(original_sources, name)
        if source is None:
            raise CheckpointError(f"{component}: {name} has no place in an original {layout} file.")
        sources[name] = KeySource(
            component_layout.prefix + source.key, source.chunk, source.num_chunks, source.transform
        )
    return sources


def original_shapes(layout: str, component: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The names and shapes that a network has in an original file."""
    sources = original_key_sources(layout, component, shapes)
    return {place.key: original_shape(place, shapes[name]) for name, place in sources.items()}


def convert_to_original(layout: str, component: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One network's weights as an original file has them."""
    groups: dict[str, list[tuple[KeySource, Tensor]]] = {}
    for name, source in original_key_sources(layout, component, tensors).items():
        groups.setdefault(source.key, []).append((source, tensors[name]))
    original: dict[str, Tensor] = {}
    for name, group in groups.items():
        group.sort(key=lambda each: each[0].chunk)
        if len(group) != group[0][0].num_chunks:
            raise CheckpointError(f"{component}: {name} needs {group[0][0].num_chunks} weights, found {len(group)}.")
        original[name] = merge_to_original(group[0][0], [tensor for _, tensor in group])
    return original
