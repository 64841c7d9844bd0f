"""What makes a picture again, written into its file: our JSON, and the text that other programs read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from PIL import Image, PngImagePlugin

KEY = "enlarger"  # of the JSON in PNG files
PARAMETERS = "parameters"  # of the text that A1111's web UI writes and many programs read
DESCRIPTION, DETAILS, COMMENT = 0x010E, 0x8769, 0x9286  # EXIF: ImageDescription, the inner block, UserComment
UNICODE = b"UNICODE\0"
EXIF_MOST = 65_533 - 6  # bytes that a JPEG file holds
SAMPLERS = {
    "euler": "Euler", "euler_ancestral": "Euler a", "ddim": "DDIM", "heun": "Heun", "plms": "PLMS", "lms": "LMS",
    "dpm2": "DPM2", "dpm2_ancestral": "DPM2 a", "dpm_fast": "DPM fast", "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE", "unipc": "UniPC",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE",
}  # fmt: skip

Json = dict[str, Any]


def recipe_of(
    version: str, task: str, model: str, options: Mapping[str, Any], seeds: Sequence[int], input: Any
) -> Json:  # fmt: skip
    """All that a job's pictures depend on. `input` is what is known of the picture that was given."""
    return {
        "enlarger": version, "task": task, "model": model, "options": dict(options), "seeds": list(seeds),
        "input": input,
    }  # fmt: skip


def recipe_for(recipe: Json, index: int) -> Json:
    """The recipe of one of the job's pictures alone."""
    options = recipe["options"] | ({"count": 1} if "count" in recipe["options"] else {})
    return recipe | {"options": options, "seeds": recipe["seeds"][index : index + 1]}


def parameters_of(recipe: Json, size: tuple[int, int]) -> str:
    """The recipe as A1111 writes it: prompt, negative prompt, then names with values."""
    options: Json = recipe["options"]
    solver = options.get("solver")
    named = {
        "Steps": options.get("steps"),
        "Sampler": SAMPLERS.get(str(solver), solver),
        "CFG scale": options.get("guidance"),
        "Seed": recipe["seeds"][0],
        "Size": f"{size[0]}x{size[1]}",
        "Model": recipe["model"],
        "Denoising strength": options.get("strength"),
        "Hires upscale": options.get("by", options.get("upscale")),
        "Version": f"enlarger {recipe['enlarger']}",
    }
    negative = options.get("negative")
    lines = [
        str(options.get("prompt", "")),
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {value}" for name, value in named.items() if value is not None),
    ]
    return "\n".join(lines).replace("\0", " ").encode("utf-8", "replace").decode()


def png_text(recipe: Json, size: tuple[int, int]) -> PngImagePlugin.PngInfo:
    """The texts of a PNG file."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS, parameters_of(recipe, size))
    info.add_itxt(KEY, json.dumps(recipe))
    return info


def exif_with(recipe: Json, size: tuple[int, int]) -> bytes:
    """The EXIF block of a JPEG or WebP file; it can be longer than `EXIF_MOST`."""
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps(recipe)
    exif.get_ifd(DETAILS)[COMMENT] = UNICODE + parameters_of(recipe, size).encode("utf-16-be")
    return exif.tobytes()


def read_recipe(image: Image.Image) -> Json | None:
    """The recipe in a picture's file; None where there is none of ours."""
    image.load()  # texts can come after the pixels
    text = image.info.get(KEY) or image.getexif().get(DESCRIPTION)
    try:
        found: Any = json.loads(str(text))
    except ValueError:
        return None
    return cast("Json", found) if isinstance(found, dict) and KEY in found else None
