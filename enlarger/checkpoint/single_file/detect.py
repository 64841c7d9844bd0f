"""What a file of weights is, from the names and shapes in it alone."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from enlarger.checkpoint.families import FAMILIES, describe_family, detect_unet_family
from enlarger.checkpoint.single_file.key_mapping import LAYOUTS, ComponentLayout
from enlarger.checkpoint.single_file.key_mapping_vae_clip import original_vae_structure
from enlarger.checkpoint.single_file.key_rules import Shape, diffusers_shape, key_sources
from enlarger.checkpoint.single_file.pixel_network import INSTALL_HINT, find_architecture
from enlarger.checkpoint.single_file.reference_shapes import component_shapes, original_family_shapes
from enlarger.errors import CheckpointError, Unsupported, list_names

Shapes = Mapping[str, Shape]
KEY_PREFIXES = (  # of all names, that programs leave
    *("", "model_ema.", "model.", "module.", "state_dict.", "model_state_dict."),
)
UNET_MARKER = "model.diffusion_model.input_blocks.0.0.weight"
K_UNET_MARKER = "u_net.d_blocks.0.1.main.2.weight"
VAE_MARKER = "encoder.down.0.block.0.norm1.weight"
TEXT_ENCODER_LAYOUTS = {  # the layout that a text encoder's prefix stands for
    "cond_stage_model.transformer.": "sd1",
    "cond_stage_model.model.": "sd2",
    "conditioner.embedders.1.model.": "sdxl",
    "conditioner.embedders.0.model.": "sdxl_refiner",
}
PIXEL_NETWORK = "pixel"
LIKE_PIXEL_NETWORKS = (
    PIXEL_NETWORK,
    "adapter",
    "preview",
    "transformer",
    "depth",
)  # whose patterns upscalers may match
TRANSFORMER_LABEL = "a transformer (SD3, Flux or later)"
OTHER_FILE_KINDS: Mapping[str, tuple[str, str, str]] = {  # a pattern in names: kind, what it is, what to do
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
        "transformer", TRANSFORMER_LABEL, "this package runs Stable Diffusion 1, 2 and XL"
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
    r"^(params(_ema)?\.)?(conv_first|model\.0|body\.0)\.weight$|RRDB|\.rdb1\.": (
        PIXEL_NETWORK, "an upscaler of the ESRGAN kind", INSTALL_HINT
    ),
    r"^(dpt|depth_model|pretrained|scratch|neck)\.": (
        "depth", "a depth estimator", "it belongs to a depth model, in its folder depth_estimator"
    ),
}  # fmt: skip
COMPONENT_MARKERS = {  # a name that only this network of diffusers' layout has
    "unet": ("time_embedding.linear_1.weight",),
    "vae": ("decoder.up_blocks.0.resnets.0.norm1.weight",),
    "text_encoder": (
        "text_model.embeddings.token_embedding.weight",
        "embeddings.token_embedding.weight",
    ),
}


@dataclass(frozen=True)
class DetectedCheckpoint:
    """What a file is."""

    kind: str  # "model": an original single file; "unet", "vae", "text_encoder": alone; else of OTHER_FILE_KINDS
    description: str  # for messages
    family: str | None = None  # a name of FAMILIES, where that is known
    layout: str | None = None  # a key of `key_mapping.LAYOUTS`, or "diffusers"
    key_prefix: str = ""  # a prefix of all names
    components: tuple[str, ...] = ()
    prediction_type: str | None = None  # None where the shapes cannot say
    advice: str = ""
    has_ema: bool = False  # an averaged copy of the UNet is there too
    zero_terminal_snr: bool = False  # marked as trained on a schedule that ends in pure noise (Lin et al. 2023)


def detect(shapes: Shapes, source: object = "the file") -> DetectedCheckpoint:
    """What weights of these names and shapes are.

    LoRAs, ControlNets and the like are named too (`kind` is none of a network's). Raises `CheckpointError` for a file
    like nothing known, naming the nearest family and the first differences, and `Unsupported` for odd UNets.
    """
    if (detected := _detect_single_file(shapes, source) or _detect_diffusers_component(shapes, source)) is not None:
        return detected
    known = _detect_other_kind(shapes)
    is_open = known is None or known.kind in LIKE_PIXEL_NETWORKS
    if is_open and (architecture := find_architecture(shapes)) is not None:
        return DetectedCheckpoint(PIXEL_NETWORK, f"an upscaler network ({architecture.name})")
    if known is not None:
        return known
    if shapes and len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in (768, 1024, 1280) for s in shapes.values()):
        return DetectedCheckpoint(
            "textual_inversion", "a textual inversion", advice="load its model and add it with load_textual_inversion"
        )
    raise CheckpointError(f"{source}: {describe_unknown(shapes)}")


def _detect_other_kind(shapes: Shapes) -> DetectedCheckpoint | None:
    keys_text = "\n".join(shapes)
    for pattern, (kind, meaning, advice) in OTHER_FILE_KINDS.items():
        if re.search(pattern, keys_text, re.MULTILINE):
            return DetectedCheckpoint(kind, meaning, advice=advice)
    return None


def require_family(detected: DetectedCheckpoint, families: Collection[str], source: object) -> None:
    """Refuse a file that is not a model of one of the families, naming what it is and what it is for."""
    if detected.family in families and detected.kind == "model":
        return
    wanted = " or ".join(describe_family(family) for family in families)
    use = f" {detected.advice}." if detected.advice else ""
    raise CheckpointError(f"{source}: holds {detected.description}; expected {wanted}.{use}")


def _detect_single_file(shapes: Shapes, source: object) -> DetectedCheckpoint | None:
    """An original single file: with a UNet, or an autoencoder or text encoder alone."""
    names = frozenset(shapes)
    for key_prefix in KEY_PREFIXES:
        if key_prefix + UNET_MARKER in names:
            return _detect_model(shapes, key_prefix, source)
        for inner, layout in (("inner_model.", "x2"), ("", "k_unet")):
            if key_prefix + inner + K_UNET_MARKER in names:
                return _detect_x2(names, key_prefix, layout)
    return _detect_original_component(names)


def _detect_original_component(names: Collection[str]) -> DetectedCheckpoint | None:
    """An autoencoder or a text encoder of the original code alone; anything beside it belongs to it."""
    for key_prefix in ("first_stage_model.", *KEY_PREFIXES):
        if key_prefix + VAE_MARKER in names and all(name.startswith(key_prefix) for name in names):
            levels = original_vae_structure({name.removeprefix(key_prefix) for name in names}).levels
            return DetectedCheckpoint(
                "vae", _describe_vae(levels), layout="vae", key_prefix=key_prefix, components=("vae",)
            )
    for key_prefix in ("cond_stage_model.model.", *KEY_PREFIXES):
        marker = key_prefix + "transformer.resblocks.0.ln_1.weight"
        if (
            marker in names
            and all(name.startswith(key_prefix) for name in names)
            and f"{key_prefix}visual.proj" not in names
        ):
            description = "an open_clip text encoder (SD2, the x4 upscaler, SDXL's text_encoder_2)"
            return DetectedCheckpoint(
                "text_encoder", description, layout="text", key_prefix=key_prefix, components=("text_encoder",)
            )
    return None


def _detect_model(shapes: Shapes, key_prefix: str, source: object) -> DetectedCheckpoint:
    names = [name.removeprefix(key_prefix) for name in shapes if name.startswith(key_prefix)]
    for other in ("controlnet", "video", "unclip", "edm"):
        for pattern, (kind, meaning, advice) in OTHER_FILE_KINDS.items():
            if kind == other and any(re.search(pattern, name) for name in names):
                return DetectedCheckpoint(kind, meaning, advice=advice)
    text_layout = next(
        (layout for prefix, layout in TEXT_ENCODER_LAYOUTS.items() if any(n.startswith(prefix) for n in names)), None
    )
    unet_shapes = diffusers_shapes(LAYOUTS["sd1"]["unet"], {name: shapes[key_prefix + name] for name in names})
    try:
        family = detect_unet_family(unet_shapes, text_layout)
    except Unsupported as error:
        raise Unsupported(f"{source}: {error}") from error
    layout = FAMILIES[family].layout
    components = tuple(c for c, place in LAYOUTS[layout].items() if any(n.startswith(place.prefix) for n in names))
    prediction_type = "v_prediction" if "v_pred" in names else FAMILIES[family].prediction_type
    has_ema = any(name.startswith("model_ema.diffusion_model") for name in names)
    return DetectedCheckpoint(
        "model", describe_family(family), family, layout, key_prefix, components, prediction_type, has_ema=has_ema,
        zero_terminal_snr="ztsnr" in names,
    )  # fmt: skip


def _detect_x2(names: Collection[str], key_prefix: str, layout: str) -> DetectedCheckpoint:
    components = ("unet", "noise_frequencies") if f"{key_prefix}low_res_noise_embed.weight" in names else ("unet",)
    return DetectedCheckpoint(
        "model", describe_family("x2"), "x2", layout, key_prefix, components, FAMILIES["x2"].prediction_type
    )


def _detect_diffusers_component(shapes: Shapes, source: object) -> DetectedCheckpoint | None:
    """One network of diffusers' layout."""
    keys_text = "\n".join(shapes)
    if re.search(r"^controlnet_|motion_modules\.|lora|vision_model\.|^concept_embeds", keys_text, re.MULTILINE):
        return None
    for kind, markers in COMPONENT_MARKERS.items():
        if not any(marker in shapes for marker in markers):
            continue
        if kind == "unet":
            try:
                family = detect_unet_family(shapes)
            except Unsupported as error:
                raise Unsupported(f"{source}: {error}") from error
            meaning = f"the UNet of {describe_family(family)}"
            return DetectedCheckpoint(
                "unet", meaning, family, "diffusers", "", ("unet",), FAMILIES[family].prediction_type
            )
        levels = {name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")}
        meaning = _describe_vae(len(levels)) if kind == "vae" else "a CLIP text encoder with transformers' names"
        return DetectedCheckpoint(kind, meaning, layout="diffusers", components=(kind,))
    return None


def _describe_vae(levels: int) -> str:
    kinds = {4: " of Stable Diffusion 1, 2 or XL", 3: " of the x4 upscaler"}
    return f"an autoencoder{kinds.get(levels, f' with {levels} levels')}"


def diffusers_shapes(component: ComponentLayout, shapes: Shapes) -> dict[str, Shape]:
    """The shapes of one network of an original file under our names."""
    component_shapes = {
        name.removeprefix(component.prefix): shape
        for name, shape in shapes.items()
        if name.startswith(component.prefix)
    }
    key_rules = component.key_mapping.key_rules(component.key_mapping.original_structure(component_shapes.keys()))
    return {
        ours: diffusers_shape(place, component_shapes[name])
        for name in component_shapes
        for ours, place in key_sources(key_rules, name)
    }


def describe_unknown(shapes: Shapes) -> str:
    """That a file is like nothing known; the nearest family, and where it differs."""
    expected, meaning = _nearest_family(shapes)
    if expected is None:
        return f"{len(shapes)} weights like those of nothing known here: {list_names(list(shapes))}."
    missing = [f"{name} is missing" for name in expected if name not in shapes]
    unexpected = [f"{name} is unexpected" for name in shapes if name not in expected]
    misshapen = [
        f"{name} has shape {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    differences = missing + unexpected + misshapen
    count = len(differences)
    return f"no model known here; the nearest is {meaning}, with {count} differences: {list_names(differences)}."


def _nearest_family(shapes: Shapes) -> tuple[Mapping[str, Shape] | None, str]:
    """The family whose file shares most names with this one: by prefixes first, since those are cheap to compare."""
    shared_keys = {
        family: sum(
            name.startswith(tuple(p.prefix for p in LAYOUTS[FAMILIES[family].layout].values())) for name in shapes
        )
        for family in FAMILIES
    }
    best = max(shared_keys, key=lambda family: shared_keys[family])
    if shared_keys[best]:
        return original_family_shapes(best), describe_family(best)
    num_common, meaning, expected = max(
        ((len(known.keys() & shapes.keys()), text, known) for text, known in component_shapes()),
        key=lambda each: each[0],
    )
    return (expected, meaning) if num_common else (None, "")
