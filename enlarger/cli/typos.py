"""Hints for options that a command does not have: the one that was meant, by its letters or its other names."""

import difflib
from collections.abc import Sequence

OTHER_NAMES = {  # of other programs: ours
    **dict.fromkeys(("scale", "factor", "upscale-by", "outscale", "zoom", "times"), "by"),
    **dict.fromkeys(("out", "outdir", "output-dir", "output-path", "outfile", "dest"), "output"),
    **dict.fromkeys(("cfg", "cfg-scale", "guidance-scale", "scale-guidance"), "guidance"),
    **dict.fromkeys(("sampler", "sampler-name", "scheduler", "sampling-method"), "solver"),
    **dict.fromkeys(("num-inference-steps", "sampling-steps", "iterations"), "steps"),
    **dict.fromkeys(("negative-prompt", "neg", "uncond"), "negative"),
    **dict.fromkeys(("denoising-strength", "denoise", "denoising"), "strength"),
    **dict.fromkeys(("checkpoint", "ckpt", "weights", "model-path"), "model"),
    **dict.fromkeys(("batch-size", "batch-count", "n-iter", "number", "num-images", "n"), "count"),
    **dict.fromkeys(("force", "replace"), "overwrite"),
    **dict.fromkeys(("fp16", "half", "dtype"), "precision"),
    **dict.fromkeys(("silent", "no-progress"), "quiet"),
    **dict.fromkeys(("target-size", "resolution"), "size"),
}
MOST_HINTS = 2
LIKENESS = 0.72  # of letters, above which a hint fits


def meant_options(option: str, known: Sequence[str]) -> list[str]:
    """Of the `known` options, with their dashes, those that an unknown one may stand for; none where nothing fits."""
    name = option.lstrip("-").partition("=")[0].casefold().replace("_", "-")
    other = f"--{OTHER_NAMES.get(name, name)}"
    if other in known:
        return [other]
    return difflib.get_close_matches(f"--{name}", [each for each in known if each[:2] == "--"], MOST_HINTS, LIKENESS)
