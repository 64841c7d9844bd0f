"""The families of models known here: what each is called, what it is for, and how its UNet is told from others."""

from collections.abc import Mapping
from dataclasses import dataclass

from enlarger.checkpoint.single_file.key_mapping_unet import diffusers_unet_levels
from enlarger.checkpoint.single_file.key_rules import Shape
from enlarger.errors import Unsupported


@dataclass(frozen=True)
class Family:
    """What one kind of checkpoint is."""

    label: str
    task: str
    layout: str  # of its original single file, a name of `names.LAYOUTS`
    prediction_type: str | None  # what its UNet predicts; None where two kinds of weights look alike


TEXT_TO_IMAGE, INPAINTING = "text to image, enlarger.generate and enlarger.refine", "inpainting, enlarger.inpaint"
FAMILIES: Mapping[str, Family] = {
    "sd1": Family("Stable Diffusion 1", TEXT_TO_IMAGE, "sd1", "epsilon"),
    "sd1_inpainting": Family("Stable Diffusion 1 inpainting", INPAINTING, "sd1", "epsilon"),
    "sd2": Family("Stable Diffusion 2", TEXT_TO_IMAGE, "sd2", None),
    "sd2_inpainting": Family("Stable Diffusion 2 inpainting", INPAINTING, "sd2", "epsilon"),
    "sd2_depth": Family("Stable Diffusion 2 depth", "depth to image, enlarger.depth", "sd2", "epsilon"),
    "x4": Family("the x4 upscaler", "upscaling by 4, enlarger.upscale", "sd2", "v_prediction"),
    "x2": Family("the x2 latent upscaler", "upscaling by 2, enlarger.upscale", "x2", "original_sample"),
    "sdxl": Family("SDXL base", TEXT_TO_IMAGE, "sdxl", "epsilon"),
    "sdxl_inpainting": Family("SDXL inpainting", INPAINTING, "sdxl", "epsilon"),
    "sdxl_refiner": Family(
        "the SDXL refiner", "refining what SDXL base made, enlarger.refine", "sdxl_refiner", "epsilon"
    ),
}
FAMILY_BY_CONTEXT_CHANNELS = {768: "sd1", 1024: "sd2"}  # width of the text features
FAMILY_BY_VECTOR_CHANNELS = {2816: "sdxl", 2560: "sdxl_refiner"}  # width of the pooled text with the sizes
VARIANT_BY_IN_CHANNELS = {
    4: "",
    9: "_inpainting",
    5: "_depth",
}  # channels of the UNet's input, and the variant that has them


def describe_family(family: str) -> str:
    """A family and its task, for messages."""
    return f"{FAMILIES[family].label} ({FAMILIES[family].task})"


def detect_unet_family(shapes: Mapping[str, Shape], text_family: str | None = None) -> str:
    """The family of a UNet under our names. `text` is what its text encoder says, for widths of no official model.

    Raises `Unsupported` for one that belongs to none.
    """
    if "time_proj.weight" in shapes:
        return "x2"
    if "class_embedding.weight" in shapes:
        return "x4"
    base_family, in_channels = _base_family(shapes, text_family), _dim(shapes.get("conv_in.weight"), 1)
    family = base_family + VARIANT_BY_IN_CHANNELS.get(in_channels, "?")
    if family not in FAMILIES:
        raise Unsupported(
            f"the UNet is one of {FAMILIES[base_family].label} with {in_channels} input channels"
            f"{', as InstructPix2Pix has them' if in_channels == 8 else ''}; supported: "
            + ", ".join(
                f"{n} ({FAMILIES[base_family + name].label})"
                for n, name in VARIANT_BY_IN_CHANNELS.items()
                if base_family + name in FAMILIES
            )
        )
    return family


def _base_family(shapes: Mapping[str, Shape], text_family: str | None) -> str:
    context = next((_dim(shape, 1) for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    vector_shape = shapes.get("add_embedding.linear_1.weight")
    if vector_shape is None:
        linear_projection = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
        return FAMILY_BY_CONTEXT_CHANNELS.get(context) or text_family or ("sd2" if linear_projection else "sd1")
    if context in FAMILY_BY_CONTEXT_CHANNELS:
        raise Unsupported("the UNet is an unCLIP model's: it is told pictures; supported: models told by texts alone.")
    levels = diffusers_unet_levels(shapes)
    guess = (
        "sdxl" if levels and levels[-1].has_attention else "sdxl_refiner"
    )  # the refiner's lowest level has no attention
    return FAMILY_BY_VECTOR_CHANNELS.get(_dim(vector_shape, 1)) or text_family or guess


def _dim(shape: Shape | None, axis: int) -> int:
    """A side of a shape, 0 where it has none."""
    return shape[axis] if shape is not None and len(shape) > axis else 0
