"""What a file of weights is, from the names and shapes in it alone."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from enlarger.checkpoint.expected import original_model, part_shapes
from enlarger.checkpoint.families import FAMILIES, described, unet_family
from enlarger.checkpoint.names import LAYOUTS, Part
from enlarger.checkpoint.names_parts import original_grid
from enlarger.checkpoint.rules import Shape, our_shape, places
from enlarger.errors import CheckpointError, Unsupported

Shapes = Mapping[str, Shape]
SHOWN = 10  # differences that an error lists
WRAPPERS = ("", "model_ema.", "model.", "module.", "state_dict.")  # prefixes of all names that programs leave
UNET_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
K_FIRST = "u_net.d_blocks.0.1.main.2.weight"
VAE_FIRST = "encoder.down.0.block.0.norm1.weight"
TEXTS = {  # the layout that a text encoder's prefix stands for
    "cond_stage_model.transformer.": "sd1",
    "cond_stage_model.model.": "sd2",
    "conditioner.embedders.1.model.": "sdxl",
    "conditioner.embedders.0.model.": "sdxl_refiner",
}
TRANSFORMER = "a transformer (SD3, Flux or later)"
OTHERS: Mapping[str, tuple[str, str, str]] = {  # a pattern in names: kind, what it is, what to do
    r"^lora_(unet|te\d?)_": ("lora", "a LoRA with kohya's names", "load its model and add it with load_lora_weights"),
    r"[._]lora[._](A|B|up|down|mid|linear_layer)\b|[._]lora_(A|B|up|down)\b|\.(hada|lokr)_|\.oft_": (
        "lora", "a LoRA with diffusers' names", "load its model and add it with load_lora_weights"
    ),
    r"^(emb_params|clip_[lg]|string_to_param\..*)$": (
        "textual_inversion", "a textual inversion", "load its model and add it with load_textual_inversion"
    ),
    r"^control_model\.|^controlnet_|^input_hint_block\.|^zero_convs\.": (
        "controlnet", "a ControlNet", "ControlNets are not supported"
    ),
    r"^adapter\.|^body\.\d+\.(block1|in_conv)|^conditioning_embedding": (
        "adapter", "a T2I-Adapter", "adapters are not supported"
    ),
    r"^(image_proj|ip_adapter)\.": ("adapter", "an IP-Adapter", "adapters are not supported"),
    r"motion_modules\.|temporal_transformer|time_stack\.": (
        "video", "a video model or its part", "videos are not supported"
    ),
    r"(joint|double|single)_blocks\.|single_transformer_blocks\.|transformer_blocks\.\d+\.attn\.": (
        "transformer", TRANSFORMER, "this package runs Stable Diffusion 1, 2 and XL"
    ),
    r"^(embedder\.model\.visual|noise_augmentor|cond_stage_model\.model\.visual)\b": (
        "unclip", "a model told pictures (unCLIP, image variations)", "supported are models told by texts alone"
    ),
    r"^edm_(mean|std)$": ("edm", "a model trained in EDM's form (Playground 2.5)", "its latents are not supported"),
    r"concept_embeds|^vision_model\.|^visual_projection": (
        "vision", "a CLIP image encoder or safety checker", "it belongs beside a model, in a folder"
    ),
    r"^(1|3)\.(conv\.0\.)?weight$|^decoder\.layers\.": (
        "preview", "a preview decoder (TAESD)", "load a model and pass it as its preview"
    ),
    r"^(conv_first|model\.0)\.weight$|RRDB|\.rdb1\.": (
        "gan", "an upscaler of the ESRGAN kind", "such networks are not supported; enlarger.upscale has its own"
    ),
    r"^(dpt|depth_model|pretrained|scratch|neck)\.": (
        "depth", "a depth estimator", "it belongs to a depth model, in its folder depth_estimator"
    ),
}  # fmt: skip
PARTS = {  # a name that tells a network of diffusers' layout
    "unet": ("time_embedding.linear_1.weight",),
    "vae": ("decoder.up_blocks.0.resnets.0.norm1.weight",),
    "text_encoder": (
        "text_model.embeddings.token_embedding.weight",
        "embeddings.token_embedding.weight",
    ),
}


@dataclass(frozen=True)
class Found:
    """What a file is."""

    kind: str  # "model": an original single file; "unet", "vae", "text_encoder": a part; else of OTHERS
    text: str  # in words
    family: str | None = None  # a name of FAMILIES, where that is known
    layout: str | None = None  # a name of `names.LAYOUTS`, or "diffusers"
    wrapper: str = ""  # a prefix of all names
    components: tuple[str, ...] = ()
    prediction: str | None = None  # None where the shapes cannot say
    advice: str = ""
    averaged: bool = False  # an averaged copy of the UNet is there too


def detect(shapes: Shapes, where: object = "the file") -> Found:
    """What weights of these names and shapes are.

    LoRAs, ControlNets and the like are named too (`kind` is none of a network's). Raises `CheckpointError` for a file
    like nothing known, naming the nearest family and the first differences, and `Unsupported` for odd UNets.
    """
    if (found := _whole(shapes, where) or _part(shapes, where)) is not None:
        return found
    text = "\n".join(shapes)
    for pattern, (kind, meaning, advice) in OTHERS.items():
        if re.search(pattern, text, re.MULTILINE):
            return Found(kind, meaning, advice=advice)
    if shapes and len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in (768, 1024, 1280) for s in shapes.values()):
        return Found(
            "textual_inversion", "a textual inversion", advice="load its model and add it with load_textual_inversion"
        )
    raise CheckpointError(f"{where}: {unknown(shapes)}")


def require(found: Found, families: Collection[str], where: object) -> None:
    """Refuse a file that is not a model of one of the families, naming what it is and what it is for."""
    if found.family in families and found.kind == "model":
        return
    wanted = " or ".join(described(family) for family in families)
    use = f" {found.advice}." if found.advice else ""
    raise CheckpointError(f"{where}: holds {found.text}; expected {wanted}.{use}")


def _whole(shapes: Shapes, where: object) -> Found | None:
    """An original single file: with a UNet, or an autoencoder or text encoder alone."""
    names = frozenset(shapes)
    for wrapper in WRAPPERS:
        if wrapper + UNET_FIRST in names:
            return _model(shapes, wrapper, where)
        for inner, layout in (("inner_model.", "x2"), ("", "k_unet")):
            if wrapper + inner + K_FIRST in names:
                return _x2(names, wrapper, layout)
    return _original_part(names)


def _original_part(names: Collection[str]) -> Found | None:
    """An autoencoder or a text encoder of the original code alone; anything beside it belongs to it."""
    for wrapper in ("first_stage_model.", *WRAPPERS):
        if wrapper + VAE_FIRST in names and all(name.startswith(wrapper) for name in names):
            levels = original_grid({name.removeprefix(wrapper) for name in names}).levels
            return Found("vae", _vae_text(levels), layout="vae", wrapper=wrapper, components=("vae",))
    for wrapper in ("cond_stage_model.model.", *WRAPPERS):
        first = wrapper + "transformer.resblocks.0.ln_1.weight"
        if first in names and all(name.startswith(wrapper) for name in names) and f"{wrapper}visual.proj" not in names:
            text = "an open_clip text encoder (SD2, the x4 upscaler, SDXL's text_encoder_2)"
            return Found("text_encoder", text, layout="text", wrapper=wrapper, components=("text_encoder",))
    return None


def _model(shapes: Shapes, wrapper: str, where: object) -> Found:
    names = [name.removeprefix(wrapper) for name in shapes if name.startswith(wrapper)]
    for other in ("controlnet", "video", "unclip", "edm"):
        for pattern, (kind, meaning, advice) in OTHERS.items():
            if kind == other and any(re.search(pattern, name) for name in names):
                return Found(kind, meaning, advice=advice)
    text = next((layout for prefix, layout in TEXTS.items() if any(n.startswith(prefix) for n in names)), None)
    unet = our_shapes(LAYOUTS["sd1"]["unet"], {name: shapes[wrapper + name] for name in names})
    try:
        family = unet_family(unet, text)
    except Unsupported as error:
        raise Unsupported(f"{where}: {error}") from error
    layout = FAMILIES[family].layout
    components = tuple(c for c, part in LAYOUTS[layout].items() if any(n.startswith(part.prefix) for n in names))
    prediction = "v_prediction" if "v_pred" in names else FAMILIES[family].prediction
    averaged = any(name.startswith("model_ema.diffusion_model") for name in names)
    return Found("model", described(family), family, layout, wrapper, components, prediction, averaged=averaged)


def _x2(names: Collection[str], wrapper: str, layout: str) -> Found:
    components = ("unet", "noise_frequencies") if f"{wrapper}low_res_noise_embed.weight" in names else ("unet",)
    return Found("model", described("x2"), "x2", layout, wrapper, components, FAMILIES["x2"].prediction)


def _part(shapes: Shapes, where: object) -> Found | None:
    """One network of diffusers' layout."""
    text = "\n".join(shapes)
    if re.search(r"^controlnet_|motion_modules\.|lora|vision_model\.|^concept_embeds", text, re.MULTILINE):
        return None
    for kind, signs in PARTS.items():
        if not any(sign in shapes for sign in signs):
            continue
        if kind == "unet":
            try:
                family = unet_family(shapes)
            except Unsupported as error:
                raise Unsupported(f"{where}: {error}") from error
            meaning = f"the UNet of {described(family)}"
            return Found("unet", meaning, family, "diffusers", "", ("unet",), FAMILIES[family].prediction)
        levels = {name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")}
        meaning = _vae_text(len(levels)) if kind == "vae" else "a CLIP text encoder with transformers' names"
        return Found(kind, meaning, layout="diffusers", components=(kind,))
    return None


def _vae_text(levels: int) -> str:
    kinds = {4: " of Stable Diffusion 1, 2 or XL", 3: " of the x4 upscaler"}
    return f"an autoencoder{kinds.get(levels, f' with {levels} levels')}"


def our_shapes(part: Part, shapes: Shapes) -> dict[str, Shape]:
    """The shapes of one network of an original file under our names."""
    inside = {name.removeprefix(part.prefix): shape for name, shape in shapes.items() if name.startswith(part.prefix)}
    table = part.kind.table(part.kind.theirs(inside.keys()))
    return {ours: our_shape(place, inside[name]) for name in inside for ours, place in places(table, name)}


def unknown(shapes: Shapes) -> str:
    """That a file is like nothing known; the nearest family, and where it differs."""
    expected, meaning = _nearest(shapes)
    if expected is None:
        return f"{len(shapes)} weights like those of nothing known here: {_listed(shapes)}."
    missing = [f"{name} is missing" for name in expected if name not in shapes]
    extra = [f"{name} is unexpected" for name in shapes if name not in expected]
    misshapen = [
        f"{name} has shape {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    differences = missing + extra + misshapen
    count = len(differences)
    return f"no model known here; the nearest is {meaning}, with {count} differences: {_listed(differences)}."


def _nearest(shapes: Shapes) -> tuple[Mapping[str, Shape] | None, str]:
    """The family whose file shares most names with this one: by prefixes first, since those are cheap to compare."""
    share = {
        family: sum(
            name.startswith(tuple(p.prefix for p in LAYOUTS[FAMILIES[family].layout].values())) for name in shapes
        )
        for family in FAMILIES
    }
    best = max(share, key=lambda family: share[family])
    if share[best]:
        return original_model(best), described(best)
    common, meaning, expected = max(
        ((len(known.keys() & shapes.keys()), text, known) for text, known in part_shapes()), key=lambda each: each[0]
    )
    return (expected, meaning) if common else (None, "")


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
