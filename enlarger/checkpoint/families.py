"""The families of models known here: what each is called, what it is for, and how its UNet is told from others."""

from collections.abc import Mapping
from dataclasses import dataclass

from enlarger.checkpoint.names_unet import our_levels
from enlarger.checkpoint.rules import Shape
from enlarger.errors import Unsupported


@dataclass(frozen=True)
class Family:
    """What one kind of checkpoint is."""

    text: str
    task: str
    layout: str  # of its original single file, a name of `names.LAYOUTS`
    prediction: str | None  # what its UNet predicts; None where two kinds of weights look alike


MAKE, PAINT = "text to image, enlarger.generate and enlarger.refine", "inpainting, enlarger.inpaint"
FAMILIES: Mapping[str, Family] = {
    "sd1": Family("Stable Diffusion 1", MAKE, "sd1", "epsilon"),
    "sd1_inpainting": Family("Stable Diffusion 1 inpainting", PAINT, "sd1", "epsilon"),
    "sd2": Family("Stable Diffusion 2", MAKE, "sd2", None),
    "sd2_inpainting": Family("Stable Diffusion 2 inpainting", PAINT, "sd2", "epsilon"),
    "sd2_depth": Family("Stable Diffusion 2 depth", "depth to image, enlarger.depth", "sd2", "epsilon"),
    "x4": Family("the x4 upscaler", "upscaling by 4, enlarger.upscale", "sd2", "v_prediction"),
    "x2": Family("the x2 latent upscaler", "upscaling by 2, enlarger.upscale", "x2", "original_sample"),
    "sdxl": Family("SDXL base", MAKE, "sdxl", "epsilon"),
    "sdxl_inpainting": Family("SDXL inpainting", PAINT, "sdxl", "epsilon"),
    "sdxl_refiner": Family(
        "the SDXL refiner", "refining what SDXL base made, enlarger.refine", "sdxl_refiner", "epsilon"
    ),
}
CONTEXTS = {768: "sd1", 1024: "sd2"}  # width of the text features
VECTORS = {2816: "sdxl", 2560: "sdxl_refiner"}  # width of the pooled text with the sizes
INPUTS = {4: "", 9: "_inpainting", 5: "_depth"}  # channels of the UNet's input, and the variant that has them


def described(family: str) -> str:
    """A family and its task, for messages."""
    return f"{FAMILIES[family].text} ({FAMILIES[family].task})"


def unet_family(shapes: Mapping[str, Shape], text: str | None = None) -> str:
    """The family of a UNet under our names. `text` is what its text encoder says, for widths of no official model.

    Raises `Unsupported` for one that belongs to none.
    """
    if "time_proj.weight" in shapes:
        return "x2"
    if "class_embedding.weight" in shapes:
        return "x4"
    base, inputs = _base(shapes, text), _side(shapes.get("conv_in.weight"), 1)
    family = base + INPUTS.get(inputs, "?")
    if family not in FAMILIES:
        raise Unsupported(
            f"the UNet is one of {FAMILIES[base].text} with {inputs} input channels"
            f"{', as InstructPix2Pix has them' if inputs == 8 else ''}; supported: "
            + ", ".join(f"{n} ({FAMILIES[base + name].text})" for n, name in INPUTS.items() if base + name in FAMILIES)
        )
    return family


def _base(shapes: Mapping[str, Shape], text: str | None) -> str:
    context = next((_side(shape, 1) for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    vector = shapes.get("add_embedding.linear_1.weight")
    if vector is None:
        linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
        return CONTEXTS.get(context) or text or ("sd2" if linear else "sd1")
    if context in CONTEXTS:
        raise Unsupported("the UNet is an unCLIP model's: it is told pictures; supported: models told by texts alone.")
    levels = our_levels(shapes)
    guess = "sdxl" if levels and levels[-1].attends else "sdxl_refiner"  # the refiner's lowest level has no attention
    return VECTORS.get(_side(vector, 1)) or text or guess


def _side(shape: Shape | None, axis: int) -> int:
    """A side of a shape, 0 where it has none."""
    return shape[axis] if shape is not None and len(shape) > axis else 0
