"""The panels of `--help`: which options stand together, the most used first."""

from typing import Any

PANELS = {
    "Result": (
        *("by", "size", "long_edge", "megapixels", "width", "height", "upscale", "count", "strength"),
        *("detail", "restore", "consistent", "expand", "fill", "crop", "feather", "preserve", "watermark"),
    ),
    "Prompt, mask and depth": (
        *("prompt", "negative", "file", "styles", "styles_file", "long_prompt"),
        *("mask", "mask_mode", "mask_resize", "maps"),
    ),
    "Files": (
        *("output", "kind", "quality", "overwrite", "skip_existing", "recursive", "again"),
        *("background", "strip", "all_frames", "salvage", "tone_map", "cmyk"),
    ),
    "Model": (
        *("model", "models", "loras", "refiner", "upscaler", "vae", "inversions", "clip_skip"),
        *("variant", "prediction", "allow_pickle", "mmap"),
    ),
    "Sampling": (
        *("seed", "steps", "guidance", "solver", "spacing", "noise_level", "rescale", "handoff"),
        *("score", "negative_score", "upscale_steps", "upscale_strength", "profile"),
    ),
    "Computing": (
        *("device", "precision", "offload", "engine", "tile", "memory"),
        *("server", "key", "ray", "workers", "gpus_per_worker"),
    ),
    "Terminal": ("quiet", "json_lines", "explain", "help"),
}
ORDER = {
    name: (panel, place)
    for place, (panel, name) in enumerate((panel, name) for panel, names in PANELS.items() for name in names)
}


def arrange(parameters: list[Any]) -> list[Any]:
    """The parameters of a command by panel; arguments, and options of no panel, come first as they are."""
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.name in ORDER:
            parameter.rich_help_panel, _ = ORDER[parameter.name]
    return sorted(parameters, key=lambda parameter: ORDER.get(parameter.name, ("", -1))[1])
