"""What makes a picture again, written into its file: our JSON, and the text that other programs read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from PIL import Image, PngImagePlugin

from enlarger.sampler_names import menu_name, parse_sampler

METADATA_KEY = "enlarger"  # of the JSON in PNG files
PARAMETERS_KEY = "parameters"  # of the text that A1111's web UI writes and many programs read
IMAGE_DESCRIPTION_TAG, EXIF_IFD_TAG, USER_COMMENT_TAG = (
    0x010E,
    0x8769,
    0x9286,
)  # EXIF: ImageDescription, the inner block, UserComment
UNICODE_PREFIX = b"UNICODE\0"
MAX_EXIF_BYTES = 65_533 - 6  # bytes that a JPEG file holds

Json = dict[str, Any]


def generation_metadata(
    version: str, task: str, model: str, options: Mapping[str, Any], seeds: Sequence[int], input_info: Any
) -> Json:
    """All that a job's pictures depend on. `input_info` is what is known of the picture that was given."""
    return {
        "enlarger": version,
        "task": task,
        "model": model,
        "options": dict(options),
        "seeds": list(seeds),
        "input": input_info,
    }


def metadata_of_image(metadata: Json, index: int) -> Json:
    """The metadata of one of the job's pictures alone."""
    options = metadata["options"] | ({"count": 1} if "count" in metadata["options"] else {})
    return metadata | {"options": options, "seeds": metadata["seeds"][index : index + 1]}


def a1111_parameters(metadata: Json, size: tuple[int, int]) -> str:
    """The metadata as A1111 writes it: prompt, negative prompt, then names with values."""
    options: Json = metadata["options"]
    solver, spacing = parse_sampler(options.get("solver"), options.get("spacing"))
    fields = {
        "Steps": options.get("steps"),
        "Sampler": None if solver is None else menu_name(solver, spacing),
        "CFG scale": options.get("guidance"),
        "Seed": metadata["seeds"][0],
        "Size": f"{size[0]}x{size[1]}",
        "Model": metadata["model"],
        "Denoising strength": options.get("strength"),
        "Hires upscale": options.get("by", options.get("upscale")),
        "Version": f"enlarger {metadata['enlarger']}",
    }
    negative = options.get("negative")
    lines = [
        str(options.get("prompt", "")),
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None),
    ]
    return "\n".join(lines).replace("\0", " ").encode("utf-8", "replace").decode()


def png_info(metadata: Json, size: tuple[int, int]) -> PngImagePlugin.PngInfo:
    """The texts of a PNG file."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS_KEY, a1111_parameters(metadata, size))
    info.add_itxt(METADATA_KEY, json.dumps(metadata))
    return info


def exif_bytes(metadata: Json, size: tuple[int, int]) -> bytes:
    """The EXIF block of a JPEG or WebP file; it can be longer than `MAX_EXIF_BYTES`."""
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION_TAG] = json.dumps(metadata)
    exif.get_ifd(EXIF_IFD_TAG)[USER_COMMENT_TAG] = UNICODE_PREFIX + a1111_parameters(metadata, size).encode("utf-16-be")
    return exif.tobytes()


def read_metadata(image: Image.Image) -> Json | None:
    """The metadata in a picture's file; None where there is none of ours."""
    image.load()  # texts can come after the pixels
    text = image.info.get(METADATA_KEY) or image.getexif().get(IMAGE_DESCRIPTION_TAG)
    try:
        metadata: Any = json.loads(str(text))
    except ValueError:
        return None
    return cast("Json", metadata) if isinstance(metadata, dict) and METADATA_KEY in metadata else None
