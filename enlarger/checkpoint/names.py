"""The layouts of original single files: which part has which prefix, by which rules its names are ours, and back."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from enlarger.checkpoint.files import Tensors
from enlarger.checkpoint.names_parts import (
    clip_table,
    original_clip,
    original_grid,
    original_projecting_tower,
    original_tower,
    our_clip,
    our_grid,
    our_tower,
    tower_table,
    vae_table,
)
from enlarger.checkpoint.names_unet import (
    k_table,
    original_k_levels,
    original_levels,
    our_k_levels,
    our_levels,
    unet_table,
)
from enlarger.checkpoint.rules import (
    Mapped,
    Place,
    Shape,
    Table,
    backwards,
    original_shape,
    place_of,
    places,
    plain,
    to_original,
)
from enlarger.errors import CheckpointError

EMA = "model_ema."
SPARE = re.compile(  # what a file may hold that no network reads
    r"betas|(alphas|sqrt|log_one|posterior)_.*|lvlb_weights|logvar|scale_factor|v_pred|ztsnr|denoiser\.sigmas"
    r"|low_scale_model\..*|model_ema\..*|loss\..*|global_step|epoch"
    r"|.*\.position_ids|.*\.logit_scale|.*\.text_projection|.*model\.transformer\.resblocks\.\d+\..*"
    r"|.*u_net\.[du]_blocks\.\d+\.\d+\.kernel"
)


@dataclass(frozen=True)
class Kind:
    """The rules of one network: its measures as either layout's names tell them, and the table that they give."""

    theirs: Callable[[Collection[str]], Any]
    ours: Callable[[Collection[str]], Any]
    table: Callable[[Any], Table]


@dataclass(frozen=True)
class Part:
    """A network in a single file."""

    prefix: str
    kind: Kind


UNET = Kind(original_levels, our_levels, unet_table)
K_UNET = Kind(original_k_levels, our_k_levels, k_table)
VAE = Kind(original_grid, our_grid, vae_table)
CLIP = Kind(original_clip, our_clip, clip_table)
TOWER = Kind(original_tower, our_tower, tower_table)
PROJECTING = Kind(original_projecting_tower, our_tower, tower_table)
FREQUENCIES = Kind(len, len, lambda _: plain({"weight": "weight"}))

_SHARED = {"unet": Part("model.diffusion_model.", UNET), "vae": Part("first_stage_model.", VAE)}
LAYOUTS: Mapping[str, Mapping[str, Part]] = {
    "sd1": _SHARED | {"text_encoder": Part("cond_stage_model.transformer.", CLIP)},
    "sd2": _SHARED | {"text_encoder": Part("cond_stage_model.model.", TOWER)},
    "sdxl": _SHARED
    | {
        "text_encoder": Part("conditioner.embedders.0.transformer.", CLIP),
        "text_encoder_2": Part("conditioner.embedders.1.model.", PROJECTING),
    },
    "sdxl_refiner": _SHARED | {"text_encoder_2": Part("conditioner.embedders.0.model.", PROJECTING)},
    "x2": {"unet": Part("inner_model.", K_UNET), "noise_frequencies": Part("low_res_noise_embed.", FREQUENCIES)},
    "k_unet": {"unet": Part("", K_UNET)},
    "vae": {"vae": Part("", VAE)},
    "text": {"text_encoder": Part("", TOWER)},
}
"""The layouts by name; sd1 and sd2 are those of their variants too, sd2 that of the x4 upscaler. The last three are
networks alone: the x2 upscaler's without what surrounds it, an autoencoder, an open_clip text encoder."""


@dataclass(frozen=True)
class Converted:
    """An original file's networks under our names, nothing read yet; what in it none of them needs or knows."""

    parts: Mapping[str, Mapped]
    spare: tuple[str, ...]
    unmapped: tuple[str, ...]


def convert(layout: str, tensors: Tensors, *, wrapper: str = "", ema: bool = False) -> Converted:
    """The networks of an original single file, those that it has. `wrapper` is a prefix of all its names.

    `ema` takes the UNet's averaged copy (`model_ema.`) instead of the weights trained last. Raises `CheckpointError`
    where two weights are one, or where there is no such copy.
    """
    names = [name.removeprefix(wrapper) for name in tensors.names() if name.startswith(wrapper)]
    parts, used = dict[str, Mapped](), set[str]()
    for component, part in LAYOUTS[layout].items():
        inside = {name.removeprefix(part.prefix) for name in names if name.startswith(part.prefix)}
        found = _places(part, inside, str(tensors.path))
        if found:
            used |= {place.name for place in found.values()}
            where = {ours: _at(place, wrapper, ema and component == "unet") for ours, place in found.items()}
            parts[component] = Mapped(tensors, where)
    rest = [name for name in names if name not in used]
    if ema:
        _check_ema(tensors, parts["unet"])
    spare = tuple(name for name in rest if SPARE.fullmatch(name))
    return Converted(parts, spare, tuple(name for name in rest if not SPARE.fullmatch(name)))


def _places(part: Part, inside: Collection[str], path: str) -> dict[str, Place]:
    """Our names of one network's weights, and where they lie."""
    table = part.kind.table(part.kind.theirs(inside))
    found: dict[str, Place] = {}
    for name in sorted(inside):
        if name.endswith("position_ids"):
            continue
        for ours, place in places(table, name):
            if ours in found:
                raise CheckpointError(f"{path}: {name} and {found[ours].name} are both {ours}; expected one of them.")
            found[ours] = Place(part.prefix + name, place.index, place.count, place.form)
    return found


def _at(place: Place, wrapper: str, ema: bool) -> Place:
    name = EMA + place.name.removeprefix("model.").replace(".", "") if ema else place.name
    return Place(wrapper + name, place.index, place.count, place.form)


def _check_ema(tensors: Tensors, unet: Mapped) -> None:
    names = set(tensors.names())
    missing = [place.name for place in unet.where.values() if place.name not in names]
    if missing:
        raise CheckpointError(
            f"{tensors.path}: no averaged weights: {len(missing)} of {len(unet.where)} are missing, {missing[0]} "
            "first; read it with ema=False."
        )


def original_places(layout: str, component: str, names: Collection[str]) -> dict[str, Place]:
    """Where each of our names goes in a layout. Raises `CheckpointError` for one that has no place there."""
    part = LAYOUTS[layout][component]
    table = backwards(part.kind.table(part.kind.ours(names)))
    found: dict[str, Place] = {}
    for name in names:
        place = place_of(table, name)
        if place is None:
            raise CheckpointError(f"{component}: {name} has no place in an original {layout} file.")
        found[name] = Place(part.prefix + place.name, place.index, place.count, place.form)
    return found


def original_shapes(layout: str, component: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The names and shapes that a network has in an original file."""
    places = original_places(layout, component, shapes)
    return {place.name: original_shape(place, shapes[name]) for name, place in places.items()}


def restore(layout: str, component: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One network's weights as an original file has them."""
    groups: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, place in original_places(layout, component, tensors).items():
        groups.setdefault(place.name, []).append((place, tensors[name]))
    made: dict[str, Tensor] = {}
    for name, group in groups.items():
        group.sort(key=lambda each: each[0].index)
        if len(group) != group[0][0].count:
            raise CheckpointError(f"{component}: {name} needs {group[0][0].count} weights, found {len(group)}.")
        made[name] = to_original(group[0][0], [tensor for _, tensor in group])
    return made
